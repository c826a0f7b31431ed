//! The numbers of the NBD protocol, the validation of requests, and the bytes of replies.

use crate::Errno;

/// The first eight bytes of the server's greeting, `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: in the greeting, and before each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// The largest payload a client may send or ask for, in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// The block size clients should prefer, in bytes: one bit of the bitmap.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Flags of an export (`NBD_FLAG_*`).
pub mod export_flag {
    /// The other flags mean something.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The medium rotates.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is understood (with structured replies).
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one device.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request (`NBD_CMD_FLAG_*`).
pub mod request_flag {
    /// Force the data to stable storage before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk only.
    pub const DF: u16 = 1 << 2;
    /// Fail rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Error numbers of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// Not permitted.
    NotPermitted = 1,
    /// Input or output error.
    Io = 5,
    /// Out of memory.
    NoMemory = 12,
    /// The request makes no sense.
    Invalid = 22,
    /// Beyond the end.
    NoSpace = 28,
    /// Too large for one chunk.
    Overflow = 75,
    /// Not supported.
    NotSupported = 95,
    /// The server is going away.
    Shutdown = 108,
}

impl From<Errno> for ErrorCode {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES | Errno::EROFS | Errno::EMEDIUMTYPE => Self::NotPermitted,
            Errno::ENOMEM => Self::NoMemory,
            Errno::EINVAL => Self::Invalid,
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Self::NoSpace,
            Errno::EOVERFLOW => Self::Overflow,
            Errno::EOPNOTSUPP => Self::NotSupported,
            Errno::ESHUTDOWN => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

/// A request as it was sent, before anything about it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags, see [`request_flag`].
    pub flags: u16,
    /// What to do.
    pub command: u16,
    /// The client's name for it; comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// The client sent something that is no request; there is no way to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request with the magic number {0:#010x}")]
pub struct BadMagic(pub u32);

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// [`BadMagic`] when client and server have lost each other.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadMagic> {
        let magic = u32::from_be_bytes(part(bytes, 0));
        if magic != REQUEST_MAGIC {
            return Err(BadMagic(magic));
        }
        Ok(Self {
            flags: u16::from_be_bytes(part(bytes, 4)),
            command: u16::from_be_bytes(part(bytes, 6)),
            cookie: u64::from_be_bytes(part(bytes, 8)),
            offset: u64::from_be_bytes(part(bytes, 16)),
            length: u32::from_be_bytes(part(bytes, 24)),
        })
    }

    /// Bytes of payload behind the request, whether it is valid or not.
    #[must_use]
    pub const fn payload_bytes(&self) -> u32 {
        if self.command == 1 { self.length } else { 0 }
    }
}

fn part<const N: usize>(bytes: &[u8; REQUEST_BYTES], start: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[start..start + N]);
    field
}

/// A valid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read {
        /// The reply must be one chunk.
        one_chunk: bool,
    },
    /// Write the payload.
    Write {
        /// On stable storage before the reply.
        fua: bool,
    },
    /// End the session when everything before is answered; no reply.
    Disconnect,
    /// Everything answered before is on stable storage before the reply.
    Flush,
    /// The content is no longer needed.
    Trim {
        /// On stable storage before the reply.
        fua: bool,
    },
    /// Make the range read as zeroes.
    WriteZeroes {
        /// On stable storage before the reply.
        fua: bool,
        /// The range may be unmapped.
        may_unmap: bool,
    },
}

/// What requests are validated against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Size of the device, in bytes.
    pub size_bytes: u64,
    /// Offsets and lengths are multiples of this many bytes.
    pub block_bytes: u32,
    /// The flags the export was offered with.
    pub export_flags: u16,
    /// Whether structured replies were agreed.
    pub structured: bool,
}

/// Decides whether a request can be done. The rules, in order: known command, known flags, flags where they belong,
/// permission, length, range, alignment.
///
/// # Errors
/// The error number of the reply.
pub fn validate(request: &Request, bounds: &Bounds) -> Result<Command, ErrorCode> {
    let fua = request.flags & request_flag::FUA != 0;
    let no_hole = request.flags & request_flag::NO_HOLE != 0;
    let command = match request.command {
        0 => Command::Read { one_chunk: request.flags & request_flag::DF != 0 },
        1 => Command::Write { fua },
        2 => return Ok(Command::Disconnect),
        3 => Command::Flush,
        4 => Command::Trim { fua },
        6 => Command::WriteZeroes { fua, may_unmap: !no_hole },
        _ => return Err(ErrorCode::Invalid),
    };
    let zeroing = matches!(command, Command::WriteZeroes { .. });
    let own = match command {
        Command::Read { .. } if bounds.structured => request_flag::DF,
        Command::WriteZeroes { .. } => request_flag::NO_HOLE | request_flag::FAST_ZERO,
        _ => 0,
    };
    if request.flags & !(request_flag::FUA | own) != 0 {
        return Err(ErrorCode::Invalid);
    }
    if matches!(command, Command::Flush) {
        let plain = request.offset == 0 && request.length == 0;
        return if plain { Ok(command) } else { Err(ErrorCode::Invalid) };
    }
    let writing = !matches!(command, Command::Read { .. });
    if writing && bounds.export_flags & export_flag::READ_ONLY != 0 {
        return Err(ErrorCode::NotPermitted);
    }
    if matches!(command, Command::Trim { .. }) && bounds.export_flags & export_flag::SEND_TRIM == 0 {
        return Err(ErrorCode::Invalid);
    }
    let payload = matches!(command, Command::Read { .. } | Command::Write { .. });
    if request.length == 0 || (payload && request.length > PAYLOAD_BYTES_MAX) {
        return Err(ErrorCode::Invalid);
    }
    let end = request.offset.checked_add(u64::from(request.length));
    if end.is_none_or(|end| end > bounds.size_bytes) {
        let grows = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
        return Err(if grows { ErrorCode::NoSpace } else { ErrorCode::Invalid });
    }
    if !request.offset.is_multiple_of(u64::from(bounds.block_bytes))
        || !request.length.is_multiple_of(bounds.block_bytes)
    {
        return Err(ErrorCode::Invalid);
    }
    if zeroing && request.flags & request_flag::FAST_ZERO != 0 {
        // Zeroes travel to two disks; whether that is faster than data cannot be promised.
        return Err(ErrorCode::NotSupported);
    }
    Ok(command)
}

/// Appends a simple reply; the data of a successful read follow it.
pub fn encode_simple_reply(reply: &mut Vec<u8>, cookie: u64, error: Option<ErrorCode>) {
    reply.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply.extend_from_slice(&error.map_or(0, |error| error as u32).to_be_bytes());
    reply.extend_from_slice(&cookie.to_be_bytes());
}

fn encode_chunk(reply: &mut Vec<u8>, done: bool, kind: u16, cookie: u64, length: u32) {
    reply.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    reply.extend_from_slice(&u16::from(done).to_be_bytes());
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(&cookie.to_be_bytes());
    reply.extend_from_slice(&length.to_be_bytes());
}

/// Appends the header of a chunk with data; `bytes` bytes of data follow it.
pub fn encode_data_chunk(reply: &mut Vec<u8>, done: bool, cookie: u64, offset: u64, bytes: u32) {
    encode_chunk(reply, done, 1, cookie, bytes + 8);
    reply.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a chunk that says that reading at `offset` failed.
pub fn encode_error_chunk(
    reply: &mut Vec<u8>,
    done: bool,
    cookie: u64,
    error: ErrorCode,
    offset: Option<u64>,
) {
    let (kind, length) = if offset.is_some() { ((1 << 15) + 2, 14) } else { ((1 << 15) + 1, 6) };
    encode_chunk(reply, done, kind, cookie, length);
    reply.extend_from_slice(&(error as u32).to_be_bytes());
    // No text: the number says it all.
    reply.extend_from_slice(&0u16.to_be_bytes());
    if let Some(offset) = offset {
        reply.extend_from_slice(&offset.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        size_bytes: 1 << 20,
        block_bytes: 512,
        export_flags: export_flag::HAS_FLAGS | export_flag::SEND_TRIM,
        structured: true,
    };

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        Request { flags, command, cookie: 7, offset, length }
    }

    #[test]
    fn every_rule_has_a_request_that_breaks_it() {
        let invalid = Err(ErrorCode::Invalid);
        let cases = [
            ("unknown command", request(5, 0, 0, 512), invalid),
            ("block status was not agreed", request(7, 0, 0, 512), invalid),
            ("unknown flag", request(0, 1 << 9, 0, 512), invalid),
            ("no hole on a write", request(1, request_flag::NO_HOLE, 0, 512), invalid),
            ("one chunk on a write", request(1, request_flag::DF, 0, 512), invalid),
            ("fast zero on a trim", request(4, request_flag::FAST_ZERO, 0, 512), invalid),
            ("fast zero", request(6, request_flag::FAST_ZERO, 0, 512), Err(ErrorCode::NotSupported)),
            ("empty read", request(0, 0, 0, 0), invalid),
            ("empty write", request(1, 0, 512, 0), invalid),
            ("flush with a range", request(3, 0, 0, 512), invalid),
            ("flush with an offset", request(3, 0, 512, 0), invalid),
            ("read beyond the end", request(0, 0, (1 << 20) - 512, 1024), invalid),
            ("write beyond the end", request(1, 0, (1 << 20) - 512, 1024), Err(ErrorCode::NoSpace)),
            ("zeroes beyond the end", request(6, 0, 1 << 20, 512), Err(ErrorCode::NoSpace)),
            ("trim beyond the end", request(4, 0, 1 << 20, 512), invalid),
            ("range beyond all numbers", request(0, 0, u64::MAX - 511, 512), invalid),
            ("odd offset", request(0, 0, 1, 512), invalid),
            ("odd length", request(1, 0, 0, 511), invalid),
            ("too much at once", request(0, 0, 0, PAYLOAD_BYTES_MAX + 512), invalid),
        ];
        for (rule, request, answer) in cases {
            assert_eq!(validate(&request, &BOUNDS), answer, "{rule}");
        }
    }

    #[test]
    fn valid_requests_keep_their_flags() {
        let ok = |request| validate(&request, &BOUNDS).unwrap();
        assert_eq!(ok(request(0, 0, 0, 1 << 20)), Command::Read { one_chunk: false });
        assert_eq!(ok(request(0, request_flag::DF | 1, 0, 512)), Command::Read { one_chunk: true });
        assert_eq!(ok(request(1, 1, 512, 512)), Command::Write { fua: true });
        assert_eq!(ok(request(2, 0, 9, 9)), Command::Disconnect);
        assert_eq!(ok(request(3, 0, 0, 0)), Command::Flush);
        assert_eq!(ok(request(4, 0, 0, 512)), Command::Trim { fua: false });
        assert_eq!(ok(request(6, 0, 0, 512)), Command::WriteZeroes { fua: false, may_unmap: true });
        let kept = Command::WriteZeroes { fua: true, may_unmap: false };
        assert_eq!(ok(request(6, 3, 0, 512)), kept);
    }

    #[test]
    fn a_read_only_export_refuses_every_write() {
        let bounds = Bounds { export_flags: BOUNDS.export_flags | export_flag::READ_ONLY, ..BOUNDS };
        for command in [1, 4, 6] {
            let answer = validate(&request(command, 0, 0, 512), &bounds);
            assert_eq!(answer, Err(ErrorCode::NotPermitted));
        }
        assert!(validate(&request(0, 0, 0, 512), &bounds).is_ok());
    }

    #[test]
    fn replies_have_the_bytes_of_the_protocol() {
        let mut reply = Vec::new();
        encode_simple_reply(&mut reply, 0x0102, Some(ErrorCode::Io));
        assert_eq!(reply, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 2]);
        reply.clear();
        encode_data_chunk(&mut reply, true, 3, 4, 512);
        let header = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 2, 8];
        assert_eq!(reply[..20], header);
        assert_eq!(reply[20..], [0, 0, 0, 0, 0, 0, 0, 4]);
        reply.clear();
        encode_error_chunk(&mut reply, false, 3, ErrorCode::Io, Some(4));
        let header = [0x66, 0x8e, 0x33, 0xef, 0, 0, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 14];
        assert_eq!(reply[..20], header);
        assert_eq!(reply[20..], [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
    }

    proptest! {
        /// What passes lies inside the device and on block boundaries, whatever was sent.
        #[test]
        fn what_is_valid_lies_inside_the_device(mut bytes in any::<[u8; REQUEST_BYTES]>(), magic in prop::bool::weighted(0.9), small in any::<bool>()) {
            if magic {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            }
            if small {
                // Close to valid: known command, range near the device.
                bytes[4..7].fill(0);
                bytes[7] %= 8;
                bytes[16..21].fill(0);
                bytes[24] = 0;
                bytes[23] = 0;
                bytes[27] = 0;
            }
            match Request::decode(&bytes) {
                Err(BadMagic(found)) => prop_assert_ne!(found, REQUEST_MAGIC),
                Ok(request) => if let Ok(command) = validate(&request, &BOUNDS)
                    && !matches!(command, Command::Disconnect | Command::Flush)
                {
                    prop_assert!(request.offset + u64::from(request.length) <= BOUNDS.size_bytes);
                    prop_assert!(request.length > 0 && request.length % 512 == 0 && request.offset % 512 == 0);
                }
            }
        }
    }
}
