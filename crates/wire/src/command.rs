//! The packets' numbers, their names in the log and where each belongs (wire spec 4).

use crate::dialect::Dialect;
use crate::flags::Features;

/// One of the two TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    /// Requests, data, state and bitmap.
    Data,
    /// Acknowledgements and pings.
    Meta,
}

/// Whom a packet concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The whole connection: its volume number is 0 and is ignored.
    Connection,
    /// One volume.
    Volume,
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $code:literal $text:literal $socket:ident $scope:ident $bytes:literal,)+) => {
        /// The number of a packet that is accepted. The numbers that are not (dead, reserved, DRBD 9) do not exist here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Command {
            $($(#[$doc])* $name = $code,)+
        }

        impl Command {
            /// Every command.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The command with this number on the wire.
            pub const fn from_code(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name in DRBD's log lines.
            pub const fn log_name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// The socket it belongs to. P_DELAY_PROBE may come on both.
            pub const fn socket(self) -> Socket {
                match self {
                    $(Self::$name => Socket::$socket,)+
                }
            }

            /// Whom it concerns.
            pub const fn scope(self) -> Scope {
                match self {
                    $(Self::$name => Scope::$scope,)+
                }
            }

            /// The structure's length where it is the same in all versions.
            const fn structure_bytes(self) -> usize {
                match self {
                    $(Self::$name => $bytes,)+
                }
            }
        }
    };
}

commands! {
    /// P_DATA: a write.
    Data = 0x00 "Data" Data Volume 24,
    /// P_DATA_REPLY: what a read found.
    DataReply = 0x01 "DataReply" Data Volume 24,
    /// P_RS_DATA_REPLY: a block of a resync.
    ResyncDataReply = 0x02 "RSDataReply" Data Volume 24,
    /// P_BARRIER: the end of an epoch.
    Barrier = 0x03 "Barrier" Data Connection 8,
    /// P_BITMAP: words of the bitmap.
    Bitmap = 0x04 "ReportBitMap" Data Volume 0,
    /// P_UNPLUG_REMOTE: a hint that nothing follows for now.
    UnplugRemote = 0x07 "UnplugRemote" Data Volume 0,
    /// P_DATA_REQUEST: a read.
    DataRequest = 0x08 "DataRequest" Data Volume 24,
    /// P_RS_DATA_REQUEST: a block wanted for a resync.
    ResyncDataRequest = 0x09 "RSDataRequest" Data Volume 24,
    /// P_SYNC_PARAM: resync parameters below version 89.
    SyncParam = 0x0a "SyncParam" Data Volume 4,
    /// P_PROTOCOL: connection parameters.
    Protocol = 0x0b "ReportProtocol" Data Connection 24,
    /// P_UUIDS: generation identifiers.
    Uuids = 0x0c "ReportUUIDs" Data Volume 48,
    /// P_SIZES: sizes and queue limits.
    Sizes = 0x0d "ReportSizes" Data Volume 32,
    /// P_STATE: a volume's state.
    State = 0x0e "ReportState" Data Volume 4,
    /// P_SYNC_UUID: the identifier of the resync that starts.
    SyncUuid = 0x0f "ReportSyncUUID" Data Volume 8,
    /// P_AUTH_CHALLENGE: random bytes to prove knowledge of the secret on.
    AuthChallenge = 0x10 "AuthChallenge" Data Connection 0,
    /// P_AUTH_RESPONSE: the proof.
    AuthResponse = 0x11 "AuthResponse" Data Connection 0,
    /// P_STATE_CHG_REQ: may this volume's state change?
    StateChangeRequest = 0x12 "StateChgRequest" Data Volume 8,
    /// P_PING.
    Ping = 0x13 "Ping" Meta Connection 0,
    /// P_PING_ACK.
    PingAck = 0x14 "PingAck" Meta Connection 0,
    /// P_RECV_ACK: a write has arrived.
    ReceiveAck = 0x15 "RecvAck" Meta Volume 24,
    /// P_WRITE_ACK: a write is on disk.
    WriteAck = 0x16 "WriteAck" Meta Volume 24,
    /// P_RS_WRITE_ACK: a write is on disk and the range in sync.
    ResyncWriteAck = 0x17 "RSWriteAck" Meta Volume 24,
    /// P_SUPERSEDED: a conflicting write was dropped, an own one covers it.
    Superseded = 0x18 "Superseded" Meta Volume 24,
    /// P_NEG_ACK: a write failed.
    NegativeAck = 0x19 "NegAck" Meta Volume 24,
    /// P_NEG_DREPLY: a read failed.
    NegativeDataReply = 0x1a "NegDReply" Meta Volume 24,
    /// P_NEG_RS_DREPLY: a read for a resync or verify failed.
    NegativeResyncDataReply = 0x1b "NegRSDReply" Meta Volume 24,
    /// P_BARRIER_ACK: all writes of an epoch have completed.
    BarrierAck = 0x1c "BarrierAck" Meta Connection 8,
    /// P_STATE_CHG_REPLY: the answer to P_STATE_CHG_REQ.
    StateChangeReply = 0x1d "StateChgReply" Meta Volume 4,
    /// P_OV_REQUEST: a block's digest wanted for online verify.
    VerifyRequest = 0x1e "OVRequest" Data Volume 24,
    /// P_OV_REPLY: a block's digest for online verify.
    VerifyReply = 0x1f "OVReply" Data Volume 24,
    /// P_OV_RESULT: what the comparison of a block gave.
    VerifyResult = 0x20 "OVResult" Meta Volume 24,
    /// P_CSUM_RS_REQUEST: a block wanted for a resync unless it has this digest.
    ChecksumResyncRequest = 0x21 "CsumRSRequest" Data Volume 24,
    /// P_RS_IS_IN_SYNC: the block has that digest.
    ResyncIsInSync = 0x22 "CsumRSIsInSync" Meta Volume 24,
    /// P_SYNC_PARAM89: resync parameters.
    SyncParam89 = 0x23 "SyncParam89" Data Volume 132,
    /// P_COMPRESSED_BITMAP: a run-length coded part of the bitmap.
    CompressedBitmap = 0x24 "CBitmap" Data Volume 1,
    /// P_DELAY_PROBE: a relic of version 93, ignored.
    DelayProbe = 0x27 "DelayProbe" Data Volume 8,
    /// P_OUT_OF_SYNC: a range the peer does not get, to be marked.
    OutOfSync = 0x28 "OutOfSync" Data Volume 16,
    /// P_RS_CANCEL: a resync request that is not answered now.
    ResyncCancel = 0x29 "RSCancel" Meta Volume 24,
    /// P_CONN_ST_CHG_REQ: may the connection's state change?
    ConnectionStateChangeRequest = 0x2a "conn_st_chg_req" Data Connection 8,
    /// P_CONN_ST_CHG_REPLY: the answer to P_CONN_ST_CHG_REQ.
    ConnectionStateChangeReply = 0x2b "conn_st_chg_reply" Meta Connection 4,
    /// P_RETRY_WRITE: a conflicting write was dropped and is to be sent again.
    RetryWrite = 0x2c "(null)" Meta Volume 24,
    /// P_PROTOCOL_UPDATE: connection parameters that have changed.
    ProtocolUpdate = 0x2d "protocol_update" Data Connection 24,
    /// P_TRIM: a discard.
    Trim = 0x31 "Trim" Data Volume 28,
    /// P_RS_THIN_REQ: a block wanted for a resync, a hole as such.
    ResyncThinRequest = 0x32 "rs_thin_req" Data Volume 24,
    /// P_RS_DEALLOCATED: the block is a hole.
    ResyncDeallocated = 0x33 "rs_deallocated" Data Volume 16,
    /// P_ZEROES: a write of zeroes.
    Zeroes = 0x36 "Zeroes" Data Volume 28,
    /// P_INITIAL_META: this connection is the meta socket.
    InitialMeta = 0xfff1 "InitialMeta" Meta Connection 0,
    /// P_INITIAL_DATA: this connection is the data socket.
    InitialData = 0xfff2 "InitialData" Data Connection 0,
    /// P_CONNECTION_FEATURES: versions and features.
    ConnectionFeatures = 0xfffe "ConnectionFeatures" Data Connection 72,
}

impl Command {
    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The structure's length in bytes, without strings, digest and data behind it (wire spec 5).
    pub const fn fixed_bytes(self, dialect: Dialect) -> usize {
        match self {
            Self::Sizes if dialect.has(Features::WRITE_SAME) => 56,
            Self::SyncParam89 if dialect.version >= 95 => 148,
            _ => self.structure_bytes(),
        }
    }

    /// Whether a node may send this to a peer with which it has agreed on `dialect` (wire spec 4, column "Since").
    ///
    /// A receiver does not ask: like the kernel it takes every packet it knows (wire spec 18.3).
    pub const fn may_be_sent(self, dialect: Dialect) -> bool {
        match self {
            Self::SyncParam => dialect.version < 89,
            Self::VerifyRequest | Self::VerifyReply | Self::VerifyResult => dialect.version >= 88,
            Self::SyncParam89 | Self::ChecksumResyncRequest | Self::ResyncIsInSync => dialect.version >= 89,
            Self::CompressedBitmap => dialect.version >= 90,
            Self::DelayProbe => dialect.version == 93,
            Self::OutOfSync | Self::ResyncCancel => dialect.version >= 96,
            Self::ConnectionStateChangeRequest
            | Self::ConnectionStateChangeReply
            | Self::RetryWrite
            | Self::ProtocolUpdate => dialect.version >= 100,
            Self::Trim => dialect.has(Features::TRIM),
            Self::ResyncThinRequest | Self::ResyncDeallocated => dialect.has(Features::THIN_RESYNC),
            Self::Zeroes => dialect.has(Features::WRITE_ZEROES),
            _ => true,
        }
    }

    /// Whether an established connection takes this packet on `socket`; what belongs to the handshake alone is not
    /// taken (wire spec 17).
    pub fn is_accepted_on(self, socket: Socket) -> bool {
        match self {
            Self::InitialData
            | Self::InitialMeta
            | Self::ConnectionFeatures
            | Self::AuthChallenge
            | Self::AuthResponse => false,
            Self::DelayProbe => true,
            _ => self.socket() == socket,
        }
    }

    /// Whether the header has 8 bytes whatever was agreed: the packets that come before the agreement.
    pub const fn precedes_agreement(self) -> bool {
        matches!(self, Self::InitialData | Self::InitialMeta | Self::ConnectionFeatures)
    }
}

/// The name DRBD logs for any number, known or not (DRBD's `cmdname`).
pub const fn log_name(code: u16) -> &'static str {
    match (Command::from_code(code), code) {
        (Some(command), _) => command.log_name(),
        (None, 0x05) => "BecomeSyncTarget",
        (None, 0x06) => "BecomeSyncSource",
        (None, 0x34) => "WriteSame",
        (None, 0x37..) => "Unknown",
        (None, _) => "(null)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_commands_lead_back() {
        for command in Command::ALL {
            assert_eq!(Command::from_code(command.code()), Some(*command));
        }
        let known = (0..=u16::MAX).filter(|code| Command::from_code(*code).is_some()).count();
        assert_eq!(known, Command::ALL.len());
    }

    #[test]
    fn unknown_codes_have_the_names_the_kernel_prints() {
        assert_eq!(log_name(0x34), "WriteSame");
        assert_eq!(log_name(0x2e), "(null)");
        assert_eq!(log_name(0x40), "Unknown");
        assert_eq!(log_name(0xfff2), "InitialData");
    }

    #[test]
    fn a_discard_needs_its_feature_and_a_retry_its_version() {
        let old = Dialect { version: 99, features: Features::NONE };
        assert!(!Command::Trim.may_be_sent(old) && !Command::RetryWrite.may_be_sent(old));
        assert!(
            Command::Trim.may_be_sent(Dialect::NEWEST) && Command::RetryWrite.may_be_sent(Dialect::NEWEST)
        );
    }
}
