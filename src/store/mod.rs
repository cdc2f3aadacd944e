//! The store: one revisioned key-value map (etcd's model), replicated by Raft, read and watched from memory.
//!
//! ```text
//!   registry, controllers            the only callers; they see `trait Store` and the types of this file
//!        │ txn            │ get, range, watch
//!        ▼                ▼
//!   ReplicatedStore ── raft ── state (pure: apply(Command) -> Response; keys, revision, history) ── watch hub
//!        │               │
//!        │ network       ├── log       redb, one writer thread, fsync before acknowledgement
//!        ▼               └── snapshot  checksummed files, renamed into place
//!   other servers
//! ```
//!
//! One number, the revision, grows by one with every transaction that changes something; all that one transaction changes
//! shares it. A transaction that changes nothing takes none. Writing the bytes that are already there is a change.
//! It must never name an openraft type outside this folder, read the clock or draw a random number while it applies an entry.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A point in the history of the store: 0 is the empty store, every transaction that changes something adds one.
pub type Revision = u64;

/// The number by which Raft knows a server. It never changes and is never given to another server.
pub type ServerId = u64;

/// Most bytes (keys and values together) that one [`Txn`] may write; Kubernetes' own limit on a request body is 3 MiB.
pub const TXN_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Most compares and operations together in one [`Txn`].
pub const TXN_OPS_MAX: usize = 4_096;
/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;

/// One key with its value and where it stands in history. Cheap to clone: key and value are shared, not copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The revision that created the key (since it was last absent).
    pub create_revision: Revision,
    /// The revision that last wrote it; in a delete event, the revision of the deletion.
    pub mod_revision: Revision,
    /// Writes since its creation, which is 1; 0 in a delete event.
    pub version: u64,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began, on whichever server (Raft's ReadIndex, Raft thesis 6.4).
    Linearizable,
    /// What this server has applied, from its memory, without asking anyone; may be behind.
    Local,
}

/// The keys from `start` (inclusive) to `end` (exclusive; empty means no upper bound), in order of their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRequest {
    pub start: String,
    pub end: String,
    /// Most keys to return; 0 means all. The next page starts at [`RangeRequest::after`] the last key.
    pub limit: usize,
    /// Read the store as it was at this revision; `None` means now. For pages that must fit together.
    pub revision: Option<Revision>,
    /// Leave the values out.
    pub keys_only: bool,
}

impl RangeRequest {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &str) -> RangeRequest {
        RangeRequest { start: prefix.to_owned(), end: prefix_end(prefix), ..RangeRequest::default() }
    }

    /// At most `limit` keys.
    pub fn limit(mut self, limit: usize) -> RangeRequest {
        self.limit = limit;
        self
    }

    /// As of `revision`.
    pub fn at(mut self, revision: Revision) -> RangeRequest {
        self.revision = Some(revision);
        self
    }

    /// Only keys behind `key`: the page after the one that ended with it.
    pub fn after(mut self, key: &str) -> RangeRequest {
        self.start = format!("{key}\0");
        self
    }
}

/// The first string behind all strings that begin with `prefix`; empty (no upper bound) when there is none.
pub fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The order of code points is the order of their UTF-8 bytes; surrogates are no characters and are stepped over.
        let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            end.push(next);
            return end;
        }
    }
    end
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResult {
    pub kvs: Vec<KeyValue>,
    /// There are keys in the range behind the last one returned.
    pub more: bool,
    /// Keys in the whole range, also those that `limit` left out.
    pub count: usize,
    /// The revision that was read: the one asked for, or the store's at that moment.
    pub revision: Revision,
}

/// If all `compares` hold, run `success`, else `failure`; atomically, at one revision.
///
/// Operations run in order and see the effect of those before them. A key may be written once in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

impl Txn {
    /// Create `key`; when it exists the transaction fails and its one response is the present [`OpResponse::Get`].
    pub fn create(key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        Txn {
            compares: vec![Compare::Absent { key: key.clone() }],
            failure: vec![Op::Get { key: key.clone() }],
            success: vec![Op::Put { key, value: value.into() }],
        }
    }

    /// Replace `key` if it was last written at `revision`; else fail with the present [`OpResponse::Get`].
    pub fn replace(key: impl Into<String>, value: impl Into<Bytes>, revision: Revision) -> Txn {
        let key = key.into();
        Txn {
            compares: vec![Compare::ModRevision { key: key.clone(), equals: revision }],
            failure: vec![Op::Get { key: key.clone() }],
            success: vec![Op::Put { key, value: value.into() }],
        }
    }

    /// Remove `key` if it was last written at `revision`; else fail with the present [`OpResponse::Get`].
    pub fn remove(key: impl Into<String>, revision: Revision) -> Txn {
        let key = key.into();
        Txn {
            compares: vec![Compare::ModRevision { key: key.clone(), equals: revision }],
            failure: vec![Op::Get { key: key.clone() }],
            success: vec![Op::Delete { key }],
        }
    }

    /// Write `key` whatever is there.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
        Txn { success: vec![Op::Put { key: key.into(), value: value.into() }], ..Txn::default() }
    }

    /// Remove `key` if it is there.
    pub fn delete(key: impl Into<String>) -> Txn {
        Txn { success: vec![Op::Delete { key: key.into() }], ..Txn::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// The key was last written at `equals`; 0 means that it must not exist.
    ModRevision { key: String, equals: Revision },
    /// The key exists, whatever its revision.
    Exists { key: String },
    /// The key does not exist.
    Absent { key: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
    },
    /// No change (and no revision) when the key is absent.
    Delete {
        key: String,
    },
    Get {
        key: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnResult {
    /// Whether the compares held: `success` ran, else `failure`.
    pub succeeded: bool,
    /// The revision that the changes got, or the store's revision when nothing changed.
    pub revision: Revision,
    /// One for each operation that ran, in order.
    pub responses: Vec<OpResponse>,
}

impl TxnResult {
    /// What the first operation answered, as the key's present state: what was put, what a get found, `None` after a delete.
    pub fn first(&self) -> Option<&KeyValue> {
        match self.responses.first()? {
            OpResponse::Put { kv, .. } => Some(kv),
            OpResponse::Get { kv } => kv.as_ref(),
            OpResponse::Delete { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResponse {
    Put { kv: KeyValue, prev: Option<KeyValue> },
    Delete { prev: Option<KeyValue> },
    Get { kv: Option<KeyValue> },
}

/// Who leads, as this server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leadership {
    pub leader: Option<ServerId>,
    pub term: u64,
    /// This server holds the office: Raft calls it leader, and an entry of its own term is applied. It may be cut off and not
    /// know of a successor yet.
    pub in_office: bool,
    /// It is in office *and* a majority answered lately: nobody else can be leading.
    pub is_self: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Not yet part of any cluster: neither bootstrapped nor added.
    Uninitialized,
    Learner,
    Follower,
    Candidate,
    Leader,
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: ServerId,
    /// The node's name, by which the transport reaches it.
    pub name: String,
    /// `host:port`.
    pub addr: String,
    /// Votes; else a learner that is still catching up.
    pub voter: bool,
}

/// What `phalanx status` shows of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    pub server_id: ServerId,
    pub name: String,
    pub role: Role,
    pub term: u64,
    pub leader: Option<ServerId>,
    /// Index of the last log entry that is in the state.
    pub applied_index: u64,
    /// Index of the last entry in the log, committed or not.
    pub last_log_index: u64,
    /// Index of the last entry that the newest snapshot holds.
    pub snapshot_index: u64,
    pub revision: Revision,
    /// The oldest revision that can still be read; a watch may start behind it.
    pub oldest_revision: Revision,
    pub keys: u64,
    /// Bytes of all current keys and values.
    pub bytes: u64,
    pub members: Vec<Member>,
    /// Why writes are refused here, for people; `None` when they are not.
    pub read_only: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchEventKind {
    Put,
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    pub kind: WatchEventKind,
    /// The new state; for a deletion the key with an empty value and the revision of the deletion.
    pub kv: KeyValue,
    /// What was there before.
    pub prev: Option<KeyValue>,
}

/// Everything that happened in the watched range from the end of the previous batch up to and with `revision`.
/// What one transaction changed is never split between two batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    pub revision: Revision,
    pub events: Vec<WatchEvent>,
}

/// Why a watch ended. The watcher lists again and watches from the list's revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The events it would need next were dropped from history: it was too slow.
    #[error("the watch fell behind: it needs revision {wanted}, and the history begins at {oldest}; list again")]
    Lagged { wanted: Revision, oldest: Revision },
    /// The history was replaced under it, because this server received a snapshot from the leader.
    #[error(
        "the watch's history was compacted: it needs revision {wanted}, and the history begins at {oldest}; list again"
    )]
    Compacted { wanted: Revision, oldest: Revision },
    #[error("the store is closed")]
    Closed,
}

/// Why the store refused or lost a request. The text is for people: what happened and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// No server leads that this one can reach, within the deadline. Nothing was written: retry.
    #[error("the store has no leader that can be reached: {reason}; retry")]
    Unavailable { reason: String },
    /// The outcome is not known: the transaction may have been applied, once, or not. Read before trying again.
    #[error("no answer within {deadline_ms} ms: the write may or may not have been applied; read before you retry")]
    Unknown { deadline_ms: u64 },
    #[error("revision {wanted} is no longer readable, the oldest is {oldest}; list again")]
    Compacted { wanted: Revision, oldest: Revision },
    /// A revision that this server has not reached yet.
    #[error("revision {wanted} is in the future, the store is at {current}")]
    FutureRevision { wanted: Revision, current: Revision },
    #[error("the transaction is too large: {what} is {actual}, the limit is {limit}")]
    TooLarge { what: String, actual: usize, limit: usize },
    #[error("the transaction is not valid: {reason}")]
    Invalid { reason: String },
    /// The disk of the leader is full: writes are refused until there is room.
    #[error("the store of server {server} is read-only: {reason}")]
    DiskFull { server: ServerId, reason: String },
    #[error("the store of server {server} stopped: {reason}")]
    Corrupt { server: ServerId, reason: String },
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The request changed nothing and may succeed if it is sent again as it is.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::Unavailable { .. })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Uninitialized => "uninitialized",
            Role::Learner => "learner",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
            Role::Stopped => "stopped",
        })
    }
}

/// The store as everything above it sees it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key, and the store's revision at that moment.
    async fn get(&self, key: &str, consistency: Consistency) -> Result<(Option<KeyValue>, Revision), StoreError>;

    /// A range of keys, now or at an older revision.
    async fn range(&self, request: RangeRequest, consistency: Consistency) -> Result<RangeResult, StoreError>;

    /// Run one transaction; forwarded to the leader when this server is not it. It returns once a majority has it on disk
    /// *and this server has applied it*, so that a local read behind it sees it.
    async fn txn(&self, txn: Txn) -> Result<TxnResult, StoreError>;

    /// Many independent transactions in as few log entries as possible: one network round and one disk write for thousands.
    /// Each succeeds or fails for itself and gets its own revision; results are in the order of `txns`. After an error the
    /// first of them may have been applied: those that filled whole entries of the log.
    async fn txn_many(&self, txns: Vec<Txn>) -> Result<Vec<TxnResult>, StoreError>;

    /// Events of the keys from `start` to `end` (exclusive; empty means no upper bound) with a revision of `from` or higher,
    /// without gap or duplicate; 0 means from now on. [`StoreError::Compacted`] when `from` is older than the history.
    /// A `from` behind the store's next revision waits for it.
    fn watch(&self, start: String, end: String, from: Revision) -> Result<Watch, StoreError>;

    /// Forget the history before `upto`, on all servers: older revisions can no longer be read or watched.
    async fn compact(&self, upto: Revision) -> Result<(), StoreError>;

    /// The revision that this server has applied.
    fn revision(&self) -> Revision;

    fn status(&self) -> StoreStatus;

    /// Follows who leads.
    fn leadership(&self) -> tokio::sync::watch::Receiver<Leadership>;
}

mod check;
mod faults;
mod log;
mod machine;
mod memory;
mod network;
mod raft;
mod requests;
mod service;
mod snapshot;
mod start;
mod state;
mod transport;
mod types;
mod watch;

pub use faults::StoreFaults;
pub use memory::MemoryNetwork;
pub use network::{RaftService, RaftTransport, SnapshotBody, TransportError};
pub use raft::ReplicatedStore;
pub use start::{ElectionTimings, StartError, StoreConfig};
pub use state::HistoryLimits;
pub use transport::QuicTransport;
pub use types::Peer;
pub use watch::Watch;
