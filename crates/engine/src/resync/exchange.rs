//! Exchanging the bitmaps before a resync (wire spec 11).

use udrbd_units::ConnectionState;
use udrbd_wire as wire;
use wire::bitmap::{BitmapReceiver, BitmapSender, BitmapSink, BitmapSource};

use crate::Engine;
use crate::bitmap::Bitmap;
use crate::bugs::Bug;
use crate::connection::parameters::Verdict;
use crate::interface::{Level, Payload, SocketRole, Token};
use crate::slab::Key;
use crate::state::StateRequest;

/// Packets of bitmap that may be on their way to the kernel.
const PACKETS_IN_FLIGHT: u32 = 64;

/// Marks the tokens of packets of bitmap among those of writes.
const BITMAP_TOKEN: u64 = 1 << 63;

/// What is being exchanged of a volume.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    sender: Option<BitmapSender>,
    /// The own bitmap is to be sent as soon as nothing is in flight.
    send_due: bool,
    unsent: u32,
    sent: bool,
    receiver: Option<BitmapReceiver>,
}

impl Exchange {
    /// Whether requests of clients must wait: the own bitmap is about to be sent, or being sent.
    pub(crate) const fn demands_silence(&self) -> bool {
        self.send_due || self.sender.is_some()
    }
}

struct Source<'a>(&'a Bitmap);

impl BitmapSource for Source<'_> {
    fn word(&self, index: u64) -> u64 {
        self.0.words(index, 1).first().copied().unwrap_or(0)
    }

    fn find(&self, from: u64, end: u64, set: bool) -> u64 {
        // In a fragmented bitmap the next change is in the same word.
        let word = self.word(from / 64);
        let wanted = (if set { word } else { !word }) >> (from % 64);
        if wanted != 0 {
            return end.min(from + u64::from(wanted.trailing_zeros()));
        }
        let from = udrbd_units::BlockNumber(from);
        let found = if set { self.0.find_next_set(from) } else { self.0.find_next_clear(from) };
        found.map_or(end, |block| block.0.min(end))
    }
}

struct Sink<'a>(&'a mut Bitmap);

impl BitmapSink for Sink<'_> {
    fn merge_word(&mut self, index: u64, bits: u64) {
        self.0.merge_words(index, [bits]);
    }

    fn set_range(&mut self, first: u64, count: u64) {
        if count > 0 {
            self.0.merge_range(first..=first + count - 1);
        }
    }
}

impl Engine {
    /// The own bitmap goes to the peer.
    pub(crate) fn begin_sending_bitmap(&mut self, index: usize) {
        self.volumes[index].exchange.send_due = true;
        self.attention = true;
    }

    /// Sends what can be sent of the bitmap. Returns whether something happened.
    pub(crate) fn run_bitmap_exchange(&mut self, index: usize) -> bool {
        let volume = &self.volumes[index];
        if volume.exchange.send_due && self.volumes[index].exchange.sender.is_none() {
            return self.start_sending_bitmap(index);
        }
        let mut progress = false;
        while self.volumes[index].exchange.unsent < PACKETS_IN_FLIGHT && self.send_bitmap_packet(index) {
            progress = true;
        }
        progress
    }

    /// The bitmap is a snapshot: from now on newly set bits are told with P_OUT_OF_SYNC (io spec I19).
    fn start_sending_bitmap(&mut self, index: usize) -> bool {
        let sending = matches!(
            self.volumes[index].state.connection,
            ConnectionState::WFBitMapS | ConnectionState::WFBitMapT
        );
        if !sending || !self.connection.is_established() {
            self.volumes[index].exchange.send_due = false;
            return true;
        }
        // What is in flight may still set bits when it ends, and nothing tells the peer of those; nor may anything
        // else go over the socket while the bitmap does (wire spec 11.1 and 11.2).
        let in_flight = self.volumes[index].admitted > 0 && !self.bug(Bug::BitmapInFlight);
        if in_flight || !self.full_sync_is_durable(index) {
            return false;
        }
        let compress = self.connection.options.as_ref().is_none_or(|options| options.use_rle);
        let dialect = self.connection.dialect;
        let volume = &mut self.volumes[index];
        let bits = volume.disk.as_ref().map_or(0, |disk| disk.bitmap.bits());
        volume.exchange.send_due = false;
        volume.exchange.unsent = 0;
        volume.exchange.sender = Some(BitmapSender::new(bits, compress, dialect));
        true
    }

    fn send_bitmap_packet(&mut self, index: usize) -> bool {
        let volume = &mut self.volumes[index];
        let number = volume.number;
        let (Some(sender), Some(disk)) = (&mut volume.exchange.sender, &volume.disk) else { return false };
        let mut bytes = Vec::new();
        match sender.next_packet(&Source(&disk.bitmap), &mut bytes) {
            Some(packet) => {
                volume.exchange.unsent += 1;
                let token = Token(BITMAP_TOKEN | index as u64);
                self.send_with(
                    SocketRole::Data,
                    number,
                    packet,
                    Payload::Bytes(bytes),
                    false,
                    None,
                    Some(token),
                );
                true
            }
            None => {
                let statistics = *sender.statistics();
                volume.exchange.sender = None;
                volume.exchange.sent = true;
                if statistics.saved_anything() {
                    self.say(Level::Info, Some(index), format!("send {statistics}"));
                }
                self.bitmap_sent(index);
                true
            }
        }
    }

    /// A packet of bitmap, or a write of protocol A, is in the kernel's hands.
    pub(crate) fn packet_sent(&mut self, token: Token) {
        if token.0 & BITMAP_TOKEN == 0 {
            self.write_sent(Key::from_number(token.0));
        } else if let Some(volume) = self.volumes.get_mut((token.0 & !BITMAP_TOKEN) as usize) {
            volume.exchange.unsent = volume.exchange.unsent.saturating_sub(1);
            self.attention = true;
        }
    }

    /// The target has sent its merged bitmap: it waits for the identifier of the resync.
    fn bitmap_sent(&mut self, index: usize) {
        if self.volumes[index].state.connection == ConnectionState::WFBitMapT {
            self.change_state(index, StateRequest::connection(ConnectionState::WFSyncUUID));
        }
    }

    /// Whether a piece of the peer's bitmap may be taken: the state has to be there, and the source's own bitmap
    /// has to be out before the merge changes it.
    pub(crate) fn may_take_bitmap(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        match volume.state.connection {
            ConnectionState::WFBitMapS => volume.exchange.sent && self.full_sync_is_durable(index),
            ConnectionState::WFBitMapT => self.full_sync_is_durable(index),
            _ => true,
        }
    }

    /// A piece of the peer's bitmap.
    pub(crate) fn bitmap_received(&mut self, index: usize, packet: &wire::Packet, bytes: &[u8]) -> Verdict {
        let dialect = self.connection.dialect;
        let state = self.volumes[index].state.connection;
        let forgets = self.bug(Bug::ForgetPeersBits);
        let volume = &mut self.volumes[index];
        let Some(disk) = &mut volume.disk else {
            // The peer sent it before it heard that the disk has gone. A Primary without a disk needs the connection.
            volume.exchange.receiver = None;
            return Verdict::Good;
        };
        let bits = disk.bitmap.bits();
        let receiver = volume.exchange.receiver.get_or_insert_with(|| BitmapReceiver::new(bits, dialect));
        let mut unused = Bitmap::new(udrbd_units::Sector(bits * 8));
        let mut sink = Sink(if forgets { &mut unused } else { &mut disk.bitmap });
        let merged = match packet {
            wire::Packet::CompressedBitmap(encoding) => receiver.compressed(*encoding, bytes, &mut sink),
            _ => receiver.plain(bytes, &mut sink),
        };
        let finished = receiver.is_finished();
        let statistics = *receiver.statistics();
        volume.counters.out_of_sync_sectors = disk.bitmap.set_count() * 8;
        if let Err(error) = merged {
            self.say(Level::Error, Some(index), error.to_string());
            return Verdict::Reconnect;
        }
        if !finished {
            return Verdict::Good;
        }
        self.volumes[index].exchange.receiver = None;
        if statistics.saved_anything() {
            self.say(Level::Info, Some(index), format!("receive {statistics}"));
        }
        match state {
            ConnectionState::WFBitMapT => self.begin_sending_bitmap(index),
            ConnectionState::WFBitMapS => {
                self.volumes[index].exchange.sent = false;
                self.start_resync(index, ConnectionState::SyncSource);
            }
            other => {
                let text = format!("unexpected cstate ({other}) in receive_bitmap");
                self.say(Level::Info, Some(index), text);
            }
        }
        Verdict::Good
    }
}
