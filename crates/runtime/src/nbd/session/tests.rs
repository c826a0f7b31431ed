use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::buffers::PoolOptions;
use crate::nbd::Export;
use crate::nbd::protocol::{CHUNK_MAGIC, PAYLOAD_BYTES_MAX, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, request_flag};
use crate::ring::RingOptions;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Receive,
    Writable,
}

const DEVICE_BYTES: usize = 8 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

fn negotiated(structured: bool) -> Negotiated {
    let export = Export {
        name: "r0".to_owned(),
        description: String::new(),
        size_bytes: DEVICE_BYTES as u64,
        block_bytes: 512,
        read_only: false,
        trim: true,
        rotational: false,
    };
    Negotiated { export, structured, early_bytes: Vec::new() }
}

/// A device in memory behind one session, which completes what is submitted in an order a seed decides.
struct Server {
    memory: Vec<u8>,
    submitted: Vec<Submission>,
    /// Reads and writes that touch this byte fail.
    bad_byte: Option<u64>,
    /// Reads are answered from a buffer of the server's own, as if the data came from the peer.
    from_peer: bool,
    limits: SessionLimits,
    pool_bytes: usize,
    seed: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            memory: vec![0; DEVICE_BYTES],
            submitted: Vec::new(),
            bad_byte: None,
            from_peer: false,
            limits: SessionLimits::default(),
            pool_bytes: 16 << 20,
            seed: 1,
        }
    }
}

impl Server {
    fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % below
    }

    /// Serves until the session has finished; every buffer must have come back then.
    fn run(&mut self, socket: UnixStream, negotiated: &Negotiated) {
        let pool = PoolOptions { bytes: self.pool_bytes, lock: false };
        let mut ring = Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap();
        let tokens = StreamTokens { receive: Token::Receive, writable: Token::Writable };
        let mut session = Session::new(&mut ring, socket.into(), negotiated, self.limits, tokens).unwrap();
        let mut waiting: Vec<Submission> = Vec::new();
        let mut completions = Vec::new();
        loop {
            session.resume(&mut ring, &mut waiting);
            while !waiting.is_empty() && self.random(4) > 0 {
                let which = self.random(waiting.len());
                self.do_one(&mut ring, &mut session, waiting.swap_remove(which));
            }
            session.flush(&mut ring);
            if session.is_finished() {
                break;
            }
            completions.clear();
            let busy = !waiting.is_empty() || session.wants_resume(&ring);
            let timeout = busy.then_some(std::time::Duration::ZERO);
            ring.wait(timeout, &mut completions).unwrap();
            for completion in &completions {
                match completion.token {
                    Token::Receive => session.handle_receive(&mut ring, completion.result, &mut waiting),
                    Token::Writable => session.handle_writable(&mut ring, completion.result),
                }
            }
            assert!(waiting.len() <= self.limits.submissions);
            let data = waiting.iter().filter(|one| one.buffer.is_some());
            let data_bytes: u64 = data.map(|one| u64::from(one.range.bytes)).sum();
            assert!(data_bytes <= self.limits.data_bytes.max(u64::from(self.limits.piece_bytes)));
        }
        session.close(&mut ring);
        while ring.in_flight() > 0 {
            ring.wait(None, &mut completions).unwrap();
        }
        assert_eq!(ring.buffers().used_bytes(), 0, "every buffer has come back");
    }

    fn do_one(&mut self, ring: &mut Ring<Token>, session: &mut Session<Token>, submission: Submission) {
        self.submitted.push(submission);
        let start = submission.range.start.bytes() as usize;
        let end = start + submission.range.bytes as usize;
        let bad = self.bad_byte.is_some_and(|bad| (start as u64..end as u64).contains(&bad));
        let result = if bad { Err(Errno::EIO) } else { Ok(()) };
        let slice = submission.buffer.map(|buffer| buffer.slice(0, submission.range.bytes));
        let mut data = None;
        match (submission.operation, slice) {
            _ if bad => {}
            (Operation::Read, Some(slice)) => {
                let source = if self.from_peer { ring.allocate(end - start) } else { None };
                data = source;
                let target = source.map_or(slice, |buffer| buffer.slice(0, slice.length));
                ring.bytes_mut(target).copy_from_slice(&self.memory[start..end]);
            }
            (Operation::Write { .. }, Some(slice)) => {
                self.memory[start..end].copy_from_slice(ring.bytes(slice));
            }
            (Operation::Trim | Operation::WriteZeroes { .. }, None) => self.memory[start..end].fill(0),
            (Operation::Flush, None) => assert_eq!(end - start, 0),
            other => panic!("{other:?}"),
        }
        session.complete(ring, submission.id, result, data);
        if let Some(data) = data {
            ring.release(data);
        }
    }

    fn start(mut self, structured: bool) -> (Client, thread::JoinHandle<Self>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            self.run(ours, &negotiated(structured));
            self
        });
        (Client { socket: theirs, structured }, thread)
    }
}

struct Client {
    socket: UnixStream,
    structured: bool,
}

/// An answer: the data and the first error.
type Answer = Result<Vec<u8>, u32>;

impl Client {
    fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        self.socket.write_all(&request(command, flags, cookie, offset, length)).unwrap();
    }

    fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        self.send(WRITE, flags, cookie, offset, data.len() as u32);
        self.socket.write_all(data).unwrap();
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Receives one answer; `offset` and `length` are those of the read it must be for, 0 for other commands.
    fn answer(&mut self, cookie: u64, offset: u64, length: usize) -> Answer {
        let mut data = vec![0xee; length];
        let mut error = 0;
        loop {
            let magic = self.number::<4>() as u32;
            if magic == SIMPLE_REPLY_MAGIC {
                assert!(!self.structured || length == 0);
                error = self.number::<4>() as u32;
                assert_eq!(self.number::<8>(), cookie);
                if error == 0 {
                    self.socket.read_exact(&mut data).unwrap();
                }
                break;
            }
            assert_eq!(magic, CHUNK_MAGIC);
            let done = self.number::<2>() & 1 == 1;
            let kind = self.number::<2>();
            assert_eq!(self.number::<8>(), cookie);
            let bytes = self.number::<4>() as usize;
            if kind == 1 {
                let position = (self.number::<8>() - offset) as usize;
                self.socket.read_exact(&mut data[position..position + bytes - 8]).unwrap();
            } else {
                assert!(kind == 0x8001 || kind == 0x8002, "{kind:#x}");
                error = self.number::<4>() as u32;
                assert_eq!(self.number::<2>(), 0);
                if kind == 0x8002 {
                    self.number::<8>();
                }
            }
            if done {
                break;
            }
        }
        if error == 0 { Ok(data) } else { Err(error) }
    }

    fn disconnect(mut self) {
        self.send(DISCONNECT, 0, 0, 0, 0);
        assert_eq!(self.socket.read(&mut [0; 1]).unwrap(), 0, "nothing is sent after the last answer");
    }
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn pattern(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|index| ((index + salt) * 31 % 251) as u8).collect()
}

#[test]
fn what_is_written_is_read_at_any_size_with_either_kind_of_reply() {
    for (structured, from_peer) in [(false, false), (true, false), (true, true), (false, true)] {
        let (mut client, server) = Server { from_peer, ..Server::default() }.start(structured);
        for (cookie, length) in [512, 4096, 70_144, 1 << 20, (1 << 20) + 512, 5 << 20].into_iter().enumerate()
        {
            let (cookie, data) = (cookie as u64, pattern(length, cookie));
            client.write(request_flag::FUA, cookie, 1024, &data);
            assert_eq!(client.answer(cookie, 0, 0), Ok(Vec::new()));
            client.send(READ, 0, cookie, 1024, length as u32);
            assert_eq!(client.answer(cookie, 1024, length), Ok(data), "{length} bytes");
        }
        client.disconnect();
        let server = server.join().unwrap();
        assert!(server.submitted.iter().all(|submission| submission.range.bytes <= 1 << 20));
        let writes = server.submitted.iter().filter(|one| one.operation == Operation::Write { fua: true });
        assert_eq!(
            writes.map(|write| u64::from(write.range.bytes)).sum::<u64>(),
            (512 + 4096 + 70_144) + (7 << 20) + 512
        );
    }
}

#[test]
fn ranges_without_data_are_cut_and_forced_by_a_flush() {
    let limits = SessionLimits { zero_bytes: 1 << 20, ..SessionLimits::default() };
    let (mut client, server) =
        Server { memory: vec![7; DEVICE_BYTES], limits, ..Server::default() }.start(true);
    client.send(TRIM, request_flag::FUA, 1, 512, 3 << 20);
    assert_eq!(client.answer(1, 0, 0), Ok(Vec::new()));
    client.send(WRITE_ZEROES, request_flag::NO_HOLE, 2, 4 << 20, 512);
    assert_eq!(client.answer(2, 0, 0), Ok(Vec::new()));
    client.send(FLUSH, 0, 3, 0, 0);
    assert_eq!(client.answer(3, 0, 0), Ok(Vec::new()));
    client.disconnect();
    let server = server.join().unwrap();
    let mut operations: Vec<_> = server.submitted.iter().map(|one| one.operation).collect();
    assert_eq!(operations.pop(), Some(Operation::Flush));
    assert_eq!(operations.pop(), Some(Operation::WriteZeroes { may_unmap: false }));
    assert_eq!(operations, [Operation::Trim, Operation::Trim, Operation::Trim, Operation::Flush]);
    let zero = |position: usize| {
        (512..512 + (3 << 20)).contains(&position) || (4 << 20..(4 << 20) + 512).contains(&position)
    };
    assert!(server.memory.iter().enumerate().all(|(position, &byte)| (byte == 0) == zero(position)));
}

#[test]
fn an_error_in_any_piece_fails_the_request_and_nothing_else() {
    for structured in [false, true] {
        let bad_byte = Some(1 << 20);
        let (mut client, server) = Server { bad_byte, ..Server::default() }.start(structured);
        client.write(0, 1, 0, &pattern(3 << 20, 0));
        assert_eq!(client.answer(1, 0, 0), Err(5));
        client.send(READ, 0, 2, 1 << 20, 4096);
        assert_eq!(client.answer(2, 1 << 20, 4096), Err(5));
        client.send(READ, 0, 3, 1 << 20, 2 << 20);
        assert_eq!(client.answer(3, 1 << 20, 2 << 20), Err(5));
        client.send(WRITE_ZEROES, request_flag::FUA, 4, 1 << 20, 512);
        assert_eq!(client.answer(4, 0, 0), Err(5));
        client.write(0, 5, 4 << 20, &pattern(512, 0));
        assert_eq!(client.answer(5, 0, 0), Ok(Vec::new()));
        client.disconnect();
        server.join().unwrap();
    }
}

#[test]
fn an_error_behind_a_sent_header_ends_a_session_without_structured_replies() {
    let (mut client, server) = Server { bad_byte: Some(1 << 20), ..Server::default() }.start(false);
    client.send(READ, 0, 9, 0, 2 << 20);
    assert_eq!(
        (client.number::<4>() as u32, client.number::<4>(), client.number::<8>()),
        (SIMPLE_REPLY_MAGIC, 0, 9)
    );
    let mut rest = Vec::new();
    // A reset is as good an end as an orderly one.
    let _ = client.socket.read_to_end(&mut rest);
    assert!(rest.len() <= 1 << 20);
    server.join().unwrap();
}

#[test]
fn a_refused_write_is_answered_behind_its_payload() {
    let (mut client, server) = Server::default().start(true);
    client.write(0, 1, DEVICE_BYTES as u64, &pattern(300_032, 0));
    assert_eq!(client.answer(1, 0, 0), Err(28));
    client.write(0, 2, 1, &pattern(512, 0));
    assert_eq!(client.answer(2, 0, 0), Err(22));
    client.send(READ, request_flag::DF, 3, 0, 2 << 20);
    assert_eq!(client.answer(3, 0, 2 << 20), Err(75));
    client.send(READ, request_flag::DF, 4, 0, 1 << 20);
    assert!(client.answer(4, 0, 1 << 20).is_ok());
    client.send(READ, 0, 5, 0, PAYLOAD_BYTES_MAX + 512);
    assert_eq!(client.answer(5, 0, 512), Err(22));
    client.send(77, 0, 6, 0, 512);
    assert_eq!(client.answer(6, 0, 0), Err(22));
    client.disconnect();
    assert_eq!(server.join().unwrap().submitted.len(), 1);
}

#[test]
fn a_client_that_goes_away_in_the_middle_leaves_nothing_behind() {
    for left_out in [1, 511, (1 << 20) + 1] {
        let (mut client, server) = Server { seed: left_out as u64, ..Server::default() }.start(true);
        for cookie in 0..5 {
            client.send(READ, 0, cookie, 0, 1 << 20);
        }
        client.send(WRITE, 0, 99, 0, 2 << 20);
        client.socket.write_all(&vec![1; (2 << 20) - left_out]).unwrap_or_default();
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn a_small_pool_slows_a_session_down_and_nothing_more() {
    let server = Server { pool_bytes: 2 << 20, ..Server::default() };
    let (mut client, server) = server.start(true);
    let mut writer = client.socket.try_clone().unwrap();
    let sender = thread::spawn(move || {
        for cookie in 0..30u64 {
            writer.write_all(&request(READ, 0, cookie, 0, 600_064)).unwrap();
        }
    });
    // Replies may come in any order; each of these is the same.
    let mut seen = std::collections::HashSet::new();
    for _ in 0..30 {
        let header = (client.number::<4>() as u32, client.number::<2>(), client.number::<2>());
        assert_eq!(header, (CHUNK_MAGIC, 1, 1));
        assert!(seen.insert(client.number::<8>()));
        assert_eq!(client.number::<4>(), 600_072);
        client.socket.read_exact(&mut vec![0; 600_072]).unwrap();
    }
    sender.join().unwrap();
    client.disconnect();
    server.join().unwrap();
}

#[test]
fn one_submission_at_a_time_serves_everything_that_is_waiting() {
    let limits = SessionLimits { submissions: 1, ..SessionLimits::default() };
    let (mut client, server) = Server { limits, ..Server::default() }.start(true);
    let batch: Vec<u8> =
        (0..20).flat_map(|cookie| request(TRIM, cookie as u16 & 1, cookie, 0, 512)).collect();
    client.socket.write_all(&batch).unwrap();
    for cookie in 0..20 {
        assert_eq!(client.answer(cookie, 0, 0), Ok(Vec::new()));
    }
    client.disconnect();
    server.join().unwrap();
}

#[test]
fn a_chunk_that_is_done_early_does_not_end_the_reply() {
    let limits = SessionLimits { data_bytes: 1 << 20, ..SessionLimits::default() };
    let memory = pattern(DEVICE_BYTES, 5);
    let (mut client, server) = Server { limits, memory: memory.clone(), ..Server::default() }.start(true);
    client.send(READ, 0, 1, 512, 4 << 20);
    assert!(client.answer(1, 512, 4 << 20).as_deref() == Ok(&memory[512..512 + (4 << 20)]));
    client.disconnect();
    server.join().unwrap();
}

#[test]
fn a_read_answered_in_order_is_not_interrupted_by_other_replies() {
    for seed in 0..20 {
        let memory = pattern(DEVICE_BYTES, 5);
        let (mut client, server) = Server { seed, memory: memory.clone(), ..Server::default() }.start(false);
        // By cookie: small ones around two large ones.
        let lengths = [4096u32, 4096, 3 << 20, 4096, 512, 2 << 20, 512];
        let batch: Vec<u8> =
            (0..7).flat_map(|cookie| request(READ, 0, cookie, 0, lengths[cookie as usize])).collect();
        client.socket.write_all(&batch).unwrap();
        for _ in lengths {
            assert_eq!((client.number::<4>() as u32, client.number::<4>()), (SIMPLE_REPLY_MAGIC, 0));
            let length = lengths[client.number::<8>() as usize] as usize;
            let mut data = vec![0; length];
            client.socket.read_exact(&mut data).unwrap();
            assert!(data == memory[..length]);
        }
        client.disconnect();
        server.join().unwrap();
    }
}

#[test]
fn payload_that_arrives_after_the_session_was_given_up_is_ignored() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut ring = Ring::new(RingOptions::default()).unwrap();
    let tokens = StreamTokens { receive: Token::Receive, writable: Token::Writable };
    let limits = SessionLimits::default();
    let mut session = Session::new(&mut ring, ours.into(), &negotiated(true), limits, tokens).unwrap();
    let mut submissions = Vec::new();
    let mut completions = Vec::new();
    theirs.write_all(&request(WRITE, 0, 1, 0, 4096)).unwrap();
    for given_up in [false, true] {
        session.resume(&mut ring, &mut submissions);
        session.flush(&mut ring);
        if given_up {
            session.hang_up(&mut ring);
            theirs.write_all(&[1; 4096]).unwrap();
        }
        completions.clear();
        ring.wait(None, &mut completions).unwrap();
        for completion in &completions {
            assert_eq!(completion.token, Token::Receive);
            session.handle_receive(&mut ring, completion.result, &mut submissions);
        }
        session.flush(&mut ring);
    }
    assert!(submissions.is_empty() && session.is_finished());
    session.close(&mut ring);
    assert_eq!(ring.buffers().used_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a client sends, the session ends when the client does, with every buffer back in the pool.
    #[test]
    fn hostile_bytes_end_a_session_cleanly(
        seed in any::<u64>(),
        structured in any::<bool>(),
        parts in prop::collection::vec((0u16..9, prop_oneof![Just(0u16), 0u16..32, any::<u16>()], 0u64..20_000, prop_oneof![0u32..9, Just(4100), any::<u32>()], prop::collection::vec(any::<u8>(), 0..2000)), 1..40),
        whole in any::<bool>(),
    ) {
        let (client, server) = Server { seed, ..Server::default() }.start(structured);
        let mut socket = client.socket;
        let drain = socket.try_clone().unwrap();
        let reader = thread::spawn(move || { let mut drain = drain; let _ = drain.read_to_end(&mut Vec::new()); });
        for (command, flags, sector, sectors, noise) in parts {
            let mut bytes = request(command, flags, 1, sector * 512, sectors.wrapping_mul(512));
            bytes.extend(&noise[..if command == WRITE || !whole { noise.len() } else { 0 }]);
            if socket.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = socket.shutdown(std::net::Shutdown::Write);
        server.join().unwrap();
        drop(socket);
        reader.join().unwrap();
    }

    /// Any sequence of requests leaves the device as a plain array would be.
    #[test]
    fn a_session_is_an_array_of_bytes(
        seed in any::<u64>(),
        structured in any::<bool>(),
        steps in prop::collection::vec((0u8..4, 0usize..DEVICE_BYTES / 512, 1usize..3000), 1..24),
    ) {
        let (mut client, server) = Server { seed, ..Server::default() }.start(structured);
        let mut model = vec![0; DEVICE_BYTES];
        for (number, (kind, sector, sectors)) in steps.into_iter().enumerate() {
            let cookie = number as u64;
            let start = sector * 512;
            let end = (start + sectors * 512).min(DEVICE_BYTES);
            let (offset, length) = (start as u64, (end - start) as u32);
            match kind {
                0 => {
                    let data = pattern(end - start, number);
                    client.write(0, cookie, offset, &data);
                    model[start..end].copy_from_slice(&data);
                    prop_assert!(client.answer(cookie, 0, 0).is_ok());
                }
                1 => {
                    client.send(WRITE_ZEROES, 0, cookie, offset, length);
                    model[start..end].fill(0);
                    prop_assert!(client.answer(cookie, 0, 0).is_ok());
                }
                _ => {
                    client.send(READ, 0, cookie, offset, length);
                    let answer = client.answer(cookie, offset, end - start);
                    prop_assert!(answer.as_deref() == Ok(&model[start..end]));
                }
            }
        }
        client.disconnect();
        prop_assert!(server.join().unwrap().memory == model);
    }
}
