//! What the peer says it is and has: protocol, resync settings, sizes, identifiers (states spec 6; wire spec 6).

use udrbd_metadata::layout::device_size;
use udrbd_units::{ConnectionState, DiskState, Role, Sector};
use udrbd_wire as wire;

use crate::Engine;
use crate::connection::Stage;
use crate::interface::{AfterSplitBrain, Level, NetOptions, Protocol};
use crate::state::StateRequest;
use crate::volume::{PeerGenerations, uuid_flag};

/// What becomes of the connection after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on.
    Good,
    /// It is dropped and tried again.
    Reconnect,
    /// It is given up.
    StandAlone,
}

const fn own_protocol(protocol: wire::ReplicationProtocol) -> Protocol {
    match protocol {
        wire::ReplicationProtocol::A => Protocol::A,
        wire::ReplicationProtocol::B => Protocol::B,
        wire::ReplicationProtocol::C => Protocol::C,
    }
}

const fn own_policy(policy: wire::AfterSplitBrain) -> AfterSplitBrain {
    match policy.mirrored() {
        wire::AfterSplitBrain::Disconnect => AfterSplitBrain::Disconnect,
        wire::AfterSplitBrain::DiscardYoungerPrimary => AfterSplitBrain::DiscardYoungerPrimary,
        wire::AfterSplitBrain::DiscardOlderPrimary => AfterSplitBrain::DiscardOlderPrimary,
        wire::AfterSplitBrain::DiscardZeroChanges => AfterSplitBrain::DiscardZeroChanges,
        wire::AfterSplitBrain::DiscardLeastChanges => AfterSplitBrain::DiscardLeastChanges,
        wire::AfterSplitBrain::DiscardLocal => AfterSplitBrain::DiscardLocal,
        wire::AfterSplitBrain::DiscardRemote => AfterSplitBrain::DiscardRemote,
        wire::AfterSplitBrain::Consensus => AfterSplitBrain::Consensus,
        wire::AfterSplitBrain::DiscardSecondary => AfterSplitBrain::DiscardSecondary,
        wire::AfterSplitBrain::CallPrimaryLost => AfterSplitBrain::CallPriLostAfterSb,
        wire::AfterSplitBrain::Violently => AfterSplitBrain::ViolentlyAsZeroPrimaries,
    }
}

impl Engine {
    /// P_PROTOCOL, P_PROTOCOL_UPDATE (states spec 6.1).
    pub(crate) fn protocol_received(
        &mut self,
        parameters: &wire::ProtocolParameters,
        update: bool,
    ) -> Verdict {
        let integrity = parameters.integrity.as_str().unwrap_or("").to_owned();
        if !update {
            self.connection.peer_dry_run = parameters.flags.contains(wire::ConnectionFlags::DRY_RUN);
            let Some(options) = &self.connection.options else { return Verdict::StandAlone };
            if let Some(name) = difference(options, parameters, &integrity) {
                self.say(Level::Error, None, format!("incompatible {name} settings"));
                return Verdict::StandAlone;
            }
        }
        let algorithm = if integrity.is_empty() {
            None
        } else {
            match integrity.parse::<wire::DigestAlgorithm>() {
                Ok(algorithm) => Some(algorithm),
                Err(_) => {
                    let text = format!("peer data-integrity-alg {integrity} not supported");
                    self.say(Level::Error, None, text);
                    return Verdict::StandAlone;
                }
            }
        };
        let integrity_changes = self.connection.peer_integrity != algorithm;
        self.connection.peer_integrity = algorithm;
        if update && let Some(options) = &mut self.connection.options {
            options.protocol = own_protocol(parameters.protocol);
            options.after_sb_0pri = own_policy(parameters.after_split_brain_0);
            options.after_sb_1pri = own_policy(parameters.after_split_brain_1);
            options.after_sb_2pri = own_policy(parameters.after_split_brain_2);
            options.allow_two_primaries = parameters.two_primaries;
            if integrity_changes {
                let name = if integrity.is_empty() { "(none)".to_owned() } else { integrity };
                self.say(Level::Info, None, format!("peer data-integrity-alg: {name}"));
            }
        }
        Verdict::Good
    }

    /// P_SYNC_PARAM, P_SYNC_PARAM89 (wire spec 6.4).
    pub(crate) fn sync_parameters_received(
        &mut self,
        index: usize,
        received: &wire::SyncParameters,
    ) -> Verdict {
        let version = self.connection.dialect.version;
        let handshake = self.volumes[index].state.connection == ConnectionState::WFReportParams;
        let verify = received.verify_algorithm.as_str().unwrap_or("").to_owned();
        let checksum = received.checksum_algorithm.as_str().unwrap_or("").to_owned();
        let Some(options) = &mut self.connection.options else { return Verdict::Good };
        let mut lines = Vec::new();
        let mut verdict = Verdict::Good;
        for (since, name, own, peer) in [
            (88, "verify-alg", &mut options.verify_alg, verify),
            (89, "csums-alg", &mut options.csums_alg, checksum),
        ] {
            if version < since || *own == peer {
                continue;
            }
            if handshake {
                lines
                    .push((Level::Error, format!("Different {name} settings. me=\"{own}\" peer=\"{peer}\"")));
                verdict = Verdict::StandAlone;
                break;
            }
            lines.push((Level::Info, format!("using {name}: \"{peer}\"")));
            *own = peer;
        }
        for (level, line) in lines {
            self.say(level, Some(index), line);
        }
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.options.resync_rate_kib = received.resync_rate.max(1);
            if let Some(controller) = received.controller {
                disk.options.c_plan_ahead = controller.plan_ahead.min(300);
                disk.options.c_delay_target = controller.delay_target.clamp(1, 100);
                disk.options.c_fill_target_sectors = controller.fill_target;
                disk.options.c_max_rate_kib = controller.max_rate.max(250);
            }
        }
        verdict
    }

    /// P_SIZES (states spec 18.4).
    pub(crate) fn sizes_received(&mut self, index: usize, sizes: &wire::Sizes) -> Verdict {
        self.volumes[index].peer_size = sizes.disk_size;
        self.volumes[index].peer_max_request_bytes = sizes.max_bio_size;
        if !self.volumes[index].has_disk() && self.volumes[index].state.disk != DiskState::Negotiating {
            return self.diskless_sizes_received(index, sizes);
        }
        let state = self.volumes[index].state;
        let handshake = state.connection == ConnectionState::WFReportParams;
        // Where a disk is being attached on either node they decide as in the handshake.
        let attaching = state.disk == DiskState::Negotiating || state.peer_disk < DiskState::Inconsistent;
        let by_what_was_told = handshake || attaching || state.connection > ConnectionState::Connected;
        let current = self.volumes[index].size;
        let Some(disk) = &self.volumes[index].disk else { return Verdict::Good };
        let own_user = Sector(disk.options.size_sectors);
        // They decide at once, each by what both have told. Of a device that has grown since, or whose metadata
        // have not moved yet, the peer knows nothing (8.4.11 moves them then; the nodes have two sizes, and wait for the
        // bitmaps of each other for ever).
        let told = match self.volumes[index].told_size {
            Sector(0) => disk.layout.max_capacity(disk.properties.backing_size),
            told => told,
        };
        let own_max = if by_what_was_told { told } else { self.capacity_offered(index).unwrap_or(Sector(0)) };
        let Some(disk) = &self.volumes[index].disk else { return Verdict::Good };
        let last_agreed = disk.superblock.la_size_sect;
        self.warn_of_difference(index, "lower level device sizes", own_max, sizes.disk_size);
        self.warn_of_difference(index, "user requested size", own_user, sizes.user_size);
        let mut user = sizes.user_size;
        if handshake {
            user = match (own_user.0, user.0) {
                (0, peer) => Sector(peer),
                (own, 0) => Sector(own),
                (own, peer) => Sector(own.min(peer)),
            };
        }
        let found = device_size(own_max, sizes.disk_size, last_agreed, user);
        let peer_diskless = state.peer_disk == DiskState::Diskless;
        if found.size < current
            && state.disk >= DiskState::Outdated
            && (state.connection < ConnectionState::Connected || peer_diskless)
        {
            let text = format!("The peer's disk size is too small! ({} < {} sectors)", found.size, current);
            self.say(Level::Error, Some(index), text);
            return Verdict::StandAlone;
        }
        if user != own_user && !found.configured_too_large {
            self.say(
                Level::Info,
                Some(index),
                format!("Peer sets u_size to {user} sectors (old: {own_user})"),
            );
            if let Some(disk) = &mut self.volumes[index].disk {
                disk.options.size_sectors = user.0;
            }
        }
        if !by_what_was_told && self.move_for_peer(index, found.size, sizes) {
            return Verdict::Good;
        }
        let grew = found.size > current && current.0 > 0;
        if found.size != current {
            self.apply_size(index, found.size, sizes.flags.contains(wire::SizesFlags::NO_RESYNC));
        }
        self.answer_sizes(index, sizes, grew, false);
        Verdict::Good
    }

    fn warn_of_difference(&mut self, index: usize, what: &str, own: Sector, peer: Sector) {
        let difference = own.0.abs_diff(peer.0);
        if own.0 != 0 && peer.0 != 0 && (difference > own.0 / 8 || difference > peer.0 / 8) {
            let text = format!("Considerable difference in {what}: {own}s vs. {peer}s");
            self.say(Level::Warning, Some(index), text);
        }
    }

    fn diskless_sizes_received(&mut self, index: usize, sizes: &wire::Sizes) -> Verdict {
        let offers = [sizes.current_size, sizes.user_size, sizes.disk_size];
        let wanted = offers.into_iter().find(|size| size.0 != 0).unwrap_or(Sector(0));
        let own = self.volumes[index].size;
        if wanted.0 == 0 || wanted == own {
            return Verdict::Good;
        }
        if own.0 != 0 && sizes.disk_size.0 == 0 {
            let text = format!("Ignored diskless peer device size (peer:{wanted} != me:{own} sectors)!");
            self.say(Level::Warning, Some(index), text);
            return Verdict::Good;
        }
        if wanted > own && own.0 != 0 && sizes.current_size.0 == 0 {
            // That is what the peer's disk could hold, not what it serves (8.4.11 sends it so in a resize).
            return Verdict::Good;
        }
        if wanted < own && self.volumes[index].state.role == Role::Primary {
            let text =
                format!("The peer's device size is too small! ({wanted} < {own} sectors); demote me first!");
            self.say(Level::Error, Some(index), text);
            return Verdict::StandAlone;
        }
        self.set_size(index, wanted);
        Verdict::Good
    }

    /// P_UUIDS (states spec 6.3).
    pub(crate) fn uuids_received(&mut self, index: usize, uuids: &wire::Uuids) -> Verdict {
        if self.connection.stage != Stage::Established {
            return Verdict::Good;
        }
        let peer = PeerGenerations {
            current: uuids.current,
            bitmap: uuids.bitmap,
            history: uuids.history,
            set_bits: uuids.dirty_bits,
            flags: uuids.flags.0,
        };
        let volume = &mut self.volumes[index];
        volume.peer_generations = Some(peer);
        let state = volume.state;
        let primary = state.role == Role::Primary;
        let disk_usable = state.disk >= DiskState::Inconsistent;
        let unknown_peer =
            state.connection < ConnectionState::Connected || state.peer_disk == DiskState::Diskless;
        if unknown_peer && !disk_usable && primary && !volume.exposed.same_generation(peer.current) {
            let text = format!("Can only connect to data with current UUID={}", volume.exposed);
            self.say(Level::Error, Some(index), text);
            return Verdict::StandAlone;
        }
        if !disk_usable {
            let follows = primary || state.connection >= ConnectionState::Connected;
            if follows && self.volumes[index].exposed != peer.current {
                self.volumes[index].exposed = peer.current;
                if state.disk == DiskState::Negotiating {
                    self.log_generations(index, "receiver updated UUIDs to");
                } else {
                    let text = format!("receiver updated UUIDs to effective data uuid: {}", peer.current);
                    self.say(Level::Info, Some(index), text);
                }
            }
            return Verdict::Good;
        }
        let skip = peer.flags & uuid_flag::SKIP_INITIAL_SYNC != 0
            && state.connection == ConnectionState::Connected
            && self.connection.dialect.version >= 90
            && self
                .generations(index)
                .is_some_and(|set| set.current == udrbd_units::GenerationId::JUST_CREATED);
        if skip {
            self.skip_initial_sync(index, peer.current);
        }
        Verdict::Good
    }

    fn skip_initial_sync(&mut self, index: usize, current: udrbd_units::GenerationId) {
        let text = "Accepted new current UUID, preparing to skip initial sync".to_owned();
        self.say(Level::Info, Some(index), text);
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.bitmap.clear_all();
        }
        self.volumes[index].counters.out_of_sync_sectors = 0;
        self.write_changed_pages_before_superblock(index);
        let primary = self.is_primary(index);
        self.change_generations(index, |set| set.skip_initial_sync(current, primary));
        self.change_state(
            index,
            StateRequest { peer_disk: Some(DiskState::UpToDate), ..StateRequest::disk(DiskState::UpToDate) },
        );
        self.log_generations(index, "receiver updated UUIDs to");
    }
}

/// The first setting of P_PROTOCOL in which the nodes differ.
fn difference(
    options: &NetOptions,
    peer: &wire::ProtocolParameters,
    integrity: &str,
) -> Option<&'static str> {
    let checks = [
        (own_protocol(peer.protocol) == options.protocol, "protocol"),
        (own_policy(peer.after_split_brain_0) == options.after_sb_0pri, "after-sb-0pri"),
        (own_policy(peer.after_split_brain_1) == options.after_sb_1pri, "after-sb-1pri"),
        (own_policy(peer.after_split_brain_2) == options.after_sb_2pri, "after-sb-2pri"),
        (
            !(peer.flags.contains(wire::ConnectionFlags::DISCARD_MY_DATA) && options.discard_my_data),
            "discard-my-data",
        ),
        (peer.two_primaries == options.allow_two_primaries, "allow-two-primaries"),
        (integrity == options.data_integrity_alg, "data-integrity-alg"),
    ];
    checks.into_iter().find(|(same, _)| !same).map(|(_, name)| name)
}
