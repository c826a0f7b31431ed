//! What a target has to know about a source that may pull ahead (io spec 17).
//!
//! DRBD 8.4.11 clears the bits of a block when the target says that it has it, also where it pulled ahead and wrote the block
//! anew before it heard that: the bit was set already, so it announced nothing, and afterwards no bit tells that the copies
//! differ. So a target that finds itself Behind sets the bits again of all blocks it may have spoken of too late, and fetches
//! them once more. What the peer sends on the data socket after it has heard of a block proves that it was not Ahead then: before
//! a resync ends the target asks for one more block, as a read.

use udrbd_units::SectorRange;
use udrbd_wire::{BlockId, BlockRequest, Packet};

use super::Finish;
use crate::Engine;
use crate::interface::Protocol;

/// What the names of these reads begin with: no request has one of them.
const PROOF: u64 = 0xfffe << 48;
/// The bits of the name that tell one from another.
const PROOF_NUMBER: u64 = (1 << 48) - 1;
/// The bytes it asks for at the most.
const PROOF_BYTES: u32 = 4096;

impl Engine {
    /// Whether the peer may pull ahead of this node at all.
    fn may_fall_behind(&self) -> bool {
        let asynchronous = self.connection.options.as_ref().is_some_and(|it| it.protocol == Protocol::A);
        asynchronous && self.connection.dialect.version >= 96
    }

    /// Bits of a range have been cleared here, and the peer is about to hear of it.
    pub(crate) fn note_told(&mut self, index: usize, range: SectorRange) {
        use udrbd_units::ConnectionState::{PausedSyncT, SyncTarget};
        if !matches!(self.volumes[index].state.connection, SyncTarget | PausedSyncT)
            || !self.may_fall_behind()
        {
            return;
        }
        let told = &mut self.volumes[index].resync.told;
        match told.last_mut() {
            // They come in order, mostly.
            Some(last) if last.end() == range.start && last.bytes.checked_add(range.bytes).is_some() => {
                last.bytes += range.bytes;
            }
            _ => told.push(range),
        }
    }

    /// The peer is Ahead, nobody knows since when.
    pub(crate) fn doubt_what_was_told(&mut self, index: usize) {
        for range in std::mem::take(&mut self.volumes[index].resync.told) {
            self.volumes[index].set_out_of_sync(range);
        }
    }

    /// All blocks are here, and the peer has heard of them: asks for what shows that it was not Ahead then. Returns whether
    /// that is needed.
    pub(super) fn ask_for_proof(&mut self, index: usize) -> bool {
        let Some(range) = self.volumes[index].resync.told.first() else { return false };
        let name = PROOF | (self.connection.pings_sent & PROOF_NUMBER);
        let request = BlockRequest::new(range.start, BlockId(name), range.bytes.min(PROOF_BYTES));
        self.volumes[index].resync.finishing = Some(Finish::Proof(name));
        self.send_on_data(index, Packet::DataRequest(request));
        true
    }

    /// An answer to a read has come. (Without data the peer's disk has failed, which it tells in other ways.) Returns whether
    /// it was asked for here; one that was asked for before this node was Behind proves nothing any more.
    pub(crate) fn proof_received(&mut self, index: usize, name: BlockId) -> bool {
        let resync = &mut self.volumes[index].resync;
        if resync.finishing == Some(Finish::Proof(name.0)) {
            resync.told.clear();
            resync.finishing = Some(Finish::Proven);
            self.attention = true;
        }
        name.0 & !PROOF_NUMBER == PROOF
    }
}
