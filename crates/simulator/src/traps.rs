//! Faults that wait for a moment: a window of microseconds is met by what a node does in it, not by the clock.

use udrbd_wire::Packet;

use crate::disk::Change;
use crate::network::NodeId;
use crate::node::InFlight;
use crate::plan::{Moment, Operation};
use crate::world::{Due, World};

/// An operation that waits.
#[derive(Debug)]
pub(crate) struct Trap {
    /// Who is watched.
    pub(crate) node: NodeId,
    /// For what.
    pub(crate) moment: Moment,
    /// How often it still has to come.
    pub(crate) left: u32,
    /// How long after it the operation is due, nanoseconds.
    pub(crate) delay: u64,
    /// What is done.
    pub(crate) then: Box<Operation>,
}

impl World {
    /// A node sends a packet.
    pub(crate) fn packet_passes(&mut self, node: NodeId, packet: &Packet) {
        let moment = match packet {
            Packet::Barrier(_) => Moment::Barrier,
            Packet::WriteAck(_) => Moment::WriteAck,
            Packet::BarrierAck(_) => Moment::BarrierAck,
            Packet::ResyncDataReply(_) | Packet::ResyncDeallocated(_) => Moment::ResyncData,
            Packet::ResyncWriteAck(_) => Moment::ResyncAck,
            _ => return,
        };
        self.moment(node, moment);
    }

    /// A node's disk is given an operation, or has completed it.
    pub(crate) fn disk_passes(&mut self, node: NodeId, operation: &InFlight, completed: bool) {
        let moment = match (operation.write().map(|write| &write.change), completed) {
            (Some(Change::Data { .. }), false) => Moment::DataSubmitted,
            (Some(Change::Data { .. }), true) => Moment::DataWritten,
            (Some(Change::Flush), true) => Moment::Flushed,
            (Some(Change::Metadata { .. }), true) => Moment::MetadataWritten,
            _ => return,
        };
        self.moment(node, moment);
    }

    fn moment(&mut self, node: NodeId, moment: Moment) {
        let mut place = 0;
        while let Some(trap) = self.traps.get_mut(place) {
            if (trap.node, trap.moment) != (node, moment) {
                place += 1;
                continue;
            }
            trap.left = trap.left.saturating_sub(1);
            if trap.left > 0 {
                place += 1;
                continue;
            }
            let Trap { delay, then, .. } = self.traps.remove(place);
            self.after(delay, Due::Sprung(then));
        }
    }

    /// A trap's moment has come.
    pub(crate) fn spring(&mut self, operation: Operation) {
        // What was caught at the very end would disturb the finding together.
        if self.ending_since.is_some() {
            return;
        }
        let text = format!("the moment for {operation:?}");
        self.say(&text);
        self.coverage.fault("trap sprung");
        self.carry_out(operation);
    }
}
