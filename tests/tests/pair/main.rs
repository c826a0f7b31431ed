//! Two of our daemons on one machine, over its loopback, without root: sync, writes, roles, crashes and
//! clear refusals, driven by `drbdadm`.

mod handlers;
mod split_brain;
mod undo;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::nbd::Nbd;
use udrbd_tests::pair::{Node, Pair, PairOptions};
use udrbd_tests::runner::{self, Case};
use udrbd_tests::shell::{Local, Shell as _};
use udrbd_tests::target::TargetName;
use udrbd_tests::workload::{self, Workload};
use udrbd_tests::{images, machine};

const CASES: &[Case] = &[
    Case::new("initial_sync_makes_both_disks_equal", initial_sync),
    Case::new("writes_during_the_initial_sync_are_not_lost", writes_during_sync),
    Case::new("roles_move_back_and_forth_with_the_data", roles_move),
    Case::new("killed_secondary_catches_up_with_what_changed", killed_secondary),
    Case::new("killed_primary_recovers_and_keeps_its_promises", killed_primary),
    Case::new("a_daemon_is_handed_over_to_another_one", handed_over),
    Case::new("survivor_takes_over_and_lost_primary_catches_up", failover),
    Case::new("a_secondary_exports_nothing", secondary_exports_nothing),
    Case::new("configured_secret_is_asked_for", authentication),
    Case::new("a_second_primary_is_refused_in_drbd_words", second_primary),
    Case::new("an_inconsistent_disk_is_not_promoted_without_force", inconsistent_promotion),
    Case::new("a_missing_backing_file_is_a_clear_error", missing_disk),
    Case::new("a_configuration_that_does_not_parse_changes_nothing", bad_configuration),
    Case::new("a_terabyte_costs_no_more_memory_than_its_bitmap", memory_of_a_terabyte),
    Case::new("a_verify_is_waited_for_and_what_it_found_repaired", verify_and_repair),
    Case::new("disks_that_have_grown_give_a_larger_device", resize),
    Case::new("a_full_file_system_below_costs_the_disk_and_no_write", full_file_system),
    Case::new("handlers_find_what_drbds_scripts_expect", handlers::environment_is_drbds),
    Case::new("handlers_that_read_proc_drbd_find_our_devices", handlers::scripts_find_our_devices),
    Case::new("a_split_brain_explains_itself_and_its_commands_end_it", split_brain::explained),
    Case::new("the_victim_keeps_what_it_loses_also_if_its_daemon_dies", undo::kept_and_dropped),
    Case::new("an_undo_without_room_is_incomplete_and_in_nobodys_way", undo::without_room),
    Case::new("images_of_guests_are_served_to_qemu", images_of_guests),
    Case::new("garbage_on_the_port_leaves_the_daemon_up", garbage_on_port),
];

fn main() -> ExitCode {
    runner::main(CASES)
}

fn pair() -> Result<Pair> {
    Pair::new(PairOptions::default())
}

fn load(seed: u64, count: u64) -> Workload {
    Workload { seed, count, limit: None, sizes: (4096, 1 << 20), threads: 4, region: None, flush_every: 16 }
}

/// A journal beside the pair's disks.
fn journal(pair: &Pair) -> std::path::PathBuf {
    pair.config().with_file_name("journal")
}

fn write(pair: &Pair, node: Node, seed: u64, count: u64) -> Result<()> {
    workload::write(&pair.export(node), &journal(pair), &load(seed, count)).map(drop)
}

fn verify(pair: &Pair, node: Node) -> Result<()> {
    workload::verify(&pair.export(node), &journal(pair)).map(drop)
}

/// Compares both disks over the replicated size, block for block.
fn compare(pair: &Pair, primary: Node) -> Result<()> {
    let TargetName::Nbd(socket, export) = pair.export(primary) else { bail!("an export is NBD") };
    let size = Nbd::connect(&socket, &export)?.size();
    let different = workload::compare(&pair.disk(Node::Alpha), &pair.disk(Node::Beta), size)?;
    if !different.is_empty() {
        bail!("{} blocks differ, the first is {}", different.len(), different[0]);
    }
    Ok(())
}

fn initial_sync() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up()?;
    for node in Node::BOTH {
        let status = pair.status(node)?;
        if (status.disk.as_str(), status.role.as_str()) != ("Inconsistent", "Secondary") {
            bail!("fresh disks are {status:?}");
        }
    }
    pair.adm(Node::Alpha, "primary --force r0")?;
    pair.wait_healthy()?;
    write(&pair, Node::Alpha, 1, 200)?;
    verify(&pair, Node::Alpha)?;
    compare(&pair, Node::Alpha)
}

fn writes_during_sync() -> Result<()> {
    let mut pair = Pair::new(PairOptions {
        disk: "resync-rate 8M; c-plan-ahead 0;".to_owned(),
        ..PairOptions::default()
    })?;
    pair.bring_up()?;
    pair.adm(Node::Alpha, "primary --force r0")?;
    pair.wait(Node::Alpha, "SyncSource", |status| status.connection == "SyncSource")?;
    write(&pair, Node::Alpha, 2, 200)?;
    pair.wait_healthy()?;
    verify(&pair, Node::Alpha)?;
    compare(&pair, Node::Alpha)
}

fn roles_move() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    let mut primary = Node::Alpha;
    for round in 0..4 {
        write(&pair, primary, 30 + round, 40)?;
        compare(&pair, primary)?;
        pair.adm(primary, "secondary r0")?;
        primary = primary.other();
        pair.adm(primary, "primary r0")?;
        verify(&pair, primary)?;
    }
    Ok(())
}

fn killed_secondary() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    write(&pair, Node::Alpha, 4, 40)?;
    pair.kill(Node::Beta)?;
    pair.wait(Node::Alpha, "the loss of the peer", |status| status.peer_disk == "DUnknown")?;
    let mut part = load(5, 60);
    (part.region, part.sizes) = (Some((8 << 20, 4 << 20)), (4096, 64 << 10));
    workload::write(&pair.export(Node::Alpha), &journal(&pair), &part)?;
    let sent = pair.wait(Node::Alpha, "something out of sync", |status| status.out_of_sync_kib > 0)?;
    if sent.out_of_sync_kib > 4096 {
        bail!("{} KiB are out of sync after writes to 4096", sent.out_of_sync_kib);
    }
    pair.start(Node::Beta)?;
    pair.adm(Node::Beta, "up r0")?;
    pair.wait_healthy()?;
    compare(&pair, Node::Alpha)
}

/// `resources handover`, without a service manager: another daemon serves what the one before served.
fn handed_over() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    write(&pair, Node::Alpha, 4, 40)?;
    let side = pair.side(Node::Alpha).clone();
    let told = Local.run_limited(&side.resources("handover"), Duration::from_secs(60))?;
    let successor = std::fs::read_to_string(Path::new(&side.run_dir).join("udrbdd.pid"))?;
    // It is nobody's child here, and has to end with the test.
    let ended = || Local.sh(&format!("kill -9 {successor}"));
    let checked = (|| {
        ensure!(told.status == 0, "{told:?}");
        ensure!(pair.daemon_id(Node::Alpha) != successor.trim().parse().ok(), "it is the daemon of before");
        pair.wait_healthy()?;
        pair.adm(Node::Alpha, "primary r0")?;
        verify(&pair, Node::Alpha)?;
        compare(&pair, Node::Alpha)
    })();
    ended()?;
    checked
}

/// A raw image and a qcow2 one, written by QEMU's tools through one node and checked through the other.
fn images_of_guests() -> Result<()> {
    machine::ensure_packages(images::PACKAGES)?;
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    let uri = |pair: &Pair, node| format!("nbd+unix:///r0?socket={}", pair.socket(node).display());
    let folder = pair.config().with_file_name("images").display().to_string();
    let run = |script: String| -> Result<()> {
        Local.run_limited(&script, Duration::from_secs(120))?.expect_success().map(drop)
    };
    for (put, check) in [
        (images::put_raw as fn(&str, &str) -> String, images::check_raw as fn(&str, &str) -> String),
        (images::put_qcow2, images::check_qcow2),
    ] {
        run(put(&uri(&pair, Node::Alpha), &folder))?;
        compare(&pair, Node::Alpha)?;
        pair.adm(Node::Alpha, "secondary r0")?;
        pair.adm(Node::Beta, "primary r0")?;
        run(check(&uri(&pair, Node::Beta), &folder))?;
        compare(&pair, Node::Beta)?;
        pair.adm(Node::Beta, "secondary r0")?;
        pair.adm(Node::Alpha, "primary r0")?;
    }
    Ok(())
}

/// Runs `during` in the middle of writes that are expected to be torn off by it.
fn under_writes(pair: &mut Pair, seed: u64, during: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
    let (target, journal) = (pair.export(Node::Alpha), journal(pair));
    let writer = std::thread::spawn(move || {
        let endless = Workload { limit: Some(Duration::from_secs(60)), count: 0, ..load(seed, 0) };
        workload::write(&target, &journal, &endless)
    });
    std::thread::sleep(Duration::from_millis(700));
    during(pair)?;
    match writer.join() {
        Ok(Ok(_)) => bail!("the writer did not notice that its server is gone"),
        Ok(Err(_)) => Ok(()),
        Err(_) => bail!("the writer panicked"),
    }
}

fn killed_primary() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    for seed in 60..64 {
        under_writes(&mut pair, seed, |pair| pair.kill(Node::Alpha))?;
        pair.start(Node::Alpha)?;
        pair.adm(Node::Alpha, "up r0")?;
        pair.wait_healthy()?;
        pair.adm(Node::Alpha, "primary r0")?;
        verify(&pair, Node::Alpha)?;
        compare(&pair, Node::Alpha)?;
    }
    Ok(())
}

fn failover() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    under_writes(&mut pair, 7, |pair| pair.kill(Node::Alpha))?;
    pair.wait(Node::Beta, "the loss of the peer", |status| status.peer_disk == "DUnknown")?;
    pair.adm(Node::Beta, "primary r0")?;
    verify(&pair, Node::Beta)?;
    write(&pair, Node::Beta, 8, 60)?;
    pair.start(Node::Alpha)?;
    pair.adm(Node::Alpha, "up r0")?;
    pair.wait_healthy()?;
    compare(&pair, Node::Beta)?;
    pair.adm(Node::Beta, "secondary r0")?;
    pair.adm(Node::Alpha, "primary r0")?;
    verify(&pair, Node::Alpha)
}

fn secondary_exports_nothing() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    Nbd::connect(&pair.socket(Node::Alpha), "r0")?;
    let Err(error) = Nbd::connect(&pair.socket(Node::Beta), "r0") else { bail!("a Secondary was opened") };
    let words = format!("{error:#}");
    if !words.contains("refused") {
        bail!("no clear refusal but: {words}");
    }
    if Nbd::connect(&pair.socket(Node::Alpha), "no-such").is_ok() {
        bail!("an export that does not exist was opened");
    }
    Ok(())
}

fn authentication() -> Result<()> {
    let net = "protocol C; connect-int 1; cram-hmac-alg sha1; shared-secret \"two of us\";";
    let mut pair = Pair::new(PairOptions { net: net.to_owned(), ..PairOptions::default() })?;
    pair.bring_up_and_sync()?;
    write(&pair, Node::Alpha, 9, 20)?;
    compare(&pair, Node::Alpha)
}

/// Runs a `drbdadm` that must fail with `status` and say `words` on standard error.
fn refused(pair: &Pair, node: Node, command: &str, status: i32, words: &str) -> Result<()> {
    let output = pair.try_adm(node, command)?;
    if output.status != status || !output.stderr.contains(words) {
        bail!("`{command}` gave {}: {}{}", output.status, output.stdout, output.stderr);
    }
    pair.status(node).context("the daemon is gone").map(drop)
}

fn second_primary() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    refused(&pair, Node::Beta, "primary r0", 11, "Multiple primaries not allowed by config")
}

fn inconsistent_promotion() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up()?;
    refused(&pair, Node::Alpha, "primary r0", 17, "Need access to UpToDate data")
}

fn missing_disk() -> Result<()> {
    let mut pair = pair()?;
    pair.start(Node::Alpha)?;
    pair.adm(Node::Alpha, "create-md r0")?;
    std::fs::remove_file(&pair.side(Node::Alpha).disk)?;
    let output = pair.try_adm(Node::Alpha, "up r0")?;
    if output.status == 0 || !output.stderr.contains("No such file or directory") {
        bail!("`up` without a disk gave {}: {}", output.status, output.stderr);
    }
    pair.adm(Node::Alpha, "sh-resources").map(drop)
}

/// Blocks are changed on one disk behind its daemon's back, the first and the last among them.
fn verify_and_repair() -> Result<()> {
    let net = format!("{} verify-alg crc32c;", PairOptions::default().net);
    let mut pair = Pair::new(PairOptions { net, ..PairOptions::default() })?;
    pair.bring_up_and_sync()?;
    write(&pair, Node::Alpha, 31, 100)?;
    let answers = |pair: &Pair, words: &str, status: i32, text: &str| {
        let output = pair.try_adm(Node::Alpha, words)?;
        let told = format!("{}{}", output.stdout, output.stderr);
        if output.status != status || !told.contains(text) {
            bail!("`{words}` gave {}, not {status}, and said:\n{told}", output.status);
        }
        Ok(())
    };
    answers(&pair, "verify --wait r0", 0, "no difference")?;
    let TargetName::Nbd(socket, export) = pair.export(Node::Alpha) else { bail!("an export is NBD") };
    let blocks = Nbd::connect(&socket, &export)?.size() / 4096;
    let disk = std::fs::File::options().write(true).open(&pair.side(Node::Beta).disk)?;
    for block in [0, 77, blocks - 1] {
        disk.write_all_at(&[0x5a; 4096], block * 4096)?;
    }
    disk.sync_all()?;
    answers(&pair, "verify --wait r0", 1, "3 blocks of 4 KiB out of sync")?;
    answers(&pair, "verify --repair r0", 0, "3 blocks of 4 KiB out of sync")?;
    pair.wait_healthy()?;
    verify(&pair, Node::Alpha)?;
    compare(&pair, Node::Alpha)?;
    answers(&pair, "verify --wait r0", 0, "no difference")?;
    answers(&pair, "role --wait r0", 1, "unrecognized option '--wait'")?;
    pair.adm(Node::Alpha, "secondary r0")?;
    disk.write_all_at(&[0x5a; 4096], 4096)?;
    disk.sync_all()?;
    answers(&pair, "verify --repair r0", 11, "one node must be Primary")
}

/// Both disks are made larger under a running pair; the new part is resynced, and everything survives a restart.
fn resize() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    write(&pair, Node::Alpha, 21, 100)?;
    let TargetName::Nbd(socket, export) = pair.export(Node::Alpha) else { bail!("an export is NBD") };
    let before = Nbd::connect(&socket, &export)?.size();
    let grown = 96 << 20;
    for node in [Node::Alpha, Node::Beta] {
        std::fs::File::options().write(true).open(&pair.side(node).disk)?.set_len(grown)?;
    }
    pair.adm(Node::Alpha, "resize r0")?;
    let larger = |size: u64| size >= before + (31 << 20);
    for attempt in 0.. {
        if larger(Nbd::connect(&socket, &export)?.size()) {
            break;
        }
        if attempt == 100 {
            bail!("the device does not grow: {}", pair.log(Node::Alpha));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    pair.wait_healthy()?;
    let mut client = Nbd::connect(&socket, &export)?;
    let end = client.size() - 4096;
    client.write(end, &[0xab; 4096], false)?;
    client.flush()?;
    drop(client);
    verify(&pair, Node::Alpha)?;
    compare(&pair, Node::Alpha)?;
    // The metadata are found at their new place.
    pair.adm(Node::Alpha, "secondary r0")?;
    for node in [Node::Alpha, Node::Beta] {
        pair.adm(node, "down r0")?;
        pair.adm(node, "up r0")?;
    }
    pair.wait_healthy()?;
    pair.adm(Node::Beta, "primary r0")?;
    verify(&pair, Node::Beta)
}

/// A file system in memory, unmounted at the end.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn sized(path: &Path, options: &str) -> Result<Self> {
        Self::mount(path, &["-t", "tmpfs", "-o", options, "tmpfs"])?;
        Ok(Self(path.to_owned()))
    }

    fn mount(path: &Path, words: &[&str]) -> Result<()> {
        let output = Command::new("mount").args(words).arg(path).output().context("mount")?;
        if !output.status.success() {
            return Err(machine::skip(format!(
                "needs mount: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever still has a file open there keeps it, and nobody else sees it any more.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The file system below the Primary's disk runs full: the disk goes, the writes do not.
fn full_file_system() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mounted = Mounted::sized(folder.path(), "size=30m")?;
    let mut pair = pair()?;
    // The disk alone is there: nobody else shall run out of room.
    let (disk, small) = (pair.side(Node::Alpha).disk.clone(), folder.path().join("disk"));
    std::fs::File::create(&small)?.set_len(std::fs::metadata(&disk)?.len())?;
    std::fs::remove_file(&disk)?;
    std::os::unix::fs::symlink(&small, &disk)?;
    pair.bring_up_and_sync()?;
    write(&pair, Node::Alpha, 31, 200)?;
    pair.wait(Node::Alpha, "a lost disk", |status| {
        status.disk == "Diskless" && status.connection == "Connected" && status.peer_disk == "UpToDate"
    })?;
    verify(&pair, Node::Alpha)?;
    if !pair.log(Node::Alpha).contains("Local IO failed. Detaching...") {
        bail!("no word of it: {}", pair.log(Node::Alpha));
    }
    Mounted::mount(folder.path(), &["-o", "remount,size=200m"])?;
    pair.adm(Node::Alpha, "attach r0")?;
    pair.wait_healthy()?;
    verify(&pair, Node::Alpha)?;
    compare(&pair, Node::Alpha)?;
    drop(pair);
    drop(mounted);
    Ok(())
}

fn garbage_on_port() -> Result<()> {
    use std::io::Write as _;
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    let addresses = Node::BOTH.map(|node| pair.side(node).own.clone());
    for round in 0..30_u64 {
        for address in &addresses {
            // Refused is fine too: a connected side need not listen.
            let Ok(mut stream) = std::net::TcpStream::connect(address) else { continue };
            let mut numbers = workload::Numbers(round);
            let bytes: Vec<u8> = (0..64).flat_map(|_| numbers.draw().to_be_bytes()).collect();
            let _torn_off = stream.write_all(&bytes[..1 + (round as usize * 17) % 500]);
        }
    }
    write(&pair, Node::Alpha, 10, 40)?;
    pair.wait_healthy()?;
    for node in Node::BOTH {
        pair.adm(node, "role r0")?;
    }
    compare(&pair, Node::Alpha)
}

fn bad_configuration() -> Result<()> {
    let mut pair = pair()?;
    pair.bring_up_and_sync()?;
    let good = std::fs::read_to_string(pair.config())?;
    std::fs::write(pair.config(), good.replace("protocol C;", "protocol C"))?;
    let output = pair.try_adm(Node::Alpha, "down r0")?;
    if output.status != 10 || !output.stderr.contains("drbd.conf:4: Parse error") {
        bail!("a bad configuration gave {}: {}", output.status, output.stderr);
    }
    std::fs::write(pair.config(), good)?;
    pair.wait_healthy()
}

/// 32 KiB per GiB for the bitmap and at most 48 MiB for everything else of the resource.
fn memory_of_a_terabyte() -> Result<()> {
    let mut pair = Pair::new(PairOptions { disk_bytes: 1 << 40, ..PairOptions::default() })?;
    pair.start(Node::Alpha)?;
    pair.adm(Node::Alpha, "create-md r0")?;
    pair.adm(Node::Alpha, "up r0")?;
    pair.wait(Node::Alpha, "an attached disk", |status| status.disk == "Inconsistent")?;
    let id = pair.daemon_id(Node::Alpha).context("the daemon is gone")?;
    let text = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let resident_kib: u64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
    let limit_kib = 32 * 1024 + 48 * 1024;
    if resident_kib > limit_kib {
        bail!("{resident_kib} KiB are resident, more than {limit_kib}");
    }
    Ok(())
}
