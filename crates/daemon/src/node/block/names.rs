//! `/dev/drbdN`, its partitions `/dev/drbdNpM`, and the links to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use udrbd_runtime::Errno;
use udrbd_runtime::devices::{self, DeviceNumber, MinorClaim};
use udrbd_units::{Minor, VolumeNumber};

const FOLDER: &str = "/dev";
const LINKS: &str = "/dev/drbd";

/// The names of a volume's device. They go when it is dropped, unless they are left to a successor.
#[derive(Debug)]
pub(super) struct Names {
    minor: Minor,
    /// Nodes can be made.
    possible: bool,
    /// What the node is now; `None` where there is none.
    number: Option<DeviceNumber>,
    /// The nodes of partitions.
    partitions: BTreeMap<u32, DeviceNumber>,
    /// Links, and where they lead.
    links: Vec<(PathBuf, PathBuf)>,
    left: bool,
    /// Last: the names are gone when the minor is free.
    claim: Option<MinorClaim>,
}

impl Names {
    /// Names for a device that is not made: of a daemon that may not make any.
    pub(super) const fn none(minor: Minor) -> Self {
        Self {
            minor,
            possible: false,
            number: None,
            partitions: BTreeMap::new(),
            links: Vec::new(),
            left: false,
            claim: None,
        }
    }

    /// Makes the node, as a placeholder or for a disk that is there, and the link by resource. Where no node can be
    /// made there are no names, and everything else goes on.
    pub(super) fn make(
        claim: MinorClaim,
        minor: Minor,
        resource: &str,
        volume: VolumeNumber,
        disk: Option<DeviceNumber>,
    ) -> Self {
        let mut names = Self::none(minor);
        names.possible = true;
        names.claim = Some(claim);
        // What a dead daemon left of partitions that have gone since.
        devices::remove_stale_nodes(Path::new(FOLDER), &format!("drbd{minor}p"));
        match names.set(disk) {
            Ok(()) => names.link(&format!("by-res/{resource}/{volume}")),
            Err(errno) => {
                tracing::warn!("drbd {resource}/{volume} drbd{minor}: no node /dev/drbd{minor}: {errno}");
                names.possible = false;
            }
        }
        names
    }

    pub(super) fn node(minor: Minor) -> PathBuf {
        Path::new(FOLDER).join(format!("drbd{minor}"))
    }

    fn partition_node(&self, partition: u32) -> PathBuf {
        Path::new(FOLDER).join(format!("drbd{}p{partition}", self.minor))
    }

    /// Lets the node be a disk's with its partitions, or a placeholder.
    pub(super) fn set(&mut self, disk: Option<DeviceNumber>) -> Result<(), Errno> {
        if !self.possible {
            return Ok(());
        }
        let number = disk.unwrap_or(DeviceNumber::placeholder(self.minor.0));
        devices::make_node(&Self::node(self.minor), number)?;
        self.number = Some(number);
        self.follow_partitions();
        Ok(())
    }

    /// Lets there be nodes for the partitions that the kernel knows now, and no others.
    pub(super) fn follow_partitions(&mut self) {
        let found = self.number.filter(|_| self.possible).map(DeviceNumber::partitions).unwrap_or_default();
        let found = BTreeMap::from_iter(found);
        for (partition, number) in &self.partitions {
            if found.get(partition) != Some(number) {
                // What cannot be removed leads nowhere.
                let _ = devices::remove_node(&self.partition_node(*partition), *number);
            }
        }
        let (minor, node) = (self.minor, |partition| self.partition_node(partition));
        let made = found.into_iter().filter(|(partition, number)| {
            let made = devices::make_node(&node(*partition), *number);
            if let Err(errno) = made {
                tracing::warn!("drbd{minor}: no node {}: {errno}", node(*partition).display());
            }
            made.is_ok()
        });
        self.partitions = made.collect();
    }

    /// What the node is.
    pub(super) const fn number(&self) -> Option<DeviceNumber> {
        self.number
    }

    /// Lets the link by backing device lead here, or no link.
    pub(super) fn link_disk(&mut self, disk: Option<&str>) {
        let by_disk = Path::new(LINKS).join("by-disk");
        let (old, kept) = self.links.drain(..).partition(|(link, _)| link.starts_with(&by_disk));
        self.links = kept;
        unlink(&old);
        if let Some(disk) = disk
            && self.number.is_some()
        {
            let name = disk.strip_prefix("/dev/").unwrap_or(disk.trim_start_matches('/'));
            if !name.is_empty() && !name.split('/').any(|part| matches!(part, "" | "." | "..")) {
                self.link(&format!("by-disk/{name}"));
            }
        }
    }

    fn link(&mut self, name: &str) {
        let link = Path::new(LINKS).join(name);
        let target =
            PathBuf::from("../".repeat(name.matches('/').count() + 1) + &format!("drbd{}", self.minor));
        match devices::make_link(&link, &target) {
            Ok(()) => self.links.push((link, target)),
            Err(errno) => tracing::warn!("no link {}: {errno}", link.display()),
        }
    }

    /// Leaves the names as they are: their device goes on without this process.
    pub(super) const fn leave(&mut self) {
        self.left = true;
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        unlink(&self.links);
        for (partition, number) in &self.partitions {
            // What cannot be removed leads nowhere.
            let _ = devices::remove_node(&self.partition_node(*partition), *number);
        }
        if let Some(number) = self.number {
            // What cannot be removed is replaced by the next one.
            let _ = devices::remove_node(&Self::node(self.minor), number);
        }
    }
}

fn unlink(links: &[(PathBuf, PathBuf)]) {
    for (link, target) in links {
        devices::remove_link(link, target, Path::new(LINKS));
    }
}
