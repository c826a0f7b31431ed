//! Finding and running helper programs.

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{AccessFlags, access};

use crate::drbdadm::system::{Call, Ended, Finished, Helper, Stream};

/// The longest pause between two looks at a helper that has a time limit.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// What DRBD's programs end with when something cannot be run.
const CANNOT_RUN: i32 = 20;

/// The names a helper may be installed under; the first is the one printed.
fn names(helper: Helper) -> &'static [&'static str] {
    match helper {
        Helper::Setup => &["drbdsetup-84", "drbdsetup"],
        Helper::Meta => &["drbdmeta"],
        Helper::ProxyControl => &["drbd-proxy-ctl"],
        Helper::Shell => &["/bin/sh"],
    }
}

fn own_directory() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.to_owned())
}

fn executable(path: PathBuf) -> Option<PathBuf> {
    (path.is_file() && access(&path, AccessFlags::X_OK).is_ok()).then_some(path)
}

/// The program to run.
///
/// If `drbdadm` was called by a path, the helper beside it is meant. If it was found in the search path, so is the
/// helper, where the name without `-84` counts in our own directory only: elsewhere it is somebody else's.
fn program(called_as: &str, call: &Call) -> Option<PathBuf> {
    if let Some(path) = &call.path {
        return Some(PathBuf::from(path));
    }
    if call.helper == Helper::Shell {
        return Some(PathBuf::from("/bin/sh"));
    }
    let names = names(call.helper);
    let own = own_directory();
    let beside = || own.as_ref().and_then(|own| names.iter().find_map(|name| executable(own.join(name))));
    if called_as.contains('/')
        && let Some(program) = beside()
    {
        return Some(program);
    }
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    for directory in std::env::split_paths(&search_path) {
        let is_own = own.as_ref().is_some_and(|own| is_same_directory(own, &directory));
        let allowed = if is_own { names } else { &names[..1] };
        if let Some(program) = allowed.iter().find_map(|name| executable(directory.join(name))) {
            return Some(program);
        }
    }
    beside()
}

fn is_same_directory(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Whether the call runs a helper of ours: one that is installed beside this program.
pub(super) fn is_own(called_as: &str, call: &Call) -> bool {
    let program = program(called_as, call);
    let directory = program.as_deref().and_then(Path::parent);
    matches!((directory, own_directory()), (Some(directory), Some(own)) if is_same_directory(directory, &own))
}

/// Starts a helper.
pub(super) fn start(
    called_as: &str,
    call: &Call,
    environment: &BTreeMap<String, String>,
) -> io::Result<Child> {
    let program = program(called_as, call).ok_or(io::ErrorKind::NotFound)?;
    let stream = |stream: Stream| match stream {
        Stream::Inherited => Stdio::inherit(),
        Stream::Dropped => Stdio::null(),
        Stream::Captured => Stdio::piped(),
    };
    let mut command = Command::new(&program);
    if let Some(name) = program.file_name().filter(|_| call.helper != Helper::Shell) {
        command.arg0(name);
    }
    if call.verbose {
        command.env(crate::VERBOSE_VARIABLE, "1");
    }
    command
        .args(call.words.iter().skip(1))
        .envs(environment)
        .stdout(stream(call.output))
        .stderr(stream(call.errors))
        .spawn()
}

/// Runs a helper to its end, or until its time is over.
pub(super) fn run(called_as: &str, call: &Call, environment: &BTreeMap<String, String>) -> Finished {
    let Ok(mut child) = start(called_as, call, environment) else { return cannot_run(call) };
    let output = child.stdout.take().map(read_in_background);
    let errors = child.stderr.take().map(read_in_background);
    let ended = wait(&mut child, call.limit_seconds);
    let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Finished { ended, output: collect(output), errors: collect(errors) }
}

fn read_in_background(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn cannot_run(call: &Call) -> Finished {
    let message = b"Can not exec\n";
    let mut finished = Finished { ended: Ended::Status(CANNOT_RUN), output: Vec::new(), errors: Vec::new() };
    match call.errors {
        Stream::Inherited => {
            let _ = io::stderr().write_all(message);
        }
        Stream::Captured => finished.errors = message.to_vec(),
        Stream::Dropped => {}
    }
    finished
}

fn wait(child: &mut Child, limit_seconds: u32) -> Ended {
    if limit_seconds == 0 {
        return child.wait().map_or(Ended::Status(CANNOT_RUN), ended);
    }
    let deadline = Instant::now() + Duration::from_secs(u64::from(limit_seconds));
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return ended(status),
            Ok(None) => {}
            Err(_) => return Ended::Status(CANNOT_RUN),
        }
        if Instant::now() >= deadline {
            // It may be gone by now, which is as good.
            let _ = child.kill();
            let _ = child.wait();
            return Ended::TimedOut;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Status(code),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => Ended::Status(CANNOT_RUN),
    }
}
