use proptest::prelude::*;

use super::*;

struct Node;

fn export(name: &str) -> Export {
    Export {
        name: name.to_owned(),
        description: "test".to_owned(),
        size_bytes: 1 << 20,
        block_bytes: 512,
        read_only: false,
        trim: true,
        rotational: false,
    }
}

impl Exports for Node {
    fn names(&self) -> Vec<String> {
        vec!["r0".to_owned(), "r0/1".to_owned()]
    }

    fn find(&self, name: &str) -> Result<Export, Refusal> {
        match name {
            "" | "r0" | "r0/1" => Ok(export(name)),
            "r1" => Err(Refusal { kind: RefusalKind::Policy, message: "r1 is Secondary here".to_owned() }),
            _ => Err(Refusal { kind: RefusalKind::Unknown, message: format!("no resource {name}") }),
        }
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// The replies as (option, type, data).
fn replies(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let field = |start: usize| u32::from_be_bytes(bytes[start..start + 4].try_into().unwrap());
        assert_eq!(bytes[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        let length = field(16) as usize;
        found.push((field(8), field(12), bytes[20..20 + length].to_vec()));
        bytes = &bytes[20 + length..];
    }
    found
}

fn begun(client_flags: u32) -> Negotiation {
    let mut negotiation = Negotiation::new();
    assert_eq!(negotiation.take_output(), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(negotiation.handle(&client_flags.to_be_bytes(), &Node), Progress::More);
    negotiation
}

#[test]
fn go_tells_size_flags_and_block_sizes_and_keeps_early_bytes() {
    let mut negotiation = begun(3);
    let mut bytes = option(8, &[]);
    bytes.extend(option(7, &info("r0", &[1])));
    bytes.extend_from_slice(b"early");
    let Progress::Done(done) = negotiation.handle(&bytes, &Node) else { panic!("not done") };
    assert_eq!((done.export, done.structured, done.early_bytes), (export("r0"), true, b"early".to_vec()));
    let replies = replies(&negotiation.take_output());
    let kinds: Vec<_> = replies.iter().map(|(option, kind, _)| (*option, *kind)).collect();
    assert_eq!(kinds, [(8, 1), (7, 3), (7, 3), (7, 3), (7, 1)]);
    // size 1 MiB; has flags, flush, FUA, trim, zeroes, DF, multi-conn, fast zero
    assert_eq!(replies[1].2, [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x09, 0xed]);
    assert_eq!(replies[2].2, [&[0, 1], b"r0".as_slice()].concat());
    assert_eq!(replies[3].2, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
}

#[test]
fn a_refused_export_is_told_why_and_another_can_be_asked_for() {
    let mut negotiation = begun(3);
    let mut bytes = option(7, &info("r1", &[]));
    bytes.extend(option(6, &info("r9", &[])));
    bytes.extend(option(7, &[0, 0, 0, 9, b'x']));
    bytes.extend(option(5, &[]));
    assert_eq!(negotiation.handle(&bytes, &Node), Progress::More);
    let replies = replies(&negotiation.take_output());
    assert_eq!(replies[0], (7, 0x8000_0002, b"r1 is Secondary here".to_vec()));
    assert_eq!(replies[1], (6, 0x8000_0006, b"no resource r9".to_vec()));
    assert_eq!((replies[2].0, replies[2].1), (7, 0x8000_0003));
    assert_eq!((replies[3].0, replies[3].1), (5, 0x8000_0001));
    let done = negotiation.handle(&option(7, &info("r0/1", &[])), &Node);
    assert!(matches!(done, Progress::Done(_)));
}

#[test]
fn list_names_what_can_be_had_and_info_does_not_begin_transmission() {
    let mut negotiation = begun(3);
    let mut bytes = option(3, &[]);
    bytes.extend(option(6, &info("r0", &[])));
    bytes.extend(option(2, &[]));
    assert_eq!(negotiation.handle(&bytes, &Node), Progress::Ended("the client gave up"));
    let replies = replies(&negotiation.take_output());
    assert_eq!(replies[0], (3, 2, b"\0\0\0\x02r0".to_vec()));
    assert_eq!(replies[1], (3, 2, b"\0\0\0\x04r0/1".to_vec()));
    assert_eq!(replies.last(), Some(&(2, 1, Vec::new())));
}

#[test]
fn the_oldest_way_to_name_an_export_gets_its_zeroes() {
    for (flags, zeroes) in [(1, 124), (3, 0)] {
        let mut negotiation = begun(flags);
        assert!(matches!(negotiation.handle(&option(1, b"r0"), &Node), Progress::Done(_)));
        let output = negotiation.take_output();
        assert_eq!(output.len(), 10 + zeroes);
        assert_eq!(output[..10], [0, 0, 0, 0, 0, 0x10, 0, 0, 0x09, 0x6d]);
    }
    let mut negotiation = begun(3);
    assert!(matches!(negotiation.handle(&option(1, b"r1"), &Node), Progress::Ended(_)));
    assert!(negotiation.take_output().is_empty());
}

#[test]
fn hostile_clients_are_dropped() {
    let endless: Vec<u8> = (0..200).flat_map(|_| option(99, &[])).collect();
    let mut long = option(3, &[]);
    long[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    for bytes in [endless, long, b"GET / HTTP/1.0\r\n\r\n".to_vec()] {
        assert!(matches!(begun(3).handle(&bytes, &Node), Progress::Ended(_)));
    }
    let mut negotiation = Negotiation::new();
    assert!(matches!(negotiation.handle(&[0xff; 4], &Node), Progress::Ended(_)));
    assert!(matches!(negotiation.handle(&[0; 4], &Node), Progress::Ended(_)));
}

#[test]
fn names_of_exports_are_a_resource_and_perhaps_a_volume() {
    assert_eq!(split_export_name("r0"), Some(("r0", 0)));
    assert_eq!(split_export_name("r0/3"), Some(("r0", 3)));
    assert_eq!(split_export_name("a/b"), Some(("a/b", 0)));
    assert_eq!(split_export_name("a/b/2"), Some(("a/b", 2)));
    assert_eq!(split_export_name("r0/70000"), None);
    assert_eq!(split_export_name("r0/"), None);
    assert_eq!(split_export_name(""), None);
    assert_eq!(split_export_name("/1"), None);
}

fn some_option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..40),
        prop_oneof![Just("r0"), Just("r1"), Just("nope"), Just("")]
            .prop_map(|name| info(name, &[0, 1, 2, 3])),
    ];
    (0u32..14, data).prop_map(|(number, data)| option(number, &data))
}

proptest! {
    /// Cutting the same bytes differently changes nothing, and nothing panics.
    #[test]
    fn how_the_bytes_are_cut_does_not_matter(
        flags in prop_oneof![Just(3u32), Just(1), any::<u32>()],
        options in prop::collection::vec(some_option(), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..60),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut bytes = flags.to_be_bytes().to_vec();
        bytes.extend(options.concat());
        bytes.extend(noise);
        let mut whole = Negotiation::new();
        let expected = whole.handle(&bytes, &Node);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut pieces = Negotiation::new();
        let mut from = 0;
        let mut last = Progress::More;
        for to in cuts {
            last = pieces.handle(&bytes[from..to], &Node);
            from = to;
            if last != Progress::More {
                break;
            }
        }
        if let Progress::Done(done) = &mut last {
            done.early_bytes.extend_from_slice(&bytes[from..]);
        }
        prop_assert_eq!(last, expected);
        prop_assert_eq!(pieces.take_output(), whole.take_output());
    }
}
