//! Captures of the kernel's DRBD: every packet decodes to what the capture's listing says and encodes to the same
//! bytes; bitmaps are cut into packets as the kernel cuts them.
//!
//! The captures of the directory named by `UDRBD_EXTRA_VECTORS` are tried too, if it is set.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../captures/mod.rs"]
#[allow(dead_code, reason = "the engine's tests use the rest")]
mod captures;
mod listing;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use captures::capture;
use captures::session::{Received, Session, sessions};
use listing::{Listing, Writer};
use udrbd_units::VolumeNumber;
use udrbd_wire::bitmap::{BitmapReceiver, BitmapSender};
use udrbd_wire::{Authentication, DigestAlgorithm, Packet, Socket, WireError};

/// The captures: those of the crate, and those of the directory one may name.
fn captures() -> Vec<PathBuf> {
    let mut directories = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire")];
    directories
        .extend(std::env::var_os("UDRBD_EXTRA_VECTORS").map(|extra| PathBuf::from(extra).join("wire")));
    let files = directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let paths = files.map(|entry| entry.unwrap().path());
    let mut captures: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "pcap")).collect();
    captures.sort();
    assert!(captures.len() >= 37, "{} captures", captures.len());
    captures
}

fn load(path: &Path) -> (Listing, Option<Authentication>, Vec<Session>) {
    let listing = Listing::parse(&std::fs::read_to_string(path.with_extension("txt")).unwrap());
    let algorithm: Option<DigestAlgorithm> =
        listing.option("--cram-hmac-alg").map(|name| name.parse().unwrap());
    let secret = listing.option("--shared-secret").unwrap_or_default().as_bytes();
    let authentication = algorithm.map(|algorithm| Authentication::new(algorithm, secret).unwrap());
    let sessions = sessions(&capture::read(path), algorithm.unwrap_or(DigestAlgorithm::Sha1));
    (listing, authentication, sessions)
}

#[test]
fn vectors_decode_to_their_listing() {
    for path in captures() {
        let (listing, authentication, sessions) = load(&path);
        let mut skipped = 0;
        for session in &sessions {
            let writer = Writer::new(session, authentication.clone());
            for (sender, expected) in listing.lines.iter().enumerate() {
                let mut decoded = writer.lines(sender).into_iter();
                for (_, line) in expected.iter().filter(|(number, _)| *number == session.number) {
                    // Where the listing leaves lines out, the next one it has is further on.
                    let mut others = Vec::new();
                    while let Some(other) = decoded.next().filter(|decoded| decoded != line) {
                        others.push(other);
                        assert!(
                            listing.left_out > 0,
                            "{}\nlisting {line}\ndecoded {}",
                            path.display(),
                            others[0]
                        );
                    }
                    skipped += others.len();
                }
                skipped += decoded.count();
            }
        }
        let total: usize = sessions.iter().flat_map(|session| &session.sent).map(Vec::len).sum();
        let listed: usize = listing.lines.iter().map(Vec::len).sum();
        assert_eq!(skipped, listing.left_out, "{}", path.display());
        assert_eq!(total, listed + skipped, "{}", path.display());
    }
}

#[test]
fn vectors_encode_to_the_same_bytes() {
    let mut packets = 0;
    for path in captures() {
        for received in load(&path).2.iter().flat_map(|session| session.sent.iter().flatten()) {
            assert_eq!(received.encoded(), received.bytes, "{}: {:?}", path.display(), received.packet);
            packets += 1;
        }
    }
    assert!(packets > 5000, "{packets} packets");
}

#[test]
fn vectors_digests_are_those_of_the_data() {
    let mut algorithms = BTreeSet::new();
    for path in captures() {
        for received in load(&path).2.iter().flat_map(|session| session.sent.iter().flatten()) {
            let carries = matches!(
                received.packet,
                Packet::Data(_) | Packet::DataReply(_) | Packet::ResyncDataReply(_)
            );
            let Some(algorithm) = received.integrity.filter(|_| carries) else { continue };
            let digest = algorithm.digest(&received.payload);
            assert_eq!(digest.as_bytes(), received.digest, "{}", path.display());
            algorithms.insert(algorithm.name());
        }
    }
    assert!(algorithms.contains("sha1") && algorithms.contains("crc32c"), "{algorithms:?}");
}

/// A bitmap as one node sent it.
struct Transfer<'a> {
    sender: usize,
    volume: VolumeNumber,
    bits: u64,
    packets: Vec<&'a Received>,
}

fn transfers(sessions: &[Session]) -> Vec<Transfer<'_>> {
    let mut transfers = Vec::new();
    for session in sessions.iter().filter(|session| session.socket == Some(Socket::Data)) {
        let volumes: BTreeSet<u16> =
            session.sent.iter().flatten().map(|received| received.incoming.volume.0).collect();
        for volume in volumes.into_iter().map(VolumeNumber) {
            let of_volume = |received: &&Received| received.incoming.volume == volume;
            let sizes = sizes(session.sent.iter().flatten().filter(of_volume));
            for (sender, sent) in session.sent.iter().enumerate() {
                let sent: Vec<&Received> = sent.iter().filter(of_volume).collect();
                for run in sent.chunk_by(|one, next| is_bitmap(one) && is_bitmap(next)) {
                    if !is_bitmap(run[0]) {
                        continue;
                    }
                    let whole = sizes.iter().find(|bits| is_whole(**bits, run));
                    let cut_off = run.last().map(|last| &last.bytes) == sent.last().map(|last| &last.bytes);
                    assert!(whole.is_some() || cut_off, "a bitmap of no known size, one of {sizes:?}");
                    let transfer =
                        |bits: &u64| Transfer { sender, volume, bits: *bits, packets: run.to_vec() };
                    transfers.extend(whole.map(transfer));
                }
            }
        }
    }
    transfers
}

fn is_bitmap(received: &Received) -> bool {
    matches!(received.packet, Packet::Bitmap | Packet::CompressedBitmap(_))
}

/// The numbers of blocks a volume may have after what both nodes said about its size.
fn sizes<'a>(packets: impl Iterator<Item = &'a Received>) -> BTreeSet<u64> {
    let sizes = packets.filter_map(|received| match received.packet {
        Packet::Sizes(sizes) => Some([sizes.current_size, sizes.user_size, sizes.disk_size]),
        _ => None,
    });
    sizes.flatten().map(|sectors| sectors.0.div_ceil(8)).filter(|bits| *bits > 0).collect()
}

/// Whether `packets` are a whole bitmap of `bits` bits.
fn is_whole(bits: u64, packets: &[&Received]) -> bool {
    let mut words = vec![0; bits.div_ceil(64) as usize];
    let mut receiver = BitmapReceiver::new(bits, packets[0].dialect);
    packets.iter().all(|received| merge(&mut receiver, received, &mut words).is_ok())
        && receiver.is_finished()
}

fn merge(receiver: &mut BitmapReceiver, received: &Received, words: &mut [u64]) -> Result<(), WireError> {
    match received.packet {
        Packet::CompressedBitmap(encoding) => receiver.compressed(encoding, &received.payload, words),
        _ => receiver.plain(&received.payload, words),
    }
}

impl Transfer<'_> {
    fn receive(&self) -> (Vec<u64>, BitmapReceiver) {
        let mut words = vec![0; self.bits.div_ceil(64) as usize];
        let mut receiver = BitmapReceiver::new(self.bits, self.packets[0].dialect);
        self.packets.iter().for_each(|received| merge(&mut receiver, received, &mut words).unwrap());
        (words, receiver)
    }
}

#[test]
fn vectors_bitmaps_are_cut_as_the_kernel_cuts_them() {
    let mut total = 0;
    for path in captures() {
        let (listing, _, sessions) = load(&path);
        for transfer in transfers(&sessions) {
            let (words, _) = transfer.receive();
            let compress = !listing.has_command("--use-rle=no");
            let mut sender = BitmapSender::new(transfer.bits, compress, transfer.packets[0].dialect);
            for received in &transfer.packets {
                let mut payload = Vec::new();
                let packet = sender.next_packet(&words[..], &mut payload);
                assert_eq!(packet, Some(received.packet.clone()), "{}", path.display());
                assert_eq!(payload, received.payload, "{}", path.display());
            }
            assert_eq!(sender.next_packet(&words[..], &mut Vec::new()), None);
            total += 1;
        }
    }
    assert!(total >= 30, "{total} bitmaps");
}

#[test]
fn vectors_bitmap_content_is_the_known_one() {
    for path in captures() {
        let known = path.with_file_name("18-bitmap.words");
        let transfers_it = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("18"));
        let Some(words) = std::fs::read_to_string(known).ok().filter(|_| transfers_it) else { continue };
        let words: Vec<u64> =
            words.lines().map(|line| u64::from_str_radix(line.trim(), 16).unwrap()).collect();
        let (_, _, sessions) = load(&path);
        let transfers = transfers(&sessions);
        assert_eq!(transfers.len(), 2, "{}", path.display());
        for transfer in transfers {
            assert_eq!(transfer.receive().0, words, "{} from {}", path.display(), transfer.sender);
        }
    }
}

#[test]
fn vectors_bitmap_statistics_are_the_logged_ones() {
    let mut total = 0;
    for path in captures() {
        let mut expected = Vec::new();
        let Ok(state) = std::fs::read_to_string(path.with_extension("state")) else { continue };
        for line in state.lines() {
            let Some((before, statistics)) =
                line.split_once(": ").filter(|(_, s)| s.contains(" bitmap stats "))
            else {
                continue;
            };
            let volume = before.split(' ').find(|word| word.starts_with("ra/") || word.starts_with("rb/"));
            expected.push(format!("{} {statistics}", volume.unwrap()));
        }
        let (_, _, sessions) = load(&path);
        let mut computed = Vec::new();
        for transfer in transfers(&sessions) {
            let (_, receiver) = transfer.receive();
            if receiver.statistics().saved_anything() {
                let nodes = [["ra", "rb"], ["rb", "ra"]][transfer.sender];
                for (node, verb) in nodes.iter().zip(["send", "receive"]) {
                    computed.push(format!("{node}/{} {verb} {}", transfer.volume, receiver.statistics()));
                }
            }
        }
        expected.sort();
        computed.sort();
        assert_eq!(computed, expected, "{}", path.display());
        total += computed.len();
    }
    assert!(total >= 60, "{total} lines");
}
