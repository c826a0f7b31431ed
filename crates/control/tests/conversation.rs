//! Client and server halves of the control protocol, over a pair of sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use udrbd_control::client::{Client, ClientError, Next};
use udrbd_control::options::{
    DiskOptions, NetOptions, OptionChanges, OptionSet, OptionSetting, ResourceOptions,
};
use udrbd_control::protocol::frame::{FrameDecoder, encode};
use udrbd_control::protocol::{
    ClientHello, CommandResult, MetadataIndex, PROTOCOL_VERSION, Request, ServerHello, ServerMessage,
    ServerSession, SessionEvent, StreamItem,
};
use udrbd_control::status::{DeviceSnapshot, NodeSnapshot, ResourceSnapshot};
use udrbd_control::{Address, ReturnCode};
use udrbd_units::{Minor, VolumeNumber};

fn hello(protocol: u32) -> ServerMessage {
    ServerMessage::Hello(ServerHello { protocol, version: "1".into(), node: "alpha".into(), process: 7 })
}

/// A client that has been sent these messages, and the server's end.
fn client_with(messages: &[ServerMessage]) -> (Result<Client, ClientError>, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    for message in messages {
        theirs.write_all(&encode(message).expect("a frame")).expect("room in the socket");
    }
    (Client::over(ours, "test"), theirs)
}

fn requests(server: &mut UnixStream) -> (ClientHello, Vec<Request>) {
    server.set_nonblocking(true).expect("a socket");
    let mut bytes = Vec::new();
    // What there is has been read when reading would block.
    let _ = server.read_to_end(&mut bytes);
    let mut decoder = FrameDecoder::for_requests();
    decoder.push(&bytes);
    let hello = decoder.next_message().expect("a greeting").expect("all of it");
    let mut requests = Vec::new();
    while let Some(request) = decoder.next_message().expect("a request") {
        requests.push(request);
    }
    (hello, requests)
}

#[test]
fn a_command_gets_its_result() {
    let refusal = CommandResult::with_info(ReturnCode::DeviceInUse, "failed to demote");
    let (client, mut server) =
        client_with(&[hello(PROTOCOL_VERSION), ServerMessage::Result(refusal.clone())]);
    let mut client = client.unwrap();
    assert_eq!(client.server().node, "alpha");
    let request = Request::Down { resource: "r0".into() };
    assert_eq!(client.command(&request).unwrap(), refusal);
    let (greeting, sent) = requests(&mut server);
    assert_eq!(greeting, ClientHello { protocol: PROTOCOL_VERSION, program: "test".into() });
    assert_eq!(sent, [request]);
}

#[test]
fn another_version_is_refused() {
    let (client, _server) = client_with(&[hello(PROTOCOL_VERSION + 1)]);
    assert!(matches!(client, Err(ClientError::Refused(_))));
    let (client, _server) = client_with(&[ServerMessage::Refused { reason: "no".into() }]);
    assert!(matches!(client, Err(ClientError::Refused(reason)) if reason == "no"));
}

#[test]
fn a_stream_has_items_pauses_and_an_end() {
    let item = StreamItem::DumpEnd { time_us: 5 };
    let (client, mut server) = client_with(&[hello(PROTOCOL_VERSION), ServerMessage::Stream(item.clone())]);
    let mut client = client.unwrap();
    client.watch(Some("r0")).unwrap();
    let short = Some(Duration::from_millis(1));
    assert_eq!(client.next_item(None).unwrap(), Next::Item(item));
    assert_eq!(client.next_item(short).unwrap(), Next::TimedOut);
    server.write_all(&encode(&ServerMessage::End).unwrap()).unwrap();
    assert_eq!(client.next_item(None).unwrap(), Next::End);
    drop(server);
    assert_eq!(client.next_item(None).unwrap(), Next::End);
}

#[test]
fn an_answer_that_does_not_belong_is_an_error() {
    let (client, _server) =
        client_with(&[hello(PROTOCOL_VERSION), ServerMessage::Snapshot(NodeSnapshot::default())]);
    let result = client.unwrap().command(&Request::Primary { minor: Minor(0), force: false });
    assert!(matches!(result, Err(ClientError::Unexpected)));
    let (client, server) = client_with(&[hello(PROTOCOL_VERSION)]);
    let mut client = client.unwrap();
    drop(server);
    assert!(client.snapshot(None).is_err());
}

fn server_hello() -> ServerHello {
    ServerHello { protocol: PROTOCOL_VERSION, version: "1".into(), node: "alpha".into(), process: 7 }
}

#[test]
fn a_session_greets_and_then_hands_out_requests() {
    let mut session = ServerSession::new(server_hello());
    let greeting = ClientHello { protocol: PROTOCOL_VERSION, program: "drbdsetup".into() };
    let request = Request::Outdate { minor: Minor(3) };
    let mut bytes = encode(&greeting).unwrap();
    bytes.extend(encode(&request).unwrap());
    let mut events = Vec::new();
    for byte in bytes {
        session.receive(&[byte]);
        while let Some(event) = session.next_event().unwrap() {
            events.push(event);
        }
    }
    assert_eq!(session.program(), Some("drbdsetup"));
    let [SessionEvent::Send(hello), SessionEvent::Request(received)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(**received, request);
    let mut decoder = FrameDecoder::new();
    decoder.push(hello);
    assert_eq!(decoder.next_message::<ServerMessage>().unwrap(), Some(ServerMessage::Hello(server_hello())));
}

#[test]
fn a_session_turns_strangers_away() {
    let mut session = ServerSession::new(server_hello());
    session.receive(&encode(&ClientHello { protocol: 99, program: "x".into() }).unwrap());
    assert!(matches!(session.next_event(), Ok(Some(SessionEvent::SendAndClose(_)))));
    let mut session = ServerSession::new(server_hello());
    session.receive(&encode(&Request::Outdate { minor: Minor(3) }).unwrap());
    assert!(session.next_event().is_err());
    let mut session = ServerSession::new(server_hello());
    session.receive(b"GET / HTTP/1.1\r\n");
    assert!(session.next_event().is_err());
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_ \\\\\"é-]{1,20}"
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        (any::<[u8; 4]>(), 1u16..).prop_map(|(ip, port)| Address::of_socket((ip, port).into())),
        (any::<[u16; 8]>(), 1u16..).prop_map(|(ip, port)| Address::of_socket((ip, port).into())),
    ]
}

fn changes() -> impl Strategy<Value = OptionChanges> {
    let setting = (name(), prop::option::of(name())).prop_map(|(name, value)| OptionSetting { name, value });
    (any::<bool>(), prop::collection::vec(setting, 0..4))
        .prop_map(|(set_defaults, settings)| OptionChanges { set_defaults, settings })
}

fn request() -> impl Strategy<Value = Request> {
    let minor = || any::<u32>().prop_map(Minor);
    let index = prop_oneof![
        Just(MetadataIndex::Internal),
        Just(MetadataIndex::Flexible),
        any::<u32>().prop_map(MetadataIndex::Slot)
    ];
    prop_oneof![
        name().prop_map(|resource| Request::NewResource { resource, options: ResourceOptions::default() }),
        (name(), minor(), any::<u16>()).prop_map(|(resource, minor, volume)| Request::NewMinor {
            resource,
            minor,
            volume: VolumeNumber(volume)
        }),
        (minor(), name(), index, any::<u64>()).prop_map(|(minor, disk, index, size)| Request::Attach {
            minor,
            disk: disk.clone().into(),
            metadata: disk.into(),
            index,
            options: DiskOptions { size_sectors: size, ..DiskOptions::default() },
        }),
        (minor(), changes()).prop_map(|(minor, changes)| Request::DiskOptions { minor, changes }),
        (name(), address(), address(), any::<bool>()).prop_map(|(resource, local, peer, flag)| {
            Request::Connect {
                resource,
                local,
                peer,
                options: NetOptions::default(),
                discard_my_data: flag,
                tentative: !flag,
            }
        }),
        (minor(), prop::option::of(any::<u64>()), any::<bool>()).prop_map(|(minor, size, flag)| {
            Request::Resize {
                minor,
                size_sectors: size,
                assume_peer_has_space: flag,
                assume_clean: !flag,
                al_stripes: None,
                al_stripe_size_kib: Some(32),
            }
        }),
        (minor(), any::<bool>()).prop_map(|(minor, force)| Request::Primary { minor, force }),
        prop::option::of(name()).prop_map(|resource| Request::Watch { resource }),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_socket(request in request()) {
        let mut decoder = FrameDecoder::for_requests();
        decoder.push(&encode(&request).unwrap());
        prop_assert_eq!(decoder.next_message::<Request>().unwrap(), Some(request));
    }

    #[test]
    fn snapshots_survive_the_socket(name in name(), volume in any::<u16>(), minor in any::<u32>(), sent in any::<u64>()) {
        let mut resource = ResourceSnapshot::new(name);
        let mut device = DeviceSnapshot::new(VolumeNumber(volume), Minor(minor));
        device.counters.sent_sectors = sent;
        resource.devices.push(device);
        let message = ServerMessage::Snapshot(NodeSnapshot { resources: vec![resource] });
        let mut decoder = FrameDecoder::new();
        decoder.push(&encode(&message).unwrap());
        prop_assert_eq!(decoder.next_message::<ServerMessage>().unwrap(), Some(message));
    }

    #[test]
    fn options_read_back_what_they_show(rate in 1u32..4_194_304, timeout in 1u32..=600, on in any::<bool>()) {
        let mut disk = DiskOptions { resync_rate_kib_per_second: rate, al_updates: on, ..DiskOptions::default() };
        disk.al_extents = 67 + rate % 60_000;
        let net = NetOptions { timeout_deciseconds: timeout, use_rle: on, ..NetOptions::default() };
        let again = |entries: Vec<udrbd_control::options::OptionEntry>| -> Vec<OptionSetting> {
            entries
                .into_iter()
                .map(|entry| OptionSetting { name: entry.spec.name.to_owned(), value: Some(entry.value) })
                .collect()
        };
        prop_assert_eq!(DiskOptions::from_settings(&again(disk.entries())).unwrap(), disk);
        prop_assert_eq!(NetOptions::from_settings(&again(net.entries())).unwrap(), net);
    }
}
