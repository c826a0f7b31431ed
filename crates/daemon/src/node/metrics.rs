//! The metrics page over HTTP/1.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use udrbd_control::status::metrics;

use super::Node;

/// The longest request that is looked at, in bytes.
const REQUEST_BYTES_MAX: usize = 8192;
const PATIENCE: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Listens and serves.
pub(super) async fn start(node: &Rc<Node>, address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let node = Rc::clone(node);
    tokio::task::spawn_local(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let node = Rc::clone(&node);
            tokio::task::spawn_local(async move {
                // Who is too slow, or goes away, gets nothing.
                let _ = tokio::time::timeout(PATIENCE, serve(&node, stream)).await;
            });
        }
    });
    Ok(())
}

async fn serve(node: &Node, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).await?;
        if count == 0 || request.len() + count > REQUEST_BYTES_MAX {
            return Ok(());
        }
        request.extend_from_slice(&chunk[..count]);
    }
    let wanted = [&b"GET / "[..], b"GET /metrics ", b"GET /metrics?"];
    let (status, body) = if wanted.iter().any(|start| request.starts_with(start)) {
        node.refresh_now(None).await;
        let state = node.state.borrow();
        ("200 OK", metrics(&state.snapshot(None), &state.metrics))
    } else {
        ("404 Not Found", "the metrics are at /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
