//! The language as a whole: files in, text out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;
use udrbd_config::resolve::{Node, PeerChoice, resolve};
use udrbd_config::validate::validate;
use udrbd_config::{Address, Configuration, Diagnostics, Files, Loader, Source, Stop, expand, print};

/// Files in memory. A name with a slash at its end is a directory, which cannot be read.
#[derive(Default)]
struct MemoryFiles(BTreeMap<String, String>);

impl Files for MemoryFiles {
    fn glob(&self, directory: &str, pattern: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{directory}/");
        let names = self
            .0
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(|name| name.trim_end_matches('/'));
        let matching = names.filter(|name| match pattern.split_once('*') {
            Some((start, end)) => name.starts_with(start) && name.ends_with(end),
            None => *name == pattern,
        });
        Ok(matching.map(str::to_owned).collect())
    }

    fn read(&self, directory: &str, path: &str) -> io::Result<Vec<u8>> {
        let text = self.0.get(&format!("{directory}/{path}")).ok_or(io::ErrorKind::IsADirectory)?;
        Ok(text.clone().into_bytes())
    }

    fn real_path(&self, directory: &str, path: &str) -> Option<String> {
        Some(format!("{directory}/{path}"))
    }

    fn absolute_path(&self, directory: &str, path: &str) -> io::Result<String> {
        Ok(format!("{directory}/{path}"))
    }
}

/// A node called alpha that has every address.
struct Alpha;

impl Node for Alpha {
    fn name(&self) -> &str {
        "alpha"
    }

    fn has_address(&self, _address: &Address) -> bool {
        true
    }

    fn has_terminal(&self) -> bool {
        false
    }
}

fn load(files: &[(&str, &str)]) -> (Result<(), Stop>, Configuration, Diagnostics) {
    let files = files.iter().map(|(name, text)| (format!("/etc/{name}"), (*text).to_owned())).collect();
    let files = MemoryFiles(files);
    let mut loader = Loader::new(&files);
    let result = loader.load(Source {
        name: "drbd.conf".to_owned(),
        absolute: "/etc/drbd.conf".to_owned(),
        directory: "/etc".to_owned(),
        text: files.0.get("/etc/drbd.conf").unwrap().clone().into_bytes(),
    });
    let (configuration, diagnostics) = loader.finish();
    (result, configuration, diagnostics)
}

/// The dump of a configuration that must be good.
fn dump(text: &str) -> String {
    let (result, mut configuration, mut diagnostics) = load(&[("drbd.conf", text)]);
    assert_eq!((result, diagnostics.take_messages().as_str()), (Ok(()), ""), "{text}");
    resolve(&mut configuration, &mut diagnostics, &Alpha, false).unwrap();
    dump_of(&configuration)
}

/// Without the places, which differ between a text and its dump.
fn dump_of(configuration: &Configuration) -> String {
    let mut text = print::header(configuration, "FILE", false);
    for resource in &configuration.resources {
        text.push_str(&print::resource(configuration, resource, "alpha"));
    }
    let lines = text.lines().filter(|line| !line.starts_with("# defined at"));
    lines.map(|line| format!("{line}\n")).collect()
}

const TWO_NODES: &str = "
    on alpha { device minor 0; disk /dev/a; meta-disk internal; address 10.9.1.1:7788; }
    on bravo { device minor 0; disk /dev/a; meta-disk internal; address 10.9.1.2:7788; }";

#[test]
fn includes_are_read_sorted_and_once() {
    let resource = |name: &str, port: u32, minor: u32| {
        format!(
            "resource {name} {{ device minor {minor}; disk /dev/{name}; meta-disk internal;
             on alpha {{ address 10.9.1.1:{port}; }} on bravo {{ address 10.9.1.2:{port}; }} }}"
        )
    };
    let (b, a) = (resource("b", 1, 1), resource("a", 2, 2));
    let main = "include \"drbd.d/*.res\"; include \"drbd.d/a.res\"; include \"drbd.conf\";";
    let (result, configuration, mut diagnostics) =
        load(&[("drbd.conf", main), ("drbd.d/b.res", &b), ("drbd.d/a.res", &a)]);
    assert_eq!((result, diagnostics.take_messages().as_str()), (Ok(()), ""));
    let names: Vec<&str> = configuration.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(configuration.resources[0].file, "/etc/drbd.d/a.res");
}

#[test]
fn what_cannot_be_included_is_named_and_the_rest_still_read() {
    let main = "include missing;\ninclude dir;\ninclude \"none*\";\nresource r { net { timeout 0; } }";
    let (result, _, mut diagnostics) = load(&[("drbd.conf", main), ("dir/", "")]);
    assert_eq!(result, Ok(()));
    assert!(!diagnostics.is_valid());
    assert_eq!(
        diagnostics.take_messages(),
        "drbd.conf:1: Failed to open include file 'missing'.\n\
         drbd.conf:2: Failed to open include file 'dir'.\n\
         drbd.conf:4: timeout 0 => 0 out of range [1..600].\n"
    );
}

#[test]
fn the_spellings_of_8_3_are_those_of_8_4() {
    let old = format!(
        "common {{ syncer {{ rate 30M; verify-alg md5; }} }}
         resource r0 {{ protocol c; net {{ allow-two-primaries; no-tcp-cork; }}
         disk {{ no-disk-barrier; }} handlers {{ outdate-peer x; }} {TWO_NODES} }}"
    );
    let new = format!(
        "common {{ net {{ verify-alg md5; }} disk {{ resync-rate 30M; }} }}
         resource r0 {{ net {{ protocol C; allow-two-primaries yes; tcp-cork no; }}
         disk {{ disk-barrier no; }} handlers {{ fence-peer x; }} {TWO_NODES} }}"
    );
    assert_eq!(dump(&old), dump(&new));
}

#[test]
fn inherited_options_come_first_and_reversed() {
    let text = format!(
        "common {{ disk {{ al-extents 257; resync-rate 1M; }} }}
         resource r0 {{ disk {{ resync-rate 2M; }} {TWO_NODES} }}"
    );
    let (_, mut configuration, mut diagnostics) = load(&[("drbd.conf", &text)]);
    resolve(&mut configuration, &mut diagnostics, &Alpha, false).unwrap();
    expand::expand(&mut configuration);
    let choice = PeerChoice::default();
    validate(&mut configuration, &mut diagnostics, &Alpha, choice, false, true).unwrap();
    let volume = &configuration.resources[0].own_volumes()[0];
    let options: Vec<String> =
        volume.disk_options.iter().map(|option| format!("{}={}", option.name, option.text())).collect();
    assert_eq!(options, ["resync-rate=2M", "al-extents=257"]);
    assert_eq!(volume.device.as_deref(), Some("/dev/drbd0"));
    assert_eq!(configuration.resources[0].peer_host().unwrap().names, ["bravo"]);
}

/// A value that fits its option, from a number.
fn value(definition: &udrbd_config::options::OptionDefinition, seed: u32) -> String {
    use udrbd_config::options::OptionKind;
    match definition.kind {
        OptionKind::Number { minimum, maximum, .. } => {
            let minimum = minimum.max(0);
            (minimum + i64::from(seed) % (maximum - minimum + 1)).to_string()
        }
        OptionKind::Flag { .. } => if seed.is_multiple_of(2) { "yes" } else { "no" }.to_owned(),
        OptionKind::Choice { names, .. } => names[seed as usize % names.len()].to_owned(),
        OptionKind::Text { .. } | OptionKind::Address => format!("\"a \\\"{seed}\\\\\""),
    }
}

fn section(name: &str, table: &[udrbd_config::options::OptionDefinition], seeds: &[u32]) -> String {
    let options: String = seeds
        .iter()
        .map(|seed| &table[*seed as usize % table.len()])
        .filter(|definition| definition.name != "resync-after")
        .zip(seeds)
        .map(|(definition, seed)| format!("{} {};", definition.name, value(definition, seed / 31)))
        .collect();
    format!("{name} {{ {options} }}")
}

proptest! {
    #[test]
    fn a_dump_is_a_configuration_with_the_same_dump(
        net in prop::collection::vec(any::<u32>(), 0..9),
        disk in prop::collection::vec(any::<u32>(), 0..9),
        startup in prop::collection::vec(any::<u32>(), 0..4),
        handler in "[ -~]{0,40}",
        name in "[a-z][a-z0-9_.-]{1,20}",
    ) {
        use udrbd_config::options::{DISK_OPTIONS, NET_OPTIONS, STARTUP_OPTIONS};
        let text = format!(
            "common {{ {} }} resource \"{name}\" {{ {} {} handlers {{ pri-lost {}; }} {TWO_NODES} }}",
            section("net", NET_OPTIONS, &net),
            section("disk", DISK_OPTIONS, &disk),
            section("startup", STARTUP_OPTIONS, &startup),
            print::quoted(&handler),
        );
        let once = dump(&text);
        prop_assert_eq!(&once, &dump(&once));
    }

    #[test]
    fn no_text_brings_the_parser_down(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "{", "}", ";", "[", "]", ":", "resource", "r0", "on", "alpha", "bravo", "disk", "net", "syncer",
                "volume", "0", "1", "device", "minor", "meta-disk", "internal", "/dev/drbd1", "/dev/x", "address",
                "10.9.1.1", "7788", "ipv6", "fd00::1", "floating", "stacked-on-top-of", "common", "global", "skip",
                "proxy", "inside", "outside", "options", "plugin", "handlers", "fence-peer", "protocol", "C",
                "rate", "30M", "resync-after", "startup", "become-primary-on", "both", "\"q\"", "\n", "include",
            ]),
            0..60,
        ),
    ) {
        let (result, mut configuration, mut diagnostics) = load(&[("drbd.conf", &words.join(" "))]);
        if result.is_err() || !diagnostics.is_valid() {
            prop_assert_ne!(diagnostics.take_messages(), "", "a fault without a message");
            return Ok(());
        }
        if resolve(&mut configuration, &mut diagnostics, &Alpha, false).is_ok() {
            expand::expand(&mut configuration);
            let choice = PeerChoice::default();
            let _ = validate(&mut configuration, &mut diagnostics, &Alpha, choice, false, true);
            let text = dump_of(&configuration);
            prop_assert!(text.starts_with("# FILE\n"));
            for resource in &configuration.resources {
                prop_assert!(print::xml_resource(resource, true).ends_with("</resource>\n"));
            }
        }
    }
}
