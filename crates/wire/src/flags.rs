//! Sets of flags: named bits plus whatever else the peer sent, which is kept and ignored.

use std::fmt;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($inner:ty) { $($(#[$flag_doc:meta])* $flag:ident = $bit:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $inner);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self($bit);)+
            /// No flag.
            pub const NONE: Self = Self(0);

            /// Whether all of `other` are set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The flags of both.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The flags both have.
            #[must_use]
            pub const fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }

            /// These flags, and `other` too if `condition` holds.
            #[must_use]
            pub const fn with(self, other: Self, condition: bool) -> Self {
                if condition { self.union(other) } else { self }
            }

            /// These flags without those of `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The names of the flags that have one, from the lowest bit.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                [$((Self::$flag, $text)),+].into_iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, text)| text)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl std::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                self.0 |= other.0;
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({:#x}", stringify!($name), self.0)?;
                self.names().try_for_each(|name| write!(formatter, " {name}"))?;
                formatter.write_str(")")
            }
        }
    };
}

flags! {
    /// What udrbd nodes can do with each other beyond DRBD's features. Each announces it at the very end of
    /// P_CONNECTION_FEATURES, which is reserved there: a DRBD sends zeroes or nothing of this form, and does not look at it.
    Extensions(u32) {
        /// In a verify a result counts for all the blocks of its range, so ranges may be asked for.
        VERIFY_RANGES = 1 "VERIFY_RANGES",
    }
}

flags! {
    /// What both nodes can do beyond the version number (wire spec 6.1).
    Features(u32) {
        /// P_TRIM may be sent.
        TRIM = 1 "TRIM",
        /// P_RS_THIN_REQ and P_RS_DEALLOCATED may be sent.
        THIN_RESYNC = 2 "THIN_RESYNC",
        /// P_SIZES carries queue limits; discards up to 128 MiB; rule 41 of the comparison of identifiers.
        WRITE_SAME = 4 "WRITE_SAME",
        /// P_ZEROES may be sent, and P_TRIM means discard.
        WRITE_ZEROES = 8 "WRITE_ZEROES",
    }
}

impl Features {
    /// Everything DRBD 8.4.11 can do.
    pub const ALL: Self = Self(0xf);
}

/// DRBD's words for the agreed features: `0xf TRIM THIN_RESYNC WRITE_SAME WRITE_ZEROES.`, `0x0 none`.
impl fmt::Display for Features {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)?;
        if *self == Self::NONE {
            return formatter.write_str(" none");
        }
        self.names().try_for_each(|name| write!(formatter, " {name}"))?;
        formatter.write_str(".")
    }
}

flags! {
    /// What a write asks for (`dp_flags`, wire spec 8.1).
    DataFlags(u32) {
        /// Never sent, ignored.
        HARDBARRIER = 0x1 "HARDBARRIER",
        /// The request is synchronous: a hint.
        RW_SYNC = 0x2 "RW_SYNC",
        /// A resync is running: the range may be marked in sync when it is on both disks.
        MAY_SET_IN_SYNC = 0x4 "MAY_SET_IN_SYNC",
        /// Never sent, ignored.
        UNPLUG = 0x8 "UNPLUG",
        /// The data must be on stable storage when the write completes.
        FUA = 0x10 "FUA",
        /// The disk's cache must be flushed before the write.
        FLUSH = 0x20 "FLUSH",
        /// Discard; on P_ZEROES: may unmap.
        DISCARD = 0x40 "DISCARD",
        /// P_RECV_ACK is wanted.
        SEND_RECEIVE_ACK = 0x80 "SEND_RECEIVE_ACK",
        /// P_WRITE_ACK or P_RS_WRITE_ACK is wanted.
        SEND_WRITE_ACK = 0x100 "SEND_WRITE_ACK",
        /// P_WSAME, which is not supported.
        WSAME = 0x200 "WSAME",
        /// P_ZEROES.
        ZEROES = 0x400 "ZEROES",
    }
}

flags! {
    /// What goes with a set of generation identifiers (P_UUIDS, wire spec 5).
    UuidFlags(u64) {
        /// The sender wants to give up its changes.
        DISCARD_MY_DATA = 1 "DISCARD_MY_DATA",
        /// The sender was Primary when it crashed.
        CRASHED_PRIMARY = 2 "CRASHED_PRIMARY",
        /// The sender's disk, Negotiating, is really Inconsistent.
        INCONSISTENT = 4 "INCONSISTENT",
        /// Skip the initial sync: both disks are equal.
        SKIP_INITIAL_SYNC = 8 "SKIP_INITIAL_SYNC",
    }
}

flags! {
    /// What goes with a change of size (P_SIZES `dds_flags`, wire spec 5).
    SizesFlags(u16) {
        /// Do it even without knowing that the peer can.
        FORCED = 1 "FORCED",
        /// The new part is not to be resynced.
        NO_RESYNC = 2 "NO_RESYNC",
    }
}

flags! {
    /// What a node wants of this connection (P_PROTOCOL `conn_flags`, wire spec 5).
    ConnectionFlags(u32) {
        /// The sender wants to give up its changes.
        DISCARD_MY_DATA = 1 "DISCARD_MY_DATA",
        /// Decide about a resync, say so, and drop the connection.
        DRY_RUN = 2 "DRY_RUN",
    }
}
