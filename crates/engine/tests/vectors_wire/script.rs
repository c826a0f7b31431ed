//! A capture as a script: what was done to the nodes and what they said, in the order in which it happened.

use std::path::{Path, PathBuf};

use udrbd_wire::{Dialect, DigestAlgorithm};

use crate::captures::capture::{self, Moment};
use crate::captures::session::{self, Received};

/// Something that happened.
#[derive(Debug)]
pub(crate) enum What {
    /// Somebody gave a command: the words behind the `##`.
    Command(String),
    /// The tool of the last command ended with this exit status.
    ExitCode(i32),
    /// A TCP connection was made by this node.
    Open { connection: usize, by: usize },
    /// This node sent a packet: its index in what it sent on the connection.
    Packet { connection: usize, from: usize, index: usize },
    /// This node closed its end.
    Close { connection: usize, by: usize },
}

/// An entry of the script.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) at: Moment,
    pub(crate) what: What,
}

/// A whole capture.
pub(crate) struct Script {
    pub(crate) path: PathBuf,
    pub(crate) items: Vec<Item>,
    /// By connection and sender: 0 is A.
    pub(crate) packets: Vec<[Vec<Received>; 2]>,
    /// What the nodes agreed on.
    pub(crate) dialect: Dialect,
    /// The text of the file with the states before and after.
    pub(crate) state: String,
}

impl Script {
    pub(crate) fn load(path: &Path) -> Self {
        let listing = std::fs::read_to_string(path.with_extension("txt")).unwrap();
        let mut items = commands(&listing);
        let algorithm = items.iter().find_map(|item| match &item.what {
            What::Command(text) => option(text, "cram-hmac-alg"),
            _ => None,
        });
        let algorithm: Option<DigestAlgorithm> = algorithm.map(|name| name.parse().unwrap());
        let connections = capture::read(path);
        let dialect = session::agreed(&connections);
        let sessions = session::sessions(&connections, algorithm.unwrap_or(DigestAlgorithm::Sha1));
        let packets: Vec<[Vec<Received>; 2]> = sessions.into_iter().map(|session| session.sent).collect();
        for (index, connection) in connections.iter().enumerate().filter(|(_, c)| !c.is_refused()) {
            let open = What::Open { connection: index, by: connection.client_node };
            items.push(Item { at: connection.opened, what: open });
            for (node, sent) in packets[index].iter().enumerate() {
                let packet = |packet: usize| What::Packet { connection: index, from: node, index: packet };
                items.extend(
                    sent.iter().enumerate().map(|(i, received)| Item { at: received.at, what: packet(i) }),
                );
                let close = What::Close { connection: index, by: node };
                items.extend(connection.streams[node].closed.map(|at| Item { at, what: close }));
            }
        }
        items.sort_by_key(|item| item.at);
        let state = std::fs::read_to_string(path.with_extension("state")).unwrap();
        Self { path: path.to_owned(), items, packets, dialect, state }
    }

    /// Whether a command with these words was given while packets were captured.
    pub(crate) fn says(&self, words: &str) -> bool {
        self.items.iter().any(|item| matches!(&item.what, What::Command(text) if text.contains(words)))
    }

    /// The packets a node sent, in order.
    pub(crate) fn sent_by(&self, node: usize) -> impl Iterator<Item = (Moment, &Received)> {
        self.items.iter().filter_map(move |item| match item.what {
            What::Packet { connection, from, index } if from == node => {
                Some((item.at, &self.packets[connection][from][index]))
            }
            _ => None,
        })
    }
}

/// The value of an option of a command.
pub(crate) fn option<'a>(command: &'a str, name: &str) -> Option<&'a str> {
    command.split(' ').find_map(|word| {
        let value = word.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('=')?;
        Some(value.trim_matches('\''))
    })
}

fn commands(listing: &str) -> Vec<Item> {
    let mut items = Vec::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [seconds, "##", ..] = words[..] else { continue };
        let micros = (seconds.parse::<f64>().unwrap() * 1e6).round() as i64;
        let what = match words[2..] {
            ["->", "exit", "code", code] => What::ExitCode(code.parse().unwrap()),
            _ => What::Command(words[2..].join(" ")),
        };
        // Said before what was captured in the same microsecond.
        items.push(Item { at: Moment { micros, frame: 0 }, what });
    }
    items
}
