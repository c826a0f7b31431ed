//! The packets this node sends, one function each.

use udrbd_units::{ConnectionState, DiskState, GenerationId, Role, Sector, SectorRange, VolumeNumber};
use udrbd_wire as wire;
use wire::{
    BlockAck, BlockId, BlockRange, BlockReply, BlockRequest, BlockWrite, BlockZero, DataFlags, Features,
    Packet, SequenceNumber, UuidFlags,
};

use crate::Engine;
use crate::interface::{Action, Operation, Payload, Protocol, SocketRole, Token};
use crate::slab::Key;
use crate::state::{StateRequest, VolumeState};
use crate::volume::uuid_flag;

/// Which acknowledgement of a peer's write or resync write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    Received,
    Written,
    WrittenInSync,
    Failed,
    /// Not written: a concurrent write of this node replaces it (two Primaries).
    Superseded,
    /// Not written: to be repeated when a concurrent write of this node is done (two Primaries).
    Retry,
}

impl Engine {
    /// Sends a packet without payload or digest; nothing without a connection.
    pub(crate) fn send(&mut self, role: SocketRole, volume: VolumeNumber, packet: Packet) {
        self.send_with(role, volume, packet, Payload::None, false, None, None);
    }

    #[expect(clippy::too_many_arguments, reason = "one place where everything of a packet comes together")]
    pub(crate) fn send_with(
        &mut self,
        role: SocketRole,
        volume: VolumeNumber,
        packet: Packet,
        payload: Payload,
        integrity: bool,
        digest: Option<wire::DigestValue>,
        sent: Option<Token>,
    ) {
        let Some(socket) = self.connection.socket(role) else { return };
        if self.connection.stage != crate::connection::Stage::Established {
            return;
        }
        let integrity = if integrity { self.connection.own_integrity } else { None };
        let dialect = self.connection.dialect;
        self.out.push(Action::Send { socket, dialect, volume, packet, payload, integrity, digest, sent });
    }

    pub(crate) fn send_on_data(&mut self, index: usize, packet: Packet) {
        let volume = self.volumes[index].number;
        self.send(SocketRole::Data, volume, packet);
    }

    pub(crate) fn send_on_meta(&mut self, index: usize, packet: Packet) {
        let volume = self.volumes[index].number;
        self.send(SocketRole::Meta, volume, packet);
    }

    /// P_DATA, P_TRIM or P_ZEROES for a request (wire spec 8).
    pub(crate) fn send_write(
        &mut self,
        index: usize,
        key: Key,
        operation: Operation,
        range: SectorRange,
        payload: Payload,
    ) {
        let size = range.bytes;
        let (data_bytes, zero_bytes) = self.request_limits();
        let limit = if operation.is_payloadless() { zero_bytes } else { data_bytes };
        if size > limit {
            // The peer is older than those the client was told of when it came: the write goes on without it.
            let text = format!(
                "the peer takes no request of {size} bytes, only of {limit}: dropping the connection"
            );
            self.say(crate::interface::Level::Error, Some(index), text);
            self.lose_connection(ConnectionState::ProtocolError);
            return;
        }
        let operation = self.operation_on_the_wire(operation);
        let flags = self.write_flags(index, operation);
        let block_id = BlockId(key.number());
        let sequence = SequenceNumber(self.volumes[index].next_sequence());
        let sector = range.start;
        let as_data =
            operation == Operation::Write { fua: false, preflush: false } && payload == Payload::None;
        let payload = if as_data { Payload::Bytes(vec![0; size as usize]) } else { payload };
        let packet = match operation {
            Operation::Discard => Packet::Trim(BlockZero { sector, block_id, sequence, flags, size }),
            Operation::WriteZeroes { .. } if self.connection.dialect.has(Features::WRITE_ZEROES) => {
                Packet::Zeroes(BlockZero { sector, block_id, sequence, flags, size })
            }
            Operation::WriteZeroes { .. } => {
                Packet::Trim(BlockZero { sector, block_id, sequence, flags, size })
            }
            _ => Packet::Data(BlockWrite { sector, block_id, sequence, flags }),
        };
        let data = matches!(packet, Packet::Data(_));
        if data {
            self.volumes[index].counters.sent_sectors += range.sectors();
        }
        let volume = self.volumes[index].number;
        // With protocol A the write counts as done at the peer when TCP has it.
        let asynchronous = self.connection.options.as_ref().is_some_and(|o| o.protocol == Protocol::A);
        let sent = asynchronous.then_some(Token(key.number()));
        self.send_with(SocketRole::Data, volume, packet, payload, data, None, sent);
    }

    /// Writes of zeroes travel as data where the peer would not take them otherwise: 8.4.11 expects a digest on P_ZEROES
    /// and drops the connection when there is none (wire spec 18.1), and the oldest know neither P_ZEROES nor P_TRIM.
    fn operation_on_the_wire(&self, operation: Operation) -> Operation {
        match operation {
            Operation::WriteZeroes { .. } if self.zeroes_travel_as_data() => {
                Operation::Write { fua: false, preflush: false }
            }
            other => other,
        }
    }

    /// What is spoken with the peer, or was with the last one: while it is away clients go on as before.
    const fn agreed_dialect(&self) -> wire::Dialect {
        wire::Dialect { version: self.connection.agreed_version, features: self.connection.agreed_features }
    }

    fn zeroes_travel_as_data(&self) -> bool {
        let dialect = self.agreed_dialect();
        let zeroes = dialect.has(Features::WRITE_ZEROES) && self.connection.own_integrity.is_none();
        self.connection.agreed_version > 0
            && !zeroes
            && (dialect.has(Features::WRITE_ZEROES) || !dialect.has(Features::TRIM))
    }

    /// The largest requests that can be mirrored, in bytes: with data, and discards and writes of zeroes. What is larger
    /// has to be cut before it gets here.
    pub fn request_limits(&self) -> (u32, u32) {
        if self.connection.agreed_version == 0 {
            return (1 << 20, 128 << 20);
        }
        let dialect = self.agreed_dialect();
        let data = dialect.request_bytes_max();
        (data, if self.zeroes_travel_as_data() { data } else { dialect.discard_bytes_max() })
    }

    /// The `dp_flags` of a write (io spec 5.2).
    fn write_flags(&self, index: usize, operation: Operation) -> DataFlags {
        let version = self.connection.dialect.version;
        let state = self.volumes[index].state.connection;
        let syncing = state.is_syncing();
        let protocol = self.connection.options.as_ref().map_or(Protocol::C, |options| options.protocol);
        let mut flags = DataFlags::RW_SYNC;
        if version >= 95 {
            flags = match operation {
                Operation::Write { fua, preflush } => {
                    flags.with(DataFlags::FUA, fua).with(DataFlags::FLUSH, preflush)
                }
                Operation::Discard => flags.with(DataFlags::DISCARD, true),
                Operation::WriteZeroes { may_unmap }
                    if self.connection.dialect.has(Features::WRITE_ZEROES) =>
                {
                    flags.with(DataFlags::ZEROES, true).with(DataFlags::DISCARD, may_unmap)
                }
                Operation::WriteZeroes { .. } => flags.with(DataFlags::DISCARD, true),
                _ => flags,
            };
        }
        flags = flags.with(DataFlags::MAY_SET_IN_SYNC, syncing);
        if version >= 100 {
            flags = flags
                .with(DataFlags::SEND_RECEIVE_ACK, protocol == Protocol::B)
                .with(DataFlags::SEND_WRITE_ACK, protocol == Protocol::C || syncing);
        }
        flags
    }

    pub(crate) fn send_data_request(&mut self, index: usize, key: Key, range: SectorRange) {
        let request = BlockRequest::new(range.start, BlockId(key.number()), range.bytes);
        self.send_on_data(index, Packet::DataRequest(request));
    }

    pub(crate) fn send_barrier(&mut self, number: u32) {
        self.send(SocketRole::Data, VolumeNumber(0), Packet::Barrier(wire::Barrier { number }));
    }

    pub(crate) fn send_barrier_ack(&mut self, number: u32, set_size: u32) {
        let ack = wire::BarrierAck { number, set_size };
        self.send(SocketRole::Meta, VolumeNumber(0), Packet::BarrierAck(ack));
    }

    pub(crate) fn send_out_of_sync(&mut self, index: usize, range: SectorRange) {
        self.send_on_data(index, Packet::OutOfSync(BlockRange::new(range.start, range.bytes)));
    }

    pub(crate) fn send_ping(&mut self) {
        self.send(SocketRole::Meta, VolumeNumber(0), Packet::Ping);
    }

    /// Acknowledges a write.
    pub(crate) fn send_ack(&mut self, index: usize, ack: Ack, sector: Sector, block_id: BlockId, size: u32) {
        let sequence = SequenceNumber(self.volumes[index].next_sequence());
        let block = BlockAck { sector, block_id, size, sequence };
        let packet = match ack {
            Ack::Received => Packet::ReceiveAck(block),
            Ack::Written => Packet::WriteAck(block),
            Ack::WrittenInSync => Packet::ResyncWriteAck(block),
            Ack::Failed => Packet::NegativeAck(block),
            Ack::Superseded => Packet::Superseded(block),
            Ack::Retry => Packet::RetryWrite(block),
        };
        self.send_on_meta(index, packet);
    }

    /// Refuses a read: of an application, or of a resync or verify.
    pub(crate) fn send_negative_reply(&mut self, index: usize, request: &BlockRequest, resync: bool) {
        let sequence = SequenceNumber(self.volumes[index].next_sequence());
        let block =
            BlockAck { sector: request.sector, block_id: request.block_id, size: request.size, sequence };
        let packet =
            if resync { Packet::NegativeResyncDataReply(block) } else { Packet::NegativeDataReply(block) };
        self.send_on_meta(index, packet);
    }

    /// The data of a read: of an application, or of a resync.
    pub(crate) fn send_data_reply(
        &mut self,
        index: usize,
        request: &BlockRequest,
        resync: bool,
        buffer: crate::interface::Buffer,
    ) {
        let reply = BlockReply { sector: request.sector, block_id: request.block_id };
        let packet = if resync { Packet::ResyncDataReply(reply) } else { Packet::DataReply(reply) };
        let volume = self.volumes[index].number;
        self.volumes[index].counters.sent_sectors += request.range().sectors();
        let payload = Payload::Buffer { buffer, bytes: request.size };
        self.send_with(SocketRole::Data, volume, packet, payload, true, None, None);
    }

    /// P_STATE.
    pub(crate) fn send_state_word(&mut self, index: usize, state: VolumeState) {
        if self.volumes[index].resync.sync_uuid_due.is_some() {
            // P_SYNC_UUID goes first (wire spec 14).
            self.volumes[index].resync.state_due = true;
            return;
        }
        // The kernel answers a disk that comes only where it has been told that there was none.
        let attaching = state.disk == DiskState::Attaching;
        let disk = if attaching { DiskState::Diskless } else { state.disk };
        let state = VolumeState { disk, ..state };
        if let Some(word) = wire::StateWord::unpack(state.to_raw()) {
            self.send_on_data(index, Packet::State(word));
        }
    }

    /// The present state.
    pub(crate) fn send_current_state(&mut self, index: usize) {
        let state = self.volumes[index].state;
        self.send_state_word(index, state);
    }

    /// P_UUIDS, if there is a disk.
    pub(crate) fn send_uuids(&mut self, index: usize, extra_flags: u64) {
        if self.connection.stage != crate::connection::Stage::Established {
            return;
        }
        let Some(set) = self.generations(index) else { return };
        let volume = &mut self.volumes[index];
        if volume.state.disk < DiskState::Negotiating {
            return;
        }
        let dirty_bits = volume.set_bits();
        volume.told_bits = dirty_bits;
        let inconsistent = volume.state.disk == DiskState::Negotiating
            && volume.remembered.is_some_and(|remembered| remembered.disk == DiskState::Inconsistent);
        let mut flags = extra_flags;
        for (flag, condition) in [
            (uuid_flag::DISCARD_MY_DATA, volume.flags.discard_my_data),
            (uuid_flag::CRASHED_PRIMARY, volume.flags.crashed_primary),
            (uuid_flag::INCONSISTENT, inconsistent),
        ] {
            flags |= if condition { flag } else { 0 };
        }
        let uuids = wire::Uuids {
            current: set.current,
            bitmap: set.bitmap,
            history: set.history,
            dirty_bits,
            flags: UuidFlags(flags),
        };
        self.send_on_data(index, Packet::Uuids(uuids));
    }

    pub(crate) fn send_sync_uuid(&mut self, index: usize, identifier: GenerationId) {
        self.send_on_data(index, Packet::SyncUuid(identifier));
    }

    /// P_SIZES (wire spec 6.5). `ask`: the peer shall answer.
    pub(crate) fn send_sizes(&mut self, index: usize, ask: bool, flags: u16) {
        let volume = &self.volumes[index];
        let disk = volume.disk.as_ref().filter(|_| volume.state.disk >= DiskState::Negotiating);
        let protocol_max = self.connection.dialect.request_bytes_max();
        let limits = disk.map_or_else(wire::QueueLimits::default, |disk| wire::QueueLimits {
            physical_block_size: disk.properties.physical_block_bytes,
            logical_block_size: disk.properties.logical_block_bytes,
            io_min: disk.properties.physical_block_bytes,
            discard_enabled: disk.properties.discard_granularity_bytes > 0,
            ..wire::QueueLimits::default()
        });
        let disk_size = disk.map_or(Sector(0), |disk| disk.layout.max_capacity(disk.properties.backing_size));
        let sizes = wire::Sizes {
            disk_size,
            user_size: disk.map_or(Sector(0), |disk| Sector(disk.options.size_sectors)),
            current_size: if ask { Sector(0) } else { volume.size },
            max_bio_size: disk.map_or(1 << 20, |disk| disk.properties.max_request_bytes).min(protocol_max),
            queue_order_type: 0,
            flags: wire::SizesFlags(flags),
            queue_limits: self.connection.dialect.has(Features::WRITE_SAME).then_some(limits),
        };
        self.volumes[index].told_size = disk_size;
        self.send_on_data(index, Packet::Sizes(sizes));
    }

    /// P_SYNC_PARAM or P_SYNC_PARAM89.
    pub(crate) fn send_sync_parameters(&mut self, index: usize) {
        let name = |name: &str| wire::AlgorithmName::new(name).unwrap_or(wire::AlgorithmName::NONE);
        let (verify, checksum) = self
            .connection
            .options
            .as_ref()
            .map_or((String::new(), String::new()), |o| (o.verify_alg.clone(), o.csums_alg.clone()));
        let mut parameters = wire::SyncParameters {
            verify_algorithm: name(&verify),
            checksum_algorithm: name(&checksum),
            ..wire::SyncParameters::default()
        };
        if let Some(disk) = &self.volumes[index].disk {
            parameters.resync_rate = disk.options.resync_rate_kib;
            parameters.controller = Some(wire::ControllerParameters {
                plan_ahead: disk.options.c_plan_ahead,
                delay_target: disk.options.c_delay_target,
                fill_target: disk.options.c_fill_target_sectors,
                max_rate: disk.options.c_max_rate_kib,
            });
        }
        self.send_on_data(index, Packet::SyncParameters(Box::new(parameters)));
    }

    /// P_PROTOCOL, or P_PROTOCOL_UPDATE.
    pub(crate) fn send_protocol(&mut self, update: bool) {
        let Some(options) = &self.connection.options else { return };
        let policy = |policy: crate::interface::AfterSplitBrain| {
            wire::AfterSplitBrain::from_code(policy as u32).unwrap_or(wire::AfterSplitBrain::Disconnect)
        };
        let flags = wire::ConnectionFlags::NONE
            .with(wire::ConnectionFlags::DISCARD_MY_DATA, options.discard_my_data)
            .with(wire::ConnectionFlags::DRY_RUN, options.tentative);
        let parameters = Box::new(wire::ProtocolParameters {
            protocol: match options.protocol {
                Protocol::A => wire::ReplicationProtocol::A,
                Protocol::B => wire::ReplicationProtocol::B,
                Protocol::C => wire::ReplicationProtocol::C,
            },
            after_split_brain_0: policy(options.after_sb_0pri),
            after_split_brain_1: policy(options.after_sb_1pri),
            after_split_brain_2: policy(options.after_sb_2pri),
            flags,
            two_primaries: options.allow_two_primaries,
            integrity: wire::AlgorithmName::new(&options.data_integrity_alg)
                .unwrap_or(wire::AlgorithmName::NONE),
        });
        let packet = if update { Packet::ProtocolUpdate(parameters) } else { Packet::Protocol(parameters) };
        self.send(SocketRole::Data, VolumeNumber(0), packet);
    }

    /// Asks the peer to agree to a change, of a volume or (`None`) of the connection.
    pub(crate) fn send_change_request(&mut self, index: Option<usize>, request: StateRequest) {
        let (mask, value) = request.to_raw();
        let Ok(change) = wire::StateChange::unpack(mask, value) else { return };
        match index {
            Some(index) => self.send_on_data(index, Packet::StateChangeRequest(change)),
            None => {
                self.send(SocketRole::Data, VolumeNumber(0), Packet::ConnectionStateChangeRequest(change));
            }
        }
    }

    /// Whether the peer's last words or the own role make this node Primary.
    pub(crate) fn is_primary(&self, index: usize) -> bool {
        self.volumes[index].state.role == Role::Primary
    }
}
