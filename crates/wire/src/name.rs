//! Names of algorithms as they travel.

use std::fmt;

/// The field a name travels in, with its closing zero byte.
pub(crate) const NAME_FIELD_BYTES: usize = 64;

/// A name is longer than 63 bytes or has a zero byte in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("algorithm name too long")]
pub struct NameTooLong;

/// The name of an algorithm, at most 63 bytes; the empty name means "none".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AlgorithmName {
    /// Zero behind the name, so that equal names are equal values.
    field: [u8; NAME_FIELD_BYTES],
}

impl AlgorithmName {
    /// No algorithm.
    pub const NONE: Self = Self { field: [0; NAME_FIELD_BYTES] };

    /// A name.
    ///
    /// # Errors
    /// If it has more than 63 bytes or contains a zero byte.
    pub fn new(name: &str) -> Result<Self, NameTooLong> {
        if name.len() >= NAME_FIELD_BYTES || name.bytes().any(|byte| byte == 0) {
            return Err(NameTooLong);
        }
        Ok(Self::received(name.as_bytes()))
    }

    /// What the peer sent: up to the first zero byte, at most 63 bytes.
    pub(crate) fn received(bytes: &[u8]) -> Self {
        let mut field = [0; NAME_FIELD_BYTES];
        let name = bytes.iter().take(NAME_FIELD_BYTES - 1).take_while(|byte| **byte != 0);
        field.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        Self { field }
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        let length = self.field.iter().position(|byte| *byte == 0).unwrap_or(NAME_FIELD_BYTES);
        &self.field[..length]
    }

    /// The name as text, `None` if it is none (no algorithm is called so).
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()).ok()
    }

    /// Whether there is no name.
    pub fn is_none(&self) -> bool {
        self.field[0] == 0
    }

    /// The field, filled with zeroes.
    pub(crate) fn field(&self) -> &[u8; NAME_FIELD_BYTES] {
        &self.field
    }

    /// The name with one zero byte behind it.
    pub(crate) fn terminated(&self) -> &[u8] {
        &self.field[..=self.as_bytes().len()]
    }
}

impl Default for AlgorithmName {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for AlgorithmName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(self.as_bytes()), formatter)
    }
}

impl fmt::Debug for AlgorithmName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.as_bytes()), formatter)
    }
}
