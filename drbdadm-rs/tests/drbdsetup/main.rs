//! `drbdsetup` against a daemon that answers from a script.

mod daemon;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use udrbd_control::ReturnCode;
use udrbd_control::options::{DiskOptions, NetOptions, OptionSetting};
use udrbd_control::protocol::{CommandResult, MetadataIndex, Request, StreamItem};
use udrbd_control::status::{BackingSnapshot, DeviceSnapshot, Generations, NodeSnapshot, ResourceSnapshot};
use udrbd_units::{ConnectionState, DiskState, Minor, Role, VolumeNumber};

use daemon::Daemon;

/// One pair, connected, seen from the Primary.
fn healthy() -> NodeSnapshot {
    let mut resource = ResourceSnapshot::new("r0");
    let address = |text: &str| text.parse().expect("an address");
    resource.connection.addresses = Some((address("127.0.0.1:7788"), address("127.0.0.1:7789")));
    resource.connection.options = Some(NetOptions::default());
    resource.connection.state = ConnectionState::WFReportParams;
    let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
    device.role = Role::Primary;
    device.peer_role = Role::Secondary;
    device.connection = ConnectionState::Connected;
    device.disk = DiskState::UpToDate;
    device.peer_disk = DiskState::UpToDate;
    resource.devices.push(device);
    NodeSnapshot { resources: vec![resource] }
}

fn drbdsetup(run_directory: &Path, command: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drbdsetup"))
        .args(command.split_whitespace())
        .env("UDRBD_RUN_DIR", run_directory)
        .env("UDRBD_NO_START", "1")
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .output()
        .expect("drbdsetup runs")
}

/// Checks exit status, standard output and standard error.
#[track_caller]
fn check(run_directory: &Path, command: &str, status: i32, stdout: &str, stderr: &str) {
    let output = drbdsetup(run_directory, command);
    assert_eq!(String::from_utf8_lossy(&output.stderr), stderr, "{command}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{command}");
    assert_eq!(output.status.code(), Some(status), "{command}");
}

/// Checks what a command asks the daemon for.
#[track_caller]
fn check_request(command: &str, expected: Request) {
    let daemon = Daemon::start(healthy());
    let output = drbdsetup(daemon.directory(), command);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
    assert_eq!(output.status.code(), Some(0), "{command}");
    assert_eq!(daemon.commands(), [expected], "{command}");
}

#[test]
fn queries_print_what_the_daemon_knows() {
    let daemon = Daemon::start(healthy());
    let run = daemon.directory();
    check(run, "role 0", 0, "Primary/Secondary\n", "");
    check(run, "0 role", 0, "Primary/Secondary\n", "");
    check(run, "cstate /dev/drbd0", 0, "Connected\n", "");
    check(run, "dstate 0", 0, "UpToDate/UpToDate\n", "");
    check(
        run,
        "status",
        0,
        "r0 role:Primary\n  disk:UpToDate\n  peer role:Secondary\n    replication:Established peer-disk:UpToDate\n\n",
        "",
    );
    check(
        run,
        "status r0 --color=always",
        0,
        "r0 role:\x1b[1;36mPrimary\x1b[0m\n  disk:\x1b[1;32mUpToDate\x1b[0m\n  peer role:Secondary\n    \
         replication:Established peer-disk:\x1b[32mUpToDate\x1b[0m\n\n",
        "",
    );
    check(run, "get-gi 0", 1, "", "Device has no disk\n");
    let json = drbdsetup(run, "status --json r0");
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value[0]["connections"][0]["peer-role"], "Secondary");
}

#[test]
fn unknown_objects_are_told_as_drbd_tells_them() {
    let daemon = Daemon::start(healthy());
    let run = daemon.directory();
    let unknown =
        "7: Failure: (127) Device minor not allocated\nadditional info from kernel:\nunknown minor\n";
    check(run, "role 7", 10, "", unknown);
    check(run, "show 7", 10, "", unknown);
    check(run, "status nosuch", 10, "", "nosuch: No such resource\n");
    check(run, "show nosuch", 20, "", "received netlink error reply: No such device\n");
    check(run, "sh-status nosuch", 19, "", "");
    check(run, "role a", 20, "", "Cannot determine minor device number of device 'a'\n");
    check(run, "wait-connect 7", 20, "", "error determining which timeout to use: minor not available\n");
    check(run, "events2 --now nosuch", 0, "exists -\n", "");
}

#[test]
fn without_a_daemon_nothing_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path();
    check(run, "status", 0, "", "");
    check(run, "show", 0, "", "");
    check(run, "sh-status r0", 19, "", "");
    check(run, "events2 --now", 0, "exists -\n", "");
    check(run, "down r0", 0, "", "");
    for command in ["secondary 0", "primary 0", "detach 0", "disk-options 0 --fencing=dont-care"] {
        let unknown =
            "0: Failure: (127) Device minor not allocated\nadditional info from kernel:\nunknown minor\n";
        check(run, command, 10, "", unknown);
    }
    check(
        run,
        "resource-options r0 --cpu-mask=3",
        10,
        "",
        "r0: Failure: (158) Unknown resource\nadditional info from kernel:\nunknown resource\n",
    );
    check(
        run,
        "disconnect 127.0.0.1:1 127.0.0.1:2",
        10,
        "",
        "??: Failure: (162) Invalid configuration request\nadditional info from kernel:\nunknown connection\n",
    );
    let output = drbdsetup(run, "new-resource r0");
    assert_eq!(output.status.code(), Some(20));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.starts_with("could not connect to the daemon at "), "{stderr}");
    assert!(stderr.ends_with("Make sure that udrbdd is installed and can be started!\n"), "{stderr}");
}

#[test]
fn verbs_become_requests() {
    let minor = Minor(0);
    check_request("primary 0", Request::Primary { minor, force: false });
    check_request("primary 0 --overwrite-data-of-peer", Request::Primary { minor, force: true });
    check_request("primary --force=no 0", Request::Primary { minor, force: false });
    check_request("detach 0 --for", Request::Detach { minor, force: true });
    check_request(
        "verify 0 --start=16M --stop=24M",
        Request::Verify { minor, start_sector: Some(32768), stop_sector: Some(49152) },
    );
    check_request(
        "resize 0 --size 1G --assume-clean",
        Request::Resize {
            minor,
            size_sectors: Some(2_097_152),
            assume_peer_has_space: false,
            assume_clean: true,
            al_stripes: None,
            al_stripe_size_kib: None,
        },
    );
    check_request(
        "new-minor r1 /dev/drbd5 2",
        Request::NewMinor { resource: "r1".to_owned(), minor: Minor(5), volume: VolumeNumber(2) },
    );
    check_request("new-current-uuid 0 --clear-bitmap", Request::NewCurrentUuid { minor, clear_bitmap: true });
    check_request("invalidate-remote 0", Request::InvalidateRemote { minor });
    check_request("del-resource r0", Request::DelResource { resource: "r0".to_owned() });
}

#[test]
fn attach_takes_regular_files_and_the_options_of_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, "x").unwrap();
    let name = disk.display();
    let daemon = Daemon::start(healthy());
    let command = format!("attach 0 {name} {name} internal --resync-rate=30M --c-plan-ahead=0 --size=1G");
    let output = drbdsetup(daemon.directory(), &command);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let commands = daemon.commands();
    let [Request::Attach { disk: sent, index, options, .. }] = commands.as_slice() else {
        panic!("{commands:?}")
    };
    assert_eq!((sent, *index), (&disk, MetadataIndex::Internal));
    assert_eq!(options.resync_rate_kib_per_second, 30720);
    assert_eq!(options.c_plan_ahead_deciseconds, 0);
    assert_eq!(options.size_sectors, 2_097_152);
    let run = daemon.directory();
    let missing = "Can not open device '/nonexistent': No such file or directory\n";
    check(run, "attach 0 /nonexistent /nonexistent internal", 20, "", missing);
    check(run, "attach 0 /dev/null /dev/null internal", 20, "", "/dev/null is not a block device!\n");
    let bad_index = format!("attach 0 {name} {name} sideways");
    check(run, &bad_index, 20, "", "sideways is not a valid number\n");
}

#[test]
fn connect_and_net_options_carry_addresses_and_options() {
    let daemon = Daemon::start(healthy());
    let run = daemon.directory();
    let endpoints = "ipv4:127.0.0.1:7788 ipv4:127.0.0.1:7789";
    let connect = format!("connect r0 {endpoints} --protocol=A --discard-my-data --dry-run");
    check(run, &connect, 0, "", "");
    check(run, &format!("net-options {endpoints} --set-defaults --ping-int=12"), 0, "", "");
    let commands = daemon.commands();
    let [
        Request::Connect { options, discard_my_data, tentative, .. },
        Request::NetOptions { changes, peer, .. },
    ] = commands.as_slice()
    else {
        panic!("{commands:?}")
    };
    assert_eq!(options.protocol.name(), "A");
    assert!(*discard_my_data && *tentative);
    assert!(changes.set_defaults);
    let ping = OptionSetting { name: "ping-int".to_owned(), value: Some("12".to_owned()) };
    assert_eq!(changes.settings, [ping]);
    assert_eq!(peer.to_string(), "ipv4:127.0.0.1:7789");
}

#[test]
fn mistakes_are_usage_errors() {
    let daemon = Daemon::start(healthy());
    let run = daemon.directory();
    check(run, "primary 0 x y", 20, "\n", "Excess arguments: x y");
    check(run, "disk-options 0 --fencing=maybe", 20, "", "Option --fencing: invalid argument 'maybe'\n");
    check(run, "disk-options 0 --resync-rate=fast", 20, "", "fast is not a valid number\n");
    check(
        run,
        "wait-connect 0 --wfc-timeout=300001",
        20,
        "",
        "wfc_timeout => 300001 out of range [0..300000]\n",
    );
    for command in
        ["", "bogus 0", "cstate all", "status --color=bogus", "disk-options 0 --size=1", "role 0 -t"]
    {
        let output = drbdsetup(run, command);
        assert_eq!(output.status.code(), Some(20), "{command}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("USAGE: drbdsetup command"), "{command}");
    }
    let missing = drbdsetup(run, "new-minor r0 5");
    assert_eq!(String::from_utf8_lossy(&missing.stderr), "Missing argument 'volume'\n");
    assert_eq!(
        String::from_utf8_lossy(&missing.stdout),
        "USAGE:\n drbdsetup new-minor {resource} {minor} {volume}\n"
    );
    assert!(daemon.commands().is_empty());
}

#[test]
fn refusals_print_code_text_and_info_and_set_the_exit_status() {
    let refuse = |result: CommandResult| Daemon::refusing(healthy(), result);
    let daemon = refuse(ReturnCode::NoUpToDateDisk.into());
    check(
        daemon.directory(),
        "primary 0",
        17,
        "",
        "0: State change failed: (-2) Need access to UpToDate data\n",
    );
    let daemon = refuse(CommandResult::with_info(ReturnCode::DeviceInUse, "failed to demote"));
    check(
        daemon.directory(),
        "down r0",
        11,
        "",
        "r0: State change failed: (-12) Device is held open by someone\nadditional info from kernel:\nfailed to demote\n",
    );
    let daemon = refuse(ReturnCode::LowerThanOutdated.into());
    check(
        daemon.directory(),
        "outdate 0",
        5,
        "",
        "0: State change failed: (-16) Disk state is lower than outdated\n",
    );
    let daemon = refuse(ReturnCode::NeedAllowTwoPrimaries.into());
    check(
        daemon.directory(),
        "net-options 127.0.0.1:1 127.0.0.1:2 --allow-two-primaries=no",
        10,
        "",
        "??: Failure: (164) Can not clear allow_two_primaries as long as\nthere a primaries on both sides\n",
    );
    let daemon = refuse(CommandResult::with_info(ReturnCode::ResourceNotKnown, "unknown resource"));
    check(daemon.directory(), "down r9", 0, "", "");
}

#[test]
fn events2_follows_changes_until_the_daemon_ends() {
    let before = healthy();
    let mut after = before.resources[0].clone();
    after.devices[0].role = Role::Secondary;
    let change = StreamItem::Resource { time_us: 1_000_000, resource: Box::new(after) };
    let daemon = Daemon::streaming(before, vec![change]);
    check(
        daemon.directory(),
        "events2 r0",
        0,
        "exists resource name:r0 role:Primary suspended:no\n\
         exists connection name:r0 peer-node-id:0 conn-name:peer connection:Connected role:Secondary\n\
         exists device name:r0 volume:0 minor:0 disk:UpToDate\n\
         exists peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 replication:Established \
         peer-disk:UpToDate resync-suspended:no\n\
         exists -\n\
         change resource name:r0 role:Secondary\n",
        "",
    );
    let output = drbdsetup(daemon.directory(), "events2 r0 --timestamps");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.ends_with("1970-01-01T00:00:01.000000+00:00 change resource name:r0 role:Secondary\n"),
        "{text}"
    );
}

#[test]
fn events2_ends_when_nobody_reads_it() {
    let daemon = Daemon::holding(healthy(), Vec::new());
    let mut child = Command::new(env!("CARGO_BIN_EXE_drbdsetup"))
        .arg("events2")
        .env("UDRBD_RUN_DIR", daemon.directory())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line != "exists -\n" {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    drop(reader);
    // Nothing happens any more at the daemon: only the closed pipe can end it.
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn check_resize_remembers_the_size_of_disks_with_internal_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let mut node = healthy();
    let mut backing = BackingSnapshot {
        disk: disk.display().to_string(),
        metadata: disk.display().to_string(),
        index: MetadataIndex::Internal,
        options: DiskOptions::default(),
        generations: Generations::default(),
    };
    node.resources[0].devices[0].backing = Some(backing.clone());
    let daemon = Daemon::start(node.clone());
    let known = daemon.directory().join("drbd-minor-0.lkbd");
    std::fs::write(&known, "512\t/dev/old\nuuid:\t0123456789ABCDEF\n").unwrap();
    check(daemon.directory(), "check-resize 0", 0, "", "");
    let text = std::fs::read_to_string(&known).unwrap();
    assert_eq!(text, format!("4096\t{}\nuuid:\t0123456789ABCDEF\n", disk.display()));
    backing.index = MetadataIndex::Flexible;
    node.resources[0].devices[0].backing = Some(backing);
    let daemon = Daemon::start(node);
    let known = daemon.directory().join("drbd-minor-0.lkbd");
    std::fs::write(&known, "512\t/dev/old\n").unwrap();
    check(daemon.directory(), "check-resize 0", 0, "", "");
    assert!(!known.exists());
}

#[test]
fn what_is_gone_is_no_longer_registered() {
    let daemon = Daemon::start(healthy());
    let registered = daemon.directory().join("drbd");
    std::fs::create_dir(&registered).unwrap();
    let links = ["drbd-minor-0.conf", "drbd-resource-r0.conf", "drbd-minor-1.conf"];
    for link in links {
        std::os::unix::fs::symlink("/etc/drbd.conf", registered.join(link)).unwrap();
    }
    check(daemon.directory(), "down r0", 0, "", "");
    let left: Vec<bool> = links.iter().map(|link| registered.join(link).symlink_metadata().is_ok()).collect();
    assert_eq!(left, [false, false, true]);
    check(daemon.directory(), "del-minor 1", 0, "", "");
    assert!(registered.join(links[2]).symlink_metadata().is_err());
}

#[test]
fn waiting_ends_by_state_or_time() {
    let daemon = Daemon::start(healthy());
    check(daemon.directory(), "wait-connect 0", 0, "", "");
    check(daemon.directory(), "wait-sync 0", 0, "", "");
    let mut alone = healthy();
    alone.resources[0].devices[0].connection = ConnectionState::StandAlone;
    let daemon = Daemon::start(alone);
    check(daemon.directory(), "wait-connect 0", 0, "", "");
    let mut waiting = healthy();
    waiting.resources[0].devices[0].connection = ConnectionState::WFConnection;
    let mut arrived = waiting.resources[0].clone();
    arrived.devices[0].connection = ConnectionState::SyncTarget;
    let item = StreamItem::Resource { time_us: 0, resource: Box::new(arrived) };
    let daemon = Daemon::holding(waiting.clone(), vec![item]);
    check(daemon.directory(), "wait-connect 0", 0, "", "");
    let timeouts = "--wfc-timeout=1 --degr-wfc-timeout=1 --outdated-wfc-timeout=1";
    check(daemon.directory(), &format!("wait-sync 0 {timeouts}"), 5, "", "");
    let notes = "degr-wfc-timeout has to be shorter than wfc-timeout\n\
                 degr-wfc-timeout implicitly set to wfc-timeout (1s)\n\
                 outdated-wfc-timeout has to be shorter than degr-wfc-timeout\n\
                 outdated-wfc-timeout implicitly set to degr-wfc-timeout (1s)\n";
    let daemon = Daemon::holding(waiting.clone(), Vec::new());
    check(daemon.directory(), "wait-connect 0 --wfc-timeout=1", 5, "", notes);
    check(
        daemon.directory(),
        "wait-connect 0 --wfc-timeout=-1",
        20,
        "",
        "wfc_timeout => -1 out of range [0..300000]\n",
    );
    check(daemon.directory(), "wait-connect 0 --wfc-timeout=-x", 20, "", "-x is not a valid number\n");
}

#[test]
fn waiting_ends_with_what_it_waits_for() {
    let mut waiting = healthy();
    waiting.resources[0].devices[0].connection = ConnectionState::WFConnection;
    let name = waiting.resources[0].name.clone();
    let mut without = waiting.resources[0].clone();
    without.devices.clear();
    let gone = StreamItem::ResourceGone { time_us: 0, name };
    let removed = StreamItem::Resource { time_us: 0, resource: Box::new(without) };
    for item in [gone, removed] {
        let daemon = Daemon::holding(waiting.clone(), vec![item]);
        let timeouts = "--wfc-timeout=1 --degr-wfc-timeout=1 --outdated-wfc-timeout=1";
        check(daemon.directory(), &format!("wait-connect 0 {timeouts}"), 0, "", "");
        check(daemon.directory(), &format!("wait-sync 0 {timeouts}"), 0, "", "");
        // Who waits also after a disconnect waits for it to come back.
        check(daemon.directory(), &format!("wait-connect 0 --wait-after-sb {timeouts}"), 5, "", "");
    }
}

/// The folders of `part` in the project and, if it is named, in the extra vectors.
fn folders(part: &str) -> Vec<std::path::PathBuf> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/status").join(part)];
    if let Some(extra) = std::env::var_os("UDRBD_EXTRA_VECTORS") {
        folders.push(Path::new(&extra).join("status").join(part));
    }
    folders
}

#[test]
fn command_usage_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for verb in ["help", "xml-help"] {
        let files =
            folders("usage").into_iter().filter_map(|folder| std::fs::read_dir(folder.join(verb)).ok());
        for file in files.flatten().flatten() {
            let command = file.file_name().to_string_lossy().into_owned();
            let expected = std::fs::read_to_string(file.path()).unwrap();
            let output = drbdsetup(folder.path(), &format!("{verb} {command}"));
            let printed = String::from_utf8_lossy(&output.stdout).replace(" drbdsetup ", " drbdsetup-84 ");
            // Another name moves the places where lines break.
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&printed), words(&expected), "{verb} {command}");
            assert_eq!(output.status.code(), Some(0));
            count += 1;
        }
    }
    assert!(count >= 76, "only {count} files");
}

/// Runs the command of a transcript under the name it has there and compares what a terminal would show.
fn check_transcript_run(run_directory: &Path, run: &str) {
    let (command, rest) = run.split_once('\n').expect("a command");
    let (expected, status) = rest.split_once("[rc ").expect("an exit status");
    let program = run_directory.join("drbdsetup-84");
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_drbdsetup"), &program).expect("a link");
    }
    let output = Command::new("/bin/sh")
        .args(["-c", "exec 2>&1; exec \"$@\"", "sh"])
        .arg(&program)
        .args(command.split(' '))
        .env("UDRBD_RUN_DIR", run_directory)
        .env("UDRBD_NO_START", "1")
        .output()
        .expect("drbdsetup runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{command}");
    assert_eq!(output.status.code().map(|code| code.to_string()).as_deref(), status.split(']').next());
}

/// What the original printed for wrong arguments and for a device without disk and network.
#[test]
fn mistakes_vectors() {
    let mut resource = ResourceSnapshot::new("r0");
    resource.devices.push(DeviceSnapshot::new(VolumeNumber(0), Minor(0)));
    let daemon = Daemon::start(NodeSnapshot { resources: vec![resource] });
    let text = include_str!("../data/status/commands/07-mistakes.txt");
    let runs: Vec<&str> = text.split("$ drbdsetup-84 ").skip(1).collect();
    runs.iter().for_each(|run| check_transcript_run(daemon.directory(), run));
    assert!(runs.len() >= 50, "only {} runs", runs.len());
    assert!(daemon.commands().is_empty());
}

#[test]
fn usage_vectors() {
    let daemon = Daemon::start(healthy());
    let mut count = 0;
    let files = folders("commands")
        .into_iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten();
    for text in files.filter_map(|file| std::fs::read_to_string(file.path()).ok()) {
        for run in text.split("$ drbdsetup-84 ").skip(1).filter(|run| run.contains("USAGE: ")) {
            check_transcript_run(daemon.directory(), run);
            count += 1;
        }
    }
    assert!(count >= 2, "only {count} runs");
}
