//! What two nodes have agreed on.

use crate::flags::Features;

/// The lowest protocol version this crate can encode and decode.
pub const PROTOCOL_MIN: u32 = 86;
/// The highest protocol version this crate can encode and decode.
pub const PROTOCOL_MAX: u32 = 101;

/// The buffer DRBD sends bitmap packets from, in bytes: header and payload together (wire spec 11.2).
const SOCKET_BUFFER_BYTES: usize = 4096;

/// The agreed protocol version and features: they select the header's form and the fields of some packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// The agreed protocol version, 86 to 101; 80 before the agreement.
    pub version: u32,
    /// The agreed features.
    pub features: Features,
}

impl Dialect {
    /// What is spoken before P_CONNECTION_FEATURES has been received.
    pub const UNNEGOTIATED: Self = Self { version: 80, features: Features::NONE };
    /// What two nodes of DRBD 8.4.11 agree on.
    pub const NEWEST: Self = Self { version: PROTOCOL_MAX, features: Features::ALL };

    /// Whether headers have 16 bytes and name the volume.
    pub const fn has_volumes(self) -> bool {
        self.version >= 100
    }

    /// The length of a header in bytes: 8 or 16.
    pub const fn header_bytes(self) -> usize {
        if self.has_volumes() { 16 } else { 8 }
    }

    /// Whether all of `features` are agreed.
    pub const fn has(self, features: Features) -> bool {
        self.features.contains(features)
    }

    /// The largest payload of a bitmap packet in bytes, a multiple of 8 (wire spec 11.2).
    pub const fn bitmap_bytes_max(self) -> usize {
        SOCKET_BUFFER_BYTES - self.header_bytes()
    }

    /// The largest request one should send, in bytes (wire spec 6.5 and 15.2). What is received may be larger.
    pub const fn request_bytes_max(self) -> u32 {
        match self.version {
            0..=94 => 32 << 10,
            95..=99 => 128 << 10,
            _ => 1 << 20,
        }
    }

    /// The largest block of data that can travel, in bytes: what may be asked for. Below version 95 a header's length
    /// has 16 bits and 32 KiB is the limit, else 1 MiB, even where less is usual (wire spec 15.2).
    pub const fn data_bytes_max(self) -> u32 {
        if self.version < 95 { 32 << 10 } else { crate::DATA_BYTES_MAX }
    }

    /// The largest discard one may send, in bytes (wire spec 8.3).
    pub const fn discard_bytes_max(self) -> u32 {
        if self.has(Features::WRITE_SAME) { crate::ZERO_BYTES_MAX } else { 4 << 20 }
    }
}
