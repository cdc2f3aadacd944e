//! One member of a cluster: everything that one node runs, put together.
//!
//! ```text
//!   directory ── who am I? ──▶ new cluster │ join with a token │ known member
//!        └─▶ transport ─▶ leases            every member
//!                    └─▶ store ─▶ leadership, membership, HTTPS door     servers
//! ```
//! The long-lived parts are watched over by actors (`member/...` in the tree). Must never print or exit: it answers with
//! errors. Started by the CLI's `server` and `agent`, and by whoever embeds a cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use phalanx_actors::{ChildSpec, Strategy, SupervisorSpec, System};
use phalanx_transport::{Direction, Identity, Remote, Target, Transport, TransportConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::admin::{self, AdminRequest, AdminResponse};
use super::enrol::{enlist, found, read_identity, refuse_other_cluster};
use super::front::{Door, StatusRequest, TreeRequest, View};
use super::layout::{LayoutError, NodeDir, NodeFile, RunFile, make_directory};
use super::membership::{ClusterRecord, Membership, check_name};
use super::roles::{Leadership, Refresh};
use super::{logs, processes, roles};
use crate::api::Kinds;
use crate::control::endpoint::{Heard, LeaseEndpoint, LeaseStatus};
use crate::control::lease::{LeaseState, LeaseTimes};
use crate::control::session::client::RemoteControlPlane;
use crate::control::session::server::{SERVER_LABEL, SessionServer};
use crate::gateway::{Gateway, GatewayConfig, GatewayHandle, Listen, SharedAddress};
use crate::node::{Agent, AgentConfig, Fence, PodNetwork, SyncActor, Unfence};
use crate::registry::Registry;
use crate::runtime::Runtimes;
use crate::runtime::process::ProcessRuntime;
use crate::security::join::{JoinError, MemberRecord};
use crate::security::{
    Authority, AuthorityError, ClientIdentity, JoinToken, Kubeconfig, TokenRole, fingerprint, render_kubeconfig,
};
use crate::store::{Consistency, QuicTransport, ReplicatedStore, Store, StoreConfig, StoreFaults};

/// A new server is let into Raft within this time, or its start fails.
const ADD_SERVER_DEADLINE: Duration = Duration::from_secs(30);
/// How long containers may take to end when their node is stopped with them.
const CONTAINER_GRACE: Duration = Duration::from_secs(10);
/// The pause before a fence is tried again that met no actor, in milliseconds.
const FENCE_RETRY_MS: u64 = 20;
/// A server that is without a leader for longer than this stops answering the shared address, in milliseconds: longer than
/// any election.
const OUT_OF_TOUCH_MS: u64 = 2_000;
/// The user of the kubeconfig that a new cluster writes.
const ADMIN_USER: &str = "kubernetes-admin";
/// Its group, which may do everything.
const ADMIN_GROUP: &str = "system:masters";

/// How a member is started.
#[derive(Clone)]
pub struct MemberConfig {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its directory.
    pub dir: NodeDir,
    /// Server or agent. A known member keeps what it is.
    pub role: TokenRole,
    /// For the first start of a machine that joins. A server without one begins a new cluster.
    pub join: Option<JoinToken>,
    /// Name of a new cluster.
    pub cluster: String,
    /// Address of its transport; port 0 picks one, which is kept for later starts.
    pub transport: SocketAddr,
    /// Address of its HTTPS face, servers only; port 0 likewise.
    pub api: SocketAddr,
    /// An address that all servers of this machine answer together, servers only.
    pub shared_api: Option<SocketAddr>,
    /// How its containers are run; `None`: as processes.
    pub runtimes: Option<Runtimes>,
}

/// Why a member did not start: one line for people.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Keys or certificates cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The cluster did not let it in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// An agent needs a cluster.
    #[error(
        "{dir} knows no cluster: join one with --join TOKEN (from `phalanx token create` on a server), or begin one with `phalanx server`"
    )]
    NoCluster {
        /// The directory.
        dir: String,
    },
    /// A member has been started twice.
    #[error("{name} runs already from {dir} (process {pid})")]
    Running {
        /// Its name.
        name: String,
        /// Its directory.
        dir: String,
        /// Its process.
        pid: i32,
    },
    /// An address cannot be used.
    #[error("cannot listen on {addr} ({what}): {why}; choose another with {flag}")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// What for.
        what: &'static str,
        /// What the system said.
        why: String,
        /// How to choose another.
        flag: &'static str,
    },
    /// Anything else; the text says it all.
    #[error("{0}")]
    Other(String),
}

/// A running member.
pub struct Member {
    shared: Arc<Shared>,
    system: System,
    tasks: Mutex<tokio::task::JoinSet<()>>,
    gateway: Option<GatewayHandle>,
    stopping: watch::Sender<Option<bool>>,
    agent: Arc<Agent>,
}

/// What the member's actors and handlers share.
pub struct Shared {
    /// Who it is.
    pub node: NodeFile,
    /// Where it lives.
    pub dir: NodeDir,
    /// Its boot.
    pub incarnation: u64,
    /// Messages to others.
    pub transport: Transport,
    /// Its lease, and on the leader everybody's.
    pub leases: LeaseEndpoint,
    /// Everybody, as last heard.
    pub members: RwLock<Vec<MemberRecord>>,
    /// The nodes that may lead, for the lease endpoint.
    pub servers: watch::Sender<Vec<String>>,
    /// The store, on servers.
    pub store: Option<ReplicatedStore>,
    /// Serves the agents while this server leads; on servers.
    pub sessions: Option<SessionServer>,
    /// Where everything runs that is no actor.
    pub runtime: Handle,
    authority: Option<Arc<Authority>>,
    api: Option<SocketAddr>,
    faults: StoreFaults,
    shared_api: Option<SocketAddr>,
}

/// A member tells a server where it is, and hears of everybody.
#[derive(Serialize, Deserialize)]
pub struct Hello {
    /// `host:port` of its transport.
    pub transport: String,
    /// `host:port` of its HTTPS face.
    pub api: Option<String>,
}

impl Remote for Hello {
    const NAME: &'static str = "Hello";
    type Reply = Vec<MemberRecord>;
}

/// A new server asks to be let into Raft.
#[derive(Serialize, Deserialize)]
struct AddServer {
    transport: String,
}

impl Remote for AddServer {
    const NAME: &'static str = "AddServer";
    type Reply = ();
}

/// The transport's path of [`Hello`] and its kin.
pub const MEMBERSHIP_PATH: &str = "membership";

impl Member {
    /// Starts a member; returns when it is part of its cluster and serves.
    pub async fn start(config: MemberConfig) -> Result<Member, MemberError> {
        check_name(&config.name).map_err(|e| MemberError::Other(e.to_string()))?;
        make_directory(&config.dir.0)?;
        refuse_second(&config)?;
        let known = config.dir.load(&config.name)?;
        let new_cluster = known.is_none() && config.join.is_none();
        let joined = known.is_none() && config.join.is_some();
        let node = match (known, &config.join) {
            (Some(node), Some(token)) => {
                refuse_other_cluster(&config, &node, token)?;
                node
            }
            (Some(node), None) => node,
            (None, Some(token)) => enlist(&config, token).await?,
            (None, None) if config.role == TokenRole::Server => found(&config)?,
            (None, None) => return Err(MemberError::NoCluster { dir: config.dir.0.display().to_string() }),
        };
        let identity = read_identity(&config.dir)?;
        let incarnation = config.dir.next_incarnation()?;
        let transport = start_transport(&config, &node, incarnation, &identity)?;
        let outcome = Self::assemble(config, node, incarnation, transport.clone(), identity, new_cluster, joined).await;
        if outcome.is_err() {
            transport.close().await;
        }
        outcome
    }

    async fn assemble(
        config: MemberConfig,
        mut node: NodeFile,
        incarnation: u64,
        transport: Transport,
        identity: ClientIdentity,
        new_cluster: bool,
        joined: bool,
    ) -> Result<Member, MemberError> {
        node.member.transport = transport.local_addr().to_string();
        let members = known_members(&config.dir, &node)?;
        let servers = watch::Sender::new(server_names(&members));
        roles::set_peers(&transport, &members, &node.member.name);

        let faults = StoreFaults::default();
        let (mut store, mut authority, mut listener) = (None, None, None);
        if let Some(server_id) = node.member.server_id {
            let wanted = node.member.api.as_deref().and_then(|a| a.parse().ok()).unwrap_or(config.api);
            let bound = TcpListener::bind(wanted).await.and_then(|l| Ok((l.local_addr()?, l)));
            let (addr, bound) = bound.map_err(|e| MemberError::Listen {
                addr: wanted,
                what: "HTTPS",
                why: e.to_string(),
                flag: "--api",
            })?;
            node.member.api = Some(addr.to_string());
            listener = Some((addr, bound));
            authority = Some(Arc::new(Authority::load(&config.dir.pki())?));
            let allowed = servers.subscribe();
            let network = QuicTransport::new(transport.clone(), move |peer| allowed.borrow().iter().any(|s| s == peer));
            let mut store_config = StoreConfig::new(
                &node.cluster_id,
                server_id,
                &node.member.name,
                &node.member.transport,
                config.dir.store(),
                network,
            );
            store_config.faults = faults.clone();
            let started = ReplicatedStore::start(store_config).await;
            store = Some(started.map_err(|e| MemberError::Other(e.to_string()))?);
        }
        config.dir.save(&node)?;

        let heard = store.clone().map(|store| Arc::new(move || store.is_heard()) as Heard);
        let leases = LeaseEndpoint::start(transport.clone(), LeaseTimes::default(), servers.subscribe(), heard);
        let shared = Arc::new(Shared {
            dir: config.dir.clone(),
            incarnation,
            leases,
            members: RwLock::new(members),
            servers,
            sessions: store.as_ref().map(|_| SessionServer::start(&transport)),
            runtime: Handle::current(),
            transport,
            store: store.clone(),
            authority: authority.clone(),
            faults,
            api: listener.as_ref().map(|(addr, _)| *addr),
            shared_api: config.shared_api,
            node,
        });
        let system = System::builder(shared.node.member.name.as_str())
            .build()
            .map_err(|e| MemberError::Other(format!("cannot start actors: {e}")))?;
        let mut tasks = tokio::task::JoinSet::new();
        let mut gateway = None;
        shared.serve_view(&system);
        if let (Some(store), Some(authority), Some((_, listener))) = (store, authority, listener) {
            let membership = Membership::new(Arc::new(store.clone()));
            shared.serve_membership(&membership);
            let chain = identity.chain()?;
            let view = Arc::new(View { shared: Arc::downgrade(&shared) });
            let listener = listener.into_std().map_err(|e| MemberError::Other(e.to_string()))?;
            let lease = shared.leases.status();
            let started = Gateway::start(GatewayConfig {
                listen: Listen::Bound(listener),
                shared: config.shared_api.map(|address| {
                    let serving = watch::Sender::new(true);
                    let shared = SharedAddress { address, serving: serving.subscribe() };
                    tasks.spawn(keep_in_touch(lease.clone(), serving));
                    shared
                }),
                client_ca: chain.last().cloned().into_iter().collect(),
                server_cert_chain: chain,
                server_key: identity.key()?,
                advertise: shared.node.member.api.clone().unwrap_or_default(),
                registry: Registry::new(Kinds::builtin(), Arc::new(store.clone())),
                node_access: view.clone(),
                cluster_view: view,
                join: Arc::new(Door { authority: authority.clone(), membership: membership.clone() }),
            });
            gateway = Some(started.await.map_err(|e| MemberError::Other(e.to_string()))?);
            if new_cluster {
                shared.begin_cluster(&store, &membership).await?;
            } else if joined {
                shared.enter_raft().await?;
            }
        }
        let spec = shared.clone();
        let mut tree = SupervisorSpec::new("member", Strategy::OneForOne).intensity(10, Duration::from_secs(10));
        tree = tree.child(ChildSpec::actor("membership", move || Refresh::new(spec.clone())));
        if shared.store.is_some() {
            let spec = shared.clone();
            tree = tree.child(ChildSpec::actor("leadership", move || Leadership::new(spec.clone())));
        }
        system.start(tree).await.map_err(|e| MemberError::Other(e.to_string()))?;
        let agent = shared.start_agent(&system, config.runtimes).await?;
        tasks.spawn(fence(system.clone(), shared.leases.status()));
        let stopping = watch::Sender::new(None);
        let listener = admin::listen(&shared.dir).map_err(|e| {
            MemberError::Other(format!("cannot make the control socket in {}: {e}", shared.dir.0.display()))
        })?;
        let (admin, stop, tree) = (shared.clone(), stopping.clone(), system.clone());
        tasks.spawn(admin::serve(listener, move |request| {
            let (shared, stop, tree) = (admin.clone(), stop.clone(), tree.clone());
            async move { shared.administer(request, &stop, &tree).await }
        }));
        let member = Member { shared, system, tasks: Mutex::new(tasks), gateway, stopping, agent };
        member.record_run()?;
        Ok(member)
    }

    /// Who it is, and where.
    pub fn record(&self) -> &MemberRecord {
        &self.shared.node.member
    }

    /// The actors.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The parts.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Resolves when somebody asked through the control socket that it stop; true: its pods, too.
    pub async fn stop_requested(&self) -> bool {
        let mut stopping = self.stopping.subscribe();
        match stopping.wait_for(Option::is_some).await {
            Ok(pods) => pods.unwrap_or(false),
            // The sender lives as long as we do.
            Err(_) => std::future::pending().await,
        }
    }

    /// Its agent.
    pub fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// Stops in order: hands over the leadership, closes connections, leaves no sign of running behind. Containers go on
    /// running, for the next start to adopt, unless `pods` says that they end, too.
    pub async fn stop(self, pods: bool) {
        self.system.shutdown().await;
        if pods {
            self.agent.stop_containers(CONTAINER_GRACE).await;
        }
        if let Some(gateway) = self.gateway {
            gateway.shutdown().await;
        }
        if let Some(store) = &self.shared.store {
            store.shutdown().await;
        }
        self.shared.transport.close().await;
        self.tasks.lock().abort_all();
        let _ = std::fs::remove_file(self.shared.dir.admin_socket());
        let _ = std::fs::remove_file(self.shared.dir.run_file());
    }

    /// Ends as if the process had died.
    pub async fn abort(self) {
        self.shared.transport.abort();
        if let Some(store) = &self.shared.store {
            store.abort().await;
        }
        self.tasks.lock().abort_all();
        self.system.kill();
    }

    fn record_run(&self) -> Result<(), MemberError> {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let start_ticks = processes::process(pid).map_or(0, |p| p.start_ticks);
        let run = RunFile { pid, start_ticks, inode: self.shared.dir.inode() };
        let text = serde_json::to_vec(&run).map_err(|e| MemberError::Other(e.to_string()))?;
        crate::security::write_atomic(&self.shared.dir.run_file(), &text).map_err(LayoutError::from)?;
        Ok(())
    }
}

impl Shared {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.node.member.name
    }

    /// The members, over the store; servers only.
    pub fn membership(&self) -> Option<Membership> {
        self.store.as_ref().map(|store| Membership::new(Arc::new(store.clone())))
    }

    /// The objects, over the store; servers only.
    pub fn registry(&self) -> Option<Registry> {
        self.store.as_ref().map(|store| Registry::new(Kinds::builtin(), Arc::new(store.clone())))
    }

    /// Takes a new list of members.
    pub fn learn(&self, members: Vec<MemberRecord>) {
        if *self.members.read() == members {
            return;
        }
        roles::set_peers(&self.transport, &members, self.name());
        let servers = server_names(&members);
        self.servers.send_if_modified(|old| {
            let changed = *old != servers;
            *old = servers;
            changed
        });
        if let Err(error) = self.dir.save_members(&members) {
            tracing::warn!(%error, "the members cannot be remembered");
        }
        *self.members.write() = members;
    }

    async fn start_agent(&self, system: &System, runtimes: Option<Runtimes>) -> Result<Arc<Agent>, MemberError> {
        let other = |e: &dyn std::fmt::Display| MemberError::Other(format!("cannot start the agent: {e}"));
        let runtimes = match runtimes {
            Some(runtimes) => runtimes,
            None => Runtimes::new(Arc::new(ProcessRuntime::new().map_err(|e| other(&e))?)),
        };
        let mut config = AgentConfig::new(self.name(), self.dir.agent());
        config.pod_network = pod_network(&self.node.cluster_id, self.node.member.index);
        if self.node.member.server_id.is_some() {
            // What `kubectl get nodes` shows as ROLES.
            config.labels.insert("node-role.kubernetes.io/control-plane".into(), String::new());
        }
        if let Ok(addr) = self.node.member.transport.parse::<SocketAddr>()
            && !addr.ip().is_unspecified()
        {
            config.host_ip = addr.ip();
        }
        if self.store.is_some() {
            config.labels.insert(SERVER_LABEL.to_owned(), String::new());
        }
        let control = RemoteControlPlane::new(self.transport.clone(), self.leases.status());
        let agent = Agent::new(config, runtimes, control).map_err(|e| other(&e))?;
        system.start(agent.tree()).await.map_err(|e| other(&e))?;
        logs::serve(&self.transport, &agent, self.servers.subscribe());
        Ok(agent)
    }

    fn serve_view(self: &Arc<Self>, system: &System) {
        let weak = Arc::downgrade(self);
        self.transport.serve(MEMBERSHIP_PATH, move |_, StatusRequest| {
            let status = weak.upgrade().map(|shared| shared.status().to_string());
            async move { status.ok_or_else(|| "stopping".to_owned()) }
        });
        let system = system.clone();
        self.transport.serve(MEMBERSHIP_PATH, move |_, TreeRequest| {
            let tree = serde_json::to_string(&system.tree()).map_err(|e| e.to_string());
            async move { tree }
        });
    }

    fn serve_membership(self: &Arc<Self>, membership: &Membership) {
        let m = membership.clone();
        self.transport.serve(MEMBERSHIP_PATH, move |peer, hello: Hello| {
            let m = m.clone();
            async move {
                let told = async {
                    m.update_addresses(&peer.node, &hello.transport, hello.api.as_deref()).await?;
                    m.members(Consistency::Local).await
                };
                told.await.map_err(|e| e.to_string())
            }
        });
        let weak = Arc::downgrade(self);
        let m = membership.clone();
        self.transport.serve(MEMBERSHIP_PATH, move |peer, request: AddServer| {
            let (shared, m) = (weak.upgrade(), m.clone());
            // Not to stop half way when the asker gives up.
            async move {
                let work = tokio::spawn(async move {
                    let shared = shared.ok_or("stopping")?;
                    let members = m.members(Consistency::Linearizable).await.map_err(|e| e.to_string())?;
                    let id = members.iter().find(|r| *r.name == *peer.node).and_then(|r| r.server_id);
                    let id = id.ok_or_else(|| format!("{} did not join as a server", peer.node))?;
                    shared.learn(members);
                    let store = shared.store.as_ref().ok_or("not a server")?;
                    store.add_server(id, &peer.node, &request.transport).await.map_err(|e| e.to_string())
                });
                work.await.map_err(|e| e.to_string())?
            }
        });
    }

    async fn begin_cluster(&self, store: &ReplicatedStore, membership: &Membership) -> Result<(), MemberError> {
        let other = |e: &dyn std::fmt::Display| MemberError::Other(e.to_string());
        store.bootstrap().await.map_err(|e| other(&e))?;
        store.wait_for_leader(ADD_SERVER_DEADLINE).await.map_err(|e| other(&e))?;
        let next_index = self.node.member.index + 1;
        let record = ClusterRecord { id: self.node.cluster_id.clone(), name: self.node.cluster.clone(), next_index };
        membership.found(&record, &self.node.member).await.map_err(|e| other(&e))
    }

    /// Asks one server after the other until the leader has let this one in.
    async fn enter_raft(&self) -> Result<(), MemberError> {
        let deadline = tokio::time::Instant::now() + ADD_SERVER_DEADLINE;
        let request = AddServer { transport: self.node.member.transport.clone() };
        let mut last = String::from("no server is known");
        while tokio::time::Instant::now() < deadline {
            let servers = self.servers.borrow().clone();
            for server in servers.iter().filter(|s| *s != self.name()) {
                match self.transport.ask(server, MEMBERSHIP_PATH, &request, Duration::from_secs(10)).await {
                    Ok(()) => return Ok(()),
                    Err(error) => last = error.to_string(),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(MemberError::Other(format!("the cluster did not let {} in as a server: {last}", self.name())))
    }

    async fn administer(
        &self,
        request: AdminRequest,
        stop: &watch::Sender<Option<bool>>,
        tree: &System,
    ) -> AdminResponse {
        match request {
            AdminRequest::Status => AdminResponse::Ok(self.status()),
            AdminRequest::Tree => serde_json::to_value(tree.tree())
                .map_or_else(|e| AdminResponse::Error(e.to_string()), AdminResponse::Ok),
            AdminRequest::Stop { pods } => {
                stop.send_replace(Some(pods));
                AdminResponse::Ok(Value::Null)
            }
            AdminRequest::Token { role, ttl_s } => match self.create_token(role, ttl_s).await {
                Ok(token) => AdminResponse::Ok(json!({"token": token})),
                Err(error) => AdminResponse::Error(error),
            },
            AdminRequest::Partition => {
                self.transport.faults().cut(Target::All, Direction::Both);
                AdminResponse::Ok(Value::Null)
            }
            AdminRequest::Delay { ms } => {
                self.transport.faults().delay_way(Target::All, Direction::Out, Duration::from_millis(ms));
                AdminResponse::Ok(Value::Null)
            }
            AdminRequest::FillDisk => match &self.store {
                Some(_) => {
                    self.faults.low_disk(true);
                    AdminResponse::Ok(Value::Null)
                }
                None => AdminResponse::Error(format!("{} is an agent; only servers have a store", self.name())),
            },
            AdminRequest::Heal => {
                self.transport.faults().heal(Target::All);
                self.faults.low_disk(false);
                AdminResponse::Ok(Value::Null)
            }
            AdminRequest::Kubeconfig => match self.kubeconfig() {
                Ok(text) => AdminResponse::Ok(Value::String(text)),
                Err(error) => AdminResponse::Error(error),
            },
        }
    }

    async fn create_token(&self, role: TokenRole, ttl_s: u64) -> Result<String, String> {
        let (Some(membership), Some(authority), Some(api)) = (self.membership(), &self.authority, self.api) else {
            return Err(format!("{} is an agent; ask a server", self.name()));
        };
        let der = rustls_pki_types::pem::PemObject::from_pem_slice(authority.cert_pem().as_bytes());
        let der: rustls_pki_types::CertificateDer<'_> = der.map_err(|e| e.to_string())?;
        let ttl_s = i64::try_from(ttl_s).unwrap_or(i64::MAX);
        let expires_s = jiff::Timestamp::now().as_second().saturating_add(ttl_s);
        let token = membership.create_token(&api.to_string(), &fingerprint(&der), role, expires_s).await;
        token.map(|t| t.render()).map_err(|e| e.to_string())
    }

    fn kubeconfig(&self) -> Result<String, String> {
        let (Some(authority), Some(api)) = (&self.authority, self.api) else {
            return Err(format!("{} is an agent; ask a server", self.name()));
        };
        let identity = authority.issue_client(ADMIN_USER, &[ADMIN_GROUP.into()]).map_err(|e| e.to_string())?;
        let server = format!("https://{}", self.shared_api.unwrap_or(api));
        let config = Kubeconfig {
            cluster: &self.node.cluster,
            server: &server,
            ca_pem: authority.cert_pem(),
            identity: &identity,
        };
        Ok(render_kubeconfig(&config))
    }

    /// What `phalanx status` shows of this member; on the leader also everybody's lease.
    pub fn status(&self) -> Value {
        let lease = self.leases.status().borrow().clone();
        let leases: Vec<Value> = self
            .leases
            .leases()
            .into_iter()
            .map(|view| {
                let state = match view.state {
                    LeaseState::Held => "Ready",
                    LeaseState::Suspect => "Suspect",
                    LeaseState::Lost => "Lost",
                };
                let pods = self.sessions.as_ref().and_then(|sessions| sessions.pods(&view.node));
                json!({"node": view.node, "state": state, "leaseAgeMs": view.age_ms, "pods": pods})
            })
            .collect();
        let store = self.store.as_ref().map(|store| {
            let status = store.status();
            json!({
                "role": status.role.to_string(), "term": status.term, "revision": status.revision,
                "readOnly": status.read_only, "voters": status.members.iter().filter(|m| m.voter).count(),
            })
        });
        json!({
            "cluster": self.node.cluster,
            "name": self.name(),
            "server": self.store.is_some(),
            "agent": self.node.member.agent,
            "pid": std::process::id(),
            "incarnation": self.incarnation,
            "transport": self.node.member.transport,
            "api": self.node.member.api,
            "leader": lease.leader.as_ref().map(|(name, _)| name),
            "fenced": lease.fenced,
            "store": store,
            "leases": leases,
            "members": *self.members.read(),
        })
    }
}

/// Has exclusive pods run only while the node holds its lease: without it, it may be declared lost at any time. Also tells
/// an actor that was restarted meanwhile.
async fn fence(system: System, mut lease: watch::Receiver<LeaseStatus>) {
    let sync = system.named::<SyncActor>("agent/sync");
    // At first it is told in any case: an earlier agent may have left something running.
    let mut told_lapses = None;
    loop {
        let (fenced, lapses) = {
            let status = lease.borrow_and_update();
            (status.fenced, status.lapses)
        };
        let mut told = Ok(());
        // Also a lapse that is over by now: what ran may have been replaced.
        if fenced || told_lapses != Some(lapses) {
            told = sync.ask(Fence).await.map(|pods| {
                if pods > 0 {
                    tracing::warn!(pods, "stopping exclusive pods: this node may have been declared lost");
                }
            });
        }
        if told.is_ok() && !fenced {
            told = sync.ask(Unfence).await;
        }
        let Some(pid) = sync.resolve().map(|sync| sync.pid()).filter(|_| told.is_ok()) else {
            tokio::time::sleep(Duration::from_millis(FENCE_RETRY_MS)).await;
            continue;
        };
        told_lapses = Some(lapses);
        tokio::select! {
            changed = lease.wait_for(|status| status.fenced != fenced || status.lapses != lapses) => if changed.is_err() {
                return;
            },
            // The next one begins by trusting nothing, which is enough while the lease is held.
            _ = pid.exited() => {}
        }
    }
}

/// Says false while this node has not been granted its lease for [`OUT_OF_TOUCH_MS`], as when it is cut off.
async fn keep_in_touch(mut lease: watch::Receiver<LeaseStatus>, serving: watch::Sender<bool>) {
    let apart = |status: &LeaseStatus| status.fenced || status.leader.is_none();
    while lease.wait_for(apart).await.is_ok() {
        let back = lease.wait_for(|status| !apart(status));
        match tokio::time::timeout(Duration::from_millis(OUT_OF_TOUCH_MS), back).await {
            Ok(Ok(_)) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        serving.send_replace(false);
        let back = lease.wait_for(|status| !apart(status)).await.is_ok();
        serving.send_replace(back);
    }
}

/// The loopback addresses of a member's pods. Clusters on one machine begin at different places, so that their pods do
/// not get in each other's way.
fn pod_network(cluster_id: &str, index: u32) -> PodNetwork {
    let start = cluster_id.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    PodNetwork::loopback((start.wrapping_add(index) % u32::from(u16::MAX)) as u16)
}

fn refuse_second(config: &MemberConfig) -> Result<(), MemberError> {
    let Some(run) = config.dir.running()? else { return Ok(()) };
    match processes::process(run.pid) {
        Some(process) if process.start_ticks == run.start_ticks && process.pid != std::process::id().cast_signed() => {
            Err(MemberError::Running {
                name: config.name.clone(),
                dir: config.dir.0.display().to_string(),
                pid: run.pid,
            })
        }
        _ => Ok(()),
    }
}

fn start_transport(
    config: &MemberConfig,
    node: &NodeFile,
    incarnation: u64,
    identity: &ClientIdentity,
) -> Result<Transport, MemberError> {
    let chain = identity.chain()?;
    let trust = chain.last().cloned().into_iter().collect();
    let quic = Identity { cert_chain: chain, key: identity.key()? };
    // The port of the first start is kept: after a full stop the others look for it there.
    let bind = node.member.transport.parse().unwrap_or(config.transport);
    let name = node.member.name.as_str();
    let settings = TransportConfig::new(node.cluster.as_str(), name, incarnation, bind, quic, trust);
    Transport::start(settings).map_err(|error| match error {
        phalanx_transport::StartError::Bind { addr, source } => {
            MemberError::Listen { addr, what: "transport", why: source.to_string(), flag: "--listen" }
        }
        other => MemberError::Other(other.to_string()),
    })
}

fn known_members(dir: &NodeDir, node: &NodeFile) -> Result<Vec<MemberRecord>, MemberError> {
    let mut members = dir.members()?;
    match members.iter_mut().find(|m| m.name == node.member.name) {
        Some(me) => *me = node.member.clone(),
        None => members.push(node.member.clone()),
    }
    Ok(members)
}

fn server_names(members: &[MemberRecord]) -> Vec<String> {
    members.iter().filter(|m| m.server_id.is_some()).map(|m| m.name.clone()).collect()
}
