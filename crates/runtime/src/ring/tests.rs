use std::io::Write;
use std::os::fd::OwnedFd;

use super::*;
use crate::Errno;

fn ring() -> Ring<u32> {
    Ring::new(RingOptions { pool: PoolOptions { bytes: 4 << 20, lock: false }, ..RingOptions::default() })
        .unwrap()
}

fn file(bytes: u64) -> Descriptor {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    Arc::new(OwnedFd::from(file))
}

fn run(ring: &mut Ring<u32>) -> Vec<(u32, Result<u32, Errno>)> {
    let mut completions = Vec::new();
    while ring.in_flight() > 0 {
        ring.wait(None, &mut completions).unwrap();
    }
    completions.iter().map(|completion| (completion.token, completion.result)).collect()
}

#[test]
fn what_is_written_is_read_back() {
    let mut ring = ring();
    let file = file(1 << 20);
    let buffer = ring.allocate(8192).unwrap();
    ring.bytes_mut(buffer.slice(0, 4096)).fill(7);
    for durability in [Durability::Cached, Durability::Forced, Durability::FlushedAndForced] {
        ring.write(&file, Sector(8), buffer.slice(0, 4096), durability, 1);
        assert_eq!(run(&mut ring), [(1, Ok(4096))]);
    }
    ring.read(&file, Sector(8), buffer.slice(4096, 4096), 2);
    ring.sync(&file, 3);
    let mut results = run(&mut ring);
    results.sort_by_key(|result| result.0);
    assert_eq!(results, [(2, Ok(4096)), (3, Ok(0))]);
    assert!(ring.bytes(buffer.slice(4096, 4096)).iter().all(|&byte| byte == 7));
}

#[test]
fn reading_over_the_end_is_an_error_and_not_stale_memory() {
    let mut ring = ring();
    let file = file(4096);
    let buffer = ring.allocate(8192).unwrap();
    ring.read(&file, Sector(0), buffer.slice(0, 8192), 1);
    assert_eq!(run(&mut ring), [(1, Err(Errno::EIO))]);
}

#[test]
fn zeroing_in_every_way_zeroes_exactly_the_range() {
    for zeroing in [Zeroing::Discard, Zeroing::MayUnmap, Zeroing::KeepAllocated] {
        let mut ring = ring();
        let file = file(1 << 20);
        let buffer = ring.allocate(1 << 20).unwrap();
        let all = buffer.slice(0, 1 << 20);
        ring.bytes_mut(all).fill(7);
        ring.write(&file, Sector(0), all, Durability::Cached, 1);
        run(&mut ring);
        ring.zero((&file, StorageKind::RegularFile), Sector(1), 200_192, zeroing, 2);
        assert_eq!(run(&mut ring), [(2, Ok(0))]);
        ring.read(&file, Sector(0), all, 3);
        run(&mut ring);
        for (position, &byte) in ring.bytes(all).iter().enumerate() {
            let zero = (512..512 + 200_192).contains(&position);
            assert_eq!(byte == 0, zero, "{zeroing:?} at {position}");
        }
    }
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    let options =
        RingOptions { submissions: 4, completions: 8, pool: PoolOptions { bytes: 4 << 20, lock: false } };
    let mut ring = Ring::<u32>::new(options).unwrap();
    let file = file(1 << 20);
    let buffer = ring.allocate(4096).unwrap();
    for token in 0..200 {
        ring.read(&file, Sector(u64::from(token)), buffer.slice(0, 512), token);
    }
    let mut tokens = run(&mut ring);
    tokens.sort_by_key(|result| result.0);
    assert_eq!(tokens, (0..200).map(|token| (token, Ok(512))).collect::<Vec<_>>());
}

#[test]
fn a_wait_ends_at_its_deadline_without_completions() {
    let mut ring = ring();
    let mut completions = Vec::new();
    ring.wait(Some(Duration::from_millis(5)), &mut completions).unwrap();
    assert_eq!(completions, []);
}

#[test]
fn a_cancelled_operation_completes_once() {
    let mut ring = ring();
    let (reader, _writer) = std::io::pipe().unwrap();
    let reader: Descriptor = Arc::new(OwnedFd::from(reader));
    let operation = ring.poll(&reader, Readiness::Readable, 9);
    ring.cancel(operation);
    assert_eq!(run(&mut ring), [(9, Err(Errno::ECANCELED))]);
    ring.cancel(operation);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_poll_reports_what_became_ready() {
    let mut ring = ring();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader: Descriptor = Arc::new(OwnedFd::from(reader));
    ring.poll(&reader, Readiness::Readable, 9);
    writer.write_all(b"x").unwrap();
    assert_eq!(run(&mut ring), [(9, Ok(libc::POLLIN as u32))]);
}

#[test]
fn dropping_a_ring_with_operations_in_flight_is_harmless() {
    let mut ring = ring();
    let (reader, _writer) = std::io::pipe().unwrap();
    let reader: Descriptor = Arc::new(OwnedFd::from(reader));
    let file = file(1 << 20);
    let buffer = ring.allocate(1 << 20).unwrap();
    ring.poll(&reader, Readiness::Readable, 1);
    ring.read(&file, Sector(0), buffer.slice(0, 1 << 20), 2);
    drop(ring);
    assert_eq!(Arc::strong_count(&reader), 1);
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn transfers_use_the_memory_a_buffer_has_now() {
    let mut ring = ring();
    let file = file(1 << 20);
    let buffer = ring.allocate(8192).unwrap();
    let (first, second) = (buffer.slice(0, 4096), buffer.slice(4096, 4096));
    for round in 1..4 {
        ring.bytes_mut(buffer.slice(0, 8192)).fill(round);
        ring.write(&file, Sector(0), first, Durability::Cached, 1);
        assert_eq!(run(&mut ring), [(1, Ok(4096))]);
        ring.read(&file, Sector(0), second, 2);
        assert_eq!(run(&mut ring), [(2, Ok(4096))]);
        assert!(ring.bytes(second).iter().all(|&byte| byte == round));
        // The kernel may know the old pages.
        assert!(ring.exchange(buffer.slice(0, 8192)));
        assert!(ring.bytes(first).iter().all(|&byte| byte == 0));
        ring.read(&file, Sector(0), second, 3);
        assert_eq!(run(&mut ring), [(3, Ok(4096))]);
        assert!(ring.bytes(second).iter().all(|&byte| byte == round));
    }
}
