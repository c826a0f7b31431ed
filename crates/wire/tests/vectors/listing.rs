//! Listings: what they say, and packets written the way they write them.

use std::fmt::Write as _;

use udrbd_wire::bitmap::{BitmapReceiver, BitmapSink, RunLengthEncoding};
use udrbd_wire::{
    AlgorithmName, AuthChallenge, Authentication, BlockId, Command, DataFlags, Dialect, DigestAlgorithm,
    Packet, ProtocolParameters, Sizes, Socket, StateChange, StateReturnCode, StateWord, SyncParameters,
};

use crate::captures::session::{Received, Session};

/// The lines of a listing that are packets, by who sent them and in order; and what else the test must know.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The connection's number and the line without time and direction, from A and from B.
    pub(crate) lines: [Vec<(usize, String)>; 2],
    /// How many lines the listing says it leaves out.
    pub(crate) left_out: usize,
    /// The commands given to the nodes, and other remarks.
    pub(crate) commands: Vec<String>,
}

impl Listing {
    pub(crate) fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["..", count, "lines", ..] => listing.left_out += count.parse::<usize>().unwrap(),
                [_, "##", ..] => listing.commands.push(words[2..].join(" ")),
                [_, _, _, "--", "tcp", ..] => {}
                [_, direction @ ("A>B" | "B>A"), connection, ..] => {
                    let number = connection[3..].split('/').next().unwrap().parse().unwrap();
                    listing.lines[usize::from(direction == "B>A")].push((number, words[2..].join(" ")));
                }
                _ => assert!(line.starts_with('#') || line.is_empty(), "unknown line {line}"),
            }
        }
        listing
    }

    /// The value of an option in the command that connects A.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        let connect = self.commands.iter().find(|command| command.contains(" connect ra "))?;
        let option = connect.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        option.map(|value| value.trim_matches('\''))
    }

    pub(crate) fn has_command(&self, part: &str) -> bool {
        self.commands.iter().any(|command| command.contains(part))
    }
}

/// What the listing tool knew when it wrote the packets of one connection.
pub(crate) struct Writer<'a> {
    pub(crate) authentication: Option<Authentication>,
    challenges: [Option<AuthChallenge>; 2],
    prefix: String,
    session: &'a Session,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(session: &'a Session, authentication: Option<Authentication>) -> Self {
        let challenge = |packets: &Vec<Received>| {
            packets.iter().find_map(|received| match &received.packet {
                Packet::AuthChallenge(challenge) => Some(AuthChallenge::clone(challenge)),
                _ => None,
            })
        };
        let socket = match session.socket {
            Some(Socket::Data) => 'D',
            Some(Socket::Meta) => 'M',
            None => '?',
        };
        Self {
            authentication,
            challenges: session.sent.each_ref().map(challenge),
            prefix: format!("tcp{}/{socket}", session.number),
            session,
        }
    }

    /// The lines of one direction: 0 is A's.
    pub(crate) fn lines(&self, sender: usize) -> Vec<String> {
        // The listing knows data integrity from P_PROTOCOL only; after an update it splits digest and data as before.
        let mut digest_bytes = 0;
        let line = |received: &Received| {
            if let Packet::Protocol(parameters) = &received.packet {
                let algorithm = parameters.integrity.as_str().unwrap().parse::<DigestAlgorithm>();
                digest_bytes = algorithm.map_or(0, DigestAlgorithm::bytes);
            }
            self.line(received, sender, digest_bytes)
        };
        self.session.sent[sender].iter().map(line).collect()
    }

    fn line(&self, received: &Received, sender: usize, digest_bytes: usize) -> String {
        let command = received.incoming.command;
        let header = match received.bytes[..2] {
            [0x83, 0x74] => "h80",
            [0x83, 0x5a] => "h95",
            _ => "h100",
        };
        let code = if command.code() < 0x100 {
            format!("{:#04x}", command.code())
        } else {
            format!("{:#x}", command.code())
        };
        let mut line = format!("{} {header} {} {code}", self.prefix, name(command));
        if header == "h100" {
            write!(line, " vol={}", received.header.volume).unwrap();
        }
        write!(line, " len={} ", received.header.length).unwrap();
        line += &fields(received, digest_bytes);
        if let Packet::AuthResponse(response) = &received.packet {
            let challenge = self.challenges[1 - sender].as_ref().unwrap();
            let authentication = self.authentication.as_ref().unwrap();
            let right = authentication.accepts(challenge, response);
            assert_eq!(right, authentication.respond(challenge) == **response);
            let (of, verdict) = (["B", "A"][sender], if right { "yes" } else { "NO" });
            write!(line, " == HMAC-{}(secret, challenge of {of}): {verdict}", authentication.algorithm())
                .unwrap();
        }
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The beginning of a longer field.
fn abridged(bytes: &[u8], shown: usize) -> String {
    match bytes.len() > shown {
        true => format!("{}..({} bytes)", hex(&bytes[..shown]), bytes.len()),
        false => hex(bytes),
    }
}

fn block_id(id: BlockId) -> String {
    format!("{:016x}", id.0)
}

fn data(bytes: &[u8]) -> String {
    if bytes.iter().all(|byte| *byte == bytes[0]) {
        return format!("data={:02x}*{}", bytes[0], bytes.len());
    }
    let sha1 = DigestAlgorithm::Sha1.digest(bytes);
    format!("data[{}]={} sha1={}", bytes.len(), abridged(bytes, 16), hex(&sha1.as_bytes()[..8]))
}

fn data_flags(flags: DataFlags) -> String {
    format!("dp_flags={:#x}{{{}}}", flags.0, flags.names().collect::<Vec<_>>().join("|"))
}

fn digest_and_data(received: &Received, digest_bytes: usize) -> String {
    let whole = [&received.digest[..], &received.payload].concat();
    let (digest, payload) = whole.split_at(digest_bytes);
    let digest = if digest.is_empty() { String::new() } else { format!("digest={} ", hex(digest)) };
    digest + &data(payload)
}

fn fields(received: &Received, digest_bytes: usize) -> String {
    match &received.packet {
        Packet::Data(write) => format!(
            "sector={} block_id={} seq={} {} {}",
            write.sector,
            block_id(write.block_id),
            write.sequence.0,
            data_flags(write.flags),
            digest_and_data(received, digest_bytes)
        ),
        Packet::DataReply(reply) | Packet::ResyncDataReply(reply) => format!(
            "sector={} block_id={} seq=0 dp_flags=0x0{{}} {}",
            reply.sector,
            block_id(reply.block_id),
            digest_and_data(received, digest_bytes)
        ),
        Packet::Trim(zero) | Packet::Zeroes(zero) => format!(
            "sector={} block_id={} seq={} {} size={}",
            zero.sector,
            block_id(zero.block_id),
            zero.sequence.0,
            data_flags(zero.flags),
            zero.size
        ),
        Packet::Barrier(barrier) => format!("barrier={:08x} pad=0x0", barrier.number),
        Packet::BarrierAck(ack) => format!("barrier={:08x} set_size={}", ack.number, ack.set_size),
        Packet::DataRequest(request)
        | Packet::ResyncDataRequest(request)
        | Packet::ResyncThinRequest(request)
        | Packet::ChecksumResyncRequest(request)
        | Packet::VerifyRequest(request)
        | Packet::VerifyReply(request) => {
            let mut text = format!(
                "sector={} block_id={} blksize={} pad={:#x}",
                request.sector,
                block_id(request.block_id),
                request.size,
                request.padding
            );
            if !received.digest.is_empty() {
                text += &format!(" digest={}", hex(&received.digest));
            }
            text
        }
        Packet::OutOfSync(range) | Packet::ResyncDeallocated(range) => {
            format!("sector={} blksize={} pad={:#x}", range.sector, range.size, range.padding)
        }
        Packet::ReceiveAck(ack)
        | Packet::WriteAck(ack)
        | Packet::ResyncWriteAck(ack)
        | Packet::Superseded(ack)
        | Packet::RetryWrite(ack)
        | Packet::NegativeAck(ack)
        | Packet::NegativeDataReply(ack)
        | Packet::NegativeResyncDataReply(ack)
        | Packet::VerifyResult(ack)
        | Packet::ResyncIsInSync(ack)
        | Packet::ResyncCancel(ack) => {
            let result = match (received.incoming.command, ack.block_id) {
                (Command::VerifyResult, BlockId::IN_SYNC) => " (ID_IN_SYNC)",
                (Command::VerifyResult, BlockId::OUT_OF_SYNC) => " (ID_OUT_OF_SYNC)",
                _ => "",
            };
            let id = block_id(ack.block_id);
            format!("sector={} block_id={id}{result} blksize={} seq={}", ack.sector, ack.size, ack.sequence.0)
        }
        Packet::Bitmap => {
            let payload = &received.payload;
            format!("words={} bytes {}", payload.len() / 8, abridged(payload, 32))
        }
        Packet::CompressedBitmap(encoding) => compressed(*encoding, received),
        Packet::StateChangeRequest(change) | Packet::ConnectionStateChangeRequest(change) => {
            state_change(*change)
        }
        Packet::StateChangeReply(code) | Packet::ConnectionStateChangeReply(code) => {
            format!("retcode={}({})", code.0, return_code(*code))
        }
        Packet::State(state) => format!("state={:#010x}{{{}}}", state.pack(), state_fields(*state)),
        Packet::Uuids(uuids) => format!(
            "current={} bitmap={} hist0={} hist1={} dirty_bits={} flags={:#x}",
            uuids.current, uuids.bitmap, uuids.history[0], uuids.history[1], uuids.dirty_bits, uuids.flags.0
        ),
        Packet::SyncUuid(uuid) => format!("uuid={uuid}"),
        Packet::Sizes(sizes) => size_fields(sizes),
        Packet::SyncParameters(parameters) => sync_parameters(parameters, received.dialect),
        Packet::Protocol(parameters) | Packet::ProtocolUpdate(parameters) => {
            protocol(parameters, received.dialect)
        }
        Packet::ConnectionFeatures(features) => format!(
            "min={} max={} feature_flags={:#x} _pad=0 reserved=0",
            features.protocol_min, features.protocol_max, features.features.0
        ),
        Packet::AuthChallenge(challenge) => {
            format!("len={} {}", challenge.as_bytes().len(), hex(challenge.as_bytes()))
        }
        Packet::AuthResponse(response) => {
            format!("len={} {}", response.0.as_bytes().len(), hex(response.0.as_bytes()))
        }
        Packet::DelayProbe(probe) => format!("seq={} offset={}", probe.sequence, probe.offset),
        Packet::UnplugRemote | Packet::Ping | Packet::PingAck | Packet::InitialData | Packet::InitialMeta => {
            String::new()
        }
    }
}

fn size_fields(sizes: &Sizes) -> String {
    let mut text = format!(
        "d_size={} u_size={} c_size={} max_bio_size={} queue_order_type={} dds_flags={:#x}",
        sizes.disk_size,
        sizes.user_size,
        sizes.current_size,
        sizes.max_bio_size,
        sizes.queue_order_type,
        sizes.flags.0
    );
    if let Some(limits) = sizes.queue_limits {
        text += &format!(
            " qlim{{physical={} logical={} align_off={} io_min={} io_opt={} discard_enabled={} discard_zeroes={} \
             write_same={} pad=0}}",
            limits.physical_block_size,
            limits.logical_block_size,
            limits.alignment_offset,
            limits.io_min,
            limits.io_opt,
            u8::from(limits.discard_enabled),
            u8::from(limits.discard_zeroes_data),
            u8::from(limits.write_same_capable)
        );
    }
    text
}

fn terminated(name: &AlgorithmName, travels: bool) -> String {
    if travels { format!("b'{name}\\x00'") } else { "b''".to_owned() }
}

fn sync_parameters(parameters: &SyncParameters, dialect: Dialect) -> String {
    let SyncParameters { resync_rate, verify_algorithm, checksum_algorithm, controller } = parameters;
    if dialect.version < 89 {
        let name = terminated(verify_algorithm, dialect.version == 88);
        return format!("resync_rate={resync_rate} verify_alg={name}");
    }
    let mut text =
        format!("resync_rate={resync_rate} verify_alg='{verify_algorithm}' csums_alg='{checksum_algorithm}'");
    if let Some(controller) = controller {
        text += &format!(
            " c_plan_ahead={} c_delay_target={} c_fill_target={} c_max_rate={}",
            controller.plan_ahead, controller.delay_target, controller.fill_target, controller.max_rate
        );
    }
    text
}

fn protocol(parameters: &ProtocolParameters, dialect: Dialect) -> String {
    format!(
        "protocol={} after_sb_0p={} after_sb_1p={} after_sb_2p={} conn_flags={:#x} two_primaries={} integrity_alg={}",
        parameters.protocol.name(),
        parameters.after_split_brain_0.name(),
        parameters.after_split_brain_1.name(),
        parameters.after_split_brain_2.name(),
        parameters.flags.0,
        u8::from(parameters.two_primaries),
        terminated(&parameters.integrity, dialect.version >= 87)
    )
}

fn state_fields(state: StateWord) -> String {
    let mut text = format!(
        "role={} peer={} conn={} disk={} pdsk={}",
        state.role, state.peer_role, state.connection, state.disk, state.peer_disk
    );
    for (set, name) in [
        (state.suspended, "susp"),
        (state.after_paused, "aftr_isp"),
        (state.peer_paused, "peer_isp"),
        (state.user_paused, "user_isp"),
        (state.suspended_no_data, "susp_nod"),
        (state.suspended_fencing, "susp_fen"),
    ] {
        if set {
            text += &format!(" {name}");
        }
    }
    text
}

fn state_change(change: StateChange) -> String {
    let (mask, value) = change.pack();
    let fields: Vec<(&str, String)> = [
        ("role", change.role.map(|role| role.to_string())),
        ("peer", change.peer_role.map(|role| role.to_string())),
        ("conn", change.connection.map(|state| state.to_string())),
        ("disk", change.disk.map(|state| state.to_string())),
        ("pdsk", change.peer_disk.map(|state| state.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect();
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let values: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("mask={mask:#010x}{{{}}} val={value:#010x}{{{}}}", names.join(","), values.join(" "))
}

/// Takes down which ranges are set.
#[derive(Default)]
struct Runs {
    end: u64,
    runs: Vec<(u8, u64)>,
}

impl BitmapSink for Runs {
    fn merge_word(&mut self, _: u64, _: u64) {
        panic!("a range in pieces");
    }

    fn set_range(&mut self, first: u64, count: u64) {
        if first > self.end {
            self.runs.push((0, first - self.end));
        }
        self.runs.push((1, count));
        self.end = first + count;
    }
}

fn compressed(encoding: RunLengthEncoding, received: &Received) -> String {
    let mut runs = Runs::default();
    let mut receiver = BitmapReceiver::new(1 << 40, received.dialect);
    receiver.compressed(encoding, &received.payload, &mut runs).unwrap();
    if receiver.position() > runs.end {
        runs.runs.push((0, receiver.position() - runs.end));
    }
    assert_eq!(runs.runs[0].0 == 1, encoding.starts_set());
    let shown: Vec<String> =
        runs.runs.iter().take(40).map(|(set, length)| format!("{set}x{length}")).collect();
    let more = if runs.runs.len() > 40 { format!(",..({} runs)", runs.runs.len()) } else { String::new() };
    format!(
        "encoding={:#04x}{{code=2 start={} pad={}}} runs=[{}{more}] bits={} code={}",
        received.bytes[received.bytes.len() - received.payload.len() - 1],
        u8::from(encoding.starts_set()),
        encoding.pad_bits(),
        shown.join(","),
        receiver.position(),
        abridged(&received.payload, 48)
    )
}

/// DRBD's own name of a return code.
fn return_code(code: StateReturnCode) -> &'static str {
    match code {
        StateReturnCode::SUCCESS => "SS_SUCCESS",
        StateReturnCode::NOTHING_TO_DO => "SS_NOTHING_TO_DO",
        StateReturnCode::TWO_PRIMARIES => "SS_TWO_PRIMARIES",
        StateReturnCode::NO_UP_TO_DATE_DISK => "SS_NO_UP_TO_DATE_DISK",
        StateReturnCode::NO_LOCAL_DISK => "SS_NO_LOCAL_DISK",
        StateReturnCode::NO_REMOTE_DISK => "SS_NO_REMOTE_DISK",
        StateReturnCode::CONNECTED_OUTDATES => "SS_CONNECTED_OUTDATES",
        StateReturnCode::PRIMARY_NO_PEER_OUTDATED => "SS_PRIMARY_NOP",
        StateReturnCode::RESYNC_RUNNING => "SS_RESYNC_RUNNING",
        StateReturnCode::ALREADY_STANDALONE => "SS_ALREADY_STANDALONE",
        StateReturnCode::REFUSED_BY_PEER => "SS_CW_FAILED_BY_PEER",
        StateReturnCode::IS_DISKLESS => "SS_IS_DISKLESS",
        StateReturnCode::DEVICE_IN_USE => "SS_DEVICE_IN_USE",
        StateReturnCode::NO_NET_CONFIG => "SS_NO_NET_CONFIG",
        StateReturnCode::NO_VERIFY_ALGORITHM => "SS_NO_VERIFY_ALG",
        StateReturnCode::NEED_CONNECTION => "SS_NEED_CONNECTION",
        StateReturnCode::LOWER_THAN_OUTDATED => "SS_LOWER_THAN_OUTDATED",
        StateReturnCode::NOT_SUPPORTED => "SS_NOT_SUPPORTED",
        StateReturnCode::IN_TRANSIENT_STATE => "SS_IN_TRANSIENT_STATE",
        StateReturnCode::CONCURRENT_STATE_CHANGE => "SS_CONCURRENT_ST_CHG",
        StateReturnCode::OTHER_VOLUME_PEER_PRIMARY => "SS_O_VOL_PEER_PRI",
        StateReturnCode::OUTDATE_WITHOUT_CONNECTION => "SS_OUTDATE_WO_CONN",
        _ => "?",
    }
}

/// DRBD's own name of a packet.
fn name(command: Command) -> &'static str {
    match command {
        Command::Data => "P_DATA",
        Command::DataReply => "P_DATA_REPLY",
        Command::ResyncDataReply => "P_RS_DATA_REPLY",
        Command::Barrier => "P_BARRIER",
        Command::Bitmap => "P_BITMAP",
        Command::UnplugRemote => "P_UNPLUG_REMOTE",
        Command::DataRequest => "P_DATA_REQUEST",
        Command::ResyncDataRequest => "P_RS_DATA_REQUEST",
        Command::SyncParam => "P_SYNC_PARAM",
        Command::Protocol => "P_PROTOCOL",
        Command::Uuids => "P_UUIDS",
        Command::Sizes => "P_SIZES",
        Command::State => "P_STATE",
        Command::SyncUuid => "P_SYNC_UUID",
        Command::AuthChallenge => "P_AUTH_CHALLENGE",
        Command::AuthResponse => "P_AUTH_RESPONSE",
        Command::StateChangeRequest => "P_STATE_CHG_REQ",
        Command::Ping => "P_PING",
        Command::PingAck => "P_PING_ACK",
        Command::ReceiveAck => "P_RECV_ACK",
        Command::WriteAck => "P_WRITE_ACK",
        Command::ResyncWriteAck => "P_RS_WRITE_ACK",
        Command::Superseded => "P_SUPERSEDED",
        Command::NegativeAck => "P_NEG_ACK",
        Command::NegativeDataReply => "P_NEG_DREPLY",
        Command::NegativeResyncDataReply => "P_NEG_RS_DREPLY",
        Command::BarrierAck => "P_BARRIER_ACK",
        Command::StateChangeReply => "P_STATE_CHG_REPLY",
        Command::VerifyRequest => "P_OV_REQUEST",
        Command::VerifyReply => "P_OV_REPLY",
        Command::VerifyResult => "P_OV_RESULT",
        Command::ChecksumResyncRequest => "P_CSUM_RS_REQUEST",
        Command::ResyncIsInSync => "P_RS_IS_IN_SYNC",
        Command::SyncParam89 => "P_SYNC_PARAM89",
        Command::CompressedBitmap => "P_COMPRESSED_BITMAP",
        Command::DelayProbe => "P_DELAY_PROBE",
        Command::OutOfSync => "P_OUT_OF_SYNC",
        Command::ResyncCancel => "P_RS_CANCEL",
        Command::ConnectionStateChangeRequest => "P_CONN_ST_CHG_REQ",
        Command::ConnectionStateChangeReply => "P_CONN_ST_CHG_REPLY",
        Command::RetryWrite => "P_RETRY_WRITE",
        Command::ProtocolUpdate => "P_PROTOCOL_UPDATE",
        Command::Trim => "P_TRIM",
        Command::ResyncThinRequest => "P_RS_THIN_REQ",
        Command::ResyncDeallocated => "P_RS_DEALLOCATED",
        Command::Zeroes => "P_ZEROES",
        Command::InitialMeta => "P_INITIAL_META",
        Command::InitialData => "P_INITIAL_DATA",
        Command::ConnectionFeatures => "P_CONNECTION_FEATURES",
    }
}
