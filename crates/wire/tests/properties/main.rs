//! What holds for every packet, every bitmap and every byte a peer may send.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bitmaps;
mod hostile;
mod packets;
mod round_trip;
