//! Frames waiting to be written on one lane. Whoever tells appends to one buffer; the lane's writer takes all of it at
//! once, so that a burst becomes one write without a timer. Bounded; must never block the teller.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Frames whose number is bounded elsewhere are refused at this many times the bound of bytes: whoever watches a hundred
/// thousand paths may hear of all of them, but whoever reads nothing of it is not a peer.
pub(crate) const URGENT_FACTOR: usize = 4;

#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
    messages_max: usize,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    messages: usize,
    /// Taken by the writer and not yet written; still counts.
    writing_messages: usize,
    writing_bytes: usize,
    closed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Closed,
    Full,
}

impl Outbox {
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { state: Mutex::default(), filled: Notify::new(), messages_max, bytes_max }
    }

    /// Appends a frame, or refuses it at the bound. A frame of any size is taken when the outbox is empty.
    pub(crate) fn push(&self, frame: &[u8]) -> Result<(), PushError> {
        self.append(frame, true)
    }

    /// Appends a frame whose number is bounded elsewhere (monitors and their Downs); refused at `URGENT_FACTOR` times the
    /// bound of bytes.
    pub(crate) fn push_unbounded(&self, frame: &[u8]) -> Result<(), PushError> {
        self.append(frame, false)
    }

    fn append(&self, frame: &[u8], bounded: bool) -> Result<(), PushError> {
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err(PushError::Closed);
            }
            let messages = state.messages + state.writing_messages;
            let bytes = state.buffer.len() + state.writing_bytes;
            let over = messages >= self.messages_max || bytes + frame.len() > self.bytes_max;
            let over_all = bytes.saturating_add(frame.len()) > self.bytes_max.saturating_mul(URGENT_FACTOR);
            if (bounded && over || over_all) && messages > 0 {
                return Err(PushError::Full);
            }
            state.buffer.extend_from_slice(frame);
            state.messages += 1;
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Everything there is, once there is something; `None` when closed and empty. One caller at a time; taking again
    /// says that the last batch is written.
    pub(crate) async fn take(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state.lock();
                state.writing_messages = 0;
                state.writing_bytes = 0;
                if !state.buffer.is_empty() {
                    state.writing_messages = std::mem::take(&mut state.messages);
                    state.writing_bytes = state.buffer.len();
                    return Some(std::mem::take(&mut state.buffer).into());
                }
                if state.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Refuses further frames; what is there is still written.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_is_taken_as_one_batch_in_order() {
        let outbox = Outbox::new(10, 1_000);
        for frame in [&b"ab"[..], b"cd", b"ef"] {
            outbox.push(frame).expect("room");
        }
        assert_eq!(outbox.take().await.expect("open"), "abcdef");
    }

    #[tokio::test]
    async fn it_is_full_until_the_batch_is_written_not_only_taken() {
        let outbox = Outbox::new(2, 1_000);
        outbox.push(b"a").expect("room");
        outbox.push(b"b").expect("room");
        assert_eq!(outbox.push(b"c"), Err(PushError::Full));
        outbox.take().await.expect("open");
        assert_eq!(outbox.push(b"c"), Err(PushError::Full));
        outbox.push_unbounded(b"d").expect("not bounded");
        assert_eq!(outbox.take().await.expect("open"), "d");
        outbox.push(b"c").expect("room");
    }

    #[test]
    fn it_is_bounded_in_bytes_but_takes_one_frame_of_any_size() {
        let outbox = Outbox::new(10, 4);
        outbox.push(b"abcdefgh").expect("the first");
        assert_eq!(outbox.push(b"i"), Err(PushError::Full));
    }

    #[test]
    fn what_is_bounded_elsewhere_has_an_end_too() {
        let outbox = Outbox::new(10, 4);
        for _ in 0..4 {
            outbox.push_unbounded(b"abcd").expect("urgent");
        }
        assert_eq!(outbox.push_unbounded(b"e"), Err(PushError::Full));
    }

    #[tokio::test]
    async fn what_was_pushed_before_closing_is_still_taken() {
        let outbox = Outbox::new(10, 1_000);
        outbox.push(b"a").expect("room");
        outbox.close();
        assert_eq!(outbox.push(b"b"), Err(PushError::Closed));
        assert_eq!(outbox.take().await.expect("the rest"), "a");
        assert!(outbox.take().await.is_none());
    }
}
