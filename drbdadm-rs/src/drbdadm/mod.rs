//! `drbdadm`: reads the configuration and drives the node by the verbs of `drbdsetup` and `drbdmeta`.

/// Runs `drbdadm`, called as `program`, and returns its exit status.
pub fn run(program: &str, arguments: &[String]) -> i32 {
    eprintln!("{program}: Unknown command '{}'", arguments.first().map_or("", String::as_str));
    1
}
