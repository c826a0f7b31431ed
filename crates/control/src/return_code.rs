//! The numbers a command ends with, their texts and the exit status `drbdsetup` makes of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit status of everything that is neither success nor a refusal with its own number.
const EXIT_OTHER: i32 = 20;
/// Exit status of a configuration error.
const EXIT_CONFIGURATION_ERROR: i32 = 10;
/// Exit status of a refused state change without a status of its own.
const EXIT_STATE_CHANGE_REFUSED: i32 = 11;

macro_rules! return_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal $text:literal,)+) => {
        /// The result of a command, with DRBD's number and text (states spec 3.8 and 19.2, command line spec 11).
        ///
        /// Positive numbers up to 4 are successes, 0 and below are refused state changes, 101 is success of a
        /// configuration command and everything above it a configuration error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(into = "i32", try_from = "i32")]
        #[repr(i32)]
        pub enum ReturnCode {
            $($(#[$doc])* $variant = $number,)+
        }

        impl ReturnCode {
            /// Every code, ascending by the groups of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The text `drbdsetup` prints. Some end in a newline of their own.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

return_codes! {
    /// Nothing to ask the peer about any more; counts as success.
    ClusterWideNotNeeded = 4 "",
    /// The peer agreed.
    ClusterWideSuccess = 3 "",
    /// The state was what was asked for already.
    NothingToDo = 2 "",
    /// Done.
    Success = 1 "",
    /// A refusal without a reason.
    UnknownError = 0 "unknown error.",
    /// Two primaries without `allow-two-primaries`.
    TwoPrimaries = -1 "Multiple primaries not allowed by config",
    /// There would be no UpToDate data.
    NoUpToDateDisk = -2 "Need access to UpToDate data",
    /// A resync needs a local disk.
    NoLocalDisk = -4 "Can not resync without local disk",
    /// A resync needs the peer's disk.
    NoRemoteDisk = -5 "Can not resync without remote disk",
    /// A connected node does not become Outdated.
    ConnectedOutdates = -6 "Refusing to be Outdated while Connected",
    /// Fencing: the peer has to be outdated first.
    PrimaryNop = -7 "Refusing to be Primary while peer is not outdated",
    /// A resync or verify is running.
    ResyncRunning = -8 "Can not start OV/resync since it is already active",
    /// There is no connection to cut.
    AlreadyStandalone = -9 "Can not disconnect a StandAlone device",
    /// The peer refused.
    RefusedByPeer = -10 "State change was refused by peer node",
    /// The operation needs a disk.
    IsDiskless = -11 "Device is diskless, the requested operation requires a disk",
    /// The block device is open.
    DeviceInUse = -12 "Device is held open by someone",
    /// There are no addresses.
    NoNetConfig = -13 "Have no net/connection configuration",
    /// `verify-alg` is not set.
    NoVerifyAlg = -14 "Need a verify algorithm to start online verify",
    /// The operation needs a connection.
    NeedConnection = -15 "Need a connection to start verify or resync",
    /// Inconsistent data cannot become Outdated.
    LowerThanOutdated = -16 "Disk state is lower than outdated",
    /// The agreed protocol version lacks the operation.
    NotSupported = -17 "Peer does not support protocol",
    /// Another state change has to finish first.
    InTransientState = -18 "In transient state, retry after next state change",
    /// Both nodes changed the state at once.
    ConcurrentStateChange = -19 "Concurrent state changes detected and aborted",
    /// Another volume is Primary on the peer.
    OtherVolumePeerPrimary = -20 "Other vol primary on peer not allowed by config",
    /// A graceful outdate needs a connection.
    OutdateWithoutConnection = -21 "Need a connection for a graceful disconnect/outdate peer",
    /// Success of a configuration command.
    NoError = 101 "No further Information available.",
    /// The local address is used by another connection.
    LocalAddress = 102 "Local address(port) already in use.",
    /// The peer's address is used by another connection.
    PeerAddress = 103 "Remote address(port) already in use.",
    /// The backing device cannot be opened.
    OpenDisk = 104 "Can not open backing device.",
    /// The metadata device cannot be opened.
    OpenMetadataDisk = 105 "Can not open meta device.",
    /// The backing device is neither a block device nor a regular file.
    DiskNotBlockDevice = 107 "Lower device is not a block device.",
    /// The metadata device is neither a block device nor a regular file.
    MetadataNotBlockDevice = 108 "Meta device is not a block device.",
    /// The backing device is too small.
    DiskTooSmall = 111 "Low.dev. smaller than requested DRBD-dev. size.",
    /// The metadata device is too small.
    MetadataDiskTooSmall = 112 "Meta device too small.",
    /// Somebody else holds the backing device.
    DiskClaimed = 114 "Lower device is already claimed. This usually means it is mounted.",
    /// Somebody else holds the metadata device.
    MetadataDiskClaimed = 115 "Meta device is already claimed. This usually means it is mounted.",
    /// The metadata index does not fit the devices.
    MetadataIndexInvalid = 116 "Lower device / meta device / index combination invalid.",
    /// The metadata could not be read or written.
    IoMetadataDisk = 118 "IO error(s) occurred during initial access to meta-data.\n",
    /// There are no metadata.
    MetadataInvalid = 119 "No valid meta-data signature found.\n\n\t==> Use 'drbdadm create-md res' to initialize meta-data area. <==\n",
    /// `cram-hmac-alg` is not available.
    AuthAlg = 120 "The 'cram-hmac-alg' you specified is not known in the kernel. (Maybe you need to modprobe it, or modprobe hmac?)",
    /// `cram-hmac-alg` is no digest.
    AuthAlgNoDigest = 121 "The 'cram-hmac-alg' you specified is not a digest.",
    /// Out of memory.
    NoMemory = 122 "kmalloc() failed. Out of memory?",
    /// A Primary does not discard its data.
    DiscardImpossible = 123 "--discard-my-data not allowed when primary.",
    /// There is a disk already.
    DiskConfigured = 124 "Device is attached to a disk (use detach first)",
    /// There is a connection already.
    NetConfigured = 125 "Device has a net-config (use disconnect first)",
    /// A request the daemon does not understand.
    MandatoryTag = 126 "UnknownMandatoryTag",
    /// No such minor.
    MinorInvalid = 127 "Device minor not allocated",
    /// The command was interrupted.
    Interrupted = 129 "Interrupted by Signal",
    /// Resize during a resync.
    ResizeResync = 130 "Resize not allowed during resync.",
    /// Resize without a Primary.
    NoPrimary = 131 "Need one Primary node to resize.",
    /// `resync-after` names no minor.
    ResyncAfter = 132 "The resync-after minor number is invalid",
    /// `resync-after` leads back to the device.
    ResyncAfterCycle = 133 "This would cause a resync-after dependency cycle",
    /// `pause-sync` twice.
    PauseIsSet = 134 "Sync-pause flag is already set",
    /// `resume-sync` twice.
    PauseIsClear = 135 "Sync-pause flag is already cleared",
    /// The daemon does not know the request.
    PacketNumber = 137 "Kernel does not know how to handle your request.\nMaybe API_VERSION mismatch?",
    /// The operation needs a disk.
    NoDisk = 138 "Device does not have a disk-config",
    /// Two primaries need protocol C.
    NotProtocolC = 139 "Protocol C required",
    /// Out of memory for the bitmap.
    NoMemoryBitmap = 140 "vmalloc() failed. Out of memory?",
    /// `data-integrity-alg` is not available.
    IntegrityAlg = 141 "The 'data-integrity-alg' you specified is not known in the kernel. (Maybe you need to modprobe it, or modprobe hmac?)",
    /// `data-integrity-alg` is no digest.
    IntegrityAlgNoDigest = 142 "The 'data-integrity-alg' you specified is not a digest.",
    /// `cpu-mask` does not parse.
    CpuMaskParse = 143 "Invalid cpu-mask.",
    /// `csums-alg` is not available.
    CsumsAlg = 144 "CSUMSAlgNotAvail",
    /// `csums-alg` is no digest.
    CsumsAlgNoDigest = 145 "CSUMSAlgNotDigest",
    /// `verify-alg` is not available.
    VerifyAlg = 146 "VERIFYAlgNotAvail",
    /// `verify-alg` is no digest.
    VerifyAlgNoDigest = 147 "VERIFYAlgNotDigest",
    /// `csums-alg` is in use.
    CsumsResyncRunning = 148 "Can not change csums-alg while resync is in progress",
    /// `verify-alg` is in use.
    VerifyRunning = 149 "Can not change verify-alg while online verify runs",
    /// The disk holds other data than those in use.
    DataNotCurrent = 150 "Can only attach to the data we lost last (see kernel log).",
    /// The operation needs StandAlone.
    Connected = 151 "Need to be StandAlone",
    /// Not permitted.
    Permission = 152 "Permission denied. CAP_SYS_ADMIN necessary",
    /// `--assume-clean` needs a newer peer.
    NeedProtocol93 = 153 "Protocol version 93 required to use --assume-clean",
    /// Fencing with STONITH needs protocol B or C.
    StonithAndProtocolA = 154 "Fencing policy resource-and-stonith only with prot B or C allowed",
    /// `pull-ahead` needs protocol A.
    CongestionNotProtocolA = 155 "on-congestion policy pull-ahead only with prot A allowed",
    /// The pause has another cause: `resync-after`.
    PauseIsClearDependency = 156 "Sync-pause flag is already cleared.\nNote: Resync pause caused by a local resync-after dependency.",
    /// The pause has another cause: the peer.
    PauseIsClearPeer = 157 "Sync-pause flag is already cleared.\nNote: Resync pause caused by the peer node.",
    /// No such resource.
    ResourceNotKnown = 158 "Unknown resource",
    /// The resource still has volumes.
    ResourceInUse = 159 "Resource still in use (delete all minors first)",
    /// The minor still has a disk or a role.
    MinorConfigured = 160 "Minor still configured (down it first)",
    /// The minor or volume number is taken.
    MinorOrVolumeExists = 161 "Minor or volume exists already (delete it first)",
    /// The request makes no sense.
    InvalidRequest = 162 "Invalid configuration request",
    /// The peer is too old for the change.
    NeedProtocol100 = 163 "Prot version 100 required in order to change\nthese network options while connected",
    /// Both nodes are Primary.
    NeedAllowTwoPrimaries = 164 "Can not clear allow_two_primaries as long as\nthere a primaries on both sides",
    /// The activity log has to be applied first.
    MetadataUnclean = 165 "Unclean meta-data found.\nYou need to 'drbdadm apply-al res'\n",
    /// A change of the metadata layout needs the peer.
    MetadataLayoutConnected = 166 "DRBD need to be connected for online MD layout change\n",
    /// The activity log would be too big.
    MetadataLayoutTooBig = 167 "Resulting AL area too big\n",
    /// The activity log would be too small.
    MetadataLayoutTooSmall = 168 "Resulting AL are too small\n",
    /// The activity log would not fit.
    MetadataLayoutNoFit = 169 "Resulting AL does not fit into available meta data space\n",
    /// The device would shrink without being told to.
    ImplicitShrink = 170 "Implicit device shrinking not allowed. See kernel log.\n",
}

impl ReturnCode {
    /// DRBD's number.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The code with this number, if there is one.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.number() == number)
    }

    /// Whether the command did what it was asked to.
    pub const fn is_success(self) -> bool {
        matches!(self.number(), 1..=4 | 101)
    }

    /// The exit status of `drbdsetup` (`print_config_error`).
    pub const fn exit_status(self) -> i32 {
        match self {
            code if code.is_success() => 0,
            Self::NoUpToDateDisk => 17,
            Self::LowerThanOutdated => 5,
            Self::NoLocalDisk => 16,
            code if code.number() > 101 => EXIT_CONFIGURATION_ERROR,
            code if code.number() <= 0 => EXIT_STATE_CHANGE_REFUSED,
            _ => EXIT_OTHER,
        }
    }

    /// What `drbdsetup` prints on standard error for `object`, without the final newline; `None` for success.
    pub fn message(self, object: &str) -> Option<String> {
        let number = self.number();
        match self {
            code if code.is_success() => None,
            Self::UnknownError => Some(format!("{object}: State change failed: (0){}", self.text())),
            _ if number < 0 => Some(format!("{object}: State change failed: ({number}) {}", self.text())),
            _ => Some(format!("{object}: Failure: ({number}) {}", self.text())),
        }
    }
}

impl fmt::Display for ReturnCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "({}) {}", self.number(), self.text().trim_end())
    }
}

impl From<ReturnCode> for i32 {
    fn from(code: ReturnCode) -> Self {
        code.number()
    }
}

impl TryFrom<i32> for ReturnCode {
    type Error = String;

    fn try_from(number: i32) -> Result<Self, String> {
        Self::from_number(number).ok_or_else(|| format!("no such return code: {number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_scripts_look_for() {
        let expected = [
            (ReturnCode::Success, 0),
            (ReturnCode::NothingToDo, 0),
            (ReturnCode::NoError, 0),
            (ReturnCode::UnknownError, 11),
            (ReturnCode::TwoPrimaries, 11),
            (ReturnCode::NoUpToDateDisk, 17),
            (ReturnCode::NoLocalDisk, 16),
            (ReturnCode::LowerThanOutdated, 5),
            (ReturnCode::MinorInvalid, 10),
            (ReturnCode::ImplicitShrink, 10),
        ];
        for (code, status) in expected {
            assert_eq!(code.exit_status(), status, "{code:?}");
        }
    }

    #[test]
    fn numbers_lead_back_and_appear_once() {
        for code in ReturnCode::ALL {
            assert_eq!(ReturnCode::from_number(code.number()), Some(*code));
        }
        assert_eq!(ReturnCode::from_number(-3), None);
        assert_eq!(ReturnCode::from_number(106), None);
    }

    #[test]
    fn messages_have_drbds_form() {
        assert_eq!(
            ReturnCode::MinorInvalid.message("0").as_deref(),
            Some("0: Failure: (127) Device minor not allocated")
        );
        assert_eq!(
            ReturnCode::NoUpToDateDisk.message("r0").as_deref(),
            Some("r0: State change failed: (-2) Need access to UpToDate data")
        );
        assert_eq!(
            ReturnCode::UnknownError.message("0").as_deref(),
            Some("0: State change failed: (0)unknown error.")
        );
        assert_eq!(ReturnCode::Success.message("0"), None);
    }
}
