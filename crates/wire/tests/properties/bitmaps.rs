//! Bitmaps through sender and receiver, and through a hostile sender.

use proptest::prelude::*;
use udrbd_wire::bitmap::{BitmapReceiver, BitmapSender, BitmapSink, RunLengthEncoding};
use udrbd_wire::{Packet, WireError};

use crate::packets::dialect;

/// A bitmap of stretches, each with its own density: 0, 64 and 255 of 255 are clear, mixed and set.
fn bitmap() -> impl Strategy<Value = (u64, Vec<u64>)> {
    let stretch = (0..1500_usize, prop_oneof![Just(0), Just(255), Just(1), any::<u8>()], any::<u64>());
    let stretches = prop::collection::vec(stretch, 0..8);
    (stretches, 0..64_u64).prop_map(|(stretches, missing)| {
        let mut words = Vec::new();
        for (length, density, seed) in stretches {
            let mut random = seed | 1;
            let mut bit = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                u64::from((random >> 32) as u8 % 255 < density)
            };
            words.extend((0..length).map(|_| (0..64).fold(0, |word, _| word << 1 | bit())));
        }
        ((words.len() as u64 * 64).saturating_sub(missing), words)
    })
}

/// A bitmap of `bits` bits that takes nothing else.
struct Checked {
    bits: u64,
    words: Vec<u64>,
}

impl BitmapSink for Checked {
    fn merge_word(&mut self, index: u64, bits: u64) {
        let end = index * 64 + 64 - u64::from(bits.leading_zeros());
        assert!(bits != 0 && end <= self.bits, "bit {end} of {}", self.bits);
        self.words[index as usize] |= bits;
    }
}

impl Checked {
    fn new(bits: u64) -> Self {
        Self { bits, words: vec![0; bits.div_ceil(64) as usize] }
    }
}

fn merge(
    receiver: &mut BitmapReceiver,
    packet: &Packet,
    payload: &[u8],
    sink: &mut Checked,
) -> Result<(), WireError> {
    match packet {
        Packet::CompressedBitmap(encoding) => receiver.compressed(*encoding, payload, sink),
        _ => receiver.plain(payload, sink),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_sent_arrives((bits, words) in bitmap(), compress: bool, dialect in dialect()) {
        let mut sender = BitmapSender::new(bits, compress, dialect);
        let mut receiver = BitmapReceiver::new(bits, dialect);
        let mut sink = Checked::new(bits);
        let mut payload = Vec::with_capacity(dialect.bitmap_bytes_max());
        while let Some(packet) = sender.next_packet(&words[..], &mut payload) {
            prop_assert!(!receiver.is_finished());
            prop_assert!(payload.len() <= dialect.bitmap_bytes_max());
            let before = receiver.position();
            merge(&mut receiver, &packet, &payload, &mut sink).unwrap();
            if matches!(packet, Packet::CompressedBitmap(_)) {
                prop_assert!(compress && dialect.version >= 90);
                prop_assert!(receiver.position() - before >= payload.len() as u64 * 8, "no gain");
            }
            payload.clear();
        }
        prop_assert!(receiver.is_finished());
        prop_assert_eq!(receiver.statistics(), sender.statistics());
        for index in 0..bits {
            let (word, bit) = ((index / 64) as usize, index % 64);
            prop_assert_eq!(sink.words[word] >> bit & 1, words[word] >> bit & 1, "bit {}", index);
        }
    }

    #[test]
    fn a_hostile_sender_sets_nothing_behind_the_end(
        bits in 0..40_000_u64,
        packets in prop::collection::vec(
            (any::<bool>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..80), 0..520_usize),
            0..20,
        ),
        dialect in dialect(),
    ) {
        let mut receiver = BitmapReceiver::new(bits, dialect);
        let mut sink = Checked::new(bits);
        for (set, code_bits, code, words) in packets {
            let encoding = RunLengthEncoding::new(set, code_bits.into());
            let fault = if words < 260 {
                receiver.compressed(encoding, &code, &mut sink)
            } else {
                receiver.plain(&vec![0xff; (words - 260) * 16], &mut sink)
            };
            prop_assert!(receiver.position() <= bits);
            if let Err(fault) = fault {
                prop_assert!(!fault.to_string().is_empty());
            }
        }
    }
}

/// Runs as the wire spec 11.2 wants them: after a plain packet a compressed one, and no terminator behind that.
#[test]
fn an_incompressible_start_is_sent_plain_and_the_rest_compressed() {
    let mut words = vec![0; 600];
    words[..510].fill(0x5555_5555_5555_5555);
    let dialect = udrbd_wire::Dialect::NEWEST;
    let mut sender = BitmapSender::new(600 * 64, true, dialect);
    let mut payload = Vec::new();
    assert_eq!(sender.next_packet(&words[..], &mut payload), Some(Packet::Bitmap));
    assert_eq!(payload.len(), 4080);
    let encoding = RunLengthEncoding::new(false, 21);
    assert_eq!(sender.next_packet(&words[..], &mut payload), Some(Packet::CompressedBitmap(encoding)));
    assert_eq!(payload.len(), 4083);
    assert_eq!(sender.next_packet(&words[..], &mut payload), None);
}
