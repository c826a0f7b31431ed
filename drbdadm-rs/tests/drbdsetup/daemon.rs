//! A daemon that answers from a script and remembers what it was asked.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use udrbd_control::ReturnCode;
use udrbd_control::protocol::frame::{FrameDecoder, encode};
use udrbd_control::protocol::{
    ClientHello, CommandResult, PROTOCOL_VERSION, Request, SOCKET_NAME, ServerHello, ServerMessage,
    StreamItem,
};
use udrbd_control::status::NodeSnapshot;

/// What the daemon answers.
struct Script {
    node: NodeSnapshot,
    result: CommandResult,
    /// What happens after the first dump.
    changes: Vec<StreamItem>,
    /// Whether a stream stays open after the last change.
    holds: bool,
}

pub(crate) struct Daemon {
    folder: tempfile::TempDir,
    commands: Arc<Mutex<Vec<Request>>>,
}

impl Daemon {
    /// Agrees to everything.
    pub(crate) fn start(node: NodeSnapshot) -> Self {
        Self::run(Script { node, result: ReturnCode::NoError.into(), changes: Vec::new(), holds: false })
    }

    /// Answers every command with `result`.
    pub(crate) fn refusing(node: NodeSnapshot, result: CommandResult) -> Self {
        Self::run(Script { node, result, changes: Vec::new(), holds: false })
    }

    /// Streams the changes and then ends.
    pub(crate) fn streaming(node: NodeSnapshot, changes: Vec<StreamItem>) -> Self {
        Self::run(Script { node, result: ReturnCode::NoError.into(), changes, holds: false })
    }

    /// Streams the changes and then keeps the stream open.
    pub(crate) fn holding(node: NodeSnapshot, changes: Vec<StreamItem>) -> Self {
        Self::run(Script { node, result: ReturnCode::NoError.into(), changes, holds: true })
    }

    fn run(script: Script) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join(SOCKET_NAME)).expect("a socket");
        let commands = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&commands);
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                // A client that hangs up ends its own conversation only.
                std::thread::spawn(move || converse(stream, &script, &seen));
            }
        });
        Self { folder, commands }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.folder.path()
    }

    /// The commands so far, queries left out.
    pub(crate) fn commands(&self) -> Vec<Request> {
        self.commands.lock().expect("the list").clone()
    }
}

struct Conversation {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl Conversation {
    fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().expect("a message") {
                return Some(message);
            }
            match self.stream.read(&mut chunk) {
                Ok(count) if count > 0 => self.decoder.push(&chunk[..count]),
                _ => return None,
            }
        }
    }

    fn send(&mut self, message: &ServerMessage) -> Option<()> {
        self.stream.write_all(&encode(message).expect("a frame")).ok()
    }
}

fn converse(stream: UnixStream, script: &Script, seen: &Mutex<Vec<Request>>) -> Option<()> {
    let mut client = Conversation { stream, decoder: FrameDecoder::new() };
    let hello: ClientHello = client.receive()?;
    assert_eq!(hello.protocol, PROTOCOL_VERSION);
    let hello = ServerHello {
        protocol: PROTOCOL_VERSION,
        version: "test".to_owned(),
        node: "alpha".to_owned(),
        process: 1,
    };
    client.send(&ServerMessage::Hello(hello))?;
    loop {
        let request: Request = client.receive()?;
        let only = |wanted: &Option<String>| {
            let mut node = script.node.clone();
            node.resources.retain(|resource| wanted.as_ref().is_none_or(|name| *name == resource.name));
            node
        };
        match &request {
            Request::Snapshot { resource } => client.send(&ServerMessage::Snapshot(only(resource)))?,
            Request::Watch { resource } => {
                for resource in only(resource).resources {
                    let resource = Box::new(resource);
                    client.send(&ServerMessage::Stream(StreamItem::Resource { time_us: 0, resource }))?;
                }
                client.send(&ServerMessage::Stream(StreamItem::DumpEnd { time_us: 0 }))?;
                for change in &script.changes {
                    client.send(&ServerMessage::Stream(change.clone()))?;
                }
                if script.holds {
                    // Until the client hangs up.
                    client.receive::<Request>()?;
                }
                client.send(&ServerMessage::End)?;
            }
            _ => {
                seen.lock().expect("the list").push(request);
                client.send(&ServerMessage::Result(script.result.clone()))?;
            }
        }
    }
}
