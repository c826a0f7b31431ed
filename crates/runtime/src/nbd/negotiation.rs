//! The first phase: fixed newstyle negotiation, without I/O.
//!
//! The caller moves bytes: everything read from the client goes to [`Negotiation::handle`], everything in
//! [`Negotiation::take_output`] goes to the client, first of all the greeting. Nothing a client sends makes this
//! panic, loop, or keep more than [`OPTION_BYTES_MAX`] bytes.

use super::protocol::{
    GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, PREFERRED_BLOCK_BYTES, export_flag,
};

/// The longest option that is looked at, in bytes; a client with a longer one is dropped.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;
/// Options a client may send before it is dropped.
const OPTIONS_MAX: u32 = 128;
/// The longest name of an export, in bytes (a limit of the protocol).
const NAME_BYTES_MAX: usize = 4096;

const OPTION_HEADER_BYTES: usize = 16;
const CLIENT_FLAGS_KNOWN: u32 = 0b11;
const CLIENT_NO_ZEROES: u32 = 0b10;

/// What a client is told about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its full name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Smallest unit of requests, in bytes: the logical block size of the backing device.
    pub block_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Whether trims are worth sending.
    pub trim: bool,
    /// Whether the medium rotates.
    pub rotational: bool,
}

impl Export {
    /// The flags it is offered with (`NBD_FLAG_*`).
    #[must_use]
    pub fn flags(&self, structured: bool) -> u16 {
        let when = |condition: bool, flag: u16| if condition { flag } else { 0 };
        export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::SEND_WRITE_ZEROES
            | export_flag::SEND_FAST_ZERO
            | export_flag::CAN_MULTI_CONN
            | when(self.read_only, export_flag::READ_ONLY)
            | when(self.rotational, export_flag::ROTATIONAL)
            | when(self.trim, export_flag::SEND_TRIM)
            | when(structured, export_flag::SEND_DF)
    }
}

/// Why an export cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub kind: RefusalKind,
    /// The text the client shows its user.
    pub message: String,
}

/// Kinds of [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// There is no such export.
    Unknown,
    /// There is, but not now and here: this node is Secondary, or has no data.
    Policy,
}

/// The exports of a node.
pub trait Exports {
    /// The names of all exports that can be had now.
    fn names(&self) -> Vec<String>;

    /// Looks an export up. The empty name asks for a default.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn find(&self, name: &str) -> Result<Export, Refusal>;
}

/// Splits the name of an export, `RESOURCE` or `RESOURCE/VOLUME`, into the resource's name and the volume's number.
/// `None` if it cannot be such a name.
#[must_use]
pub fn split_export_name(name: &str) -> Option<(&str, u16)> {
    let (resource, volume) = match name.rsplit_once('/') {
        Some((resource, volume)) if volume.bytes().all(|byte| byte.is_ascii_digit()) => {
            (resource, volume.parse().ok()?)
        }
        _ => (name, 0),
    };
    (!resource.is_empty()).then_some((resource, volume))
}

/// The outcome: what the second phase needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export.
    pub export: Export,
    /// Whether structured replies were agreed.
    pub structured: bool,
    /// What the client sent behind its last option.
    pub early_bytes: Vec<u8>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Send the output and read on.
    More,
    /// Send the output, then begin the second phase.
    Done(Box<Negotiated>),
    /// Send the output, then close the connection. The text is for the log.
    Ended(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    Options,
    Over,
}

/// One client's negotiation.
#[derive(Debug)]
pub struct Negotiation {
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    options: u32,
}

impl Default for Negotiation {
    fn default() -> Self {
        Self::new()
    }
}

/// Replies to options.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Reply {
    Acknowledge = 1,
    Server = 2,
    Info = 3,
    Unsupported = 1 << 31 | 1,
    Policy = 1 << 31 | 2,
    Invalid = 1 << 31 | 3,
    Unknown = 1 << 31 | 6,
}

impl Negotiation {
    /// Begins; the greeting is in the output.
    #[must_use]
    pub fn new() -> Self {
        let mut output = Vec::with_capacity(256);
        output.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
        output.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        // Fixed newstyle, and no 124 zeroes where the client does not want them.
        output.extend_from_slice(&0b11u16.to_be_bytes());
        Self {
            phase: Phase::ClientFlags,
            input: Vec::new(),
            output,
            no_zeroes: false,
            structured: false,
            options: 0,
        }
    }

    /// Takes what is to be sent to the client.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes bytes of the client in. After anything but [`Progress::More`] it is over.
    pub fn handle(&mut self, bytes: &[u8], exports: &dyn Exports) -> Progress {
        self.input.extend_from_slice(bytes);
        let mut consumed = 0;
        let progress = loop {
            let input = std::mem::take(&mut self.input);
            let step = self.step(&input[consumed..], exports);
            self.input = input;
            match step {
                Step::Starved => break Progress::More,
                Step::Consumed(count) => consumed += count,
                Step::Ended(reason) => break Progress::Ended(reason),
                Step::Done(count, export) => {
                    let early_bytes = self.input.split_off(consumed + count);
                    let negotiated = Negotiated { export, structured: self.structured, early_bytes };
                    break Progress::Done(Box::new(negotiated));
                }
            }
        };
        if progress == Progress::More {
            self.input.drain(..consumed);
        } else {
            self.phase = Phase::Over;
            self.input.clear();
        }
        progress
    }

    fn step(&mut self, input: &[u8], exports: &dyn Exports) -> Step {
        match self.phase {
            Phase::Over => Step::Ended("bytes after the end of the negotiation"),
            Phase::ClientFlags => {
                let Some((flags, _)) = input.split_first_chunk() else { return Step::Starved };
                let flags = u32::from_be_bytes(*flags);
                if flags & !CLIENT_FLAGS_KNOWN != 0 {
                    return Step::Ended("unknown client flags");
                }
                self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
                self.phase = Phase::Options;
                Step::Consumed(4)
            }
            Phase::Options => self.option(input, exports),
        }
    }

    fn option(&mut self, input: &[u8], exports: &dyn Exports) -> Step {
        let Some((magic, rest)) = input.split_first_chunk() else { return Step::Starved };
        if u64::from_be_bytes(*magic) != OPTION_MAGIC {
            return Step::Ended("wrong magic number before an option");
        }
        let Some((number, rest)) = rest.split_first_chunk() else { return Step::Starved };
        let Some((length, rest)) = rest.split_first_chunk() else { return Step::Starved };
        let (number, length) = (u32::from_be_bytes(*number), u32::from_be_bytes(*length));
        if length > OPTION_BYTES_MAX {
            return Step::Ended("an option is too long");
        }
        let Some(data) = rest.get(..length as usize) else { return Step::Starved };
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Step::Ended("too many options");
        }
        let size = OPTION_HEADER_BYTES + data.len();
        match number {
            1 => self.export_name(data, size, exports),
            2 => {
                self.reply(number, Reply::Acknowledge, &[]);
                Step::Ended("the client gave up")
            }
            3 => {
                self.list(number, data, exports);
                Step::Consumed(size)
            }
            6 | 7 => match self.info(number, data, exports) {
                Some(export) if number == 7 => Step::Done(size, export),
                _ => Step::Consumed(size),
            },
            8 => {
                self.structured_replies(number, data);
                Step::Consumed(size)
            }
            _ => {
                self.refuse(number, Reply::Unsupported, "option not supported");
                Step::Consumed(size)
            }
        }
    }

    /// The option of the first days: there is no way to refuse but to hang up.
    fn export_name(&mut self, name: &[u8], size: usize, exports: &dyn Exports) -> Step {
        let Ok(name) = std::str::from_utf8(name) else { return Step::Ended("the name is no text") };
        let Ok(export) = exports.find(name) else { return Step::Ended("the export cannot be had") };
        self.output.extend_from_slice(&export.size_bytes.to_be_bytes());
        self.output.extend_from_slice(&export.flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            self.output.extend_from_slice(&[0; 124]);
        }
        Step::Done(size, export)
    }

    fn list(&mut self, number: u32, data: &[u8], exports: &dyn Exports) {
        if !data.is_empty() {
            self.refuse(number, Reply::Invalid, "LIST takes no data");
            return;
        }
        for name in exports.names() {
            let mut entry = Vec::with_capacity(4 + name.len());
            entry.extend_from_slice(&(name.len() as u32).to_be_bytes());
            entry.extend_from_slice(name.as_bytes());
            self.reply(number, Reply::Server, &entry);
        }
        self.reply(number, Reply::Acknowledge, &[]);
    }

    /// INFO and GO: tells about an export. `None` after a refusal.
    fn info(&mut self, number: u32, data: &[u8], exports: &dyn Exports) -> Option<Export> {
        let Some((name, wanted)) = parse_info(data) else {
            self.refuse(number, Reply::Invalid, "malformed INFO or GO");
            return None;
        };
        let export = match exports.find(name) {
            Ok(export) => export,
            Err(Refusal { kind, message }) => {
                let kind = match kind {
                    RefusalKind::Unknown => Reply::Unknown,
                    RefusalKind::Policy => Reply::Policy,
                };
                self.refuse(number, kind, &message);
                return None;
            }
        };
        let wants = |kind: u16| wanted.chunks_exact(2).any(|pair| pair == kind.to_be_bytes());
        let mut about = Vec::with_capacity(64);
        about.extend_from_slice(&0u16.to_be_bytes());
        about.extend_from_slice(&export.size_bytes.to_be_bytes());
        about.extend_from_slice(&export.flags(self.structured).to_be_bytes());
        self.reply(number, Reply::Info, &about);
        for (kind, text) in [(1u16, &export.name), (2, &export.description)] {
            if wants(kind) {
                about.clear();
                about.extend_from_slice(&kind.to_be_bytes());
                about.extend_from_slice(text.as_bytes());
                self.reply(number, Reply::Info, &about);
            }
        }
        about.clear();
        about.extend_from_slice(&3u16.to_be_bytes());
        let preferred = PREFERRED_BLOCK_BYTES.max(export.block_bytes);
        for bytes in [export.block_bytes, preferred, PAYLOAD_BYTES_MAX] {
            about.extend_from_slice(&bytes.to_be_bytes());
        }
        // Unasked too: a client that ignores it loses nothing.
        self.reply(number, Reply::Info, &about);
        self.reply(number, Reply::Acknowledge, &[]);
        Some(export)
    }

    fn structured_replies(&mut self, number: u32, data: &[u8]) {
        if data.is_empty() {
            self.structured = true;
            self.reply(number, Reply::Acknowledge, &[]);
        } else {
            self.refuse(number, Reply::Invalid, "STRUCTURED_REPLY takes no data");
        }
    }

    fn refuse(&mut self, number: u32, reply: Reply, message: &str) {
        self.reply(number, reply, message.as_bytes());
    }

    fn reply(&mut self, number: u32, reply: Reply, data: &[u8]) {
        self.output.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.output.extend_from_slice(&number.to_be_bytes());
        self.output.extend_from_slice(&(reply as u32).to_be_bytes());
        self.output.extend_from_slice(&(data.len() as u32).to_be_bytes());
        self.output.extend_from_slice(data);
    }
}

enum Step {
    Starved,
    Consumed(usize),
    Done(usize, Export),
    Ended(&'static str),
}

/// The name and the list of wanted informations (16 bits each).
fn parse_info(data: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    let length = u32::from_be_bytes(*length) as usize;
    if length > NAME_BYTES_MAX || length > rest.len() {
        return None;
    }
    let (name, rest) = rest.split_at(length);
    let (count, wanted) = rest.split_first_chunk()?;
    let count = usize::from(u16::from_be_bytes(*count));
    (wanted.len() == count * 2).then_some(())?;
    Some((std::str::from_utf8(name).ok()?, wanted))
}

#[cfg(test)]
mod tests;
