//! What one node writes while the other could be taken for its equal: nothing of it may be discarded in silence when both have
//! failed, or when one of them has missed how a resync ended.

use udrbd_engine::interface::{Command, DiskOptions, Fencing, NetOptions};
use udrbd_metadata::Flags;
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, demote, fast, promote, synced};

fn fenced() -> DiskOptions {
    DiskOptions { fencing: Fencing::ResourceAndStonith, ..fast() }
}

fn options() -> NetOptions {
    NetOptions { allow_two_primaries: true, ..NetOptions::default() }
}

fn both_primary(disk: &DiskOptions) -> Pair {
    let mut pair = Pair::down(2048);
    for node in 0..2 {
        pair.start(node, disk.clone());
    }
    pair.connect(&options());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    promote(&mut pair, 1, false);
    pair.settle();
    pair
}

/// Both are Primary. Node 1 crashes; node 0 freezes, and the handler that fences does not end.
fn frozen() -> Pair {
    let mut pair = both_primary(&fenced());
    pair.nodes[0].slow_handlers = true;
    pair.kill(1);
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
    pair
}

/// The two would look equal after a second crash, and a coin would say whose data are kept.
#[test]
fn a_primary_that_finds_its_crashed_peer_back_writes_a_generation_of_its_own() {
    let mut pair = frozen();
    let id = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.settle();
    assert!(!pair.nodes[0].completions.contains_key(&id), "I/O is frozen");
    pair.start(1, fenced());
    pair.nodes[0].stuck_metadata = true;
    pair.command(1, Command::Connect(Box::new(options()))).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection >= ConnectionState::WFBitMapT);
    pair.settle();
    let before = pair.nodes[0].superblock(2048);
    assert!(!before.bitmap.is_some());
    assert!(!pair.nodes[0].completions.contains_key(&id), "nothing tells it from what the peer has");
    pair.unstick(0);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    // The resync has not begun: before-resync-source runs.
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::WFBitMapS, "{}", pair.describe());
    let after = pair.nodes[0].superblock(2048);
    assert!(after.bitmap.same_generation(before.current) && !after.current.same_generation(before.current));
    // Now this node crashes as well. Whatever the coin of the next connection says, its data are the newer ones.
    pair.kill(0);
    pair.nodes[0].slow_handlers = false;
    pair.start(0, fenced());
    pair.command(0, Command::Connect(Box::new(options()))).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes[0].says("Began resync as SyncSource"), "{}", pair.describe());
    assert_eq!(pair.nodes[1].load(0, 4096), [7; 4096], "{}", pair.describe());
    let generations = [0, 1].map(|node| pair.nodes[node].status().generations.unwrap());
    assert!(generations[0][0].same_generation(after.current), "{}", pair.describe());
    assert!(generations[1][0].same_generation(after.current), "{}", pair.describe());
}

/// Without the second crash: the resync brings the peer to the new generation.
#[test]
fn the_peer_follows_into_the_generation_that_began_during_the_handshake() {
    let mut pair = frozen();
    let before = pair.nodes[0].superblock(2048);
    let id = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.nodes[0].slow_handlers = false;
    pair.start(1, fenced());
    pair.command(1, Command::Connect(Box::new(options()))).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes[0].completions[&id].0.is_ok());
    assert_eq!(pair.nodes[0].status().role, Role::Primary);
    assert!(pair.differences().is_empty(), "{}", pair.describe());
    let [one, other] = [0, 1].map(|node| pair.nodes[node].superblock(2048));
    assert!(one.current.same_generation(other.current) && !one.current.same_generation(before.current));
    assert!(!one.bitmap.is_some() && !other.bitmap.is_some());
    assert!(one.history[0].same_generation(other.history[0]), "{}", pair.describe());
    let lost =
        |node: usize| pair.nodes[node].log.iter().filter(|line| line.contains("connection lost")).count();
    assert_eq!((lost(0), lost(1)), (1, 0), "the connection holds\n{}", pair.describe());
}

/// Both were Primary and lost power; a coin has made one of them the source. What it writes before the resync begins is on no
/// other disk, and another coin must not choose the other node.
#[test]
fn who_is_promoted_while_the_bitmaps_travel_writes_a_generation_of_its_own() {
    let mut pair = both_primary(&fast());
    for node in 0..2 {
        pair.kill(node);
    }
    for node in 0..2 {
        pair.start(node, fast());
        pair.nodes[node].slow_handlers = true;
    }
    pair.connect(&options());
    let source =
        |pair: &Pair| (0..2).find(|node| pair.nodes[*node].status().connection == ConnectionState::WFBitMapS);
    pair.until(|pair| source(pair).is_some());
    pair.settle();
    let source = source(&pair).unwrap();
    let before = pair.nodes[source].superblock(2048);
    assert!(!before.bitmap.is_some(), "{}", pair.describe());
    promote(&mut pair, source, false);
    pair.write(source, 0, 7, 4096).unwrap();
    assert_eq!(pair.nodes[source].status().connection, ConnectionState::WFBitMapS, "{}", pair.describe());
    let after = pair.nodes[source].superblock(2048);
    assert!(after.bitmap.same_generation(before.current) && !after.current.same_generation(before.current));
    for node in 0..2 {
        pair.kill(node);
        pair.nodes[node].slow_handlers = false;
    }
    for node in 0..2 {
        pair.start(node, fast());
    }
    pair.connect(&options());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[1 - source].load(0, 4096), [7; 4096]);
    let [one, other] = [0, 1].map(|node| pair.nodes[node].superblock(2048));
    assert!(one.current.same_generation(after.current) && other.current.same_generation(after.current));
}

/// Node 0, Primary, has fetched what it lacked and serves its disk; that it is good again is not on that disk yet.
fn good_but_not_on_disk() -> Pair {
    let mut pair = synced();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.write(0, 0, 5, 4096).unwrap();
    pair.nodes[0].stuck = true;
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| pair.kept(0) > 0);
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::SyncTarget);
    pair.unstick(0);
    pair.nodes[0].stuck_metadata = true;
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.settle();
    assert!(!pair.nodes[0].superblock(pair.sectors).flags.contains(Flags::CONSISTENT));
    pair
}

#[test]
fn nobody_gives_a_copy_up_for_one_that_a_crash_would_make_bad() {
    for (node, command) in
        [(1, Command::Invalidate { volume: VOLUME }), (0, Command::InvalidateRemote { volume: VOLUME })]
    {
        let mut pair = good_but_not_on_disk();
        let invalidated = pair.begin_command(node, command);
        pair.settle();
        assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
        assert!(!pair.nodes[node].replies.contains_key(&invalidated));
        pair.unstick(0);
        pair.until(|pair| pair.nodes[node].replies.contains_key(&invalidated));
        assert_eq!(pair.nodes[node].replies[&invalidated], Ok(()), "{}", pair.describe());
        assert!(pair.nodes[0].superblock(pair.sectors).flags.contains(Flags::CONSISTENT));
        assert_ne!(pair.nodes[1].status().disk, DiskState::UpToDate, "{}", pair.describe());
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        assert!(pair.differences().is_empty(), "{}", pair.describe());
    }
}

/// A Primary without a disk would lose its only data with the connection.
#[test]
fn a_bitmap_that_finds_no_disk_costs_no_connection() {
    let mut pair = synced();
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.write(0, 0, 5, 4096).unwrap();
    demote(&mut pair, 0);
    pair.begin_attach(1, fast());
    while pair.nodes[0].status().connection != ConnectionState::WFBitMapS {
        assert!(pair.step(), "{}", pair.describe());
    }
    // What node 0 says from now on is on its way when the disk goes.
    pair.cut = true;
    pair.settle();
    pair.begin_command(1, Command::Detach { volume: VOLUME, force: true });
    pair.settle();
    assert_eq!(pair.nodes[1].status().disk, DiskState::Diskless);
    pair.cut = false;
    promote(&mut pair, 1, false);
    pair.settle();
    let status = pair.nodes[1].status();
    let expected = (ConnectionState::Connected, DiskState::UpToDate);
    assert_eq!((status.connection, status.peer_disk), expected, "{}", pair.describe());
    assert!(!pair.nodes[1].says("connection lost"), "{}", pair.describe());
    assert_eq!(pair.read(1, 0, 4096).unwrap(), vec![5; 4096]);
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty(), "{}", pair.describe());
}

/// What a peer had acknowledged went with its cache. It comes back while I/O is frozen here, and a cluster manager has outdated it
/// meanwhile, or has not.
#[test]
fn what_a_fenced_peer_loses_with_its_cache_is_resynced() {
    for outdated in [false, true] {
        let mut pair = Pair::down(2048);
        for node in 0..2 {
            pair.start(node, fenced());
        }
        pair.connect(&NetOptions::default());
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
        promote(&mut pair, 0, true);
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        pair.nodes[0].slow_handlers = true;
        pair.acknowledge_from_the_cache();
        pair.kill(1);
        pair.nodes[1].store(0, &[0; 4096]);
        pair.nodes[1].stuck = false;
        pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
        pair.start(1, fenced());
        if outdated {
            pair.command(1, Command::Outdate { volume: VOLUME }).unwrap();
        }
        pair.nodes[0].slow_handlers = false;
        pair.command(1, Command::Connect(Box::default())).unwrap();
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        pair.settle();
        assert_eq!(pair.differences(), Vec::<u64>::new(), "outdated: {outdated}\n{}", pair.describe());
    }
}
