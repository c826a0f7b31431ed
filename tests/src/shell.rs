//! Where commands run: on this machine, or in a guest.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::guest::{Guest, Output};

/// Something that runs bash scripts, one after the other.
pub trait Shell {
    /// Runs a script and waits for it, for at most `limit`.
    ///
    /// # Errors
    ///
    /// If it cannot be run or the time is over; a failing script is not an error but a status.
    fn run_limited(&mut self, script: &str, limit: Duration) -> Result<Output>;

    /// Runs a script that must succeed within two minutes and returns what it printed.
    ///
    /// # Errors
    ///
    /// As [`Self::run_limited`], and if the status is not 0.
    fn sh(&mut self, script: &str) -> Result<String> {
        self.run_limited(script, Duration::from_secs(120))?.expect_success()
    }

    /// Asks again and again until `check` gives something.
    ///
    /// # Errors
    ///
    /// What `check` fails with, or `what` did not come within `limit`.
    fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut check: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T>
    where
        Self: Sized,
    {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = check(self)? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("waited {} s for {what}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Shell for Guest {
    fn run_limited(&mut self, script: &str, limit: Duration) -> Result<Output> {
        Self::run_limited(self, script, limit)
    }
}

/// This machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct Local;

impl Shell for Local {
    fn run_limited(&mut self, script: &str, limit: Duration) -> Result<Output> {
        let output = Command::new("timeout")
            .args(["-k", "5", &limit.as_secs().max(1).to_string(), "bash", "-c", script])
            .stdin(Stdio::null())
            .output()
            .context("cannot run bash")?;
        Ok(Output {
            command: script.trim().to_owned(),
            status: output.status.code().unwrap_or(137),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// One word of a shell command, quoted where it has to be.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "%+-./:=@_,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
