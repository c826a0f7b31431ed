//! `split-brain-report`: what is known of a split brain, and what to do. Ours alone.

use chrono::{Local, TimeZone};

use super::EXIT_USAGE;
use super::invocation::{Invocation, Target};
use super::output::{complain, out};

mod text;

/// No such resource, as of `status`.
const EXIT_UNKNOWN: i32 = 10;

/// Runs the command.
pub(super) fn report(invocation: &Invocation<'_>) -> i32 {
    if let Err(status) = invocation.refuse_excess(0) {
        return status;
    }
    let Target::Resource(name) = &invocation.target else { return EXIT_USAGE };
    let asked = invocation.connect(false).and_then(|mut client| client.split_brain_report(name));
    let mut report = match asked {
        Ok(Some(report)) => report,
        Ok(None) => {
            complain(&format!("{name}: No such resource"));
            return EXIT_UNKNOWN;
        }
        Err(error) => return invocation.daemon_trouble(&error),
    };
    report.peer = invocation.value("peer-name").map(str::to_owned);
    if invocation.has("json") {
        out(&report.to_json());
    } else {
        out(&text::of_report(&report, &local_time));
    }
    0
}

fn local_time(time_us: i64) -> String {
    let time = Local.timestamp_micros(time_us).single();
    time.map_or_else(|| "an unknown time".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S %:z").to_string())
}
