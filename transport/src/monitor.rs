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
use phalanx_actors::Exit;
use tokio::sync::oneshot;

use crate::{event::NodeName, link::Link};

/// What a [`Monitor`] resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Node that was watched.
    pub node: NodeName,
    /// Path that was watched.
    pub path: String,
    /// Why it is down: `NoProc` if nothing was there when the monitor was set, `NoConnection` if the connection to its
    /// node was lost (what happens there is not known), `Shutdown` if the path is not served any more, and else the exit
    /// of the actor exposed there.
    pub reason: Exit,
}

/// A monitor, set from the moment it is made: a future that resolves exactly once. Dropping it ends the watch.
#[must_use = "dropping a monitor ends the watch"]
pub struct Monitor {
    pub(crate) node: NodeName,
    pub(crate) path: String,
    pub(crate) fired: oneshot::Receiver<Exit>,
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
            reason: reason.unwrap_or(Exit::NoConnection),
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
    Local(Mutex<Option<oneshot::Sender<Exit>>>),
    Remote { link: Weak<Link>, id: u64 },
}

impl Watcher {
    pub(crate) fn local(sender: oneshot::Sender<Exit>) -> Self {
        Self::new(Sink::Local(Mutex::new(Some(sender))))
    }

    pub(crate) fn remote(link: Weak<Link>, id: u64) -> Self {
        Self::new(Sink::Remote { link, id })
    }

    fn new(sink: Sink) -> Self {
        Self { fired: AtomicBool::new(false), sink }
    }

    /// Reports the end; only the first report counts.
    pub(crate) fn fire(&self, reason: Exit) {
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
