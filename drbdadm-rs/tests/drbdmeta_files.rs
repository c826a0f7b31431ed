//! `drbdmeta` on regular files: what no transcript shows.
#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new(bytes: u64) -> Self {
        let bench = Self { folder: TempDir::new().unwrap() };
        File::create(bench.device()).unwrap().set_len(bytes).unwrap();
        bench
    }

    fn device(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.device()).unwrap()
    }

    fn run_index(&self, index: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_drbdmeta"))
            .args(["909", "v08", self.device().to_str().unwrap(), index])
            .args(arguments)
            .env("UDRBD_RUN_DIR", self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_index("internal", arguments)
    }

    fn works(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self, arguments: &[&str]) -> i32 {
        self.run(arguments).status.code().unwrap()
    }
}

/// Writes a dump with the given bits, on a device that has been agreed upon, and restores it.
fn set_bits(bench: &Bench, sectors: u64, words: &str) {
    let dump = bench.works(&["dump-md"]);
    let start = dump.find("bm {").unwrap();
    let text = dump[..start].replace("la-size-sect 0;", &format!("la-size-sect {sectors};"));
    let file = bench.folder.path().join("dump");
    std::fs::write(&file, format!("{text}bm {{ {words} }}\n")).unwrap();
    bench.works(&["--force", "restore-md", file.to_str().unwrap()]);
}

fn bits_of(dump: &str) -> &str {
    &dump[dump.find("bm {").unwrap()..]
}

#[test]
fn metadata_follow_a_device_that_has_grown() {
    // By less than the metadata take, by less than a bitmap page covers, and by much.
    for grown in [64 * MIB + 8192, 64 * MIB + 65_536, 200 * MIB, 1000 * MIB] {
        for command in ["check-resize", "apply-al"] {
            let bench = Bench::new(64 * MIB);
            bench.works(&["create-md"]);
            bench.works(&["write-dev-uuid", "ABC"]);
            set_bits(
                &bench,
                130_992,
                "0x0123456789ABCDEF; 100 times 0x0000000000000000; 0x00000000DEADBEEF;",
            );
            let before = bench.works(&["dump-md"]);
            assert!(before.contains("0x0123456789ABCDEF"));
            bench.file().set_len(grown).unwrap();
            bench.works(&[command]);
            let after = bench.works(&["dump-md"]);
            assert!(after.contains(&format!("# md_offset {}\n", grown - 4096)), "{after}");
            assert_eq!(bits_of(&after), bits_of(&before), "{command} after growth to {grown}");
            assert_eq!(bench.works(&["read-dev-uuid"]), "0000000000000ABC\n");
            // The old superblock, if it is not part of the new area, is gone.
            bench.works(&["check-resize"]);
        }
    }
}

#[test]
fn a_large_bitmap_moves_over_its_own_old_place() {
    let bench = Bench::new(102_400 * MIB);
    bench.works(&["create-md"]);
    // Different words in every mebibyte of bitmap.
    let words =
        "131072 times 0x0000000000000001; 131072 times 0x0000000000000002; 128000 times 0x0000000000000003;";
    set_bits(&bench, 200_000_000, words);
    let before = bench.works(&["dump-md"]);
    bench.file().set_len(102_400 * MIB + 65_536).unwrap();
    bench.works(&["check-resize"]);
    let after = bench.works(&["dump-md"]);
    assert!(after.contains(&format!("# md_offset {}\n", 102_400 * MIB + 65_536 - 4096)));
    assert!(bits_of(&after) == bits_of(&before));
}

#[test]
fn metadata_do_not_grow_into_data() {
    // One sector more needs another page of bitmap, but there is no more room for it.
    let bench = Bench::new(128 * MIB);
    bench.works(&["create-md"]);
    set_bits(&bench, 262_064, "0x0000000000000001;");
    bench.file().write_all_at(b"data", 262_064 * 512 - 4).unwrap();
    bench.file().set_len(128 * MIB + 512).unwrap();
    assert_eq!(bench.status(&["check-resize"]), 10);
    let mut data = [0; 4];
    bench.file().read_exact_at(&mut data, 262_064 * 512 - 4).unwrap();
    assert_eq!(&data, b"data");
}

/// A lock of all of a file for one writer.
const fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[test]
fn a_file_in_use_is_left_alone() {
    let bench = Bench::new(64 * MIB);
    bench.works(&["create-md"]);
    let holder = bench.file();
    fcntl(&holder, FcntlArg::F_OFD_SETLK(&whole_file())).unwrap();
    let output = bench.run(&["apply-al"]);
    assert_eq!(output.status.code(), Some(20));
    let name = bench.device().display().to_string();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("open({name}) failed: Device or resource busy\n")
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "Operation canceled.\n");
    let asked = bench.run(&["dump-md"]);
    assert_eq!(asked.status.code(), Some(20));
    assert!(String::from_utf8(asked.stderr).unwrap().contains("Exclusive open failed. Do it anyways?"));
    bench.works(&["--force", "get-gi"]);
    drop(holder);
    bench.works(&["apply-al"]);
}

/// So are those of a killed daemon: the process is gone before the kernel has ended its last request.
#[test]
fn a_file_that_is_let_go_of_in_a_moment_is_waited_for() {
    let bench = Bench::new(64 * MIB);
    bench.works(&["create-md"]);
    let holder = bench.file();
    fcntl(&holder, FcntlArg::F_OFD_SETLK(&whole_file())).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            drop(holder);
        });
        bench.works(&["apply-al"]);
    });
}

#[test]
fn one_program_at_a_time_works_on_a_minor() {
    let bench = Bench::new(64 * MIB);
    bench.works(&["create-md"]);
    let path = bench.folder.path().join("drbd-147-909");
    let holder = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fcntl(&holder, FcntlArg::F_SETLK(&whole_file())).unwrap();
    let output = bench.run(&["get-gi"]);
    assert_eq!(output.status.code(), Some(20));
    let expected = format!("lock on {} currently held by pid:{}\n", path.display(), std::process::id());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}

#[test]
fn a_dry_run_writes_nothing() {
    let bench = Bench::new(64 * MIB);
    let output = bench.run(&["--dry-run", "create-md"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("SKIPPED DUE TO DRY-RUN"));
    assert_eq!(bench.status(&["get-gi"]), 1);
}

#[test]
fn slots_of_one_file_are_independent() {
    let bench = Bench::new(256 * MIB);
    // The other slot's metadata look like data at the start of the file.
    for index in ["0", "1"] {
        assert!(bench.run_index(index, &["--force", "create-md"]).status.success());
        assert!(bench.run_index(index, &["write-dev-uuid", &format!("A{index}")]).status.success());
    }
    for index in ["0", "1"] {
        let output = bench.run_index(index, &["read-dev-uuid"]);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("00000000000000A{index}\n"));
    }
    let output = bench.run_index("2", &["create-md"]);
    assert_eq!(output.status.code(), Some(10));
}

#[test]
fn bad_dumps_change_nothing() {
    let bench = Bench::new(64 * MIB);
    bench.works(&["create-md"]);
    set_bits(&bench, 130_992, "7 times 0x00000000DEADBEEF;");
    let good = bench.works(&["dump-md"]);
    let file = bench.folder.path().join("dump");
    for (from, to) in
        [("}\n# bits-set", "}\nx"), ("flags 0x", "flags 0x1"), ("la-size-sect", "la-size"), ("bm {", "bm {{")]
    {
        assert!(good.contains(from));
        std::fs::write(&file, good.replace(from, to).replace("DEADBEEF", "00000000")).unwrap();
        assert_eq!(bench.status(&["verify-dump", file.to_str().unwrap()]), 10);
        assert_eq!(bench.status(&["--force", "restore-md", file.to_str().unwrap()]), 10);
        assert_eq!(bits_of(&bench.works(&["dump-md"])), bits_of(&good));
    }
}

#[test]
fn mistakes_in_the_command_line_are_named() {
    let bench = Bench::new(64 * MIB);
    let device = bench.device().to_str().unwrap().to_owned();
    for (arguments, status, message) in [
        (vec!["909", "v08", &device, "internal"], 20, "command missing\n"),
        (vec!["909", "v08", &device, "internal", "nonsense"], 20, "Unknown command 'nonsense'.\n"),
        (vec!["909", "v08", &device, "256", "get-gi"], 20, "'256' is not a valid index number.\n"),
        (vec!["909", "v08", &device], 20, "Too few arguments for format\n"),
        (vec!["909", "v10", &device, "internal", "get-gi"], 20, "Unknown format 'v10'.\n"),
        (
            vec!["xx", "v08", &device, "internal", "get-gi"],
            20,
            "Cannot determine minor device number of drbd device 'xx'\n",
        ),
        (
            vec!["909", "v08", &device, "internal", "dump-md", "-p", "4k"],
            10,
            "The --peer-max-bio-size option is only allowed with create-md\n",
        ),
        (
            vec!["909", "v08", &device, "internal", "create-md", "-z", "16"],
            10,
            "invalid (too small) al-stripe* settings\n",
        ),
        (
            vec!["909", "v08", "/nonexistent", "internal", "get-gi"],
            20,
            "open(/nonexistent) failed: No such file or directory\n",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_drbdmeta"))
            .args(&arguments)
            .env("UDRBD_RUN_DIR", bench.folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), message, "{arguments:?}");
    }
}
