//! What an observer sees: the tree as it is now, and what changes in it.
//!
//! Plain data; must never hold anything up in what it observes.

use crate::exit::Exit;
use crate::pid::Pid;
use serde::{Deserialize, Serialize};

/// How many tree events a subscriber may lag behind; one that lags further is told how many it lost.
pub const TREE_EVENTS: usize = 4_096;

/// What a node of the tree is (OTP `type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// An actor.
    Worker,
    /// A supervisor.
    Supervisor,
}

/// Where a node of the tree is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Its `started` has not returned yet; for a supervisor: not all of its first children are up.
    Starting,
    /// It is up.
    Running,
    /// It has ended and will be started again.
    Restarting {
        /// Milliseconds until then.
        in_ms: u64,
    },
    /// It was asked to stop and has not ended yet.
    Stopping,
    /// It has ended and stays known to its supervisor, which will not start it by itself.
    Stopped,
}

/// One node of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorInfo {
    /// Its place: the ids from the top-level supervisor down, joined by `/`.
    pub path: String,
    /// Actor or supervisor.
    pub kind: Kind,
    /// The Rust type of an actor; the strategy of a supervisor.
    pub type_name: String,
    /// Where it is in its life.
    pub state: State,
    /// The number of this incarnation; `None` while none runs.
    pub id: Option<u64>,
    /// Milliseconds since this incarnation was started; 0 while none runs.
    pub uptime_ms: u64,
    /// How often its supervisor started it again.
    pub restarts: u32,
    /// Why its last incarnation ended.
    pub last_exit: Option<Exit>,
    /// Messages in its mailbox.
    pub queue_len: usize,
    /// How many its mailbox can hold; 0 for a supervisor.
    pub queue_max: usize,
    /// Messages that this incarnation has handled.
    pub messages: u64,
    /// Messages that all incarnations have accepted and none has handled: they waited when one ended, had to make room for newer ones
    /// ([`crate::Overflow::DropOldest`]), or were questions that their askers took back.
    #[serde(default)]
    pub dropped: u64,
}

/// What an arbiter does at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterInfo {
    /// Whether its thread takes new actors.
    pub alive: bool,
    /// Counts each entry into an actor's code and each return from it; odd while one is in it.
    pub turns: u64,
    /// The number of the incarnation whose code runs.
    pub running: Option<u64>,
}

/// A change in the tree. A subscriber that lags behind by more than [`TREE_EVENTS`] is told how many it lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeEvent {
    /// An incarnation is up.
    Started {
        /// Its place.
        path: String,
        /// The incarnation.
        pid: Pid,
    },
    /// An incarnation has ended.
    Exited {
        /// Its place.
        path: String,
        /// The incarnation.
        pid: Pid,
        /// Why.
        exit: Exit,
    },
    /// It will be started again.
    Restarting {
        /// Its place.
        path: String,
        /// Milliseconds until then.
        in_ms: u64,
        /// How often it was started again before.
        restarts: u32,
    },
    /// It does not run, and its supervisor will not start it by itself.
    Stopped {
        /// Its place.
        path: String,
    },
}

impl TreeEvent {
    /// The place that the event is about.
    pub fn path(&self) -> &str {
        match self {
            TreeEvent::Started { path, .. }
            | TreeEvent::Exited { path, .. }
            | TreeEvent::Restarting { path, .. }
            | TreeEvent::Stopped { path } => path,
        }
    }
}
