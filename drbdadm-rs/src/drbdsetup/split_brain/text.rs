//! The report in words. Whoever reads it was called at night: first what has happened and that nothing is lost yet, then
//! what each node would lose, then what to type. What only an expert needs comes last.

use std::fmt::Write as _;

use udrbd_control::status::{
    ChangedRegion, FoundSplitBrain, PolicyOutcome, PolicyOutlook, SplitBrainReport, SplitBrainSide,
    VolumeSplitBrain, WhichNode,
};
use udrbd_units::{ConnectionState, Role};

const BLOCK_KIB: u64 = 4;
/// Where the second column of the comparison begins, and the third.
const LABEL_WIDTH: usize = 22;
const COLUMN_WIDTH: usize = 36;

/// The whole report. `when` writes a time, in microseconds since the epoch.
pub(super) fn of_report(report: &SplitBrainReport, when: &dyn Fn(i64) -> String) -> String {
    let words = Words { report, when, text: String::new() };
    if report.is_split() { words.split() } else { words.quiet() }
}

struct Words<'a> {
    report: &'a SplitBrainReport,
    when: &'a dyn Fn(i64) -> String,
    text: String,
}

impl Words<'_> {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref().trim_end());
        self.text.push('\n');
    }

    fn name(&self, node: WhichNode) -> String {
        match node {
            WhichNode::Own => self.report.node.clone(),
            WhichNode::Peer => self.report.peer.clone().unwrap_or_else(|| "the peer".to_owned()),
        }
    }

    /// A time, and how long ago that is.
    fn time(&self, time_us: i64) -> String {
        format!("{} ({} ago)", (self.when)(time_us), duration(self.report.time_us - time_us))
    }

    fn volume_name(&self, volume: &VolumeSplitBrain) -> String {
        format!("volume {} (/dev/drbd{})", volume.volume, volume.minor)
    }

    /// There is no split brain.
    fn quiet(mut self) -> String {
        let resource = &self.report.resource;
        let header =
            format!("{resource}: no split brain is known. The connection is {}.", self.report.connection);
        self.line(header);
        if self.report.connection < ConnectionState::Connected {
            self.line(
                "The nodes are apart: a split brain is found when they meet again. Each node knows only its own changes:",
            );
        }
        let volumes = &self.report.volumes;
        for volume in volumes {
            let name = self.volume_name(volume);
            if self.report.connection < ConnectionState::Connected
                && let Some(blocks) = volume.changed_blocks
            {
                self.line(format!("  {name}: {} changed on {} only", amount(blocks), self.report.node));
                if let Some(lost_us) = volume.known.lost_us {
                    self.line(format!("  {name}: apart since {}", self.time(lost_us)));
                }
            }
            if let Some(found) = &volume.known.found {
                let line = format!("  {name}: {}", self.ended(found));
                self.line(line);
            }
        }
        self.text
    }

    /// What is to be said of one that is over.
    fn ended(&self, found: &FoundSplitBrain) -> String {
        let when = found.ended_us.map_or_else(String::new, |time| format!(" {}", self.time(time)));
        let first = (self.when)(found.first_us);
        match found.end {
            Some(end) => {
                let loser = if end.keeps == WhichNode::Own { WhichNode::Peer } else { WhichNode::Own };
                let how = if end.by_hand { "by discard-my-data" } else { "by an after-sb policy" };
                format!(
                    "the split brain found {first} ended{when} {how}: the data of {} were kept, the changes of {} \
                     discarded",
                    self.name(end.keeps),
                    self.name(loser)
                )
            }
            None => format!("the split brain found {first} ended{when}"),
        }
    }

    fn split(mut self) -> String {
        self.headline();
        let volumes = &self.report.volumes;
        for volume in volumes {
            match &volume.known.found {
                Some(found) if volume.is_split() => self.volume(volume, found),
                _ => {
                    let name = self.volume_name(volume);
                    self.line(format!("\n{}: no split brain was found on it.", capital(&name)));
                }
            }
        }
        self.commands();
        for volume in volumes {
            if let Some(found) = volume.known.found.as_ref().filter(|_| volume.is_split()) {
                self.details(volume, found);
            }
        }
        self.text
    }

    fn headline(&mut self) {
        let SplitBrainReport { resource, node, connection, .. } = self.report;
        let peer = self.name(WhichNode::Peer);
        let address =
            self.report.peer_address.map_or_else(String::new, |address| format!(" ({})", address.socket));
        self.line(format!("{resource}: SPLIT BRAIN between {node} (this node) and {peer}{address}"));
        self.line("");
        self.line("Both nodes have changed their data since they parted, and neither has what the other one changed.");
        self.line(
            "They do not connect, so both changes are still there. To connect again, one node has to give up",
        );
        self.line("its changes. Which one, only somebody who knows the data can say.");
        self.line("");
        let found = || self.report.volumes.iter().filter_map(|volume| volume.known.found.as_ref());
        let first = found().filter(|found| found.ended_us.is_none()).min_by_key(|found| found.first_us);
        if let Some(found) = first.cloned() {
            let apart = match (found.lost_us, found.connected_us) {
                (Some(lost_us), _) => format!("{}, when {node} lost the connection", self.time(lost_us)),
                (None, Some(connected_us)) => format!(
                    "not known: {node} went down while they were connected, which they were since {}",
                    (self.when)(connected_us)
                ),
                (None, None) => format!("not known: {node} has no record of the last connection"),
            };
            self.line(format!("  apart since   {apart}"));
            self.line(format!("  found         {}", self.time(found.first_us)));
            if found.times > 1 {
                let last = self.time(found.last_us);
                self.line(format!("  found again   {last}, {} times in all", found.times));
            }
        }
        self.line(format!("  connection    {connection} on {node} now"));
        if let Some(found) = first.cloned() {
            self.mistake(&found);
        }
    }

    /// An attempt to end it that could not succeed.
    fn mistake(&mut self, found: &FoundSplitBrain) {
        let sides = [(WhichNode::Own, &found.own), (WhichNode::Peer, &found.peer)];
        let discarding: Vec<_> = sides.into_iter().filter(|(_, side)| side.discard_my_data).collect();
        match discarding[..] {
            [_, _] => {
                self.line("");
                self.line("Both nodes connected with --discard-my-data. One only may: the other one's data are kept.");
            }
            [(node, side)] if side.role == Role::Primary => {
                let name = self.name(node);
                self.line("");
                self.line(format!(
                    "{name} connected with --discard-my-data, but is Primary. It has to be Secondary first."
                ));
            }
            _ => {}
        }
    }

    /// What each node would lose.
    fn volume(&mut self, volume: &VolumeSplitBrain, found: &FoundSplitBrain) {
        let name = capital(&self.volume_name(volume));
        self.line("");
        self.line(format!("{name}, when the split brain was found"));
        let peer = self.name(WhichNode::Peer);
        self.row("", &format!("{} (this node)", self.report.node), &peer);
        let (own, other) = (&found.own, &found.peer);
        self.row("changed", &amount(own.changed_blocks), &amount(other.changed_blocks));
        self.row("role", own.role.name(), other.role.name());
        self.row("disk", own.disk.name(), other.disk.name());
        self.row("when they parted", parted(own), parted(other));
        if own.crashed_primary || other.crashed_primary {
            let crashed =
                |side: &SplitBrainSide| if side.crashed_primary { "crashed as Primary" } else { "" };
            self.row("since then", crashed(own), crashed(other));
        }
        let now = match volume.changed_blocks {
            Some(blocks) => format!("{}, {}", amount(blocks), volume.role),
            None => format!("{}, no disk", volume.role),
        };
        self.row("now", &now, "not known here");
        self.line("");
        match &volume.regions {
            Some(regions) if !regions.is_empty() => {
                self.line(format!(
                    "  Changed on {} (offset and length on /dev/drbd{}):",
                    self.report.node, volume.minor
                ));
                for region in regions {
                    self.line(format!("    {}", place(region)));
                }
            }
            Some(_) => self.line(format!("  On {} no block has changed.", self.report.node)),
            None => {
                self.line(format!("  Where {} has changed is not known without its disk.", self.report.node));
            }
        }
        self.line(format!("  Where {peer} has changed is not known here: nodes tell each other how much when they meet, but where"));
        self.line(format!(
            "  only when a resync begins. 'drbdadm split-brain-report {}' on {peer} says it.",
            self.report.resource
        ));
    }

    fn row(&mut self, label: &str, own: &str, peer: &str) {
        self.line(format!("  {label:<LABEL_WIDTH$}{own:<COLUMN_WIDTH$}{peer}"));
    }

    /// The commands for either choice.
    fn commands(&mut self) {
        let [own, peer] = [WhichNode::Own, WhichNode::Peer].map(|node| self.name(node));
        self.line("");
        self.line("What to do");
        self.line("");
        self.line("  Look at both nodes' data before you choose. What is discarded is gone: copy what may be needed, or take a");
        self.line("  snapshot of the disk below, first. Then do one of these, not both:");
        for keeps in [WhichNode::Own, WhichNode::Peer] {
            self.choice(keeps);
        }
        self.line("");
        self.line("  'connect' answers (125) on a node that waits for its peer already: that is as good.");
        self.line(format!("  If 'secondary' refuses, something still uses the device there ('drbdadm -v secondary {}' names it).", self.report.resource));
        self.line(format!(
            "  It is over when 'drbdadm dstate {}' says UpToDate/UpToDate on {own} and {peer}.",
            self.report.resource
        ));
    }

    fn choice(&mut self, keeps: WhichNode) {
        let resource = &self.report.resource;
        let victim = if keeps == WhichNode::Own { WhichNode::Peer } else { WhichNode::Own };
        let [keeper, loser] = [self.name(keeps), self.name(victim)];
        let lost: Vec<String> = self
            .report
            .volumes
            .iter()
            .filter_map(|volume| {
                let found = volume.known.found.as_ref().filter(|_| volume.is_split())?;
                let blocks = match victim {
                    WhichNode::Own => volume.changed_blocks.unwrap_or(found.own.changed_blocks),
                    WhichNode::Peer => found.peer.changed_blocks,
                };
                Some(amount(blocks))
            })
            .collect();
        let at_least = if victim == WhichNode::Peer { "at least " } else { "" };
        let lost = lost.join(" and ");
        let discard = format!(
            "drbdadm secondary {resource}; drbdadm disconnect {resource}; drbdadm -- --discard-my-data connect {resource}"
        );
        let connect = format!("drbdadm connect {resource}");
        let holders: Vec<String> = match victim {
            WhichNode::Own => self.report.volumes.iter().flat_map(|volume| volume.holders.clone()).collect(),
            WhichNode::Peer => Vec::new(),
        };
        let stop = if victim == WhichNode::Own && holders.is_empty() {
            String::new()
        } else if holders.is_empty() {
            ", after everything there has let go of the device (unmount it)".to_owned()
        } else {
            format!(", after this has let go of the device: {}", holders.join(", "))
        };
        self.line("");
        self.line(format!(
            "  To keep the data of {keeper}, and lose what changed on {loser} ({at_least}{lost}):"
        ));
        self.line(format!("    on {loser}{stop}:"));
        self.line(format!("      {discard}"));
        self.line(format!("    on {keeper}:"));
        self.line(format!("      {connect}"));
    }

    /// Identifiers and policies.
    fn details(&mut self, volume: &VolumeSplitBrain, found: &FoundSplitBrain) {
        let name = self.volume_name(volume);
        let peer = self.name(WhichNode::Peer);
        self.line("");
        self.line(format!("Generation identifiers of {name}"));
        self.row("", &format!("{} (this node)", self.report.node), &peer);
        let (own, other) = (&found.own, &found.peer);
        self.row("current", &own.current, &other.current);
        self.row("bitmap", &own.bitmap, &other.bitmap);
        self.row("history", &own.history[0], &other.history[0]);
        self.row("", &own.history[1], &other.history[1]);
        match &found.ancestor {
            Some(ancestor) => self.line(format!(
                "  Both come from {ancestor} (its last digit may differ by one: that says who was Primary)."
            )),
            None => self.line("  They name no generation both come from."),
        }
        if found.ambiguous {
            self.line(format!(
                "  It is in no bitmap slot of both: the bitmaps do not count from the same data, and a resync by a policy \
                 copies every block (rule {}).",
                found.rule
            ));
        }
        self.policies(found);
    }

    fn policies(&mut self, found: &FoundSplitBrain) {
        self.line("");
        self.line("What each policy would do with these data when the nodes connect (* configured)");
        if found.ambiguous {
            let set = if found.always_asbp { "is" } else { "is not" };
            self.line(format!(
                "  This split brain is ambiguous: policies are asked only with 'always-asbp yes', which {set} configured."
            ));
        }
        let roles = [found.own.role, found.peer.role];
        let mut heading = None;
        for row in &found.policies {
            if heading != Some((&row.option, &row.primaries)) {
                heading = Some((&row.option, &row.primaries));
                let line = self.heading(row, roles);
                self.line(line);
            }
            let mark = if row.configured { '*' } else { ' ' };
            let line = format!("   {mark} {:<25}{}", row.policy, self.outcome(row.outcome));
            self.line(line);
        }
    }

    fn heading(&self, row: &PolicyOutlook, roles: [Role; 2]) -> String {
        let who = match row.primaries[..] {
            [] => "nobody is Primary".to_owned(),
            [one] => format!("only {} is Primary", self.name(one)),
            _ => "both are Primary".to_owned(),
        };
        let is = |node: WhichNode| row.primaries.contains(&node);
        let same = [WhichNode::Own, WhichNode::Peer].map(is) == roles.map(|role| role == Role::Primary);
        let note = if same { ", as when it was found" } else { "" };
        format!("  {}, if {who}{note}", row.option)
    }

    fn outcome(&self, outcome: PolicyOutcome) -> String {
        let other = |node| if node == WhichNode::Own { WhichNode::Peer } else { WhichNode::Own };
        match outcome {
            PolicyOutcome::StayApart => "they stay apart".to_owned(),
            PolicyOutcome::Keep { node, full } => {
                let all = if full { ", every block is copied" } else { "" };
                format!("keeps {}, discards the changes of {}{all}", self.name(node), self.name(other(node)))
            }
            PolicyOutcome::CallPriLost { node } => format!(
                "{} would lose, but is Primary: it runs pri-lost-after-sb, they stay apart",
                self.name(other(node))
            ),
            PolicyOutcome::PrimaryInTheWay { node } => format!(
                "{} would lose, but is Primary (see rr-conflict): they stay apart",
                self.name(other(node))
            ),
            PolicyOutcome::Connect => "they connect, nothing is copied".to_owned(),
        }
    }
}

const fn parted(side: &SplitBrainSide) -> &'static str {
    if side.was_primary { "was Primary" } else { "was not Primary" }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// An amount of blocks.
fn amount(blocks: u64) -> String {
    match blocks {
        0 => "nothing".to_owned(),
        1 => "4 KiB (1 block)".to_owned(),
        _ => format!("{} ({blocks} blocks)", size(blocks)),
    }
}

fn size(blocks: u64) -> String {
    let mut value = (blocks * BLOCK_KIB) as f64;
    let mut units = ["KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "KiB" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

fn place(region: &ChangedRegion) -> String {
    let ChangedRegion { first_block, blocks, changed_blocks } = *region;
    let mut text = format!("{:>14} KiB {:>12} KiB", first_block * BLOCK_KIB, blocks * BLOCK_KIB);
    if changed_blocks < blocks {
        // Writing to a string cannot fail.
        let _ = write!(text, "   {} of it", size(changed_blocks));
    }
    text
}

/// How long something is, in its two largest units.
fn duration(microseconds: i64) -> String {
    let seconds = microseconds.max(0) / 1_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests;
