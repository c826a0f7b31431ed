//! DRBD's state machine as pure functions: what a state is, which corrections it gets, which changes are legal, and
//! how a change is told to people and to the peer.
//!
//! Every function here reads its arguments and nothing else, so the daemon, the simulator and a table test decide
//! alike. The steps of one change are, in the order of DRBD's `__drbd_set_state` (states spec 3.2):
//!
//! 1. [`StateRequest::apply`]: what was asked for, on top of the present [`VolumeState`];
//! 2. [`decide`]: [`sanitise`], then [`check_transition`], [`check_valid`] and [`check_soft_transition`];
//! 3. [`ChangeLine`]: the line for the log;
//! 4. the caller stores [`Change::new`] and does what follows from it.
//!
//! [`plan_request`] tells whether the peer must agree first ([`needs_peer`]); [`check_connection_change`] is step 2 for
//! all volumes of a resource at once.

mod aggregate;
mod change;
mod check;
mod context;
mod display;
mod metadata_flags;
mod predicates;
mod request;
mod result;
mod sanitise;
mod volume;

pub use aggregate::{StateRange, highest_peer, highest_role, state_range};
pub use change::{
    Change, Enforcement, OutdateFailure, Refusal, RequestPlan, check_connection_change, decide,
    plan_connection_volume, plan_request, request_outcome_while_waiting,
};
pub use check::{check_connection_transition, check_soft_transition, check_transition, check_valid};
pub use context::{Context, FencingPolicy, NetworkContext, OnNoDataAccessible, RememberedDisks};
pub use display::{ChangeLine, CommonState, FieldSet, common_state};
pub use metadata_flags::{
    AttachFacts, AttachedState, MetadataFlags, attached_state, implicit_metadata_flags,
};
pub use predicates::{
    contact_to_peers_data_lost, needs_peer, out_of_sync_goes_to_peer, resync_should_be_considered,
    writes_go_to_peer,
};
pub use request::StateRequest;
pub use result::{StateChangeResult, result_text};
pub use sanitise::{Warning, sanitise};
pub use volume::{StateFlags, Suspension, VolumeState};
