//! A run in words.

use udrbd_engine::interface::{Action, Event, Report};

use crate::network::NodeId;
use crate::world::World;

impl World {
    pub(crate) fn trace_event(&mut self, node: NodeId, event: &Event) {
        let text = match event {
            Event::Packet { packet, .. } => format!("{packet:?}"),
            Event::Timeout => return,
            Event::MetadataRead { token, result } => {
                format!("MetadataRead {token:?} {:?}", result.as_ref().map(Vec::len))
            }
            other => format!("{other:?}"),
        };
        self.say(&format!("  -> node {node}: {text}"));
    }

    pub(crate) fn trace_action(&mut self, node: NodeId, action: &Action) {
        let text = match action {
            Action::Report(Report::Log { text, .. }) => format!("\"{text}\""),
            Action::Report(_) | Action::Release(_) => return,
            Action::Send { packet, .. } => format!("send {packet:?}"),
            other => format!("{other:?}"),
        };
        self.say(&format!("  <- node {node}: {text}"));
    }
}
