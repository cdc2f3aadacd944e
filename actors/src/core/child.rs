//! One child as the core sees it: what was said about it, and where it is in its life.
//!
//! Must never decide: the transitions are the supervisor's. As small as can be: there may be as many as there are pods.

use super::backoff::Attempts;
use super::supervisor::{Asker, Inc};
use crate::exit::Exit;
use crate::spec::Policy;
use std::sync::Arc;
use std::time::Duration;

/// What decisions need of a child's specification, which the driver keeps.
pub(crate) trait Spec {
    /// Its name among its siblings.
    fn id(&self) -> &Arc<str>;
    fn policy(&self) -> &Policy;
}

/// Where a child is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ChildState {
    /// Known, not running, and no one will start it.
    Idle,
    /// To be started by the operation that runs.
    Queued,
    Starting(Why),
    Running {
        since: Duration,
    },
    /// Asked to stop or killed, its exit is awaited.
    Stopping {
        forget: bool,
    },
    /// Ended while an operation ran; handled after it.
    Dead {
        exit: Box<Exit>,
    },
    /// Its restart timer runs. A restart that `failed` is counted when the timer fires, any other was counted before.
    Waiting {
        failed: Option<Box<Exit>>,
    },
}

/// Who started a child that is not up yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Why {
    /// The operation.
    Op,
    /// Its own crash.
    Restart,
    /// `start_child`.
    New(Asker),
    /// `restart_child`.
    Again(Asker),
}

#[derive(Debug)]
pub(crate) struct Child<D> {
    pub(crate) data: D,
    pub(crate) state: ChildState,
    pub(crate) inc: Inc,
    pub(crate) attempts: Attempts,
}

impl<D> Child<D> {
    pub(crate) fn new(data: D, state: ChildState) -> Self {
        Child { data, state, inc: 0, attempts: Attempts::default() }
    }

    /// An incarnation of it exists.
    pub(crate) fn alive(&self) -> bool {
        matches!(self.state, ChildState::Starting(_) | ChildState::Running { .. } | ChildState::Stopping { .. })
    }
}
