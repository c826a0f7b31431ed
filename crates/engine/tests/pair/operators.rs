//! Commands that come at the wrong time: they must not make data good that are not.

use udrbd_engine::interface::{Command, Event, Failure, NetOptions, ResizeRequest};
use udrbd_engine::state::StateChangeResult as Code;
use udrbd_units::{ConnectionState, DiskState, Sector};
use udrbd_wire::{Packet, StateReturnCode};

use crate::harness::{Pair, VOLUME};
use crate::{both, fast, promote, synced};

const VERIFY: Command = Command::Verify { volume: VOLUME, start: None, stop: None };

/// Connected, and neither has good data.
fn fresh() -> Pair {
    let mut pair = Pair::new();
    pair.connect(&NetOptions { verify_alg: "crc32c".to_owned(), ..NetOptions::default() });
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    pair
}

#[test]
fn an_inconsistent_disk_is_not_outdated_into_a_good_one() {
    let mut pair = fresh();
    let refused = pair.command(1, Command::Outdate { volume: VOLUME });
    assert_eq!(refused, Err(Failure::state(Code::LowerThanOutdated)));
    pair.settle();
    assert!(both(&pair, ConnectionState::Connected, DiskState::Inconsistent), "{}", pair.describe());
}

#[test]
fn a_verify_makes_no_disk_good() {
    let mut pair = fresh();
    assert_eq!(pair.command(0, VERIFY), Err(Failure::state(Code::NoUpToDateDisk)));
    pair.settle();
    assert!(both(&pair, ConnectionState::Connected, DiskState::Inconsistent), "{}", pair.describe());
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    assert_eq!(pair.command(0, VERIFY), Err(Failure::state(Code::NoUpToDateDisk)));
    pair.command(1, VERIFY).unwrap_err();
    pair.settle();
    assert_eq!(pair.nodes[0].status().peer_disk, DiskState::Diskless);
}

/// A disk is attached, and whose data are the better ones is not decided yet.
#[test]
fn a_verify_does_not_take_the_place_of_the_handshake() {
    let mut pair = fresh();
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.write(0, 0, 7, 4096).unwrap();
    pair.cut = true;
    pair.begin_attach(1, fast());
    while pair.nodes[1].status().disk != DiskState::Negotiating {
        assert!(pair.step(), "{}", pair.describe());
    }
    let verify = pair.begin_command(1, VERIFY);
    pair.settle();
    // The peer may have agreed before it hears of the disk: the two sockets keep no order.
    let (socket, packet) = (pair.socket(1, false).unwrap(), Packet::StateChangeReply(StateReturnCode(2)));
    let (payload, digest, bytes) = (None, None, Vec::new());
    let intact = true;
    let event =
        Event::Packet { socket, volume: VOLUME, packet, payload, payload_bytes: 0, bytes, digest, intact };
    pair.inject(1, event);
    assert_eq!(pair.nodes[1].status().disk, DiskState::Negotiating, "{}", pair.describe());
    assert_eq!(pair.nodes[1].replies[&verify], Err(Failure::state(Code::NoUpToDateDisk)));
    pair.cut = false;
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty(), "{}", pair.describe());
}

#[test]
fn a_primary_without_a_disk_does_not_grow_beyond_what_its_peer_serves() {
    let mut pair = synced();
    let (size, sectors) = (pair.nodes[0].status().size, pair.sectors);
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    let (backing, metadata) = (Sector(sectors + 8192), Sector(sectors + 8192));
    pair.sectors = backing.0;
    pair.inject(1, Event::DeviceSize { volume: VOLUME, backing, metadata });
    pair.command(1, Command::Resize { volume: VOLUME, request: ResizeRequest::default() }).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[1].status().size, size, "nobody knows how large the other disk is");
    assert_eq!(pair.nodes[0].status().size, size, "{}", pair.describe());
    pair.sectors = sectors;
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}

/// A command that waits for the end of a handshake is judged by what the handshake ends in: `outdate` would make a disk UpToDate that
/// never was.
#[test]
fn outdate_in_a_handshake_makes_no_disk_better() {
    let mut pair = Pair::new();
    pair.connect(&NetOptions::default());
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFReportParams);
    let outdate = pair.begin_command(0, Command::Outdate { volume: VOLUME });
    pair.until(|pair| pair.nodes[0].replies.contains_key(&outdate));
    assert!(matches!(pair.nodes[0].replies[&outdate], Err(Failure::State { .. })));
    pair.settle();
    assert!(both(&pair, ConnectionState::Connected, DiskState::Inconsistent), "{}", pair.describe());
}
