//! The commands that follow what happens: `events2`, `events`, `wait-connect`, `wait-sync`.

use std::os::fd::AsFd;
use std::time::Duration;

use chrono::{Local, TimeZone};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use udrbd_control::client::{Client, ClientError, Next};
use udrbd_control::options::{OptionError, Scale, parse_number};
use udrbd_control::protocol::StreamItem;
use udrbd_control::status::{
    BroadcastPrinter, BroadcastScope, DeviceSnapshot, EventLine, EventPrinter, EventStyle, ResourceSnapshot,
};
use udrbd_units::{ConnectionState, DiskState, Minor};

use super::EXIT_USAGE;
use super::invocation::{Invocation, Target};
use super::output::{complain, out};

const EXIT_TIMEOUT: i32 = 5;
const WAIT_SECONDS_MAX: u64 = 300_000;

/// `events2`.
pub(super) fn events2(invocation: &Invocation<'_>) -> i32 {
    if let Err(status) = invocation.refuse_excess(0) {
        return status;
    }
    let now = invocation.has("now");
    let timestamps = invocation.has("timestamps");
    let mut printer = EventPrinter::new(EventStyle { statistics: invocation.has("statistics") });
    follow(invocation, |item| {
        for line in printer.lines(item) {
            if !out(&event_text(&line, timestamps)) {
                return false;
            }
        }
        !(now && matches!(item, StreamItem::DumpEnd { .. }))
    })
}

fn event_text(line: &EventLine, timestamps: bool) -> String {
    match line.time_us.and_then(|time_us| Local.timestamp_micros(time_us).single()) {
        Some(time) if timestamps => format!("{} {}\n", time.format("%Y-%m-%dT%H:%M:%S%.6f%:z"), line.text),
        _ => format!("{}\n", line.text),
    }
}

/// `events`.
pub(super) fn events(invocation: &Invocation<'_>) -> i32 {
    if let Err(status) = invocation.refuse_excess(0) {
        return status;
    }
    let scope = match &invocation.target {
        Target::Minor(minor) => BroadcastScope::Minor(*minor),
        _ => BroadcastScope::All,
    };
    let mut printer = BroadcastPrinter::new(scope);
    follow(invocation, |item| printer.lines(item).iter().all(|line| out(&format!("{line}\n"))))
}

/// Hands every item of the stream to `take` until it says no, the reader of the output goes, or the daemon ends.
fn follow(invocation: &Invocation<'_>, mut take: impl FnMut(&StreamItem) -> bool) -> i32 {
    let resource = match &invocation.target {
        Target::Resource(name) => Some(name.as_str()),
        _ => None,
    };
    let connected = invocation.connect(false).and_then(|mut client| {
        client.set_answer_timeout(None)?;
        client.watch(resource)?;
        Ok(client)
    });
    let mut client = match connected {
        Ok(client) => client,
        Err(ClientError::NotRunning { .. }) => {
            // Nothing is configured, and nothing will be until a daemon runs: the stream is over.
            take(&StreamItem::DumpEnd { time_us: Local::now().timestamp_micros() });
            return 0;
        }
        Err(error) => return invocation.daemon_trouble(&error),
    };
    loop {
        match next(&mut client, None) {
            Ok(Next::Item(item)) => {
                if !take(&item) {
                    return 0;
                }
            }
            Ok(Next::End | Next::TimedOut) => return 0,
            Err(error) => return invocation.daemon_trouble(&error),
        }
    }
}

/// The next item of a stream; [`Next::End`] also when nobody reads the output any more.
pub(super) fn next(client: &mut Client, timeout: Option<Duration>) -> Result<Next, ClientError> {
    let timeout =
        timeout.map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
    loop {
        if let Some(next) = client.buffered_item()? {
            return Ok(next);
        }
        let stdout = std::io::stdout();
        let mut watched = [
            PollFd::new(client.socket().as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut watched, timeout) {
            Ok(0) => return Ok(Next::TimedOut),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let events =
            |index: usize| watched.get(index).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let (from_daemon, of_output) = (events(0), events(1));
        if of_output.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            return Ok(Next::End);
        }
        if !from_daemon.is_empty() && !client.fill()? {
            return Ok(client.buffered_item()?.unwrap_or(Next::End));
        }
    }
}

/// The three timeouts of the wait commands, in seconds; 0 is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WaitTimeouts {
    usual: u64,
    degraded: u64,
    outdated: u64,
}

impl WaitTimeouts {
    fn read(invocation: &Invocation<'_>) -> Result<Self, i32> {
        let mut timeouts = Self::default();
        for (name, value) in &invocation.options {
            let (timeout, label) = match *name {
                "wfc-timeout" => (&mut timeouts.usual, "wfc_timeout"),
                "degr-wfc-timeout" => (&mut timeouts.degraded, "degr_wfc_timeout"),
                "outdated-wfc-timeout" => (&mut timeouts.outdated, "outdated_wfc_timeout"),
                _ => continue,
            };
            let text = value.as_deref().unwrap_or_default();
            let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
            let seconds = parse_number(digits, Scale::Ones).map_err(|error: OptionError| {
                complain(&error.to_string().replace(digits, text));
                EXIT_USAGE
            })?;
            if seconds > WAIT_SECONDS_MAX || (!sign.is_empty() && seconds > 0) {
                complain(&format!("{label} => {sign}{seconds} out of range [0..{WAIT_SECONDS_MAX}]"));
                return Err(EXIT_USAGE);
            }
            *timeout = seconds;
        }
        Ok(timeouts)
    }

    /// Makes the special timeouts no longer than the general one, as the original does, slip included: the
    /// timeout for an outdated peer becomes the usual one, while the message names the degraded one.
    fn adjusted(mut self) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        if self.usual > 0 && (self.usual < self.degraded || self.degraded == 0) {
            self.degraded = self.usual;
            notes.push("degr-wfc-timeout has to be shorter than wfc-timeout".to_owned());
            notes.push(format!("degr-wfc-timeout implicitly set to wfc-timeout ({}s)", self.degraded));
        }
        if self.degraded > 0 && (self.degraded < self.outdated || self.outdated == 0) {
            self.outdated = self.usual;
            notes.push("outdated-wfc-timeout has to be shorter than degr-wfc-timeout".to_owned());
            notes.push(format!(
                "outdated-wfc-timeout implicitly set to degr-wfc-timeout ({}s)",
                self.degraded
            ));
        }
        (self, notes)
    }

    /// The timeout for a device, by how the node was left.
    fn choose(self, device: &DeviceSnapshot) -> Option<Duration> {
        let seconds = if device.peer_disk == DiskState::Outdated {
            self.outdated
        } else if device.use_degraded_timeout {
            self.degraded
        } else {
            self.usual
        };
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

/// `wait-connect` and `wait-sync` (states spec 21.1).
pub(super) fn wait(invocation: &Invocation<'_>) -> i32 {
    let prepared = WaitTimeouts::read(invocation).and_then(|timeouts| {
        invocation.refuse_excess(0)?;
        Ok(timeouts.adjusted())
    });
    let (timeouts, notes) = match prepared {
        Ok(prepared) => prepared,
        Err(status) => return status,
    };
    notes.iter().for_each(|note| complain(note));
    let Target::Minor(minor) = invocation.target else { return EXIT_USAGE };
    let node = match invocation.snapshot() {
        Ok(node) => node,
        Err(status) => return status,
    };
    let Some((_, device)) = node.device_by_minor(minor) else {
        complain("error determining which timeout to use: minor not available");
        return EXIT_USAGE;
    };
    let timeout = timeouts.choose(device);
    match wait_for(invocation, minor, timeout) {
        Ok(status) => status,
        Err(error) => invocation.daemon_trouble(&error),
    }
}

fn wait_for(
    invocation: &Invocation<'_>,
    minor: Minor,
    timeout: Option<Duration>,
) -> Result<i32, ClientError> {
    let for_sync = invocation.command.name == "wait-sync";
    let after_split_brain = invocation
        .options
        .iter()
        .any(|(name, value)| *name == "wait-after-sb" && value.as_deref().is_none_or(|value| value == "yes"));
    let mut client = invocation.connect(false)?;
    client.set_answer_timeout(None)?;
    client.watch(None)?;
    let mut owner: Option<String> = None;
    loop {
        // The time starts anew with everything that happens.
        let item = match next(&mut client, timeout)? {
            Next::Item(item) => item,
            Next::TimedOut => return Ok(EXIT_TIMEOUT),
            Next::End => return Ok(0),
        };
        let found = match &item {
            StreamItem::Resource { resource, .. } => match resource.device_by_minor(minor) {
                Some(device) => Some((resource, device)),
                None if owner.as_ref() == Some(&resource.name) => None,
                None => continue,
            },
            StreamItem::ResourceGone { name, .. } if owner.as_ref() == Some(name) => None,
            // It went before the stream began.
            StreamItem::DumpEnd { .. } if owner.is_none() => None,
            _ => continue,
        };
        let Some((resource, device)) = found else {
            // Who takes it down ends the wait as a disconnect does.
            if !after_split_brain {
                return Ok(0);
            }
            owner = None;
            continue;
        };
        owner = Some(resource.name.clone());
        let arrived = match (for_sync, device.connection) {
            (true, state) => state == ConnectionState::Connected,
            (false, state) => state >= ConnectionState::Connected,
        };
        if arrived {
            return Ok(0);
        }
        if device.connection < ConnectionState::Unconnected {
            if !after_split_brain {
                return Ok(0);
            }
            if !for_sync {
                complain(&waiting_anyway(resource, device));
            }
        }
    }
}

fn waiting_anyway(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    format!(
        "\ndrbd{} ({}[{}]) is {}, but I'm configured to wait anways (--wait-after-sb)",
        device.minor, resource.name, device.volume, device.connection
    )
}

#[cfg(test)]
mod tests {
    use udrbd_units::VolumeNumber;

    use super::*;

    #[test]
    fn a_single_timeout_sets_the_others_and_says_so() {
        let (adjusted, notes) = WaitTimeouts { usual: 5, degraded: 0, outdated: 0 }.adjusted();
        assert_eq!(adjusted, WaitTimeouts { usual: 5, degraded: 5, outdated: 5 });
        assert_eq!(notes.len(), 4);
        let equal = WaitTimeouts { usual: 5, degraded: 5, outdated: 5 };
        assert_eq!(equal.adjusted(), (equal, Vec::new()));
        let slip = WaitTimeouts { usual: 9, degraded: 5, outdated: 7 }.adjusted().0;
        assert_eq!(slip.outdated, 9);
    }

    #[test]
    fn the_timeout_is_chosen_by_how_the_node_was_left() {
        let timeouts = WaitTimeouts { usual: 0, degraded: 2, outdated: 3 };
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
        assert_eq!(timeouts.choose(&device), None);
        device.use_degraded_timeout = true;
        assert_eq!(timeouts.choose(&device), Some(Duration::from_secs(2)));
        device.peer_disk = DiskState::Outdated;
        assert_eq!(timeouts.choose(&device), Some(Duration::from_secs(3)));
    }

    #[test]
    fn timestamps_have_microseconds_and_an_offset() {
        let line = EventLine { time_us: Some(1_000_001), text: "exists -".to_owned() };
        let text = event_text(&line, true);
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(rest, "exists -\n");
        assert_eq!(time.len(), "2026-11-20T12:29:14.052052+00:00".len());
        assert!(time.contains(":01.000001"));
        assert_eq!(event_text(&line, false), "exists -\n");
    }
}
