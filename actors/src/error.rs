//! What can go wrong in each operation, one enum an operation. Texts are for people and do not repeat their source.
//!
//! Must never carry an actor's internals. Returned by [`crate::Ref`], [`crate::SupervisorRef`] and [`crate::System`].

use crate::exit::Exit;

/// A message could not be put into a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The mailbox holds as many messages as it may. The message was not put into it.
    #[error("the mailbox is full")]
    Full,
    /// The actor has ended or is ending.
    #[error("the actor has ended")]
    Closed,
    /// No actor runs under this name now.
    #[error("no actor runs under this name")]
    NoProc,
}

/// A question got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No actor runs under this name now, or it had already ended.
    #[error("no such actor")]
    NoProc,
    /// The actor ended before it answered. It may or may not have seen the message.
    #[error("the actor ended before it answered: {0}")]
    Exited(Exit),
    /// The actor dropped its [`crate::Replier`].
    #[error("the actor chose not to answer")]
    NoReply,
    /// The deadline passed. A handler that had begun runs on; a question that waited is not handled.
    #[error("no answer within the deadline")]
    Timeout,
    /// The mailbox is full, and says so instead of making askers wait: [`crate::Overflow::Fail`].
    #[error("the mailbox is full")]
    Full,
    /// The question waited in a full mailbox and was dropped for a newer message: [`crate::Overflow::DropOldest`].
    #[error("the question was dropped from a full mailbox for a newer message")]
    Dropped,
}

/// A supervisor could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A process runs at this path already.
    #[error("`{0}` is already running")]
    AlreadyRunning(String),
    /// It ended before it was up; the children that ran were stopped in reverse order.
    #[error("start failed: {0}")]
    Failed(Exit),
    /// The system is shut down.
    #[error("the actor system is shut down")]
    SystemDown,
}

/// A command to a supervisor failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChildError {
    /// A child with this id runs already (OTP `already_started`).
    #[error("a child with this id is already running")]
    AlreadyStarted,
    /// A child with this id is known but does not run now (OTP `already_present`).
    #[error("a child with this id is already present; restart or delete it")]
    AlreadyPresent,
    /// There is no child with this id (OTP `not_found`).
    #[error("no child with this id")]
    NotFound,
    /// The child runs, so it can be neither restarted nor deleted (OTP `running`).
    #[error("the child is running")]
    Running,
    /// The child is about to be restarted (OTP `restarting`).
    #[error("the child is being restarted")]
    Restarting,
    /// The child was started and ended before it was up.
    #[error("the child failed to start: {0}")]
    StartFailed(Exit),
    /// The specification contradicts itself, or its supervisor's (OTP `bad_combination`).
    #[error("{0}")]
    BadCombination(&'static str),
    /// The child was stopped by another command before it was up.
    #[error("the child was stopped before it was up")]
    Stopped,
    /// The supervisor has ended or is ending.
    #[error("the supervisor has ended")]
    SupervisorDown,
}

/// An actor system could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The operating system gave no thread.
    #[error("cannot start the arbiter thread `{name}`")]
    Thread {
        /// Name of the thread.
        name: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A local system must be built inside a tokio `LocalSet`.
    #[error("a local actor system must be built inside a tokio LocalSet")]
    NoLocalSet,
}
