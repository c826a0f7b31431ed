//! Two sides in one guest, over its loopback.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::guest::{Guest, GuestOptions, KernelChoice};
use udrbd_tests::machine;
use udrbd_tests::replica::{self, Frontend, Kind, Replica};
use udrbd_tests::target::TargetName;
use udrbd_tests::workload;

/// Size of every backing disk: what emulation moves in seconds.
pub(crate) const DISK_BYTES: u64 = 96 << 20;

/// Packages of the tests beyond those of the guest itself.
const PACKAGES: &[&str] = &["drbd-utils", "kmod"];

/// The writer, as the guest sees it.
pub(crate) const IO: &str = env!("CARGO_BIN_EXE_udrbd-io");

/// Booted guests that the next tests may have: a boot costs more than most tests.
static SPARE: Mutex<Vec<(KernelChoice, Guest)>> = Mutex::new(Vec::new());

/// What the guest of a scenario is, and what daemons of ours offer in it.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    /// Size of each of the two disks.
    pub(crate) disk_bytes: u64,
    /// What daemons of ours offer.
    pub(crate) frontend: Frontend,
    /// For scenarios that need a certain kernel; else the one the run asks for.
    pub(crate) kernel: Option<KernelChoice>,
    /// The program that runs handlers on both sides.
    pub(crate) helper: &'static str,
}

impl Default for Stage {
    fn default() -> Self {
        Self { disk_bytes: DISK_BYTES, frontend: Frontend::Nbd, kernel: None, helper: replica::HELPER }
    }
}

impl Stage {
    /// Block devices, on the kernel the scenario needs.
    pub(crate) fn ublk_on(kernel: KernelChoice) -> Self {
        Self { frontend: Frontend::Ublk, kernel: Some(kernel), ..Self::default() }
    }
}

/// Powers the spare guests off and removes their files.
pub(crate) fn forget_guests() {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// What was recorded of two nodes.
pub(crate) trait Course {
    /// The name of the record.
    fn id(&self) -> &str;
}

/// Two sides of one resource in one guest.
pub(crate) struct Duo {
    /// Where both live.
    pub(crate) guest: Guest,
    /// On `/dev/vda`; begins as Primary.
    pub(crate) first: Replica,
    /// On `/dev/vdb`.
    pub(crate) second: Replica,
}

impl Duo {
    /// Plays `scenario` with two sides on zeroed disks with fresh metadata, attached but not connected.
    pub(crate) fn play(kinds: (Kind, Kind), scenario: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::play_on(Frontend::Nbd, kinds, scenario)
    }

    /// The same, with what daemons of ours offer.
    pub(crate) fn play_on(
        frontend: Frontend,
        kinds: (Kind, Kind),
        scenario: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        Self::play_at(Stage { frontend, ..Stage::default() }, kinds, scenario)
    }

    /// The same, in a guest that is anything else than usual.
    pub(crate) fn play_at(
        stage: Stage,
        kinds: (Kind, Kind),
        scenario: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if kinds.0 == Kind::Udrbd || kinds.1 == Kind::Udrbd {
            replica::built_binaries()?;
        }
        let kernel = stage.kernel.map_or_else(KernelChoice::from_environment, Ok)?;
        let mut duo = Self::with_guest(stage.disk_bytes, kernel, kinds)?;
        if stage.frontend == Frontend::Ublk {
            duo.first = duo.first.with_ublk();
            duo.second = duo.second.with_ublk();
        }
        for side in [&mut duo.first, &mut duo.second] {
            stage.helper.clone_into(&mut side.helper);
        }
        duo.prepare()?;
        let result = scenario(&mut duo);
        if let Err(error) = result {
            // Which of the two was wrong is to be read from both logs. The guest is not used again.
            let logs = [duo.first.clone(), duo.second.clone()]
                .map(|side| format!("--- {:?} {}\n{}", side.kind, side.resource, side.log(&mut duo.guest)));
            return Err(match machine::skip_reason(&error) {
                Some(_) => error,
                None => error.context(logs.join("\n")),
            });
        }
        duo.clean()?;
        if stage.disk_bytes == DISK_BYTES {
            SPARE.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, duo.guest));
        }
        Ok(())
    }

    /// Plays many short courses one after the other, in one guest while all goes well: what goes wrong leaves a guest in which nothing
    /// more is to be learned. All are played, whatever comes of them.
    pub(crate) fn play_courses<T: Course>(
        stage: Stage,
        kinds: (Kind, Kind),
        courses: &[&T],
        begin: impl Fn(&mut Self) -> Result<()>,
        play: impl Fn(&mut Self, &T) -> Result<()>,
    ) -> Result<()> {
        let mut left = courses.iter();
        let mut failed = Vec::new();
        while !left.as_slice().is_empty() {
            let mut at = "the beginning";
            let played = Self::play_at(stage, kinds, |duo| {
                begin(duo)?;
                for course in left.by_ref() {
                    at = course.id();
                    let start = Instant::now();
                    play(duo, course).with_context(|| format!("{at} with {kinds:?}"))?;
                    println!("{at} with {kinds:?}: {:.1} s", start.elapsed().as_secs_f64());
                }
                // As the scenario found them.
                duo.first.attach(&mut duo.guest)?;
                duo.second.attach(&mut duo.guest)
            });
            if let Err(error) = played {
                if machine::skip_reason(&error).is_some() || at == "the beginning" {
                    return Err(error);
                }
                println!("{at} with {kinds:?} FAILED\n{error:#}");
                failed.push(at);
            }
        }
        ensure!(failed.is_empty(), "{} of {} failed with {kinds:?}: {failed:?}", failed.len(), courses.len());
        println!("{} courses with {kinds:?}", courses.len());
        Ok(())
    }

    fn with_guest(bytes: u64, kernel: KernelChoice, kinds: (Kind, Kind)) -> Result<Self> {
        let spare = || {
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = spare.iter().position(|(has, _)| *has == kernel)?;
            Some(spare.swap_remove(fitting).1)
        };
        let guest = match (bytes == DISK_BYTES).then(spare).flatten() {
            Some(guest) => guest,
            None => {
                machine::ensure_packages(PACKAGES)?;
                let disks = vec![bytes; 2];
                Guest::boot(GuestOptions { disks, kernel: Some(kernel), ..GuestOptions::default() })?
            }
        };
        let (one, two) = ("127.0.0.1:7788", "127.0.0.1:7789");
        Ok(Self {
            guest,
            first: Replica::new(kinds.0, "first", 0, "/dev/vda", one, two),
            second: Replica::new(kinds.1, "second", 1, "/dev/vdb", two, one),
        })
    }

    fn prepare(&mut self) -> Result<()> {
        self.guest.sh("dmesg -C; blkdiscard -f /dev/vda; blkdiscard -f /dev/vdb")?;
        for side in [&self.first, &self.second] {
            side.start(&mut self.guest)?;
            side.create_md(&mut self.guest)?;
            side.attach(&mut self.guest)?;
        }
        Ok(())
    }

    fn clean(&mut self) -> Result<()> {
        for side in [&self.first, &self.second] {
            side.down(&mut self.guest)?;
            if side.kind == Kind::Udrbd {
                side.kill_daemon(&mut self.guest)?;
            }
        }
        self.guest.sh("rm -rf /run/udrbd-* /run/share/journal*")?;
        Ok(())
    }

    /// Connects both sides.
    pub(crate) fn connect(&mut self) -> Result<()> {
        self.first.connect(&mut self.guest)?;
        self.second.connect(&mut self.guest)
    }

    /// Waits until both sides say that all is well.
    pub(crate) fn wait_healthy(&mut self) -> Result<()> {
        self.first.wait_healthy(&mut self.guest)?;
        self.second.wait_healthy(&mut self.guest)?;
        Ok(())
    }

    /// Connects, makes the first side Primary by force and waits for the initial sync.
    pub(crate) fn connect_and_sync(&mut self) -> Result<()> {
        self.connect()?;
        for side in [&self.first, &self.second] {
            side.wait(&mut self.guest, "Connected", Duration::from_secs(60), |s| {
                s.connection == "Connected"
            })?;
        }
        self.first.primary(&mut self.guest, true)?;
        self.wait_healthy()
    }

    /// Random writes through `side`, noted in the scenario's journal.
    pub(crate) fn write(&mut self, side: &Replica, words: &str) -> Result<String> {
        let script = format!("{IO} write {} --journal /run/share/journal {words}", side.target());
        self.guest.run_limited(&script, Duration::from_secs(300))?.expect_success()
    }

    /// Checks on `side`, which is Primary, that every promise of the journal was kept.
    pub(crate) fn verify(&mut self, side: &Replica) -> Result<()> {
        let script = format!("{IO} verify {} --journal /run/share/journal", side.target());
        self.guest.run_limited(&script, Duration::from_secs(300))?.expect_success()?;
        Ok(())
    }

    /// Size of the replicated device, asked of `side`, which is Primary.
    pub(crate) fn size(&mut self, side: &Replica) -> Result<u64> {
        let text = self.guest.sh(&format!("{IO} size {}", side.target()))?;
        text.trim().parse().context("a size")
    }

    /// Compares both backing disks block for block, over the replicated `bytes`.
    pub(crate) fn compare(&mut self, bytes: u64) -> Result<()> {
        compare_files(&self.guest.disk_file(0), &self.guest.disk_file(1), bytes)
    }
}

/// Compares two backing disks block for block on the host; at least one block must not be zero, so that
/// two empty disks prove nothing.
pub(crate) fn compare_files(one: &Path, two: &Path, bytes: u64) -> Result<()> {
    let length = std::fs::metadata(one)?.len();
    assert!((length / 2..length).contains(&bytes), "a replicated size of {bytes} bytes");
    let (one, two) = (TargetName::Path(one.to_owned()), TargetName::Path(two.to_owned()));
    let different = workload::compare(&one, &two, bytes)?;
    if !different.is_empty() {
        bail!("{} blocks differ, the first is {}", different.len(), different[0]);
    }
    Ok(())
}
