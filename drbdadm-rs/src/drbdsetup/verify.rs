//! `wait-verify`: the end of an online verify, with its progress on a terminal, and what it found as the exit status.
//! Ours alone: behind `drbdadm verify --wait` and `--repair`.

use indicatif::{ProgressBar, ProgressStyle};
use udrbd_control::client::{ClientError, Next};
use udrbd_control::protocol::StreamItem;
use udrbd_control::status::{DeviceSnapshot, ResourceSnapshot};
use udrbd_units::{ConnectionState, Minor, Role};

use super::EXIT_USAGE;
use super::invocation::{Invocation, Target};
use super::output::{complain, out};
use super::watch::next;

/// The copies differ.
const EXIT_DIFFERENT: i32 = 1;
/// As of a refused change of state: the verify did not come to its end, or nobody can say which copy counts.
const EXIT_REFUSED: i32 = 11;

/// Waits until the device verifies no more.
pub(super) fn wait(invocation: &Invocation<'_>) -> i32 {
    if let Err(status) = invocation.refuse_excess(0) {
        return status;
    }
    let Target::Minor(minor) = invocation.target else { return EXIT_USAGE };
    match wait_for(invocation, minor) {
        Ok(Some((resource, device))) => {
            let (status, lines) = verdict(&resource, &device, invocation.has("repair"));
            for line in lines {
                match status {
                    0 => drop(out(&format!("{line}\n"))),
                    _ => complain(&line),
                }
            }
            status
        }
        Ok(None) => {
            complain("the daemon has ended");
            EXIT_USAGE
        }
        Err(error) => invocation.daemon_trouble(&error),
    }
}

fn wait_for(
    invocation: &Invocation<'_>,
    minor: Minor,
) -> Result<Option<(String, DeviceSnapshot)>, ClientError> {
    let mut client = invocation.connect(false)?;
    client.set_answer_timeout(None)?;
    client.watch(None)?;
    // Drawn on standard error, and only if that is a terminal.
    let bar = ProgressBar::new(0).with_style(style());
    loop {
        let item = match next(&mut client, None)? {
            Next::Item(item) => item,
            Next::TimedOut => continue,
            Next::End => return Ok(None),
        };
        let StreamItem::Resource { resource, .. } = item else { continue };
        let Some(device) = resource.device_by_minor(minor) else { continue };
        if !is_verifying(device) {
            bar.finish_and_clear();
            return Ok(Some((name(&resource, device), device.clone())));
        }
        if let Some(progress) = &device.progress {
            bar.set_length(progress.total_blocks);
            bar.set_position(progress.total_blocks.saturating_sub(progress.verify_left_blocks));
            bar.set_message(format!("{}: {}", name(&resource, device), differences(device)));
        }
    }
}

fn style() -> ProgressStyle {
    let usual = ProgressStyle::default_bar();
    ProgressStyle::with_template("{msg} [{bar:40}] {percent} %, {eta} left").unwrap_or(usual)
}

const fn is_verifying(device: &DeviceSnapshot) -> bool {
    matches!(device.connection, ConnectionState::VerifyS | ConnectionState::VerifyT)
}

fn name(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    format!("{}/{} (drbd{})", resource.name, device.volume, device.minor)
}

fn differences(device: &DeviceSnapshot) -> String {
    match device.counters.out_of_sync_blocks {
        0 => "no difference".to_owned(),
        1 => "1 block of 4 KiB out of sync".to_owned(),
        blocks => format!("{blocks} blocks of 4 KiB out of sync"),
    }
}

/// The exit status and what to say.
fn verdict(name: &str, device: &DeviceSnapshot, repair: bool) -> (i32, Vec<String>) {
    let found = format!("{name}: {}", differences(device));
    if device.connection != ConnectionState::Connected {
        let interrupted =
            format!("{name}: the verify did not come to its end: the connection is {}", device.connection);
        return (EXIT_REFUSED, vec![found, interrupted]);
    }
    if device.counters.out_of_sync_blocks == 0 {
        return (0, vec![found]);
    }
    let primaries = [device.role, device.peer_role].into_iter().filter(|role| *role == Role::Primary).count();
    if repair && primaries != 1 {
        let who =
            format!("{name}: to repair it one node must be Primary, whose blocks count; {primaries} are");
        return (EXIT_REFUSED, vec![found, who]);
    }
    (EXIT_DIFFERENT, vec![found])
}

#[cfg(test)]
mod tests {
    use udrbd_units::VolumeNumber;

    use super::*;

    fn device(blocks: u64, roles: [Role; 2]) -> DeviceSnapshot {
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
        device.connection = ConnectionState::Connected;
        device.counters.out_of_sync_blocks = blocks;
        [device.role, device.peer_role] = roles;
        device
    }

    #[test]
    fn the_status_says_whether_the_copies_differ() {
        let roles = [Role::Primary, Role::Secondary];
        assert_eq!(verdict("r0", &device(0, roles), true).0, 0);
        assert_eq!(
            verdict("r0", &device(1, roles), false),
            (1, vec!["r0: 1 block of 4 KiB out of sync".to_owned()])
        );
        assert_eq!(verdict("r0", &device(2, roles), true).0, 1);
    }

    #[test]
    fn a_verify_that_was_cut_short_says_nothing_about_the_rest() {
        let mut cut = device(0, [Role::Primary, Role::Unknown]);
        cut.connection = ConnectionState::WFConnection;
        assert_eq!(verdict("r0", &cut, false).0, 11);
    }

    #[test]
    fn nothing_is_repaired_where_nobody_knows_which_copy_counts() {
        for roles in [[Role::Secondary; 2], [Role::Primary; 2]] {
            assert_eq!(verdict("r0", &device(3, roles), true).0, 11);
            assert_eq!(verdict("r0", &device(3, roles), false).0, 1);
            assert_eq!(verdict("r0", &device(0, roles), true).0, 0);
        }
    }
}
