//! What is wrong with a configuration, collected in DRBD's words (configuration spec 13).

use std::collections::HashMap;

use crate::number::NumberError;

/// The end of the work: what is left is to exit with this status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The exit status.
    pub status: i32,
}

impl Stop {
    /// The configuration is at fault.
    pub const CONFIG_INVALID: Self = Self { status: crate::exit_status::CONFIG_INVALID };
}

/// Messages, and what checks need to remember between one statement and the next.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    messages: Vec<String>,
    invalid: bool,
    /// Conflicts are not looked for: the text is what a helper program says it runs.
    pub(crate) lenient: bool,
    /// The name of the current file as messages show it.
    pub(crate) file: String,
    /// The line of the current token.
    pub(crate) line: u32,
    /// The line of the current statement; what most messages name.
    pub(crate) statement_line: u32,
    /// The line of the current section.
    pub(crate) section_line: u32,
    /// Where each key was used first, in all files.
    used_anywhere: HashMap<String, String>,
    /// The same within one resource.
    used_in_resource: HashMap<String, String>,
}

impl Diagnostics {
    /// Nothing wrong so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was found that makes the configuration unusable.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        !self.invalid
    }

    /// The messages since the last call, each with its newline.
    pub fn take_messages(&mut self) -> String {
        std::mem::take(&mut self.messages).concat()
    }

    /// Adds a message that changes nothing.
    pub fn warn(&mut self, message: impl Into<String>) {
        self.messages.push(message.into());
    }

    /// Adds a message that makes the configuration unusable; the work goes on, to find more.
    pub fn fault(&mut self, message: impl Into<String>) {
        self.messages.push(message.into());
        self.invalid = true;
    }

    /// Makes the configuration unusable for a reason already told.
    pub(crate) fn invalidate(&mut self) {
        self.invalid = true;
    }

    /// Forgets that the configuration is at fault, and looks for conflicts no more: what comes is about running
    /// settings.
    pub fn forgive(&mut self) {
        self.invalid = false;
        self.lenient = true;
    }

    /// Adds a message and ends the work.
    pub(crate) fn stop(&mut self, message: impl Into<String>) -> Stop {
        self.fault(message);
        Stop::CONFIG_INVALID
    }

    /// Ends the work because of a number that is none. DRBD says so without naming file or line.
    pub(crate) fn stop_number(&mut self, error: &NumberError) -> Stop {
        self.fault(format!("{error}\n"));
        Stop { status: error.exit_status() }
    }

    /// `FILE:LINE` of the current statement.
    #[must_use]
    pub fn location(&self) -> String {
        format!("{}:{}", self.file, self.statement_line)
    }

    /// Forgets what was used in the previous resource.
    pub(crate) fn start_resource(&mut self) {
        self.used_in_resource.clear();
    }

    /// Demands that `key` is used once in all files; `what` is the word for it. A second use ends the work.
    pub(crate) fn unique(&mut self, what: &str, key: String) -> Result<(), Stop> {
        let location = self.location();
        let first = first_use(self.lenient, &mut self.used_anywhere, &key, location);
        self.refuse_conflict(what, &key, first)
    }

    /// Demands that `key` is used once in this resource. A second use ends the work.
    pub(crate) fn unique_in_resource(&mut self, what: &str, key: String) -> Result<(), Stop> {
        let location = self.location();
        let first = first_use(self.lenient, &mut self.used_in_resource, &key, location);
        self.refuse_conflict(what, &key, first)
    }

    fn refuse_conflict(&mut self, what: &str, key: &str, first: Option<String>) -> Result<(), Stop> {
        let Some(first) = first else { return Ok(()) };
        let here = self.location();
        Err(self.stop(format!(
            "{here}: conflicting use of {what} '{key}' ...\n{first}: {what} '{key}' first used here.\n"
        )))
    }

    /// Where a key was used first, as `FILE:LINE`.
    #[must_use]
    pub fn first_use(&self, key: &str) -> Option<&str> {
        self.used_anywhere.get(key).map(String::as_str)
    }
}

/// The place of an earlier use; registers this one if there is none.
fn first_use(
    lenient: bool,
    used: &mut HashMap<String, String>,
    key: &str,
    location: String,
) -> Option<String> {
    if lenient {
        return None;
    }
    if let Some(first) = used.get(key) {
        return Some(first.clone());
    }
    used.insert(key.to_owned(), location);
    None
}
