use super::*;
use crate::disk::DiskOptions;

/// A short last block, and more than a page of the bitmap.
const SIZE: Sector = Sector(8 * 40_000 + 3);

struct Bench {
    folder: tempfile::TempDir,
    disk: Disk,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(SIZE.bytes()).unwrap();
        let disk = Disk::open(&path, DiskOptions::default()).unwrap();
        Self { folder, disk }
    }

    fn undo(&self, bytes_max: Option<u64>) -> Undo {
        Undo::open(&self.folder.path().join("undo"), bytes_max, self.disk.clone()).unwrap()
    }

    fn fill(&self, block: u64, byte: u8) {
        self.disk.write_blocking(Sector(block * BLOCK_SECTORS), &[byte; BLOCK as usize]).unwrap();
    }
}

fn block(undo: &Undo, block: u64) -> u8 {
    let mut bytes = [0xFF; BLOCK as usize];
    undo.read(block * BLOCK, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

#[test]
fn the_device_is_shown_as_it_was_also_by_the_next_daemon() {
    let bench = Bench::new();
    for place in [0, 1, 5, 39_000] {
        bench.fill(place, place as u8 + 1);
    }
    let undo = bench.undo(None);
    assert_eq!((undo.info(), undo.keep(&[(0, 1)])), (None, Err(Errno::ENOENT)));
    undo.begin(SIZE, 77).unwrap();
    assert_eq!(undo.begin(SIZE, 78), Err(Errno::EEXIST));
    undo.keep(&[(0, 2), (39_000, 1)]).unwrap();
    // The short block at the end.
    undo.keep(&[(40_000, 1)]).unwrap();
    for place in [0, 1, 39_000] {
        bench.fill(place, 0xEE);
    }
    let check = |undo: &Undo| {
        assert_eq!((block(undo, 0), block(undo, 1), block(undo, 5)), (1, 2, 6));
        assert_eq!(block(undo, 39_000), 39_001_u64 as u8);
        let mut end = [0xFF; 3 * 512];
        undo.read(40_000 * BLOCK, &mut end).unwrap();
        assert_eq!(end, [0; 3 * 512]);
        assert_eq!(undo.read(40_000 * BLOCK, &mut [0; 4 * 512]), Err(Errno::EINVAL));
        let disk = bench.disk.path().to_owned();
        let info = UndoInfo { began_us: 77, size: SIZE, kept_blocks: 4, incomplete: false, disk };
        assert_eq!(undo.info(), Some(info));
    };
    check(&undo);
    drop(undo);
    let undo = bench.undo(None);
    check(&undo);
    let words = undo.kept_words().unwrap();
    assert_eq!((words[0], words[609], words[625]), (0b11, 1 << 24, 1));
    // Without its disk only what is kept can be read.
    undo.release_disk();
    assert_eq!(block(&undo, 1), 2);
    assert_eq!(undo.read(5 * BLOCK, &mut [0; 512]), Err(Errno::ENODEV));
}

#[test]
fn a_bit_is_not_there_before_its_block() {
    let bench = Bench::new();
    let undo = bench.undo(None);
    undo.begin(SIZE, 1).unwrap();
    undo.keep(&[(7, 1)]).unwrap();
    // The content went, the bit did not: as after a crash between the two.
    let file = OpenOptions::new().write(true).open(undo.path()).unwrap();
    file.write_all_at(&[9; BLOCK as usize], data_start(SIZE) + 8 * BLOCK).unwrap();
    bench.fill(8, 3);
    drop(undo);
    let undo = bench.undo(None);
    assert_eq!(block(&undo, 8), 3);
    assert_eq!(undo.info().unwrap().kept_blocks, 1);
}

#[test]
fn no_room_is_said_and_remembered() {
    let bench = Bench::new();
    let undo = bench.undo(Some(2 * BLOCK));
    undo.begin(SIZE, 1).unwrap();
    undo.keep(&[(0, 2)]).unwrap();
    assert_eq!(undo.keep(&[(2, 1)]), Err(Errno::ENOSPC));
    assert!(undo.info().unwrap().incomplete);
    assert_eq!(undo.keep(&[(2, 1)]), Err(Errno::ENOSPC));
    drop(undo);
    let undo = bench.undo(None);
    assert!(undo.info().unwrap().incomplete);
    assert_eq!(undo.kept_words(), None);
}

#[test]
fn an_undo_of_another_disk_is_not_believed() {
    let bench = Bench::new();
    bench.undo(None).begin(SIZE, 1).unwrap();
    assert!(bench.undo(None).kept_words().is_some());
    let path = bench.folder.path().join("other");
    File::create(&path).unwrap().set_len(SIZE.bytes()).unwrap();
    let other = Disk::open(&path, DiskOptions::default()).unwrap();
    let undo = Undo::open(&bench.folder.path().join("undo"), None, other).unwrap();
    assert_eq!(undo.kept_words(), None);
    assert!(undo.info().unwrap().incomplete);
}

#[test]
fn what_is_dropped_takes_no_space() {
    let bench = Bench::new();
    bench.fill(3, 3);
    let undo = bench.undo(None);
    undo.begin(SIZE, 1).unwrap();
    undo.keep(&[(0, 256)]).unwrap();
    assert!(undo.used_bytes() >= 1 << 20, "{}", undo.used_bytes());
    undo.remove().unwrap();
    assert!(!undo.path().exists());
    assert_eq!((undo.info(), undo.read(0, &mut [0; 512])), (None, Err(Errno::ENOENT)));
    undo.remove().unwrap();
    undo.begin(SIZE, 2).unwrap();
    assert_eq!(undo.info().unwrap().kept_blocks, 0);
}

#[test]
fn a_file_of_somebody_else_is_left_alone() {
    let bench = Bench::new();
    let path = bench.folder.path().join("undo");
    std::fs::write(&path, [1; 8192]).unwrap();
    let error = Undo::open(&path, None, bench.disk.clone()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(std::fs::read(&path).unwrap(), [1; 8192]);
}

#[test]
fn a_file_that_somebody_else_made_meanwhile_is_left_alone() {
    let bench = Bench::new();
    let undo = bench.undo(None);
    std::fs::write(undo.path(), "not ours").unwrap();
    assert_eq!(undo.begin(SIZE, 77), Err(Errno::EEXIST));
    assert_eq!(std::fs::read(undo.path()).unwrap(), b"not ours");
}
