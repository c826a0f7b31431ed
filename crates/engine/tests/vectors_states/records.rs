//! The records of the folder `states`, as far as tests read them.

use std::collections::BTreeMap;

use serde::Deserialize;
use udrbd_engine::state::{Suspension, VolumeState};
use udrbd_units::{ConnectionState, DiskState, GenerationId, Role};

/// What there is for side `a` and side `b`.
pub(crate) type Sides<T> = BTreeMap<String, T>;

/// A state as recorded; an empty volume has `conn` "Unconfigured" and nothing else.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StateRecord {
    pub(crate) conn: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) peer: Option<String>,
    pub(crate) disk: Option<String>,
    pub(crate) pdsk: Option<String>,
    pub(crate) flags: Option<String>,
    pub(crate) gi: Option<[String; 4]>,
    pub(crate) oos_kb: Option<u64>,
}

impl StateRecord {
    /// The state, with `connection` where none was recorded.
    pub(crate) fn state(&self, connection: ConnectionState) -> VolumeState {
        let name = |text: &Option<String>| text.clone().unwrap_or_default();
        let flags = self.flags.clone().unwrap_or_default();
        let flag = |letter: char| flags.chars().take(4).any(|one| one == letter);
        VolumeState {
            role: name(&self.role).parse().unwrap_or(Role::Secondary),
            peer: name(&self.peer).parse().unwrap_or(Role::Unknown),
            connection: name(&self.conn).parse().unwrap_or(connection),
            disk: name(&self.disk).parse().unwrap_or(DiskState::Diskless),
            peer_disk: name(&self.pdsk).parse().unwrap_or(DiskState::Unknown),
            after_isp: flag('a'),
            peer_isp: flag('p'),
            user_isp: flag('u'),
            suspension: Suspension { user: flags.starts_with('s'), ..Suspension::NONE },
        }
    }

    /// The identifiers, zeros without a disk.
    pub(crate) fn generations(&self) -> [GenerationId; 4] {
        self.gi.as_ref().map_or_else(Default::default, |texts| std::array::from_fn(|i| identifier(&texts[i])))
    }
}

/// Reads 16 hex digits.
pub(crate) fn identifier(text: &str) -> GenerationId {
    GenerationId(u64::from_str_radix(text, 16).unwrap_or_else(|error| panic!("{text}: {error}")))
}
