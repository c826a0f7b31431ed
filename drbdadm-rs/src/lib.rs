//! The command line of DRBD 8.4: `drbdadm`, `drbdsetup`, `drbdmeta` and `drbd-overview`.
//!
//! The programs are one code base chosen by name, as one binary installed under several names or as the
//! separate binaries that cargo builds. Each program is a module with a `run` function that takes the name
//! it was called by and its arguments, and returns the exit status.

pub mod drbdadm;
pub mod drbdmeta;
pub mod drbdsetup;
pub mod overview;
pub mod registry;

/// Set by `drbdadm -v` for the programs it runs: they say more than the original does.
pub(crate) const VERBOSE_VARIABLE: &str = "UDRBD_VERBOSE";

/// Runs the program that `argv[0]` names and returns its exit status.
///
/// A name that is no program of ours (a renamed or linked binary) falls back to `default_program`, the name
/// the binary was built under. Under the name `drbdadm-rs` the first argument names the program.
pub fn dispatch(default_program: &str) -> i32 {
    let mut arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let called_as = if arguments.is_empty() { default_program.to_owned() } else { arguments.remove(0) };
    if let Some(status) = run_program(&called_as, &called_as, &arguments) {
        return status;
    }
    if base_name(&called_as) == "drbdadm-rs" && !arguments.is_empty() {
        let program = arguments.remove(0);
        if let Some(status) = run_program(&program, &program, &arguments) {
            return status;
        }
        eprintln!("drbdadm-rs: unknown program '{program}'");
        return 20;
    }
    run_program(default_program, &called_as, &arguments).unwrap_or(20)
}

/// Runs `program` (a name, with or without a path) if it is one of ours.
fn run_program(program: &str, called_as: &str, arguments: &[String]) -> Option<i32> {
    match base_name(program) {
        "drbdadm" | "drbdadm-84" => Some(drbdadm::run(called_as, arguments)),
        "drbdsetup" | "drbdsetup-84" => Some(drbdsetup::run(called_as, arguments)),
        "drbd-overview" => Some(overview::run(called_as, arguments)),
        "drbdmeta" | "drbdmeta-84" => Some(drbdmeta::run(called_as, arguments)),
        _ => None,
    }
}

/// The last component of a path.
fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
