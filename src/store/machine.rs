//! openraft's state machine: feeds committed entries to the [`Replica`] and makes and installs its snapshots.
//!
//! The state lives in memory; on disk are snapshots and the log behind them. After a start openraft installs the newest snapshot and
//! applies the log from there.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::watch;

use super::ServerId;
use super::log::LogStore;
use super::snapshot::{self, SnapshotDir, SnapshotFile};
use super::state::{Image, Response};
use super::types::{CommittedLeaderId, LogId, Peer, SnapshotMeta, StoredMembership, TypeConfig, log_index};
use super::watch::Replica;

pub struct Machine {
    pub replica: Arc<Replica>,
    pub snapshots: SnapshotDir,
    /// Told when a snapshot cannot be written.
    pub log: LogStore,
    pub last_applied: Option<LogId>,
    pub membership: StoredMembership,
    /// The index of the last applied entry, for reads that wait for it.
    pub applied: watch::Sender<u64>,
}

pub struct Builder {
    meta: SnapshotMeta,
    image: Option<Image>,
    snapshots: SnapshotDir,
    log: LogStore,
}

type RaftSnapshot = Snapshot<CommittedLeaderId, ServerId, Peer, SnapshotFile>;

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let Some(image) = self.image.take() else {
            return Err(io::Error::other("this snapshot was built already"));
        };
        let (snapshots, meta) = (self.snapshots.clone(), self.meta.clone());
        let written = blocking(move || snapshots.write(meta, &image)).await;
        let file = written.inspect_err(|error| self.log.fail("writing a snapshot", error))?;
        Ok(Snapshot { meta: file.meta.clone(), snapshot: file })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let response = match &entry.payload {
                EntryPayload::Blank => Response::Nothing,
                EntryPayload::Normal(command) => self.replica.apply(command),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Response::Nothing
                }
            };
            self.last_applied = Some(entry.log_id);
            // Before the answer, so that whoever has it can read here what it wrote.
            self.applied.send_replace(entry.log_id.index);
            if let Some(responder) = responder {
                responder.send(response);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() };
        let image = Some(self.replica.state().image());
        Builder { meta, image, snapshots: self.snapshots.clone(), log: self.log.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let (snapshots, wanted) = (self.snapshots.clone(), meta.clone());
        let installed = blocking(move || {
            let received = snapshots.current().is_none_or(|current| current.path != file.path);
            let path = if received { snapshots.adopt(&file.path)?.path } else { file.path };
            let (found, image) = snapshot::read(&path)?;
            if found != wanted {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is not the one announced"));
            }
            Ok(image)
        });
        let image = installed.await.inspect_err(|error| self.log.fail("installing a snapshot", error))?;
        self.replica.install(image);
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.applied.send_replace(log_index(meta.last_log_id).unwrap_or(0));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        Ok(self.snapshots.current().map(|file| Snapshot { meta: file.meta.clone(), snapshot: file }))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| io::Error::other("the runtime is shutting down"))?
}
