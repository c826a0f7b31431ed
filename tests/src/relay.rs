//! A connection between two nodes that goes through the hands of the test, which turns one bit over.

use std::fs;
use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What a relay carries, and where it may not be trusted.
#[derive(Debug, Clone)]
pub struct Relay {
    /// Where nodes connect to.
    pub from: SocketAddr,
    /// The node that is meant.
    pub to: SocketAddr,
    /// The next bytes with this text lose a bit...
    pub marker: String,
    /// ...once, each time there is this file, which is removed with it.
    pub flip: PathBuf,
}

impl Relay {
    /// Carries connections until it is killed.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub fn run(&self) -> Result<()> {
        let listener =
            TcpListener::bind(self.from).with_context(|| format!("cannot listen on {}", self.from))?;
        for client in listener.incoming() {
            let client = client?;
            // Nobody listens there at times: then nobody is heard here either.
            let Ok(server) = TcpStream::connect_timeout(&self.to, Duration::from_secs(5)) else { continue };
            for (source, sink) in [(&client, &server), (&server, &client)] {
                source.set_nodelay(true)?;
                let (source, sink, relay) = (source.try_clone()?, sink.try_clone()?, self.clone());
                std::thread::spawn(move || relay.carry(source, sink));
            }
        }
        Ok(())
    }

    fn carry(&self, mut source: TcpStream, mut sink: TcpStream) {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = source.read(&mut chunk) {
            self.spoil(&mut chunk[..length]);
            if sink.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        // What ends for one side ends for the other.
        for end in [source, sink] {
            let _closed = end.shutdown(Shutdown::Both);
        }
    }

    fn spoil(&self, bytes: &mut [u8]) {
        if !self.flip.exists() {
            return;
        }
        let marker = self.marker.as_bytes();
        let found = bytes.windows(marker.len()).position(|window| window == marker);
        // Of several connections with it only the one that takes the file away.
        if let Some(at) = found.filter(|_| fs::remove_file(&self.flip).is_ok()) {
            bytes[at] ^= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_turned_over_where_the_marker_is() {
        let folder = tempfile::tempdir().unwrap();
        let flip = folder.path().join("flip");
        let to = TcpListener::bind("127.0.0.1:0").unwrap();
        let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let relay = Relay {
            from: unused,
            to: to.local_addr().unwrap(),
            marker: "MARK".to_owned(),
            flip: flip.clone(),
        };
        std::thread::spawn(move || relay.run());
        let mut client = loop {
            if let Ok(client) = TcpStream::connect(unused) {
                break client;
            }
        };
        let (mut server, _) = to.accept().unwrap();
        let mut carried = |text: &[u8]| {
            client.write_all(text).unwrap();
            let mut got = vec![0; text.len()];
            server.read_exact(&mut got).unwrap();
            got
        };
        assert_eq!(carried(b"a MARK"), b"a MARK");
        fs::write(&flip, "").unwrap();
        assert_eq!(carried(b"none"), b"none");
        assert_eq!(carried(b"a MARK"), b"a LARK");
        assert_eq!(carried(b"a MARK"), b"a MARK");
        assert!(!flip.exists());
        drop(client);
        assert_eq!(server.read(&mut [0; 4]).unwrap(), 0);
    }
}
