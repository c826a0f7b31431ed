//! `drbdmeta` as a program, on regular files, against what the original printed and wrote.
//!
//! The vectors are those of the crate `udrbd-metadata`; those in `$UDRBD_EXTRA_VECTORS/metadata` are run too if the
//! variable is set.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The folders `part` of all sets of vectors.
fn roots(part: &str) -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/metadata/tests/data");
    let extra = std::env::var_os("UDRBD_EXTRA_VECTORS").map(PathBuf::from);
    let roots: Vec<PathBuf> = std::iter::once(own)
        .chain(extra)
        .map(|root| root.join("metadata").join(part))
        .filter(|root| root.exists())
        .collect();
    assert!(!roots.is_empty());
    roots
}

/// What lies in `part` of all sets of vectors, in order.
fn entries(part: &str) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = roots(part)
        .iter()
        .flat_map(|root| std::fs::read_dir(root).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    assert!(!entries.is_empty());
    entries
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// What a run of the program gave.
#[derive(Debug, PartialEq)]
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

/// A file as the device of minor 909.
struct Bench {
    folder: TempDir,
    index: String,
}

impl Bench {
    fn new(bytes: u64, index: &str) -> Self {
        let bench = Self { folder: TempDir::new().unwrap(), index: index.to_owned() };
        File::create(bench.device()).unwrap().set_len(bytes).unwrap();
        bench
    }

    fn device(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    fn device_name(&self) -> String {
        self.device().to_str().unwrap().to_owned()
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        let file = OpenOptions::new().write(true).open(self.device()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        File::open(self.device()).unwrap().read_exact_at(&mut buffer, offset).unwrap();
        buffer
    }

    /// Runs the program; the name of the file becomes `name` in what it prints.
    fn run_as(&self, name: &str, options: &[&str], command: &[&str], stdin: Stdio) -> Run {
        let output = Command::new(env!("CARGO_BIN_EXE_drbdmeta"))
            .args(options)
            .args(["909", "v08", &self.device_name(), &self.index])
            .args(command)
            .env("UDRBD_RUN_DIR", self.folder.path().join("run"))
            // Nothing may be found there: LVM's tools are not asked.
            .env("PATH", self.folder.path())
            .env("LC_ALL", "C")
            .stdin(stdin)
            .output()
            .unwrap();
        let readable = |bytes| String::from_utf8(bytes).unwrap().replace(&self.device_name(), name);
        Run {
            status: output.status.code().unwrap(),
            stdout: readable(output.stdout),
            stderr: readable(output.stderr),
        }
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Run {
        self.run_as("/dev/loop0", options, command, Stdio::null())
    }

    /// Runs the program with a terminal on which the answers are typed.
    fn run_typed(&self, options: &[&str], command: &[&str], answers: &[&str]) -> Run {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let mut keyboard = File::from(terminal.master);
        for answer in answers {
            writeln!(keyboard, "{answer}").unwrap();
        }
        self.run_as("/dev/loop0", options, command, Stdio::from(File::from(terminal.slave)))
    }

    /// Brings the file into the state the transcript starts from.
    fn prepare(&self, command: &str) {
        match command {
            // The original creates these formats; ours recognises them.
            "drbdmeta --force $M v07 $L internal create-md" => self.prepare_v07(),
            "drbdmeta --force $M v09 $L internal create-md 3" => self.prepare_v09(),
            _ => {
                let programs = Path::new(env!("CARGO_BIN_EXE_drbdmeta")).parent().unwrap();
                let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
                let output = Command::new("/bin/sh")
                    .args(["-ec", command])
                    .env("L", self.device())
                    .env("M", "909")
                    .env("PATH", path)
                    .env("UDRBD_RUN_DIR", self.folder.path().join("run"))
                    .stdin(Stdio::null())
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{command}: {output:?}");
            }
        }
    }

    fn prepare_v07(&self) {
        let mut block = [0; 4096];
        for (offset, word) in [
            (12, 1_u32),
            (16, 1),
            (20, 1),
            (24, 1),
            (28, 0x8374_026A),
            (32, 0x2_0000),
            (36, 8),
            (40, 257),
            (44, 72),
        ] {
            block[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
        }
        let bytes = self.device().metadata().unwrap().len();
        self.write(&block, bytes - (128 << 20));
    }

    fn prepare_v09(&self) {
        let mut block = [0; 4096];
        for (offset, word) in [
            (12, 4_u32),
            (56, 0x80),
            (60, 0x8374_026D),
            (64, 88),
            (68, -64_i32 as u32),
            (72, 257),
            (76, -80_i32 as u32),
            (80, 4096),
            (88, 3),
            (92, u32::MAX),
            (96, 1),
            (100, 8),
        ] {
            block[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
        }
        let bytes = self.device().metadata().unwrap().len();
        self.write(&block, bytes - 4096);
    }
}

/// A size as the transcripts have it.
fn size(text: &str) -> u64 {
    let (digits, unit) = match text.as_bytes()[text.len() - 1] {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().unwrap() * unit
}

/// What the shell and LVM say is theirs; only that they were asked is compared.
fn without_lvm(text: &str) -> String {
    let mut lines: Vec<&str> =
        text.lines().map(|line| if line.starts_with("pvs stderr:") { "pvs stderr:" } else { line }).collect();
    lines.dedup();
    lines.join("\n")
}

#[test]
fn create_md_dialogue_vectors() {
    for file in entries("cli") {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("create-") {
            continue;
        }
        let transcript = text(&file);
        let mut parts = transcript.split("##### stdin: ");
        let head = parts.next().unwrap().trim_end();
        let (bytes, rest) = head.strip_prefix("# device size ").unwrap().split_once(", index ").unwrap();
        let (index, command) = rest.split_once(", prepared by: ").unwrap();
        let bench = Bench::new(size(bytes), index);
        bench.prepare(command);
        for part in parts {
            let (mode, rest) = part.split_once("\n--- stdout\n").unwrap();
            let (stdout, rest) = rest.split_once("--- stderr\n").unwrap();
            let (stderr, rest) = rest.split_once("--- rc=").unwrap();
            let run = match mode.strip_prefix("tty:") {
                Some(answers) => {
                    bench.run_typed(&[], &["create-md"], &answers.split(',').collect::<Vec<_>>())
                }
                None if mode == "force" => bench.run(&["--force"], &["create-md"]),
                None => bench.run(&[], &["create-md"]),
            };
            assert_eq!(run.stdout, stdout, "{name}, {mode}: stdout");
            assert_eq!(without_lvm(&run.stderr), without_lvm(stderr), "{name}, {mode}: stderr");
            assert_eq!(run.status, rest.trim().parse().unwrap(), "{name}, {mode}: status");
        }
    }
}

/// Reads the values of a flat JSON object; what lies deeper is passed over.
fn info(folder: &Path) -> BTreeMap<String, String> {
    text(&folder.join("info.json"))
        .lines()
        .filter_map(|line| line.trim().trim_end_matches(',').split_once(": "))
        .map(|(key, value)| (key.trim_matches('"').to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

/// A dump without the lines that depend on time and place, with the flags the original forgot.
fn comparable_dump(dump: &str, superblock: &[u8]) -> String {
    let flags: String = superblock[56..60].iter().map(|byte| format!("{byte:02X}")).collect();
    dump.lines()
        .enumerate()
        .map(|(number, line)| match (number, line) {
            (1 | 2, _) => String::new(),
            (_, "    flags 0x00000000;") => format!("    flags 0x{flags};"),
            (_, line) => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Runs the commands that only show something and compares with the texts in `folder`.
fn compare_shown(bench: &Bench, folder: &Path, superblock: &[u8]) {
    for (command, file) in [("get-gi", "get-gi.txt"), ("show-gi", "show-gi.txt")] {
        if folder.join(file).exists() {
            let run = bench.run(&[], &[command]);
            assert_eq!(run.stdout, text(&folder.join(file)), "{}", folder.display());
            assert_eq!((run.status, run.stderr.as_str()), (0, ""));
        }
    }
    for (options, file) in [(vec![], "dump-md.txt"), (vec!["--force"], "dump-md-force.txt")] {
        if folder.join(file).exists() {
            let run = bench.run(&options, &["dump-md"]);
            let theirs = comparable_dump(&text(&folder.join(file)), superblock);
            assert_eq!(comparable_dump(&run.stdout, superblock), theirs, "{}", folder.display());
            assert_eq!(run.status, 0);
            let errors = folder.join("dump-md-force.stderr.txt");
            if errors.exists() {
                assert_eq!(run.stderr, text(&errors));
            }
        }
    }
}

#[test]
fn create_md_writes_vectors() {
    for folder in entries("fresh").into_iter().filter(|path| path.is_dir()) {
        let info = info(&folder);
        let bench = Bench::new(info["md_device_bytes"].parse().unwrap(), &info["md_index"]);
        // A disk of which the metadata areas were used before.
        let area = |key: &str| info[key].parse::<u64>().unwrap();
        bench.write(&[0x5A; 4096], area("bm_offset"));
        let given = info.get("create_md_options").map_or("", String::as_str);
        let mut options: Vec<&str> = given.split_ascii_whitespace().collect();
        options.push("--force");
        let run = bench.run(&options, &["create-md"]);
        assert_eq!(run.status, 0, "{}: {run:?}", folder.display());
        let stdout = text(&folder.join("create-md.stdout.txt"));
        assert!(run.stdout.ends_with(&stdout), "{}: {run:?}", folder.display());
        assert!(run.stderr.ends_with(&text(&folder.join("create-md.stderr.txt"))), "{run:?}");
        assert_eq!(bench.run(&[], &["write-dev-uuid", "00112233445566AA"]).status, 0);

        let superblock = std::fs::read(folder.join("sb.bin")).unwrap();
        assert!(bench.read(area("sb_offset"), 4096) == superblock, "{}", folder.display());
        let ring = std::fs::read(folder.parent().unwrap().join("al-block.bin")).unwrap();
        for block in bench.read(area("al_offset"), area("al_bytes") as usize).chunks(4096) {
            assert!(block == ring, "{}", folder.display());
        }
        assert!(bench.read(area("bm_offset"), 4096).iter().all(|byte| *byte == 0));
        compare_shown(&bench, &folder, &superblock);
    }
}

#[test]
fn apply_al_crash_vectors() {
    for folder in entries("crash") {
        let before = folder.join("before");
        let values = info(&before);
        let at = |key: &str| values[key].parse::<u64>().unwrap();
        let bench = Bench::new(at("md_device_bytes"), &values["md_index"]);
        let superblock = std::fs::read(before.join("sb.bin")).unwrap();
        bench.write(&superblock, at("sb_offset"));
        bench.write(&std::fs::read(before.join("al.bin")).unwrap(), at("al_offset"));
        bench.write(&std::fs::read(before.join("bm.bin")).unwrap(), at("bm_offset"));
        compare_shown(&bench, &before, &superblock);
        assert_eq!(bench.run(&[], &["dump-md"]).status, 1);

        let run = bench.run(&[], &["apply-al"]);
        let transcript = format!("{}rc={}\n", run.stderr, run.status);
        assert_eq!(transcript, text(&folder.join("apply-al.stderr.txt")), "{}", folder.display());
        let after = folder.join("after");
        let superblock = std::fs::read(after.join("sb.bin")).unwrap();
        assert!(bench.read(at("sb_offset"), 4096) == superblock, "{}", folder.display());
        let bits = std::fs::read(after.join("bm.bin")).unwrap();
        assert!(bench.read(at("bm_offset"), bits.len()) == bits, "{}", folder.display());
        compare_shown(&bench, &after, &superblock);
        let again = bench.run(&[], &["apply-al"]);
        assert_eq!(again, Run { status: 0, stdout: String::new(), stderr: String::new() });
    }
}

#[test]
fn apply_al_replay_vectors() {
    for folder in entries("replay") {
        let values = info(&folder);
        let at = |key: &str| values[key].parse::<u64>().unwrap();
        let bench = Bench::new(at("md_device_bytes"), &values["md_index"]);
        bench.write(&std::fs::read(folder.join("sb-before.bin")).unwrap(), at("sb_offset"));
        let log = std::fs::read(folder.join("al-before.bin")).unwrap();
        bench.write(&log, at("al_offset"));
        let run = bench.run(&[], &["apply-al"]);
        let transcript = format!("stdout:\n{}stderr:\n{}rc={}\n", run.stdout, run.stderr, run.status);
        assert_eq!(transcript, text(&folder.join("apply-al.txt")), "{}", folder.display());
        let superblock = std::fs::read(folder.join("sb-after.bin")).unwrap();
        assert!(bench.read(at("sb_offset"), 4096) == superblock, "{}", folder.display());
        let dump = bench.run(&["--force"], &["dump-md"]).stdout;
        let theirs = comparable_dump(&text(&folder.join("dump-md-after.txt")), &superblock);
        assert_eq!(comparable_dump(&dump, &superblock), theirs, "{}", folder.display());
        let now = bench.read(at("al_offset"), log.len());
        let initialized = now.chunks(4096).all(|block| block == &now[..4096]);
        assert_eq!(now == log, values["al_after"] == "unchanged", "{}", folder.display());
        assert!(initialized || now == log);
    }
}

#[test]
fn restore_md_vectors() {
    for folder in entries("dump") {
        let values = info(&folder);
        let at = |key: &str| values[key].parse::<u64>().unwrap();
        let bench = Bench::new(at("md_device_bytes"), &values["md_index"]);
        let input = folder.join("restore-input.txt");
        let run = bench.run(&[], &["restore-md", input.to_str().unwrap()]);
        let transcript = format!("stdout:\n{}stderr:\n{}rc={}\n", run.stdout, run.stderr, run.status);
        assert_eq!(transcript.trim_end(), text(&folder.join("restore-md.txt")).trim_end());
        let superblock = std::fs::read(folder.join("sb-after-restore.bin")).unwrap();
        assert!(bench.read(at("sb_offset"), 4096) == superblock);
        let bits = std::fs::read(folder.join("bm.bin")).unwrap();
        assert!(bench.read(at("bm_offset"), bits.len()) == bits);
        compare_shown(&bench, &folder, &superblock);
    }
}

/// A line of a transcript of several commands: what was run, what it printed, with which status it ended.
struct Step {
    command: Option<String>,
    output: String,
    status: i32,
}

fn steps(transcript: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = Step { command: None, output: String::new(), status: 0 };
    for line in transcript.lines() {
        if let Some(command) = line.strip_prefix("$ drbdmeta ") {
            step.command = Some(command.to_owned());
        } else if let Some(status) = line.strip_prefix("rc=") {
            step.status = status.parse().unwrap();
            steps.push(step);
            step = Step { command: None, output: String::new(), status: 0 };
        } else {
            step.output += line;
            step.output += "\n";
        }
    }
    steps
}

/// The small commands one after the other, on the device of a crashed Primary.
#[test]
fn small_command_vectors() {
    for root in roots("cli") {
        let transcript = root.join("misc-commands-int-64M.txt");
        let crash = root.join("../crash/int-64M-connected-primary/before");
        if !transcript.exists() || !crash.exists() {
            continue;
        }
        let values = info(&crash);
        let at = |key: &str| values[key].parse::<u64>().unwrap();
        let bench = Bench::new(at("md_device_bytes"), "internal");
        bench.write(&std::fs::read(crash.join("sb.bin")).unwrap(), at("sb_offset"));
        bench.write(&std::fs::read(crash.join("al.bin")).unwrap(), at("al_offset"));
        // The Primary had written to block 1, among others.
        bench.write(b"data", 4096);
        let dump = bench.folder.path().join("dump");
        let mut complete = None;
        for step in steps(&text(&transcript)) {
            let Some(command) = step.command else {
                // Of these only the end was recorded.
                let command = if step.output.starts_with("flags:") { "show-gi" } else { "dump-md" };
                let run = bench.run(&[], &[command]);
                assert!(run.stdout.ends_with(&step.output), "{run:?}");
                if command == "dump-md" {
                    // The original's dump had no flags.
                    let without = run.stdout.replace("flags 0x00000097", "flags 0x00000000");
                    assert_ne!(without, run.stdout);
                    std::fs::write(&dump, without).unwrap();
                    complete = Some(run.stdout);
                }
                continue;
            };
            let forced = command.starts_with("--force ");
            let words =
                command.split_once(" DEV internal ").unwrap().1.replace("DUMPFILE", dump.to_str().unwrap());
            let words: Vec<&str> = words.split(' ').collect();
            let run = bench.run(if forced { &["--force"] } else { &[] }, &words);
            assert_eq!(format!("{}{}", run.stderr, run.stdout), step.output, "{command}");
            assert_eq!(run.status, step.status, "{command}");
            if words[0] == "restore-md"
                && forced
                && let Some(complete) = complete.take()
            {
                // The second time the flags had been put in by hand.
                std::fs::write(&dump, complete).unwrap();
            }
        }
        assert!(complete.is_none());
    }
}
