//! The control socket.

use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use udrbd_control::protocol::frame::{self, FrameDecoder};
use udrbd_control::protocol::{
    ClientHello, PROTOCOL_VERSION, Request, ServerHello, ServerMessage, StreamItem,
};

use super::watch::{Next, Watcher};
use super::{Node, commands, split_brain, time_us};

const READ_BYTES: usize = 64 << 10;
/// How long to leave accepting alone where no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves everybody who connects.
pub(super) async fn serve(node: Rc<Node>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = Rc::clone(&node);
                tokio::task::spawn_local(async move {
                    if let Err(error) = converse(&node, stream).await {
                        tracing::warn!("a client of the control socket: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("control socket: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl Connection {
    /// The next message; `None` when the client has hung up.
    async fn receive<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let mut chunk = vec![0; READ_BYTES];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            match self.stream.read(&mut chunk).await {
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.push(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn send<T: Serialize>(&mut self, message: &T) -> anyhow::Result<()> {
        match self.stream.write_all(&frame::encode(message)?).await {
            // It did not wait for the answer.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            sent => Ok(sent?),
        }
    }
}

async fn converse(node: &Rc<Node>, stream: UnixStream) -> anyhow::Result<()> {
    let mut connection = Connection { stream, decoder: FrameDecoder::new() };
    let Some(hello) = connection.receive::<ClientHello>().await? else { return Ok(()) };
    if hello.protocol != PROTOCOL_VERSION {
        let reason = format!(
            "it speaks version {PROTOCOL_VERSION} of the control protocol, this program version {}",
            hello.protocol
        );
        return connection.send(&ServerMessage::Refused { reason }).await;
    }
    let hello = ServerHello {
        protocol: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node.name.clone(),
        process: std::process::id(),
    };
    connection.send(&ServerMessage::Hello(hello)).await?;
    while let Some(request) = connection.receive::<Request>().await? {
        match request {
            Request::Snapshot { resource } => {
                node.refresh_now(resource.as_deref()).await;
                let snapshot = node.state.borrow().snapshot(resource.as_deref());
                connection.send(&ServerMessage::Snapshot(snapshot)).await?;
            }
            Request::SplitBrainReport { resource } => {
                let report = split_brain::report(node, &resource).await;
                connection.send(&ServerMessage::SplitBrain(report)).await?;
            }
            Request::Watch { resource } => return watch(node, &mut connection, resource).await,
            command => {
                // A command goes on even where nobody waits for its end.
                let worker = Rc::clone(node);
                let run = tokio::task::spawn_local(async move { commands::execute(&worker, command).await });
                let result = run.await?;
                node.write_status_file();
                connection.send(&ServerMessage::Result(result)).await?;
            }
        }
    }
    Ok(())
}

async fn watch(node: &Rc<Node>, connection: &mut Connection, resource: Option<String>) -> anyhow::Result<()> {
    node.refresh_now(resource.as_deref()).await;
    let watcher = node.state.borrow_mut().watchers.add(resource.clone());
    present(node, connection, resource.as_deref()).await?;
    let item = StreamItem::DumpEnd { time_us: time_us() };
    connection.send(&ServerMessage::Stream(item)).await?;
    loop {
        let Some(next) = next_or_hang_up(connection, &watcher).await else { return Ok(()) };
        match next {
            Next::Item(item) => connection.send(&ServerMessage::Stream(item)).await?,
            Next::Skipped(count) => {
                connection.send(&ServerMessage::Stream(StreamItem::Skipped { count })).await?;
                present(node, connection, resource.as_deref()).await?;
            }
            Next::End => return connection.send(&ServerMessage::End).await,
        }
    }
}

/// The present state of each resource.
async fn present(node: &Rc<Node>, connection: &mut Connection, resource: Option<&str>) -> anyhow::Result<()> {
    let snapshot = node.state.borrow().snapshot(resource);
    let now = time_us();
    for resource in snapshot.resources {
        let item = StreamItem::Resource { time_us: now, resource: Box::new(resource) };
        connection.send(&ServerMessage::Stream(item)).await?;
    }
    Ok(())
}

/// `None` when the client is gone.
async fn next_or_hang_up(connection: &mut Connection, watcher: &Watcher) -> Option<Next> {
    let mut byte = [0; 1];
    tokio::select! {
        next = watcher.next() => Some(next),
        // A client that watches has nothing more to say.
        _ = connection.stream.read(&mut byte) => None,
    }
}
