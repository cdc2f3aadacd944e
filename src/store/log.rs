//! The Raft log in redb: entries, vote, committed and purged positions.
//!
//! ```text
//!   raft ── append, vote, truncate, purge ──► queue (bounded) ──► writer thread: drain ► one transaction ► fsync ► answer all
//!        ◄─ read ── tail in memory, older entries from redb on a blocking thread
//! ```
//!
//! One thread owns all writing, so writes keep their order, and whatever waits while one fsync runs shares the next
//! (group commit). Nothing is acknowledged before it is on disk. After the first failed write the log is read-only until the server is
//! started again: what was and was not written behind a failed fsync is not known, and guessing loses votes.
//! It must never answer a write early, reorder writes, or run redb on a tokio worker.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::{Stream, TryStreamExt, stream};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::faults::StoreFaults;
use super::types::{Entry, LogId, TypeConfig, Vote, log_index};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// Writes that may wait for the writer thread; when full, Raft waits, and with it whoever proposes.
const LOG_QUEUE_MAX: usize = 1_024;
/// Bytes of entries that one transaction takes at most; the rest waits for the next.
const GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The newest entries stay in memory, for replication and for applying, up to this many bytes.
const TAIL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of entries that one read returns at most (at least one entry): the size of an append request to a follower.
/// One entry is little over 3 MiB at most, and a frame of the transport 4 MiB.
pub const APPEND_BYTES_MAX: usize = 3 * 1024 * 1024;
/// redb's own page cache. Its default of 1 GiB is for databases that are read; this one is written.
const REDB_CACHE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process has it open")]
    InUse,
    #[error("{0}")]
    Damaged(String),
}

enum Job {
    Append {
        entries: Vec<(u64, Vec<u8>)>,
        bytes: usize,
        done: IOFlushed<TypeConfig>,
    },
    Vote(Vec<u8>, Done),
    TruncateFrom(u64, Done),
    Purge {
        upto: u64,
        position: Vec<u8>,
        done: Done,
    },
    /// Flush what is pending and end.
    Close(Done),
}

type Done = oneshot::Sender<io::Result<()>>;

/// The memory of the log: what Raft may read at once.
#[derive(Default)]
struct Tail {
    /// Entries up to `last`, without a gap, with their encoded size.
    entries: BTreeMap<u64, (Entry, usize)>,
    bytes: usize,
    /// The last entry that is on disk; entries behind it must stay in `entries`.
    flushed: u64,
    purged: Option<LogId>,
    last: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

struct Shared {
    tail: Mutex<Tail>,
    /// `None` once closed, so that the file's lock is gone.
    database: RwLock<Option<Database>>,
    /// Written with the next transaction: an fsync of its own for each commit would double the cost of a write.
    committed: Mutex<Option<LogId>>,
    killed: AtomicBool,
    /// Why the log is read-only.
    failed: Mutex<Option<Failure>>,
    /// Bytes appended since the start: what makes a snapshot worth it.
    grown_bytes: AtomicU64,
    faults: StoreFaults,
}

/// Why the log takes no more writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub disk_full: bool,
    pub reason: String,
}

/// The log. Clones share it; only Raft writes.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
}

impl LogStore {
    /// Open or create the file. Blocking: call it where that is allowed.
    pub fn open(path: &Path, faults: StoreFaults) -> Result<LogStore, OpenError> {
        let damaged = |error: &dyn std::fmt::Display| OpenError::Damaged(error.to_string());
        let database =
            Database::builder().set_cache_size(REDB_CACHE_BYTES).create(path).map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse,
                error => damaged(&error),
            })?;
        let tail = load(&database).map_err(|error| damaged(&error))?;
        let shared = Arc::new(Shared {
            tail: Mutex::new(tail),
            database: RwLock::new(Some(database)),
            committed: Mutex::new(None),
            killed: AtomicBool::new(false),
            failed: Mutex::new(None),
            grown_bytes: AtomicU64::new(0),
            faults,
        });
        let (queue, jobs) = mpsc::channel(LOG_QUEUE_MAX);
        let writer = shared.clone();
        std::thread::Builder::new()
            .name("phalanx-store-log".to_owned())
            .spawn(move || write_all(&writer, jobs))
            .map_err(|error| damaged(&error))?;
        Ok(LogStore { shared, queue })
    }

    /// Why the log takes no more writes, if it does not.
    pub fn failure(&self) -> Option<Failure> {
        self.shared.failed.lock().clone()
    }

    /// Take no more writes, because something beside the log could not be written.
    pub fn fail(&self, what: &str, error: &io::Error) {
        self.shared.fail(what, error);
    }

    /// Bytes appended since the start.
    pub fn grown_bytes(&self) -> u64 {
        self.shared.grown_bytes.load(Ordering::Relaxed)
    }

    pub fn purged(&self) -> Option<LogId> {
        self.shared.tail.lock().purged
    }

    /// Write what is pending, close the file and end the thread.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Job::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Close without writing anything more, as if the process had died: what is queued is lost.
    pub async fn kill(&self) {
        self.shared.killed.store(true, Ordering::SeqCst);
        self.close().await;
    }

    async fn write(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.queue.send(job(done)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Entries of `start..end` that exist, as many as fit into `bytes_max` but at least one.
    async fn read(&self, mut start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (from, to) = {
                let tail = self.shared.tail.lock();
                let from = start.max(log_index(tail.purged).map_or(0, |index| index + 1));
                let to = end.min(log_index(tail.last).map_or(0, |index| index + 1));
                if from >= to {
                    return Ok(Vec::new());
                }
                let first = tail.entries.keys().next().copied().unwrap_or(u64::MAX);
                if from >= first {
                    return Ok(tail.read(from, to, bytes_max));
                }
                (from, first.min(to))
            };
            let shared = self.shared.clone();
            let read = tokio::task::spawn_blocking(move || shared.read_disk(from, to, bytes_max));
            let entries = read.await.map_err(|_| closed())??;
            if !entries.is_empty() || to == end {
                return Ok(entries);
            }
            // Purged meanwhile, or a log that does not begin with entry 0: the rest is in memory.
            start = to;
        }
    }
}

impl Shared {
    fn read_disk(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let database = self.database.read();
        let database = database.as_ref().ok_or_else(closed)?;
        let table = database.begin_read().map_err(broken)?.open_table(LOG).map_err(broken)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for row in table.range(start..end).map_err(broken)? {
            let (_, encoded) = row.map_err(broken)?;
            bytes += encoded.value().len();
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            entries.push(decode(encoded.value())?);
        }
        Ok(entries)
    }
}

fn load(database: &Database) -> io::Result<Tail> {
    let write = database.begin_write().map_err(broken)?;
    write.open_table(LOG).map_err(broken)?;
    write.open_table(META).map_err(broken)?;
    write.commit().map_err(broken)?;

    let read = database.begin_read().map_err(broken)?;
    let meta = read.open_table(META).map_err(broken)?;
    let log = read.open_table(LOG).map_err(broken)?;
    let mut tail = Tail::default();
    if let Some(vote) = meta.get(VOTE).map_err(broken)? {
        tail.vote = Some(decode(vote.value())?);
    }
    if let Some(committed) = meta.get(COMMITTED).map_err(broken)? {
        tail.committed = Some(decode(committed.value())?);
    }
    if let Some(purged) = meta.get(PURGED).map_err(broken)? {
        tail.purged = Some(decode(purged.value())?);
    }
    tail.last = tail.purged;
    // The newest entries are what Raft reads first; they are brought into memory so that the tail has no gap to its end.
    for row in log.range::<u64>(..).map_err(broken)?.rev() {
        let (index, encoded) = row.map_err(broken)?;
        if tail.bytes + encoded.value().len() > TAIL_BYTES_MAX && !tail.entries.is_empty() {
            break;
        }
        let entry: Entry = decode(encoded.value())?;
        if tail.entries.is_empty() {
            tail.last = Some(entry.log_id);
            tail.flushed = index.value();
        }
        tail.bytes += encoded.value().len();
        tail.entries.insert(index.value(), (entry, encoded.value().len()));
    }
    Ok(tail)
}

/// The writer thread.
fn write_all(shared: &Shared, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX
            && !matches!(group.last(), Some(Job::Close(_)))
            && let Ok(job) = jobs.try_recv()
        {
            bytes += job.bytes();
            group.push(job);
        }
        let result = shared.commit(&group);
        let ends = matches!(group.last(), Some(Job::Close(_)));
        if ends {
            shared.database.write().take();
        }
        for job in group {
            job.answer(&result);
        }
        if ends {
            return;
        }
    }
}

impl Job {
    fn bytes(&self) -> usize {
        if let Job::Append { bytes, .. } = self { *bytes } else { 0 }
    }

    fn answer(self, result: &io::Result<()>) {
        let result = result.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string()));
        match self {
            Job::Append { done, .. } => done.io_completed(result),
            Job::Vote(_, done) | Job::TruncateFrom(_, done) | Job::Purge { done, .. } | Job::Close(done) => {
                // Whoever asked is gone when the server is being stopped.
                let _ = done.send(result);
            }
        }
    }
}

impl Shared {
    fn commit(&self, group: &[Job]) -> io::Result<()> {
        if self.killed.load(Ordering::SeqCst) {
            return Err(closed());
        }
        if let Some(failure) = &*self.failed.lock() {
            return Err(io::Error::other(failure.reason.clone()));
        }
        let written = self.write_group(group);
        if let Err(error) = &written {
            self.fail("writing the log", error);
        }
        written
    }

    fn fail(&self, what: &str, error: &io::Error) {
        let disk_full = error.kind() == io::ErrorKind::StorageFull;
        let advice = if disk_full { "free some space" } else { "look at the disk" };
        let reason = format!("{what} failed ({error}); {advice} and start this server again");
        tracing::error!(reason, "the store is read-only");
        self.failed.lock().get_or_insert(Failure { disk_full, reason });
    }

    /// The committed position, once the entry itself is on disk with this group: a majority may have it before this server has,
    /// and a position behind the end of the log could not be started from.
    fn committed_by(&self, group: &[Job]) -> Option<LogId> {
        let reached = group.iter().filter_map(|job| match job {
            Job::Append { entries, .. } => entries.last().map(|(index, _)| *index),
            Job::Purge { upto, .. } => Some(*upto),
            _ => None,
        });
        let flushed = {
            let tail = self.tail.lock();
            tail.flushed.max(log_index(tail.purged).unwrap_or(0))
        };
        let reached = reached.fold(flushed, u64::max);
        self.committed.lock().take_if(|committed| committed.index <= reached)
    }

    fn write_group(&self, group: &[Job]) -> io::Result<()> {
        self.faults.check_write()?;
        let database = self.database.read();
        let database = database.as_ref().ok_or_else(closed)?;
        let committed = self.committed_by(group);
        let mut write = database.begin_write().map_err(broken)?;
        write.set_durability(redb::Durability::Immediate).map_err(broken)?;
        let mut last = None;
        let mut grown = 0;
        {
            let mut log = write.open_table(LOG).map_err(broken)?;
            let mut meta = write.open_table(META).map_err(broken)?;
            if let Some(committed) = committed {
                meta.insert(COMMITTED, encode(&committed)?.as_slice()).map_err(broken)?;
            }
            for job in group {
                match job {
                    Job::Append { entries, bytes, .. } => {
                        for (index, encoded) in entries {
                            log.insert(index, encoded.as_slice()).map_err(broken)?;
                            last = Some(*index);
                        }
                        grown += *bytes as u64;
                    }
                    Job::Vote(vote, _) => {
                        meta.insert(VOTE, vote.as_slice()).map_err(broken)?;
                    }
                    Job::TruncateFrom(from, _) => {
                        log.retain_in(*from.., |_, _| false).map_err(broken)?;
                    }
                    Job::Purge { upto, position, .. } => {
                        log.retain_in(..=*upto, |_, _| false).map_err(broken)?;
                        meta.insert(PURGED, position.as_slice()).map_err(broken)?;
                    }
                    Job::Close(_) => {}
                }
            }
        }
        write.commit().map_err(broken)?;
        if let Some(last) = last {
            self.tail.lock().flushed = last;
        }
        self.grown_bytes.fetch_add(grown, Ordering::Relaxed);
        Ok(())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (mut start, end) = bounds(&range);
        let mut entries = Vec::new();
        loop {
            let more = self.read(start, end, APPEND_BYTES_MAX).await?;
            let Some(last) = more.last() else {
                return Ok(entries);
            };
            start = last.log_id.index + 1;
            entries.extend(more);
        }
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, APPEND_BYTES_MAX).await
    }

    // Applying reads this way; a long catch-up must not be in memory at once.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let log = self.clone();
        let chunks = stream::try_unfold(start, move |start| {
            let log = log.clone();
            async move {
                let chunk = log.read(start, end, APPEND_BYTES_MAX).await?;
                let next = chunk.last().map(|entry| entry.log_id.index + 1);
                Ok::<_, io::Error>(next.map(|next| (stream::iter(chunk.into_iter().map(Ok)), next)))
            }
        });
        chunks.try_flatten()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.tail.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.shared.tail.lock();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let encoded = encode(vote)?;
        self.write(|done| Job::Vote(encoded, done)).await?;
        self.shared.tail.lock().vote = Some(*vote);
        Ok(())
    }

    // Kept in memory and written along with the next transaction, or on an orderly end. Losing the last one is safe: the leader
    // names the committed position again, and linearizable reads wait for it.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.tail.lock().committed = committed;
        *self.shared.committed.lock() = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.tail.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            let row = encode(&entry)?;
            bytes += row.len();
            let mut tail = self.shared.tail.lock();
            tail.bytes += row.len();
            tail.last = Some(entry.log_id);
            tail.entries.insert(entry.log_id.index, (entry.clone(), row.len()));
            encoded.push((entry.log_id.index, row));
        }
        self.shared.tail.lock().shrink();
        let job = Job::Append { entries: encoded, bytes, done: callback };
        self.queue.send(job).await.map_err(|_| closed())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = log_index(last).map_or(0, |index| index + 1);
        self.write(|done| Job::TruncateFrom(from, done)).await?;
        let mut tail = self.shared.tail.lock();
        let removed = tail.entries.split_off(&from);
        tail.bytes -= removed.values().map(|(_, size)| size).sum::<usize>();
        tail.flushed = tail.flushed.min(from.saturating_sub(1));
        if log_index(tail.last) >= Some(from) {
            tail.last = last.max(tail.purged);
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let position = encode(&upto)?;
        {
            // In memory first: whoever reads meanwhile must not look for what is being removed.
            let mut tail = self.shared.tail.lock();
            tail.purged = tail.purged.max(Some(upto));
            tail.last = tail.last.max(Some(upto));
            let kept = tail.entries.split_off(&(upto.index + 1));
            let removed = std::mem::replace(&mut tail.entries, kept);
            tail.bytes -= removed.values().map(|(_, size)| size).sum::<usize>();
        }
        self.write(|done| Job::Purge { upto: upto.index, position, done }).await?;
        Ok(())
    }
}

impl Tail {
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = |(_, (entry, size)): (&u64, &(Entry, usize))| {
            let fits = bytes == 0 || bytes + size <= bytes_max;
            bytes += size;
            fits.then(|| entry.clone())
        };
        self.entries.range(start..end).map_while(fits).collect()
    }

    fn shrink(&mut self) {
        while self.bytes > TAIL_BYTES_MAX
            && let Some(first) = self.entries.first_entry()
            && *first.key() <= self.flushed
        {
            self.bytes -= first.remove().1;
        }
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec(value).map_err(io::Error::other)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("a damaged entry in the log: {error}"));
    rmp_serde::from_slice(bytes).map_err(damaged)
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the log is closed")
}

/// redb's errors as I/O errors that keep their kind, so that a full disk is seen as one.
fn broken(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
