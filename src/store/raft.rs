//! [`ReplicatedStore`]: one server of the store. Starting and stopping, the loop that carries a request to whoever leads, and the
//! [`Store`] trait on top of both.
//!
//! ```text
//!   txn ─► ticket (request id) ─► who leads? ── this server ─► raft.client_write ─► applied here ─► answer
//!              ▲                      │ another: forward, then wait until it is applied here too
//!              └── not decided: again with the same id, until the deadline
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, Config, Instant as _, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::Instant;

use super::check::check;
use super::log::LogStore;
use super::machine::Machine;
use super::network::{
    self, AddressBook, Admin, Answer, Network, Proposed, RaftTransport, Refusal, Request, TransportError,
};
use super::requests::Requests;
use super::service::Service;
use super::start::{self, StartError, StoreConfig};
use super::state::{Command, Response, State};
use super::types::{Peer, TypeConfig, log_index};
use super::watch::{Replica, Watch};
use super::{
    Consistency, KeyValue, Leadership, Member, RangeRequest, RangeResult, Revision, Role, ServerId, Store, StoreError,
    StoreStatus, Txn, TxnResult,
};

/// Bytes that one log entry carries at most; [`Store::txn_many`] takes several entries for more.
const ENTRY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Transactions that one log entry carries at most.
const ENTRY_TXNS_MAX: usize = 4_096;
/// How long a change of members may take, catching up included.
const ADMIN_DEADLINE: Duration = Duration::from_secs(30);
/// A forwarded request without an answer is sent again after this time; it is applied once all the same.
const FORWARD_ATTEMPT: Duration = Duration::from_secs(1);
/// Pause before asking again when nobody leads or the leader refused.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long an orderly end waits for another server to take over.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(1);
/// A snapshot is also made after so many bytes of log, however few the entries.
const SNAPSHOT_LOG_BYTES: u64 = 64 * 1024 * 1024;
/// Below so much free space writes are refused, while there is still room to end in order.
const DISK_RESERVE_BYTES: u64 = 32 * 1024 * 1024;
const DISK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) type Raft = openraft::Raft<TypeConfig, Machine>;

/// One server of the store. Clones are handles of the same server; end it with [`ReplicatedStore::shutdown`].
#[derive(Clone)]
pub struct ReplicatedStore {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    me: Peer,
    pub raft: Raft,
    pub replica: Arc<Replica>,
    pub snapshots: super::snapshot::SnapshotDir,
    log: LogStore,
    applied: watch::Receiver<u64>,
    leadership: watch::Receiver<Leadership>,
    requests: Requests,
    transport: Arc<dyn RaftTransport>,
    addresses: AddressBook,
    request_deadline: Duration,
    lease: Duration,
    low_disk: AtomicBool,
    dir: std::path::PathBuf,
    stopped: AtomicBool,
}

impl ReplicatedStore {
    /// Open the directory and start. A new server belongs to no cluster until [`ReplicatedStore::bootstrap`] here or
    /// [`ReplicatedStore::add_server`] on a member; an old one takes its place again by itself.
    pub async fn start(config: StoreConfig) -> Result<ReplicatedStore, StartError> {
        let timings = config.timings;
        let raft_config = Config {
            cluster_name: config.cluster.clone(),
            heartbeat_interval: timings.heartbeat_ms,
            election_timeout_min: timings.min_ms,
            election_timeout_max: timings.max_ms,
            enable_pre_vote: Some(true),
            // A leader that restarts must be elected again: its first entry of the new term is what a linearizable read waits
            // for. Restored without one it would read at the commit position on its disk, which may be behind what it acknowledged.
            enable_leader_restore: Some(false),
            quorum_loss_probe_interval: Some(2 * timings.max_ms),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
            // Reaches back behind the snapshot before the newest, should that one be damaged.
            max_in_snapshot_log_to_keep: config.snapshot_entries + config.snapshot_entries / 4,
            replication_lag_threshold: 2 * config.snapshot_entries,
            max_payload_entries: 1_024,
            install_snapshot_timeout: 60_000,
            ..Config::default()
        };
        let raft_config = raft_config.validate().map_err(|error| StartError::Timings { reason: error.to_string() })?;

        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || start::open(&opening)).await;
        let (log, snapshots) = opened.map_err(|error| StartError::Raft { reason: error.to_string() })??;
        let replica = Replica::new(State::new(config.history));
        let (applied_to, applied) = watch::channel(0);
        let machine = Machine {
            replica: replica.clone(),
            snapshots: snapshots.clone(),
            log: log.clone(),
            last_applied: None,
            membership: Default::default(),
            applied: applied_to,
        };
        let (transport, addresses) = (config.transport.clone(), AddressBook::default());
        let network = Network { transport, addresses: addresses.clone(), backoff_ms: timings.heartbeat_ms };
        let raft = Raft::new(config.server_id, Arc::new(raft_config), network, log.clone(), machine).await;
        let raft = match raft {
            Ok(raft) => raft,
            Err(error) => {
                log.close().await;
                return Err(StartError::Raft { reason: error.to_string() });
            }
        };
        let alone = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().voter_ids().eq([config.server_id])
        };
        if alone {
            // Nobody else can lead, so there is nothing to wait for. Should it fail, the election timer does the same.
            let _ = raft.trigger().elect(false).await;
        }
        let (leadership_to, leadership) = watch::channel(Leadership::default());
        let inner = Arc::new(Inner {
            me: Peer { id: config.server_id, name: config.name, addr: config.addr },
            raft,
            replica,
            snapshots,
            log,
            applied,
            leadership,
            requests: Requests::new(rand::random()),
            transport: config.transport,
            addresses,
            request_deadline: config.request_deadline,
            lease: Duration::from_millis(timings.max_ms),
            low_disk: AtomicBool::new(false),
            dir: config.dir,
            stopped: AtomicBool::new(false),
        });
        inner.transport.serve(Arc::new(Service { inner: Arc::downgrade(&inner) }));
        let tick = Duration::from_millis((timings.heartbeat_ms / 2).max(1));
        tokio::spawn(supervise(inner.clone(), leadership_to, tick, config.faults));
        Ok(ReplicatedStore { inner })
    }

    /// Whether this server is in office and its quorum has answered lately, now and not as of the last change: what only the
    /// leader may do without asking anybody depends on it.
    pub fn is_heard(&self) -> bool {
        self.inner.leadership_now().is_self
    }

    /// Make a new cluster of this one server. Harmless when it already belongs to one.
    pub async fn bootstrap(&self) -> Result<(), StoreError> {
        let members = BTreeMap::from([(self.inner.me.id, self.inner.me.clone())]);
        match self.inner.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StoreError::Unavailable { reason: error.to_string() }),
        }
    }

    /// Add a server that was started and not bootstrapped: first it catches up without a vote, then it votes. May be asked on any
    /// server and repeated: a member whose address has changed gets the new one, and its vote if it has none.
    pub async fn add_server(&self, id: ServerId, name: &str, addr: &str) -> Result<(), StoreError> {
        let peer = Peer { id, name: name.to_owned(), addr: addr.to_owned() };
        self.inner.admin(Admin::AddServer(peer)).await
    }

    /// Take a server out, whether it lives or not.
    pub async fn remove_server(&self, id: ServerId) -> Result<(), StoreError> {
        self.inner.admin(Admin::RemoveServer(id)).await
    }

    /// Let `to` lead. Refused when it is no voter or far behind: a transfer to a server that cannot take over costs an election.
    pub async fn transfer_leadership(&self, to: ServerId) -> Result<(), StoreError> {
        self.inner.admin(Admin::TransferLeadership(to)).await
    }

    /// Wait until a leader is known here that accepted an entry of its term (`Unavailable` after `deadline`).
    pub async fn wait_for_leader(&self, deadline: Duration) -> Result<ServerId, StoreError> {
        let mut leadership = self.inner.leadership.clone();
        let leads =
            leadership.wait_for(|now| now.leader.is_some() && (now.leader != Some(self.inner.me.id) || now.is_self));
        match tokio::time::timeout(deadline, leads).await {
            Ok(Ok(now)) => Ok(now.leader.unwrap_or(self.inner.me.id)),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Unavailable { reason: format!("none within {} ms", deadline.as_millis()) }),
        }
    }

    /// End in order: hand over the leadership, write what is pending, close the files.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if self.leadership().borrow().is_self
            && let Some(to) = inner.heir()
        {
            // The others elect one anyway, a little later.
            let _ = tokio::time::timeout(HANDOVER_DEADLINE, inner.transfer(to)).await;
        }
        inner.stop(false).await;
    }

    /// End as if the process had died: nothing more is written or sent, nothing is handed over.
    pub async fn abort(&self) {
        self.inner.stop(true).await;
    }
}

impl Inner {
    async fn stop(&self, abruptly: bool) {
        self.stopped.store(true, Ordering::SeqCst);
        self.transport.stop();
        if abruptly {
            self.log.kill().await;
        }
        // An error means that its task had panicked, which it has logged itself.
        let _ = self.raft.shutdown().await;
        if !abruptly {
            self.log.close().await;
        }
        self.replica.close();
    }

    fn leader(&self) -> Option<ServerId> {
        self.raft.metrics().borrow_watched().current_leader
    }

    fn peer(&self, id: ServerId) -> Option<Peer> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some(Peer { id, ..node.clone() })
    }

    /// Whether a server of this name belongs to the cluster, as far as this one knows.
    pub fn is_member(&self, name: &str) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().nodes().any(|(_, peer)| peer.name == name)
    }

    /// Why this server takes no part any more, or no writes.
    fn refusal(&self) -> Option<StoreError> {
        let server = self.me.id;
        if let Some(failure) = self.log.failure() {
            let reason = failure.reason;
            return Some(match failure.disk_full {
                true => StoreError::DiskFull { server, reason },
                false => StoreError::Corrupt { server, reason },
            });
        }
        if self.stopped.load(Ordering::SeqCst) {
            return Some(StoreError::Closed);
        }
        let running = self.raft.metrics().borrow_watched().running_state.clone();
        running.err().map(|error| StoreError::Corrupt { server, reason: error.to_string() })
    }

    fn low_disk_reason(&self) -> String {
        let (reserve, dir) = (DISK_RESERVE_BYTES >> 20, self.dir.display());
        format!("less than {reserve} MiB are free on the disk of {dir}; make room there, and writes go on")
    }

    /// Propose as the leader.
    pub async fn propose_here(&self, command: Command) -> Result<Proposed, Refusal> {
        if self.refusal().is_some() {
            // It leads no more, whatever others still believe: one of them takes over.
            return Err(Refusal::NotLeader { leader: None });
        }
        if self.low_disk.load(Ordering::Relaxed) {
            return Err(Refusal::Final(StoreError::DiskFull { server: self.me.id, reason: self.low_disk_reason() }));
        }
        match self.raft.client_write(command).await {
            Ok(written) => Ok(Proposed { index: written.log_id.index, response: written.data }),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Refusal::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_)) => {
                Err(Refusal::Undecided)
            }
            Err(RaftError::APIError(error)) => Err(Refusal::Final(StoreError::Invalid { reason: error.to_string() })),
        }
    }

    /// Carry a command to the leader until it is applied or the deadline ends. It may be sent more than once: its request id,
    /// or its nature (a compaction), makes that harmless.
    async fn propose(&self, command: Command) -> Result<Proposed, StoreError> {
        let deadline = Instant::now() + self.request_deadline;
        let deadline_ms = self.request_deadline.as_millis() as u64;
        let mut undecided = false;
        let mut reason = "no leader is known".to_owned();
        loop {
            if let Some(error) = self.refusal() {
                return Err(if undecided { StoreError::Unknown { deadline_ms } } else { error });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(if undecided {
                    StoreError::Unknown { deadline_ms }
                } else {
                    StoreError::Unavailable { reason }
                });
            }
            let known = self.leader();
            let refused = match known {
                Some(leader) if leader == self.me.id => {
                    match tokio::time::timeout(left, self.propose_here(command.clone())).await {
                        Ok(Ok(proposed)) => return Ok(proposed),
                        Ok(Err(refusal)) => refusal,
                        Err(_) => Refusal::Undecided,
                    }
                }
                Some(leader) => match self.forward(leader, Request::Propose(command.clone()), left).await {
                    Ok(Answer::Proposed(Ok(proposed))) => {
                        let applied = tokio::time::timeout_at(deadline, self.wait_applied(proposed.index)).await;
                        return self.answer(&command, proposed, matches!(applied, Ok(Ok(()))), deadline_ms);
                    }
                    Ok(Answer::Proposed(Err(refusal))) => refusal,
                    Ok(_) => Refusal::Undecided,
                    Err(TransportError::Unreachable { reason: why, .. }) => {
                        reason = why;
                        Refusal::NotLeader { leader: None }
                    }
                    Err(TransportError::Lost { .. }) => Refusal::Undecided,
                },
                None => Refusal::NotLeader { leader: None },
            };
            match refused {
                Refusal::NotLeader { .. } => {}
                Refusal::Undecided => undecided = true,
                Refusal::Final(error) => {
                    return Err(if undecided { StoreError::Unknown { deadline_ms } } else { error });
                }
            }
            self.pause(known, left).await;
        }
    }

    /// Rests until somebody else leads than `known`, or for [`RETRY_PAUSE`]: hundreds of requests may be waiting for an
    /// election, which needs the processor more than they do.
    async fn pause(&self, known: Option<ServerId>, left: Duration) {
        let mut metrics = self.raft.metrics();
        let changed = metrics.wait_until(|now| now.current_leader != known);
        // A closed channel is an end that the next round sees.
        let _ = tokio::time::timeout(RETRY_PAUSE.min(left), changed).await;
    }

    /// The answer to a forwarded command, read here where it was applied too.
    fn answer(
        &self,
        command: &Command,
        proposed: Proposed,
        applied: bool,
        deadline_ms: u64,
    ) -> Result<Proposed, StoreError> {
        let response = match (command, &proposed.response) {
            (Command::Txns { request, .. }, Response::Nothing) if applied => self.replica.state().answer(request),
            (Command::Txns { .. }, Response::Nothing) => None,
            (_, response) => Some(response.clone()),
        };
        let response = response.ok_or(StoreError::Unknown { deadline_ms })?;
        Ok(Proposed { response, ..proposed })
    }

    /// Ask the leader. Gives up at once when another server leads: the answer would never come.
    async fn forward(&self, leader: ServerId, request: Request, left: Duration) -> Result<Answer, TransportError> {
        let name = || format!("server {leader}");
        let Some(peer) = self.peer(leader) else {
            return Err(TransportError::Unreachable {
                peer: name(),
                reason: "its address is not known yet".to_owned(),
            });
        };
        let mut metrics = self.raft.metrics();
        let replaced =
            metrics.wait_until(|now| now.current_leader.is_some_and(|now| now != leader) || now.running_state.is_err());
        tokio::select! {
            answer = network::ask(&*self.transport, &peer, &request, left.min(FORWARD_ATTEMPT)) => answer,
            _ = replaced => Err(TransportError::Lost { peer: name(), reason: "it does not lead any more".to_owned() }),
        }
    }

    async fn wait_applied(&self, index: u64) -> Result<(), StoreError> {
        let mut applied = self.applied.clone();
        applied.wait_for(|applied| *applied >= index).await.map(|_| ()).map_err(|_| StoreError::Closed)
    }

    /// The log position that a linearizable read must have applied, as the leader (Raft thesis 6.4).
    pub async fn read_index_here(&self) -> Result<u64, Refusal> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::Fatal(_)) => Err(Refusal::Final(self.refusal().unwrap_or(StoreError::Closed))),
            Err(error) => Err(Refusal::NotLeader { leader: error.forward_to_leader().and_then(|to| to.leader_id) }),
        }
    }

    /// Wait until this server has applied everything that was acknowledged before the call.
    async fn linearize(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.request_deadline;
        let mut reason = "no leader is known".to_owned();
        loop {
            if let Some(error) = self.refusal() {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::Unavailable { reason });
            }
            let known = self.leader();
            let index = match known {
                Some(leader) if leader == self.me.id => tokio::time::timeout(left, self.read_index_here())
                    .await
                    .map_err(|_| "no majority answers".to_owned()),
                Some(leader) => match self.forward(leader, Request::ReadIndex, left).await {
                    Ok(Answer::ReadIndex(answer)) => Ok(answer),
                    Ok(_) => Err("a wrong answer".to_owned()),
                    Err(error) => Err(error.to_string()),
                },
                None => Err("no leader is known".to_owned()),
            };
            match index {
                Ok(Ok(index)) => {
                    return match tokio::time::timeout_at(deadline, self.wait_applied(index)).await {
                        Ok(applied) => applied,
                        Err(_) => Err(StoreError::Unavailable { reason: "this server is far behind".to_owned() }),
                    };
                }
                Ok(Err(Refusal::Final(error))) => return Err(error),
                Ok(Err(refusal)) => reason = refusal.to_string(),
                Err(why) => reason = why,
            }
            self.pause(known, left).await;
        }
    }

    async fn admin(&self, admin: Admin) -> Result<(), StoreError> {
        let deadline = Instant::now() + ADMIN_DEADLINE;
        let mut reason = "no leader is known".to_owned();
        loop {
            if let Some(error) = self.refusal() {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::Unavailable { reason });
            }
            let done = match self.leader() {
                Some(leader) if leader == self.me.id => {
                    let doing = tokio::time::timeout(left, self.admin_here(admin.clone())).await;
                    doing.map_err(|_| "the servers did not answer in time".to_owned())
                }
                Some(leader) => match self.peer(leader) {
                    Some(peer) => {
                        let request = Request::Admin(admin.clone());
                        match network::ask(&*self.transport, &peer, &request, left).await {
                            Ok(Answer::Admin(done)) => Ok(done),
                            Ok(_) => Err("a wrong answer".to_owned()),
                            Err(error) => Err(error.to_string()),
                        }
                    }
                    None => Err("the leader's address is not known yet".to_owned()),
                },
                None => Err("no leader is known".to_owned()),
            };
            match done {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Refusal::Final(error))) => return Err(error),
                Ok(Err(refusal)) => reason = refusal.to_string(),
                Err(why) => reason = why,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Do a change of members as the leader. All of it may be repeated.
    pub async fn admin_here(&self, admin: Admin) -> Result<(), Refusal> {
        match admin {
            Admin::AddServer(peer) => {
                let id = peer.id;
                let membership = self.raft.metrics().borrow_watched().membership_config.clone();
                match membership.membership().get_node(&id) {
                    None => self.raft.add_learner(id, peer, true).await.map(drop).map_err(refused)?,
                    Some(known) if known.name != peer.name => {
                        let reason = format!("server {id} is {} already; an id is never given to another", known.name);
                        return Err(Refusal::Final(StoreError::Invalid { reason }));
                    }
                    Some(known) if *known == peer => {}
                    Some(_) => {
                        // Before the change is asked for: whether it was made may never be known here.
                        self.addresses.note(peer.clone());
                        let moved = ChangeMembers::SetNodes(BTreeMap::from([(id, peer)]));
                        self.raft.change_membership(moved, true).await.map(drop).map_err(refused)?;
                    }
                }
                // An earlier try may have lost the lead between the two steps of the change: then the configuration is joint
                // still, which needs a majority of the old servers, too, and this completes it.
                let joint = membership.membership().get_joint_config().len() > 1;
                if joint || !membership.membership().voter_ids().any(|voter| voter == id) {
                    let changes = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
                    self.raft.change_membership(changes, true).await.map_err(refused)?;
                }
                Ok(())
            }
            Admin::RemoveServer(id) => {
                let membership = self.raft.metrics().borrow_watched().membership_config.clone();
                if membership.membership().voter_ids().any(|voter| voter == id) {
                    let changes = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
                    self.raft.change_membership(changes, false).await.map_err(refused)?;
                } else if membership.membership().get_node(&id).is_some() {
                    let changes = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
                    self.raft.change_membership(changes, false).await.map_err(refused)?;
                }
                Ok(())
            }
            Admin::TransferLeadership(to) if to == self.me.id => Ok(()),
            Admin::TransferLeadership(to) => self.transfer(to).await,
        }
    }

    async fn transfer(&self, to: ServerId) -> Result<(), Refusal> {
        let invalid = |reason: String| Refusal::Final(StoreError::Invalid { reason });
        {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if !metrics.membership_config.membership().voter_ids().any(|voter| voter == to) {
                return Err(invalid(format!("server {to} is no voter")));
            }
            let Some(replication) = &metrics.replication else {
                return Err(Refusal::NotLeader { leader: None });
            };
            let matched = replication.get(&to).copied().flatten().map_or(0, |id| id.index);
            let behind = metrics.last_log_index.unwrap_or(0).saturating_sub(matched);
            if behind > TRANSFER_LAG_MAX {
                return Err(invalid(format!("server {to} is {behind} entries behind; wait until it has caught up")));
            }
        }
        let fatal = |_| Refusal::Final(self.refusal().unwrap_or(StoreError::Closed));
        self.raft.trigger().transfer_leader(to).await.map_err(fatal)?;
        let mut metrics = self.raft.metrics();
        let moved = metrics.wait_until(|now| now.current_leader == Some(to));
        match tokio::time::timeout(self.lease * 10, moved).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Refusal::Final(StoreError::Closed)),
            Err(_) => Err(invalid(format!("server {to} did not take over"))),
        }
    }

    /// The voter that is furthest in the log, beside this one.
    fn heir(&self) -> Option<ServerId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref()?;
        let voters = metrics.membership_config.membership().voter_ids().filter(|id| *id != self.me.id);
        voters.max_by_key(|id| replication.get(id).copied().flatten().map_or(0, |id| id.index))
    }

    fn leadership_now(&self) -> Leadership {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.running_state.is_err() || self.stopped.load(Ordering::SeqCst) {
            return Leadership { leader: None, term: metrics.current_term, in_office: false, is_self: false };
        }
        let own = metrics.last_applied.is_some_and(|applied| {
            let leader = applied.committed_leader_id();
            leader.term == metrics.current_term && leader.node_id == self.me.id
        });
        let alone = metrics.membership_config.membership().voter_ids().eq([self.me.id]);
        let heard = alone || metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() < self.lease);
        let in_office = metrics.state == ServerState::Leader && own;
        Leadership {
            leader: metrics.current_leader,
            term: metrics.current_term,
            in_office,
            is_self: in_office && heard,
        }
    }
}

/// Entries that a server may be behind to be given the leadership: a moment of replication.
const TRANSFER_LAG_MAX: u64 = 1_000;

fn refused(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Refusal {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => Refusal::NotLeader { leader: to.leader_id },
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_) => Refusal::Undecided,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            openraft::errors::ChangeMembershipError::InProgress(_)
            | openraft::errors::ChangeMembershipError::UncommittedLeaderLog(_),
        )) => Refusal::Undecided,
        RaftError::APIError(error) => Refusal::Final(StoreError::Invalid { reason: error.to_string() }),
    }
}

/// Follows Raft for as long as the server runs: who leads, whether the disk fills, whether the log wants a snapshot.
async fn supervise(
    inner: Arc<Inner>,
    leadership: watch::Sender<Leadership>,
    tick: Duration,
    faults: super::StoreFaults,
) {
    let mut metrics = inner.raft.metrics();
    let mut disk_checked: Option<Instant> = None;
    let mut snapshot_at_bytes = 0;
    loop {
        let now = inner.leadership_now();
        leadership.send_if_modified(|last| {
            let changed = *last != now;
            *last = now;
            changed
        });
        let dead = metrics.borrow_watched().running_state.is_err();
        if dead || inner.stopped.load(Ordering::SeqCst) {
            // Nothing will be applied any more: whoever watches here must go elsewhere.
            inner.replica.close();
            return;
        }
        if disk_checked.is_none_or(|at| at.elapsed() >= DISK_CHECK_INTERVAL) || faults.disk_low() {
            disk_checked = Some(Instant::now());
            let path = inner.dir.clone();
            let free = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&path)).await;
            // What cannot be asked is taken for room: the write itself will tell.
            let low =
                matches!(free, Ok(Ok(free)) if free.blocks_available() * free.fragment_size() < DISK_RESERVE_BYTES);
            inner.low_disk.store(low || faults.disk_low(), Ordering::Relaxed);
        }
        let grown = inner.log.grown_bytes();
        if grown - snapshot_at_bytes >= SNAPSHOT_LOG_BYTES {
            snapshot_at_bytes = grown;
            let before = log_index(metrics.borrow_watched().snapshot);
            // Either fails only when Raft has ended, which the next round sees.
            let _ = inner.raft.trigger().snapshot().await;
            if let Some(before) = before {
                let _ = inner.raft.trigger().purge_log(before).await;
            }
        }
        // A closed channel shows in the next round as a state that is not running.
        let _ = tokio::time::timeout(tick, metrics.changed()).await;
    }
}

/// The reason alone, for where the server is named already.
fn why(refusal: StoreError) -> String {
    match refusal {
        StoreError::DiskFull { reason, .. } | StoreError::Corrupt { reason, .. } => reason,
        other => other.to_string(),
    }
}

#[async_trait]
impl Store for ReplicatedStore {
    async fn get(&self, key: &str, consistency: Consistency) -> Result<(Option<KeyValue>, Revision), StoreError> {
        if consistency == Consistency::Linearizable {
            self.inner.linearize().await?;
        }
        let state = self.inner.replica.state();
        Ok((state.get(key).cloned(), state.revision()))
    }

    async fn range(&self, request: RangeRequest, consistency: Consistency) -> Result<RangeResult, StoreError> {
        if consistency == Consistency::Linearizable {
            self.inner.linearize().await?;
        }
        self.inner.replica.state().range(&request)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, StoreError> {
        let results = self.txn_many(vec![txn]).await?;
        results.into_iter().next().ok_or(StoreError::Invalid { reason: "no result for the transaction".to_owned() })
    }

    async fn txn_many(&self, txns: Vec<Txn>) -> Result<Vec<TxnResult>, StoreError> {
        let mut batches: Vec<Vec<Txn>> = Vec::new();
        let mut bytes = usize::MAX;
        let total = txns.len();
        for txn in txns {
            let size = check(&txn)?;
            match batches.last_mut() {
                Some(batch) if bytes + size <= ENTRY_BYTES_MAX && batch.len() < ENTRY_TXNS_MAX => {
                    batch.push(txn);
                    bytes += size;
                }
                _ => {
                    batches.push(vec![txn]);
                    bytes = size;
                }
            }
        }
        let mut results = Vec::with_capacity(total);
        let unknown = StoreError::Unknown { deadline_ms: self.inner.request_deadline.as_millis() as u64 };
        for batch in batches {
            let ticket = tokio::time::timeout(self.inner.request_deadline, self.inner.requests.begin()).await;
            let ticket =
                ticket.map_err(|_| StoreError::Unavailable { reason: "too many writes are waiting".to_owned() })?;
            let command = Command::Txns { request: ticket.id, txns: batch.into() };
            match self.inner.propose(command).await?.response {
                Response::Txns(batch) => results.extend(batch),
                _ => return Err(unknown),
            }
        }
        Ok(results)
    }

    fn watch(&self, start: String, end: String, from: Revision) -> Result<Watch, StoreError> {
        self.inner.replica.watch(start, end, from)
    }

    async fn compact(&self, upto: Revision) -> Result<(), StoreError> {
        match self.inner.propose(Command::Compact { upto }).await?.response {
            Response::Compacted(result) => result,
            _ => Err(StoreError::Unknown { deadline_ms: self.inner.request_deadline.as_millis() as u64 }),
        }
    }

    fn revision(&self) -> Revision {
        self.inner.replica.state().revision()
    }

    fn status(&self) -> StoreStatus {
        let inner = &self.inner;
        let leadership = inner.leadership_now();
        let refusal = inner.refusal();
        // A copy: whoever borrows the metrics twice at a time waits for Raft, which waits for the first to end.
        let metrics = inner.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<ServerId> = membership.voter_ids().collect();
        let members: Vec<Member> = membership
            .nodes()
            .map(|(id, peer)| Member {
                id: *id,
                name: peer.name.clone(),
                addr: peer.addr.clone(),
                voter: voters.contains(id),
            })
            .collect();
        let role = match metrics.state {
            _ if matches!(refusal, Some(StoreError::Closed)) || metrics.running_state.is_err() => Role::Stopped,
            ServerState::Leader => Role::Leader,
            ServerState::Candidate => Role::Candidate,
            ServerState::Follower => Role::Follower,
            ServerState::Learner if members.is_empty() => Role::Uninitialized,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        };
        let low_disk = inner.low_disk.load(Ordering::Relaxed).then(|| inner.low_disk_reason());
        let state = inner.replica.state();
        StoreStatus {
            server_id: inner.me.id,
            name: inner.me.name.clone(),
            role,
            term: metrics.current_term,
            leader: leadership.leader,
            applied_index: *inner.applied.borrow(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            snapshot_index: log_index(metrics.snapshot).unwrap_or(0),
            revision: state.revision(),
            oldest_revision: state.oldest_revision(),
            keys: state.keys(),
            bytes: state.bytes(),
            members,
            read_only: refusal.map(why).or(low_disk),
        }
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }
}

#[cfg(test)]
#[path = "raft_test.rs"]
mod tests;
