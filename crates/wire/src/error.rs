//! What can be wrong with what the peer sent, in DRBD's words.

use crate::command::{Command, Socket, log_name};

/// What is wrong with bytes received from the peer. [`Display`](std::fmt::Display) gives the line DRBD logs for it
/// (wire spec 17); what becomes of the connection is the engine's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first bytes are no header of the agreed version.
    #[error("Wrong magic value 0x{magic:08x} in protocol version {version}")]
    WrongMagic {
        /// The first four bytes.
        magic: u32,
        /// The agreed version.
        version: u32,
    },
    /// The last four bytes of a 16-byte header are not zero.
    #[error("Header padding is not zero")]
    HeaderPadding,
    /// A packet that is unknown or does not belong on this socket of an established connection.
    #[error("Unexpected {} packet {} (0x{code:04x})", socket_name(*socket), log_name(*code))]
    UnexpectedPacket {
        /// Where it came.
        socket: Socket,
        /// Its number.
        code: u16,
    },
    /// A packet that is neither P_INITIAL_DATA nor P_INITIAL_META came first.
    #[error("Error receiving initial packet")]
    NotInitial {
        /// Its number.
        code: u16,
    },
    /// Another packet came where the handshake allows only one.
    #[error("expected {} packet, received: {} (0x{code:04x})", expected.log_name(), log_name(*code))]
    NotExpected {
        /// What should have come.
        expected: Command,
        /// The number of what came.
        code: u16,
    },
    /// A packet has more bytes than its structure and may have no payload.
    #[error("No payload expected {} l:{bytes}", command.log_name())]
    PayloadNotExpected {
        /// The packet.
        command: Command,
        /// The length in its header.
        bytes: u32,
    },
    /// A packet on the data socket is too short for its structure.
    #[error("{}: unexpected packet size, expected:{expected} received:{received}", command.log_name())]
    PacketSize {
        /// The packet.
        command: Command,
        /// The structure's length.
        expected: u32,
        /// The length in its header.
        received: u32,
    },
    /// A packet on the meta socket has not the length of its structure.
    #[error("Wrong packet size on meta (c: {}, l: {bytes})", command.code())]
    MetaPacketSize {
        /// The packet.
        command: Command,
        /// The length in its header.
        bytes: u32,
    },
    /// A packet with a variable part is longer than it may be.
    #[error("{} packet too long: received {received}, expected <= {maximum} bytes", command.log_name())]
    TooLong {
        /// The packet.
        command: Command,
        /// The length in its header.
        received: u32,
        /// The most it may be.
        maximum: u32,
    },
    /// The data of a write or of a reply have a length that is no multiple of 512, or too large, or 0 in a reply.
    #[error("ASSERTION IS_ALIGNED(data_size, 512) && data_size <= DRBD_MAX_BIO_SIZE FAILED in read_in_block ({} l:{bytes})", command.log_name())]
    DataSize {
        /// The packet.
        command: Command,
        /// The length in its header.
        bytes: u32,
    },
    /// A request or a discard for an impossible number of bytes.
    #[error("{}: sector: {sector}s, size: {bytes}", command.log_name())]
    BlockSize {
        /// The packet.
        command: Command,
        /// The first sector.
        sector: u64,
        /// The length in bytes.
        bytes: u32,
    },
    /// P_CONNECTION_FEATURES of the wrong length.
    #[error("expected ConnectionFeatures length: 72, received: {received}")]
    FeaturesLength {
        /// The length in its header.
        received: u32,
    },
    /// There is no version both speak.
    #[error("incompatible DRBD dialects: I support {own_min}-{own_max}, peer supports {peer_min}-{peer_max}")]
    IncompatibleDialects {
        /// The own lowest version.
        own_min: u32,
        /// The own highest version.
        own_max: u32,
        /// The peer's lowest version.
        peer_min: u32,
        /// The peer's highest version.
        peer_max: u32,
    },
    /// A challenge of more than 128 bytes.
    #[error("expected AuthChallenge payload too big.")]
    ChallengeTooBig,
    /// A challenge of less than 64 bytes.
    #[error("AuthChallenge payload too small.")]
    ChallengeTooSmall,
    /// A response that has not the length of the hash.
    #[error("expected AuthResponse payload of wrong size")]
    ResponseSize,
    /// A connection parameter with a value no node can have configured.
    #[error("incompatible {setting} settings")]
    IncompatibleSetting {
        /// The name of the setting.
        setting: &'static str,
    },
    /// A state that does not exist, or a mask that covers half a field.
    #[error("{}: invalid state word 0x{word:08x}", command.log_name())]
    InvalidState {
        /// The packet.
        command: Command,
        /// The state word or the mask.
        word: u32,
    },
    /// A plain bitmap packet that has not the length its position demands.
    #[error("receive_bitmap_plain:want ({want}) != size ({size})")]
    BitmapSize {
        /// The length it should have.
        want: u32,
        /// The length in its header.
        size: u32,
    },
    /// A compressed bitmap packet in a code other than the one there is.
    #[error("receive_bitmap_c: unknown encoding {encoding}")]
    BitmapEncoding {
        /// The encoding byte.
        encoding: u8,
    },
    /// A compressed bitmap packet goes past the end of the bitmap.
    #[error("bitmap overflow (e:{end}) while decoding bm RLE packet")]
    BitmapOverflow {
        /// The last bit of the run that does not fit.
        end: u64,
    },
    /// A compressed bitmap packet ends within a code word.
    #[error("bitmap decoding error: h:{have} b:{bits} la:0x{window:08x} l:{left}/{bytes}")]
    BitmapCode {
        /// The bits left in the packet.
        have: u32,
        /// The bits the code word has.
        bits: u32,
        /// The next 64 bits.
        window: u64,
        /// The bytes not looked at.
        left: u32,
        /// The bytes of the code.
        bytes: u32,
    },
}

impl WireError {
    pub(crate) fn packet_size(command: Command, expected: usize, received: usize) -> Self {
        Self::PacketSize { command, expected: expected as u32, received: received as u32 }
    }
}

const fn socket_name(socket: Socket) -> &'static str {
    match socket {
        Socket::Data => "data",
        Socket::Meta => "meta",
    }
}
