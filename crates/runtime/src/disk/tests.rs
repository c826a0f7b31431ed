use super::*;
use crate::buffers::PoolOptions;
use crate::ring::RingOptions;

fn sparse(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

#[test]
fn a_file_is_a_disk_of_its_length_in_whole_sectors() {
    let file = sparse((1 << 20) + 511);
    let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
    assert_eq!(disk.properties().size, Sector(2048));
    assert_eq!(disk.properties().kind, StorageKind::RegularFile);
    assert!(disk.properties().volatile_cache);
    file.as_file().set_len(2 << 20).unwrap();
    assert_eq!(disk.current_size(), Ok(Sector(4096)));
}

#[test]
fn a_second_claim_is_refused_until_the_first_ends() {
    let file = sparse(1 << 20);
    let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
    let shared = disk.clone();
    let refused = Disk::open(file.path(), DiskOptions::default());
    assert!(matches!(refused, Err(OpenError::InUse { .. })), "{refused:?}");
    let look = DiskOptions { inspect_only: true, ..DiskOptions::default() };
    assert!(Disk::open(file.path(), look).is_ok());
    drop(disk);
    assert!(Disk::open(file.path(), DiskOptions::default()).is_err());
    drop(shared);
    assert!(Disk::open(file.path(), DiskOptions::default()).is_ok());
}

#[test]
fn what_is_no_disk_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Disk::open(path, DiskOptions::default());
    assert!(matches!(open(&folder.path().join("none")), Err(OpenError::Missing { .. })));
    assert!(matches!(open(folder.path()), Err(OpenError::NotADisk { .. })));
    assert!(matches!(open(Path::new("/dev/null")), Err(OpenError::NotADisk { .. })));
}

#[test]
fn blocking_transfers_work_at_any_length() {
    let file = sparse(4 << 20);
    let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
    let data: Vec<u8> = (0..(1 << 20) + 1536).map(|index| (index / 512 % 251) as u8).collect();
    disk.write_blocking(Sector(3), &data).unwrap();
    let mut back = vec![0; data.len()];
    disk.read_blocking(Sector(3), &mut back).unwrap();
    assert_eq!(back, data);
    assert_eq!(disk.read_blocking(Sector(8191), &mut [0; 1024]), Err(Errno::EIO));
}

#[test]
fn a_disk_on_the_ring_keeps_what_it_was_given() {
    for direct in [DirectIo::WhereSupported, DirectIo::Never] {
        let file = sparse(1 << 20);
        let disk = Disk::open(file.path(), DiskOptions { direct, ..DiskOptions::default() }).unwrap();
        let pool = PoolOptions { bytes: 1 << 20, lock: false };
        let mut ring = Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap();
        let buffer = ring.allocate(4096).unwrap();
        ring.bytes_mut(buffer.slice(0, 512)).fill(9);
        let mut completions = Vec::new();
        disk.write(&mut ring, Sector(5), buffer.slice(0, 512), Durability::Forced, ());
        ring.wait(None, &mut completions).unwrap();
        disk.flush(&mut ring, ());
        ring.wait(None, &mut completions).unwrap();
        assert_eq!(completions.iter().map(|done| done.result).collect::<Vec<_>>(), [Ok(512), Ok(0)]);
        let content = std::fs::read(file.path()).unwrap();
        assert!(content[5 * 512..6 * 512].iter().all(|&byte| byte == 9));
    }
}

#[test]
fn a_file_in_memory_is_read_and_written_at_once_and_has_nothing_to_flush() {
    let Ok(file) = tempfile::NamedTempFile::new_in("/dev/shm") else { return };
    file.as_file().set_len(1 << 20).unwrap();
    let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
    assert!(disk.properties().in_memory && !disk.properties().volatile_cache);
    let mut ring = small_ring();
    let buffer = ring.allocate(8192).unwrap();
    ring.bytes_mut(buffer.slice(0, 8192)).fill(7);
    disk.write(&mut ring, Sector(8), buffer.slice(0, 4096), Durability::FlushedAndForced, ());
    disk.read(&mut ring, Sector(8), buffer.slice(4096, 4096), ());
    disk.read(&mut ring, Sector(2047), buffer.slice(0, 4096), ());
    assert_eq!(ring.in_flight(), 0);
    let mut done = Vec::new();
    ring.wait(None, &mut done).unwrap();
    let results: Vec<_> = done.iter().map(|completion| completion.result).collect();
    assert_eq!(results, [Ok(4096), Ok(4096), Err(Errno::EIO)]);
    assert_eq!(ring.bytes(buffer.slice(4096, 4096)), [7; 4096]);
    assert_eq!(std::fs::read(file.path()).unwrap()[4096..8192], [7; 4096]);
}

#[test]
fn a_metadata_device_can_be_shared_by_those_who_agree_to() {
    let file = sparse(1 << 20);
    let disks = SharedDisks::default();
    let first = disks.open(file.path(), DiskOptions::default()).unwrap();
    let second = disks.open(file.path(), DiskOptions::default()).unwrap();
    assert_eq!(first.properties(), second.properties());
    drop(first);
    assert!(Disk::open(file.path(), DiskOptions::default()).is_err(), "the claim is still held");
    drop(second);
    let alone = Disk::open(file.path(), DiskOptions::default()).unwrap();
    assert!(disks.open(file.path(), DiskOptions::default()).is_err(), "somebody else has claimed it");
    drop(alone);
    assert!(disks.open(file.path(), DiskOptions::default()).is_ok());
}

/// A block device on a file, where the machine and the privilege allow one.
struct LoopDevice {
    path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl LoopDevice {
    fn new(bytes: u64, read_only: bool) -> Option<Self> {
        let file = sparse(bytes);
        let mut command = std::process::Command::new("losetup");
        command.args(["--find", "--show"]).args(read_only.then_some("--read-only")).arg(file.path());
        let output = command.output().ok().filter(|output| output.status.success())?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        Some(Self { path, _file: file })
    }

    fn setting(&self, name: &str) -> PathBuf {
        Path::new("/sys/block").join(self.path.file_name().unwrap()).join("queue").join(name)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The setting would stay with the number of the device, for whoever gets it next.
        let _ = std::fs::write(self.setting("write_cache"), "write back");
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// Waits for everything in flight; every result must be a success.
fn finish(ring: &mut Ring<()>) {
    let mut completions = Vec::new();
    while ring.in_flight() > 0 {
        ring.wait(None, &mut completions).unwrap();
    }
    assert!(completions.iter().all(|completion| completion.result.is_ok()), "{completions:?}");
}

fn small_ring() -> Ring<()> {
    let pool = PoolOptions { bytes: 2 << 20, lock: false };
    Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap()
}

#[test]
fn a_block_device_is_claimed_measured_and_discarded() {
    let Some(device) = LoopDevice::new(8 << 20, false) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    // An earlier owner of the number may have switched it off.
    std::fs::write(device.setting("write_cache"), "write back").unwrap();
    let disk = Disk::open(&device.path, DiskOptions::default()).unwrap();
    let properties = *disk.properties();
    assert_eq!((properties.kind, properties.size), (StorageKind::BlockDevice, Sector(16_384)));
    assert!(properties.direct && properties.volatile_cache && properties.discard.bytes_max > 0);
    let second = Disk::open(&device.path, DiskOptions::default());
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    let mut ring = small_ring();
    let buffer = ring.allocate(1 << 20).unwrap();
    let all = buffer.slice(0, 1 << 20);
    for zeroing in [Zeroing::Discard, Zeroing::MayUnmap, Zeroing::KeepAllocated] {
        ring.bytes_mut(all).fill(7);
        disk.write(&mut ring, Sector(0), all, Durability::FlushedAndForced, ());
        finish(&mut ring);
        disk.zero(&mut ring, Sector(8), 262_144, zeroing, ());
        finish(&mut ring);
        disk.read(&mut ring, Sector(0), all, ());
        finish(&mut ring);
        for (position, &byte) in ring.bytes(all).iter().enumerate() {
            assert_eq!(byte == 0, (4096..266_240).contains(&position), "{zeroing:?} at {position}");
        }
    }
}

#[test]
fn what_is_to_be_forced_reaches_the_device_as_a_flush() {
    let Some(device) = LoopDevice::new(1 << 20, false) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    std::fs::write(device.setting("write_cache"), "write back").unwrap();
    let flushes = || -> u32 {
        let statistics = std::fs::read_to_string(device.setting("../stat")).unwrap();
        statistics.split_whitespace().nth(15).unwrap().parse().unwrap()
    };
    let disk = Disk::open(&device.path, DiskOptions::default()).unwrap();
    let mut ring = small_ring();
    let buffer = ring.allocate(4096).unwrap();
    let mut counted = |durability: Option<Durability>| {
        let before = flushes();
        match durability {
            Some(durability) => disk.write(&mut ring, Sector(0), buffer.slice(0, 4096), durability, ()),
            None => disk.flush(&mut ring, ()),
        };
        finish(&mut ring);
        flushes() - before
    };
    assert_eq!(counted(Some(Durability::Cached)), 0);
    assert!(counted(None) > 0);
    let forced = counted(Some(Durability::Forced));
    assert!(forced > 0);
    assert!(counted(Some(Durability::FlushedAndForced)) > forced, "a flush before the write, too");
}

#[test]
fn a_device_without_a_cache_needs_no_flush_and_gets_an_answer_all_the_same() {
    let Some(device) = LoopDevice::new(1 << 20, false) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    std::fs::write(device.setting("write_cache"), "write through").unwrap();
    let disk = Disk::open(&device.path, DiskOptions::default()).unwrap();
    assert!(!disk.properties().volatile_cache);
    let mut ring = small_ring();
    disk.flush(&mut ring, ());
    assert_eq!(ring.in_flight(), 1);
    finish(&mut ring);
}

#[test]
fn a_read_only_device_is_refused_as_such() {
    let Some(device) = LoopDevice::new(1 << 20, true) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    let refused = Disk::open(&device.path, DiskOptions::default());
    assert!(matches!(refused, Err(OpenError::ReadOnly { .. })), "{refused:?}");
    let look = DiskOptions { inspect_only: true, ..DiskOptions::default() };
    assert!(Disk::open(&device.path, look).is_ok());
}
