//! What is looked at besides the packets: states, results of commands, and what is on disk in the end.

use udrbd_engine::interface::{Command, VolumeStatus};
use udrbd_units::ConnectionState;
use udrbd_wire::Packet;

use crate::captures::session::Received;
use crate::node::Sent;
use crate::replay::Replay;
use crate::start::Metadata;

/// Where another order of what happened at the same time leads through other states: the kernel noticed the end of the
/// connection before it decided (`20`), or behind writes of a slow disk (`23`).
const DIFFERENT_CHANGES: [(&str, usize); 2] = [("20-split-brain", 0), ("23-congestion-ahead-behind", 1)];

impl Replay<'_> {
    /// What `/proc/drbd` showed at this moment.
    pub(crate) fn judge_states(&mut self, text: &str) -> Result<(), String> {
        self.catch_up()?;
        if self.script.says("congestion-fill") {
            // The disk is slow, and what waits behind its writes was not heard yet.
            return Ok(());
        }
        for status in &self.node.engine.status().volumes {
            let minor = format!(" {}: ", status.minor);
            if let Some(line) = text.split('|').find(|part| format!(" {part}").contains(&minor)) {
                judge_line(status, line)?;
            }
        }
        Ok(())
    }

    /// What `/proc/drbd` showed at the end, if the capture goes that far.
    fn judge_last_states(&self) -> Result<(), String> {
        if self.wires.values().any(|wire| wire.is_open) {
            return Ok(());
        }
        for status in &self.node.engine.status().volumes {
            let minor = format!(" {}: ", status.minor);
            let lines = self.section("== /proc/drbd at end of capture");
            for line in lines.skip_while(|line| !line.starts_with(&minor)).take(2) {
                judge_line(status, line)?;
            }
        }
        Ok(())
    }

    /// The changes of state in the log are those of the kernel's log, though not always in the same order.
    fn judge_log(&self) -> Result<(), String> {
        let name = self.script.path.file_stem().unwrap().to_string_lossy();
        if DIFFERENT_CHANGES.contains(&(&*name, self.me)) || self.wires.values().any(|wire| wire.is_open) {
            return Ok(());
        }
        let resource = format!(" drbd {}", ["ra", "rb"][self.me]);
        let start = |text: &str| text.starts_with("conn( StandAlone -> Unconnected )");
        let is_change = |text: &&str| text.contains("( ") && text.contains(" -> ");
        let kernel = self.section("== kernel log").filter(|line| line.contains(&resource));
        let kernel = kernel.filter_map(|line| line.split_once(": ")).map(|(_, text)| text.trim_end());
        let engine = self.node.log.iter().map(|text| text.trim_end()).skip_while(|text| !start(text));
        let mut kernel: Vec<&str> = kernel.skip_while(|text| !start(text)).filter(is_change).collect();
        let mut engine: Vec<&str> = engine.filter(is_change).collect();
        kernel.sort_unstable();
        engine.sort_unstable();
        if kernel == engine {
            Ok(())
        } else {
            Err(format!("the kernel logged {kernel:#?}\nthe engine {engine:#?}"))
        }
    }

    fn section(&self, title: &str) -> impl Iterator<Item = &str> {
        let lines = self.script.state.lines().skip_while(move |line| !line.starts_with(title));
        lines.skip(1).take_while(|line| !line.starts_with("== "))
    }

    /// The engine has said nothing that the captured node has not.
    pub(crate) fn judge_surplus(&mut self) -> Result<(), String> {
        for (connection, pending) in &mut self.pending {
            for _ in 0..pending.idle_pings {
                let ping = pending.sent_replies.iter().position(|sent| matches!(sent.packet, Packet::Ping));
                ping.map(|ping| pending.sent_replies.remove(ping));
            }
            // The kernel announces the new generation of a Primary that is left alone while it closes the socket.
            let is_last = |sent: &Vec<Received>| {
                let last = sent.last().map(|received| &received.packet);
                let below_100 = |change: &udrbd_wire::StateChange| {
                    change.connection == Some(ConnectionState::Disconnecting)
                };
                match last {
                    Some(Packet::ConnectionStateChangeRequest(_)) => true,
                    Some(Packet::StateChangeRequest(change)) => below_100(change),
                    _ => false,
                }
            };
            if self.script.packets[*connection].iter().any(is_last) {
                let is_uuids = |sent: &Sent| matches!(sent.packet, Packet::Uuids(_));
                let left = pending.sent.front().is_some_and(is_uuids);
                pending.sent.drain(..usize::from(left));
            }
            if let Some(sent) = pending.sent.front().or(pending.sent_replies.first()) {
                return Err(format!(
                    "sent on connection {} beyond the capture: {:?}",
                    connection + 1,
                    sent.packet
                ));
            }
            if let Some(surplus) = pending.sectors.surplus() {
                return Err(format!("sent on connection {} beyond the capture: {surplus}", connection + 1));
            }
        }
        Ok(())
    }

    pub(crate) fn judge_end(&mut self) -> Result<(), String> {
        for (id, text, succeeded) in &self.commands {
            let reply = self.node.replies.get(id).ok_or_else(|| format!("no reply to {text}"))?;
            if reply.is_ok() != *succeeded {
                return Err(format!("{text}: {reply:?}"));
            }
        }
        self.judge_last_states()?;
        self.judge_log()?;
        self.node.command(Command::Down);
        self.until("rest", |replay| replay.node.engine.status().volumes.is_empty())?;
        self.judge_metadata()
    }

    fn judge_metadata(&mut self) -> Result<(), String> {
        for (volume, start) in &self.starts {
            let after = Metadata::read(&self.script.state, self.me, *volume, "after");
            let (generations, flags) = start.on_disk(&self.node, *volume);
            for (captured, found) in after.generations.into_iter().zip(generations) {
                self.translation.learn(captured, found).map_err(|error| format!("on disk: {error}"))?;
            }
            if flags != after.flags {
                return Err(format!("flags on disk are {flags:?} instead of {:?}", after.flags));
            }
        }
        Ok(())
    }
}

/// The states and counters in a line.
fn judge_line(volume: &VolumeStatus, line: &str) -> Result<(), String> {
    let counters = volume.counters;
    let found = [
        ("cs:", volume.connection.to_string()),
        ("ro:", format!("{}/{}", volume.role, volume.peer_role)),
        ("ds:", format!("{}/{}", volume.disk, volume.peer_disk)),
        ("ns:", (counters.sent_sectors / 2).to_string()),
        ("nr:", (counters.received_sectors / 2).to_string()),
        ("dw:", (counters.written_sectors / 2).to_string()),
        ("dr:", (counters.read_sectors / 2).to_string()),
        ("oos:", (counters.out_of_sync_sectors / 2).to_string()),
    ];
    for (name, value) in found {
        let shown = line.split_whitespace().find_map(|word| word.strip_prefix(name));
        if shown.is_some_and(|shown| shown != value) {
            return Err(format!("{name}{value} where /proc/drbd showed {line}"));
        }
    }
    Ok(())
}
