//! Who has a block device open.
//!
//! The driver does not tell, so it is gathered from what the kernel shows (runtime spec 5.5):
//!
//! | opener | told by |
//! | --- | --- |
//! | mount, swap, device mapper, md: whoever claims the device | an open with `O_EXCL` is refused; names from mountinfo, swaps, `holders/` |
//! | a process with a descriptor | `/proc/*/fd` |
//! | a loop device | `/sys/block/loop*/loop/backing_file` |
//!
//! Not told: a kernel target that opened the device by a path and claims nothing. Only the driver knows of it, and since Linux
//! 7.0 refuses to stop the disk ([`Control::stop_unused`](crate::ublk::Control::stop_unused)). Counting opens and closes with inotify
//! would tell it, if it told every one: equal events in a row are made one, so two opens that are read late count once.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::DeviceNumber;

/// Somebody who has a device open, as people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opener {
    /// A file system is mounted there.
    Mount(String),
    /// A block device is made of it.
    Holder(String),
    /// The kernel swaps to it.
    Swap,
    /// A process.
    Process {
        /// Its number.
        process: u32,
        /// Its name.
        name: String,
    },
    /// Somebody who claims it and is not shown.
    Unknown,
    /// Somebody of whom only the driver knows.
    Hidden,
}

impl Opener {
    /// Whether it is a program that only looks at new devices and goes by itself.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let looks = ["systemd-udevd", "(udev-worker)", "udevd", "blkid", "udisksd"];
        matches!(self, Self::Process { name, .. } if looks.contains(&name.as_str()))
    }
}

impl fmt::Display for Opener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(place) => write!(formatter, "mounted on {place}"),
            Self::Holder(name) => write!(formatter, "used by {name}"),
            Self::Swap => formatter.write_str("used as swap space"),
            Self::Process { process, name } => write!(formatter, "open in process {process} ({name})"),
            Self::Unknown => formatter.write_str("claimed by somebody the kernel does not name"),
            Self::Hidden => formatter.write_str("open by somebody the kernel does not name"),
        }
    }
}

/// Lists who has the device, or a partition of it, open. `node` is a node of it. To be called where waiting does no harm: it looks at
/// every process.
#[must_use]
pub fn openers(node: &Path, number: DeviceNumber) -> Vec<Opener> {
    let mut found = Vec::new();
    let mut numbers: Vec<_> = number.partitions().into_iter().map(|(_, partition)| partition).collect();
    numbers.insert(0, number);
    for &number in &numbers {
        found.extend(mounts(number));
        found.extend(holders(number));
        found.extend(loops(number));
        found.extend(swaps(number));
    }
    found.extend(processes(&numbers));
    if found.is_empty() && is_claimed(node, number) {
        found.push(Opener::Unknown);
    }
    found
}

/// Read-only: closing a device that was open for writing makes udev look at it.
fn is_claimed(node: &Path, number: DeviceNumber) -> bool {
    let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    match OpenOptions::new().read(true).custom_flags(flags).open(node) {
        Ok(_) => false,
        Err(error) => error.raw_os_error() == Some(libc::EBUSY) && is_node_of(node, number),
    }
}

fn is_node_of(path: &Path, number: DeviceNumber) -> bool {
    is_any_of(path, &[number])
}

fn is_any_of(path: &Path, numbers: &[DeviceNumber]) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| {
        metadata.file_type().is_block_device() && numbers.contains(&DeviceNumber(metadata.rdev()))
    })
}

fn mounts(number: DeviceNumber) -> Vec<Opener> {
    let wanted = format!("{}:{}", number.major(), number.minor());
    // The first process sees what was mounted outside of a namespace of our own.
    let tables = ["/proc/self/mountinfo", "/proc/1/mountinfo"];
    let mut places: Vec<String> = tables
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|text| mounted(&text, &wanted))
        .collect();
    places.sort();
    places.dedup();
    places.into_iter().map(Opener::Mount).collect()
}

/// The places of a mountinfo at which the device is mounted.
fn mounted(text: &str, wanted: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .filter(|fields| fields.get(2) == Some(&wanted))
        .filter_map(|fields| fields.get(4).map(|&place| place.to_owned()))
        .collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn holders(number: DeviceNumber) -> Vec<Opener> {
    names_in(&number.folder().join("holders")).into_iter().map(Opener::Holder).collect()
}

fn loops(number: DeviceNumber) -> Vec<Opener> {
    let folder = Path::new("/sys/block");
    let backed = |name: &String| {
        let file = std::fs::read_to_string(folder.join(name).join("loop/backing_file"));
        file.is_ok_and(|path| is_node_of(Path::new(path.trim_end_matches('\n')), number))
    };
    let names = names_in(folder).into_iter().filter(|name| name.starts_with("loop"));
    names.filter(backed).map(Opener::Holder).collect()
}

fn swaps(number: DeviceNumber) -> Option<Opener> {
    let text = std::fs::read_to_string("/proc/swaps").ok()?;
    let mut paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.any(|path| is_node_of(Path::new(path), number)).then_some(Opener::Swap)
}

fn processes(devices: &[DeviceNumber]) -> Vec<Opener> {
    let numbers = names_in(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<u32>().ok());
    let has_it_open = |process: &u32| {
        let folder = format!("/proc/{process}/fd");
        // A process that ends meanwhile has nothing open.
        let Ok(descriptors) = std::fs::read_dir(folder) else { return false };
        descriptors.flatten().any(|entry| is_any_of(&entry.path(), devices))
    };
    numbers
        .filter(has_it_open)
        .map(|process| {
            let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            Opener::Process { process, name: name.trim_end().to_owned() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_the_number_of_its_device() {
        let text = "29 1 259:0 / /mnt/a rw,relatime shared:1 - ext4 /dev/drbd0 rw\n\
                    30 1 259:1 / /mnt/b rw - ext4 /dev/drbd1 rw\n\
                    31 29 259:0 /sub /mnt/c rw - ext4 /dev/drbd0 rw\n";
        assert_eq!(mounted(text, "259:0"), ["/mnt/a", "/mnt/c"]);
        assert!(mounted(text, "9:0").is_empty());
    }

    #[test]
    fn a_device_nobody_has_is_open_nowhere() {
        let number = DeviceNumber::placeholder(77);
        assert_eq!(openers(Path::new("/nonexistent"), number), []);
    }
}
