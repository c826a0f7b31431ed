//! What is remembered about a minor's backing device, to find its metadata after it has grown (metadata spec 9.3).

use std::io::Write;
use std::path::PathBuf;

use super::{lock, reason, tell};

/// The size, name and recognition number of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownDevice {
    /// Its size in bytes; never 0.
    pub(super) bytes: u64,
    /// Its name, if the file was complete.
    pub(super) name: Option<String>,
    /// The `device_uuid` of its superblock, 0 if none.
    pub(super) device_uuid: u64,
}

impl KnownDevice {
    /// What the file says; `None` if there is none.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let bytes = words.next()?.parse().ok().filter(|bytes| *bytes > 0)?;
        let name = words.next().map(str::to_owned);
        let device_uuid = match (words.next(), words.next()) {
            (Some("uuid:"), Some(digits)) => u64::from_str_radix(digits, 16).unwrap_or(0),
            _ => 0,
        };
        Some(Self { bytes, name, device_uuid })
    }

    fn text(&self) -> String {
        let mut text = format!("{}\t{}\n", self.bytes, self.name.as_deref().unwrap_or_default());
        if self.device_uuid != 0 {
            text += &format!("uuid:\t{:016X}\n", self.device_uuid);
        }
        text
    }
}

fn path(minor: Option<u32>) -> PathBuf {
    let folder = lock::private_folder().unwrap_or_else(|| PathBuf::from("/var/lib/drbd"));
    // No minor is written as the original does.
    let minor = minor.map_or(-1, i64::from);
    folder.join(format!("drbd-minor-{minor}.lkbd"))
}

/// Reads what is remembered.
pub(super) fn load(minor: Option<u32>) -> Option<KnownDevice> {
    let path = path(minor);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let known = KnownDevice::parse(&text);
            if known.is_none() {
                tell(format_args!("lk_bdev_load({}): parse error", path.display()));
            }
            known
        }
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tell(format_args!("lk_bdev_load({}) failed: {}", path.display(), reason(&error)));
            }
            None
        }
    }
}

/// Remembers a device. A failure is told and otherwise of no consequence.
pub(super) fn save(minor: Option<u32>, known: &KnownDevice) {
    let path = path(minor);
    if let Some(folder) = path.parent() {
        // If this fails, creating the file says why.
        let _ = std::fs::create_dir_all(folder);
    }
    let saved = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(known.text().as_bytes())?;
        file.sync_all()
    });
    if let Err(error) = saved {
        tell(format_args!("lk_bdev_save({}) failed: {}", path.display(), reason(&error)));
    }
}

/// Forgets a device.
pub(super) fn delete(minor: Option<u32>) {
    let path = path(minor);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tell(format_args!("lk_bdev_delete({}) failed: {}", path.display(), reason(&error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_leads_back() {
        let text = "1073741824\t/dev/sdb1\nuuid:\t0123456789ABCDEF\n";
        let known = KnownDevice::parse(text).unwrap();
        assert_eq!(known.device_uuid, 0x0123_4567_89AB_CDEF);
        assert_eq!(known.text(), text);
        let without = KnownDevice::parse("42\t/dev/sdb1\n").unwrap();
        assert_eq!(without.text(), "42\t/dev/sdb1\n");
        assert_eq!(KnownDevice::parse("42"), Some(KnownDevice { bytes: 42, name: None, device_uuid: 0 }));
        assert_eq!(KnownDevice::parse("nothing"), None);
        assert_eq!(KnownDevice::parse("0\tx"), None);
    }
}
