//! What a server answers to its peers: Raft's own requests, and what is forwarded to the leader.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use openraft::storage::Snapshot;

use super::network::{Answer, Proposed, RaftService, Request, SnapshotBody, SnapshotHeader, decode, encode};
use super::raft::Inner;
use super::snapshot::SnapshotFile;
use super::state::Response;

/// Does not keep the server alive: a transport may hold it for longer.
pub struct Service {
    pub inner: Weak<Inner>,
}

impl Service {
    fn inner(&self) -> Result<Arc<Inner>, String> {
        self.inner.upgrade().ok_or_else(|| "the store has stopped".to_owned())
    }
}

#[async_trait]
impl RaftService for Service {
    fn is_member(&self, name: &str) -> bool {
        self.inner.upgrade().is_some_and(|inner| inner.is_member(name))
    }

    async fn call(&self, request: Bytes) -> Result<Bytes, String> {
        let inner = self.inner()?;
        let stopped = |error: &dyn std::fmt::Display| error.to_string();
        let answer = match decode(&request)? {
            Request::Append(rpc) => Answer::Append(inner.raft.append_entries(rpc).await.map_err(|e| stopped(&e))?),
            Request::Vote(rpc) => Answer::Vote(inner.raft.vote(rpc).await.map_err(|e| stopped(&e))?),
            Request::PreVote(rpc) => Answer::Vote(inner.raft.pre_vote(rpc).await.map_err(|e| stopped(&e))?),
            Request::TransferLeader(request) => {
                Answer::TransferLeader(inner.raft.handle_transfer_leader(request).await.map_err(|e| stopped(&e))?)
            }
            Request::Propose(command) => {
                let proposed = inner.propose_here(command).await;
                Answer::Proposed(proposed.map(|proposed| match proposed.response {
                    Response::Txns(_) => Proposed { response: Response::Nothing, ..proposed },
                    _ => proposed,
                }))
            }
            Request::ReadIndex => Answer::ReadIndex(inner.read_index_here().await),
            Request::Admin(admin) => Answer::Admin(inner.admin_here(admin).await),
        };
        encode(&answer)
    }

    async fn snapshot(&self, header: Bytes, mut body: SnapshotBody) -> Result<Bytes, String> {
        let inner = self.inner()?;
        let SnapshotHeader { vote, meta } = decode(&header)?;
        let path = inner.snapshots.temporary();
        let received = async {
            let mut file = tokio::fs::File::create(&path).await?;
            tokio::io::copy(&mut body, &mut file).await?;
            tokio::io::AsyncWriteExt::flush(&mut file).await
        };
        let installed = match received.await {
            Ok(()) => {
                let file = SnapshotFile { meta: meta.clone(), path: path.clone() };
                let installed = inner.raft.install_full_snapshot(vote, Snapshot { meta, snapshot: file }).await;
                installed.map_err(|error| error.to_string())
            }
            Err(error) => Err(format!("cannot receive a snapshot: {error}")),
        };
        // It is still there when it was not whole, or older than what this server has.
        let _ = tokio::fs::remove_file(&path).await;
        encode(&installed?)
    }
}
