//! Generation identifiers: how they change, and what two nodes that meet conclude from them.
//!
//! Everything here is a pure function. [`GenerationSet`] holds the four identifiers of a volume and the operations on
//! them (states spec 8); [`compare`] is DRBD's table of who has the newer data (section 9); [`handshake`] turns its
//! result, the disk states and the operator's policies into a decision (section 10). Both nodes compute the decision
//! for themselves and nothing on the wire confirms it, so the rules are DRBD's to the letter, oddities included.

mod compare;
mod handshake;
mod policy;
mod prospect;
mod set;
mod split_brain;

pub use compare::{
    Comparison, ComparisonFacts, ComparisonNote, ComparisonResult, FEATURE_WRITE_SAME, common_ancestor,
    compare,
};
pub use handshake::{
    HandshakeDecision, HandshakeFacts, HandshakeOutcome, Refused, Step, handshake, handshake_after_demotion,
};
pub use policy::{ResyncPolicies, seen_from_the_peer};
pub use prospect::{PolicyProspect, Primaries, Prospect, Side, SplitBrain, prospects};
pub use set::{GenerationSet, PeerFlags, PeerGeneration, SYNC_IDENTIFIER_OFFSET, TargetOfResync};
