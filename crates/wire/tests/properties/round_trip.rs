//! What is sent is what is received.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use udrbd_units::VolumeNumber;
use udrbd_wire::{
    AlgorithmName, Command, ConnectionFeatures, Dialect, Extensions, Features, HEADER_BYTES_MAX, Incoming,
    Packet, SMALL_BYTES_MAX, Scope,
};

use crate::packets::{Sent, packet, sent};

/// The packet without what does not travel in its dialect.
fn carried(sent: &Sent) -> Packet {
    let version = sent.dialect.version;
    match sent.packet.clone() {
        Packet::ConnectionStateChangeRequest(change) if version < 100 => Packet::StateChangeRequest(change),
        Packet::ConnectionStateChangeReply(code) if version < 100 => Packet::StateChangeReply(code),
        Packet::Sizes(mut sizes) => {
            let travels = sent.dialect.has(Features::WRITE_SAME);
            sizes.queue_limits = travels.then(|| sizes.queue_limits.unwrap_or_default());
            Packet::Sizes(sizes)
        }
        Packet::Protocol(mut parameters) if version < 87 => {
            parameters.integrity = AlgorithmName::NONE;
            Packet::Protocol(parameters)
        }
        Packet::ProtocolUpdate(mut parameters) if version < 87 => {
            parameters.integrity = AlgorithmName::NONE;
            Packet::ProtocolUpdate(parameters)
        }
        Packet::SyncParameters(mut parameters) => {
            if version < 88 {
                parameters.verify_algorithm = AlgorithmName::NONE;
            }
            if version < 89 {
                parameters.checksum_algorithm = AlgorithmName::NONE;
            }
            let controller = parameters.controller.unwrap_or_default();
            parameters.controller = (version >= 95).then_some(controller);
            Packet::SyncParameters(parameters)
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_packet_comes_back(sent in sent()) {
        let bytes = sent.bytes();
        let (reception, expected) = (sent.reception(), sent.expected());
        let decoded = Incoming::decode_header(&bytes, expected, &reception).unwrap();
        let (incoming, header_bytes) = decoded.expect("whole header");
        prop_assert_eq!(header_bytes + incoming.small_bytes() + incoming.payload_bytes, bytes.len());
        prop_assert!(header_bytes <= HEADER_BYTES_MAX && incoming.small_bytes() <= SMALL_BYTES_MAX);
        let (structure, tail) = bytes[header_bytes..].split_at(incoming.packet_bytes);
        prop_assert_eq!(&tail[..incoming.digest_bytes], &sent.digest[..]);
        prop_assert_eq!(&tail[incoming.digest_bytes..], &sent.payload[..]);
        prop_assert_eq!(incoming.decode(structure, sent.dialect).unwrap(), carried(&sent));
        let has_volume = header_bytes == 16 && incoming.command.scope() == Scope::Volume;
        prop_assert_eq!(incoming.volume, if has_volume { sent.volume } else { VolumeNumber(0) });
        // Before the whole header is there nothing is decided.
        for length in 0..header_bytes {
            prop_assert_eq!(Incoming::decode_header(&bytes[..length], expected, &reception), Ok(None));
        }
    }

    #[test]
    fn a_warm_buffer_does_not_grow(sent in sent()) {
        let mut out = Vec::with_capacity(HEADER_BYTES_MAX + SMALL_BYTES_MAX);
        let (room, place) = (out.capacity(), out.as_ptr());
        sent.packet.encode(&mut out, sent.dialect, sent.volume, &sent.digest, sent.payload.len() as u32);
        prop_assert_eq!((out.capacity(), out.as_ptr()), (room, place));
    }

    #[test]
    fn two_nodes_agree_on_the_same(own: [u32; 3], peer: [u32; 3]) {
        let announce = |fields: [u32; 3]| ConnectionFeatures {
            protocol_min: 80 + fields[0] % 30,
            protocol_max: 80 + fields[0] % 30 + fields[1] % 30,
            features: Features(fields[2]),
            extensions: Extensions::NONE,
        };
        let (own, peer) = (announce(own), announce(peer));
        prop_assert_eq!(own.agree(peer).ok(), peer.agree(own).ok());
    }
}

/// The generator above leaves no packet out.
#[test]
fn every_command_is_tried() {
    let mut runner = TestRunner::deterministic();
    let mut commands = BTreeSet::new();
    for _ in 0..5000 {
        let packet = packet().new_tree(&mut runner).unwrap().current();
        let old = Dialect { version: 88, features: Features::NONE };
        commands.insert(packet.command(Dialect::NEWEST).code());
        commands.insert(packet.command(old).code());
    }
    assert_eq!(commands, Command::ALL.iter().map(|command| command.code()).collect());
}
