//! Any packet, with any dialect, digest and payload that go with it.

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use udrbd_units::{ConnectionState, DiskState, GenerationId, Role, Sector, VolumeNumber};
use udrbd_wire::bitmap::RunLengthEncoding;
use udrbd_wire::{
    AfterSplitBrain, AlgorithmName, AuthChallenge, AuthResponse, Barrier, BarrierAck, BlockAck, BlockId,
    BlockRange, BlockReply, BlockRequest, BlockWrite, BlockZero, Command, ConnectionFeatures,
    ConnectionFlags, ControllerParameters, DATA_BYTES_MAX, DataFlags, DelayProbe, Dialect, DigestAlgorithm,
    Expected, Extensions, Features, Packet, ProtocolParameters, QueueLimits, Reception, ReplicationProtocol,
    SequenceNumber, Sizes, SizesFlags, StateChange, StateReturnCode, StateWord, SyncParameters, UuidFlags,
    Uuids, ZERO_BYTES_MAX,
};

/// A packet as it is given to the sending side.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) packet: Packet,
    pub(crate) dialect: Dialect,
    pub(crate) volume: VolumeNumber,
    pub(crate) integrity: Option<DigestAlgorithm>,
    pub(crate) digest: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Sent {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.packet.encode(&mut out, self.dialect, self.volume, &self.digest, self.payload.len() as u32);
        out.extend_from_slice(&self.payload);
        out
    }

    /// What the receiver must know.
    pub(crate) fn reception(&self) -> Reception {
        Reception { dialect: self.dialect, integrity: self.integrity }
    }

    pub(crate) fn expected(&self) -> Expected {
        let command = self.packet.command(self.dialect);
        match &self.packet {
            Packet::InitialData | Packet::InitialMeta => Expected::Initial,
            Packet::ConnectionFeatures(_) => Expected::Features,
            Packet::AuthChallenge(_) => Expected::AuthChallenge,
            Packet::AuthResponse(response) => {
                let bytes = response.0.as_bytes().len();
                let algorithm = DigestAlgorithm::ALL.iter().find(|algorithm| algorithm.bytes() == bytes);
                Expected::AuthResponse(*algorithm.expect("a digest's length"))
            }
            _ => Expected::Established(command.socket()),
        }
    }
}

pub(crate) fn dialect() -> impl Strategy<Value = Dialect> {
    let version = prop_oneof![86..=101_u32, Just(101)];
    (version, 0..16_u32).prop_map(|(version, features)| Dialect { version, features: Features(features) })
}

fn algorithm() -> impl Strategy<Value = DigestAlgorithm> {
    select(DigestAlgorithm::ALL)
}

/// Everything that goes on the wire for one packet.
pub(crate) fn sent() -> impl Strategy<Value = Sent> {
    (packet(), dialect(), any::<u16>(), option::of(algorithm()), 0..=2048_usize, any::<u8>()).prop_map(
        |(mut packet, dialect, volume, integrity, units, filling)| {
            if let Packet::DataRequest(request)
            | Packet::ResyncDataRequest(request)
            | Packet::ResyncThinRequest(request)
            | Packet::ChecksumResyncRequest(request)
            | Packet::VerifyRequest(request)
            | Packet::VerifyReply(request) = &mut packet
            {
                request.size = request.size.min(dialect.data_bytes_max());
            }
            let command = packet.command(dialect);
            let digest_bytes = match command {
                Command::Data | Command::DataReply | Command::ResyncDataReply => integrity,
                Command::VerifyReply | Command::ChecksumResyncRequest => integrity,
                _ => None,
            };
            let digest = vec![filling; digest_bytes.map_or(0, DigestAlgorithm::bytes)];
            let payload_bytes = match command {
                Command::Data => (units * 512).min(dialect.data_bytes_max() as usize),
                Command::DataReply | Command::ResyncDataReply => {
                    (units * 512).clamp(512, dialect.data_bytes_max() as usize)
                }
                Command::Bitmap => (units * 8).min(dialect.bitmap_bytes_max()),
                Command::CompressedBitmap => (units + 1).min(dialect.bitmap_bytes_max() - 1),
                _ => 0,
            };
            let payload = vec![filling; payload_bytes];
            Sent { packet, dialect, volume: VolumeNumber(volume), integrity, digest, payload }
        },
    )
}

fn name() -> impl Strategy<Value = AlgorithmName> {
    "[a-z0-9()-]{0,63}".prop_map(|name| AlgorithmName::new(&name).unwrap())
}

fn flag() -> impl Strategy<Value = bool> {
    any::<bool>()
}

prop_compose! {
    fn write()(sector: u64, block_id: u64, sequence: u32, flags: u32) -> BlockWrite {
        BlockWrite {
            sector: Sector(sector),
            block_id: BlockId(block_id),
            sequence: SequenceNumber(sequence),
            flags: DataFlags(flags),
        }
    }
}

prop_compose! {
    fn zero()(write in write(), units in 1..=ZERO_BYTES_MAX / 512) -> BlockZero {
        let BlockWrite { sector, block_id, sequence, flags } = write;
        BlockZero { sector, block_id, sequence, flags, size: units * 512 }
    }
}

prop_compose! {
    fn request()(sector: u64, block_id: u64, units in 1..=DATA_BYTES_MAX / 512, padding: u32) -> BlockRequest {
        BlockRequest { sector: Sector(sector), block_id: BlockId(block_id), size: units * 512, padding }
    }
}

prop_compose! {
    fn range()(sector: u64, units in 1..=ZERO_BYTES_MAX / 512, padding: u32) -> BlockRange {
        BlockRange { sector: Sector(sector), size: units * 512, padding }
    }
}

prop_compose! {
    fn ack()(sector: u64, block_id: u64, size: u32, sequence: u32) -> BlockAck {
        BlockAck {
            sector: Sector(sector),
            block_id: BlockId(block_id),
            size,
            sequence: SequenceNumber(sequence),
        }
    }
}

prop_compose! {
    fn state()(
        (role, peer_role) in (select(Role::ALL), select(Role::ALL)),
        connection in select(ConnectionState::ALL),
        (disk, peer_disk) in (select(DiskState::ALL), select(DiskState::ALL)),
        flags in [flag(), flag(), flag(), flag(), flag(), flag()],
    ) -> StateWord {
        let [suspended, after_paused, peer_paused, user_paused, suspended_no_data, suspended_fencing] = flags;
        StateWord {
            role, peer_role, connection, disk, peer_disk, suspended, after_paused, peer_paused, user_paused,
            suspended_no_data, suspended_fencing,
        }
    }
}

fn change() -> impl Strategy<Value = StateChange> {
    (state(), any::<[bool; 11]>()).prop_map(|(state, parts)| StateChange {
        role: parts[0].then_some(state.role),
        peer_role: parts[1].then_some(state.peer_role),
        connection: parts[2].then_some(state.connection),
        disk: parts[3].then_some(state.disk),
        peer_disk: parts[4].then_some(state.peer_disk),
        suspended: parts[5].then_some(state.suspended),
        after_paused: parts[6].then_some(state.after_paused),
        peer_paused: parts[7].then_some(state.peer_paused),
        user_paused: parts[8].then_some(state.user_paused),
        suspended_no_data: parts[9].then_some(state.suspended_no_data),
        suspended_fencing: parts[10].then_some(state.suspended_fencing),
    })
}

fn uuids() -> impl Strategy<Value = Uuids> {
    any::<[u64; 6]>().prop_map(|fields| Uuids {
        current: GenerationId(fields[0]),
        bitmap: GenerationId(fields[1]),
        history: [GenerationId(fields[2]), GenerationId(fields[3])],
        dirty_bits: fields[4],
        flags: UuidFlags(fields[5]),
    })
}

fn limits() -> impl Strategy<Value = QueueLimits> {
    (any::<[u32; 5]>(), any::<[bool; 3]>()).prop_map(|(sizes, flags)| QueueLimits {
        physical_block_size: sizes[0],
        logical_block_size: sizes[1],
        alignment_offset: sizes[2],
        io_min: sizes[3],
        io_opt: sizes[4],
        discard_enabled: flags[0],
        discard_zeroes_data: flags[1],
        write_same_capable: flags[2],
    })
}

prop_compose! {
    fn sizes()(
        sizes: [u64; 3],
        max_bio_size: u32,
        queue_order_type: u16,
        flags: u16,
        queue_limits in option::of(limits()),
    ) -> Sizes {
        let [disk_size, user_size, current_size] = sizes.map(Sector);
        Sizes {
            disk_size, user_size, current_size, max_bio_size, queue_order_type, flags: SizesFlags(flags), queue_limits,
        }
    }
}

prop_compose! {
    fn protocol()(
        protocol in select(ReplicationProtocol::ALL),
        after_split_brain_0 in select(AfterSplitBrain::ALL),
        after_split_brain_1 in select(AfterSplitBrain::ALL),
        after_split_brain_2 in select(AfterSplitBrain::ALL),
        flags: u32,
        two_primaries: bool,
        integrity in name(),
    ) -> Box<ProtocolParameters> {
        Box::new(ProtocolParameters {
            protocol, after_split_brain_0, after_split_brain_1, after_split_brain_2,
            flags: ConnectionFlags(flags), two_primaries, integrity,
        })
    }
}

prop_compose! {
    fn sync_parameters()(
        resync_rate: u32,
        verify_algorithm in name(),
        checksum_algorithm in name(),
        controller in option::of(any::<[u32; 4]>()),
    ) -> Packet {
        let controller = controller.map(|fields| ControllerParameters {
            plan_ahead: fields[0],
            delay_target: fields[1],
            fill_target: fields[2],
            max_rate: fields[3],
        });
        Packet::SyncParameters(Box::new(SyncParameters { resync_rate, verify_algorithm, checksum_algorithm, controller }))
    }
}

fn features() -> impl Strategy<Value = Packet> {
    any::<[u32; 4]>().prop_map(|fields| {
        let [protocol_min, protocol_max, features, extensions] = fields;
        Packet::ConnectionFeatures(ConnectionFeatures {
            protocol_min,
            protocol_max,
            features: Features(features),
            extensions: Extensions(extensions),
        })
    })
}

fn authentication() -> impl Strategy<Value = Packet> {
    prop_oneof![
        any::<[u8; 32]>().prop_map(|half| {
            let mut random = [1; AuthChallenge::BYTES];
            random[..32].copy_from_slice(&half);
            Packet::AuthChallenge(Box::new(AuthChallenge::new(random)))
        }),
        (algorithm(), any::<u64>()).prop_map(|(algorithm, seed)| {
            let digest = algorithm.digest(&seed.to_be_bytes());
            Packet::AuthResponse(Box::new(AuthResponse(digest)))
        }),
    ]
}

fn block_packet() -> impl Strategy<Value = Packet> {
    let reply = || write().prop_map(|w| BlockReply { sector: w.sector, block_id: w.block_id });
    prop_oneof![
        write().prop_map(Packet::Data),
        reply().prop_map(Packet::DataReply),
        reply().prop_map(Packet::ResyncDataReply),
        zero().prop_map(Packet::Trim),
        zero().prop_map(Packet::Zeroes),
        any::<u32>().prop_map(|number| Packet::Barrier(Barrier { number })),
        Just(Packet::UnplugRemote),
        request().prop_map(Packet::DataRequest),
        request().prop_map(Packet::ResyncDataRequest),
        request().prop_map(Packet::ResyncThinRequest),
        request().prop_map(Packet::ChecksumResyncRequest),
        request().prop_map(Packet::VerifyRequest),
        request().prop_map(Packet::VerifyReply),
        range().prop_map(Packet::OutOfSync),
        range().prop_map(Packet::ResyncDeallocated),
        Just(Packet::Bitmap),
        (any::<bool>(), any::<u16>())
            .prop_map(|(set, bits)| Packet::CompressedBitmap(RunLengthEncoding::new(set, bits.into()))),
    ]
}

fn meta_packet() -> impl Strategy<Value = Packet> {
    prop_oneof![
        ack().prop_map(Packet::ReceiveAck),
        ack().prop_map(Packet::WriteAck),
        ack().prop_map(Packet::ResyncWriteAck),
        ack().prop_map(Packet::Superseded),
        ack().prop_map(Packet::RetryWrite),
        ack().prop_map(Packet::NegativeAck),
        ack().prop_map(Packet::NegativeDataReply),
        ack().prop_map(Packet::NegativeResyncDataReply),
        ack().prop_map(Packet::VerifyResult),
        ack().prop_map(Packet::ResyncIsInSync),
        ack().prop_map(Packet::ResyncCancel),
        any::<(u32, u32)>()
            .prop_map(|(number, set_size)| Packet::BarrierAck(BarrierAck { number, set_size })),
        Just(Packet::Ping),
        Just(Packet::PingAck),
        any::<i32>().prop_map(|code| Packet::StateChangeReply(StateReturnCode(code))),
        any::<i32>().prop_map(|code| Packet::ConnectionStateChangeReply(StateReturnCode(code))),
    ]
}

fn state_packet() -> impl Strategy<Value = Packet> {
    prop_oneof![
        change().prop_map(Packet::StateChangeRequest),
        change().prop_map(Packet::ConnectionStateChangeRequest),
        state().prop_map(Packet::State),
        uuids().prop_map(Packet::Uuids),
        any::<u64>().prop_map(|uuid| Packet::SyncUuid(GenerationId(uuid))),
        sizes().prop_map(Packet::Sizes),
        sync_parameters(),
        protocol().prop_map(Packet::Protocol),
        protocol().prop_map(Packet::ProtocolUpdate),
        Just(Packet::InitialData),
        Just(Packet::InitialMeta),
        features(),
        authentication(),
        any::<(u32, u32)>()
            .prop_map(|(sequence, offset)| Packet::DelayProbe(DelayProbe { sequence, offset })),
    ]
}

/// Any packet; every variant of [`Packet`] is in one of the three groups.
pub(crate) fn packet() -> impl Strategy<Value = Packet> {
    prop_oneof![block_packet(), meta_packet(), state_packet()]
}
