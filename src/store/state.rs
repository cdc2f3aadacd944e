//! The state machine: a command in, a response and the events of its revision out. Pure, and the same on every server.
//!
//! ```text
//!            Command (from the Raft log)
//!                 │
//!   sessions ── seen? ──► the stored answer, nothing changes        exactly once through every change of leader
//!                 │ no
//!   keys ── compares ── operations ──► revision + 1 ──► history     (history is local, see below)
//! ```
//!
//! Replicated: keys, revision, the compacted revision, sessions. They are what a snapshot holds, and what the answers depend on.
//! Local: the history, which serves watches and reads at old revisions. No answer to a command depends on it, so each
//! server bounds its own by count and bytes, and a server that started from a snapshot has none from before. A client
//! that asks for what is gone here lists again, exactly as after a compaction.
//! It must never read the clock, draw a random number, do I/O, or depend on the history in `apply`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Compare, KeyValue, Op, OpResponse, RangeRequest, RangeResult, Revision, StoreError, Txn, TxnResult, WatchEvent,
    WatchEventKind,
};

/// Clients (one per start of a server) whose recent answers are kept; the least recently used goes first. A retry lives for
/// seconds, and so many servers do not start in that time.
pub const SESSIONS_MAX: usize = 256;
/// Unacknowledged requests of one client that are kept; a client never has more in flight.
pub const SESSION_WINDOW: u64 = 4_096;
/// Bytes of kept answers per client. Beyond it the oldest are dropped, and their retry is answered [`Response::Expired`].
pub const SESSION_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What one history event or one kept answer costs beside its key and values, about.
const RECORD_OVERHEAD_BYTES: usize = 192;

/// Names one proposal for ever, so that sending it again through another leader cannot apply it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// Random, drawn at each start of a server.
    pub session: u128,
    /// Counts the requests of the session, from 1.
    pub seq: u64,
    /// The lowest `seq` that the client still waits for: the answers below it may be forgotten (Raft thesis 6.3).
    pub oldest_open: u64,
}

/// What the log carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    Txns { request: RequestId, txns: Arc<[Txn]> },
    Compact { upto: Revision },
}

/// What applying an entry answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// An entry without a command: a new leader's first, or a change of members.
    Nothing,
    Txns(Vec<TxnResult>),
    /// The request was seen before and its answer is forgotten: it was applied once, or never will be.
    Expired,
    Compacted(Result<(), StoreError>),
}

/// How much of the past a server keeps in memory for watches and reads at old revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    pub revisions_max: usize,
    /// Keys and values of all kept events, counted once per event.
    pub bytes_max: usize,
}

impl Default for HistoryLimits {
    fn default() -> HistoryLimits {
        HistoryLimits { revisions_max: 100_000, bytes_max: 64 * 1024 * 1024 }
    }
}

/// All that one transaction changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub events: Vec<WatchEvent>,
    bytes: usize,
}

/// Revisions `first .. first + changes.len()`, without a gap.
#[derive(Debug)]
struct History {
    first: Revision,
    changes: VecDeque<Change>,
    bytes: usize,
    limits: HistoryLimits,
}

impl History {
    fn empty(first: Revision, limits: HistoryLimits) -> History {
        History { first, changes: VecDeque::new(), bytes: 0, limits }
    }

    fn push(&mut self, change: Change) {
        debug_assert_eq!(change.revision, self.first + self.changes.len() as u64);
        self.bytes += change.bytes;
        self.changes.push_back(change);
        while self.changes.len() > self.limits.revisions_max || self.bytes > self.limits.bytes_max {
            if !self.drop_first() {
                break;
            }
        }
    }

    fn drop_first(&mut self) -> bool {
        let Some(change) = self.changes.pop_front() else {
            return false;
        };
        self.bytes -= change.bytes;
        self.first += 1;
        true
    }

    fn since(&self, revision: Revision) -> impl Iterator<Item = &Change> {
        let skip = usize::try_from(revision.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.changes.len());
        self.changes.range(skip..)
    }
}

/// The answers that one client may still ask for again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Everything below was answered and forgotten.
    pub floor: u64,
    /// When it was last used, counted in commands.
    pub used: u64,
    pub answers: BTreeMap<u64, Arc<Response>>,
    bytes: usize,
}

/// The replicated part of the state, as a snapshot carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub revision: Revision,
    pub compacted: Revision,
    /// Commands applied so far: the clock of the sessions.
    pub commands: u64,
    pub sessions: BTreeMap<u128, Session>,
    pub kvs: Vec<KeyValue>,
}

#[derive(Debug)]
pub struct State {
    revision: Revision,
    compacted: Revision,
    commands: u64,
    keys: BTreeMap<Arc<str>, KeyValue>,
    bytes: u64,
    sessions: BTreeMap<u128, Session>,
    history: History,
}

impl State {
    pub fn new(limits: HistoryLimits) -> State {
        State::from_image(Image::default(), limits)
    }

    /// The state that a snapshot holds, with no history from before it.
    pub fn from_image(image: Image, limits: HistoryLimits) -> State {
        let bytes = image.kvs.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum();
        State {
            revision: image.revision,
            compacted: image.compacted,
            commands: image.commands,
            keys: image.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect(),
            bytes,
            sessions: image.sessions,
            history: History::empty(image.revision + 1, limits),
        }
    }

    /// A copy of the replicated part; keys and values are shared, not copied.
    pub fn image(&self) -> Image {
        Image {
            revision: self.revision,
            compacted: self.compacted,
            commands: self.commands,
            sessions: self.sessions.clone(),
            kvs: self.keys.values().cloned().collect(),
        }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn keys(&self) -> u64 {
        self.keys.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn limits(&self) -> HistoryLimits {
        self.history.limits
    }

    /// The oldest revision that can be read here: the state just before the first change that history still holds.
    pub fn oldest_revision(&self) -> Revision {
        self.compacted.max(self.history.first - 1)
    }

    /// The changes from `from` on, oldest first. The caller has checked that `from` is behind [`State::oldest_revision`].
    pub fn changes_since(&self, from: Revision) -> impl Iterator<Item = &Change> {
        self.history.since(from)
    }

    pub fn get(&self, key: &str) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResult, StoreError> {
        let revision = request.revision.unwrap_or(self.revision);
        if revision > self.revision {
            return Err(StoreError::FutureRevision { wanted: revision, current: self.revision });
        }
        if revision < self.oldest_revision() {
            return Err(StoreError::Compacted { wanted: revision, oldest: self.oldest_revision() });
        }
        let mut page = Page { kvs: Vec::new(), count: 0, limit: request.limit, keys_only: request.keys_only };
        if !request.end.is_empty() && request.start >= request.end {
            return Ok(page.result(revision));
        }
        let upper = match request.end.as_str() {
            "" => Bound::Unbounded,
            end => Bound::Excluded(end),
        };
        let now = self.keys.range::<str, _>((Bound::Included(request.start.as_str()), upper));
        if revision == self.revision {
            now.for_each(|(_, kv)| page.add(kv));
            return Ok(page.result(revision));
        }

        // What each key that changed since was before its first change: the present with these laid over it is the past.
        let mut past: BTreeMap<&str, Option<&KeyValue>> = BTreeMap::new();
        for event in self.history.since(revision + 1).flat_map(|change| &change.events) {
            let key: &str = &event.kv.key;
            if key >= request.start.as_str() && (request.end.is_empty() || key < request.end.as_str()) {
                past.entry(key).or_insert(event.prev.as_ref());
            }
        }
        let mut past = past.into_iter().peekable();
        for (key, kv) in now {
            while let Some((_, gone)) = past.next_if(|(changed, _)| *changed < &**key) {
                gone.into_iter().for_each(|kv| page.add(kv));
            }
            match past.next_if(|(changed, _)| *changed == &**key) {
                Some((_, before)) => before.into_iter().for_each(|kv| page.add(kv)),
                None => page.add(kv),
            }
        }
        past.filter_map(|(_, gone)| gone).for_each(|kv| page.add(kv));
        Ok(page.result(revision))
    }

    /// Apply one command. Every server applies the same commands in the same order and answers the same.
    pub fn apply(&mut self, command: &Command) -> Response {
        self.commands += 1;
        match command {
            Command::Compact { upto } => Response::Compacted(self.compact(*upto)),
            Command::Txns { request, txns } => {
                if let Some(answer) = self.seen(request) {
                    return answer;
                }
                let results = txns.iter().map(|txn| self.apply_txn(txn)).collect();
                self.remember(request, Response::Txns(results))
            }
        }
    }

    fn compact(&mut self, upto: Revision) -> Result<(), StoreError> {
        if upto > self.revision {
            return Err(StoreError::FutureRevision { wanted: upto, current: self.revision });
        }
        self.compacted = self.compacted.max(upto);
        while self.history.first <= self.compacted && self.history.drop_first() {}
        Ok(())
    }

    /// The answer to an open request that was applied.
    pub fn answer(&self, request: &RequestId) -> Option<Response> {
        let answer = self.sessions.get(&request.session)?.answers.get(&request.seq)?;
        Some(Response::clone(answer))
    }

    fn seen(&mut self, request: &RequestId) -> Option<Response> {
        let session = self.sessions.get_mut(&request.session)?;
        session.used = self.commands;
        if let Some(answer) = session.answers.get(&request.seq) {
            return Some(Response::clone(answer));
        }
        (request.seq < session.floor).then_some(Response::Expired)
    }

    fn remember(&mut self, request: &RequestId, response: Response) -> Response {
        if !self.sessions.contains_key(&request.session) && self.sessions.len() >= SESSIONS_MAX {
            let idle = self.sessions.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id);
            idle.and_then(|id| self.sessions.remove(&id));
        }
        let session = self.sessions.entry(request.session).or_default();
        session.used = self.commands;
        session.bytes += response_bytes(&response);
        session.answers.insert(request.seq, Arc::new(response.clone()));
        let floor = request.oldest_open.min(request.seq).max(request.seq.saturating_sub(SESSION_WINDOW));
        session.floor = session.floor.max(floor);
        while let Some(oldest) = session.answers.first_entry() {
            let seq = *oldest.key();
            // The newest stays, however large: somebody is about to read it.
            if seq >= session.floor && (session.bytes <= SESSION_BYTES_MAX || seq == request.seq) {
                break;
            }
            session.bytes -= response_bytes(oldest.get());
            oldest.remove();
            session.floor = session.floor.max(seq + 1);
        }
        response
    }

    fn apply_txn(&mut self, txn: &Txn) -> TxnResult {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let responses = ops
            .iter()
            .map(|op| match op {
                Op::Get { key } => OpResponse::Get { kv: self.keys.get(key.as_str()).cloned() },
                Op::Put { key, value } => {
                    let (kv, prev) = self.put(key, value.clone(), revision);
                    events.push(WatchEvent { kind: WatchEventKind::Put, kv: kv.clone(), prev: prev.clone() });
                    OpResponse::Put { kv, prev }
                }
                Op::Delete { key } => {
                    let prev = self.keys.remove(key.as_str());
                    if let Some(prev) = &prev {
                        self.bytes -= (prev.key.len() + prev.value.len()) as u64;
                        let kv = KeyValue { value: Bytes::new(), mod_revision: revision, version: 0, ..prev.clone() };
                        events.push(WatchEvent { kind: WatchEventKind::Delete, kv, prev: Some(prev.clone()) });
                    }
                    OpResponse::Delete { prev }
                }
            })
            .collect();
        if !events.is_empty() {
            self.revision = revision;
            let bytes = events.iter().map(event_bytes).sum();
            self.history.push(Change { revision, events, bytes });
        }
        TxnResult { succeeded, revision: self.revision, responses }
    }

    fn put(&mut self, key: &str, value: Bytes, revision: Revision) -> (KeyValue, Option<KeyValue>) {
        self.bytes += value.len() as u64;
        if let Some(present) = self.keys.get_mut(key) {
            self.bytes -= present.value.len() as u64;
            let kv = KeyValue {
                key: present.key.clone(),
                value,
                create_revision: present.create_revision,
                mod_revision: revision,
                version: present.version + 1,
            };
            let prev = std::mem::replace(present, kv.clone());
            return (kv, Some(prev));
        }
        self.bytes += key.len() as u64;
        let key: Arc<str> = Arc::from(key);
        let kv = KeyValue { key: key.clone(), value, create_revision: revision, mod_revision: revision, version: 1 };
        self.keys.insert(key, kv.clone());
        (kv, None)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let present = |key: &String| self.keys.get(key.as_str());
        match compare {
            Compare::ModRevision { key, equals } => present(key).map_or(0, |kv| kv.mod_revision) == *equals,
            Compare::Exists { key } => present(key).is_some(),
            Compare::Absent { key } => present(key).is_none(),
        }
    }
}

struct Page {
    kvs: Vec<KeyValue>,
    count: usize,
    limit: usize,
    keys_only: bool,
}

impl Page {
    fn add(&mut self, kv: &KeyValue) {
        self.count += 1;
        if self.limit == 0 || self.kvs.len() < self.limit {
            let value = if self.keys_only { Bytes::new() } else { kv.value.clone() };
            self.kvs.push(KeyValue { key: kv.key.clone(), value, ..*kv });
        }
    }

    fn result(self, revision: Revision) -> RangeResult {
        RangeResult { more: self.count > self.kvs.len(), kvs: self.kvs, count: self.count, revision }
    }
}

fn event_bytes(event: &WatchEvent) -> usize {
    let prev = event.prev.as_ref().map_or(0, |prev| prev.value.len());
    RECORD_OVERHEAD_BYTES + event.kv.key.len() + event.kv.value.len() + prev
}

/// Deterministic: it decides which answers are forgotten, on all servers alike.
fn response_bytes(response: &Response) -> usize {
    let kv = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    let Response::Txns(results) = response else {
        return RECORD_OVERHEAD_BYTES;
    };
    let bytes = |response: &OpResponse| match response {
        OpResponse::Put { kv: put, prev } => put.key.len() + put.value.len() + kv(prev),
        OpResponse::Delete { prev } => kv(prev),
        OpResponse::Get { kv: got } => kv(got),
    };
    let results = results.iter().flat_map(|result| &result.responses);
    RECORD_OVERHEAD_BYTES + results.map(|response| RECORD_OVERHEAD_BYTES + bytes(response)).sum::<usize>()
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
