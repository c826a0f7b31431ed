use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::unix::net::UnixStream;

use super::*;
use crate::buffers::PoolOptions;
use crate::ring::{Completion, RingOptions};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Accept,
    Connect,
    Receive,
    Writable,
}

const TOKENS: StreamTokens<Token> = StreamTokens { receive: Token::Receive, writable: Token::Writable };

fn ring() -> Ring<Token> {
    let pool = PoolOptions { bytes: 8 << 20, lock: false };
    Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap()
}

fn stream(ring: &mut Ring<Token>) -> (Stream<Token>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Stream::new(ring, ours.into(), 4096, TOKENS).unwrap().unwrap(), theirs)
}

fn next(ring: &mut Ring<Token>) -> Completion<Token> {
    let mut completions = Vec::new();
    while completions.is_empty() {
        ring.wait(None, &mut completions).unwrap();
    }
    assert_eq!(completions.len(), 1);
    completions[0]
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 % 253) as u8).collect()
}

#[test]
fn headers_and_payload_arrive_in_the_order_they_were_queued() {
    let mut ring = ring();
    let (mut stream, mut peer) = stream(&mut ring);
    let buffer = ring.allocate(4096).unwrap();
    ring.bytes_mut(buffer.slice(0, 4096)).copy_from_slice(&pattern(4096));
    stream.queue_bytes(b"one ");
    stream.queue_header(|header| header.extend_from_slice(b"two "));
    stream.queue_payload(&mut ring, buffer.slice(10, 20));
    stream.queue_bytes(b" three");
    ring.release(buffer);
    assert_eq!(stream.queued_bytes(), 34);
    stream.flush(&mut ring).unwrap();
    assert_eq!((stream.queued_bytes(), stream.bytes_sent()), (0, 34));
    let mut got = [0; 34];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got[..8], b"one two ");
    assert_eq!(&got[8..28], &pattern(30)[10..]);
    assert_eq!(&got[28..], b" three");
    stream.close(&mut ring);
    assert_eq!(ring.buffers().used_bytes(), 0);
}

#[test]
fn a_full_socket_is_waited_for_and_nothing_is_lost_or_doubled() {
    let mut ring = ring();
    let (mut stream, mut peer) = stream(&mut ring);
    let mut expected = Vec::new();
    let long_header = pattern(1 << 20);
    stream.queue_bytes(&long_header);
    expected.extend_from_slice(&long_header);
    for round in 0..40u8 {
        let buffer = ring.allocate(100_000).unwrap();
        let payload = pattern(100_000 - usize::from(round));
        ring.bytes_mut(buffer.slice(0, payload.len() as u32)).copy_from_slice(&payload);
        stream.queue_bytes(&[round; 33]);
        stream.queue_payload(&mut ring, buffer.slice(0, payload.len() as u32));
        ring.release(buffer);
        expected.extend_from_slice(&[round; 33]);
        expected.extend_from_slice(&payload);
    }
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        got
    });
    stream.flush(&mut ring).unwrap();
    while stream.queued_bytes() > 0 {
        // A second flush while the first waits must not send out of order.
        stream.flush(&mut ring).unwrap();
        let completion = next(&mut ring);
        assert_eq!(completion.token, Token::Writable);
        stream.handle_writable(&mut ring, completion.result).unwrap();
    }
    stream.close_sending();
    assert_eq!(reader.join().unwrap(), expected);
    stream.close(&mut ring);
    assert_eq!(ring.buffers().used_bytes(), 0);
}

#[test]
fn bulk_payload_lands_in_its_buffer_whatever_part_had_arrived() {
    for arrived in [0usize, 1, 100, 3000, 5000, 9000] {
        let mut ring = ring();
        let (mut stream, mut peer) = stream(&mut ring);
        let message: Vec<u8> = [b"head".as_slice(), &pattern(5000), b"tail"].concat();
        let first = (4 + arrived).min(message.len());
        peer.write_all(&message[..first]).unwrap();
        stream.arm(&mut ring);
        assert_eq!(stream.handle_receive(next(&mut ring).result), Received::Data);
        assert_eq!(&stream.data(&ring)[..4], b"head");
        stream.consume(4);
        let buffer = ring.allocate(5000).unwrap();
        let target = buffer.slice(0, 5000);
        let mut whole = stream.receive_into(&mut ring, target);
        peer.write_all(&message[first..]).unwrap();
        while !whole {
            stream.arm(&mut ring);
            whole = match stream.handle_receive(next(&mut ring).result) {
                Received::Bulk(slice) => slice == target,
                other => panic!("{other:?}"),
            };
        }
        assert_eq!(ring.bytes(target), pattern(5000));
        while stream.data(&ring).len() < 4 {
            stream.arm(&mut ring);
            assert_eq!(stream.handle_receive(next(&mut ring).result), Received::Data);
        }
        assert_eq!(stream.data(&ring), b"tail");
        stream.close(&mut ring);
    }
}

#[test]
fn unconsumed_bytes_survive_being_moved_to_the_front() {
    let mut ring = ring();
    let (mut stream, mut peer) = stream(&mut ring);
    let message = pattern(40_000);
    let mut got = Vec::new();
    let mut sent = 0;
    while got.len() < message.len() {
        let more = (message.len() - sent).min(777);
        peer.write_all(&message[sent..sent + more]).unwrap();
        sent += more;
        stream.arm(&mut ring);
        assert_eq!(stream.handle_receive(next(&mut ring).result), Received::Data);
        let data = stream.data(&ring);
        let keep = if sent == message.len() { 0 } else { 13 };
        let consumed = data.len() - keep.min(data.len());
        got.extend_from_slice(&data[..consumed]);
        stream.consume(consumed);
    }
    assert_eq!(got, message);
}

#[test]
fn the_end_of_the_stream_and_a_broken_one_are_events() {
    let mut ring = ring();
    let (mut stream, peer) = stream(&mut ring);
    stream.arm(&mut ring);
    drop(peer);
    assert_eq!(stream.handle_receive(next(&mut ring).result), Received::Closed);
    stream.queue_bytes(b"x");
    assert_eq!(stream.flush(&mut ring), Err(Errno::EPIPE));
    assert_eq!(stream.queued_bytes(), 0);
    stream.close(&mut ring);
}

#[test]
fn closing_with_a_receive_under_way_gives_everything_back() {
    let mut ring = ring();
    let (mut stream, mut peer) = stream(&mut ring);
    stream.arm(&mut ring);
    stream.close(&mut ring);
    let mut completions = Vec::new();
    while ring.in_flight() > 0 {
        ring.wait(None, &mut completions).unwrap();
    }
    assert_eq!(ring.buffers().used_bytes(), 0);
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn both_address_families_connect_from_the_address_asked_for() {
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let mut ring = ring();
        let options = SocketOptions { send_buffer_bytes: 131_072, receive_buffer_bytes: 131_072 };
        let any = SocketAddr::new(ip, 0);
        let mut listener = match Listener::bind(any, options) {
            Err(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT) if ip.is_ipv6() => continue,
            listener => listener.unwrap(),
        };
        let address = listener.local_address().unwrap();
        listener.arm(&mut ring, Token::Accept);
        let connecting = Connecting::start(&mut ring, any, address, options, Token::Connect).unwrap();
        let mut connected = None;
        let mut accepted = None;
        let mut connecting = Some(connecting);
        while connected.is_none() || accepted.is_none() {
            let mut completions = Vec::new();
            ring.wait(None, &mut completions).unwrap();
            for completion in completions {
                match completion.token {
                    Token::Accept => accepted = listener.accept().unwrap(),
                    Token::Connect => {
                        connected = Some(connecting.take().unwrap().finish(completion.result).unwrap());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let (accepted, from) = accepted.unwrap();
        let connected = connected.unwrap();
        assert_eq!(from, local_address(connected.as_fd()).unwrap());
        assert_eq!(from.ip(), ip);
        let bytes = nix::sys::socket::getsockopt(&accepted, nix::sys::socket::sockopt::SndBuf).unwrap();
        assert_eq!(bytes, 131_072);
        let second = Listener::bind(address, options);
        assert!(matches!(second, Err(Errno::EADDRINUSE)), "{second:?}");
        listener.close(&mut ring);
    }
}

use std::net::SocketAddr;

#[test]
fn a_refused_and_an_abandoned_attempt_leave_nothing_behind() {
    let mut ring = ring();
    let options = SocketOptions::default();
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let closed = Listener::bind(any, options).unwrap();
    let address = closed.local_address().unwrap();
    closed.close(&mut ring);
    let refused = Connecting::start(&mut ring, any, address, options, Token::Connect).unwrap();
    assert_eq!(refused.finish(next(&mut ring).result).unwrap_err(), Errno::ECONNREFUSED);
    let listener = Listener::bind(any, options).unwrap();
    let address = listener.local_address().unwrap();
    let attempt = Connecting::start(&mut ring, any, address, options, Token::Connect).unwrap();
    attempt.abandon(&mut ring);
    next(&mut ring);
    while ring.in_flight() > 0 {
        ring.wait(None, &mut Vec::new()).unwrap();
    }
}

#[test]
fn an_aborted_stream_resets_the_peer() {
    let mut ring = ring();
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let mut listener = Listener::bind(any, SocketOptions::default()).unwrap();
    listener.arm(&mut ring, Token::Accept);
    let mut peer = TcpStream::connect(listener.local_address().unwrap()).unwrap();
    next(&mut ring);
    let (socket, _) = listener.accept().unwrap().unwrap();
    let stream = Stream::new(&mut ring, socket, 4096, TOKENS).unwrap().unwrap();
    stream.abort(&mut ring);
    let error = peer.read(&mut [0; 1]);
    // The shutdown may be seen before the reset.
    assert!(matches!(error, Ok(0)) || error.is_err(), "{error:?}");
}

fn lending_stream(ring: &mut Ring<Token>) -> (Stream<Token>, TcpStream) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    let mut stream = Stream::new(ring, socket.into(), 4096, TOKENS).unwrap().unwrap();
    stream.lend_held_payload();
    (stream, peer)
}

#[test]
fn held_payload_is_sent_without_a_copy_and_other_payload_is_copied() {
    let mut ring = ring();
    let (mut stream, mut peer) = lending_stream(&mut ring);
    let all = |buffer: BufferHandle| buffer.slice(0, 4096);
    let (held, other) = (ring.allocate(4096).unwrap(), ring.allocate(4096).unwrap());
    for buffer in [held, other] {
        ring.bytes_mut(all(buffer)).fill(1);
    }
    stream.queue_bytes(b"head");
    stream.queue_held_payload(&mut ring, all(held));
    stream.queue_payload(&mut ring, all(other));
    stream.flush(&mut ring).unwrap();
    assert_eq!((stream.queued_bytes(), stream.bytes_sent()), (0, 4 + 2 * 4096));
    // What the owner of held payload must not do shows that it is the peer's as well.
    for buffer in [held, other] {
        ring.bytes_mut(all(buffer)).fill(2);
    }
    let mut got = [0; 4 + 2 * 4096];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got[..4], b"head");
    assert!(got[4..4100].iter().all(|&byte| byte == 2));
    assert!(got[4100..].iter().all(|&byte| byte == 1));
    stream.close(&mut ring);
}

#[test]
fn what_a_lost_connection_has_of_lent_payload_does_not_change() {
    for graceful in [true, false] {
        let mut ring = ring();
        let (mut stream, mut peer) = lending_stream(&mut ring);
        let buffer = ring.allocate(131_072).unwrap();
        let all = buffer.slice(0, 131_072);
        ring.bytes_mut(all).copy_from_slice(&pattern(131_072));
        stream.queue_bytes(b"head");
        stream.queue_held_payload(&mut ring, all);
        stream.flush(&mut ring).unwrap();
        assert_eq!(stream.queued_bytes(), 0);
        if graceful {
            stream.stop_lending(&mut ring);
        } else {
            stream.close(&mut ring);
        }
        // Its owner may repeat it to another connection.
        assert_eq!(ring.bytes(all), pattern(131_072));
        ring.release(buffer);
        while let Some(buffer) = ring.allocate(131_072) {
            ring.bytes_mut(buffer.slice(0, 131_072)).fill(255);
        }
        let mut got = vec![0; 4 + 131_072];
        peer.read_exact(&mut got).unwrap();
        assert!(got[4..] == pattern(131_072));
    }
}

#[test]
fn lent_and_copied_payload_and_headers_of_any_size_keep_their_order() {
    let mut ring = ring();
    let (mut stream, mut peer) = lending_stream(&mut ring);
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::SndBuf, &32_768).unwrap();
    let mut expected = Vec::new();
    for round in 0..3000usize {
        let header = pattern(round % 100 + if round % 97 == 0 { 5000 } else { 0 });
        stream.queue_bytes(&header);
        expected.extend_from_slice(&header);
        let bytes = [4096, 512, 8192, 100_000, 4096][round % 5];
        if round % 7 == 0 || round % 5 == 3 && round % 50 != 3 {
            continue;
        }
        let offset = (round % 3) as u32 * 512;
        let Some(buffer) = ring.allocate(bytes + 1024) else { break };
        let slice = buffer.slice(offset, bytes as u32);
        let payload: Vec<u8> = (0..bytes).map(|index| (index + round * 3) as u8).collect();
        ring.bytes_mut(slice).copy_from_slice(&payload);
        if round % 4 == 0 {
            stream.queue_payload(&mut ring, slice);
        } else {
            stream.queue_held_payload(&mut ring, slice);
        }
        ring.release(buffer);
        expected.extend_from_slice(&payload);
    }
    assert!(expected.len() > 2 << 20);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        got
    });
    stream.flush(&mut ring).unwrap();
    while stream.queued_bytes() > 0 {
        let completion = next(&mut ring);
        stream.handle_writable(&mut ring, completion.result).unwrap();
    }
    assert_eq!(stream.bytes_sent(), expected.len() as u64);
    stream.close_sending();
    assert!(reader.join().unwrap() == expected);
    stream.close(&mut ring);
    assert_eq!(ring.buffers().used_bytes(), 0);
}
