//! What the real DRBD and its `drbdmeta` wrote, decoded, encoded, replayed and dumped by this crate.
//!
//! The vectors lie in `tests/data/metadata`; those in `$UDRBD_EXTRA_VECTORS/metadata` are run too if the variable is
//! set.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use udrbd_metadata::activity_log::{
    CONTEXT_SLOTS, NewTransaction, RingBlock, Transaction, initialized_block,
};
use udrbd_metadata::attach::{AttachError, Sizes, Unclean, check_sizes, read_superblock};
use udrbd_metadata::dump::{BitmapWriter, DumpHead, write_ring};
use udrbd_metadata::generation::{Generation, human_size};
use udrbd_metadata::restore::DumpParser;
use udrbd_metadata::validity::{Found, examine};
use udrbd_metadata::{
    BLOCK_BYTES, Block, FREE_EXTENT, Layout, Placement, SlotUpdate, Superblock, apply, bitmap,
};
use udrbd_units::{Extent, Sector};

/// The folders `part` of all sets of vectors.
fn roots(part: &str) -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let extra = std::env::var_os("UDRBD_EXTRA_VECTORS").map(PathBuf::from);
    let mut roots: Vec<PathBuf> = std::iter::once(own)
        .chain(extra)
        .map(|root| root.join("metadata").join(part))
        .filter(|root| root.exists())
        .collect();
    roots.dedup();
    assert!(!roots.is_empty());
    roots
}

/// The folders inside `part` of all sets of vectors.
fn cases(part: &str) -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = roots(part)
        .iter()
        .flat_map(|root| std::fs::read_dir(root).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn block(path: &Path) -> Block {
    std::fs::read(path).unwrap().try_into().unwrap()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// The superblock of a file and its layout; both must be right, and lead back to the same bytes.
fn superblock(file: &Path, info: &Value) -> (Superblock, Layout) {
    let bytes = block(file);
    let superblock = Superblock::decode(&bytes);
    let device = Sector(number(info, "md_device_bytes") / 512);
    let placement = match info["md_index"].as_str().unwrap() {
        "internal" => Placement::Internal,
        "flex-external" => Placement::FlexibleExternal,
        slot => Placement::Indexed(slot.parse().unwrap()),
    };
    let layout = Layout::new(placement, device, superblock.striping()).unwrap();
    assert_eq!(layout.superblock.bytes(), number(info, "sb_offset"));
    assert_eq!(layout.al_start().bytes(), number(info, "al_offset"));
    assert_eq!(layout.bitmap_start().bytes(), number(info, "bm_offset"));
    if info["al_bytes"].is_u64() {
        assert_eq!(layout.al_bytes(), number(info, "al_bytes"));
        assert_eq!(layout.bitmap_sectors() * 512, number(info, "bm_area_bytes"));
    }
    assert!(superblock.encode() == bytes, "{}", file.display());
    let examined = examine(superblock.clone(), placement, device);
    assert_eq!(examined, Found::Valid(Box::new(superblock.clone()), layout));
    let attached = read_superblock(&bytes, placement, device, Unclean::Accept).unwrap();
    assert_eq!(attached, (superblock.clone(), layout));
    let refused = read_superblock(&bytes, placement, device, Unclean::Refuse);
    assert_eq!(refused.is_err(), !superblock.is_clean());
    (superblock, layout)
}

/// The bitmap area of a device of which the head is in a file.
fn bitmap_area(superblock: &Superblock, head: &[u8]) -> Vec<u8> {
    let mut area = vec![0; bitmap::area_bytes(superblock.la_size_sect) as usize];
    assert!(head.len() <= area.len());
    area[..head.len()].copy_from_slice(head);
    area
}

fn dump(superblock: &Superblock, layout: &Layout, area: &[u8]) -> String {
    let head = DumpHead {
        date: "DATE",
        host: "HOST",
        command: "COMMAND",
        superblock,
        md_offset: layout.superblock.bytes(),
        moved: None,
    };
    let mut out = Vec::new();
    head.write(&mut out).unwrap();
    let mut writer = BitmapWriter::new(out).unwrap();
    for page in area.chunks(BLOCK_BYTES) {
        writer.push(page).unwrap();
    }
    String::from_utf8(writer.finish().unwrap()).unwrap()
}

/// A dump without the lines that tell when and where it was made, and with the flags line the original should have
/// printed (it always printed zero).
fn comparable(dump: &str, superblock: &Superblock) -> String {
    dump.lines()
        .enumerate()
        .map(|(index, line)| match (index, line) {
            (1 | 2, _) => String::new(),
            (_, "    flags 0x00000000;") => format!("    flags 0x{:08X};", superblock.flags.0),
            (_, line) => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Compares the texts in `folder` with those about the superblock and bitmap.
fn compare_texts(folder: &Path, superblock: &Superblock, layout: &Layout, area: &[u8]) {
    for (name, ours) in [
        ("show-gi.txt", superblock.show_generation()),
        ("get-gi.txt", Generation::from(superblock).line() + "\n"),
    ] {
        let file = folder.join(name);
        if file.exists() {
            assert_eq!(ours, text(&file), "{}", file.display());
        }
    }
    for name in ["dump-md.txt", "dump-md-force.txt"] {
        let file = folder.join(name);
        if file.exists() {
            let theirs = text(&file);
            let ours = dump(superblock, layout, area);
            assert_eq!(comparable(&ours, superblock), comparable(&theirs, superblock), "{}", file.display());
            let mut parser = DumpParser::new(ours.as_bytes());
            parser.version().unwrap();
            let Ok(parsed) = parser.body() else {
                assert!(!superblock.is_clean(), "{}", file.display());
                continue;
            };
            let mut restored = parsed.superblock;
            restored.set_layout(layout);
            restored.al_nr_extents = superblock.al_nr_extents;
            assert_eq!(restored, *superblock);
            assert_eq!(parsed.striping, layout.striping);
            assert_eq!(parsed.bitmap.len() * 8, area.len() as u64);
            assert!(parsed.bitmap.pages().take(area.len() / BLOCK_BYTES).flatten().eq(area.iter().copied()));
        }
    }
}

#[test]
fn fresh_metadata_vectors() {
    for root in roots("fresh") {
        let file = root.join("al-block.bin");
        if file.exists() {
            assert!(initialized_block() == block(&file));
        }
    }
    for folder in cases("fresh") {
        let info = json(&folder.join("info.json"));
        let (theirs, layout) = superblock(&folder.join("sb.bin"), &info);
        let mut ours = Superblock::fresh(&layout, theirs.la_peer_max_bio_size);
        ours.device_uuid = theirs.device_uuid;
        assert_eq!(ours, theirs, "{}", folder.display());
        compare_texts(&folder, &theirs, &layout, &[]);
    }
}

#[test]
fn superblock_state_vectors() {
    for folder in cases("states") {
        let mut info = json(&folder.join("info.json"));
        info["md_index"] = "internal".into();
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".sb.bin") {
                superblock(&file, &info);
            } else if name.ends_with(".al.bin") {
                first_attach_ring(&std::fs::read(file).unwrap());
            }
        }
    }
}

/// After the first attach the ring holds empty transactions with a rolling window.
fn first_attach_ring(area: &[u8]) {
    let mut start = 0;
    for (number, stored) in area.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
        let slots = 1237;
        let transaction = NewTransaction { number: number as u32, updates: &[], slots, context_start: start };
        let mut ours = [1; BLOCK_BYTES];
        transaction.encode_into(&mut ours, |_| FREE_EXTENT);
        assert!(ours == *stored, "transaction {number}");
        start = udrbd_metadata::activity_log::next_context_start(start, slots);
    }
}

/// The text of a ring of transactions, the free slots left out; each must lead back to its bytes.
fn ring_text(area: &[u8], al_nr_extents: u32) -> String {
    for (index, stored) in area.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
        let RingBlock::Update(transaction) = RingBlock::decode(stored) else { panic!("block {index}") };
        again(transaction, stored);
    }
    let mut out = Vec::new();
    write_ring(&mut out, area, al_nr_extents).unwrap();
    let text = String::from_utf8(out).unwrap();
    text.lines().filter(|line| !line.ends_with(" 4294967295")).map(|line| format!("{line}\n")).collect()
}

/// A transaction of the kernel, written by us, is the same bytes.
fn again(transaction: Transaction<'_>, stored: &Block) {
    let context: BTreeMap<u32, Extent> = transaction.context().collect();
    let updates: Vec<SlotUpdate> = transaction.updates().collect();
    let ours = NewTransaction {
        number: transaction.number(),
        updates: &updates,
        slots: transaction.slots(),
        context_start: transaction.context_start(),
    };
    let mut block = [0; BLOCK_BYTES];
    ours.encode_into(&mut block, |slot| context[&u32::from(slot)]);
    assert!(context.len() <= CONTEXT_SLOTS);
    assert!(block == *stored, "transaction {}", transaction.number());
}

/// Applies an activity log to a bitmap area; returns what `drbdmeta` would print on stderr.
fn apply_log(superblock: &Superblock, log: &[u8], area: &mut [u8]) -> (String, apply::Plan) {
    let plan = apply::plan(superblock, log);
    let mut messages: String = plan.notes.iter().map(|note| format!("{note}\n")).collect();
    if let Ok(writes) = &plan.writes
        && !writes.mark.is_empty()
    {
        let mut marked = 0;
        for extent in &writes.mark {
            let page = bitmap::page_of_extent(*extent) as usize * BLOCK_BYTES;
            let page: &mut Block = (&mut area[page..page + BLOCK_BYTES]).try_into().unwrap();
            marked += u64::from(bitmap::mark_extent(page, *extent));
        }
        messages += &format!("Marked additional {} as out-of-sync based on AL.\n", human_size(marked * 4));
    }
    (messages, plan)
}

#[test]
fn crash_vectors() {
    for folder in cases("crash") {
        let before = folder.join("before");
        let (old, layout) = superblock(&before.join("sb.bin"), &json(&before.join("info.json")));
        let mut area = bitmap_area(&old, &std::fs::read(before.join("bm.bin")).unwrap());
        compare_texts(&before, &old, &layout, &area);
        let log = std::fs::read(before.join("al.bin")).unwrap();
        let dumped = text(&before.join("al-dump-used-slots.txt"));
        for (line, (ours, theirs)) in
            ring_text(&log, old.al_nr_extents).lines().zip(dumped.lines()).enumerate()
        {
            assert_eq!(ours, theirs, "line {line}, {}", folder.display());
        }
        assert_eq!(ring_text(&log, old.al_nr_extents).lines().count(), dumped.lines().count());

        let (messages, plan) = apply_log(&old, &log, &mut area);
        assert_eq!(messages + "rc=0\n", text(&folder.join("apply-al.stderr.txt")), "{}", folder.display());
        let writes = plan.writes.unwrap();
        assert!(writes.initialize_ring);
        let after = folder.join("after");
        let (new, layout) = superblock(&after.join("sb.bin"), &json(&after.join("info.json")));
        assert_eq!(writes.superblock, Some(new.clone()));
        let expected = bitmap_area(&new, &std::fs::read(after.join("bm.bin")).unwrap());
        assert!(area == expected, "{}", folder.display());
        compare_texts(&after, &new, &layout, &area);
    }
}

#[test]
fn replay_vectors() {
    for folder in cases("replay") {
        let info = json(&folder.join("info.json"));
        let before = Superblock::decode(&block(&folder.join("sb-before.bin")));
        let log = std::fs::read(folder.join("al-before.bin")).unwrap();
        let mut area = bitmap_area(&before, &[]);
        let (messages, plan) = apply_log(&before, &log, &mut area);
        let status = i32::from(plan.writes.is_err());
        let transcript = format!("stdout:\nstderr:\n{messages}rc={status}\n");
        assert_eq!(transcript, text(&folder.join("apply-al.txt")), "{}", folder.display());
        assert_eq!(u64::from(status as u32), number(&info, "apply_al_rc"));
        let writes = plan.writes.unwrap_or_default();
        assert_eq!(writes.initialize_ring, info["al_after"] != "unchanged", "{}", folder.display());

        let counts: Vec<(usize, usize)> = area
            .chunks(bitmap::EXTENT_BYTES)
            .map(|bytes| bytes.iter().map(|byte| byte.count_ones() as usize).sum())
            .enumerate()
            .filter(|(_, count)| *count > 0)
            .collect();
        let expected: Vec<(usize, usize)> =
            serde_json::from_value(info["bits_set_after_per_4MiB_extent"].clone()).unwrap();
        assert_eq!(counts, expected, "{}", folder.display());

        let mut written = writes.superblock.unwrap_or(before);
        let striping = written.striping();
        written.al_stripes = striping.stripes;
        written.al_stripe_size_4k = striping.stripe_size_4k;
        assert!(written.encode() == block(&folder.join("sb-after.bin")), "{}", folder.display());
        let (_, layout) = superblock(&folder.join("sb-after.bin"), &info["geometry"]);
        let dumped = dump(&written, &layout, &area);
        let theirs = text(&folder.join("dump-md-after.txt"));
        assert_eq!(comparable(&dumped, &written), comparable(&theirs, &written), "{}", folder.display());
    }
}

#[test]
fn dump_vectors() {
    for folder in cases("dump") {
        let info = json(&folder.join("info.json"));
        let (ours, layout) = superblock(&folder.join("sb.bin"), &info);
        let area = bitmap_area(&ours, &std::fs::read(folder.join("bm.bin")).unwrap());
        compare_texts(&folder, &ours, &layout, &area);

        let input = std::fs::read(folder.join("restore-input.txt")).unwrap();
        let mut parser = DumpParser::new(&input);
        parser.version().unwrap();
        let parsed = parser.body().unwrap();
        let mut restored = parsed.superblock;
        restored.set_layout(&layout);
        assert!(restored.encode() == block(&folder.join("sb-after-restore.bin")), "{}", folder.display());
        let pages: Vec<u8> = parsed.bitmap.pages().take(area.len() / BLOCK_BYTES).flatten().collect();
        assert!(pages == area, "{}", folder.display());
    }
}

/// Reads `key=value` of a line of the attach matrix that describes a superblock.
fn field<'a>(line: &'a str, key: &str) -> &'a str {
    line.split(' ').find_map(|word| word.strip_prefix(key)).unwrap()
}

fn superblock_of_line(line: &str) -> Superblock {
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let mut superblock = Superblock::decode(&[0; BLOCK_BYTES]);
    let ids: Vec<u64> = field(line, "uuid=").split(':').map(hex).collect();
    superblock.la_size_sect.0 = field(line, "la=").parse().unwrap();
    superblock.current.0 = ids[0];
    superblock.bitmap.0 = ids[1];
    superblock.history[0].0 = ids[2];
    superblock.history[1].0 = ids[3];
    superblock.flags.0 = hex(field(line, "flags=")) as u32;
    superblock.magic.0 = hex(field(line, "magic=")) as u32;
    superblock.md_size_sect = field(line, "md_size=").parse().unwrap();
    superblock.al_offset = field(line, "al_off=").parse().unwrap();
    superblock.al_nr_extents = field(line, "al_nr=").parse().unwrap();
    superblock.bm_offset = field(line, "bm_off=").parse().unwrap();
    superblock.bm_bytes_per_bit = field(line, "bpb=").parse().unwrap();
    superblock.la_peer_max_bio_size = field(line, "bio=").parse().unwrap();
    superblock.al_stripes = field(line, "st=").parse().unwrap();
    superblock.al_stripe_size_4k = field(line, "ss=").parse().unwrap();
    superblock
}

fn patched(superblock: &Superblock, patches: &str) -> Block {
    let mut block = superblock.encode();
    for patch in patches.split(' ') {
        let [offset, kind, value] = patch.split(':').collect::<Vec<_>>()[..] else { panic!("{patch}") };
        let offset: usize = offset.parse().unwrap();
        let value: i128 = match value.strip_prefix("0x") {
            Some(digits) => i128::from_str_radix(digits, 16).unwrap(),
            None => value.parse().unwrap(),
        };
        match kind {
            "Q" => block[offset..offset + 8].copy_from_slice(&(value as u64).to_be_bytes()),
            _ => block[offset..offset + 4].copy_from_slice(&(value as u32).to_be_bytes()),
        }
    }
    block
}

/// The kernel's verdict about a superblock with single fields changed.
#[test]
fn attach_matrix_vectors() {
    let device = Sector(131_072);
    let mut checked = 0;
    for root in roots("kernel") {
        let matrix = text(&root.join("attach-matrix.txt"));
        let mut base = None;
        // What the device's size was before, as one minor was used for all: the kernel keeps it after a success.
        let mut current = Sector(0);
        for case in matrix.split("=== ") {
            let lines: Vec<&str> = case.lines().collect();
            let patches = lines[0].split_once(": patch ").map_or("", |(_, patches)| patches);
            if !patches.is_empty() {
                let block = patched(base.as_ref().unwrap(), patches);
                current = check_case(&block, device, current, &lines);
                checked += 1;
            }
            let described: Vec<&&str> = lines.iter().filter(|line| line.starts_with("SB ")).collect();
            if base.is_none() || described.len() > 1 {
                base = described.last().map(|line| superblock_of_line(line)).or(base);
            }
        }
    }
    assert!(checked >= 30, "only {checked} cases");
}

fn check_case(block: &Block, device: Sector, current: Sector, lines: &[&str]) -> Sector {
    let sizes = Sizes { backing: device, metadata: device, configured: Sector(0), current, peer: Sector(0) };
    let verdict = read_superblock(block, Placement::Internal, device, Unclean::Refuse)
        .and_then(|(superblock, layout)| check_sizes(&superblock, &layout, &sizes));
    let code: Option<u32> = lines.iter().find_map(|line| {
        line.strip_prefix("0: Failure: (")
            .and_then(|rest| rest.split_once(')'))
            .map(|(code, _)| code.parse().unwrap())
    });
    assert_eq!(verdict.as_ref().err().map(AttachError::code), code, "{}", lines[0]);
    let logged = |text: &str| lines.iter().any(|line| line.contains(text));
    match verdict {
        Err(error) => {
            // Code 111 because of the device's present size is not logged by the kernel.
            assert!(error.code() == 111 || logged(&error.to_string()), "{}: {error}", lines[0]);
            Sector(0)
        }
        Ok(geometry) => {
            let after = lines.iter().find(|line| line.starts_with("SB ")).unwrap();
            assert_eq!(geometry.size, superblock_of_line(after).la_size_sect, "{}", lines[0]);
            assert_eq!(geometry.moved, logged("Writing the whole bitmap, md moved"), "{}", lines[0]);
            let resized = logged("Writing the whole bitmap, size changed");
            assert_eq!(geometry.size_changed, resized, "{}", lines[0]);
            geometry.size
        }
    }
}
