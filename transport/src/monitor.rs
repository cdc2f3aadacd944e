//! Monitors: the promise that the end of what is served at a path on another node, or of that node, is reported exactly
//! once (OTP `erlang:monitor/2`). This file has the watcher's and the watched side; the link carries the frames.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{event::NodeName, link::Link};

/// Why the actor at a path ended.
pub type ExitReason = String;

/// What a [`Monitor`] resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Node that was watched.
    pub node: NodeName,
    /// Path that was watched.
    pub path: String,
    /// Why it is down.
    pub reason: DownReason,
}

/// Why a watched path is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownReason {
    /// The actor exposed there exited, or the path is not served any more.
    Exit(ExitReason),
    /// The connection to its node was lost (or there was none): what happens there is not known.
    NoConnection,
    /// Nothing was served there when the monitor was set.
    NoProc,
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(reason) => write!(f, "exited: {reason}"),
            Self::NoConnection => f.write_str("connection to its node lost"),
            Self::NoProc => f.write_str("no such process"),
        }
    }
}

/// A monitor, set from the moment it is made: a future that resolves exactly once. Dropping it ends the watch.
#[must_use = "dropping a monitor ends the watch"]
pub struct Monitor {
    pub(crate) node: NodeName,
    pub(crate) path: String,
    pub(crate) fired: oneshot::Receiver<DownReason>,
    pub(crate) cancel: Option<Box<dyn FnOnce() + Send>>,
}

impl Future for Monitor {
    type Output = Down;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Down> {
        let reason = ready!(Pin::new(&mut self.fired).poll(cx));
        self.cancel = None;
        Poll::Ready(Down {
            node: self.node.clone(),
            path: self.path.clone(),
            // The sender only goes away unused with the connection.
            reason: reason.unwrap_or(DownReason::NoConnection),
        })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Monitor({} on {})", self.path, self.node)
    }
}

/// Whoever watches a path served here.
pub(crate) struct Watcher {
    fired: AtomicBool,
    sink: Sink,
}

enum Sink {
    Local(Mutex<Option<oneshot::Sender<DownReason>>>),
    Remote { link: Weak<Link>, id: u64 },
}

impl Watcher {
    pub(crate) fn local(sender: oneshot::Sender<DownReason>) -> Self {
        Self::new(Sink::Local(Mutex::new(Some(sender))))
    }

    pub(crate) fn remote(link: Weak<Link>, id: u64) -> Self {
        Self::new(Sink::Remote { link, id })
    }

    fn new(sink: Sink) -> Self {
        Self { fired: AtomicBool::new(false), sink }
    }

    /// Reports the end; only the first report counts.
    pub(crate) fn fire(&self, reason: DownReason) {
        if self.fired.swap(true, Ordering::AcqRel) {
            return;
        }
        match &self.sink {
            Sink::Local(sender) => {
                if let Some(sender) = sender.lock().take() {
                    // The monitor may be gone already.
                    let _ = sender.send(reason);
                }
            }
            Sink::Remote { link, id } => {
                if let Some(link) = link.upgrade() {
                    link.report_down(*id, &reason);
                }
            }
        }
    }
}
