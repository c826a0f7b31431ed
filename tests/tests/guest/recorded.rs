//! Fencing, disks in trouble and no data at all, step by step: recorded between two kernels, played again with one of ours in either
//! part. The records are those that judge the engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use udrbd_tests::replica::{Frontend, Replica};
use udrbd_tests::runner;

use crate::duo::{Duo, IO, Stage};
use crate::meetings::write_metadata;
use crate::replication::MIXED;

/// The size of the recorded disks: their metadata lie where those of the records lay.
const DISK_BYTES: u64 = 8 << 20;
/// Where the metadata of such a disk begin, in sectors.
const METADATA: u64 = 16304;
/// One record of so many is played in the usual run, with either part; in the long run all are.
const USUAL_SHARE: usize = 30;
/// What a step may take until both sides are as they were recorded.
const LIMIT: Duration = Duration::from_secs(60);
/// The program that runs handlers: it ends with what the record says.
const HELPER: &str = "/run/handlers/run";
/// Commands that a side may be given.
const COMMANDS: [&str; 15] = [
    "primary",
    "secondary",
    "disconnect",
    "connect",
    "down",
    "outdate",
    "resume-io",
    "suspend-io",
    "detach",
    "attach",
    "invalidate",
    "invalidate-remote",
    "pause-sync",
    "resume-sync",
    "verify",
];
/// How long a request may take that is not held back.
const REQUEST_SECONDS: u32 = 6;

/// A recorded course of things.
struct Record {
    value: Value,
}

impl Record {
    fn id(&self) -> &str {
        self.value["id"].as_str().unwrap_or_default()
    }

    fn steps(&self) -> &[Value] {
        self.value["steps"].as_array().map_or(&[], Vec::as_slice)
    }

    fn has(&self, side: &str) -> bool {
        self.value["setup"][side].is_object()
    }

    /// A link that is cut for a moment, commands of the shell, sizes and disks that are not attached are the engine's to judge; so
    /// are clients who wait for data that nobody has, as the NBD server turns away who comes then.
    fn is_played(&self) -> bool {
        if self.steps().iter().any(|step| step["after"]["a"]["suspended"] == "no-data") {
            return false;
        }
        let attached =
            ["a", "b"].iter().all(|side| !self.has(side) || self.value["setup"][side]["attached"] == true);
        attached
            && self.steps().iter().all(|step| {
                let words = words(step);
                match (step["on"].as_str(), words[0]) {
                    (Some("net"), what) => ["refuse", "hold", "ok"].contains(&what),
                    (Some("-"), what) => what == "sleep",
                    (_, "write" | "read" | "io-error") => true,
                    (_, "drbdmeta") => words[1] == "apply-al",
                    (_, what) => COMMANDS.contains(&what),
                }
            })
    }
}

fn words(step: &Value) -> Vec<&str> {
    step["cmd"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn records(name: &str) -> Result<Vec<Record>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/engine/tests/data/states");
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let values: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    Ok(values?.into_iter().map(|value| Record { value }).filter(Record::is_played).collect())
}

/// All that is recorded, or in the usual run some of it.
pub(crate) fn courses_end_as_between_kernels() -> Result<()> {
    let mut records = records("fencing.jsonl")?;
    records.extend(self::records("misc.jsonl")?);
    ensure!(records.len() > 50, "only {} records", records.len());
    let stage = Stage { disk_bytes: DISK_BYTES, frontend: Frontend::Nbd, helper: HELPER, ..Stage::default() };
    let chosen = std::env::var("UDRBD_TEST_RECORD").ok();
    for (part, kinds) in MIXED.into_iter().enumerate() {
        Duo::play_at(stage, kinds, |duo| {
            put_mappings_below(duo)?;
            for (index, record) in records.iter().enumerate() {
                let usual = index % USUAL_SHARE == part * USUAL_SHARE / 2;
                if chosen.as_ref().map_or(runner::is_long() || usual, |id| id == record.id()) {
                    let begin = Instant::now();
                    play(duo, record).with_context(|| format!("{} with {kinds:?}", record.id()))?;
                    println!("{} with {kinds:?}: {:.1} s", record.id(), begin.elapsed().as_secs_f64());
                }
            }
            // As the scenario found them.
            duo.first.attach(&mut duo.guest)?;
            duo.second.attach(&mut duo.guest)
        })?;
    }
    Ok(())
}

/// Disks whose data or metadata can be made to fail.
fn put_mappings_below(duo: &mut Duo) -> Result<()> {
    duo.guest.sh("modprobe dm-mod; mkdir -p /run/handlers")?;
    duo.guest.sh(&format!(
        "printf '#!/bin/sh\\nexit $(cat ${{0%%/*}}/$1.$2 2>/dev/null || echo 0)\\n' >{HELPER}; chmod +x {HELPER}"
    ))?;
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let side = [&mut duo.first, &mut duo.second].into_iter().nth(index).context("a side")?;
        side.down(&mut duo.guest)?;
        let lower = side.disk.clone();
        side.disk = format!("/dev/mapper/{name}");
        let table = table(&lower, "none")?;
        duo.guest.sh(&format!("printf '{table}' | dmsetup create {name}; dmsetup mknodes"))?;
    }
    Ok(())
}

/// A table of device mapper in which nothing, the data, the metadata or all of a disk fails.
fn table(lower: &str, failing: &str) -> Result<String> {
    let (end, rest) = (DISK_BYTES / 512, DISK_BYTES / 512 - METADATA);
    Ok(match failing {
        "none" => format!("0 {end} linear {lower} 0\\n"),
        "all" => format!("0 {end} error\\n"),
        "data" => format!("0 {METADATA} error\\n{METADATA} {rest} linear {lower} {METADATA}\\n"),
        "meta" => format!("0 {METADATA} linear {lower} 0\\n{METADATA} {rest} error\\n"),
        other => bail!("a disk of which {other} fails"),
    })
}

/// One record as it is played.
struct Course<'a> {
    record: &'a Record,
    sides: BTreeMap<&'static str, Replica>,
    /// What a recorded identifier that was drawn at random is in this run.
    drawn: BTreeMap<u64, u64>,
    requests: u32,
    /// The link is whole again.
    joined: bool,
}

fn play(duo: &mut Duo, record: &Record) -> Result<()> {
    let mut course =
        Course { record, sides: BTreeMap::new(), drawn: BTreeMap::new(), requests: 0, joined: false };
    let setup = &record.value["setup"];
    duo.guest.sh("rm -f /run/handlers/*.*")?;
    for (name, side) in [("a", duo.first.clone()), ("b", duo.second.clone())] {
        if !record.has(name) {
            continue;
        }
        let mut side = side;
        side.net = ["--protocol=C", "--ping-int=1", "--ping-timeout=10", "--connect-int=1"]
            .map(str::to_owned)
            .into();
        side.net.extend(strings(&record.value["net_options"][name]));
        side.disk_options = strings(&setup[name]["disk_options"]);
        side.disk_options.extend(["--c-plan-ahead=0", "--resync-rate=200M"].map(str::to_owned));
        for (handler, exit) in setup[name]["handler_exit"].as_object().into_iter().flatten() {
            for object in [side.resource.clone(), format!("minor-{}", side.minor)] {
                duo.guest.sh(&format!("echo {exit} >/run/handlers/{handler}.{object}"))?;
            }
        }
        write_metadata(duo, &side, &setup[name]["metadata"])?;
        side.attach(&mut duo.guest)?;
        for option in strings(&setup[name]["resource_options"]) {
            duo.guest.sh(&side.setup(&format!("resource-options {} {option}", side.resource)))?;
        }
        course.sides.insert(name, side);
    }
    if record.value["connected_at_start"] == true {
        for side in course.sides.values() {
            side.connect(&mut duo.guest)?;
        }
    }
    course.settle(duo, &record.value["start"]).context("at the start")?;
    for (number, step) in record.steps().iter().enumerate() {
        let last = record.steps().get(number + 1).is_none_or(|next| next["on"] != "-");
        course
            .step(duo, step, last)
            .with_context(|| format!("step {number}, {} {:?}", step["on"], words(step)))?;
    }
    course.end(duo)
}

impl Course<'_> {
    /// Plays a step. `rests`: nothing follows that waits until both have come to rest.
    fn step(&mut self, duo: &mut Duo, step: &Value, rests: bool) -> Result<()> {
        let (on, words) = (step["on"].as_str().unwrap_or_default(), words(step));
        match (on, words[0]) {
            ("net", "ok") => {
                self.joined = true;
                return join(duo);
            }
            // Cut off without a word, and not refused: what comes of it is the same.
            ("net", _) => drop(duo.guest.sh("tc qdisc add dev lo root netem loss 100%")?),
            ("-", _) => {}
            (_, "write" | "read") => self.request(duo, on, &words, &step["io_result"])?,
            (_, "io-error") => {
                let lower = if on == "a" { "/dev/vda" } else { "/dev/vdb" };
                change(duo, on, &table(lower, words[1])?)?;
            }
            _ => self.command(duo, on, &words, &step["exit"])?,
        }
        if rests { self.settle(duo, &step["after"]) } else { Ok(()) }
    }

    fn command(&self, duo: &mut Duo, on: &str, words: &[&str], exit: &Value) -> Result<()> {
        let side = &self.sides[on];
        let rest =
            words[1..].join(" ").replace("MINOR", &side.minor.to_string()).replace("RES", &side.resource);
        let line = match words[0] {
            "connect" => {
                let options = side.net.join(" ");
                side.setup(&format!(
                    "connect {} ipv4:{} ipv4:{} {options} {rest}",
                    side.resource, side.own, side.peer
                ))
            }
            "disconnect" => side.setup(&format!("disconnect ipv4:{} ipv4:{} {rest}", side.own, side.peer)),
            "drbdmeta" => side.meta(&words[1..].join(" ")),
            "attach" => {
                let (disk, options) = (&side.disk, side.disk_options.join(" "));
                side.setup(&format!("attach {} {disk} {disk} internal {options} {rest}", side.minor))
            }
            verb => side.setup(&format!("{verb} {rest}")),
        };
        let output = duo.guest.run_limited(&line, Duration::from_secs(120))?;
        ensure!(
            exit.is_null() || *exit == output.status,
            "ended with {}: {}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(())
    }

    /// A request of a client, which ends well, with an error, or not before something changes.
    fn request(&mut self, duo: &mut Duo, on: &str, words: &[&str], wanted: &Value) -> Result<()> {
        self.requests += 1;
        let (offset, length): (u64, u64) = (words[1].parse()?, words[2].parse()?);
        let write = if words[0] == "write" { "--write" } else { "" };
        let (target, result) = (self.sides[on].target(), format!("/run/share/request-{}", self.requests));
        let script = format!(
            "rm -f {result}; ( {IO} once {target} {write} --offset {} --length {} >/run/share/said 2>&1 </dev/null; \
             echo $? >{result} ) >/dev/null 2>&1 &\n\
             for _ in $(seq {}); do [ -s {result} ] && break; sleep 0.1; done; cat {result} 2>/dev/null || echo blocked",
            offset * 1024,
            length * 1024,
            REQUEST_SECONDS * 10,
        );
        let found = duo.guest.sh(&script)?;
        let found = match found.trim() {
            "0" => "ok",
            "blocked" => "blocked",
            _ => "EIO",
        };
        // A request that was held for a moment may have come through by the time it is looked at.
        ensure!(*wanted == found, "it is {found}, was {wanted}: {}", duo.guest.sh("cat /run/share/said")?);
        Ok(())
    }

    /// Waits until both sides are as they were recorded, and stay so.
    fn settle(&mut self, duo: &mut Duo, wanted: &Value) -> Result<()> {
        // How soon they find each other is a matter of time: the record ends too early.
        if self.joined && ["a", "b"].iter().all(|side| wanted[side]["conn"] == "WFConnection") {
            return self.sides.values().try_for_each(|side| side.wait_healthy(&mut duo.guest).map(drop));
        }
        let begin = Instant::now();
        let mut agreed = 0;
        loop {
            let mut differences = Vec::new();
            for (name, side) in self.sides.clone() {
                if wanted[name].is_object()
                    && let Err(difference) = self.compare(duo, &side, &wanted[name])
                {
                    differences.push(format!("{name} {difference}"));
                }
            }
            agreed = if differences.is_empty() { agreed + 1 } else { 0 };
            if agreed == 2 {
                return Ok(());
            }
            if begin.elapsed() > LIMIT {
                bail!("{}", differences.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn compare(&mut self, duo: &mut Duo, side: &Replica, wanted: &Value) -> Result<()> {
        if wanted["conn"] == "Unconfigured" {
            let text = duo.guest.sh(&format!("cat {}", side.status_file()))?;
            let listed =
                text.lines().any(|line| line.trim_start().starts_with(&format!("{}: cs:", side.minor)));
            ensure!(!listed || text.contains("Unconfigured"), "is configured");
            return Ok(());
        }
        let flagged = wanted["flags"].as_str().is_some_and(|flags| flags.starts_with('s'));
        let status = side.status(&mut duo.guest)?;
        if flagged && wanted["suspended"].as_str().is_none_or(|reason| reason.contains("role:")) {
            // Recorded in the middle of a change.
            ensure!(wanted["conn"] == status.connection.as_str(), "is {status:?}, was {wanted}");
            return Ok(());
        }
        let same = [
            (&status.connection, "conn"),
            (&status.role, "role"),
            (&status.peer_role, "peer"),
            (&status.disk, "disk"),
            (&status.peer_disk, "pdsk"),
        ];
        let same = same.iter().all(|(own, key)| wanted[*key] == own.as_str());
        ensure!(
            same && wanted["oos_kb"] == status.out_of_sync_kib && status.suspended == flagged,
            "is {status:?}, was {wanted}"
        );
        let recorded = strings(&wanted["gi"]);
        if status.disk == "Diskless" || recorded.is_empty() {
            return Ok(());
        }
        let line = side.minor_verb(&mut duo.guest, "get-gi", "")?;
        for (own, recorded) in line.trim().split(':').zip(&recorded) {
            let (own, recorded) = (identifier(own)?, identifier(recorded)?);
            let known = self.drawn.get(&recorded).copied();
            let fixed = self.is_given(recorded);
            let agrees = known.map_or(!fixed || own == recorded, |known| known == own);
            ensure!(agrees, "{line} in the place of {:?}", wanted["gi"]);
            if !fixed {
                self.drawn.insert(recorded, own);
            }
        }
        Ok(())
    }

    /// Whether an identifier stood in the metadata at the start, or is none.
    fn is_given(&self, wanted: u64) -> bool {
        let given = ["a", "b"]
            .into_iter()
            .flat_map(|side| strings(&self.record.value["setup"][side]["metadata"]["gi"]));
        wanted < 16 || given.filter_map(|text| identifier(&text).ok()).any(|one| one == wanted)
    }

    /// Takes all down again, whatever it has come to.
    fn end(self, duo: &mut Duo) -> Result<()> {
        join(duo)?;
        for (name, lower) in [("a", "/dev/vda"), ("b", "/dev/vdb")] {
            change(duo, name, &table(lower, "none")?)?;
        }
        for side in self.sides.values() {
            side.try_minor_verb(&mut duo.guest, "resume-io", "")?;
        }
        for number in 1..=self.requests {
            let script = format!(
                "for _ in $(seq 300); do [ -s /run/share/request-{number} ] && exit; sleep 0.1; done; exit 1"
            );
            duo.guest.sh(&script).with_context(|| format!("request {number} does not end"))?;
        }
        for side in self.sides.values() {
            let down = side.setup(&format!("down {}", side.resource));
            duo.guest.sh(&format!("for _ in $(seq 50); do {down} && exit; sleep 0.2; done; exit 1"))?;
        }
        Ok(())
    }
}

fn join(duo: &mut Duo) -> Result<()> {
    duo.guest.sh("tc qdisc del dev lo root 2>/dev/null || true").map(drop)
}

fn change(duo: &mut Duo, name: &str, table: &str) -> Result<()> {
    duo.guest
        .sh(&format!(
            "dmsetup suspend --nolockfs {name}; printf '{table}' | dmsetup load {name}; dmsetup resume {name}"
        ))
        .map(drop)
}

/// The last bit says that the node was Primary. It compares nothing, and the kernel does not write it when it changes.
fn identifier(text: &str) -> Result<u64> {
    Ok(u64::from_str_radix(text, 16).with_context(|| text.to_owned())? & !1)
}
