//! A peer that says anything at any time: the engine answers, drops the connection or gives it up, and never falls over.

use udrbd_engine::interface::{Command, Event, NetOptions};
use udrbd_units::{ConnectionState, DiskState, GenerationId, Sector, VolumeNumber};
use udrbd_wire as wire;
use wire::{
    BlockAck, BlockId, BlockRange, BlockReply, BlockRequest, BlockWrite, BlockZero, Packet, SequenceNumber,
};

use crate::harness::Pair;
use crate::{both, synced};

/// Numbers that are likely to hit something, and some that hit nothing.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn sector(&mut self) -> Sector {
        Sector(match self.roll(6) {
            0 => u64::MAX - self.roll(9),
            1 => 40_000 + self.roll(2000),
            2 => 1 << 41,
            _ => self.roll(500) * 8,
        })
    }

    fn size(&mut self) -> u32 {
        [0, 1, 512, 4096, 8192, 1 << 20, (128 << 20) - 512, 128 << 20][self.roll(8) as usize]
    }

    fn block_id(&mut self) -> BlockId {
        match self.roll(5) {
            0 => BlockId::SYNCER,
            1 => BlockId(0),
            2 => BlockId::OUT_OF_SYNC,
            _ => BlockId((1 + self.roll(40)) << 24 | self.roll(8)),
        }
    }

    fn generation(&mut self) -> GenerationId {
        GenerationId([0, 4, 5, u64::MAX, self.0][self.roll(5) as usize])
    }

    fn sequence(&mut self) -> SequenceNumber {
        SequenceNumber([0, 1, 2, 100, u32::MAX, 1 << 31][self.roll(6) as usize])
    }

    fn ack(&mut self) -> BlockAck {
        let (sector, block_id) = (self.sector(), self.block_id());
        BlockAck { sector, block_id, size: self.size(), sequence: self.sequence() }
    }

    fn request(&mut self) -> BlockRequest {
        let (sector, block_id) = (self.sector(), self.block_id());
        BlockRequest::new(sector, block_id, self.size())
    }

    fn zero(&mut self) -> BlockZero {
        BlockZero {
            sector: self.sector(),
            block_id: self.block_id(),
            sequence: self.sequence(),
            flags: wire::DataFlags(self.roll(0x800) as u32),
            size: self.size(),
        }
    }

    fn state(&mut self) -> Option<wire::StateWord> {
        wire::StateWord::unpack(self.roll(1 << 23) as u32)
    }

    fn data_packet(&mut self) -> Option<Packet> {
        Some(match self.roll(22) {
            0 => Packet::Data(BlockWrite {
                sector: self.sector(),
                block_id: self.block_id(),
                sequence: self.sequence(),
                flags: wire::DataFlags(self.roll(0x800) as u32),
            }),
            1 => Packet::DataReply(BlockReply { sector: self.sector(), block_id: self.block_id() }),
            2 => Packet::ResyncDataReply(BlockReply { sector: self.sector(), block_id: BlockId::SYNCER }),
            3 => Packet::Trim(self.zero()),
            4 => Packet::Zeroes(self.zero()),
            5 => Packet::Barrier(wire::Barrier { number: self.roll(5) as u32 }),
            6 => Packet::UnplugRemote,
            7 => Packet::DataRequest(self.request()),
            8 => Packet::ResyncDataRequest(self.request()),
            9 => Packet::ResyncThinRequest(self.request()),
            10 => Packet::ChecksumResyncRequest(self.request()),
            11 => Packet::VerifyRequest(self.request()),
            12 => Packet::VerifyReply(self.request()),
            13 => Packet::OutOfSync(BlockRange::new(self.sector(), self.size())),
            14 => Packet::ResyncDeallocated(BlockRange::new(self.sector(), self.size())),
            15 => Packet::Bitmap,
            16 => Packet::StateChangeRequest(
                wire::StateChange::unpack(self.roll(1 << 23) as u32, self.roll(1 << 23) as u32).ok()?,
            ),
            17 => Packet::ConnectionStateChangeRequest(
                wire::StateChange::unpack(self.roll(1 << 17) as u32, self.roll(1 << 17) as u32).ok()?,
            ),
            18 => Packet::State(self.state()?),
            19 => Packet::Uuids(wire::Uuids {
                current: self.generation(),
                bitmap: self.generation(),
                history: [self.generation(), self.generation()],
                dirty_bits: self.roll(u64::MAX),
                flags: wire::UuidFlags(self.roll(16)),
            }),
            20 => Packet::SyncUuid(self.generation()),
            _ => Packet::Sizes(wire::Sizes {
                disk_size: self.sector(),
                user_size: self.sector(),
                current_size: self.sector(),
                max_bio_size: self.size(),
                queue_order_type: 0,
                flags: wire::SizesFlags(self.roll(4) as u16),
                queue_limits: None,
            }),
        })
    }

    fn meta_packet(&mut self) -> Packet {
        match self.roll(17) {
            0 => Packet::ReceiveAck(self.ack()),
            1 => Packet::WriteAck(self.ack()),
            2 => Packet::ResyncWriteAck(self.ack()),
            3 => Packet::Superseded(self.ack()),
            4 => Packet::RetryWrite(self.ack()),
            5 => Packet::NegativeAck(self.ack()),
            6 => Packet::NegativeDataReply(self.ack()),
            7 => Packet::NegativeResyncDataReply(self.ack()),
            8 => Packet::VerifyResult(self.ack()),
            9 => Packet::ResyncIsInSync(self.ack()),
            10 => Packet::ResyncCancel(self.ack()),
            11 => Packet::BarrierAck(wire::BarrierAck {
                number: self.roll(4) as u32,
                set_size: self.roll(3) as u32,
            }),
            12 => Packet::Ping,
            13 => Packet::PingAck,
            14 => Packet::StateChangeReply(wire::StateReturnCode(self.roll(30) as i32 - 25)),
            _ => Packet::ConnectionStateChangeReply(wire::StateReturnCode(self.roll(30) as i32 - 25)),
        }
    }
}

fn say_anything(pair: &mut Pair, node: usize, dice: &mut Dice) {
    let data = dice.roll(2) == 0;
    let Some(socket) = pair.socket(node, data) else { return };
    let packet = if data { dice.data_packet() } else { Some(dice.meta_packet()) };
    let Some(packet) = packet else { return };
    let payload_bytes = match packet {
        Packet::Data(_) | Packet::DataReply(_) | Packet::ResyncDataReply(_) => 512 << dice.roll(5),
        _ => 0,
    };
    let payload = (payload_bytes > 0).then(|| pair.new_buffer(node, vec![0; payload_bytes as usize]));
    let bytes =
        if matches!(packet, Packet::Bitmap) { vec![0xff; 8 * dice.roll(511) as usize] } else { Vec::new() };
    let volume = VolumeNumber(dice.roll(20).saturating_sub(18) as u16);
    let event = Event::Packet {
        socket,
        volume,
        packet,
        payload,
        payload_bytes,
        bytes,
        digest: None,
        intact: dice.roll(20) != 0,
    };
    pair.inject(node, event);
}

#[test]
fn a_peer_that_says_anything_does_no_harm() {
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let mut pair = synced();
        for round in 0..30 {
            for _ in 0..1 + dice.roll(3) {
                let node = dice.roll(2) as usize;
                say_anything(&mut pair, node, &mut dice);
            }
            if dice.roll(3) == 0 {
                let write = udrbd_engine::interface::Operation::Write { fua: false, preflush: false };
                pair.submit(0, write, dice.roll(500) * 8, &[round; 4096], 4096);
            }
            pair.settle();
            if dice.roll(4) == 0 {
                pair.pass(1);
            }
            for node in 0..2 {
                let alone = pair.nodes[node].status().connection == ConnectionState::StandAlone;
                if alone && dice.roll(3) == 0 {
                    let options = Box::new(NetOptions::default());
                    let _ = pair.try_command(node, Command::Connect(options));
                }
            }
        }
        // Both still answer.
        for node in 0..2 {
            let _ = pair.try_command(node, Command::Disconnect { force: true });
            assert!(pair.nodes[node].status().disk <= DiskState::UpToDate);
        }
        let _ = both(&pair, ConnectionState::StandAlone, DiskState::UpToDate);
    }
}
