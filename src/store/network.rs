//! How servers of one store talk: the requests, and the trait that carries them.
//!
//! The store encodes its requests; a transport moves bytes to a named peer and back, and a snapshot as a stream. Tests move
//! them in memory, a real server over phalanx-transport. What a peer sends is untrusted in form: what does not decode is refused.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

use super::snapshot::SnapshotFile;
use super::state::{Command, Response};
use super::types::{CommittedLeaderId, Peer, SnapshotMeta, TypeConfig, Vote};
use super::{ServerId, StoreError};

/// The body of a snapshot on its way.
pub type SnapshotBody = Box<dyn AsyncRead + Send + Unpin>;

/// A request to a peer failed on the way; whether the peer got it is not known unless it says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// It was certainly not delivered: there is no connection.
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable { peer: String, reason: String },
    /// It may have been delivered.
    #[error("{peer} did not answer: {reason}")]
    Lost { peer: String, reason: String },
}

/// Moves the store's requests between servers.
#[async_trait]
pub trait RaftTransport: Send + Sync + 'static {
    /// Start handing what peers send to `service`; called once by the store when it starts.
    fn serve(&self, service: Arc<dyn RaftService>);

    /// Drop the service: this server answers nobody any more. Called when the store stops.
    fn stop(&self);

    /// Send a request and wait for the answer, at most for `deadline`.
    async fn call(&self, peer: &Peer, request: Bytes, deadline: Duration) -> Result<Bytes, TransportError>;

    /// Send a request with a large body, to [`RaftService::snapshot`] of the peer.
    async fn send_snapshot(
        &self,
        peer: &Peer,
        header: Bytes,
        body: SnapshotBody,
        deadline: Duration,
    ) -> Result<Bytes, TransportError>;
}

/// What a server answers to its peers; the store implements it. An `Err` is a reason for the log of whoever asked.
#[async_trait]
pub trait RaftService: Send + Sync + 'static {
    /// Whether Raft knows a server of this name as a member.
    fn is_member(&self, name: &str) -> bool;
    async fn call(&self, request: Bytes) -> Result<Bytes, String>;
    async fn snapshot(&self, header: Bytes, body: SnapshotBody) -> Result<Bytes, String>;
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// Forwarded to the leader.
    Propose(Command),
    ReadIndex,
    Admin(Admin),
}

/// Changes of the group of servers, done by the leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Admin {
    AddServer(Peer),
    RemoveServer(ServerId),
    TransferLeadership(ServerId),
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub enum Answer {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    Proposed(Result<Proposed, Refusal>),
    ReadIndex(Result<u64, Refusal>),
    Admin(Result<(), Refusal>),
}

/// A command that was applied by the leader, at this index of the log. The results of transactions are not sent: they may be
/// larger than a frame, and the asking server has them itself once it has applied the entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposed {
    pub index: u64,
    pub response: Response,
}

/// Why the server that was taken for the leader did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Nothing happened.
    #[error("it does not lead")]
    NotLeader { leader: Option<ServerId> },
    /// The leader lost its office with the entry in its log: it may be committed by the next one, or not.
    #[error("the leader changed")]
    Undecided,
    #[error("{0}")]
    Final(StoreError),
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SnapshotHeader {
    pub vote: Vote,
    pub meta: SnapshotMeta,
}

pub fn encode(value: &impl Serialize) -> Result<Bytes, String> {
    rmp_serde::to_vec(value).map(Bytes::from).map_err(|error| format!("cannot encode: {error}"))
}

pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(bytes).map_err(|error| format!("cannot decode what a peer sent: {error}"))
}

/// Ask a peer and decode its answer.
pub async fn ask(
    transport: &dyn RaftTransport,
    peer: &Peer,
    request: &Request,
    deadline: Duration,
) -> Result<Answer, TransportError> {
    let lost = |reason| TransportError::Lost { peer: peer.name.clone(), reason };
    let request = encode(request).map_err(lost)?;
    let answer = tokio::time::timeout(deadline, transport.call(peer, request, deadline)).await;
    let answer = answer.map_err(|_| lost(format!("no answer within {} ms", deadline.as_millis())))??;
    decode(&answer).map_err(lost)
}

/// Where each server was last said to be. openraft goes on with the connections that it has when nothing but a server's address
/// changes; without this they would look for it at the old one for ever.
#[derive(Clone, Default)]
pub struct AddressBook(Arc<Mutex<HashMap<ServerId, Peer>>>);

impl AddressBook {
    /// The newest word on where this server is.
    pub fn note(&self, peer: Peer) {
        self.0.lock().insert(peer.id, peer);
    }

    fn find(&self, id: ServerId) -> Option<Peer> {
        self.0.lock().get(&id).cloned()
    }
}

/// openraft's side: makes a connection for each peer and purpose.
pub struct Network {
    pub transport: Arc<dyn RaftTransport>,
    pub addresses: AddressBook,
    /// Least time for an append that carries entries: openraft gives one heartbeat interval, which a slow disk may exceed.
    pub backoff_ms: u64,
}

pub struct Connection {
    transport: Arc<dyn RaftTransport>,
    /// As it was when the connection was made.
    first: Peer,
    addresses: AddressBook,
    backoff_ms: u64,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: ServerId, node: &Peer) -> Connection {
        let peer = Peer { id: target, ..node.clone() };
        self.addresses.note(peer.clone());
        Connection {
            transport: self.transport.clone(),
            first: peer,
            addresses: self.addresses.clone(),
            backoff_ms: self.backoff_ms,
        }
    }
}

impl Connection {
    fn peer(&self) -> Peer {
        self.addresses.find(self.first.id).unwrap_or_else(|| self.first.clone())
    }

    async fn ask(&self, request: &Request, option: &RPCOption) -> Result<Answer, RPCError<TypeConfig>> {
        ask(&*self.transport, &self.peer(), request, option.hard_ttl()).await.map_err(rpc_error)
    }

    fn unexpected(&self) -> RPCError<TypeConfig> {
        let text = format!("{} answered something else than was asked", self.first.name);
        RPCError::Network(NetworkError::from_string(text))
    }
}

fn rpc_error(error: TransportError) -> RPCError<TypeConfig> {
    match error {
        TransportError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
        TransportError::Lost { .. } => RPCError::Network(NetworkError::new(&error)),
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        // A heartbeat that is late is lost. Entries on their way to a slow disk are not: sending them again would only add to its load.
        let option = match rpc.entries.is_empty() {
            true => option,
            false => RPCOption::new(option.hard_ttl().max(APPEND_TIMEOUT)),
        };
        match self.ask(&Request::Append(rpc), &option).await? {
            Answer::Append(answer) => Ok(answer),
            _ => Err(self.unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(&Request::Vote(rpc), &option).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(self.unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(&Request::PreVote(rpc), &option).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(self.unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<CommittedLeaderId, ServerId, Peer, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let broken = |reason: String| StreamingError::Network(NetworkError::from_string(reason));
        let file = tokio::fs::File::open(&snapshot.snapshot.path).await;
        let file = file.map_err(|error| broken(format!("cannot open the snapshot: {error}")))?;
        let header = encode(&SnapshotHeader { vote, meta: snapshot.meta }).map_err(broken)?;
        let peer = self.peer();
        let send = self.transport.send_snapshot(&peer, header, Box::new(file), option.hard_ttl());
        let answer = tokio::select! {
            answer = tokio::time::timeout(option.hard_ttl(), send) => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let answer = answer.map_err(|_| broken(format!("sending a snapshot to {} took too long", self.first.name)))?;
        decode(&answer.map_err(|error| StreamingError::from(rpc_error(error)))?).map_err(broken)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(&Request::TransferLeader(request), &option).await? {
            Answer::TransferLeader(answer) => Ok(answer),
            _ => Err(self.unexpected()),
        }
    }

    // A peer that comes back is to be found within an election, so the wait does not grow.
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(self.backoff_ms))))
    }
}

/// Longest wait for a follower to put entries on its disk.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes where it was sent to, and answers nothing.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    #[async_trait]
    impl RaftTransport for Recorder {
        fn serve(&self, _: Arc<dyn RaftService>) {}
        fn stop(&self) {}
        async fn call(&self, peer: &Peer, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
            self.0.lock().push(peer.addr.clone());
            Err(TransportError::Unreachable { peer: peer.name.clone(), reason: "a test".to_owned() })
        }
        async fn send_snapshot(
            &self,
            peer: &Peer,
            header: Bytes,
            _: SnapshotBody,
            deadline: Duration,
        ) -> Result<Bytes, TransportError> {
            self.call(peer, header, deadline).await
        }
    }

    #[tokio::test]
    async fn a_connection_follows_its_server_to_another_address() {
        let recorder = Arc::new(Recorder::default());
        let addresses = AddressBook::default();
        let mut network = Network { transport: recorder.clone(), addresses: addresses.clone(), backoff_ms: 1 };
        let at = |addr: &str| Peer { id: 3, name: "s3".to_owned(), addr: addr.to_owned() };
        let mut connection = network.new_client(3, &at("old")).await;
        let vote = || VoteRequest::new(Vote::new(1, 1), None);
        let option = || RPCOption::new(Duration::from_secs(1));
        assert!(connection.vote(vote(), option()).await.is_err());
        addresses.note(at("new"));
        assert!(connection.vote(vote(), option()).await.is_err());
        assert_eq!(*recorder.0.lock(), ["old", "new"]);
    }
}
