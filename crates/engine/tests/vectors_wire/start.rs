//! The state a captured node started in.

use std::collections::HashSet;

use udrbd_engine::interface::{AttachSettings, DiskOptions, DiskProperties, OnIoError};
use udrbd_metadata::{Flags, Layout, Placement, Striping, Superblock, activity_log};
use udrbd_units::{GenerationId, Sector, SectorRange, VolumeNumber};
use udrbd_wire::{DigestValue, Packet};

use crate::commands;
use crate::node::Node;
use crate::script::{Script, What};

/// The metadata of one node, as a `.state` file shows them.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) device_sectors: u64,
    pub(crate) generations: [GenerationId; 4],
    /// consistent, wasuptodate, primaryind, connectedind, fullsync, peeroutdated, crashedprimary
    pub(crate) flags: [bool; 7],
    la_size: u64,
    la_peer_max_bio_size: u32,
    words: Vec<u64>,
}

/// The flags in the order in which `drbdmeta get-gi` shows them.
const FLAGS: [Flags; 7] = [
    Flags::CONSISTENT,
    Flags::WAS_UP_TO_DATE,
    Flags::PRIMARY_IND,
    Flags::CONNECTED_IND,
    Flags::FULL_SYNC,
    Flags::PEER_OUT_DATED,
    Flags::CRASHED_PRIMARY,
];

impl Metadata {
    /// Reads the section "metadata of NODE WHEN", NODE being followed by the number of a volume other than 0.
    pub(crate) fn read(state: &str, node: usize, volume: VolumeNumber, when: &str) -> Self {
        let name = ["A", "B"][node];
        let number = if volume.0 == 0 { String::new() } else { volume.to_string() };
        let title = format!("== metadata of {name}{number} {when}");
        let mut lines = state.lines().skip_while(|line| !line.starts_with(&title)).skip(1);
        let mut metadata = Self::default();
        let mut in_bitmap = false;
        for line in lines.by_ref().take_while(|line| !line.starts_with("== ")) {
            let line = line.trim().trim_end_matches(';');
            let number = |prefix: &str| line.strip_prefix(prefix)?.trim().parse::<u64>().ok();
            if let Some(offset) = number("# md_offset ") {
                metadata.device_sectors = (offset + 4096) / 512;
            } else if let Some(sectors) = number("la-size-sect ") {
                metadata.la_size = sectors;
            } else if let Some(bytes) = number("la-peer-max-bio-size ") {
                metadata.la_peer_max_bio_size = bytes as u32;
            } else if line.starts_with("# get-gi") {
                metadata.get_gi(line.rsplit(' ').next().unwrap());
                if line.contains("as left by the kernel") {
                    break;
                }
            } else if line == "bm {" {
                in_bitmap = true;
            } else if line == "}" {
                in_bitmap = false;
            } else if in_bitmap && !line.starts_with('#') {
                metadata.bitmap_line(line);
            }
        }
        metadata
    }

    fn get_gi(&mut self, text: &str) {
        let fields: Vec<&str> = text.split(':').collect();
        for (generation, field) in self.generations.iter_mut().zip(&fields) {
            *generation = GenerationId(u64::from_str_radix(field, 16).unwrap());
        }
        for (flag, field) in self.flags.iter_mut().zip(&fields[4..]) {
            *flag = *field == "1";
        }
    }

    fn bitmap_line(&mut self, line: &str) {
        let word = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap();
        match line.split_once(" times ") {
            Some((count, value)) => {
                let count: usize = count.trim().parse().unwrap();
                self.words.extend(std::iter::repeat_n(word(value), count));
            }
            None => self.words.extend(line.split(';').map(str::trim).filter(|w| !w.is_empty()).map(word)),
        }
    }

    fn layout(&self) -> Layout {
        Layout::new(Placement::Internal, Sector(self.device_sectors), Striping::DEFAULT).unwrap()
    }

    /// Puts them on a node's disk.
    pub(crate) fn write(&self, node: &mut Node, volume: VolumeNumber) {
        let layout = self.layout();
        let mut superblock = Superblock::fresh(&layout, self.la_peer_max_bio_size);
        superblock.la_size_sect = Sector(self.la_size);
        let [current, bitmap, younger, older] = self.generations;
        (superblock.current, superblock.bitmap) = (current, bitmap);
        superblock.history = [younger, older];
        superblock.flags = Flags::AL_CLEAN;
        for (flag, is_set) in FLAGS.iter().zip(self.flags) {
            superblock.flags.set(*flag, is_set);
        }
        node.store(volume, layout.superblock.0, &superblock.encode());
        for block in 0..8 {
            node.store(volume, layout.al_start().0 + block * 8, &activity_log::initialized_block());
        }
        let bitmap: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        node.store(volume, layout.bitmap_start().0, &bitmap);
    }

    /// The generations and flags on a node's disk.
    pub(crate) fn on_disk(&self, node: &Node, volume: VolumeNumber) -> ([GenerationId; 4], [bool; 7]) {
        let block = node.load(volume, self.layout().superblock.0, 4096);
        let found = Superblock::decode(block.as_slice().try_into().unwrap());
        let [younger, older] = found.history;
        ([found.current, found.bitmap, younger, older], FLAGS.map(|flag| found.flags.contains(flag)))
    }

    /// What the node is attached with. Options that no command shows are those of the first packets the node sent.
    pub(crate) fn attach_settings(
        &self,
        script: &Script,
        node: usize,
        volume: VolumeNumber,
    ) -> AttachSettings {
        let sent = || script.sent_by(node).filter(|(_, received)| received.incoming.volume == volume);
        let mut options = DiskOptions { on_io_error: OnIoError::PassOn, ..DiskOptions::default() };
        let mut properties = DiskProperties {
            backing_size: Sector(self.device_sectors),
            metadata_size: Sector(self.device_sectors),
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            max_request_bytes: 1 << 20,
            volatile_cache: true,
            discard_granularity_bytes: 512,
        };
        let sizes = sent().find_map(|(_, received)| match &received.packet {
            // Without a disk a node tells of itself as a device.
            Packet::Sizes(sizes) if sizes.disk_size.0 > 0 => Some(*sizes),
            _ => None,
        });
        if let Some(sizes) = sizes {
            options.size_sectors = sizes.user_size.0;
            if let Some(limits) = sizes.queue_limits {
                properties.physical_block_bytes = limits.physical_block_size;
                properties.logical_block_bytes = limits.logical_block_size;
                properties.discard_granularity_bytes = if limits.discard_enabled { 512 } else { 0 };
            }
        }
        let parameters = sent().find_map(|(_, received)| match &received.packet {
            Packet::SyncParameters(parameters) => Some(parameters.clone()),
            _ => None,
        });
        if let Some(parameters) = parameters {
            options.resync_rate_kib = parameters.resync_rate;
            if let Some(controller) = parameters.controller {
                options.c_plan_ahead = controller.plan_ahead;
                options.c_delay_target = controller.delay_target;
                options.c_fill_target_sectors = controller.fill_target;
                options.c_max_rate_kib = controller.max_rate;
            }
        }
        let thin = sent().find_map(|(_, received)| match &received.packet {
            Packet::ResyncThinRequest(request) => Some(request.size),
            _ => None,
        });
        options.rs_discard_granularity_bytes = thin.unwrap_or(0);
        AttachSettings { placement: Placement::Internal, properties, options, kept: None }
    }
}

/// The sectors of a node's disk that fail in a capture.
pub(crate) fn failing_sectors(name: &str, node: usize) -> Option<SectorRange> {
    (name.starts_with("26") && node == 1).then(|| SectorRange::new(Sector(2048), 512 * 512))
}

/// What the node's disk must have held at the start: what it sent of sectors that nobody had written before.
pub(crate) fn prefill(script: &Script, me: usize, node: &mut Node) {
    let mut known = HashSet::new();
    for item in &script.items {
        match &item.what {
            What::Command(text) if text.starts_with("wio /dev/") && commands::node_of(text) == Some(me) => {
                for step in commands::steps(text).iter().filter(|step| step.operation.is_write()) {
                    let volume = commands::volume_of(text);
                    let sectors = step.offset / 512..(step.offset + u64::from(step.bytes)) / 512;
                    known.extend(sectors.map(|sector| (volume, sector)));
                }
            }
            What::Packet { connection, from, index } => {
                let received = &script.packets[*connection][*from][*index];
                let sectors = received.payload.len() as u64 / 512;
                let volume = received.incoming.volume;
                match &received.packet {
                    Packet::Data(write) if *from != me => {
                        known.extend(
                            (write.sector.0..write.sector.0 + sectors).map(|sector| (volume, sector)),
                        );
                    }
                    Packet::ResyncDataReply(reply) | Packet::DataReply(reply) => {
                        for (offset, bytes) in received.payload.chunks(512).enumerate() {
                            let sector = reply.sector.0 + offset as u64;
                            if known.insert((volume, sector)) && *from == me {
                                node.store(volume, sector, bytes);
                            }
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// Some sectors were overwritten behind the node's back, nobody knows with what. Their digests are known.
pub(crate) fn foreign_digests(script: &Script, me: usize, node: &mut Node) {
    if !script.says("corrupting B's backing disk") || me == 0 {
        return;
    }
    for (_, received) in script.sent_by(me) {
        if let Packet::VerifyReply(block) = received.packet {
            let is_foreign = (80..88).contains(&block.sector.0) || (1024..1040).contains(&block.sector.0);
            let digest = DigestValue::from_bytes(&received.digest).filter(|_| is_foreign);
            node.digests.extend(digest.map(|digest| (block.sector.0, digest)));
        }
    }
}
