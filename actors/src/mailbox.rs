//! Messages on their way: what is put into a mailbox, and the ring that holds it where a mailbox drops or keeps messages.
//!
//! Most mailboxes are actix's channel, which carries each message. One that drops its oldest message, or outlives a crash, has a
//! [`Ring`] beside the channel, which then carries [`Pull`] alone: "look into the ring". Must never run user code while locked.
//! Filled by [`crate::Ref`], emptied by the shell; a kept ring passes from one incarnation to the next through the supervisor.

use crate::actor::{Actor, Answer, Message, MessageTo};
use crate::error::AskError;
use crate::exit::Exit;
use crate::note::Note;
use crate::panic::drop_guarded;
use crate::pid::Pid;
use crate::shell::{Engine, Host};
use actix::dev::{Envelope, EnvelopeProxy};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Whoever waits for an answer.
pub(crate) type Asker<M> = oneshot::Sender<Answer<<M as Message>::Reply>>;

/// A message with the one who waits for its answer, if any.
pub(crate) struct Question<M: Message> {
    /// `None` only once it was taken.
    message: Option<M>,
    asker: Option<Asker<M>>,
}

impl<M: Message> Question<M> {
    #[inline]
    pub(crate) fn new(message: M, asker: Option<Asker<M>>) -> Self {
        Question { message: Some(message), asker }
    }

    /// Made where it stays: a copy on the way there would be the larger part of the work.
    #[inline]
    pub(crate) fn boxed(message: M, asker: Option<Asker<M>>) -> Box<Self> {
        Box::write(Box::new_uninit(), Question::new(message, asker))
    }

    /// Whoever asked does not wait any more: it would be work for nobody.
    #[inline]
    pub(crate) fn given_up(&self) -> bool {
        self.asker.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    #[inline]
    pub(crate) fn take(&mut self) -> (Option<M>, Option<Asker<M>>) {
        (self.message.take(), self.asker.take())
    }

    /// Tells whoever asked that there will be no answer, and why.
    pub(crate) fn refuse(&mut self, why: AskError) {
        if let Some(asker) = self.asker.take() {
            // The asker may have given up.
            let _ = asker.send(Err(Box::new(why)));
        }
    }
}

impl<M: Message> Drop for Question<M> {
    #[inline]
    fn drop(&mut self) {
        // A panic in the Drop of one message must not lose those behind it, nor their askers.
        if let Some(message) = self.message.take() {
            drop_guarded(message);
        }
    }
}

impl<A: Actor, M: MessageTo<A>> EnvelopeProxy<Host<A>> for Question<M> {
    fn handle(&mut self, _: &mut Host<A>, engine: &mut Engine<A>) {
        engine.deliver(self, None, None);
    }
}

/// A question with a deadline or a note. Apart, so that messages without are not larger for it.
pub(crate) struct Timed<M: Message> {
    pub(crate) question: Question<M>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) note: Option<Box<Note>>,
}

impl<A: Actor, M: MessageTo<A>> EnvelopeProxy<Host<A>> for Timed<M> {
    fn handle(&mut self, _: &mut Host<A>, engine: &mut Engine<A>) {
        engine.deliver(&mut self.question, self.deadline, self.note.take());
    }
}

/// What actix carries: one thing of any type.
pub(crate) struct Parcel<A: Actor>(Envelope<Host<A>>);

impl<A: Actor> Parcel<A> {
    #[inline]
    pub(crate) fn new(content: Box<impl EnvelopeProxy<Host<A>> + Send + 'static>) -> Self {
        Parcel(Envelope::with_proxy(content))
    }

    pub(crate) fn into_envelope(self) -> Envelope<Host<A>> {
        self.0
    }
}

impl<A: Actor> actix::Message for Parcel<A> {
    type Result = ();
}

// ---- the ring ----------------------------------------------------------------------------------------------------------------

/// What a ring holds.
pub(crate) trait Letter<A: Actor>: Send {
    fn deliver(&mut self, engine: &mut Engine<A>);
    /// See [`Question::refuse`].
    fn refuse(&mut self, why: AskError);
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// The incarnation that an asker waits for: with a kept mailbox it may be another than the one that was asked. Told when that takes the
/// question.
pub(crate) type Answerer = Arc<watch::Sender<Pid>>;

pub(crate) struct Posted<M: Message> {
    pub(crate) question: Question<M>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) answerer: Option<Answerer>,
    pub(crate) note: Option<Box<Note>>,
}

impl<A: Actor, M: MessageTo<A>> Letter<A> for Posted<M> {
    fn deliver(&mut self, engine: &mut Engine<A>) {
        if let Some(answerer) = &self.answerer {
            answerer.send_replace(engine.pid().clone());
        }
        engine.deliver(&mut self.question, self.deadline, self.note.take());
    }

    fn refuse(&mut self, why: AskError) {
        self.question.refuse(why);
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// The messages of a mailbox that drops its oldest one, or that outlives a crash.
pub(crate) struct Ring<A: Actor>(Mutex<Letters<A>>);

struct Letters<A: Actor> {
    queue: VecDeque<Box<dyn Letter<A>>>,
    /// The number of the incarnation that takes messages; `None` between two. References to earlier ones put nothing in any more.
    owner: Option<u64>,
    /// A [`Pull`] is on its way, or at work.
    pulled: bool,
}

/// What came of putting a letter into a ring.
pub(crate) enum Put<A: Actor> {
    Done {
        pull: bool,
    },
    /// The oldest had to go for it.
    Instead(Box<dyn Letter<A>>),
    /// The incarnation has ended, and this stays with the sender.
    Closed(Box<dyn Letter<A>>),
}

impl<A: Actor> Ring<A> {
    pub(crate) fn new() -> Self {
        Ring(Mutex::new(Letters { queue: VecDeque::new(), owner: None, pulled: false }))
    }

    /// From now on it takes messages for `pid`. True when there are some already: then a [`Pull`] must be sent.
    pub(crate) fn adopt(&self, pid: &Pid) -> bool {
        let mut letters = self.0.lock();
        letters.owner = Some(pid.id());
        letters.pulled = !letters.queue.is_empty();
        pid.start_with(letters.queue.len());
        letters.pulled
    }

    /// Puts a letter behind all others. `max`: at most so many; without it, the room was reserved.
    pub(crate) fn put(&self, pid: &Pid, letter: Box<dyn Letter<A>>, max: Option<usize>) -> Put<A> {
        let mut letters = self.0.lock();
        if letters.owner != Some(pid.id()) {
            return Put::Closed(letter);
        }
        if max.is_some_and(|max| letters.queue.len() >= max)
            && let Some(oldest) = letters.queue.pop_front()
        {
            letters.queue.push_back(letter);
            // Under the lock: once the ring is closed, the counts of this incarnation are final.
            pid.count_dropped(1);
            return Put::Instead(oldest);
        }
        if max.is_some() {
            pid.count_queued();
        }
        letters.queue.push_back(letter);
        Put::Done { pull: !std::mem::replace(&mut letters.pulled, true) }
    }

    /// Takes the oldest for `pid`. `None`: the next letter needs a new [`Pull`]; or the ring has another owner by now.
    fn take(&self, pid: &Pid) -> Option<Box<dyn Letter<A>>> {
        let mut letters = self.0.lock();
        if letters.owner != Some(pid.id()) {
            return None;
        }
        let oldest = letters.queue.pop_front();
        letters.pulled = oldest.is_some();
        oldest
    }
}

/// Has the actor look into its ring.
pub(crate) struct Pull;

impl<A: Actor> EnvelopeProxy<Host<A>> for Pull {
    fn handle(&mut self, _: &mut Host<A>, engine: &mut Engine<A>) {
        let inbox = engine.inbox();
        let Some(ring) = inbox.ring() else { return };
        loop {
            if engine.busy() {
                // The turn is over, not the work.
                return inbox.pull();
            }
            let Some(mut letter) = ring.take(engine.pid()) else { return };
            letter.deliver(engine);
        }
    }
}

/// A ring whose actor's type is not known: what a pid and a supervisor hold of it.
pub(crate) trait Backlog: Send + Sync {
    /// Takes no more messages of this owner, and keeps those that wait. Nothing happens when it has another one by now.
    fn close(&self, owner: u64);
    /// Takes no more messages and drops those that wait. Whoever asked learns the exit, if it is known; else by the exit of the pid.
    /// Returns how many were dropped.
    fn abandon(&self, exit: Option<&Exit>) -> usize;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<A: Actor> Backlog for Ring<A> {
    fn close(&self, owner: u64) {
        let mut letters = self.0.lock();
        if letters.owner == Some(owner) {
            letters.owner = None;
        }
    }

    fn abandon(&self, exit: Option<&Exit>) -> usize {
        let queue = {
            let mut letters = self.0.lock();
            letters.owner = None;
            std::mem::take(&mut letters.queue)
        };
        let dropped = queue.len();
        for mut letter in queue {
            if let Some(exit) = exit {
                letter.refuse(AskError::Exited(exit.clone()));
            }
        }
        dropped
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
