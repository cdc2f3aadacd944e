//! Tells that have arrived and wait for their handlers: one queue for each peer, lane and path, handled one after the
//! other, so that tells are handled in the order in which they were sent. They wait in batches, the bytes of many messages in
//! one piece of memory: what a message costs to hand over is a copy, and no lock of its own. Bounded; a path that takes
//! nothing holds up its lane for a while (backpressure), and then loses what comes for it, so that its neighbours go on.
//! Filled by the lanes' readers, emptied by a task for each queue.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};

/// Which queue: two lanes are not ordered among each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Control,
    Tells,
}

/// What keeping a message costs beside its body, in bytes, as far as `total_bytes_max` counts it.
const MESSAGE_BYTES: usize = 512;

/// A path where nothing waits takes one message up to this, in bytes, even when everything together is full: paths that
/// take nothing must not starve those that do.
const SMALL_MESSAGE_BYTES: usize = 16 << 10;

/// Memory of a batch, in bytes; a larger message is a batch of its own.
pub(crate) const BATCH_BYTES: usize = 16 << 10;

/// Of what an inbox holds, a share of one in so many may have been handed to handlers already and not yet make room.
const SETTLE_SHARE: usize = 8;

/// Whoever takes the messages of one path, of one sender.
pub(crate) trait Receiver: Send + Sync {
    fn path(&self) -> &Arc<str>;
    /// What each message costs for its sake, in bytes, beside the message.
    fn bytes(&self) -> usize;
    /// Whether anybody handles the messages now.
    fn is_served(&self) -> bool;
    /// What handles the next messages. Asked anew for each batch, on the handlers' runtime.
    fn sink(self: Arc<Self>) -> Box<dyn Sink>;
    /// So many messages, with so many bytes in their bodies, have left the inbox for their handlers.
    fn took(&self, messages: usize, body_bytes: usize);
    /// One message will not be handled for want of room; `begins`: it is the first.
    fn dropped(&self, body_bytes: usize, begins: bool);
}

/// Handles messages one after the other.
pub(crate) trait Sink: Send {
    /// Begins to handle a message; gives what is left to wait for before the next one. Must not panic.
    fn take(&mut self, trace: Option<&str>, body: &[u8]) -> Option<BoxFuture<'static, ()>>;
}

/// Messages to one receiver, in order.
pub(crate) struct Batch {
    receiver: Arc<dyn Receiver>,
    /// Of each message: the length of its body and of its trace, its trace, its body.
    bytes: Vec<u8>,
    /// Where the next message begins.
    at: usize,
    messages: usize,
    body_bytes: usize,
}

/// Before each message of a batch: four bytes for the body, one for the trace.
const HEAD_BYTES: usize = 5;

impl Batch {
    pub(crate) fn new(receiver: Arc<dyn Receiver>) -> Self {
        Self { receiver, bytes: vec![], at: 0, messages: 0, body_bytes: 0 }
    }

    /// Whether another message may be added.
    pub(crate) fn has_room(&self, body_bytes: usize) -> bool {
        self.messages == 0 || self.bytes.len() + body_bytes <= BATCH_BYTES
    }

    /// What its messages cost beside their bodies.
    fn cost(&self) -> usize {
        self.messages * (MESSAGE_BYTES + self.receiver.bytes())
    }

    pub(crate) fn is_of(&self, receiver: &Arc<dyn Receiver>) -> bool {
        // By the data alone: the same receiver may have several tables of functions.
        std::ptr::addr_eq(Arc::as_ptr(&self.receiver), Arc::as_ptr(receiver))
    }

    /// Adds a message. A body is no longer than a frame, whose length has four bytes.
    pub(crate) fn push(&mut self, trace: Option<&str>, body: &[u8]) {
        let (Ok(body_len), trace) = (u32::try_from(body.len()), trace.unwrap_or_default()) else { return };
        // One that is longer is none.
        let trace_len = u8::try_from(trace.len()).unwrap_or(0);
        let trace = &trace.as_bytes()[..usize::from(trace_len)];
        let needed = HEAD_BYTES + trace.len() + body.len();
        if self.bytes.capacity() - self.bytes.len() < needed {
            // At least doubled, and never much more than a batch.
            let more = (self.bytes.capacity() * 2).clamp(needed, BATCH_BYTES.max(needed));
            self.bytes.reserve(more);
        }
        self.bytes.extend_from_slice(&body_len.to_ne_bytes());
        self.bytes.push(trace_len);
        self.bytes.extend_from_slice(trace);
        self.bytes.extend_from_slice(body);
        self.messages += 1;
        self.body_bytes += body.len();
    }

    /// The first message.
    fn first(&self) -> Option<(Option<&str>, &[u8])> {
        let (head, rest) = self.bytes.get(self.at..)?.split_first_chunk::<HEAD_BYTES>()?;
        let [a, b, c, d, trace_len] = *head;
        let (trace, rest) = rest.split_at_checked(usize::from(trace_len))?;
        let body = rest.get(..u32::from_ne_bytes([a, b, c, d]) as usize)?;
        let trace = std::str::from_utf8(trace).ok().filter(|trace| !trace.is_empty());
        Some((trace, body))
    }

    /// The first message has been dealt with.
    fn advance(&mut self) {
        if let Some((trace, body)) = self.first() {
            let (trace_bytes, body_bytes) = (trace.map_or(0, str::len), body.len());
            self.at += HEAD_BYTES + trace_bytes + body_bytes;
            self.messages -= 1;
            self.body_bytes -= body_bytes;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inboxes {
    queues: Mutex<Queues>,
    runtime: Handle,
    bounds: Bounds,
    wait: Duration,
}

/// What one peer's inboxes hold at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Messages of one queue.
    pub(crate) messages_max: usize,
    /// Bytes of one queue.
    pub(crate) bytes_max: usize,
    /// Bytes of all queues together, with what each message costs beside its body.
    pub(crate) total_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Queues {
    by_path: HashMap<(Lane, Arc<str>), Queue>,
    /// Of all queues, with what each message costs beside its body.
    bytes: usize,
    /// Did not come below the bound in time; as `Queue::overrun`.
    overrun: bool,
    /// Woken when any queue has given up a message.
    room: Arc<Notify>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Waiting in it, with those of the batch at work whose handlers have not begun.
    messages: usize,
    bytes: usize,
    /// What they cost beside their bodies.
    cost: usize,
    /// Did not make room in time; messages are dropped without waiting until one fits again.
    overrun: bool,
    room: Arc<Notify>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({})", self.messages)
    }
}

impl Queue {
    /// Puts the first message of a batch behind all others.
    fn take_first(&mut self, batch: &mut Batch) {
        if let Some((trace, body)) = batch.first() {
            let fits = |last: &Batch| last.is_of(&batch.receiver) && last.has_room(body.len());
            match self.batches.back_mut() {
                Some(last) if fits(last) => last.push(trace, body),
                _ => {
                    let mut next = Batch::new(batch.receiver.clone());
                    next.push(trace, body);
                    self.batches.push_back(next);
                }
            }
            self.messages += 1;
            self.bytes += body.len();
            self.cost += MESSAGE_BYTES + batch.receiver.bytes();
        }
        batch.advance();
    }
}

enum Attempt {
    Queued,
    /// From the first message that is left in the batch.
    Full {
        overrun: bool,
        room: Arc<Notify>,
    },
}

impl Inboxes {
    pub(crate) fn new(runtime: Handle, bounds: Bounds, wait: Duration) -> Self {
        Self { queues: Mutex::default(), runtime, bounds, wait }
    }

    /// Queues messages, waiting for room on the tells lane, never on the control lane. Those for which there is none are
    /// dropped, and their receiver is told.
    pub(crate) async fn deliver(self: &Arc<Self>, lane: Lane, mut batch: Batch) {
        while let Attempt::Full { mut overrun, mut room } = self.attempt(lane, &mut batch) {
            if lane == Lane::Tells && !overrun {
                let deadline = tokio::time::Instant::now() + self.wait;
                let queued = loop {
                    if tokio::time::timeout_at(deadline, room.notified()).await.is_err() {
                        break false;
                    }
                    match self.attempt(lane, &mut batch) {
                        Attempt::Queued => break true,
                        Attempt::Full { overrun: now, room: again } => (overrun, room) = (now, again),
                    }
                };
                if queued {
                    return;
                }
            }
            if !overrun {
                self.overrun(lane, &batch, &room);
            }
            if let Some((_, body)) = batch.first() {
                batch.receiver.dropped(body.len(), !overrun);
            }
            batch.advance();
        }
    }

    fn overrun(&self, lane: Lane, batch: &Batch, room: &Arc<Notify>) {
        let mut queues = self.queues.lock();
        if Arc::ptr_eq(&queues.room, room) {
            queues.overrun = true;
        } else if let Some(queue) = queues.by_path.get_mut(&(lane, batch.receiver.path().clone())) {
            queue.overrun = true;
        }
    }

    /// Queues a batch of one if there is room now; for senders that must not wait.
    pub(crate) fn try_deliver(self: &Arc<Self>, lane: Lane, mut batch: Batch) -> bool {
        matches!(self.attempt(lane, &mut batch), Attempt::Queued)
    }

    /// Queues what there is room for, and leaves the rest in the batch.
    fn attempt(self: &Arc<Self>, lane: Lane, batch: &mut Batch) -> Attempt {
        let key = (lane, batch.receiver.path().clone());
        let mut queues = self.queues.lock();
        let Queues { by_path, bytes: total, overrun, room } = &mut *queues;
        let is_new = !by_path.contains_key(&key);
        let queue = by_path.entry(key.clone()).or_default();
        let outcome = self.fill(queue, total, overrun, room, batch);
        if is_new {
            if queue.messages == 0 {
                by_path.remove(&key);
            } else {
                self.runtime.spawn(self.clone().drain(key));
            }
        }
        outcome
    }

    fn fill(
        &self,
        queue: &mut Queue,
        total: &mut usize,
        overrun: &mut bool,
        room: &Arc<Notify>,
        batch: &mut Batch,
    ) -> Attempt {
        let cost = batch.cost();
        if queue.messages + batch.messages <= self.bounds.messages_max
            && queue.bytes + batch.body_bytes <= self.bounds.bytes_max
            && *total + batch.body_bytes + cost <= self.bounds.total_bytes_max
            && batch.at == 0
        {
            // All of it, as it is: what is nearly always so.
            (queue.overrun, *overrun) = (false, false);
            *total += batch.body_bytes + cost;
            queue.messages += batch.messages;
            queue.bytes += batch.body_bytes;
            queue.cost += cost;
            let empty = Batch::new(batch.receiver.clone());
            queue.batches.push_back(std::mem::replace(batch, empty));
            return Attempt::Queued;
        }
        while let Some((_, body)) = batch.first() {
            let bytes = body.len();
            let full = queue.messages >= self.bounds.messages_max || queue.bytes + bytes > self.bounds.bytes_max;
            if full && queue.messages > 0 {
                return Attempt::Full { overrun: queue.overrun, room: queue.room.clone() };
            }
            let cost = bytes + MESSAGE_BYTES + batch.receiver.bytes();
            if *total + cost <= self.bounds.total_bytes_max {
                *overrun = false;
            } else if *total > 0 && (queue.messages > 0 || bytes > SMALL_MESSAGE_BYTES || !batch.receiver.is_served()) {
                return Attempt::Full { overrun: *overrun, room: room.clone() };
            }
            *total += cost;
            queue.overrun = false;
            queue.take_first(batch);
        }
        Attempt::Queued
    }

    /// Handles one queue until it is empty; a queue exists exactly as long as this does.
    async fn drain(self: Arc<Self>, key: (Lane, Arc<str>)) {
        let step = (self.bounds.messages_max / SETTLE_SHARE).max(1);
        let step_bytes = self.bounds.bytes_max / SETTLE_SHARE;
        let mut draining = Draining { inboxes: self, key: Some(key) };
        while let Some(mut batch) = draining.next() {
            let receiver = batch.receiver.clone();
            let mut sink = receiver.clone().sink();
            // Begun, and still counted as waiting.
            let (mut messages, mut bytes) = (0, 0);
            while let Some((trace, body)) = batch.first() {
                messages += 1;
                bytes += body.len();
                if messages >= step || bytes >= step_bytes || batch.messages == 1 {
                    draining.settle(&receiver, std::mem::take(&mut messages), std::mem::take(&mut bytes));
                }
                if let Some(mut rest) = sink.take(trace, body) {
                    // Mostly it is done at once.
                    if (&mut rest).now_or_never().is_none() {
                        if messages > 0 {
                            draining.settle(&receiver, std::mem::take(&mut messages), std::mem::take(&mut bytes));
                        }
                        rest.await;
                    }
                }
                batch.advance();
                tokio::task::coop::consume_budget().await;
            }
        }
    }
}

/// The drain of one queue. If it is dropped, because its runtime ends, so is the queue: what waits in it owns what owns the
/// inboxes.
struct Draining {
    inboxes: Arc<Inboxes>,
    /// `None` once the queue was empty and is gone.
    key: Option<(Lane, Arc<str>)>,
}

impl Draining {
    fn next(&mut self) -> Option<Batch> {
        let mut queues = self.inboxes.queues.lock();
        let queue = queues.by_path.get_mut(self.key.as_ref()?)?;
        if let Some(batch) = queue.batches.pop_front() {
            return Some(batch);
        }
        queues.by_path.remove(&self.key.take()?);
        None
    }

    /// Messages have left the inbox: there is room again.
    fn settle(&self, receiver: &Arc<dyn Receiver>, messages: usize, bytes: usize) {
        let Some(key) = &self.key else { return };
        {
            let mut queues = self.inboxes.queues.lock();
            let Queues { by_path, bytes: total, room, .. } = &mut *queues;
            if let Some(queue) = by_path.get_mut(key) {
                let cost = messages * (MESSAGE_BYTES + receiver.bytes());
                queue.messages -= messages;
                queue.bytes -= bytes;
                queue.cost -= cost;
                *total -= bytes + cost;
                queue.room.notify_one();
                room.notify_one();
            }
        }
        receiver.took(messages, bytes);
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let queue = {
                let mut queues = self.inboxes.queues.lock();
                let queue = queues.by_path.remove(&key);
                if let Some(queue) = &queue {
                    queues.bytes -= queue.bytes + queue.cost;
                }
                queue
            };
            // Outside of the lock, with whatever its batches own.
            drop(queue);
        }
    }
}

#[cfg(test)]
#[path = "inbox_test.rs"]
mod tests;
