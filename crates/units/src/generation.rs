//! Generation identifiers ("UUIDs" in DRBD's messages).

use std::fmt;

/// A generation identifier: 64 random bits that name one generation of a device's data.
///
/// Bit 0 is not part of the identity: a current identifier carries it while the data were last written by a Primary.
/// 0 means "none", 4 is the identifier of metadata just created (`spec` name: UUID_JUST_CREATED).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GenerationId(pub u64);

impl GenerationId {
    /// No identifier.
    pub const NONE: Self = Self(0);
    /// What `create-md` writes: there is no data yet.
    pub const JUST_CREATED: Self = Self(4);

    /// Whether there is an identifier at all.
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Whether two identifiers name the same generation: bit 0 is ignored.
    pub const fn same_generation(self, other: Self) -> bool {
        (self.0 & !1) == (other.0 & !1)
    }

    /// The identifier with bit 0 set or cleared.
    #[must_use]
    pub const fn with_primary_bit(self, primary: bool) -> Self {
        Self((self.0 & !1) | primary as u64)
    }

    /// Whether bit 0 is set.
    pub const fn primary_bit(self) -> bool {
        self.0 & 1 == 1
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016X}", self.0)
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016X}", self.0)
    }
}
