//! Frames: four bytes of length, big endian, and so many bytes of JSON.
//!
//! Encoding and decoding are pure, so the same code serves blocking clients and any event loop.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest frame. A snapshot of a thousand volumes is about 2 MiB.
pub const FRAME_LENGTH_MAX: usize = 64 << 20;
/// The longest frame a server takes from a client: requests are small.
pub const REQUEST_LENGTH_MAX: usize = 64 << 10;
const HEADER_LENGTH: usize = 4;

/// What is wrong with a frame or a message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is more than [`FRAME_LENGTH_MAX`], or [`REQUEST_LENGTH_MAX`] for a request.
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// The content is not the message expected.
    #[error("malformed message: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The frame of a message.
///
/// # Errors
/// The message is too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_LENGTH];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER_LENGTH;
    if length > FRAME_LENGTH_MAX {
        return Err(FrameError::TooLong(length));
    }
    let header = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?.to_be_bytes();
    frame[..HEADER_LENGTH].copy_from_slice(&header);
    Ok(frame)
}

/// Collects bytes as they arrive and hands out whole messages.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    length_max: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// An empty decoder for what a server sends.
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), length_max: FRAME_LENGTH_MAX }
    }

    /// An empty decoder for what a client sends.
    pub const fn for_requests() -> Self {
        Self { buffer: Vec::new(), length_max: REQUEST_LENGTH_MAX }
    }

    /// Takes bytes from the socket.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// The stream is not what it should be; the connection is to be closed.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER_LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length > self.length_max {
            return Err(FrameError::TooLong(length));
        }
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(content)?;
        self.buffer.drain(..HEADER_LENGTH + length);
        Ok(Some(message))
    }

    /// Whether bytes of an unfinished message are waiting.
    pub fn has_partial_message(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_survive_any_cutting(texts in prop::collection::vec(".{0,80}", 0..8), chunk in 1usize..40) {
            let mut stream = Vec::new();
            for text in &texts {
                stream.extend(encode(text).unwrap());
            }
            let mut decoder = FrameDecoder::new();
            let mut decoded: Vec<String> = Vec::new();
            for part in stream.chunks(chunk) {
                decoder.push(part);
                while let Some(text) = decoder.next_message().unwrap() {
                    decoded.push(text);
                }
            }
            prop_assert_eq!(decoded, texts);
            prop_assert!(!decoder.has_partial_message());
        }

        #[test]
        fn garbage_is_an_error_or_a_wait_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = FrameDecoder::new();
            decoder.push(&bytes);
            let _ = decoder.next_message::<crate::protocol::Request>();
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_at_once() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&[0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next_message::<String>(), Err(FrameError::TooLong(_))));
        let mut decoder = FrameDecoder::for_requests();
        decoder.push(&(REQUEST_LENGTH_MAX as u32 + 1).to_be_bytes());
        assert!(matches!(decoder.next_message::<String>(), Err(FrameError::TooLong(_))));
    }
}
