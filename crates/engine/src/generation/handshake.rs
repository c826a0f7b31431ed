//! What two nodes that meet do: connect, resync, or refuse.

use udrbd_units::{ConnectionState, DiskState, Role};

use super::compare::{Comparison, ComparisonFacts, ComparisonNote, ComparisonResult, compare};
use super::policy::ResyncPolicies;
use super::set::{GenerationSet, PeerFlags, PeerGeneration};
use super::split_brain::{Recovery, after_demotion, recover};
use crate::interface::{Handler, Level, RrConflict};

/// What the decision reads (states spec 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeFacts {
    /// The own identifiers.
    pub own: GenerationSet,
    /// The own flag CRASHED_PRIMARY.
    pub crashed_primary: bool,
    /// The number of set bits as last told to the peer (`comm_bm_set`): both nodes decide by what they told each other.
    pub own_told_bits: u64,
    /// The number of set bits now.
    pub own_set_bits: u64,
    /// The own role now.
    pub own_role: Role,
    /// The own disk's state now.
    pub own_disk: DiskState,
    /// The state remembered at attach, used in place of `own_disk` while that is Negotiating.
    pub remembered_disk: Option<DiskState>,
    /// The own flag DISCARD_MY_DATA.
    pub discard_my_data: bool,
    /// What the peer sent in P_UUIDS.
    pub peer: PeerGeneration,
    /// The peer's role as just received.
    pub peer_role: Role,
    /// The peer's disk as just received, Negotiating already replaced (states spec 6.4 step 1).
    pub peer_disk: DiskState,
    /// The connection's flag RESOLVE_CONFLICTS.
    pub resolve_conflicts: bool,
    /// The agreed protocol version.
    pub protocol: u32,
    /// The agreed feature flags.
    pub features: u32,
    /// The operator's policies.
    pub policies: ResyncPolicies,
    /// The own option `tentative`, or the peer's announcement of a dry run (CONN_DRY_RUN).
    pub dry_run: bool,
}

/// One thing to do on the way to the outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A line for the volume's log.
    Log(Level, String),
    /// Run a handler and wait for its end; its exit code does not matter.
    Handler(Handler),
}

/// Why the nodes do not come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The data have nothing in common.
    UnrelatedData,
    /// A newer peer is needed to decide.
    PeerTooOld,
    /// A split brain no policy resolved.
    SplitBrain,
    /// This node would be the source of data it does not have.
    InconsistentSource,
    /// This node would overwrite data it serves as Primary.
    PrimaryTarget,
    /// It was only asked what would happen.
    DryRun,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeOutcome {
    /// Nothing differs.
    Connected,
    /// Resync to the peer (WFBitMapS); `full`: first set every bit and write the bitmap, under FULL_SYNC.
    Source {
        /// Every block is sent.
        full: bool,
    },
    /// Resync from the peer (WFBitMapT); `full` as for the source.
    Target {
        /// Every block is fetched.
        full: bool,
    },
    /// Do not connect (or, for a disk just attached, do not use it).
    Refused(Refused),
    /// Try to become Secondary now, by an immediate verbose change of role, and go on with
    /// [`handshake_after_demotion`].
    TryDemotion,
}

impl HandshakeOutcome {
    /// The connection state the outcome leads to, `None` for a refusal.
    pub const fn connection(self) -> Option<ConnectionState> {
        match self {
            Self::Connected => Some(ConnectionState::Connected),
            Self::Source { .. } => Some(ConnectionState::WFBitMapS),
            Self::Target { .. } => Some(ConnectionState::WFBitMapT),
            Self::Refused(_) | Self::TryDemotion => None,
        }
    }

    /// Whether every bit is to be set first.
    pub const fn is_full(self) -> bool {
        matches!(self, Self::Source { full: true } | Self::Target { full: true })
    }
}

/// The decision: what to do on the way, where it leads, and what it found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeDecision {
    /// Log lines and handlers, in order. A handler ends before the next step is taken.
    pub steps: Vec<Step>,
    /// Where it leads.
    pub outcome: HandshakeOutcome,
    /// The comparison, with the corrected sets: `comparison.peer` is to be remembered, `comparison.own` to be stored
    /// where it differs from the own set, but not before the resync starts
    /// ([`GenerationSet::start_resync_as_source`]). DRBD stores it at once; if the link is lost between rule 34's
    /// correction and the exchange of bitmaps, it then takes the two nodes for equal although the source has written
    /// since. Stored late, the next handshake comes to the same decision again.
    pub comparison: Comparison,
}

/// Decides what two nodes that meet do (`drbd_sync_handshake`, states spec 10.2).
pub fn handshake(facts: &HandshakeFacts) -> HandshakeDecision {
    let comparison = compare(&facts.comparison_facts());
    let mut steps = Vec::with_capacity(8);
    log_comparison(facts, &comparison, &mut steps);
    let outcome = decide(facts, comparison.result, &mut steps);
    HandshakeDecision { steps, outcome, comparison }
}

/// Goes on after [`HandshakeOutcome::TryDemotion`]; `given_up` tells whether the role is Secondary now. `facts` are
/// those given to [`handshake`]. The steps are those still to be taken. Never asks for another attempt.
pub fn handshake_after_demotion(facts: &HandshakeFacts, given_up: bool) -> HandshakeDecision {
    let comparison = compare(&facts.comparison_facts());
    // What came before the attempt has been done: find out again where it stood, and drop the steps.
    let mut done = Vec::with_capacity(8);
    let verdict = consider_disk_states(facts, Verdict::from(comparison.result), &mut done);
    let (primaries, _) = recover(facts, &mut done);
    let mut steps = Vec::with_capacity(4);
    let recovery = after_demotion(given_up, &mut steps);
    let verdict = apply_recovery(verdict, primaries, recovery, &mut steps);
    let own_role = if given_up { Role::Secondary } else { facts.own_role };
    let outcome = conclude(&HandshakeFacts { own_role, ..*facts }, verdict, &mut steps);
    HandshakeDecision { steps, outcome, comparison }
}

/// The comparison, where it and the disks say split brain, solved or not.
pub(super) fn is_split_brain(facts: &HandshakeFacts) -> Option<Comparison> {
    let comparison = compare(&facts.comparison_facts());
    if !matches!(comparison.result, ComparisonResult::SplitBrain | ComparisonResult::SplitBrainAmbiguous) {
        return None;
    }
    let verdict = consider_disk_states(facts, Verdict::from(comparison.result), &mut Vec::new());
    matches!(verdict, Verdict::SplitBrain { .. }).then_some(comparison)
}

impl HandshakeFacts {
    fn comparison_facts(&self) -> ComparisonFacts {
        ComparisonFacts {
            own: self.own,
            peer: self.peer,
            crashed_primary: self.crashed_primary,
            own_role: self.own_role,
            peer_role: self.peer_role,
            resolve_conflicts: self.resolve_conflicts,
            protocol: self.protocol,
            features: self.features,
        }
    }

    /// The own disk as it counts: one that is being attached as what it will be.
    pub const fn effective_disk(&self) -> DiskState {
        match (self.own_disk, self.remembered_disk) {
            (DiskState::Negotiating, Some(remembered)) => remembered,
            (disk, _) => disk,
        }
    }
}

/// The running result (`hg`) once unrelated data and old peers are out of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Source { full: bool },
    Target { full: bool },
    SplitBrain { ambiguous: bool },
}

impl From<ComparisonResult> for Verdict {
    /// Results that are refusals count as an unresolved split brain: the callers have dealt with them before.
    fn from(result: ComparisonResult) -> Self {
        match result {
            ComparisonResult::NoSync => Self::Same,
            ComparisonResult::SourceByBitmap => Self::Source { full: false },
            ComparisonResult::TargetByBitmap => Self::Target { full: false },
            ComparisonResult::SourceFull => Self::Source { full: true },
            ComparisonResult::TargetFull => Self::Target { full: true },
            ComparisonResult::SplitBrain => Self::SplitBrain { ambiguous: false },
            ComparisonResult::SplitBrainAmbiguous
            | ComparisonResult::Unrelated
            | ComparisonResult::NeedsProtocol(_)
            | ComparisonResult::NeedsFeatures { .. } => Self::SplitBrain { ambiguous: true },
        }
    }
}

fn log(steps: &mut Vec<Step>, level: Level, text: impl Into<String>) {
    steps.push(Step::Log(level, text.into()));
}

/// The lines of the comparison (states spec 9.2, below the table).
fn log_comparison(facts: &HandshakeFacts, comparison: &Comparison, steps: &mut Vec<Step>) {
    // The own flags are not known here in DRBD either: the line always says 0.
    let own_line = |set: &GenerationSet, bits: u64| format!("self {set} bits:{bits} flags:0");
    let peer_line = |set: &GenerationSet| {
        format!("peer {set} bits:{} flags:{:X}", facts.peer.set_bits, facts.peer.flags.0)
    };
    log(steps, Level::Info, "drbd_sync_handshake:");
    log(steps, Level::Info, own_line(&facts.own, facts.own_told_bits));
    log(steps, Level::Info, peer_line(&facts.peer.set));
    if let Some(note) = comparison.note {
        let level = match note {
            ComparisonNote::CurrentPrimaryPresent => Level::Warning,
            ComparisonNote::BothPrimary => Level::Error,
            _ => Level::Info,
        };
        log(steps, level, note.to_string());
    }
    if comparison.own != facts.own {
        log(steps, Level::Info, own_line(&comparison.own, facts.own_set_bits));
    }
    if comparison.peer != facts.peer.set {
        log(steps, Level::Info, peer_line(&comparison.peer));
    }
    let (number, rule) = (comparison.result.number(), comparison.rule);
    log(steps, Level::Info, format!("uuid_compare()={number} by rule {rule}"));
}

/// Steps 2 to 6: from the comparison to an undisputed verdict.
fn decide(facts: &HandshakeFacts, result: ComparisonResult, steps: &mut Vec<Step>) -> HandshakeOutcome {
    let too_old = |needed: String, steps: &mut Vec<Step>| {
        log(steps, Level::Alert, format!("To resolve this both sides have to support at least {needed}"));
        HandshakeOutcome::Refused(Refused::PeerTooOld)
    };
    match result {
        ComparisonResult::Unrelated => {
            log(steps, Level::Alert, "Unrelated data, aborting!");
            return HandshakeOutcome::Refused(Refused::UnrelatedData);
        }
        ComparisonResult::NeedsFeatures { protocol, features } => {
            return too_old(format!("protocol {protocol} and feature flags 0x{features:x}"), steps);
        }
        ComparisonResult::NeedsProtocol(protocol) => {
            return too_old(format!("protocol {protocol}"), steps);
        }
        _ => {}
    }
    let verdict = consider_disk_states(facts, Verdict::from(result), steps);
    let Verdict::SplitBrain { ambiguous } = verdict else {
        return conclude(facts, verdict, steps);
    };
    steps.push(Step::Handler(Handler::InitialSplitBrain));
    if ambiguous && !facts.policies.always_asbp {
        return conclude(facts, verdict, steps);
    }
    let (primaries, recovery) = recover(facts, steps);
    if recovery == Recovery::TryDemotion {
        return HandshakeOutcome::TryDemotion;
    }
    let verdict = apply_recovery(verdict, primaries, recovery, steps);
    conclude(facts, verdict, steps)
}

/// Step 4: a disk that is Inconsistent is overwritten, whatever the identifiers say.
fn consider_disk_states(facts: &HandshakeFacts, verdict: Verdict, steps: &mut Vec<Step>) -> Verdict {
    let (own, peer) = (facts.effective_disk(), facts.peer_disk);
    let inconsistent = DiskState::Inconsistent;
    let own_is_worse = own == inconsistent && peer > inconsistent;
    let peer_is_worse = peer == inconsistent && own > inconsistent;
    if !own_is_worse && !peer_is_worse {
        return verdict;
    }
    let full = match verdict {
        Verdict::Source { full } | Verdict::Target { full } => full,
        Verdict::SplitBrain { ambiguous } => ambiguous,
        Verdict::Same => false,
    };
    let side = if peer_is_worse { "source" } else { "target" };
    log(steps, Level::Info, format!("Becoming sync {side} due to disk states."));
    if peer_is_worse { Verdict::Source { full } } else { Verdict::Target { full } }
}

/// Step 6: what automatic recovery makes of a split brain. No decision makes it ambiguous.
fn apply_recovery(verdict: Verdict, primaries: u8, recovery: Recovery, steps: &mut Vec<Step>) -> Verdict {
    let full = verdict == Verdict::SplitBrain { ambiguous: true };
    let (node, solved) = match recovery {
        Recovery::Source => ("this", Verdict::Source { full }),
        Recovery::Target => ("peer", Verdict::Target { full }),
        Recovery::Undecided | Recovery::TryDemotion => return Verdict::SplitBrain { ambiguous: true },
    };
    log(
        steps,
        Level::Warning,
        format!("Split-Brain detected, {primaries} primaries, automatically solved. Sync from {node} node"),
    );
    if full {
        log(steps, Level::Warning, "Doing a full sync, since UUIDs where ambiguous.");
    }
    solved
}

/// Steps 7 to 13.
fn conclude(facts: &HandshakeFacts, verdict: Verdict, steps: &mut Vec<Step>) -> HandshakeOutcome {
    let Some(verdict) = settle_split_brain(facts, verdict, steps) else {
        return HandshakeOutcome::Refused(Refused::SplitBrain);
    };
    let outcome = match verdict {
        Verdict::Source { full } => HandshakeOutcome::Source { full },
        Verdict::Target { full } => HandshakeOutcome::Target { full },
        Verdict::Same | Verdict::SplitBrain { .. } => HandshakeOutcome::Connected,
    };
    if let Some(refused) = check_sides(facts, outcome, steps) {
        return HandshakeOutcome::Refused(refused);
    }
    if facts.dry_run {
        log(steps, Level::Info, dry_run_line(outcome));
        return HandshakeOutcome::Refused(Refused::DryRun);
    }
    if outcome.is_full() {
        log(steps, Level::Info, "Writing the whole bitmap, full sync required after drbd_sync_handshake.");
    }
    if outcome == HandshakeOutcome::Connected && facts.own_set_bits > 0 {
        log(steps, Level::Info, format!("No resync, but {} bits in bitmap!", facts.own_set_bits));
    }
    outcome
}

/// Steps 7 and 8: a split brain left over is settled by `discard-my-data` on one side, or not at all (`None`).
fn settle_split_brain(facts: &HandshakeFacts, verdict: Verdict, steps: &mut Vec<Step>) -> Option<Verdict> {
    if !matches!(verdict, Verdict::SplitBrain { .. }) {
        return Some(verdict);
    }
    let peer_discards = facts.peer.flags.contains(PeerFlags::DISCARD_MY_DATA);
    let (node, solved) = match (facts.discard_my_data, peer_discards) {
        (true, false) => ("peer", Verdict::Target { full: false }),
        (false, true) => ("this", Verdict::Source { full: false }),
        _ => {
            // The wording of old versions, which recovery guides tell people to search for, comes first.
            log(steps, Level::Alert, "Split-Brain detected, dropping connection!");
            log(steps, Level::Alert, "Split-Brain detected but unresolved, dropping connection!");
            steps.push(Step::Handler(Handler::SplitBrain));
            return None;
        }
    };
    let text = format!("Split-Brain detected, manually solved. Sync from {node} node");
    log(steps, Level::Warning, text);
    Some(solved)
}

/// Steps 9 and 10: whether this node can take its side.
fn check_sides(facts: &HandshakeFacts, outcome: HandshakeOutcome, steps: &mut Vec<Step>) -> Option<Refused> {
    match outcome {
        HandshakeOutcome::Source { .. } if facts.effective_disk() <= DiskState::Inconsistent => {
            log(steps, Level::Error, "I shall become SyncSource, but I am inconsistent!");
            Some(Refused::InconsistentSource)
        }
        // The disk as it is now: one that is Negotiating serves nobody yet.
        HandshakeOutcome::Target { .. }
            if facts.own_role == Role::Primary && facts.own_disk >= DiskState::Consistent =>
        {
            if facts.policies.rr_conflict == RrConflict::Violently {
                let text = "Becoming SyncTarget, violating the stable-dataassumption";
                log(steps, Level::Warning, text);
                return None;
            }
            if facts.policies.rr_conflict == RrConflict::CallPriLost {
                steps.push(Step::Handler(Handler::PriLost));
            }
            log(steps, Level::Error, "I shall become SyncTarget, but I am primary!");
            Some(Refused::PrimaryTarget)
        }
        _ => None,
    }
}

fn dry_run_line(outcome: HandshakeOutcome) -> String {
    let side = match outcome {
        HandshakeOutcome::Source { .. } => "SyncSource",
        HandshakeOutcome::Target { .. } => "SyncTarget",
        _ => return "dry-run connect: No resync, would become Connected immediately.".to_owned(),
    };
    let kind = if outcome.is_full() { "full" } else { "bit-map based" };
    format!("dry-run connect: Would become {side}, doing a {kind} resync.")
}

#[cfg(test)]
mod tests;
