//! Frames waiting to be written on one lane. Whoever tells appends to one buffer; the lane's writer takes all of it at
//! once, so that a burst becomes one write without a timer. Bounded; must never block the teller.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::flow::{Flows, Signal};

/// Frames whose number is bounded elsewhere are refused at this many times the bound of bytes: whoever watches a hundred
/// thousand paths may hear of all of them, but whoever reads nothing of it is not a peer.
pub(crate) const URGENT_FACTOR: usize = 4;

#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
    /// Told when there is room again.
    emptied: Notify,
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
    /// What waits for its path's credit. Bounded like the buffer, and apart from it, so that it takes no room there.
    flows: Flows,
    closed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Closed,
    Full,
}

impl Outbox {
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { state: Mutex::default(), filled: Notify::new(), emptied: Notify::new(), messages_max, bytes_max }
    }

    /// Appends a frame, or refuses it at the bound. A frame of any size is taken when the outbox is empty.
    pub(crate) fn push(&self, frame: &[u8]) -> Result<(), PushError> {
        self.append(frame, true)
    }

    /// As `push`, of a message to `path`, which waits here while the path has no credit.
    pub(crate) fn push_to(&self, path: &str, body_bytes: usize, frame: &[u8]) -> Result<(), PushError> {
        {
            let mut state = self.state.lock();
            if !state.closed && !state.flows.admit(path, body_bytes) {
                let (messages, bytes) = self.held(&state);
                if messages >= self.messages_max || (bytes > 0 && bytes + frame.len() > self.bytes_max) {
                    return Err(PushError::Full);
                }
                state.flows.hold(path, frame, body_bytes);
                return Ok(());
            }
            if let Err(error) = self.put(&mut state, frame, true) {
                state.flows.give_back(path, body_bytes);
                return Err(error);
            }
        }
        self.filled.notify_one();
        Ok(())
    }

    /// What waits for credit, in messages and bytes, and what credit has moved into the buffer beyond its bound: a peer that
    /// credits what it does not read makes no room by that.
    fn held(&self, state: &State) -> (usize, usize) {
        let (messages, bytes) = state.flows.held();
        let messages_over = (state.messages + state.writing_messages).saturating_sub(self.messages_max);
        let bytes_over = (state.buffer.len() + state.writing_bytes).saturating_sub(self.bytes_max);
        (messages + messages_over, bytes + bytes_over)
    }

    /// Takes in what the receiver says about its inboxes.
    pub(crate) fn hear(&self, signal: Signal) {
        {
            let mut state = self.state.lock();
            for held in state.flows.hear(signal) {
                state.buffer.extend_from_slice(&held.frame);
                state.messages += 1;
            }
        }
        self.filled.notify_one();
        self.emptied.notify_waiters();
    }

    /// Appends a frame whose number is bounded elsewhere (monitors and their Downs); refused at `URGENT_FACTOR` times the
    /// bound of bytes.
    pub(crate) fn push_unbounded(&self, frame: &[u8]) -> Result<(), PushError> {
        self.append(frame, false)
    }

    fn append(&self, frame: &[u8], bounded: bool) -> Result<(), PushError> {
        {
            let mut state = self.state.lock();
            self.put(&mut state, frame, bounded)?;
        }
        self.filled.notify_one();
        Ok(())
    }

    fn put(&self, state: &mut State, frame: &[u8], bounded: bool) -> Result<(), PushError> {
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
        Ok(())
    }

    /// As `push_to`, but waits for room. Fails only when the outbox is closed. Who waits has no place in a queue.
    pub(crate) async fn push_to_when_free(&self, path: &str, body_bytes: usize, frame: &[u8]) -> Result<(), PushError> {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            // Enabled before the try, so that room made in between is not missed.
            emptied.as_mut().enable();
            match self.push_to(path, body_bytes, frame) {
                Err(PushError::Full) => emptied.await,
                done => return done,
            }
        }
    }

    /// Everything there is, once there is something; `None` when closed and empty. One caller at a time; taking again
    /// says that the last batch is written.
    pub(crate) async fn take(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state.lock();
                state.writing_messages = 0;
                state.writing_bytes = 0;
                self.emptied.notify_waiters();
                if !state.buffer.is_empty() {
                    state.writing_messages = std::mem::take(&mut state.messages);
                    state.writing_bytes = state.buffer.len();
                    return Some(std::mem::take(&mut state.buffer).into());
                }
                if state.closed && state.flows.held().0 == 0 {
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
        self.emptied.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::flow::Window;

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
    async fn credit_for_what_is_not_read_makes_no_room_without_end() {
        let outbox = Outbox::new(10, 1_000);
        let tell = |bytes: usize| outbox.push_to("p", bytes, &vec![7; bytes]).map_or(0, |()| bytes);
        let credit = || outbox.hear(Signal::Credit { path: "p".into(), messages: u32::MAX, bytes: u64::MAX });
        outbox.hear(Signal::Window(Window { messages: 1, bytes: 1 }));
        let flood = |bytes: usize| {
            let told = (0..100).flat_map(|_| {
                [tell(bytes), tell(bytes), {
                    credit();
                    0
                }]
            });
            told.filter(|told| *told > 0).fold((0, 0), |(messages, all), bytes| (messages + 1, all + bytes))
        };
        // As many as may wait to be written, and as many as may wait for credit.
        assert_eq!(flood(10), (20, 200));
        // Taken is not written.
        let mut written = outbox.take().await.expect("open").len();
        assert_eq!(flood(10), (0, 0));
        while written < 200 {
            credit();
            written += outbox.take().await.expect("open").len();
        }
        // Taking again says that it is written.
        assert_eq!(outbox.take().now_or_never(), None);
        assert_eq!(flood(300), (6, 1_800));
    }

    #[tokio::test]
    async fn who_waits_for_room_is_woken_by_it_and_by_the_end() {
        let outbox = std::sync::Arc::new(Outbox::new(1, 1_000));
        outbox.push(b"a").expect("room");
        let waiting = |frame: &'static [u8]| {
            let outbox = outbox.clone();
            tokio::spawn(async move { outbox.push_to_when_free("p", 1, frame).await })
        };
        let first = waiting(b"b");
        assert_eq!(outbox.take().await.expect("open"), "a");
        // Taking again says that it is written.
        assert_eq!(outbox.take().await.expect("open"), "b");
        assert_eq!(first.await.expect("no panic"), Ok(()));
        let second = waiting(b"c");
        tokio::task::yield_now().await;
        outbox.close();
        assert_eq!(second.await.expect("no panic"), Err(PushError::Closed));
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
