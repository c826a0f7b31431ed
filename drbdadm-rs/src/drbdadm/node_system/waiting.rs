//! The wait for connections that an operator at the console can end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::Child;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::drbdadm::system::WaitDialog;

/// How long only dots are shown, in seconds.
const QUIET_SECONDS: u32 = 10;
/// How often the interrupt or end-of-file character has to be typed on a console that does not handle them.
const STOP_CHARACTERS: u32 = 3;
const CONSOLE: &str = "/dev/console";

/// Where the operator is.
struct Console {
    input: Box<dyn Input>,
    output: Box<dyn Write>,
}

/// An input that can be polled.
trait Input: Read + AsFd {}
impl<T: Read + AsFd> Input for T {}

impl Console {
    /// Standard input and output, or the console of the machine.
    fn open(has_terminal: bool) -> Option<Self> {
        if has_terminal {
            return Some(Self { input: Box::new(io::stdin()), output: Box::new(io::stdout()) });
        }
        let input = File::open(CONSOLE).ok()?;
        let output = File::options().write(true).open(CONSOLE).ok()?;
        Some(Self { input: Box::new(input), output: Box::new(output) })
    }

    fn print(&mut self, text: &str) {
        // Nobody at the console is no reason not to wait.
        let _ = self.output.write_all(text.as_bytes());
        let _ = self.output.flush();
    }

    /// Waits for input at most so long; what was typed, if something was.
    fn read(&mut self, milliseconds: Option<u16>) -> Option<Vec<u8>> {
        let timeout = milliseconds.map_or(PollTimeout::NONE, PollTimeout::from);
        let mut descriptors = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut descriptors, timeout), Ok(1)) {
            return None;
        }
        let mut typed = [0; 40];
        match self.input.read(&mut typed) {
            Ok(length) if length > 0 => Some(typed[..length].to_vec()),
            _ => {
                // The end of the input would be found again and again.
                std::thread::sleep(std::time::Duration::from_secs(1));
                None
            }
        }
    }
}

/// What the operator typed so far.
#[derive(Default)]
struct Typed {
    line: Vec<u8>,
    interrupts: u32,
    ends: u32,
}

impl Typed {
    /// Takes more input; whether it says to stop. A line arrives whole, or on a raw console by characters.
    fn says_stop(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match byte {
                3 => self.interrupts += 1,
                4 => self.ends += 1,
                b'\n' => {
                    if self.line == b"yes" {
                        return true;
                    }
                    self.line.clear();
                }
                other => self.line.push(*other),
            }
        }
        self.interrupts >= STOP_CHARACTERS || self.ends >= STOP_CHARACTERS
    }
}

/// Waits for all children, and tells the operator, who can end it.
pub(super) fn wait_for_all(mut children: Vec<Child>, dialog: &WaitDialog, has_terminal: bool) {
    let mut console = Console::open(has_terminal);
    let start = Instant::now();
    for _ in 0..QUIET_SECONDS {
        let second = Instant::now();
        while second.elapsed().as_millis() < 1000 {
            if !any_running(&mut children) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        match &mut console {
            Some(console) => console.print("."),
            None => print!("."),
        }
    }
    let Some(console) = &mut console else {
        print!("{}", dialog.text);
        println!(" To abort waiting for DRBD connections, kill this process: kill {}", std::process::id());
        wait_out(&mut children);
        return;
    };
    console.print(&dialog.text);
    console.print(" To abort waiting enter 'yes' [ -- ]: ");
    let mut typed = Typed::default();
    let mut last_redraw = None;
    while any_running(&mut children) {
        let elapsed = start.elapsed().as_secs();
        let due = last_redraw.is_none_or(|last| {
            dialog.refresh_seconds > 0 && elapsed >= last + u64::from(dialog.refresh_seconds)
        });
        if due {
            console.print(&format!("\x1b[s\x1b[31G[{elapsed:4}]:\x1b[u"));
            last_redraw = Some(elapsed);
        }
        // Often enough to notice soon that the last child has ended.
        let Some(bytes) = console.read(Some(200)) else { continue };
        if typed.says_stop(&bytes) {
            interrupt(&children);
            wait_out(&mut children);
            break;
        }
        console.print(" To abort waiting enter 'yes' [ -- ]:");
        last_redraw = None;
    }
    // The end of the line is the program's, as in the original, wherever the dialog was.
    println!();
}

fn any_running(children: &mut [Child]) -> bool {
    children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None)))
}

fn interrupt(children: &[Child]) {
    for pid in children.iter().filter_map(|child| i32::try_from(child.id()).ok()) {
        // Those that have ended need no signal.
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
    }
}

fn wait_out(children: &mut [Child]) {
    for child in children {
        let _ = child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::Typed;

    #[test]
    fn the_operator_stops_the_wait_with_yes_or_three_control_characters() {
        assert!(Typed::default().says_stop(b"yes\n"));
        assert!(!Typed::default().says_stop(b"no\n"));
        assert!(!Typed::default().says_stop(b"yes"));
        let mut raw = Typed::default();
        assert!([b"y", b"e", b"s", b"\n"].iter().any(|key| raw.says_stop(*key)));
        let mut interrupts = Typed::default();
        assert!(!interrupts.says_stop(b"\x03\x03"));
        assert!(interrupts.says_stop(b"\x03"));
    }
}
