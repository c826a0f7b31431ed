//! The blocking client of the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::protocol::frame::{self, FrameDecoder, FrameError};
use crate::protocol::{
    ClientHello, CommandResult, PROTOCOL_VERSION, Request, SOCKET_NAME, ServerHello, ServerMessage,
    StreamItem,
};
use crate::status::{NodeSnapshot, SplitBrainReport};

/// The environment variable that names the run directory.
pub const RUN_DIRECTORY_VARIABLE: &str = "UDRBD_RUN_DIR";
/// The run directory unless that variable says otherwise.
pub const RUN_DIRECTORY_DEFAULT: &str = "/run/udrbd";
const READ_CHUNK: usize = 64 << 10;

/// Why the daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers at the socket.
    #[error("could not connect to the daemon at {path}: {error}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What `connect` said.
        error: io::Error,
    },
    /// The daemon does not talk to this client.
    #[error("the daemon refused: {0}")]
    Refused(String),
    /// The connection broke.
    #[error("error talking to the daemon: {0}")]
    Io(#[from] io::Error),
    /// The daemon sent something that is no message.
    #[error("error talking to the daemon: {0}")]
    Frame(#[from] FrameError),
    /// The daemon went away in the middle.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon sent a message that does not belong here.
    #[error("error talking to the daemon: unexpected answer")]
    Unexpected,
}

/// The run directory: `$UDRBD_RUN_DIR`, or the default.
pub fn run_directory() -> PathBuf {
    match std::env::var_os(RUN_DIRECTORY_VARIABLE) {
        Some(directory) if !directory.is_empty() => directory.into(),
        _ => RUN_DIRECTORY_DEFAULT.into(),
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: FrameDecoder,
    hello: ServerHello,
}

impl Client {
    /// Connects to the daemon of this run directory and exchanges greetings.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if nothing answers; otherwise what went wrong with the greeting.
    pub fn connect(run_directory: &Path, program: &str) -> Result<Self, ClientError> {
        let path = run_directory.join(SOCKET_NAME);
        let stream = UnixStream::connect(&path).map_err(|error| ClientError::NotRunning { path, error })?;
        Self::over(stream, program)
    }

    /// Exchanges greetings over a connected socket.
    ///
    /// # Errors
    /// What went wrong with the greeting.
    pub fn over(stream: UnixStream, program: &str) -> Result<Self, ClientError> {
        let hello = ServerHello { protocol: 0, version: String::new(), node: String::new(), process: 0 };
        let mut client = Self { stream, decoder: FrameDecoder::new(), hello };
        client.send(&ClientHello { protocol: PROTOCOL_VERSION, program: program.to_owned() })?;
        match client.receive()? {
            ServerMessage::Hello(hello) if hello.protocol == PROTOCOL_VERSION => {
                client.hello = hello;
                Ok(client)
            }
            ServerMessage::Hello(hello) => Err(ClientError::Refused(format!(
                "it speaks version {} of the control protocol, this program version {PROTOCOL_VERSION}",
                hello.protocol
            ))),
            ServerMessage::Refused { reason } => Err(ClientError::Refused(reason)),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What the daemon said of itself.
    pub const fn server(&self) -> &ServerHello {
        &self.hello
    }

    /// The socket, to wait for it together with something else.
    pub const fn socket(&self) -> &UnixStream {
        &self.stream
    }

    /// Limits how long [`Self::command`] and [`Self::snapshot`] wait for each part of an answer; `None` is for ever.
    ///
    /// # Errors
    /// The socket does not take the limit.
    pub fn set_answer_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        Ok(self.stream.set_read_timeout(timeout)?)
    }

    /// Sends a command and waits for its result.
    ///
    /// # Errors
    /// The daemon cannot be asked; a refused command is not an error but a result.
    pub fn command(&mut self, request: &Request) -> Result<CommandResult, ClientError> {
        self.send(request)?;
        match self.receive()? {
            ServerMessage::Result(result) => Ok(result),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks for the state of one resource or of all.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub fn snapshot(&mut self, resource: Option<&str>) -> Result<NodeSnapshot, ClientError> {
        self.send(&Request::Snapshot { resource: resource.map(str::to_owned) })?;
        match self.receive()? {
            ServerMessage::Snapshot(snapshot) => Ok(snapshot),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks what is known of a split brain; `None`: there is no such resource.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub fn split_brain_report(
        &mut self,
        resource: &str,
    ) -> Result<Option<Box<SplitBrainReport>>, ClientError> {
        self.send(&Request::SplitBrainReport { resource: resource.to_owned() })?;
        match self.receive()? {
            ServerMessage::SplitBrain(report) => Ok(report),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Starts the stream of changes; read it with [`Self::next_item`].
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub fn watch(&mut self, resource: Option<&str>) -> Result<(), ClientError> {
        self.send(&Request::Watch { resource: resource.map(str::to_owned) })
    }

    /// Waits for the next item of the stream, at most `timeout` if one is given.
    ///
    /// # Errors
    /// The connection broke in the middle of a message. An orderly end is [`Next::End`].
    pub fn next_item(&mut self, timeout: Option<Duration>) -> Result<Next, ClientError> {
        // A timeout of zero would mean "for ever" to the socket.
        let timeout = timeout.map(|time| time.max(Duration::from_millis(1)));
        self.stream.set_read_timeout(timeout)?;
        let received = self.receive();
        Self::stream_message(received)
    }

    /// An item that has arrived already, or `None` if the socket has to be read.
    ///
    /// # Errors
    /// The daemon sent something that is no message, or one that does not belong here.
    pub fn buffered_item(&mut self) -> Result<Option<Next>, ClientError> {
        match self.decoder.next_message()? {
            Some(message) => Self::stream_message(Ok(message)).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the socket once, for [`Self::buffered_item`]. Waits if nothing is there, so poll the socket first.
    /// Returns whether the daemon is still there.
    ///
    /// # Errors
    /// The connection broke.
    pub fn fill(&mut self) -> Result<bool, ClientError> {
        let mut chunk = vec![0; READ_CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.decoder.push(&chunk[..count]);
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn stream_message(received: Result<ServerMessage, ClientError>) -> Result<Next, ClientError> {
        match received {
            Ok(ServerMessage::Stream(item)) => Ok(Next::Item(item)),
            Ok(ServerMessage::End) | Err(ClientError::Closed) => Ok(Next::End),
            Ok(_) => Err(ClientError::Unexpected),
            Err(ClientError::Io(error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Ok(Next::TimedOut)
            }
            Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Next::End),
            Err(error) => Err(error),
        }
    }

    fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ClientError> {
        self.stream.write_all(&frame::encode(message)?)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<ServerMessage, ClientError> {
        let mut chunk = vec![0; READ_CHUNK];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(message);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => self.decoder.push(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What came of waiting for a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// An item.
    Item(StreamItem),
    /// Nothing within the time.
    TimedOut,
    /// The stream is over.
    End,
}
