//! What systemd is told: that the daemon serves, that it ends, and that it is alive.
//!
//! Without a service manager (`$NOTIFY_SOCKET` is not set) all of this does nothing.

use std::rc::Rc;

use sd_notify::NotifyState;

use super::Node;

/// Signs of life within the time after which systemd takes the daemon for dead.
const SIGNS_PER_LIMIT: u32 = 3;

/// The control socket accepts: whoever was waiting for the daemon may go on.
pub(super) fn tell_ready() {
    tell(NotifyState::Ready);
}

/// The daemon was told to end.
pub(super) fn tell_stopping() {
    tell(NotifyState::Stopping);
}

/// Gives signs of life while every engine answers, if systemd waits for them (`WatchdogSec=`). An engine that
/// hangs is worse than a dead one: its clients wait for ever. So it is not hidden by the threads that still run.
pub(super) async fn give_signs_of_life(node: Rc<Node>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut turn = tokio::time::interval(limit / SIGNS_PER_LIMIT);
    loop {
        turn.tick().await;
        if node.refresh_now(None).await {
            tell(NotifyState::Watchdog);
        } else {
            tracing::warn!("an engine does not answer: no sign of life for the service manager");
        }
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
