use udrbd_engine::Engine;
use udrbd_engine::generation::{PeerGeneration, ResyncPolicies, handshake};
use udrbd_engine::interface::{Command, CommandId, Event, ResourceOptions, Time};

use super::*;

const ANCESTOR: u64 = 0xB2B2_B2B2_B2B2_B2B0;

fn status() -> VolumeStatus {
    let mut engine = Engine::new(ResourceOptions::default(), [1; 32]);
    let command = Command::NewMinor { volume: VolumeNumber(0), minor: Minor(3) };
    engine.handle(Time(1), Event::Command { id: CommandId(1), command }, &mut Vec::new());
    engine.status().volumes.remove(0)
}

fn split_brain(number: u64, discard_my_data: bool) -> SplitBrain {
    let set = |current| GenerationSet::from_array([current, ANCESTOR | 1, 0, 0].map(GenerationId));
    let facts = HandshakeFacts {
        own: set(0xA0),
        crashed_primary: false,
        own_told_bits: 7,
        own_set_bits: 9,
        own_role: Role::Secondary,
        own_disk: DiskState::UpToDate,
        remembered_disk: None,
        discard_my_data,
        peer: PeerGeneration { set: set(0xC1), set_bits: 5, flags: PeerFlags(2) },
        peer_role: Role::Primary,
        peer_disk: DiskState::UpToDate,
        resolve_conflicts: false,
        protocol: 101,
        features: 0xf,
        policies: ResyncPolicies::default(),
        dry_run: false,
    };
    let found = SplitBrain::of(&facts, handshake(&facts).outcome, number);
    found.expect("a split brain")
}

fn with(connection: ConnectionState, found: Option<SplitBrain>) -> VolumeStatus {
    VolumeStatus { connection, split_brain: found.map(Box::new), ..status() }
}

#[test]
fn it_is_told_since_when_and_how_often_over_a_restart() {
    use ConnectionState as C;
    let folder = tempfile::tempdir().unwrap();
    let mut memory = Memory::read(folder.path(), Minor(3));
    assert!(!memory.take(1, &with(C::WFConnection, None)));
    assert!(memory.take(10, &with(C::Connected, None)));
    assert!(memory.take(20, &with(C::WFConnection, None)));
    assert!(memory.take(30, &with(C::StandAlone, Some(split_brain(1, false)))));
    assert!(!memory.take(31, &with(C::StandAlone, Some(split_brain(1, false)))), "no news");
    memory.write().unwrap();
    let known = memory.known;

    let mut memory = Memory::read(folder.path(), Minor(3));
    assert_eq!(memory.known, known);
    assert!(!memory.take(40, &with(C::WFConnection, None)), "and it is not taken for a loss");
    // A new engine counts anew.
    memory.take(50, &with(C::StandAlone, Some(split_brain(1, false))));
    let found = memory.known.found.clone().expect("found");
    assert_eq!((found.first_us, found.last_us, found.times, found.ended_us), (30, 50, 2, None));
    assert_eq!((found.connected_us, found.lost_us), (Some(10), Some(20)));
    assert_eq!(found.ancestor.as_deref(), Some("B2B2B2B2B2B2B2B0"));
    assert_eq!((found.own.changed_blocks, found.peer.changed_blocks), (7, 5));
    assert!(found.peer.crashed_primary && found.own.was_primary);
    assert_eq!(found.policies.len(), 20);
}

#[test]
fn it_ends_when_the_nodes_come_together() {
    use ConnectionState as C;
    let folder = tempfile::tempdir().unwrap();
    let mut memory = Memory::read(folder.path(), Minor(3));
    memory.take(30, &with(C::StandAlone, Some(split_brain(1, false))));
    assert!(memory.take(40, &with(C::WFBitMapT, Some(split_brain(2, true)))));
    let found = memory.known.found.clone().expect("found");
    assert_eq!((found.first_us, found.ended_us), (30, Some(40)));
    assert_eq!(found.end, Some(SplitBrainEnd { keeps: WhichNode::Peer, full: false, by_hand: true }));
    // The next one is another one.
    memory.take(50, &with(C::WFConnection, Some(split_brain(2, true))));
    memory.take(60, &with(C::StandAlone, Some(split_brain(3, false))));
    let found = memory.known.found.expect("found");
    assert_eq!((found.first_us, found.times, found.lost_us), (60, 1, Some(50)));
}

#[test]
fn rubbish_is_not_known() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("split-brain-drbd3"), "{\"found\": 3").unwrap();
    assert_eq!(Memory::read(folder.path(), Minor(3)).known, KnownSplitBrain::default());
}
