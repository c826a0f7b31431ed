//! What nodes tell each other about the connection: versions, parameters, resync settings (wire spec 5, 6.1–6.4).

use crate::command::Command;
use crate::cursor::{Put, Reader};
use crate::dialect::{Dialect, PROTOCOL_MAX, PROTOCOL_MIN};
use crate::error::WireError;
use crate::flags::{ConnectionFlags, Extensions, Features};
use crate::name::{AlgorithmName, NAME_FIELD_BYTES};

/// P_CONNECTION_FEATURES: which versions and features a node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionFeatures {
    /// The lowest version.
    pub protocol_min: u32,
    /// The highest version.
    pub protocol_max: u32,
    /// The features.
    pub features: Features,
    /// What a udrbd node can do beyond them.
    pub extensions: Extensions,
}

/// What tells the extensions of a udrbd node from whatever else may be in a reserved field.
const EXTENSIONS_MAGIC: u64 = 0x7564_7262;

impl ConnectionFeatures {
    /// What DRBD 8.4.11 announces, and the extensions.
    pub const OWN: Self = Self {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        features: Features::ALL,
        extensions: Extensions::VERIFY_RANGES,
    };

    /// What a node that announced `self` speaks with a peer that announced `peer`.
    ///
    /// # Errors
    /// [`WireError::IncompatibleDialects`] if the ranges have no version in common.
    pub fn agree(self, peer: Self) -> Result<Dialect, WireError> {
        // Very old peers leave the maximum at 0.
        let peer_max = if peer.protocol_max == 0 { peer.protocol_min } else { peer.protocol_max };
        if self.protocol_max < peer.protocol_min || self.protocol_min > peer_max {
            return Err(WireError::IncompatibleDialects {
                own_min: self.protocol_min,
                own_max: self.protocol_max,
                peer_min: peer.protocol_min,
                peer_max,
            });
        }
        Ok(Dialect {
            version: self.protocol_max.min(peer_max),
            features: self.features.intersection(peer.features),
        })
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (protocol_min, features, protocol_max) = (reader.u32()?, reader.u32()?, reader.u32()?);
        // Padding and the other reserved fields are ignored.
        reader.array::<52>()?;
        let last = reader.u64()?;
        let extensions = if last >> 32 == EXTENSIONS_MAGIC { last as u32 } else { 0 };
        Ok(Self {
            protocol_min,
            protocol_max,
            features: Features(features),
            extensions: Extensions(extensions),
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.protocol_min);
        out.put_u32(self.features.0);
        out.put_u32(self.protocol_max);
        out.extend_from_slice(&[0; 52]);
        let announced = self.extensions != Extensions::NONE;
        out.put_u64(if announced { EXTENSIONS_MAGIC << 32 | u64::from(self.extensions.0) } else { 0 });
    }
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $code,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number on the wire.
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// The value with this number.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The word in the configuration.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

codes! {
    /// When a write counts as done.
    ReplicationProtocol {
        /// When it is on the own disk and handed to TCP.
        A = 1 "A",
        /// When it is on the own disk and has reached the peer.
        B = 2 "B",
        /// When it is on both disks.
        C = 3 "C",
    }
}

codes! {
    /// What to do about a split brain.
    AfterSplitBrain {
        /// Give up.
        Disconnect = 0 "disconnect",
        /// The one that became Primary later loses.
        DiscardYoungerPrimary = 1 "discard-younger-primary",
        /// The one that became Primary earlier loses.
        DiscardOlderPrimary = 2 "discard-older-primary",
        /// One without changes loses.
        DiscardZeroChanges = 3 "discard-zero-changes",
        /// The one with fewer changes loses.
        DiscardLeastChanges = 4 "discard-least-changes",
        /// The node itself loses.
        DiscardLocal = 5 "discard-local",
        /// The peer loses.
        DiscardRemote = 6 "discard-remote",
        /// As with no Primary, if that makes the Secondary lose.
        Consensus = 7 "consensus",
        /// The Secondary loses.
        DiscardSecondary = 8 "discard-secondary",
        /// The loser's handler is called.
        CallPrimaryLost = 9 "call-pri-lost-after-sb",
        /// As with no Primary, whatever happens.
        Violently = 10 "violently-as0p",
    }
}

impl AfterSplitBrain {
    /// The same policy seen from the other node: local and remote change places (wire spec 6.3).
    #[must_use]
    pub const fn mirrored(self) -> Self {
        match self {
            Self::DiscardLocal => Self::DiscardRemote,
            Self::DiscardRemote => Self::DiscardLocal,
            other => other,
        }
    }
}

/// P_PROTOCOL, P_PROTOCOL_UPDATE: the connection's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolParameters {
    /// When a write counts as done.
    pub protocol: ReplicationProtocol,
    /// The policy with no Primary.
    pub after_split_brain_0: AfterSplitBrain,
    /// The policy with one Primary.
    pub after_split_brain_1: AfterSplitBrain,
    /// The policy with two Primaries.
    pub after_split_brain_2: AfterSplitBrain,
    /// What is wanted this time.
    pub flags: ConnectionFlags,
    /// Whether both may be Primary.
    pub two_primaries: bool,
    /// The digest the sender puts before its data. It travels from version 87 on.
    pub integrity: AlgorithmName,
}

impl ProtocolParameters {
    /// The shortest and the longest packet, in bytes: the string has 0 to 64.
    pub(crate) const BYTES: std::ops::RangeInclusive<usize> = 24..=24 + NAME_FIELD_BYTES;

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        fn policy(reader: &mut Reader<'_>, setting: &'static str) -> Result<AfterSplitBrain, WireError> {
            AfterSplitBrain::from_code(reader.u32()?).ok_or(WireError::IncompatibleSetting { setting })
        }
        Ok(Self {
            protocol: ReplicationProtocol::from_code(reader.u32()?)
                .ok_or(WireError::IncompatibleSetting { setting: "protocol" })?,
            after_split_brain_0: policy(reader, "after-sb-0pri")?,
            after_split_brain_1: policy(reader, "after-sb-1pri")?,
            after_split_brain_2: policy(reader, "after-sb-2pri")?,
            flags: ConnectionFlags(reader.u32()?),
            two_primaries: match reader.u32()? {
                0 => false,
                1 => true,
                _ => return Err(WireError::IncompatibleSetting { setting: "allow-two-primaries" }),
            },
            integrity: AlgorithmName::received(reader.rest()),
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>, dialect: Dialect) {
        out.put_u32(self.protocol.code());
        out.put_u32(self.after_split_brain_0.code());
        out.put_u32(self.after_split_brain_1.code());
        out.put_u32(self.after_split_brain_2.code());
        out.put_u32(self.flags.0);
        out.put_u32(u32::from(self.two_primaries));
        if dialect.version >= 87 {
            out.extend_from_slice(self.integrity.terminated());
        }
    }
}

/// The settings of the resync rate controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerParameters {
    /// `c-plan-ahead`, in units of 0.1 s.
    pub plan_ahead: u32,
    /// `c-delay-target`, in units of 0.1 s.
    pub delay_target: u32,
    /// `c-fill-target`, in sectors.
    pub fill_target: u32,
    /// `c-max-rate`, in KiB/s.
    pub max_rate: u32,
}

/// What a node without a disk sends (wire spec 6.4).
impl Default for ControllerParameters {
    fn default() -> Self {
        Self { plan_ahead: 20, delay_target: 10, fill_target: 100, max_rate: 102_400 }
    }
}

/// P_SYNC_PARAM, P_SYNC_PARAM89: settings of resync and verify. The version selects the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncParameters {
    /// The fixed rate, in KiB/s.
    pub resync_rate: u32,
    /// The digest for online verify. It travels from version 88 on.
    pub verify_algorithm: AlgorithmName,
    /// The digest for checksum resync. It travels from version 89 on.
    pub checksum_algorithm: AlgorithmName,
    /// The controller's settings. They travel from version 95 on: the receiver then has `Some`, and a sender's
    /// `None` travels as the default.
    pub controller: Option<ControllerParameters>,
}

/// What a node without a disk sends (wire spec 6.4).
impl Default for SyncParameters {
    fn default() -> Self {
        Self {
            resync_rate: 250,
            verify_algorithm: AlgorithmName::NONE,
            checksum_algorithm: AlgorithmName::NONE,
            controller: Some(ControllerParameters::default()),
        }
    }
}

impl SyncParameters {
    /// The packet it travels in.
    pub(crate) const fn command(dialect: Dialect) -> Command {
        if dialect.version < 89 { Command::SyncParam } else { Command::SyncParam89 }
    }

    /// The longest packet of a version, in bytes.
    pub(crate) const fn bytes_max(command: Command, dialect: Dialect) -> usize {
        match command {
            Command::SyncParam if dialect.version >= 88 => 4 + NAME_FIELD_BYTES,
            _ => command.fixed_bytes(dialect),
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>, dialect: Dialect) -> Result<Self, WireError> {
        let resync_rate = reader.u32()?;
        let mut parameters = Self { resync_rate, controller: None, ..Self::default() };
        if reader.command() == Command::SyncParam {
            parameters.verify_algorithm = AlgorithmName::received(reader.rest());
            return Ok(parameters);
        }
        parameters.verify_algorithm = AlgorithmName::received(&reader.array::<NAME_FIELD_BYTES>()?);
        parameters.checksum_algorithm = AlgorithmName::received(&reader.array::<NAME_FIELD_BYTES>()?);
        if dialect.version >= 95 {
            parameters.controller = Some(ControllerParameters {
                plan_ahead: reader.u32()?,
                delay_target: reader.u32()?,
                fill_target: reader.u32()?,
                max_rate: reader.u32()?,
            });
        }
        Ok(parameters)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>, dialect: Dialect) {
        out.put_u32(self.resync_rate);
        match dialect.version {
            ..88 => return,
            88 => return out.extend_from_slice(self.verify_algorithm.terminated()),
            _ => {}
        }
        out.extend_from_slice(self.verify_algorithm.field());
        out.extend_from_slice(self.checksum_algorithm.field());
        if dialect.version >= 95 {
            let controller = self.controller.unwrap_or_default();
            out.put_u32(controller.plan_ahead);
            out.put_u32(controller.delay_target);
            out.put_u32(controller.fill_target);
            out.put_u32(controller.max_rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announce(protocol_min: u32, protocol_max: u32, features: u32) -> ConnectionFeatures {
        let extensions = Extensions::NONE;
        ConnectionFeatures { protocol_min, protocol_max, features: Features(features), extensions }
    }

    #[test]
    fn extensions_are_told_apart_from_what_else_is_in_a_reserved_field() {
        let decoded =
            |bytes: &[u8]| ConnectionFeatures::decode(&mut Reader::new(Command::ConnectionFeatures, bytes));
        let mut bytes = Vec::new();
        ConnectionFeatures::OWN.encode(&mut bytes);
        assert_eq!(bytes.len(), 72);
        assert_eq!(decoded(&bytes).unwrap(), ConnectionFeatures::OWN);
        // The names of nodes of a later DRBD, or a flag without the mark.
        bytes[16..24].fill(1);
        assert_eq!(decoded(&bytes).unwrap(), ConnectionFeatures::OWN);
        bytes[64..68].fill(0);
        assert_eq!(decoded(&bytes).unwrap().extensions, Extensions::NONE);
        let mut bytes = Vec::new();
        announce(86, 101, 0xf).encode(&mut bytes);
        assert_eq!(bytes[12..], [0; 60]);
    }

    #[test]
    fn agreement_takes_the_lower_maximum_and_the_common_features() {
        let dialect = ConnectionFeatures::OWN.agree(announce(86, 124, 0xffff)).unwrap();
        assert_eq!(dialect, Dialect::NEWEST);
        let dialect = ConnectionFeatures::OWN.agree(announce(86, 97, 1)).unwrap();
        assert_eq!(dialect, Dialect { version: 97, features: Features::TRIM });
        assert_eq!(ConnectionFeatures::OWN.agree(announce(86, 0, 0)).unwrap().version, 86);
        let error = ConnectionFeatures::OWN.agree(announce(110, 121, 0)).unwrap_err();
        assert_eq!(error.to_string(), "incompatible DRBD dialects: I support 86-101, peer supports 110-121");
        assert!(announce(100, 101, 0).agree(announce(86, 97, 0)).is_err());
    }

    #[test]
    fn a_policy_seen_from_the_other_side() {
        assert_eq!(AfterSplitBrain::DiscardLocal.mirrored(), AfterSplitBrain::DiscardRemote);
        for policy in AfterSplitBrain::ALL {
            assert_eq!(policy.mirrored().mirrored(), *policy);
            assert_eq!(AfterSplitBrain::from_code(policy.code()), Some(*policy));
        }
    }
}
