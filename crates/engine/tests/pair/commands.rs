//! Commands at awkward moments: each is answered, and none does harm.

use udrbd_engine::interface::{
    Action, AfterSplitBrain, Command, CommandId, DiskOptions, Event, Failure, Fencing, Handler, NetOptions,
    OnIoError, Operation, SocketId,
};
use udrbd_units::{ConnectionState, DiskState, Minor, Role, VolumeNumber};
use udrbd_wire as wire;
use wire::Packet;

use crate::harness::{Pair, VOLUME};
use crate::{both, demote, fast, promote, synced};

fn status(pair: &Pair, node: usize) -> udrbd_engine::interface::VolumeStatus {
    pair.nodes[node].status()
}

/// Node 0 has told the peer what it is, and hears nothing of it.
fn in_the_handshake(mut pair: Pair) -> Pair {
    for node in 0..2 {
        pair.command(node, Command::Connect(Box::default())).unwrap();
    }
    pair.until(|pair| status(pair, 0).connection == ConnectionState::WFReportParams);
    pair.cut = true;
    pair.settle();
    assert_eq!(status(&pair, 0).connection, ConnectionState::WFReportParams);
    pair
}

fn disconnected() -> Pair {
    let mut pair = synced();
    demote(&mut pair, 0);
    for node in 0..2 {
        pair.command(node, Command::Disconnect { force: false }).unwrap();
    }
    pair
}

#[test]
fn every_command_is_answered_during_a_handshake_that_hangs() {
    let volume = VOLUME;
    let commands = [
        Command::Disconnect { force: false },
        Command::Disconnect { force: true },
        Command::Primary { volume, force: false },
        Command::Secondary { volume, held_open: false },
        Command::Detach { volume, force: false },
        Command::Detach { volume, force: true },
        Command::Outdate { volume },
        Command::Invalidate { volume },
        Command::PauseSync { volume },
        Command::SuspendIo { volume },
        Command::ResumeIo { volume },
        Command::NewCurrentUuid { volume, clear_bitmap: false },
        Command::Down,
    ];
    for command in commands {
        let mut pair = in_the_handshake(disconnected());
        assert!(pair.try_command(0, command.clone()).is_some(), "{command:?}\n{}", pair.describe());
        assert!(pair.try_command(0, Command::Down).is_some(), "{command:?}\n{}", pair.describe());
    }
}

#[test]
fn every_command_is_answered_when_the_connection_is_lost_under_it() {
    let volume = VOLUME;
    let commands = [
        Command::Disconnect { force: false },
        Command::Primary { volume, force: false },
        Command::Detach { volume, force: false },
        Command::Invalidate { volume },
        Command::InvalidateRemote { volume },
        Command::DelMinor { volume },
        Command::Down,
    ];
    for command in commands {
        for broken in [false, true] {
            let mut pair = synced();
            demote(&mut pair, 0);
            pair.settle();
            // Nothing of the request arrives.
            pair.cut = true;
            if broken {
                pair.break_wires();
            }
            let result = pair.try_command(1, command.clone());
            assert!(result.is_some(), "{command:?}\n{}", pair.describe());
            pair.cut = false;
            assert!(pair.try_command(1, Command::Down).is_some(), "{command:?}\n{}", pair.describe());
        }
    }
}

#[test]
fn a_disk_attached_during_the_handshake_waits_for_its_end() {
    let mut pair = disconnected();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    let mut pair = in_the_handshake(pair);
    pair.cut = false;
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn io_resumed_during_the_handshake_is_resumed_once_the_peer_is_there() {
    let mut pair = Pair::down(20 * 2048);
    for node in 0..2 {
        pair.start(node, DiskOptions { fencing: Fencing::ResourceAndStonith, ..fast() });
        pair.nodes[node].exits.insert(Handler::FencePeer, 1);
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    let current = status(&pair, 0).generations.unwrap()[0];
    pair.cut = true;
    let write = Operation::Write { fua: false, preflush: false };
    let id = pair.submit(0, write, 0, &[5; 4096], 4096);
    pair.settle();
    pair.break_wires();
    pair.until(|pair| status(pair, 0).connection == ConnectionState::WFConnection);
    pair.cut = false;
    pair.until(|pair| status(pair, 0).connection == ConnectionState::WFReportParams);
    pair.command(0, Command::ResumeIo { volume: VOLUME }).unwrap();
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(status(&pair, 0).generations.unwrap()[0], current);
    assert_eq!(pair.nodes[1].load(0, 4096), vec![5; 4096]);
    assert!(pair.differences().is_empty());
}

/// Node 1 has taken its volume away and added it again; node 0 has written meanwhile.
fn with_a_volume_added_again() -> Pair {
    let mut pair = synced();
    pair.write(0, 0, 1, 4096).unwrap();
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.command(1, Command::DelMinor { volume: VOLUME }).unwrap();
    pair.pass(2);
    assert_eq!(status(&pair, 0).connection, ConnectionState::WFReportParams);
    pair.write(0, 8, 2, 4096).unwrap();
    pair.command(1, Command::NewMinor { volume: VOLUME, minor: Minor(0) }).unwrap();
    pair
}

#[test]
fn a_volume_taken_away_and_added_again_joins_the_connection() {
    let mut pair = with_a_volume_added_again();
    pair.settle();
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(!pair.nodes[0].says("Connection closed"), "{}", pair.describe());
    assert!(pair.differences().is_empty(), "{}", pair.describe());
}

#[test]
fn a_disk_attached_before_its_volume_has_joined_is_compared_all_the_same() {
    let mut pair = with_a_volume_added_again();
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty(), "{}", pair.describe());
}

/// Node 1 has lost its disk, and removes its volume; node 0 has the volume connected all the same.
fn comes_back(mut pair: Pair) {
    assert_eq!(status(&pair, 0).connection, ConnectionState::Connected);
    pair.command(1, Command::NewMinor { volume: VOLUME, minor: Minor(0) }).unwrap();
    pair.settle();
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty(), "{}", pair.describe());
}

#[test]
fn a_volume_whose_removal_the_peer_refuses_can_be_added_again() {
    let mut pair = Pair::new();
    let options = DiskOptions { fencing: Fencing::ResourceOnly, ..fast() };
    pair.command(0, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.command(1, Command::DelMinor { volume: VOLUME }).unwrap();
    assert!(pair.nodes[0].says("Refusing to be Primary while peer is not outdated"), "{}", pair.describe());
    comes_back(pair);
}

#[test]
fn a_volume_removed_in_the_handshake_can_be_added_again() {
    let mut pair = disconnected();
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    for node in 0..2 {
        pair.begin_command(node, Command::Connect(Box::default()));
    }
    pair.until(|pair| status(pair, 1).connection == ConnectionState::WFReportParams);
    pair.command(1, Command::DelMinor { volume: VOLUME }).unwrap();
    pair.settle();
    comes_back(pair);
}

/// The peer is asked about the removal; what begins meanwhile would never get an answer.
#[test]
fn nothing_begins_on_a_volume_that_is_about_to_go() {
    let mut pair = synced();
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.cut = true;
    let removal = pair.begin_command(1, Command::DelMinor { volume: VOLUME });
    pair.settle();
    assert!(!pair.nodes[1].replies.contains_key(&removal), "{}", pair.describe());
    let attach = pair.begin_attach(1, fast());
    let promotion = pair.begin_command(1, Command::Primary { volume: VOLUME, force: false });
    pair.cut = false;
    pair.until(|pair| pair.nodes[1].replies.contains_key(&removal));
    pair.settle();
    assert_eq!(pair.nodes[1].replies[&removal], Ok(()));
    for id in [attach, promotion] {
        let unknown =
            matches!(pair.nodes[1].replies.get(&id), Some(Err(Failure::Configuration { code: 127, .. })));
        assert!(unknown, "{:?} {}", pair.nodes[1].replies.get(&id), pair.describe());
    }
    pair.command(1, Command::NewMinor { volume: VOLUME, minor: Minor(0) }).unwrap();
    pair.settle();
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}

#[test]
fn a_disconnect_and_a_detach_at_once_get_an_answer_each() {
    let mut pair = synced();
    demote(&mut pair, 0);
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    promote(&mut pair, 1, false);
    // Node 1 has no other data than those of node 0, and refuses both.
    let disconnect = pair.begin_command(0, Command::Disconnect { force: false });
    let detach = pair.begin_command(0, Command::Detach { volume: VOLUME, force: false });
    pair.settle();
    for id in [disconnect, detach] {
        assert!(matches!(pair.nodes[0].replies.get(&id), Some(Err(_))), "{}", pair.describe());
    }
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}

#[test]
fn the_answer_of_an_old_handler_does_not_stop_a_new_resync() {
    let mut pair = synced();
    pair.nodes[1].slow_handlers = true;
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.until(|pair| !pair.nodes[1].handlers_at_work.is_empty());
    pair.break_wires();
    pair.until(|pair| pair.nodes[1].handlers_at_work.len() == 2);
    let old = pair.nodes[1].handlers_at_work.remove(0);
    pair.handler_exit(1, old, 1);
    pair.settle();
    assert_ne!(status(&pair, 1).connection, ConnectionState::StandAlone, "{}", pair.describe());
    assert_ne!(status(&pair, 1).connection, ConnectionState::SyncTarget, "{}", pair.describe());
    pair.nodes[1].slow_handlers = false;
    let new = pair.nodes[1].handlers_at_work.remove(0);
    pair.handler_exit(1, new, 0);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn both_nodes_tell_of_a_split_brain_whoever_refuses_first() {
    for first in 0..2 {
        let mut pair = disconnected();
        for node in 0..2 {
            promote(&mut pair, node, false);
            pair.write(node, 8, node as u8 + 1, 4096).unwrap();
        }
        for node in [first, 1 - first] {
            let options = NetOptions { after_sb_0pri: AfterSplitBrain::Disconnect, ..NetOptions::default() };
            pair.command(node, Command::Connect(Box::new(options))).unwrap();
        }
        pair.until(|pair| (0..2).all(|node| status(pair, node).connection == ConnectionState::StandAlone));
        for node in &pair.nodes {
            assert!(node.handlers.contains(&Handler::SplitBrain), "{}", pair.describe());
        }
    }
}

#[test]
fn a_disk_that_loses_the_peer_before_it_is_compared_is_let_go() {
    let mut pair = synced();
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.write(0, 0, 3, 4096).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[1].open_disks, 0);
    pair.cut = true;
    pair.attach(1, fast()).unwrap();
    assert_eq!(status(&pair, 1).disk, DiskState::Negotiating);
    pair.break_wires();
    pair.until(|pair| status(pair, 1).connection == ConnectionState::WFConnection);
    pair.pass(1);
    assert_eq!(status(&pair, 1).disk, DiskState::Diskless);
    assert_eq!(pair.nodes[1].open_disks, 0, "{}", pair.describe());
    pair.attach(1, fast()).unwrap();
    pair.cut = false;
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn a_primary_without_good_data_does_not_freeze_for_a_fencing_it_never_asks_for() {
    let mut pair = Pair::down(20 * 2048);
    for node in 0..2 {
        pair.start(node, DiskOptions { fencing: Fencing::ResourceAndStonith, ..fast() });
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.nodes[1].stuck = true;
    pair.command(0, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.until(|pair| status(pair, 0).connection == ConnectionState::SyncTarget);
    pair.refused = true;
    pair.break_wires();
    pair.until(|pair| status(pair, 0).connection == ConnectionState::WFConnection);
    pair.pass(1);
    assert!(pair.nodes[0].says("Not fencing peer, I'm not even Consistent myself."));
    assert!(pair.write(0, 0, 1, 4096).is_err());
}

#[test]
fn a_node_that_keeps_bad_data_is_not_promoted_and_says_so() {
    let mut pair = synced();
    let options = DiskOptions { on_io_error: OnIoError::PassOn, ..fast() };
    pair.command(1, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
    pair.nodes[1].failing = true;
    pair.write(0, 0, 1, 4096).unwrap();
    pair.settle();
    assert_eq!(status(&pair, 1).disk, DiskState::Inconsistent);
    demote(&mut pair, 0);
    let result = pair.try_command(1, Command::Primary { volume: VOLUME, force: false });
    assert!(matches!(result, Some(Err(_))), "{result:?}");
}

/// A stranger calls node 0. Returns how many sockets are closed on that.
fn call(pair: &mut Pair, socket: SocketId) -> usize {
    let mut actions = Vec::new();
    pair.nodes[0].engine.as_mut().unwrap().handle(pair.now, Event::Accepted(socket), &mut actions);
    actions.iter().filter(|action| matches!(action, Action::Close { .. })).count()
}

#[test]
fn callers_that_wait_are_few() {
    let mut pair = Pair::new();
    pair.cut = true;
    let mut closed = 0;
    pair.command(0, Command::Connect(Box::default())).unwrap();
    pair.pass(1);
    for number in 0..40 {
        closed += call(&mut pair, SocketId(SocketId::FIRST_ACCEPTED.0 + 1000 + number));
    }
    assert!(closed >= 30, "{closed}");
}

/// A packet of the peer, on the data socket or the other one.
fn packet(pair: &mut Pair, node: usize, data: bool, packet: Packet) {
    let socket = pair.socket(node, data).unwrap();
    let (payload, digest, bytes) = (None, None, Vec::new());
    let volume = VolumeNumber(0);
    let event =
        Event::Packet { socket, volume, packet, payload, payload_bytes: 0, bytes, digest, intact: true };
    pair.inject(node, event);
    while pair.step() {}
}

#[test]
fn an_answer_that_comes_late_is_not_taken_for_one_to_the_next_request() {
    let mut met = false;
    for node in 0..2 {
        let mut pair = synced();
        demote(&mut pair, 0);
        pair.pass(1);
        pair.cut = true;
        let command = |pair: &mut Pair, id, command| {
            pair.inject(node, Event::Command { id: CommandId(id), command });
            while pair.step() {}
        };
        command(&mut pair, 1_000_000, Command::Primary { volume: VOLUME, force: false });
        // The peer asks for the same. One of the nodes gives way, and the refusal of its own request is still to come.
        let change = wire::StateChange { role: Some(Role::Primary), ..Default::default() };
        packet(&mut pair, node, true, Packet::StateChangeRequest(change));
        if pair.nodes[node].status().peer_role != Role::Primary {
            continue;
        }
        met = true;
        command(&mut pair, 1_000_001, Command::InvalidateRemote { volume: VOLUME });
        packet(&mut pair, node, false, Packet::StateChangeReply(wire::StateReturnCode(-19)));
        assert!(!pair.nodes[node].replies.contains_key(&1_000_001), "{}", pair.describe());
        packet(&mut pair, node, false, Packet::StateChangeReply(wire::StateReturnCode(1)));
        assert_eq!(pair.nodes[node].status().connection, ConnectionState::SyncSource);
    }
    assert!(met);
}
