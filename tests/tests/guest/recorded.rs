//! Fencing, disks in trouble and no data at all, step by step: recorded between two kernels, played again with one of ours in either
//! part. The records are those that judge the engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use udrbd_tests::replica::{Frontend, Kind, Replica, Status};
use udrbd_tests::runner;

use crate::commands;
use crate::duo::{self, Course as _, Duo, IO, Stage};
use crate::meetings::{DISK_BYTES, METADATA, write_metadata};
use crate::replication::MIXED;

/// One record of so many is played in the usual run, with either part; in the long run all are.
const USUAL_SHARE: usize = 30;
/// What a step may take until both sides are as they were recorded.
const LIMIT: Duration = Duration::from_secs(60);
/// The program that runs handlers: it ends with what the record says.
const HELPER: &str = "/run/handlers/run";
/// Commands that a side may be given.
const COMMANDS: [&str; 23] = [
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
    "resize",
    "connect-raw",
    "net-options",
    "new-current-uuid",
    "new-resource",
    "new-minor",
    "del-resource",
    "del-minor",
];
/// Steps from which on the nodes differ on purpose, where ours is on this side: the source of a resync of equals, called for by
/// `invalidate`, is promoted, or has no name for its data yet.
const LEFT_AT: [(&str, &str, usize); 2] = [("r12", "b", 7), ("r15", "b", 3)];
/// A step that ours refuses on purpose: `outdate` of a disk that is worse.
const LEFT_OUT: [(&str, &str, usize); 1] = [("r12", "a", 5)];
/// Between what one side tells and the next.
const MARK: &str = "@@@@";
/// When a request that is held back is looked at, in tenths of a second.
const REQUEST_TENTHS: u64 = 60;

/// A recorded course of things.
pub(crate) struct Record {
    pub(crate) value: Value,
}

impl duo::Course for Record {
    fn id(&self) -> &str {
        self.value["id"].as_str().unwrap_or_default()
    }
}

impl Record {
    fn steps(&self) -> &[Value] {
        self.value["steps"].as_array().map_or(&[], Vec::as_slice)
    }

    fn has(&self, side: &str) -> bool {
        self.value["setup"][side].is_object()
    }

    /// Whether all of it is known here.
    fn is_played(&self) -> bool {
        self.steps().iter().all(|step| {
            let words = words(step);
            match (step["on"].as_str(), words[0]) {
                (Some("net"), what) => ["refuse", "hold", "cut", "ok"].contains(&what),
                (Some("-"), what) => what == "sleep",
                (_, "write" | "read" | "io-error" | "drbdmeta" | "sh" | "blocksize") => true,
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
    Ok(values?.into_iter().map(|value| Record { value }).collect())
}

/// Ours is `a`, the kernel's is `b`.
pub(crate) fn udrbd_first() -> Result<()> {
    courses_end_as_between_kernels(0)
}

/// The other way round.
pub(crate) fn kernel_first() -> Result<()> {
    courses_end_as_between_kernels(1)
}

/// All that is recorded, or in the usual run some of it.
fn courses_end_as_between_kernels(part: usize) -> Result<()> {
    let mut records = records("fencing.jsonl")?;
    records.extend(self::records("misc.jsonl")?);
    records.extend(commands::records(self::records("commands.jsonl")?));
    let unknown: Vec<_> =
        records.iter().filter(|record| !record.is_played()).map(|record| record.id().to_owned()).collect();
    ensure!(records.len() > 90 && unknown.is_empty(), "{} records, unknown: {unknown:?}", records.len());
    let stage = Stage { disk_bytes: DISK_BYTES, frontend: Frontend::Nbd, helper: HELPER, ..Stage::default() };
    let chosen = std::env::var("UDRBD_TEST_RECORD").ok();
    let played = records.iter().enumerate().filter(|(index, record)| {
        let usual = index % USUAL_SHARE == part * USUAL_SHARE / 2;
        chosen.as_ref().map_or(runner::is_long() || usual, |ids| ids.split(',').any(|id| id == record.id()))
    });
    let played: Vec<_> = played.map(|(_, record)| record).collect();
    Duo::play_courses(stage, MIXED[part], &played, put_mappings_below, play)
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
    /// The link is cut.
    apart: bool,
}

fn play(duo: &mut Duo, record: &Record) -> Result<()> {
    let mut course = Course {
        record,
        sides: BTreeMap::new(),
        drawn: BTreeMap::new(),
        requests: 0,
        joined: false,
        apart: false,
    };
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
        side.disk_options.push("--c-plan-ahead=0".to_owned());
        if !side.disk_options.iter().any(|option| option.starts_with("--resync-rate")) {
            side.disk_options.push("--resync-rate=200M".to_owned());
        }
        for (handler, exit) in setup[name]["handler_exit"].as_object().into_iter().flatten() {
            for object in [side.resource.clone(), format!("minor-{}", side.minor)] {
                duo.guest.sh(&format!("echo {exit} >/run/handlers/{handler}.{object}"))?;
            }
        }
        if setup[name]["metadata"].is_object() {
            write_metadata(duo, &side, &setup[name]["metadata"])?;
        }
        if setup[name]["attached"] == true {
            side.attach(&mut duo.guest)?;
        } else {
            let resource = side.setup(&format!("new-resource {}", side.resource));
            let minor = side.setup(&format!("new-minor {} {} 0", side.resource, side.minor));
            duo.guest.sh(&format!("{resource}; {minor}"))?;
        }
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
        let ours = |side: &str| course.sides.get(side).is_some_and(|side| side.kind == Kind::Udrbd);
        let at = |places: &[(&str, &str, usize)]| {
            places.iter().any(|(id, side, place)| *id == record.id() && *place == number && ours(side))
        };
        if at(&LEFT_AT) {
            break;
        }
        if at(&LEFT_OUT) {
            continue;
        }
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
                (self.joined, self.apart) = (true, false);
                return join(duo);
            }
            ("net", "cut") => self.cut(duo)?,
            // Cut off without a word, and not refused: what comes of it is the same.
            ("net", what) => {
                self.apart = true;
                duo.guest.sh("tc qdisc add dev lo root netem loss 100%")?;
                // Nobody has noticed yet.
                if what == "hold" {
                    return Ok(());
                }
            }
            ("-", _) => {}
            (_, "write" | "read") => {
                let suspended =
                    step["after"][on]["flags"].as_str().is_some_and(|flags| flags.starts_with('s'));
                let wanted = step["io_result"].as_str().unwrap_or_default();
                // Where nothing holds it, it waited for a handler, for longer than the record looked.
                let wanted = if wanted == "blocked" && !suspended && !self.apart { "ok" } else { wanted };
                self.request(duo, on, &words, wanted)?;
            }
            (_, "blocksize") => self.size(duo, on, &step["output"])?,
            (_, "sh") => drop(duo.guest.sh(&words[1].replace("@DEV@", &self.sides[on].disk))?),
            (_, "io-error") => {
                let lower = if on == "a" { "/dev/vda" } else { "/dev/vdb" };
                change(duo, on, &table(lower, words[1])?)?;
            }
            _ => self.command(duo, on, &words, step)?,
        }
        match step["in_passing"].as_bool() {
            None if rests => self.settle(duo, &step["after"]),
            // What was seen there is not seen again; what comes next was asked for when it was over.
            Some(true) => self.sides.values().try_for_each(|side| {
                side.wait(&mut duo.guest, "the end of a resync", LIMIT, |status| {
                    status.connection == "Connected"
                })
                .map(drop)
            }),
            _ => Ok(()),
        }
    }

    /// A link that breaks and is there again.
    fn cut(&self, duo: &mut Duo) -> Result<()> {
        duo.guest.sh("tc qdisc add dev lo root netem loss 100%")?;
        for side in self.sides.values() {
            side.wait(&mut duo.guest, "a lost link", LIMIT, |status| status.connection == "WFConnection")?;
        }
        join(duo)?;
        for side in self.sides.values() {
            side.wait(&mut duo.guest, "Connected", LIMIT, |status| status.connection == "Connected")?;
        }
        Ok(())
    }

    /// How large the device is, in sectors.
    fn size(&self, duo: &mut Duo, on: &str, wanted: &Value) -> Result<()> {
        let side = &self.sides[on];
        let script = side.setup(&format!("status {} --verbose --statistics", side.resource));
        let told = duo.guest.sh(&script)?;
        let kib = told.split_whitespace().find_map(|word| word.strip_prefix("size:"));
        let sectors = kib.and_then(|kib| kib.parse::<u64>().ok()).map(|kib| (kib * 2).to_string());
        ensure!(wanted.as_str() == sectors.as_deref(), "{sectors:?} sectors, were {wanted}: {told}");
        Ok(())
    }

    fn command(&self, duo: &mut Duo, on: &str, words: &[&str], step: &Value) -> Result<()> {
        let exit = &step["exit"];
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
            "connect-raw" => {
                side.setup(&format!("connect {} ipv4:{} ipv4:{} {rest}", side.resource, side.own, side.peer))
            }
            "net-options" => side.setup(&format!("net-options ipv4:{} ipv4:{} {rest}", side.own, side.peer)),
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
        // What it is refused with, by its number.
        let recorded = step["output"].as_str().and_then(|text| text.lines().next()).unwrap_or_default();
        if let Some((_, reason)) = recorded.split_once(": (").or_else(|| recorded.split_once("Failure: (")) {
            let reason = format!("({reason}");
            ensure!(output.stderr.contains(&reason), "says {}, said {reason}", output.stderr);
        }
        Ok(())
    }

    /// A request of a client, which ends well, with an error, or not before something changes.
    fn request(&mut self, duo: &mut Duo, on: &str, words: &[&str], wanted: &str) -> Result<()> {
        self.requests += 1;
        let (offset, length): (u64, u64) = (words[1].parse()?, words[2].parse()?);
        let write = if words[0] == "write" { "--write" } else { "" };
        // What ends well by itself may take long; what does not is looked at after a while.
        let tenths = if wanted == "ok" { LIMIT.as_secs() * 10 } else { REQUEST_TENTHS };
        let (target, result) = (self.sides[on].target(), format!("/run/share/request-{}", self.requests));
        let script = format!(
            "rm -f {result}; ( {IO} once {target} {write} --offset {} --length {} >/run/share/said 2>&1 </dev/null; \
             echo $? >{result} ) >/dev/null 2>&1 &\n\
             for _ in $(seq {tenths}); do [ -s {result} ] && break; sleep 0.1; done; cat {result} 2>/dev/null || echo blocked",
            offset * 1024,
            length * 1024,
        );
        let found = duo.guest.sh(&script)?;
        let found = match found.trim() {
            "0" => "ok",
            "blocked" => "blocked",
            _ => "EIO",
        };
        ensure!(wanted == found, "it is {found}, was {wanted}: {}", duo.guest.sh("cat /run/share/said")?);
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
        // Emulation makes programs slow to start: all that is looked at comes from one script.
        let looks = self.sides.values().map(|side| {
            let identifiers = side.setup(&format!("get-gi {}", side.minor));
            format!("cat {}; echo {MARK}; {identifiers} 2>/dev/null; echo {MARK}", side.status_file())
        });
        let script = looks.collect::<Vec<_>>().join("\n");
        loop {
            let told = duo.guest.sh(&script)?;
            let mut told = told.split(MARK);
            let mut differences = Vec::new();
            for (name, side) in self.sides.clone() {
                let (Some(text), Some(line)) = (told.next(), told.next()) else {
                    bail!("{name} tells nothing")
                };
                if wanted[name].is_object()
                    && let Err(difference) = self.compare(&side, &wanted[name], text, line.trim())
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

    /// `text` is the status file, `line` what `get-gi` says.
    fn compare(&mut self, side: &Replica, wanted: &Value, text: &str, line: &str) -> Result<()> {
        if wanted["conn"] == "Unconfigured" {
            let status = Status::parse(text, side.minor);
            ensure!(status.is_none_or(|status| status.connection == "Unconfigured"), "is configured");
            return Ok(());
        }
        let flagged = wanted["flags"].as_str().is_some_and(|flags| flags.starts_with('s'));
        let status = Status::parse(text, side.minor).context("is not there")?;
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
        // Of a device that shrinks the kernel loses count of some bits.
        let all_counted =
            side.kind == Kind::Udrbd && self.record.id() == "z3" && status.out_of_sync_kib == 4096;
        let counted = wanted["oos_kb"] == status.out_of_sync_kib || all_counted;
        ensure!(same && counted && status.suspended == flagged, "is {status:?}, was {wanted}");
        let recorded = strings(&wanted["gi"]);
        if status.disk == "Diskless" || recorded.is_empty() {
            return Ok(());
        }
        // What is seen in the middle of a change stands for nothing.
        let mut drawn = self.drawn.clone();
        for (own, recorded) in line.split(':').zip(&recorded) {
            let (own, recorded) = (identifier(own)?, identifier(recorded)?);
            let known = drawn.get(&recorded).copied();
            let fixed = self.is_given(recorded);
            let agrees = known.map_or(!fixed || own == recorded, |known| known == own);
            ensure!(agrees, "{line} in the place of {:?}", wanted["gi"]);
            if !fixed {
                drawn.insert(recorded, own);
            }
        }
        self.drawn = drawn;
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
        // Who has the only data is not let go before the other one.
        let downs = self.sides.values().map(|side| side.setup(&format!("down {}", side.resource)));
        let downs = downs.map(|down| format!("{down} || failed=1")).collect::<Vec<_>>().join("; ");
        duo.guest.sh(&format!(
            "for _ in $(seq 50); do failed=; {downs}; [ -z \"$failed\" ] && exit; sleep 0.2; done; exit 1"
        ))?;
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
