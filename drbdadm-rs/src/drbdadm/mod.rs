//! `drbdadm`: reads the configuration and drives the node by the verbs of `drbdsetup` and `drbdmeta`.
//!
//! Imitates `drbdadm` of the 8.4 generation, word for word where it prints something (cli spec 2 to 8).

mod adjust;
mod calls;
mod command_line;
mod commands;
pub mod disk_files;
mod handlers;
mod node_system;
mod proxy;
mod session;
mod shell;
mod stages;
pub mod system;
mod usage;
mod wait;

use node_system::NodeSystem;
use system::System;

/// The end of the program, with this status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exit(i32);

impl From<udrbd_config::Stop> for Exit {
    fn from(stop: udrbd_config::Stop) -> Self {
        Self(stop.status)
    }
}

/// Runs `drbdadm`, called as `program`, on this machine and returns its exit status.
pub fn run(program: &str, arguments: &[String]) -> i32 {
    run_on(&mut NodeSystem::new(program), program, arguments)
}

/// Runs `drbdadm` on any machine.
pub fn run_on(system: &mut dyn System, program: &str, arguments: &[String]) -> i32 {
    let program = program.rsplit('/').next().unwrap_or(program);
    match session::run(system, program, arguments) {
        Ok(status) => status,
        Err(Exit(status)) => status,
    }
}

/// Escapes a text for a shell: a backslash before every byte but those that mean nothing to it (cli spec 1).
fn shell_escape(text: &str) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        let harmless = byte.is_ascii_alphanumeric()
            || matches!(byte, b'%' | b'+' | b'-' | b'.' | b'/' | b':' | b'=' | b'@' | b'_');
        if !harmless {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::shell_escape;

    #[test]
    fn what_a_shell_would_take_is_escaped() {
        assert_eq!(shell_escape("ipv6:[fd00::1]:7788"), b"ipv6:\\[fd00::1\\]:7788");
        assert_eq!(shell_escape("a b"), b"a\\ b");
        assert_eq!(shell_escape("ä"), b"\\\xc3\\\xa4");
    }
}
