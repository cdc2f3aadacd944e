//! Frames waiting to be written on one lane. Whoever tells appends to one buffer; the lane's writer takes all of it at
//! once, so that a burst becomes one write without a timer. Bounded; must never block the teller.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    flow::{Flows, Letter, Numbered, Signal},
    frame::{EncodeError, put_route, put_routed, put_tell},
};

/// Frames whose number is bounded elsewhere are refused at this many times the bound of bytes: whoever watches a hundred
/// thousand paths may hear of all of them, but whoever reads nothing of it is not a peer.
pub(crate) const URGENT_FACTOR: usize = 4;

/// Memory of one buffer. When it is full there is another, so that what is in it is not copied again and again.
const BUFFER_BYTES: usize = 32 << 10;

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
    /// Full ones, in order, before the one that is being filled.
    full: Vec<Bytes>,
    full_bytes: usize,
    buffer: Vec<u8>,
    messages: usize,
    /// The writer knows that there is something, or will look before it waits.
    noticed: bool,
    /// Taken by the writer and not yet written; still counts.
    writing_messages: usize,
    writing_bytes: usize,
    /// What waits for its path's credit. Bounded like the buffer, and apart from it, so that it takes no room there.
    flows: Flows,
    closed: bool,
}

impl State {
    fn bytes(&self) -> usize {
        self.full_bytes + self.buffer.len()
    }

    /// Where the next frame goes, of about so many bytes.
    fn buffer_for(&mut self, bytes: usize) -> &mut Vec<u8> {
        if self.buffer.len() + bytes > BUFFER_BYTES && !self.buffer.is_empty() {
            let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER_BYTES.max(bytes)));
            self.full_bytes += full.len();
            self.full.push(full.into());
        }
        &mut self.buffer
    }

    fn append(&mut self, frame: &[u8]) {
        self.buffer_for(frame.len()).extend_from_slice(frame);
        self.messages += 1;
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Closed,
    Full,
}

/// Why a message was not taken.
#[derive(Debug)]
pub(crate) enum TellError {
    Encode(EncodeError),
    Push(PushError),
}

/// What the other side of a link reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    /// What protocol version 2 has added to an envelope.
    pub(crate) references: bool,
    /// Routes by number.
    pub(crate) routes: bool,
    /// Longest frame.
    pub(crate) frame_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { state: Mutex::default(), filled: Notify::new(), emptied: Notify::new(), messages_max, bytes_max }
    }

    /// Appends a frame, or refuses it at the bound. A frame of any size is taken when the outbox is empty.
    pub(crate) fn push(&self, frame: &[u8]) -> Result<(), PushError> {
        self.put(frame, true)
    }

    /// Appends a frame whose number is bounded elsewhere (monitors and their Downs); refused at `URGENT_FACTOR` times the
    /// bound of bytes.
    pub(crate) fn push_unbounded(&self, frame: &[u8]) -> Result<(), PushError> {
        self.put(frame, false)
    }

    fn put(&self, frame: &[u8], bounded: bool) -> Result<(), PushError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(PushError::Closed);
        }
        if !self.has_room(&state, frame.len(), bounded) {
            return Err(PushError::Full);
        }
        state.append(frame);
        self.notice(state);
        Ok(())
    }

    /// Appends a message, which waits here while its path has no credit; or refuses it at the bound.
    pub(crate) fn tell(&self, letter: &Letter<'_>, dialect: Dialect) -> Result<(), TellError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(TellError::Push(PushError::Closed));
        }
        let body_bytes = letter.body.len();
        let (admitted, numbered) = state.flows.admit(letter, dialect.routes.then_some(dialect.frame_bytes));
        if let Numbered::New(number) = numbered {
            // Told whatever becomes of the message, for the number is given. Their number is bounded.
            put_route(state.buffer_for(letter.path.len()), number, letter);
        }
        if !admitted {
            let held = self.hold(&mut state, letter, numbered, dialect);
            self.notice(state);
            return held;
        }
        let taken = if self.has_room(&state, body_bytes, true) {
            let buffer = state.buffer_for(body_bytes);
            put_letter(buffer, letter, numbered, dialect).map_err(TellError::Encode)
        } else {
            Err(TellError::Push(PushError::Full))
        };
        match taken {
            Ok(()) => state.messages += 1,
            Err(_) => state.flows.give_back(letter.path, body_bytes),
        }
        self.notice(state);
        taken
    }

    fn hold(
        &self,
        state: &mut State,
        letter: &Letter<'_>,
        numbered: Numbered,
        dialect: Dialect,
    ) -> Result<(), TellError> {
        let (messages, bytes) = self.held(state);
        // No more than is left for the others: so there is always some left, however many paths are slow.
        let (own_messages, own_bytes) = state.flows.held_for(letter.path);
        let many = own_messages >= self.messages_max.saturating_sub(messages);
        let own_large = own_messages > 0 && own_bytes + letter.body.len() > self.bytes_max.saturating_sub(bytes);
        if many || own_large || (bytes > 0 && bytes + letter.body.len() > self.bytes_max) {
            return Err(TellError::Push(PushError::Full));
        }
        let mut frame = vec![];
        put_letter(&mut frame, letter, numbered, dialect).map_err(TellError::Encode)?;
        state.flows.hold(letter.path, &frame, letter.body.len());
        Ok(())
    }

    /// What waits for credit, in messages and bytes, and what credit has moved into the buffer beyond its bound: a peer that
    /// credits what it does not read makes no room by that.
    fn held(&self, state: &State) -> (usize, usize) {
        let (messages, bytes) = state.flows.held();
        let messages_over = (state.messages + state.writing_messages).saturating_sub(self.messages_max);
        let bytes_over = (state.bytes() + state.writing_bytes).saturating_sub(self.bytes_max);
        (messages + messages_over, bytes + bytes_over)
    }

    /// Takes in what the receiver says about its inboxes.
    pub(crate) fn hear(&self, signal: Signal) {
        let mut state = self.state.lock();
        let mut flows = std::mem::take(&mut state.flows);
        flows.hear(signal, |frame| state.append(frame));
        state.flows = flows;
        self.notice(state);
        self.emptied.notify_waiters();
    }

    fn has_room(&self, state: &State, frame_bytes: usize, bounded: bool) -> bool {
        let messages = state.messages + state.writing_messages;
        let bytes = state.bytes() + state.writing_bytes;
        let over = messages >= self.messages_max || bytes + frame_bytes > self.bytes_max;
        let over_all = bytes.saturating_add(frame_bytes) > self.bytes_max.saturating_mul(URGENT_FACTOR);
        messages == 0 || !(bounded && over || over_all)
    }

    /// Wakes the writer if there is something that it does not know of.
    fn notice(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        if state.bytes() > 0 && !std::mem::replace(&mut state.noticed, true) {
            drop(state);
            self.filled.notify_one();
        }
    }

    /// As `tell`, but waits for room. Fails with `Closed` only when the outbox is closed. Who waits has no place in a queue.
    pub(crate) async fn tell_when_free(&self, letter: &Letter<'_>, dialect: Dialect) -> Result<(), TellError> {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            // Enabled before the try, so that room made in between is not missed.
            emptied.as_mut().enable();
            match self.tell(letter, dialect) {
                Err(TellError::Push(PushError::Full)) => emptied.await,
                done => return done,
            }
        }
    }

    /// Everything there is, once there is something; `None` when closed and empty. One caller at a time; taking again
    /// says that the last batch is written.
    pub(crate) async fn take(&self) -> Option<Vec<Bytes>> {
        loop {
            {
                let mut state = self.state.lock();
                state.writing_messages = 0;
                state.writing_bytes = 0;
                self.emptied.notify_waiters();
                if state.bytes() > 0 {
                    state.writing_messages = std::mem::take(&mut state.messages);
                    state.writing_bytes = state.bytes();
                    state.full_bytes = 0;
                    let mut batch = std::mem::take(&mut state.full);
                    batch.push(std::mem::take(&mut state.buffer).into());
                    return Some(batch);
                }
                if state.closed && state.flows.held().0 == 0 {
                    return None;
                }
                state.noticed = false;
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

/// Appends a message's frame.
fn put_letter(
    buffer: &mut Vec<u8>,
    letter: &Letter<'_>,
    numbered: Numbered,
    dialect: Dialect,
) -> Result<(), EncodeError> {
    match numbered {
        Numbered::Not => put_tell(buffer, letter, dialect),
        Numbered::New(number) | Numbered::Known(number) => put_routed(buffer, number, letter, dialect.frame_bytes),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::{flow::Window, remote::Envelope};

    const DIALECT: Dialect = Dialect { references: true, routes: true, frame_bytes: 1_000 };
    const MESSAGE: Envelope<'static> = Envelope { name: "m", version: 1, version_min: 1 };

    fn letter<'a>(path: &'a str, body: &'a [u8]) -> Letter<'a> {
        Letter { path, message: MESSAGE, pid: None, trace: None, body }
    }

    async fn taken(outbox: &Outbox) -> String {
        let batch = outbox.take().await.expect("open");
        String::from_utf8(batch.concat()).expect("text")
    }

    #[tokio::test]
    async fn a_burst_is_taken_as_one_batch_in_order() {
        let outbox = Outbox::new(10, 1_000);
        for frame in [&b"ab"[..], b"cd", b"ef"] {
            outbox.push(frame).expect("room");
        }
        assert_eq!(taken(&outbox).await, "abcdef");
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
        assert_eq!(taken(&outbox).await, "d");
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
        let tell = |bytes: usize| outbox.tell(&letter("p", &vec![7; bytes]), DIALECT).map_or(0, |()| bytes);
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
        let mut written = outbox.take().await.expect("open").concat().len();
        assert_eq!(flood(10), (0, 0));
        while written < 200 {
            credit();
            written += outbox.take().await.expect("open").concat().len();
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
            tokio::spawn(async move { outbox.tell_when_free(&letter("p", frame), DIALECT).await })
        };
        let first = waiting(b"b");
        assert_eq!(taken(&outbox).await, "a");
        // Taking again says that it is written.
        assert!(outbox.take().await.expect("open").concat().ends_with(b"b"));
        assert!(matches!(first.await.expect("no panic"), Ok(())));
        let second = waiting(b"c");
        tokio::task::yield_now().await;
        outbox.close();
        assert!(matches!(second.await.expect("no panic"), Err(TellError::Push(PushError::Closed))));
    }

    #[tokio::test]
    async fn what_was_pushed_before_closing_is_still_taken() {
        let outbox = Outbox::new(10, 1_000);
        outbox.push(b"a").expect("room");
        outbox.close();
        assert_eq!(outbox.push(b"b"), Err(PushError::Closed));
        assert_eq!(taken(&outbox).await, "a");
        assert!(outbox.take().await.is_none());
    }
}
