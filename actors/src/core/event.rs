//! What goes into the core and what comes out of it: the words that it and its driver share.
//!
//! Must never hold anything that runs. Used by the supervisor core, its driver, and tests.

use crate::error::ChildError;
use crate::exit::Exit;
use std::sync::Arc;
use std::time::Duration;

/// A child of one supervisor. Grows with each child added, so its order is the order of start.
pub(crate) type Key = u64;
/// One start of a child. Events of an earlier incarnation are recognised by it and ignored.
pub(crate) type Inc = u64;
/// Whoever waits for the answer to a command; chosen by the driver.
pub(crate) type Asker = u64;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event<D> {
    /// The supervisor itself starts: its first children are to be started in order.
    Boot,
    /// A child is up: its `started` returned.
    Started {
        key: Key,
        inc: Inc,
    },
    /// A child ended, for whatever reason, whether it was up or not.
    Exited {
        key: Key,
        inc: Inc,
        exit: Exit,
    },
    /// A timer asked for with [`Action::Timer`] has run out.
    Timer(Timer),
    /// The supervisor is asked to end with this reason.
    Stop(Exit),
    /// The supervisor is killed.
    Kill,
    StartChild {
        data: D,
        asker: Asker,
    },
    TerminateChild {
        id: Arc<str>,
        asker: Asker,
    },
    RestartChild {
        id: Arc<str>,
        asker: Asker,
    },
    DeleteChild {
        id: Arc<str>,
        asker: Asker,
    },
}

impl<D> Event<D> {
    /// Whether it matters when it happens. Not so for what someone asks for.
    pub(crate) fn timed(&self) -> bool {
        match self {
            Event::Boot | Event::Started { .. } | Event::Exited { .. } | Event::Timer(_) => true,
            Event::Stop(_) | Event::Kill => true,
            Event::StartChild { .. } | Event::TerminateChild { .. } => false,
            Event::RestartChild { .. } | Event::DeleteChild { .. } => false,
        }
    }
}

/// What the driver has to do, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Action<D> {
    /// Start an incarnation; answer with `Started`, and with exactly one `Exited` in the end.
    Start { key: Key, inc: Inc, restart: bool },
    /// Ask the child to stop.
    Stop { key: Key },
    /// End the child at once.
    Kill { key: Key },
    /// The child does not run and will be started after the delay. News for the tree.
    Restarting { key: Key, delay: Duration },
    /// The child does not run and stays in the list. News for the tree.
    Idle { key: Key },
    /// The child left the list.
    Forget { key: Key, data: D },
    /// Send `Event::Timer` after this time; zero means behind all events that wait now.
    Timer { timer: Timer, after: Duration },
    /// Answer a command: the child that it concerned.
    Reply { asker: Asker, result: Result<Key, ChildError> },
    /// All first children are up.
    Ready,
    /// All children have ended; so does the supervisor. Nothing follows.
    Exit(Exit),
}

/// Timers are never cancelled: one that comes too late is recognised and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The child had its time to stop.
    StopTimeout { key: Key, inc: Inc },
    /// The child's restart is due.
    Restart { key: Key, inc: Inc },
    /// The group's restart is due.
    Group { turn: u64 },
}
