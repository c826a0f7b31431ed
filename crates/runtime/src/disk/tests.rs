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
