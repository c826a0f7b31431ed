//! Digests: data integrity, checksum resync, online verify. The bytes are those the kernel's hash of the same name
//! gives (wire spec 8.2).

use std::fmt;

use hmac::digest::Digest as _;
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};

/// The longest digest, in bytes.
pub const DIGEST_BYTES_MAX: usize = 64;

/// No digest of this name is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown digest algorithm \"{0}\"")]
pub struct UnknownAlgorithm(pub String);

macro_rules! algorithms {
    ($($(#[$doc:meta])* $name:ident $text:literal $bytes:literal $hasher:ident,)+) => {
        /// A digest by its name in the kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DigestAlgorithm {
            $($(#[$doc])* $name,)+
        }

        impl DigestAlgorithm {
            /// Every algorithm.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name in the configuration and on the wire.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// The digest's length in bytes.
            pub const fn bytes(self) -> usize {
                match self {
                    $(Self::$name => $bytes,)+
                }
            }
        }

        #[derive(Clone)]
        enum State {
            $($name($hasher),)+
        }

        impl State {
            fn new(algorithm: DigestAlgorithm) -> Self {
                match algorithm {
                    $(DigestAlgorithm::$name => Self::$name($hasher::new()),)+
                }
            }

            fn update(&mut self, bytes: &[u8]) {
                match self {
                    $(Self::$name(hasher) => hasher.update(bytes),)+
                }
            }

            fn finish(self) -> DigestValue {
                match self {
                    $(Self::$name(hasher) => DigestValue::of(&hasher.finalize()),)+
                }
            }
        }
    };
}

algorithms! {
    /// MD5.
    Md5 "md5" 16 Md5,
    /// SHA-1.
    Sha1 "sha1" 20 Sha1,
    /// SHA-224.
    Sha224 "sha224" 28 Sha224,
    /// SHA-256.
    Sha256 "sha256" 32 Sha256,
    /// SHA-384.
    Sha384 "sha384" 48 Sha384,
    /// SHA-512.
    Sha512 "sha512" 64 Sha512,
    /// CRC-32C, sent little endian.
    Crc32c "crc32c" 4 Crc32c,
}

impl std::str::FromStr for DigestAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        let found = Self::ALL.iter().find(|algorithm| algorithm.name() == name);
        found.copied().ok_or_else(|| UnknownAlgorithm(name.to_owned()))
    }
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl DigestAlgorithm {
    /// The digest of `bytes`.
    pub fn digest(self, bytes: &[u8]) -> DigestValue {
        let mut digester = Digester::new(self);
        digester.update(bytes);
        digester.finish()
    }

    /// A digest of zero bytes only: what a verify target answers when it cannot read (wire spec 12.5).
    pub fn zero(self) -> DigestValue {
        DigestValue { field: [0; DIGEST_BYTES_MAX], length: self.bytes() as u8 }
    }
}

/// The CRC with the interface of the hashes.
#[derive(Clone)]
struct Crc32c(u32);

impl Crc32c {
    fn new() -> Self {
        Self(0)
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    fn finalize(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }
}

/// A digest being computed over several pieces; it allocates nothing.
#[derive(Clone)]
pub struct Digester(State);

impl Digester {
    /// Nothing seen yet.
    pub fn new(algorithm: DigestAlgorithm) -> Self {
        Self(State::new(algorithm))
    }

    /// The next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> DigestValue {
        self.0.finish()
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Digester(..)")
    }
}

/// A digest: at most 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DigestValue {
    /// Zero behind the digest, so that equal digests are equal values.
    field: [u8; DIGEST_BYTES_MAX],
    length: u8,
}

impl DigestValue {
    /// A digest received; `None` if it is longer than any digest is.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= DIGEST_BYTES_MAX).then(|| Self::of(bytes))
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        assert!(bytes.len() <= DIGEST_BYTES_MAX, "digest of {} bytes", bytes.len());
        let mut field = [0; DIGEST_BYTES_MAX];
        field[..bytes.len()].copy_from_slice(bytes);
        Self { field, length: bytes.len() as u8 }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.field[..usize::from(self.length)]
    }
}

impl fmt::Debug for DigestValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4096 bytes of 0x03 as the kernel sent them (wire spec 8.2).
    #[test]
    fn crc32c_is_little_endian() {
        let digest = DigestAlgorithm::Crc32c.digest(&[3; 4096]);
        assert_eq!(digest.as_bytes(), [0x62, 0x48, 0x36, 0xf2]);
    }

    #[test]
    fn digests_of_abc() {
        for (name, start) in [
            ("md5", "900150983cd24fb0"),
            ("sha1", "a9993e364706816a"),
            ("sha224", "23097d223405d822"),
            ("sha256", "ba7816bf8f01cfea"),
            ("sha384", "cb00753f45a35e8b"),
            ("sha512", "ddaf35a193617aba"),
            ("crc32c", "b73f4b36"),
        ] {
            let algorithm: DigestAlgorithm = name.parse().unwrap();
            let mut pieces = Digester::new(algorithm);
            pieces.update(b"a");
            pieces.update(b"bc");
            let digest = pieces.finish();
            assert_eq!(digest, algorithm.digest(b"abc"));
            assert_eq!(digest.as_bytes().len(), algorithm.bytes());
            assert!(format!("{digest:?}").starts_with(start), "{name}: {digest:?}");
        }
        assert!("SHA1".parse::<DigestAlgorithm>().is_err());
    }
}
