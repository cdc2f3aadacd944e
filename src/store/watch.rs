//! One server's copy of the state behind a lock, and the watchers that follow it.
//!
//! A watcher has no queue of its own: it is a cursor into the one history that the state keeps. So an event is stored once for all
//! watchers, there is no gap and no duplicate by construction, and the bound of the history is the bound of every watcher:
//! one that is slower than history is long ends with [`WatchError::Lagged`]. Applying only compares keys and wakes; it
//! never waits for a watcher. A watcher with nothing to read costs nothing, however far the revision moves on.
//! Called by the Raft glue (apply, install) and by every reader.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::Notify;

use super::state::{Command, Image, Response, State};
use super::{Revision, StoreError, WatchBatch, WatchError};

/// Most events in one batch; a single larger transaction is still one batch.
pub const WATCH_BATCH_EVENTS_MAX: usize = 1_024;

/// Where one watcher stands. Changed only under the state's lock: by the watcher under a read lock, by apply under the write lock.
#[derive(Debug)]
struct Cursor {
    start: String,
    end: String,
    /// Events before it are not wanted.
    from: Revision,
    /// The first revision that may hold events for this watcher which it has not taken; 0 when it has taken everything.
    pending: AtomicU64,
    /// The history was replaced by a snapshot while the watcher stood at `pending`.
    replaced: AtomicBool,
    wake: Notify,
}

impl Cursor {
    fn wants(&self, key: &str) -> bool {
        key >= self.start.as_str() && (self.end.is_empty() || key < self.end.as_str())
    }
}

/// The state of one server, shared by the applying task, the readers and the watchers.
#[derive(Debug)]
pub struct Replica {
    state: RwLock<State>,
    watchers: Mutex<HashMap<u64, Arc<Cursor>>>,
    watcher_ids: AtomicU64,
    closed: AtomicBool,
}

impl Replica {
    pub fn new(state: State) -> Arc<Replica> {
        Arc::new(Replica {
            state: RwLock::new(state),
            watchers: Mutex::default(),
            watcher_ids: AtomicU64::new(1),
            closed: AtomicBool::new(false),
        })
    }

    /// For reading; hold it briefly, applying waits for it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// Apply one command and wake the watchers of what it changed.
    pub fn apply(&self, command: &Command) -> Response {
        let mut state = self.state.write();
        let before = state.revision();
        let response = state.apply(command);
        if state.revision() > before {
            for cursor in self.watchers.lock().values() {
                let mut changes = state.changes_since(before.max(cursor.from.saturating_sub(1)) + 1);
                if cursor.pending.load(Ordering::Relaxed) != 0 {
                    continue;
                }
                if let Some(hit) = changes.find(|c| c.events.iter().any(|event| cursor.wants(&event.kv.key))) {
                    cursor.pending.store(hit.revision, Ordering::Relaxed);
                    cursor.wake.notify_one();
                }
            }
        }
        response
    }

    /// Replace everything by what a snapshot holds. Watchers that have not seen its revision end.
    pub fn install(&self, image: Image) {
        let mut state = self.state.write();
        let before = state.revision();
        *state = State::from_image(image, state.limits());
        for cursor in self.watchers.lock().values() {
            if cursor.pending.load(Ordering::Relaxed) == 0 && state.revision() > before {
                let next = cursor.from.max(before + 1);
                if next > state.revision() {
                    continue;
                }
                cursor.pending.store(next, Ordering::Relaxed);
            }
            if cursor.pending.load(Ordering::Relaxed) != 0 {
                cursor.replaced.store(true, Ordering::Relaxed);
                cursor.wake.notify_one();
            }
        }
    }

    /// End all watches: the server stops.
    pub fn close(&self) {
        let _state = self.state.write();
        self.closed.store(true, Ordering::Relaxed);
        self.watchers.lock().values().for_each(|cursor| cursor.wake.notify_one());
    }

    pub fn watch(self: &Arc<Replica>, start: String, end: String, from: Revision) -> Result<Watch, StoreError> {
        let state = self.state.read();
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        let from = if from == 0 { state.revision() + 1 } else { from };
        if from <= state.oldest_revision() {
            return Err(StoreError::Compacted { wanted: from, oldest: state.oldest_revision() });
        }
        let pending = if from <= state.revision() { from } else { 0 };
        let cursor = Arc::new(Cursor {
            start,
            end,
            from,
            pending: AtomicU64::new(pending),
            replaced: AtomicBool::new(false),
            wake: Notify::new(),
        });
        let id = self.watcher_ids.fetch_add(1, Ordering::Relaxed);
        self.watchers.lock().insert(id, cursor.clone());
        Ok(Watch { replica: self.clone(), id, cursor, ended: false })
    }
}

/// A stream of the changes of a key range, in order, each once. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    replica: Arc<Replica>,
    id: u64,
    cursor: Arc<Cursor>,
    ended: bool,
}

impl Watch {
    /// The next batch; waits for one. After an error the watch has ended and answers `None`. Cancel safe: a batch is
    /// taken and returned in one step.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, WatchError>> {
        loop {
            if self.ended {
                return None;
            }
            match self.take() {
                Ok(Some(batch)) => return Some(Ok(batch)),
                Ok(None) => self.cursor.wake.notified().await,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// What is there already, without waiting.
    pub fn try_next(&mut self) -> Option<Result<WatchBatch, WatchError>> {
        if self.ended {
            return None;
        }
        let taken = self.take();
        self.ended = taken.is_err();
        taken.transpose()
    }

    /// Everything in the watched range up to this revision has been returned by [`Watch::next`]: what a bookmark may say.
    /// It moves on with the store also while nothing in the range changes.
    pub fn progress(&self) -> Revision {
        let state = self.replica.state();
        match self.cursor.pending.load(Ordering::Relaxed) {
            0 => state.revision(),
            pending => pending - 1,
        }
    }

    fn take(&self) -> Result<Option<WatchBatch>, WatchError> {
        let state = self.replica.state();
        if self.replica.closed.load(Ordering::Relaxed) {
            return Err(WatchError::Closed);
        }
        let pending = self.cursor.pending.load(Ordering::Relaxed);
        if pending == 0 {
            return Ok(None);
        }
        let oldest = state.oldest_revision();
        if pending <= oldest {
            return Err(match self.cursor.replaced.load(Ordering::Relaxed) {
                true => WatchError::Compacted { wanted: pending, oldest },
                false => WatchError::Lagged { wanted: pending, oldest },
            });
        }
        let mut events = Vec::new();
        let mut unread = 0;
        for change in state.changes_since(pending) {
            if events.len() >= WATCH_BATCH_EVENTS_MAX {
                unread = change.revision;
                break;
            }
            events.extend(change.events.iter().filter(|event| self.cursor.wants(&event.kv.key)).cloned());
        }
        self.cursor.pending.store(unread, Ordering::Relaxed);
        let revision = if unread == 0 { state.revision() } else { unread - 1 };
        Ok((!events.is_empty()).then_some(WatchBatch { revision, events }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.replica.watchers.lock().remove(&self.id);
    }
}
