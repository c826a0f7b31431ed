//! The three forms of a packet's header (wire spec 3).

use udrbd_units::VolumeNumber;

use crate::command::{Command, Scope};
use crate::dialect::Dialect;
use crate::error::WireError;

const MAGIC_80: u32 = 0x8374_0267;
const MAGIC_95: u16 = 0x835a;
const MAGIC_100: u32 = 0x8620_ec20;
/// Above this a version that knows the 8-byte header with the 32-bit length uses it.
const LENGTH_80_MAX: u32 = 32768;
const HEADER_80_BYTES: usize = 8;

/// The longest header in bytes.
pub const HEADER_BYTES_MAX: usize = 16;

/// What a header says; the command and the length are not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume; 0 where the header's form has none.
    pub volume: VolumeNumber,
    /// The number of the packet.
    pub code: u16,
    /// The number of bytes behind the header.
    pub length: u32,
    /// The header's own length in bytes, 8 or 16.
    pub header_bytes: usize,
}

impl Header {
    /// Reads a header from the first bytes of a packet; `None` while there are too few of them.
    ///
    /// # Errors
    /// [`WireError::WrongMagic`] if it is not one of the forms the agreed version accepts,
    /// [`WireError::HeaderPadding`].
    pub fn decode(bytes: &[u8], dialect: Dialect) -> Result<Option<Self>, WireError> {
        let Some(first) = bytes.first_chunk::<HEADER_80_BYTES>() else { return Ok(None) };
        let [m0, m1, m2, m3, x0, x1, x2, x3] = *first;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if dialect.has_volumes() {
            if magic != MAGIC_100 {
                return Err(WireError::WrongMagic { magic, version: dialect.version });
            }
            return Self::decode_100(bytes);
        }
        let (code, length) = if magic == MAGIC_80 {
            (u16::from_be_bytes([x0, x1]), u32::from(u16::from_be_bytes([x2, x3])))
        } else if u16::from_be_bytes([m0, m1]) == MAGIC_95 {
            (u16::from_be_bytes([m2, m3]), u32::from_be_bytes([x0, x1, x2, x3]))
        } else {
            return Err(WireError::WrongMagic { magic, version: dialect.version });
        };
        Ok(Some(Self { volume: VolumeNumber(0), code, length, header_bytes: HEADER_80_BYTES }))
    }

    fn decode_100(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES_MAX>() else { return Ok(None) };
        let [_, _, _, _, v0, v1, c0, c1, l0, l1, l2, l3, padding @ ..] = *header;
        if padding != [0; 4] {
            return Err(WireError::HeaderPadding);
        }
        Ok(Some(Self {
            volume: VolumeNumber(u16::from_be_bytes([v0, v1])),
            code: u16::from_be_bytes([c0, c1]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            header_bytes: HEADER_BYTES_MAX,
        }))
    }
}

/// The length of the header of `command`, in bytes.
pub(crate) const fn header_bytes(command: Command, dialect: Dialect) -> usize {
    if command.precedes_agreement() { HEADER_80_BYTES } else { dialect.header_bytes() }
}

/// Writes a header into `to`, which has exactly [`header_bytes`] bytes.
pub(crate) fn write(to: &mut [u8], command: Command, dialect: Dialect, volume: VolumeNumber, length: u32) {
    assert_eq!(to.len(), header_bytes(command, dialect), "header of {}", command.log_name());
    let code = command.code().to_be_bytes();
    if to.len() == HEADER_BYTES_MAX {
        let volume = match command.scope() {
            Scope::Connection => 0,
            Scope::Volume => volume.0,
        };
        to[..4].copy_from_slice(&MAGIC_100.to_be_bytes());
        to[4..6].copy_from_slice(&volume.to_be_bytes());
        to[6..8].copy_from_slice(&code);
        to[8..12].copy_from_slice(&length.to_be_bytes());
        to[12..].fill(0);
    } else if dialect.version >= 95 && length > LENGTH_80_MAX {
        to[..2].copy_from_slice(&MAGIC_95.to_be_bytes());
        to[2..4].copy_from_slice(&code);
        to[4..].copy_from_slice(&length.to_be_bytes());
    } else {
        // What can travel in a version is small enough: the limit is `Dialect::data_bytes_max`.
        assert!(length <= u32::from(u16::MAX), "{} of {length} bytes", command.log_name());
        to[..4].copy_from_slice(&MAGIC_80.to_be_bytes());
        to[4..6].copy_from_slice(&code);
        to[6..].copy_from_slice(&(length as u16).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Features;

    fn dialect(version: u32) -> Dialect {
        Dialect { version, features: Features::NONE }
    }

    #[test]
    fn too_few_bytes_are_no_error() {
        let header = [0x86, 0x20, 0xec, 0x20, 0, 1, 0, 0x16, 0, 0, 0, 24, 0, 0, 0, 0];
        for length in 0..16 {
            assert_eq!(Header::decode(&header[..length], dialect(101)), Ok(None));
        }
        let read = Header::decode(&header, dialect(101)).unwrap().unwrap();
        assert_eq!(read, Header { volume: VolumeNumber(1), code: 0x16, length: 24, header_bytes: 16 });
    }

    #[test]
    fn each_version_accepts_its_own_headers() {
        let header80 = [0x83, 0x74, 0x02, 0x67, 0, 0, 0x80, 0];
        let header95 = [0x83, 0x5a, 0, 0, 0, 0x02, 0, 0];
        assert_eq!(Header::decode(&header80, dialect(86)).unwrap().unwrap().length, 0x8000);
        assert_eq!(Header::decode(&header95, dialect(86)).unwrap().unwrap().length, 0x20000);
        let error = Header::decode(&header80, dialect(100)).unwrap_err();
        assert_eq!(error.to_string(), "Wrong magic value 0x83740267 in protocol version 100");
        let mut header100 = [0; 16];
        write(&mut header100, Command::Data, dialect(100), VolumeNumber(7), 24);
        assert!(Header::decode(&header100, dialect(99)).is_err());
        header100[15] = 1;
        assert_eq!(Header::decode(&header100, dialect(100)), Err(WireError::HeaderPadding));
    }

    #[test]
    fn the_length_selects_the_header_from_95_to_99() {
        let mut bytes = [0; 8];
        write(&mut bytes, Command::Data, dialect(95), VolumeNumber(0), 32768);
        assert_eq!(bytes[..4], MAGIC_80.to_be_bytes());
        write(&mut bytes, Command::Data, dialect(95), VolumeNumber(0), 32769);
        assert_eq!(bytes[..2], MAGIC_95.to_be_bytes());
        write(&mut bytes, Command::Data, dialect(94), VolumeNumber(0), 32792);
        assert_eq!(bytes[..4], MAGIC_80.to_be_bytes());
    }
}
