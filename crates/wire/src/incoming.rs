//! How a received packet is cut into structure, digest and payload, and everything its length can be wrong about
//! (wire spec 4 and 17).

use udrbd_units::VolumeNumber;

use crate::authentication::AuthChallenge;
use crate::command::{Command, Socket};
use crate::dialect::Dialect;
use crate::digest::{DIGEST_BYTES_MAX, DigestAlgorithm};
use crate::error::WireError;
use crate::handshake::{ProtocolParameters, SyncParameters};
use crate::header::Header;

/// Which packets may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The first packet of a TCP connection: P_INITIAL_DATA or P_INITIAL_META.
    Initial,
    /// P_CONNECTION_FEATURES.
    Features,
    /// P_AUTH_CHALLENGE.
    AuthChallenge,
    /// P_AUTH_RESPONSE with a digest of this algorithm.
    AuthResponse(DigestAlgorithm),
    /// Anything that belongs on this socket once the handshake is over.
    Established(Socket),
}

/// What a receiver knows about the packets that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reception {
    /// What has been agreed; [`Dialect::UNNEGOTIATED`] up to P_CONNECTION_FEATURES.
    pub dialect: Dialect,
    /// The digest the peer puts before its data, as its last P_PROTOCOL or P_PROTOCOL_UPDATE said.
    pub integrity: Option<DigestAlgorithm>,
}

impl Reception {
    /// Before anything has been agreed.
    pub const UNNEGOTIATED: Self = Self { dialect: Dialect::UNNEGOTIATED, integrity: None };
}

/// A packet whose header has been read and checked: what follows on the socket, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What it is.
    pub command: Command,
    /// The volume; without meaning where [`Command::scope`] says connection.
    pub volume: VolumeNumber,
    /// The structure's length in bytes, for [`Incoming::decode`].
    pub packet_bytes: usize,
    /// The digest's length in bytes: data integrity, checksum resync or verify. 0 is none.
    pub digest_bytes: usize,
    /// The bulk data's length in bytes: block data or a part of the bitmap. At most [`crate::DATA_BYTES_MAX`].
    pub payload_bytes: usize,
}

impl Incoming {
    /// Reads a packet's header from the first bytes received; `None` while there are too few (16 always do). Returns
    /// the header's length too.
    ///
    /// # Errors
    /// Everything that can be known to be wrong from the header alone: form, number, length.
    pub fn decode_header(
        bytes: &[u8],
        expected: Expected,
        reception: &Reception,
    ) -> Result<Option<(Self, usize)>, WireError> {
        let dialect = match expected {
            Expected::Initial | Expected::Features => Dialect::UNNEGOTIATED,
            _ => reception.dialect,
        };
        let Some(header) = Header::decode(bytes, dialect)? else { return Ok(None) };
        Ok(Some((Self::classify(&header, expected, reception)?, header.header_bytes)))
    }

    /// The number of bytes of structure and digest together: at most [`crate::SMALL_BYTES_MAX`].
    pub const fn small_bytes(&self) -> usize {
        self.packet_bytes + self.digest_bytes
    }

    fn classify(header: &Header, expected: Expected, reception: &Reception) -> Result<Self, WireError> {
        let command = expected.admit(header.code)?;
        let length = header.length as usize;
        let fixed = command.fixed_bytes(reception.dialect);
        let (packet_bytes, digest_bytes) = match command {
            Command::Data | Command::DataReply | Command::ResyncDataReply => {
                at_least(command, fixed, length)?;
                (fixed, reception.integrity.map_or(0, DigestAlgorithm::bytes))
            }
            Command::VerifyReply | Command::ChecksumResyncRequest => {
                within(command, fixed, fixed + DIGEST_BYTES_MAX, length)?;
                (fixed, length - fixed)
            }
            Command::Bitmap => (0, 0),
            Command::CompressedBitmap => {
                within(command, 2, reception.dialect.bitmap_bytes_max(), length)?;
                (fixed, 0)
            }
            Command::Protocol | Command::ProtocolUpdate => {
                within(
                    command,
                    *ProtocolParameters::BYTES.start(),
                    *ProtocolParameters::BYTES.end(),
                    length,
                )?;
                (length, 0)
            }
            Command::SyncParam | Command::SyncParam89 => {
                within(command, fixed, SyncParameters::bytes_max(command, reception.dialect), length)?;
                (length, 0)
            }
            Command::AuthChallenge => (challenge(length)?, 0),
            _ => (expected.exact(command, fixed, header.length)?, 0),
        };
        let payload_bytes = payload(command, length, packet_bytes + digest_bytes, reception.dialect)?;
        Ok(Self { command, volume: header.volume, packet_bytes, digest_bytes, payload_bytes })
    }
}

impl Expected {
    /// The command with this number, if it may come now.
    fn admit(self, code: u16) -> Result<Command, WireError> {
        let command = Command::from_code(code);
        let only = |expected: Command| match command {
            Some(command) if command == expected => Ok(command),
            _ => Err(WireError::NotExpected { expected, code }),
        };
        match (self, command) {
            (Self::Initial, Some(initial @ (Command::InitialData | Command::InitialMeta))) => Ok(initial),
            (Self::Initial, _) => Err(WireError::NotInitial { code }),
            (Self::Features, _) => only(Command::ConnectionFeatures),
            (Self::AuthChallenge, _) => only(Command::AuthChallenge),
            (Self::AuthResponse(_), _) => only(Command::AuthResponse),
            (Self::Established(socket), Some(command)) if command.is_accepted_on(socket) => Ok(command),
            (Self::Established(socket), _) => Err(WireError::UnexpectedPacket { socket, code }),
        }
    }

    /// The length of a packet that has one length only.
    fn exact(self, command: Command, fixed: usize, length: u32) -> Result<usize, WireError> {
        let fixed = match self {
            Self::AuthResponse(algorithm) => algorithm.bytes(),
            _ => fixed,
        };
        if length as usize == fixed {
            return Ok(fixed);
        }
        Err(match self {
            Self::AuthResponse(_) => WireError::ResponseSize,
            Self::Features => WireError::FeaturesLength { received: length },
            Self::Initial => WireError::NotInitial { code: command.code() },
            Self::Established(Socket::Meta) => WireError::MetaPacketSize { command, bytes: length },
            _ if length as usize > fixed => WireError::PayloadNotExpected { command, bytes: length },
            _ => WireError::packet_size(command, fixed, length as usize),
        })
    }
}

fn at_least(command: Command, minimum: usize, length: usize) -> Result<(), WireError> {
    if length < minimum {
        return Err(WireError::packet_size(command, minimum, length));
    }
    Ok(())
}

fn within(command: Command, minimum: usize, maximum: usize, length: usize) -> Result<(), WireError> {
    at_least(command, minimum, length)?;
    if length > maximum {
        return Err(WireError::TooLong { command, received: length as u32, maximum: maximum as u32 });
    }
    Ok(())
}

fn challenge(length: usize) -> Result<usize, WireError> {
    match length {
        ..AuthChallenge::BYTES => Err(WireError::ChallengeTooSmall),
        AuthChallenge::BYTES..=AuthChallenge::BYTES_MAX => Ok(length),
        _ => Err(WireError::ChallengeTooBig),
    }
}

/// The number of bytes behind structure and digest, if the packet may have so many.
fn payload(command: Command, length: usize, small: usize, dialect: Dialect) -> Result<usize, WireError> {
    let bytes = length.checked_sub(small);
    let fits = |bytes: &usize| match command {
        Command::Data => *bytes <= crate::DATA_BYTES_MAX as usize && bytes.is_multiple_of(512),
        Command::DataReply | Command::ResyncDataReply => {
            (512..=crate::DATA_BYTES_MAX as usize).contains(bytes) && bytes.is_multiple_of(512)
        }
        Command::Bitmap => *bytes <= dialect.bitmap_bytes_max() && bytes.is_multiple_of(8),
        Command::CompressedBitmap => true,
        _ => *bytes == 0,
    };
    bytes.filter(fits).ok_or(match command {
        Command::Bitmap => {
            WireError::BitmapSize { want: dialect.bitmap_bytes_max() as u32, size: length as u32 }
        }
        _ => WireError::DataSize { command, bytes: length as u32 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Features;
    use crate::{HEADER_BYTES_MAX, SMALL_BYTES_MAX};

    const RECEPTION: Reception = Reception { dialect: Dialect::NEWEST, integrity: None };
    const DATA: Expected = Expected::Established(Socket::Data);
    const META: Expected = Expected::Established(Socket::Meta);

    fn header(code: u16, length: u32) -> Vec<u8> {
        let mut bytes = vec![0x86, 0x20, 0xec, 0x20, 0, 0];
        bytes.extend(code.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend([0; 4]);
        assert_eq!(bytes.len(), HEADER_BYTES_MAX);
        bytes
    }

    fn refused(code: u16, length: u32, expected: Expected, reception: &Reception) -> String {
        Incoming::decode_header(&header(code, length), expected, reception).unwrap_err().to_string()
    }

    #[test]
    fn each_fault_has_the_kernels_words() {
        for (code, length, expected, words) in [
            (0x13, 0, DATA, "Unexpected data packet Ping (0x0013)"),
            (0x34, 28, DATA, "Unexpected data packet WriteSame (0x0034)"),
            (0x99, 0, DATA, "Unexpected data packet Unknown (0x0099)"),
            (0x10, 64, DATA, "Unexpected data packet AuthChallenge (0x0010)"),
            (0x00, 24, META, "Unexpected meta packet Data (0x0000)"),
            (0x0e, 8, DATA, "No payload expected ReportState l:8"),
            (0x0d, 32, DATA, "ReportSizes: unexpected packet size, expected:56 received:32"),
            (0x16, 23, META, "Wrong packet size on meta (c: 22, l: 23)"),
            (0x23, 149, DATA, "SyncParam89 packet too long: received 149, expected <= 148 bytes"),
            (
                0x0b,
                25,
                Expected::AuthChallenge,
                "expected AuthChallenge packet, received: ReportProtocol (0x000b)",
            ),
            (0x10, 129, Expected::AuthChallenge, "expected AuthChallenge payload too big."),
            (0x10, 63, Expected::AuthChallenge, "AuthChallenge payload too small."),
            (
                0x11,
                21,
                Expected::AuthResponse(DigestAlgorithm::Sha1),
                "expected AuthResponse payload of wrong size",
            ),
        ] {
            assert_eq!(refused(code, length, expected, &RECEPTION), words);
        }
    }

    #[test]
    fn data_are_whole_sectors_and_at_most_a_mebibyte() {
        let reception = Reception { integrity: Some(DigestAlgorithm::Sha1), ..RECEPTION };
        let cut = |code, length| Incoming::decode_header(&header(code, length), DATA, &reception);
        let (incoming, header_bytes) = cut(0, 24 + 20 + (1 << 20)).unwrap().unwrap();
        assert_eq!((header_bytes, incoming.small_bytes(), incoming.payload_bytes), (16, 44, 1 << 20));
        for length in [44 + (1 << 20) + 512, 44 + 511, 43, 24, u32::MAX] {
            assert!(matches!(cut(0, length), Err(WireError::DataSize { .. })), "{length}");
        }
        assert!(matches!(cut(0, 23), Err(WireError::PacketSize { .. })));
        assert_eq!(cut(0, 44).unwrap().unwrap().0.payload_bytes, 0, "an empty flush");
        assert!(cut(2, 44).is_err(), "an empty reply");
    }

    #[test]
    fn no_header_asks_for_more_than_the_limits() {
        for version in [86, 88, 94, 95, 100, 101] {
            for integrity in [None, Some(DigestAlgorithm::Sha512)] {
                let reception =
                    Reception { dialect: Dialect { version, features: Features::ALL }, integrity };
                for command in Command::ALL {
                    let lengths =
                        (0..200).chain([4080, 4088, 4096, 1 << 20, (1 << 20) + 88, 1 << 30, u32::MAX]);
                    for length in lengths {
                        let read = Header {
                            volume: VolumeNumber(0),
                            code: command.code(),
                            length,
                            header_bytes: 16,
                        };
                        for expected in [
                            DATA,
                            META,
                            Expected::Initial,
                            Expected::Features,
                            Expected::AuthChallenge,
                            Expected::AuthResponse(DigestAlgorithm::Sha512),
                        ] {
                            let Ok(cut) = Incoming::classify(&read, expected, &reception) else { continue };
                            assert!(cut.small_bytes() <= SMALL_BYTES_MAX);
                            assert!(cut.payload_bytes <= crate::DATA_BYTES_MAX as usize);
                            assert_eq!(cut.small_bytes() + cut.payload_bytes, length as usize);
                        }
                    }
                }
            }
        }
    }
}
