//! The server's side of one conversation, without input and output.

use super::frame::{FrameDecoder, FrameError, encode};
use super::{ClientHello, PROTOCOL_VERSION, Request, ServerHello, ServerMessage};

/// What the server has to do next.
#[derive(Debug)]
pub enum SessionEvent {
    /// Send these bytes and go on.
    Send(Vec<u8>),
    /// Send these bytes and close the connection.
    SendAndClose(Vec<u8>),
    /// Carry out this request and send the answer, [`encode`]d.
    Request(Box<Request>),
}

/// One conversation as the server sees it. Feed it with [`Self::receive`], then ask [`Self::next_event`] until
/// there is none. A client that sends a request before the last one is answered is served in order.
#[derive(Debug)]
pub struct ServerSession {
    decoder: FrameDecoder,
    hello: ServerHello,
    program: Option<String>,
}

impl ServerSession {
    /// A conversation with a client that has just connected. `hello` is what the server says of itself.
    pub const fn new(hello: ServerHello) -> Self {
        Self { decoder: FrameDecoder::for_requests(), hello, program: None }
    }

    /// The program at the other end, once it has said.
    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    /// Takes bytes from the socket.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// What to do next; `None` until more bytes arrive.
    ///
    /// # Errors
    /// The client does not speak the protocol; close the connection.
    pub fn next_event(&mut self) -> Result<Option<SessionEvent>, FrameError> {
        if self.program.is_some() {
            return Ok(self.decoder.next_message()?.map(|request| SessionEvent::Request(Box::new(request))));
        }
        let Some(ClientHello { protocol, program }) = self.decoder.next_message()? else { return Ok(None) };
        self.program = Some(program);
        if protocol == PROTOCOL_VERSION {
            return Ok(Some(SessionEvent::Send(encode(&ServerMessage::Hello(self.hello.clone()))?)));
        }
        let reason = format!(
            "this program speaks version {protocol} of the control protocol, the daemon version {PROTOCOL_VERSION}"
        );
        Ok(Some(SessionEvent::SendAndClose(encode(&ServerMessage::Refused { reason })?)))
    }
}
