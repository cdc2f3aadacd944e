//! The account of a mailbox: who gets room, how many messages wait, and what became of the others. actix's own bound grows with each sender, so this one
//! decides.
//!
//! Two numbers, each written by one side only: how many messages were given room ([`Places`], by the senders), and how many were taken out
//! ([`Taken`], by the actor's own thread). Taking one out is therefore a plain store and not an exchange that waits for the memory, and
//! the two sides do not write to one cache line. The senders keep beside their number how many more may come before they have
//! to look at the other one.

use super::{Cell, DEAD, ENDING, Pid, ROOM};
use crate::error::SendError;
use crate::mailbox::Backlog;
use crate::spec::{Mailbox, Overflow};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// More than any mailbox holds.
const CLOSED: u32 = 1 << 31;

/// The senders' side: the number of messages that were given room, which wraps around, and above it for how many more there is room at
/// least, or [`CLOSED`].
pub(super) struct Places(AtomicU64);

/// [`Places`] taken apart.
#[derive(Clone, Copy)]
struct Split {
    given: u32,
    room: u32,
}

impl Split {
    #[inline]
    fn of(word: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "it is the lower half")]
        let given = word as u32;
        Split { given, room: (word >> 32) as u32 }
    }

    #[inline]
    fn word(self) -> u64 {
        u64::from(self.room) << 32 | u64::from(self.given)
    }
}

impl Places {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Places(AtomicU64::new(Split { given: 0, room: mailbox.messages }.word()))
    }
}

/// The actor's side. Written by its own thread alone.
#[derive(Default)]
pub(super) struct Taken {
    /// Messages that have left the mailbox; wraps around.
    taken: AtomicU32,
    handled: AtomicU64,
}

/// How many wait for room.
#[derive(Default)]
pub(super) struct Waiters(AtomicU32);

impl Cell {
    /// How many wait. The two sides are not looked at in one moment: none do when more were taken since than were given room then.
    fn queued(&self, places: Split) -> u32 {
        match places.given.wrapping_sub(self.taken.taken.load(Acquire)) {
            queued if queued < CLOSED => queued,
            _ => 0,
        }
    }
}

impl Pid {
    pub(crate) fn mailbox(&self) -> Mailbox {
        self.0.mailbox
    }

    /// Takes room for one message.
    #[inline]
    pub(crate) fn reserve(&self) -> Result<(), SendError> {
        let places = &self.0.places.0;
        let mut word = places.load(Relaxed);
        loop {
            let Split { given, room } = Split::of(word);
            // One look for both: neither none, nor closed.
            if room.wrapping_sub(1) >= CLOSED - 1 {
                return self.reserve_by_looking();
            }
            let next = Split { given: given.wrapping_add(1), room: room - 1 };
            match places.compare_exchange_weak(word, next.word(), SeqCst, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// As [`Pid::reserve`], when the room that was known of has been given away.
    #[cold]
    #[inline(never)]
    fn reserve_by_looking(&self) -> Result<(), SendError> {
        let max = self.0.mailbox.messages;
        let places = &self.0.places.0;
        let mut word = places.load(SeqCst);
        loop {
            let split = Split::of(word);
            let room = match split.room {
                CLOSED => return Err(SendError::Closed),
                // What was taken meanwhile only adds to it.
                0 => max.saturating_sub(self.0.queued(split)),
                room => room,
            };
            if room == 0 {
                return Err(SendError::Full);
            }
            // Another sender that found room has changed the word: the number of messages in it never comes again.
            let next = Split { given: split.given.wrapping_add(1), room: room - 1 };
            match places.compare_exchange(word, next.word(), SeqCst, SeqCst) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Waits for room, if the mailbox makes senders wait; then it fails only when the actor ends.
    ///
    /// The actor takes messages out by plain stores, so it may miss at that moment that someone has begun to wait, and who waits may miss that there is room.
    /// So who begins to wait says so ([`ROOM`]), and the actor then looks for both sides: it knows what it has taken, and by the
    /// flag it has learned of everyone who raised it before. Whoever raises it later has the actor look once more.
    pub(crate) async fn reserve_when_free(&self) -> Result<(), SendError> {
        match self.reserve() {
            Err(SendError::Full) if self.0.mailbox.overflow == Overflow::Wait => {}
            done => return done,
        }
        // Made before it is counted: who sees that someone waits finds where.
        let room = self.0.room.get_or_init(Box::default);
        let _waiting = Waiting::new(&self.0.waiters.0);
        loop {
            let mut room = std::pin::pin!(room.notified());
            // Enabled before the next look, so that room made in between is not missed.
            room.as_mut().enable();
            match self.reserve() {
                Err(SendError::Full) => {
                    self.raise(ROOM);
                    room.await;
                }
                done => return done,
            }
        }
    }

    /// A message has left the mailbox. Called by the actor's thread alone.
    #[inline]
    pub(crate) fn release(&self) {
        let taken = &self.0.taken.taken;
        taken.store(taken.load(Relaxed).wrapping_add(1), Release);
        if self.0.waiters.0.load(Relaxed) > 0 {
            self.offer_room(1);
        }
    }

    /// Someone has begun to wait for room, and there may be some. Called by the actor's thread alone.
    #[cold]
    pub(crate) fn offer_all_room(&self) {
        let waiting = self.0.waiters.0.load(Relaxed);
        let split = Split::of(self.0.places.0.load(Acquire));
        if split.room != CLOSED {
            self.offer_room(self.0.mailbox.messages.saturating_sub(self.0.queued(split)).min(waiting));
        }
    }

    #[cold]
    #[inline(never)]
    fn offer_room(&self, messages: u32) {
        let Some(room) = self.0.room.get() else { return };
        for _ in 0..messages {
            room.notify_one();
        }
    }

    /// From now on messages are refused; those that wait will not be handled by this incarnation.
    pub(crate) fn set_ending(&self) {
        self.0.flags.fetch_or(ENDING, AcqRel);
        let close = |word| Some(Split { room: CLOSED, ..Split::of(word) }.word());
        let Ok(word) = self.0.places.0.fetch_update(SeqCst, SeqCst, close) else { return };
        let split = Split::of(word);
        // What lies in a ring is counted when it is dropped, if it is.
        if split.room != CLOSED && !self.0.mailbox.has_ring() {
            self.count_dropped(self.0.queued(split).into());
        }
        if self.0.waiters.0.load(SeqCst) > 0
            && let Some(room) = self.0.room.get()
        {
            room.notify_waiters();
        }
    }

    pub(crate) fn ending(&self) -> bool {
        self.0.flags.load(Acquire) & (ENDING | DEAD) != 0
    }

    /// A ring took a message for which no room was reserved.
    pub(crate) fn count_queued(&self) {
        let count = |word| {
            let split = Split::of(word);
            Some(Split { given: split.given.wrapping_add(1), ..split }.word())
        };
        // Never refused: it always gives a new word.
        let _ = self.0.places.0.fetch_update(SeqCst, SeqCst, count);
    }

    /// Messages of the incarnation before.
    pub(crate) fn start_with(&self, messages: usize) {
        let given = u32::try_from(messages).unwrap_or(CLOSED - 1);
        let split = Split { given, room: self.0.mailbox.messages.saturating_sub(given) };
        self.0.places.0.store(split.word(), SeqCst);
    }

    /// Called by the actor's thread alone.
    #[inline]
    pub(crate) fn count_handled(&self) {
        let handled = &self.0.taken.handled;
        handled.store(handled.load(Relaxed) + 1, Relaxed);
    }

    pub(crate) fn count_dropped(&self, messages: u64) {
        self.0.dropped.fetch_add(messages, Relaxed);
    }

    pub(crate) fn queue_len(&self) -> usize {
        match Split::of(self.0.places.0.load(Relaxed)) {
            Split { room: CLOSED, .. } => 0,
            split => self.0.queued(split) as usize,
        }
    }

    pub(crate) fn queue_max(&self) -> usize {
        self.0.mailbox.messages as usize
    }

    pub(crate) fn messages(&self) -> u64 {
        self.0.taken.handled.load(Relaxed)
    }

    /// Messages that this incarnation accepted and did not handle.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    // ---- the ring, where it has one -----------------------------------------------------------------------------------------

    pub(crate) fn backlog(&self) -> Option<Arc<dyn Backlog>> {
        self.0.control.lock().ties.as_ref()?.backlog.clone()
    }

    pub(crate) fn set_backlog(&self, backlog: Arc<dyn Backlog>) {
        self.0.control.lock().ties().backlog = Some(backlog);
    }

    /// Takes from an incarnation that has ended what it leaves to the next one.
    pub(crate) fn take_backlog(&self) -> Option<Arc<dyn Backlog>> {
        if !self.mailbox().has_ring() {
            return None;
        }
        self.0.control.lock().ties.as_mut()?.backlog.take()
    }

    /// The incarnation has ended, its counts are final. A ring that is not kept is emptied.
    pub(crate) fn close_backlog(&self) {
        let mailbox = self.mailbox();
        if mailbox.keep {
            if let Some(backlog) = self.backlog() {
                backlog.close(self.0.id);
            }
        } else if let Some(backlog) = self.take_backlog() {
            self.count_dropped(backlog.abandon(None) as u64);
        }
    }
}

struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, SeqCst);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn pid(messages: usize) -> Pid {
        Pid::new(1, "a".into(), Mailbox::new(messages))
    }

    #[test]
    fn what_was_taken_out_makes_room_again_also_when_the_numbers_wrap_around() {
        for before in [0, u32::MAX - 1] {
            let pid = pid(2);
            let split = Split { given: before, room: 2 };
            pid.0.places.0.store(split.word(), SeqCst);
            pid.0.taken.taken.store(before, SeqCst);
            for _ in 0..5 {
                assert_eq!((pid.reserve(), pid.reserve()), (Ok(()), Ok(())));
                assert_eq!((pid.reserve(), pid.queue_len()), (Err(SendError::Full), 2));
                pid.release();
                assert_eq!((pid.reserve(), pid.reserve()), (Ok(()), Err(SendError::Full)));
                pid.release();
                pid.release();
                assert_eq!(pid.queue_len(), 0);
            }
            assert_eq!(pid.reserve(), Ok(()));
            pid.set_ending();
            assert_eq!((pid.reserve(), pid.queue_len(), pid.dropped()), (Err(SendError::Closed), 0, 1));
            pid.release();
            assert_eq!(pid.reserve(), Err(SendError::Closed), "what is taken out afterwards opens nothing");
        }
    }

    #[test]
    fn senders_on_many_threads_are_given_no_more_room_than_there_is() {
        const MAX: usize = 3;
        let (pid, waiting, done) = (pid(MAX), AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..20_000 {
                            while pid.reserve().is_err() {
                                std::thread::yield_now();
                            }
                            assert!(waiting.fetch_add(1, SeqCst) < MAX as u32);
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    if waiting.load(SeqCst) > 0 {
                        // Before there is room: one more would be one too many.
                        waiting.fetch_sub(1, SeqCst);
                        pid.release();
                    }
                }
            });
            senders.into_iter().for_each(|sender| sender.join().expect("sent"));
            while waiting.load(SeqCst) > 0 {
                std::thread::yield_now();
            }
            done.store(true, SeqCst);
        });
        assert_eq!(pid.queue_len(), 0);
    }
}
