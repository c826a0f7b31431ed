//! The handlers `fence-peer`, and the cluster manager behind them.
//!
//! A good cluster manager knows what is so: it lets one node alone be Primary from the moment it has fenced the other for it,
//! and until both are in sync again; where it cannot keep a node from writing otherwise, it cuts its power. With it, and with I/O
//! that is frozen until then (`resource-and-stonith`), there is one history of the data, whatever fails. Handlers that hang,
//! die or tell what is not so may cost availability, and a split brain that is noticed, but no write in silence.

use udrbd_engine::interface::{Command, DiskOptions, Event, Fencing, HandlerId, Protocol};
use udrbd_units::DiskState;

use crate::machine::number;
use crate::network::NodeId;
use crate::node::Purpose;
use crate::node::VolumeIndex;
use crate::plan::{MILLISECOND, SECOND, Settings, pause};
use crate::random::Random;
use crate::world::{Due, World};

/// What kind of handlers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handlers {
    /// Those of a cluster manager that knows what is so.
    Cluster,
    /// Any exit status at any time.
    Chance,
}

/// How long the daemon lets a handler run; then it counts as one that ended with 0.
const PATIENCE: u64 = 660 * SECOND;
/// What fence-peer may say, and what it may not.
const STATUSES: &[i32] = &[3, 4, 5, 6, 7, 0, 1, 20];

/// Some runs fence.
pub(crate) fn plan(random: &mut Random, settings: &mut Settings) {
    if !random.one_in(6) {
        return;
    }
    let stonith = !random.one_in(3) && settings.net_options.protocol != Protocol::A;
    let fencing = if stonith { Fencing::ResourceAndStonith } else { Fencing::ResourceOnly };
    settings.disk_options = DiskOptions { fencing, ..settings.disk_options.clone() };
    settings.handlers = Some(if random.one_in(3) { Handlers::Chance } else { Handlers::Cluster });
}

impl Settings {
    /// Whether nothing but the cluster manager decides who writes.
    pub(crate) fn keeps_one_history(&self) -> bool {
        self.handlers == Some(Handlers::Cluster) && self.disk_options.fencing == Fencing::ResourceAndStonith
    }
}

impl World {
    /// A node runs `fence-peer`.
    pub(crate) fn run_fence_peer(&mut self, node: NodeId, handler: HandlerId) {
        let life = self.nodes[node].life;
        let usual = self.random.between(MILLISECOND, 5 * SECOND);
        match self.plan.settings.handlers {
            Some(Handlers::Cluster) => self.after(usual, Due::Fence { node, life, handler }),
            // In the end, when the nodes are to find together in time, none hangs any more.
            Some(Handlers::Chance) if self.random.one_in(8) && self.ending_since.is_none() => {
                self.after(PATIENCE, Due::Handler { node, life, handler, status: 0 });
            }
            Some(Handlers::Chance) => {
                let status = self.random.pick(STATUSES);
                self.after(usual, Due::Handler { node, life, handler, status });
            }
            None => self.after(usual, Due::Handler { node, life, handler, status: 5 }),
        }
    }

    /// The cluster manager decides, and the handler ends.
    pub(crate) fn fence(&mut self, node: NodeId, handler: HandlerId) {
        let status = self.decide(node);
        let text = format!("the cluster manager tells node {node}: {status}");
        self.say(&text);
        self.feed(node, Event::HandlerExit { handler, status });
    }

    fn decide(&mut self, node: NodeId) -> i32 {
        let peer = 1 - node;
        if self.only_primary == Some(peer) {
            return 6;
        }
        self.only_primary = Some(node);
        let other = &self.nodes[peer];
        if other.engine.is_none() {
            return self.random.pick(&[4, 5, 7]);
        }
        if other.is_primary() || self.random.one_in(3) {
            let time = pause(&mut self.random);
            self.cut_power(peer, time);
            return 7;
        }
        let volumes = 0..other.volumes.len();
        if volumes.clone().all(|volume| other.disk_state(volume) == DiskState::Inconsistent) {
            return 3;
        }
        if self.random.one_in(2) {
            for volume in volumes {
                self.command(peer, volume, Purpose::Other, Command::Outdate { volume: number(volume) });
            }
        }
        4
    }

    /// With a good cluster manager no two nodes have completed writes that the other lacks.
    pub(crate) fn check_one_history(&mut self, volume: VolumeIndex) {
        let [one, other] = &self.checker.volumes[volume].exclusive;
        if !self.plan.settings.keeps_one_history() || one.is_empty() || other.is_empty() {
            return;
        }
        let text =
            format!("node 0 alone has write {:?}, node 1 alone has write {:?}", one.first(), other.first());
        self.fail("a fenced peer writes nothing", text);
    }
}
