//! Whatever arrives is a packet or an error: no panic, no length beyond the limits.

use proptest::prelude::*;
use proptest::sample::select;
use udrbd_units::VolumeNumber;
use udrbd_wire::{
    Command, DATA_BYTES_MAX, DigestAlgorithm, Expected, Incoming, Reception, SMALL_BYTES_MAX, Socket,
};

use crate::packets::{dialect, sent};

const MAGICS: &[&[u8]] = &[&[0x83, 0x74, 0x02, 0x67], &[0x83, 0x5a], &[0x86, 0x20, 0xec, 0x20, 0, 0]];

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        Just(Expected::Initial),
        Just(Expected::Features),
        Just(Expected::AuthChallenge),
        select(DigestAlgorithm::ALL).prop_map(Expected::AuthResponse),
        Just(Expected::Established(Socket::Data)),
        Just(Expected::Established(Socket::Meta)),
    ]
}

fn reception() -> impl Strategy<Value = Reception> {
    let integrity = proptest::option::of(select(DigestAlgorithm::ALL));
    (dialect(), integrity).prop_map(|(dialect, integrity)| Reception { dialect, integrity })
}

/// Decodes as a receiver would and checks what it would have to make room for. The error's text is made too.
fn receive(bytes: &[u8], expected: Expected, reception: &Reception) -> Result<(), TestCaseError> {
    let (incoming, header_bytes) = match Incoming::decode_header(bytes, expected, reception) {
        Ok(Some(decoded)) => decoded,
        Ok(None) => {
            prop_assert!(bytes.len() < 16);
            return Ok(());
        }
        Err(error) => {
            prop_assert!(!error.to_string().is_empty());
            return Ok(());
        }
    };
    prop_assert!(incoming.small_bytes() <= SMALL_BYTES_MAX);
    prop_assert!(incoming.payload_bytes <= DATA_BYTES_MAX as usize);
    let rest = &bytes[header_bytes..];
    let structure = &rest[..rest.len().min(incoming.packet_bytes)];
    if let Err(error) = incoming.decode(structure, reception.dialect) {
        prop_assert!(!error.to_string().is_empty());
    } else {
        prop_assert_eq!(structure.len(), incoming.packet_bytes, "decoded from a part of it");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), expected in expected(), reception in reception()) {
        receive(&bytes, expected, &reception)?;
    }

    #[test]
    fn random_lengths_and_bodies_behind_a_right_magic(
        magic in select(MAGICS),
        command in select(Command::ALL),
        length in prop_oneof![any::<u32>(), 0..5000_u32],
        body in prop::collection::vec(any::<u8>(), 0..200),
        expected in expected(),
        reception in reception(),
    ) {
        let mut bytes = magic.to_vec();
        bytes.extend(command.code().to_be_bytes());
        match magic.len() {
            4 => bytes.extend((length as u16).to_be_bytes()),
            2 => bytes.extend(length.to_be_bytes()),
            _ => bytes.extend([length.to_be_bytes(), [0; 4]].concat()),
        }
        bytes.extend(body);
        receive(&bytes, expected, &reception)?;
    }

    #[test]
    fn flipped_bits(sent in sent(), flips in prop::collection::vec(any::<prop::sample::Index>(), 1..8)) {
        let mut bytes = sent.bytes();
        bytes.truncate(16 + SMALL_BYTES_MAX);
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        receive(&bytes, sent.expected(), &sent.reception())?;
    }

    #[test]
    fn cut_off(sent in sent(), at in any::<prop::sample::Index>()) {
        let bytes = sent.bytes();
        receive(&bytes[..at.index(bytes.len())], sent.expected(), &sent.reception())?;
    }

    /// The structure has a length no header of its kind lets through.
    #[test]
    fn structures_of_any_length(
        command in select(Command::ALL),
        structure in prop::collection::vec(any::<u8>(), 0..200),
        dialect in dialect(),
    ) {
        let packet_bytes = structure.len();
        let incoming =
            Incoming { command, volume: VolumeNumber(0), packet_bytes, digest_bytes: 0, payload_bytes: 0 };
        let decoded = incoming.decode(&structure, dialect);
        // The padding at the end of a barrier is not looked at.
        let needed = if command == Command::Barrier { 4 } else { command.fixed_bytes(dialect) };
        prop_assert!(decoded.is_err() || packet_bytes >= needed, "{decoded:?}");
        prop_assert!(incoming.decode(&[&structure[..], &[0]].concat(), dialect).is_err());
    }
}
