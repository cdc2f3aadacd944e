//! Opening a server's directory: whose it is, in which format, and whether it is whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::log::{LogStore, OpenError};
use super::network::RaftTransport;
use super::snapshot::SnapshotDir;
use super::types::log_index;
use super::{HistoryLimits, ServerId, StoreFaults};

/// The layout of the directory that this version reads and writes.
pub const FORMAT: u32 = 1;

/// Entries between two snapshots.
const SNAPSHOT_ENTRIES: u64 = 10_000;
/// How long a write or a linearizable read waits for an answer, through changes of the leader.
const REQUEST_DEADLINE_MS: u64 = 5_000;

/// When a server without news from the leader starts an election. A follower waits `max_ms` and a random time between
/// `min_ms` and `max_ms`, so a leader is replaced after `2 * max_ms` at the latest, plus the election itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectionTimings {
    pub heartbeat_ms: u64,
    pub min_ms: u64,
    pub max_ms: u64,
}

impl Default for ElectionTimings {
    /// For a local network: the next accepted write within half a second of the leader's death.
    fn default() -> ElectionTimings {
        ElectionTimings { heartbeat_ms: 40, min_ms: 60, max_ms: 160 }
    }
}

#[derive(Clone)]
pub struct StoreConfig {
    /// The cluster's name or id: a directory of another one is refused.
    pub cluster: String,
    pub server_id: ServerId,
    /// The node's name, by which the transport of others reaches it.
    pub name: String,
    /// `host:port`.
    pub addr: String,
    /// Nobody else may use it.
    pub dir: PathBuf,
    pub timings: ElectionTimings,
    pub transport: Arc<dyn RaftTransport>,
    pub history: HistoryLimits,
    /// Entries of the log between two snapshots.
    pub snapshot_entries: u64,
    /// How long a write or a linearizable read waits for an answer, through changes of the leader.
    pub request_deadline: Duration,
    pub faults: StoreFaults,
}

impl StoreConfig {
    pub fn new(
        cluster: impl Into<String>,
        server_id: ServerId,
        name: impl Into<String>,
        addr: impl Into<String>,
        dir: impl Into<PathBuf>,
        transport: Arc<dyn RaftTransport>,
    ) -> StoreConfig {
        StoreConfig {
            cluster: cluster.into(),
            server_id,
            name: name.into(),
            addr: addr.into(),
            dir: dir.into(),
            timings: ElectionTimings::default(),
            transport,
            history: HistoryLimits::default(),
            snapshot_entries: SNAPSHOT_ENTRIES,
            request_deadline: Duration::from_millis(REQUEST_DEADLINE_MS),
            faults: StoreFaults::default(),
        }
    }
}

/// Why a server's store did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{dir} belongs to the cluster {found:?}, not to {wanted:?}; give another directory")]
    OtherCluster { dir: String, found: String, wanted: String },
    #[error("{dir} belongs to the server {found}, not to {wanted}; give another directory")]
    OtherServer { dir: String, found: ServerId, wanted: ServerId },
    #[error("{dir} was written by a newer version (format {found}, this one reads {FORMAT}); use that version")]
    NewerFormat { dir: String, found: u32 },
    #[error("{dir} is in use by another process; stop it first")]
    InUse { dir: String },
    #[error("{dir} is damaged: {reason}; remove it and let this server join the others again, or restore a backup")]
    Damaged { dir: String, reason: String },
    #[error("cannot use {dir}: {source}")]
    Io { dir: String, source: io::Error },
    #[error("the election timings are not usable: {reason}")]
    Timings { reason: String },
    #[error("Raft did not start: {reason}")]
    Raft { reason: String },
}

/// Whose directory it is; the first file written there.
#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    cluster: String,
    server_id: ServerId,
}

/// Check the directory and open what is in it. Blocking.
pub fn open(config: &StoreConfig) -> Result<(LogStore, SnapshotDir), StartError> {
    let dir = || config.dir.display().to_string();
    let failed = |source| StartError::Io { dir: dir(), source };
    let damaged = |reason| StartError::Damaged { dir: dir(), reason };
    fs::create_dir_all(&config.dir).map_err(failed)?;
    let path = config.dir.join("identity.json");
    match fs::read(&path) {
        Ok(bytes) => {
            let found: Identity = serde_json::from_slice(&bytes)
                .map_err(|error| damaged(format!("identity.json is not readable ({error})")))?;
            if found.format > FORMAT {
                return Err(StartError::NewerFormat { dir: dir(), found: found.format });
            }
            if found.cluster != config.cluster {
                let wanted = config.cluster.clone();
                return Err(StartError::OtherCluster { dir: dir(), found: found.cluster, wanted });
            }
            if found.server_id != config.server_id {
                return Err(StartError::OtherServer { dir: dir(), found: found.server_id, wanted: config.server_id });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_identity(config, &path).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }

    let log = LogStore::open(&config.dir.join("log.redb"), config.faults.clone()).map_err(|error| match error {
        OpenError::InUse => StartError::InUse { dir: dir() },
        OpenError::Damaged(reason) => damaged(format!("the log is not readable ({reason})")),
    })?;
    let snapshots = SnapshotDir::open(&config.dir.join("snapshots"), config.faults.clone()).map_err(failed)?;
    let purged = log_index(log.purged()).unwrap_or(0);
    let covered = snapshots.current().and_then(|snapshot| log_index(snapshot.meta.last_log_id)).unwrap_or(0);
    if covered < purged {
        return Err(damaged(format!(
            "no whole snapshot reaches entry {purged}, where the log begins (best: {covered})"
        )));
    }
    Ok((log, snapshots))
}

fn write_identity(config: &StoreConfig, path: &Path) -> io::Result<()> {
    let identity = Identity { format: FORMAT, cluster: config.cluster.clone(), server_id: config.server_id };
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(&identity)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(&config.dir)?.sync_all()
}
