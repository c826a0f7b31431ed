//! What a node does at its start: how long it waits for its peer, what it says meanwhile, and whether it becomes Primary. The
//! kernel's DRBD and ours are asked the same in the same guest, each about a resource of its own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use udrbd_tests::replica::{Kind, Replica, built_binaries};

use crate::duo::{Duo, Stage};
use crate::meetings::{DISK_BYTES, write_metadata};

/// What emulation may add to a wait, in seconds.
const SLACK: f64 = 3.5;
/// Between what one call gave and the next.
const MARK: &str = "@@@@";

/// A call, and what it has to come to: its exit status, and how many seconds it takes.
struct Wait {
    words: &'static str,
    status: i32,
    seconds: u32,
    /// Whether both say the same.
    compared: bool,
}

const fn wait(words: &'static str, status: i32, seconds: u32) -> Wait {
    Wait { words, status, seconds, compared: true }
}

/// Whose mistakes are refused alike.
const REFUSED: [Wait; 9] = [
    wait("wait-connect 7", 20, 0),
    wait("wait-connect 7 --wfc-timeout=3", 20, 0),
    wait("wait-connect 7 --wait-after-sb=maybe", 20, 0),
    wait("wait-connect MINOR x", 20, 0),
    wait("wait-connect MINOR --wfc-timeout=300001", 20, 0),
    wait("wait-connect MINOR --degr-wfc-timeout=300001", 20, 0),
    wait("wait-connect MINOR --wfc-timeout=x", 20, 0),
    wait("wait-connect MINOR --outdated-wfc-timeout=-1", 20, 0),
    wait("wait-connect MINOR -t 3", 20, 0),
];
const ALONE: [Wait; 5] = [
    wait("wait-connect MINOR", 0, 0),
    wait("wait-connect MINOR --wfc-timeout=4", 0, 0),
    wait("wait-connect MINOR --wfc-timeout=4 --wait-after-sb=no", 0, 0),
    wait("wait-connect MINOR --wfc-timeout=4 --wait-after-sb", 5, 4),
    wait(
        "wait-sync MINOR --wfc-timeout=4 --degr-wfc-timeout=4 --outdated-wfc-timeout=4 --wait-after-sb=yes",
        5,
        4,
    ),
];
const USUAL: [Wait; 4] = [
    wait("wait-connect MINOR --wfc-timeout=4", 5, 4),
    wait("wait-connect MINOR --wfc-timeout=9 --degr-wfc-timeout=4 --outdated-wfc-timeout=1", 5, 9),
    wait("wait-connect MINOR --wfc-timeout=4 --degr-wfc-timeout=9 --outdated-wfc-timeout=1", 5, 4),
    wait("wait-sync MINOR --wfc-timeout=4 --degr-wfc-timeout=4 --outdated-wfc-timeout=4", 5, 4),
];
/// The node was a Primary without a peer when it went down.
const DEGRADED: [Wait; 1] =
    [wait("wait-connect MINOR --wfc-timeout=12 --degr-wfc-timeout=6 --outdated-wfc-timeout=1", 5, 6)];
/// The peer's disk is known to be outdated. A timeout that is too long becomes the usual one.
const OUTDATED: [Wait; 2] = [
    wait("wait-connect MINOR --wfc-timeout=12 --degr-wfc-timeout=6 --outdated-wfc-timeout=1", 5, 1),
    wait("wait-connect MINOR --wfc-timeout=8 --degr-wfc-timeout=1 --outdated-wfc-timeout=2", 5, 8),
];

/// `drbdsetup wait-connect` and `wait-sync` with every option in every state they tell apart, what ends them early, and what
/// `drbdadm` makes of the section `startup`.
pub(crate) fn both_wait_alike() -> Result<()> {
    let stage = Stage { disk_bytes: DISK_BYTES, ..Stage::default() };
    Duo::play_at(stage, (Kind::Udrbd, Kind::Kernel), |duo| {
        // Nobody listens where they call.
        "127.0.0.1:7798".clone_into(&mut duo.first.peer);
        "127.0.0.1:7799".clone_into(&mut duo.second.peer);
        ask(duo, "StandAlone", &REFUSED)?;
        ask(duo, "StandAlone", &ALONE)?;
        bring_up_as(duo, &["consistent", "was_up_to_date"])?;
        ask(duo, "WFConnection", &USUAL)?;
        what_happens_meanwhile(duo)?;
        bring_up_as(duo, &["consistent", "was_up_to_date", "primary_ind"])?;
        ask(duo, "WFConnection, degraded", &DEGRADED)?;
        bring_up_as(duo, &["consistent", "was_up_to_date", "peer_out_dated"])?;
        ask(duo, "WFConnection, peer outdated", &OUTDATED)?;
        by_configuration(duo)
    })
}

/// Both as they were left with these flags, looking for a peer that is not there.
fn bring_up_as(duo: &mut Duo, flags: &[&str]) -> Result<()> {
    let metadata = json!({
        "gi": ["A1A1A1A1A1A1A1A0", "B2B2B2B2B2B2B2B0", "C3C3C3C3C3C3C3C0", "0000000000000000"],
        "flags": flags,
        "bits_set": 0,
    });
    for side in [duo.first.clone(), duo.second.clone()] {
        side.down(&mut duo.guest)?;
        write_metadata(duo, &side, &metadata)?;
        side.attach(&mut duo.guest)?;
        side.connect(&mut duo.guest)?;
    }
    Ok(())
}

/// A line of shell that notes how long `call` took, its status, and what it said.
fn measured(call: &str, note: &str) -> String {
    format!(
        "( begin=$(date +%s.%N); {call} >{note}.out 2>{note}.err </dev/null; status=$?; end=$(date +%s.%N); \
         echo \"$status $begin $end\" >{note} ) &"
    )
}

/// Makes all calls on both sides at once, and compares.
fn ask(duo: &mut Duo, state: &str, waits: &[Wait]) -> Result<()> {
    together(duo, state, waits, "", |side, words| {
        side.setup(&words.replace("MINOR", &side.minor.to_string()))
    })
}

/// The same, with something that happens three seconds after they began.
fn together(
    duo: &mut Duo,
    state: &str,
    waits: &[Wait],
    meanwhile: &str,
    call: impl Fn(&Replica, &str) -> String,
) -> Result<()> {
    let sides = [duo.first.clone(), duo.second.clone()];
    let mut script = "mkdir -p /run/waits; rm -f /run/waits/*; jobs=\n".to_owned();
    for (number, wait) in waits.iter().enumerate() {
        for side in &sides {
            let note = format!("/run/waits/{number}.{}", side.minor);
            script += &format!("{}\njobs=\"$jobs $!\"\n", measured(&call(side, wait.words), &note));
        }
    }
    if !meanwhile.is_empty() {
        script += &format!("sleep 3; {meanwhile}\n");
    }
    script += "wait $jobs\n";
    for number in 0..waits.len() {
        for side in &sides {
            let note = format!("/run/waits/{number}.{}", side.minor);
            script += &format!("cat {note}; echo {MARK}; cat {note}.out {note}.err; echo {MARK}\n");
        }
    }
    let told = duo.guest.run_limited(&script, Duration::from_secs(120))?.expect_success()?;
    let mut told = told.split(MARK);
    for wait in waits {
        let mut said = Vec::new();
        for side in &sides {
            let (figures, text) = told.next().zip(told.next()).context("nothing is told")?;
            let figures: Vec<f64> =
                figures.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("figures")?;
            let [status, begin, end] = figures[..] else { anyhow::bail!("{figures:?}") };
            let what = format!("{state}: `{}` of {:?}", wait.words, side.kind);
            ensure!(status as i32 == wait.status, "{what} ended with {status}: {text}");
            let (took, wanted) = (end - begin, f64::from(wait.seconds));
            ensure!(
                wanted <= took + 0.1 && took < wanted + SLACK,
                "{what} took {took:.1} s, and not {wanted}"
            );
            said.push(plain(side, text));
        }
        ensure!(!wait.compared || said[0] == said[1], "{state}: `{}`: {said:#?}", wait.words);
    }
    Ok(())
}

/// Without what differs by name only.
fn plain(side: &Replica, text: &str) -> String {
    let text = text.replace("drbdsetup-84", "drbdsetup").replace(&format!("({}[", side.resource), "(RES[");
    text.replace(&format!("drbd{} ", side.minor), "drbdN ").trim().to_owned()
}

/// What happens to the resource begins the time anew, or ends the wait.
fn what_happens_meanwhile(duo: &mut Duo) -> Result<()> {
    let setup = |side: &Replica, words: &str| side.setup(&words.replace("MINOR", &side.minor.to_string()));
    let both = |duo: &Duo, words: &dyn Fn(&Replica) -> String| {
        format!("{}; {}", words(&duo.first), words(&duo.second))
    };
    let outdate = both(duo, &|side| side.setup(&format!("outdate {}", side.minor)));
    let anew =
        [wait("wait-connect MINOR --wfc-timeout=5 --degr-wfc-timeout=5 --outdated-wfc-timeout=5", 5, 8)];
    together(duo, "outdated meanwhile", &anew, &outdate, setup)?;
    let disconnect =
        both(duo, &|side| side.setup(&format!("disconnect ipv4:{} ipv4:{}", side.own, side.peer)));
    let ended = [wait("wait-connect MINOR", 0, 3), wait("wait-sync MINOR", 0, 3)];
    together(duo, "disconnected meanwhile", &ended, &disconnect, setup)?;
    duo.first.connect(&mut duo.guest)?;
    duo.second.connect(&mut duo.guest)?;
    let down = both(duo, &|side| side.setup(&format!("down {}", side.resource)));
    // How often it is told that the wait goes on depends on the states that are seen.
    let on =
        "wait-connect MINOR --wait-after-sb --wfc-timeout=6 --degr-wfc-timeout=6 --outdated-wfc-timeout=6";
    let on = Wait { compared: false, ..wait(on, 5, 9) };
    let [connect, sync] = ended;
    together(duo, "taken down meanwhile", &[connect, sync, on], &down, setup)
}

/// `drbdadm` with the section `startup`.
fn by_configuration(duo: &mut Duo) -> Result<()> {
    let startup =
        "wfc-timeout 5; degr-wfc-timeout 4; outdated-wfc-timeout 4; wait-after-sb; become-primary-on HOST;";
    let host = duo.guest.sh("hostname")?.trim().to_owned();
    for side in [duo.first.clone(), duo.second.clone()] {
        let Replica { resource, minor, disk, own, peer, .. } = &side;
        let node = if side.kind == Kind::Kernel { &host } else { &side.node };
        let here = format!("device /dev/drbd{minor} minor {minor}; disk {disk}; meta-disk internal;");
        let startup = startup.replace("HOST", node);
        duo.guest.sh(&format!(
            "cat >/run/{resource}.conf <<END\nglobal {{ usage-count no; }}\nresource {resource} {{\n\
             startup {{ {startup} }}\nnet {{ protocol C; }}\n\
             on {node} {{ {here} address {own}; }}\non elsewhere {{ {here} address {peer}; }}\n}}\nEND"
        ))?;
    }
    bring_up_as(duo, &["consistent", "was_up_to_date"])?;
    let folder = built_binaries()?;
    let call = |side: &Replica, words: &str| {
        let program = match side.kind {
            Kind::Kernel => "drbdadm".to_owned(),
            Kind::Udrbd => format!(
                "env UDRBD_RUN_DIR={} __DRBD_NODE__={} PATH={folder}:$PATH {folder}/drbdadm",
                side.run_dir,
                side.node,
                folder = folder.display()
            ),
        };
        format!("{program} -c /run/{}.conf {}", side.resource, words.replace("RES", &side.resource))
    };
    let waits = [wait("wait-connect RES", 5, 5), wait("wait-con-int", 0, 5), wait("wait-connect all", 5, 5)];
    together(duo, "startup", &waits, "", call)?;
    together(duo, "startup", &[wait("sh-b-pri all", 0, 0)], "", call)?;
    for side in [&duo.first, &duo.second] {
        let role = side.status(&mut duo.guest)?.role;
        ensure!(role == "Primary", "{:?} is {role} by become-primary-on", side.kind);
    }
    Ok(())
}
