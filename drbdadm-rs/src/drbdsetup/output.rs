//! Printing, and what the terminal is like.

use std::io::{self, Write};

/// Columns of something that is no terminal.
const WIDTH_DEFAULT: usize = 80;

/// Writes to standard output. Returns whether somebody still reads it.
pub(super) fn out(text: &str) -> bool {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).is_ok()
}

/// Writes a line to standard error. A reader that is gone is no reason to stop.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// The columns of standard output.
pub(super) fn terminal_width() -> usize {
    terminal_size::terminal_size_of(io::stdout())
        .map(|(width, _)| usize::from(width.0))
        .filter(|width| *width > 0)
        .unwrap_or(WIDTH_DEFAULT)
}

/// The text of an operating system error, without its number.
pub(super) fn reason(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |number| nix::errno::Errno::from_raw(number).desc().to_owned())
}
