//! What this node serves: by path, the handlers of messages, streams and datagrams, and who watches the path. Runs
//! nothing itself but the watch on an exposed actor's end.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use phalanx_actors::Exit;
use serde::Serialize;
use tokio::{runtime::Handle, task::AbortHandle, time::Instant};

use crate::{
    event::Peer,
    monitor::Watcher,
    remote::{Envelope, reader},
    stream::{RecvStream, SendStream},
    tells::Teller,
};

/// Why a message has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    BadMessage(String),
    Exited(Exit),
    Failed(String),
    NoProc,
    NoReply,
    Timeout,
    UnknownMessage,
}

impl From<phalanx_actors::AskError> for Failure {
    fn from(error: phalanx_actors::AskError) -> Self {
        match error {
            phalanx_actors::AskError::NoProc => Self::NoProc,
            phalanx_actors::AskError::Timeout => Self::Timeout,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The encoded reply.
pub(crate) type Outcome = Result<Vec<u8>, Failure>;

pub(crate) fn encode_reply(reply: &impl Serialize) -> Outcome {
    rmp_serde::to_vec(reply).map_err(|e| Failure::Failed(format!("cannot encode the reply: {e}")))
}

/// Handles one type of message at one path.
pub(crate) trait Serve: Send + Sync {
    /// Whoever waits drops it at `deadline`: so it needs no clock of its own.
    fn ask(&self, peer: Peer, body: Bytes, deadline: Instant) -> BoxFuture<'static, Outcome>;
    /// Takes tells.
    fn teller(self: Arc<Self>) -> Result<Box<dyn Teller>, Failure>;
}

pub(crate) type MessageHandler = Arc<dyn Serve>;
pub(crate) type StreamHandler =
    Arc<dyn Fn(Peer, Bytes, SendStream, RecvStream) -> BoxFuture<'static, ()> + Send + Sync>;
pub(crate) type DatagramHandler = Arc<dyn Fn(Peer, Bytes) + Send + Sync>;
/// The end of the incarnation that lives at an exposed path now; `None` when there is none.
pub(crate) type Life = Arc<dyn Fn() -> Option<BoxFuture<'static, Exit>> + Send + Sync>;

#[derive(Default)]
pub(crate) struct Registry {
    paths: Mutex<HashMap<Arc<str>, Served>>,
    next_watch: AtomicU64,
}

#[derive(Default)]
struct Served {
    /// Few for each path, so a list.
    messages: Vec<(Envelope<'static>, MessageHandler)>,
    stream: Option<StreamHandler>,
    datagram: Option<DatagramHandler>,
    life: Option<Life>,
    watches: HashMap<u64, Watch>,
}

struct Watch {
    watcher: Arc<Watcher>,
    /// The task that waits for an exposed actor's end.
    task: Option<AbortHandle>,
}

impl Registry {
    pub(crate) fn serve(&self, path: &str, message: Envelope<'static>, handler: MessageHandler) {
        let mut paths = self.paths.lock();
        let served = paths.entry(path.into()).or_default();
        served.messages.retain(|(known, _)| (known.name, known.version) != (message.name, message.version));
        served.messages.push((message, handler));
    }

    pub(crate) fn serve_stream(&self, path: &str, handler: StreamHandler) {
        self.paths.lock().entry(path.into()).or_default().stream = Some(handler);
    }

    pub(crate) fn serve_datagram(&self, path: &str, handler: DatagramHandler) {
        self.paths.lock().entry(path.into()).or_default().datagram = Some(handler);
    }

    pub(crate) fn set_life(&self, path: &str, life: Life) {
        self.paths.lock().entry(path.into()).or_default().life = Some(life);
    }

    /// Ends everything served at the path; its watchers are told.
    pub(crate) fn unserve(&self, path: &str) {
        let Some(served) = self.paths.lock().remove(path) else {
            return;
        };
        // In the order in which they were set.
        let mut watches: Vec<_> = served.watches.into_iter().collect();
        watches.sort_unstable_by_key(|(id, _)| *id);
        for (_, watch) in watches {
            watch.watcher.fire(Exit::Shutdown);
            if let Some(task) = watch.task {
                task.abort();
            }
        }
    }

    /// Forgets everything: handlers may hold the transport that holds them.
    pub(crate) fn clear(&self) {
        let paths = std::mem::take(&mut *self.paths.lock());
        for watch in paths.values().flat_map(|served| served.watches.values()) {
            if let Some(task) = &watch.task {
                task.abort();
            }
        }
        // Dropped outside of the lock, with whatever the handlers own.
        drop(paths);
    }

    /// Who handles a message; `None` when nothing is served there.
    pub(crate) fn message(&self, path: &str, message: &Envelope<'_>) -> Option<Result<MessageHandler, Failure>> {
        let paths = self.paths.lock();
        let handler = reader(&paths.get(path)?.messages, message);
        Some(handler.cloned().ok_or(Failure::UnknownMessage))
    }

    /// Whether anything is served there.
    pub(crate) fn serves(&self, path: &str) -> bool {
        self.paths.lock().contains_key(path)
    }

    pub(crate) fn stream(&self, path: &str) -> Option<StreamHandler> {
        self.paths.lock().get(path)?.stream.clone()
    }

    pub(crate) fn datagram(&self, path: &str) -> Option<DatagramHandler> {
        self.paths.lock().get(path)?.datagram.clone()
    }

    /// Watches the path until it ends; `None` when it has ended already and the watcher has been told.
    pub(crate) fn watch(&self, path: &str, watcher: Arc<Watcher>, runtime: &Handle) -> Option<u64> {
        let id = self.next_watch.fetch_add(1, Ordering::Relaxed);
        let life = {
            let mut paths = self.paths.lock();
            let Some(served) = paths.get_mut(path) else {
                drop(paths);
                watcher.fire(Exit::NoProc);
                return None;
            };
            let watch = Watch { watcher: watcher.clone(), task: None };
            served.watches.insert(id, watch);
            served.life.clone()
        };
        // The embedder's code is called outside of the lock.
        let Some(life) = life else {
            return Some(id);
        };
        let Some(end) = life() else {
            self.unwatch(path, id);
            watcher.fire(Exit::NoProc);
            return None;
        };
        let task = runtime.spawn(async move { watcher.fire(end.await) });
        match self.paths.lock().get_mut(path).and_then(|served| served.watches.get_mut(&id)) {
            Some(watch) => watch.task = Some(task.abort_handle()),
            // Unserved meanwhile, and told so.
            None => task.abort(),
        }
        Some(id)
    }

    pub(crate) fn unwatch(&self, path: &str, id: u64) {
        let mut paths = self.paths.lock();
        let watch = paths.get_mut(path).and_then(|served| served.watches.remove(&id));
        if let Some(task) = watch.and_then(|watch| watch.task) {
            task.abort();
        }
    }
}
