//! A small NBD client (fixed newstyle, simple replies, one request at a time) for tests and the demo.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const OPTION_ABORT: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_TRIM: u16 = 4;
const COMMAND_WRITE_ZEROES: u16 = 6;
const FLAG_FUA: u16 = 1;

/// Longest time a request may take before the server counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to one export.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    size: u64,
    flags: u16,
    cookie: u64,
}

impl Nbd {
    /// Connects to `export` of the server on the unix socket `socket`.
    ///
    /// # Errors
    ///
    /// If nobody listens, or the server refuses the export: then with the server's own words.
    pub fn connect(socket: &Path, export: &str) -> Result<Self> {
        let mut stream = greet(socket)?;
        let mut body = Vec::new();
        body.extend((export.len() as u32).to_be_bytes());
        body.extend(export.as_bytes());
        body.extend(0_u16.to_be_bytes());
        send_option(&mut stream, OPTION_GO, &body)?;
        let mut found = None;
        loop {
            let (kind, data) = option_reply(&mut stream)?;
            match kind {
                REPLY_ACK => break,
                REPLY_INFO if data.len() >= 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                    found = Some((be64(&data[2..10]), u16::from_be_bytes([data[10], data[11]])));
                }
                REPLY_INFO => {}
                kind if kind & REPLY_ERROR_BIT != 0 => {
                    bail!(
                        "export `{export}` refused ({}): {}",
                        kind & 0xffff,
                        String::from_utf8_lossy(&data)
                    );
                }
                kind => bail!("unexpected option reply {kind}"),
            }
        }
        let (size, flags) = found.context("the server did not say how large the export is")?;
        Ok(Self { stream, size, flags, cookie: 0 })
    }

    /// Names of the exports of the server on the unix socket `socket`.
    ///
    /// # Errors
    ///
    /// If nobody listens or the server does not list.
    pub fn list(socket: &Path) -> Result<Vec<String>> {
        let mut stream = greet(socket)?;
        send_option(&mut stream, OPTION_LIST, &[])?;
        let mut names = Vec::new();
        loop {
            let (kind, data) = option_reply(&mut stream)?;
            match kind {
                REPLY_ACK => break,
                REPLY_SERVER if data.len() >= 4 => {
                    let length = be32(&data[..4]) as usize;
                    let name = data.get(4..4 + length).context("a torn export name")?;
                    names.push(String::from_utf8_lossy(name).into_owned());
                }
                kind => bail!("unexpected answer {kind:#x} to a list request"),
            }
        }
        send_option(&mut stream, OPTION_ABORT, &[])?;
        Ok(names)
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags of the export, as the protocol has them.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Reads `data.len()` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// If the server answers with an error or goes away.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.request(COMMAND_READ, 0, offset, data.len() as u32, &[])?;
        self.stream.read_exact(data).context("the server went away in the middle of a read")
    }

    /// Writes `data` at `offset`; with `fua` it is on stable storage when this returns.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]. Whether the data is there is unknown then.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        self.request(COMMAND_WRITE, if fua { FLAG_FUA } else { 0 }, offset, data.len() as u32, data)
    }

    /// Brings everything written so far to stable storage.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn flush(&mut self) -> Result<()> {
        self.request(COMMAND_FLUSH, 0, 0, 0, &[])
    }

    /// Gives `length` bytes at `offset` back to the device.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<()> {
        self.request(COMMAND_TRIM, 0, offset, length, &[])
    }

    /// Makes `length` bytes at `offset` read as zeroes.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> Result<()> {
        self.request(COMMAND_WRITE_ZEROES, 0, offset, length, &[])
    }

    fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Result<()> {
        self.cookie += 1;
        let mut header = Vec::with_capacity(28 + data.len());
        header.extend(REQUEST_MAGIC.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend(command.to_be_bytes());
        header.extend(self.cookie.to_be_bytes());
        header.extend(offset.to_be_bytes());
        header.extend(length.to_be_bytes());
        header.extend_from_slice(data);
        self.stream.write_all(&header).context("the server went away")?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).context("the server went away")?;
        if be32(&reply[..4]) != REPLY_MAGIC || be64(&reply[8..]) != self.cookie {
            bail!("an answer to nothing that was asked: {reply:02x?}");
        }
        match be32(&reply[4..8]) {
            0 => Ok(()),
            error => bail!("{}", std::io::Error::from_raw_os_error(error as i32)),
        }
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let mut header = [0_u8; 28];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[6..8].copy_from_slice(&COMMAND_DISCONNECT.to_be_bytes());
        // A server that is gone already needs no goodbye.
        let _polite = self.stream.write_all(&header);
    }
}

fn greet(socket: &Path) -> Result<UnixStream> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).context("the server sends no greeting")?;
    if be64(&greeting[..8]) != MAGIC || be64(&greeting[8..16]) != OPTION_MAGIC {
        bail!("the server does not speak fixed newstyle NBD");
    }
    // Both client flags: fixed newstyle, no zeroes.
    stream.write_all(&3_u32.to_be_bytes())?;
    Ok(stream)
}

fn send_option(stream: &mut UnixStream, option: u32, body: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(body);
    Ok(stream.write_all(&bytes)?)
}

fn option_reply(stream: &mut UnixStream) -> Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header).context("the server hung up during the handshake")?;
    if be64(&header[..8]) != OPTION_REPLY_MAGIC {
        bail!("no option reply: {header:02x?}");
    }
    let length = be32(&header[16..20]);
    if length > 1 << 16 {
        bail!("an option reply of {length} bytes");
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((be32(&header[12..16]), data))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}
