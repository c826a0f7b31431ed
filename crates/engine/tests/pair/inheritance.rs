//! Node 0, Primary, dies under clients that wait for its next engine. They may go on only with the data they know.

use udrbd_engine::interface::{Command, Failure, WaitingClients};
use udrbd_engine::state::StateChangeResult;
use udrbd_units::{ConnectionState, DiskState, GenerationId};

use crate::harness::{Pair, VOLUME};
use crate::{both, demote, fast, promote, synced};

fn served(pair: &Pair) -> GenerationId {
    pair.nodes[0].status().served_generation
}

/// The process dies and another one starts: it finds clients, who last saw this generation.
fn restart(pair: &mut Pair, clients: WaitingClients) {
    pair.kill(0);
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::WFConnection);
    pair.start(0, fast());
    wait(pair, Some(clients));
}

fn wait(pair: &mut Pair, clients: Option<WaitingClients>) {
    pair.command(0, Command::ClientsWait { volume: VOLUME, clients }).unwrap();
}

fn known(served: GenerationId) -> WaitingClients {
    WaitingClients { served, overwritten: false }
}

fn connect(pair: &mut Pair) {
    pair.command(0, Command::Connect(Box::default())).unwrap();
}

fn is_healthy(pair: &Pair) -> bool {
    both(pair, ConnectionState::Connected, DiskState::UpToDate)
}

fn expect_refusal(pair: &mut Pair, force: bool) {
    let result = pair.command(0, Command::Primary { volume: VOLUME, force });
    let Err(Failure::State { code, info }) = result else { panic!("{result:?}\n{}", pair.describe()) };
    assert_eq!((code, info.len()), (StateChangeResult::DeviceInUse, 1));
}

#[test]
fn clients_go_on_where_nobody_has_written() {
    for with_peer in [false, true] {
        let mut pair = synced();
        pair.write(0, 0, 7, 4096).unwrap();
        let clients = known(served(&pair));
        restart(&mut pair, clients);
        if with_peer {
            connect(&mut pair);
            pair.until(is_healthy);
        }
        promote(&mut pair, 0, false);
        pair.write(0, 8, 8, 4096).unwrap();
    }
}

#[test]
fn clients_go_on_with_the_generation_that_followed_theirs() {
    let mut pair = synced();
    let clients = known(served(&pair));
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 7, 4096).unwrap();
    assert_ne!(served(&pair), clients.served);
    pair.kill(0);
    pair.start(0, fast());
    wait(&mut pair, Some(clients));
    promote(&mut pair, 0, false);
}

#[test]
fn clients_do_not_go_on_after_a_resync_from_a_peer_that_was_primary() {
    for still_syncing in [false, true] {
        for force in [false, true] {
            let mut pair = synced();
            let clients = known(served(&pair));
            restart(&mut pair, clients);
            promote(&mut pair, 1, false);
            pair.write(1, 0, 9, 4096).unwrap();
            demote(&mut pair, 1);
            connect(&mut pair);
            if still_syncing {
                pair.nodes[0].stuck = true;
                pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::SyncTarget);
            } else {
                pair.until(is_healthy);
            }
            expect_refusal(&mut pair, force);
            assert!(!pair.nodes[0].status().clients_may_go_on);
            // Whoever waited has been told; new clients see the new data.
            wait(&mut pair, None);
            pair.unstick(0);
            pair.until(is_healthy);
            promote(&mut pair, 0, false);
            assert_eq!(pair.read(0, 0, 4096).unwrap(), [9; 4096]);
        }
    }
}

/// Both nodes have all of it, so it makes no new generation.
#[test]
fn clients_do_not_go_on_after_what_a_connected_peer_wrote() {
    let mut pair = synced();
    let clients = known(served(&pair));
    restart(&mut pair, clients);
    connect(&mut pair);
    pair.until(is_healthy);
    promote(&mut pair, 1, false);
    assert!(pair.nodes[0].status().clients_may_go_on, "nothing has been written");
    pair.write(1, 0, 9, 4096).unwrap();
    demote(&mut pair, 1);
    assert!(served(&pair).same_generation(clients.served));
    expect_refusal(&mut pair, false);
    // The next engine is told what this one says.
    let clients = pair.nodes[0].status().waiting_clients.unwrap();
    assert!(clients.overwritten);
    restart(&mut pair, clients);
    expect_refusal(&mut pair, false);
}

/// They saw the peer's blocks, and see them again.
#[test]
fn clients_of_a_primary_that_was_being_resynced_go_on() {
    let mut pair = synced();
    demote(&mut pair, 0);
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    promote(&mut pair, 1, false);
    pair.write(1, 0, 9, 4096).unwrap();
    demote(&mut pair, 1);
    pair.nodes[0].stuck = true;
    connect(&mut pair);
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::SyncTarget);
    promote(&mut pair, 0, false);
    assert_eq!(pair.read(0, 0, 4096).unwrap(), [9; 4096]);
    let clients = known(served(&pair));
    pair.nodes[0].stuck = false;
    restart(&mut pair, clients);
    connect(&mut pair);
    pair.until(is_healthy);
    promote(&mut pair, 0, false);
    assert_eq!(pair.read(0, 0, 4096).unwrap(), [9; 4096]);
}

#[test]
fn clients_of_whom_nothing_is_known_do_not_go_on() {
    let mut pair = synced();
    restart(&mut pair, known(GenerationId::NONE));
    expect_refusal(&mut pair, true);
}
