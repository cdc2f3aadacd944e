//! Why an actor ended. Plain data: compared, logged, serialised, sent between machines.
//!
//! Must never hold anything live (a pid, a reference). Everyone uses it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The reason for which an actor or a supervisor ended (OTP: exit reason).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It finished its work (OTP `normal`).
    Normal,
    /// It was asked to stop, mostly by its supervisor (OTP `shutdown`).
    Shutdown,
    /// It was killed without being asked (OTP `killed`).
    Killed,
    /// Its code panicked: in a handler, in `started` or `stopping`, in a future, in a timer, or in `Drop` of its state.
    Panic {
        /// What the panic said.
        message: String,
        /// `file:line:column` of the panic, where known.
        location: Option<String>,
    },
    /// It gave up, and says why.
    Error(String),
    /// There was no such process when it was monitored or linked (OTP `noproc`).
    NoProc,
    /// The connection to its node was lost (OTP `noconnection`).
    NoConnection,
    /// The thread that ran it ended beneath it.
    ArbiterGone,
    /// A supervisor gave up: a child crashed more often than its restart intensity allows
    /// (OTP `reached_max_restart_intensity`).
    RestartIntensity {
        /// The id of the child that crashed last.
        child: String,
        /// The exit of that child.
        last: Box<Exit>,
    },
    /// A supervisor could not start because one of its children could not (OTP `failed_to_start_child`).
    StartFailed {
        /// The id of the child that failed.
        child: String,
        /// The exit of that child.
        reason: Box<Exit>,
    },
    /// It stopped in order, and says why (OTP `{shutdown, Term}`). Not abnormal.
    ShutdownWith(String),
    /// It had nothing to do, and says so instead of starting: from [`crate::Actor::started`] this is no failure. A temporary child is
    /// forgotten, any other stays known and does not run (OTP `ignore`).
    Ignore,
}

impl Exit {
    /// Whether a transient child that ends so is restarted.
    ///
    /// OTP: `normal`, `shutdown` and `{shutdown, Term}` are not abnormal. A supervisor that gave up ([`Exit::RestartIntensity`]) is abnormal here,
    /// while OTP reports it as `shutdown`; so a transient subtree that gave up is restarted by its parent.
    pub fn is_abnormal(&self) -> bool {
        !matches!(self, Exit::Normal | Exit::Shutdown | Exit::ShutdownWith(_) | Exit::Ignore)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Normal => f.write_str("normal"),
            Exit::Shutdown => f.write_str("shutdown"),
            Exit::Killed => f.write_str("killed"),
            Exit::Panic { message, location: Some(at) } => write!(f, "panic at {at}: {message}"),
            Exit::Panic { message, location: None } => write!(f, "panic: {message}"),
            Exit::Error(message) => f.write_str(message),
            Exit::NoProc => f.write_str("no such process"),
            Exit::NoConnection => f.write_str("connection to the node lost"),
            Exit::ArbiterGone => f.write_str("its thread is gone"),
            Exit::RestartIntensity { child, last } => write!(f, "child `{child}` crashed too often, last: {last}"),
            Exit::StartFailed { child, reason } => write!(f, "child `{child}` failed to start: {reason}"),
            Exit::ShutdownWith(why) => write!(f, "shutdown: {why}"),
            Exit::Ignore => f.write_str("nothing to do"),
        }
    }
}

impl std::error::Error for Exit {}
