//! What the rules read besides the states themselves.

use udrbd_units::{DiskState, GenerationId, Role, UnknownState};

/// Disk option `fencing` (states spec 15.1). The order matters: stricter is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum FencingPolicy {
    /// A Primary may lose its peer and go on.
    #[default]
    DontCare = 0,
    /// A Primary without connection needs a peer known to be outdated.
    ResourceOnly = 1,
    /// As `ResourceOnly`, and I/O is frozen until the peer is fenced.
    ResourceAndStonith = 2,
}

impl FencingPolicy {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DontCare => "dont-care",
            Self::ResourceOnly => "resource-only",
            Self::ResourceAndStonith => "resource-and-stonith",
        }
    }
}

impl std::str::FromStr for FencingPolicy {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        [Self::DontCare, Self::ResourceOnly, Self::ResourceAndStonith]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// Resource option `on-no-data-accessible` (states spec 16.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnNoDataAccessible {
    /// Requests fail.
    #[default]
    IoError,
    /// Requests wait until there are data again.
    SuspendIo,
}

/// Net options the rules read; absent while there is no network configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct NetworkContext {
    /// `allow-two-primaries`.
    pub allow_two_primaries: bool,
    /// Whether `verify-alg` is set.
    pub has_verify_algorithm: bool,
}

/// The disk states remembered when a disk was attached while connected (`new_state_tmp`, states spec 13.1 step 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RememberedDisks {
    /// The state the own disk would have had.
    pub disk: DiskState,
    /// The state of the peer's disk recorded with it.
    pub peer_disk: DiskState,
}

/// What the rules for one volume read besides its old and new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Context {
    /// The state of the own disk as stored now, which decides whether its options and metadata can be used
    /// (`get_ldev`): the options from Inconsistent upwards, the metadata from Negotiating.
    pub present_disk: DiskState,
    /// Disk option `fencing` of this volume, whatever the disk's state; the rules use [`Context::fencing_in_force`].
    pub fencing: FencingPolicy,
    /// Resource option `on-no-data-accessible`.
    pub on_no_data: OnNoDataAccessible,
    /// The generation applications have seen last (`ed_uuid`).
    pub effective_data: GenerationId,
    /// The current identifier in the metadata.
    pub metadata_current: GenerationId,
    /// Set while the own disk is Negotiating.
    pub remembered: Option<RememberedDisks>,
    /// The net options, if there is a network configuration.
    pub network: Option<NetworkContext>,
    /// The highest `peer` over all volumes of the resource, as stored now.
    pub highest_peer: Role,
    /// How many have the device open.
    pub open_count: u32,
    /// The agreed protocol version.
    pub agreed_protocol: u32,
    /// Own parameters were sent and the handshake is not finished (`STATE_SENT`): nothing but the connection may
    /// change.
    pub state_sent: bool,
    /// A resync that needs no command is about to begin, that of the new part of a device: no other one may come before it.
    pub resync_due: bool,
}

impl Context {
    /// A volume of a resource with nothing configured.
    pub const INITIAL: Self = Self {
        present_disk: DiskState::Diskless,
        fencing: FencingPolicy::DontCare,
        on_no_data: OnNoDataAccessible::IoError,
        effective_data: GenerationId::NONE,
        metadata_current: GenerationId::NONE,
        remembered: None,
        network: None,
        highest_peer: Role::Unknown,
        open_count: 0,
        agreed_protocol: 0,
        state_sent: false,
        resync_due: false,
    };

    /// The fencing policy as the rules see it: `dont-care` without a usable disk.
    pub fn fencing_in_force(&self) -> FencingPolicy {
        if self.present_disk >= DiskState::Inconsistent { self.fencing } else { FencingPolicy::DontCare }
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::INITIAL
    }
}
