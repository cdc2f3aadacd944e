//! A whole cluster inside this process: for programs that bring their own, and for tests.
//!
//! ```text
//!   Cluster ── Inner ──┬─ Node n1 ── Member, threads of its own      killed and started by name
//!                      ├─ Node n2 ── ...
//!                      └─ calls: any living server's Registry; another one when that is gone
//! ```
//! It is the same member as in a process of its own (`Member::start`), with disk, certificates, QUIC and HTTPS; only the way
//! in is shorter. Must never need anything process-wide: several clusters live in one process. Called by whoever embeds
//! Phalanx.

mod apply;
mod builder;
mod calls;
mod error;
mod node;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Pod};
use parking_lot::Mutex;
use phalanx_actors::ActorInfo;
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::apply::{DEFAULT_NAMESPACE, Intent};
use self::builder::{Home, Settings};
use self::calls::{CALL_DEADLINE, CALL_RETRY};
use self::node::{Access, End, Node};
use super::admin::{self, AdminRequest};
use super::front::View;
use super::layout::ClusterDir;
use crate::api::{FieldSelector, Kind, Kinds, LabelSelector, Object, Status};
use crate::gateway::{LogRequest, NodeAccess};
use crate::registry::{ApiObject, DeleteOptions, ListOptions, Registry, WatchOptions};
use crate::security::{JoinToken, TokenRole};
use crate::store::Store;

pub use self::builder::ClusterBuilder;
pub use self::error::ClusterError;
pub use self::watch::{Watch, WatchEvent};

/// A cluster that was started must accept writes, and its nodes pods, within this time.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long the tokens by which its own nodes join count, in seconds.
const OWN_TOKEN_TTL_S: u64 = 300;
/// How long dropping a cluster may wait for its nodes to die.
const DROP_DEADLINE: Duration = Duration::from_secs(5);
/// Most characters of an object's state in an error.
const STATE_CHARS_MAX: usize = 400;

/// A cluster of any number of nodes, inside this process.
///
/// It is the whole thing: a replicated store on disk, certificates, leases, a scheduler, controllers, an agent on every
/// node, and the Kubernetes API over HTTPS for `kubectl` and every other client ([`Cluster::kubeconfig`]). Methods take
/// and give the types of [`k8s_openapi`]. Each node has threads of its own, so that [`Cluster::kill_node`] is what the
/// death of a machine would be. A namespace may be given as `"name"` or as `None`, which means `default`; for lists and
/// watches it means all.
///
/// ```no_run
/// use std::time::Duration;
/// use phalanx::k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
/// use phalanx::{Cluster, TaskContext};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = Cluster::builder()
///     .nodes(3)
///     .task("greeter", |context: TaskContext| async move {
///         context.log(format!("hello from {}", context.pod()));
///         context.stopped().await;
///         Ok::<(), String>(())
///     })
///     .start()
///     .await?;
///
/// cluster.apply_yaml(
///     r#"
/// apiVersion: apps/v1
/// kind: Deployment
/// metadata: {name: greeter}
/// spec:
///   replicas: 3
///   selector: {matchLabels: {app: greeter}}
///   template:
///     metadata: {labels: {app: greeter}}
///     spec: {containers: [{name: greeter, image: task/greeter}]}
/// "#,
/// )
/// .await?;
/// let ready = |d: &Deployment| d.status.as_ref().and_then(|s| s.ready_replicas) == Some(3);
/// cluster.wait_for("default", "greeter", ready, Duration::from_secs(10)).await?;
///
/// cluster.kill_node("n3").await?;
/// for pod in cluster.list::<Pod>("default").await? {
///     println!("{:?}", pod.metadata.name);
/// }
/// cluster.shutdown().await?;
/// # Ok(())
/// # }
/// ```
///
/// A cluster that is dropped dies: its nodes are killed, its temporary directory is removed. That blocks the thread for
/// some milliseconds; [`Cluster::shutdown`] is the civil way.
#[must_use = "a cluster that is dropped dies"]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    dir: ClusterDir,
    nodes: Vec<Node>,
    kinds: Arc<Kinds>,
    /// The node that the next request goes to, if it is a server that runs.
    preferred: Mutex<usize>,
    /// Cancelled when the cluster ends: nothing waits for it any more.
    ended: CancellationToken,
    home: Mutex<Option<(File, Option<TempDir>)>>,
}

/// A node, as [`Cluster::nodes`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Part of the control plane.
    pub server: bool,
    /// Whether it runs.
    pub running: bool,
    /// Whether it leads the servers.
    pub leader: bool,
    /// `https://host:port` of a server that runs.
    pub api_url: Option<String>,
}

/// Which part of a container's output [`Cluster::logs`] reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// May be left out where the pod has one container.
    pub container: Option<String>,
    /// Of the run before the last restart.
    pub previous: bool,
    /// Only this many lines at the end.
    pub tail_lines: Option<u64>,
    /// With the time in front of every line.
    pub timestamps: bool,
}

impl Cluster {
    /// Begins the description of a cluster: by default one node, in a temporary directory, without any tasks.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    async fn start(home: Home, settings: Settings) -> Result<Cluster, ClusterError> {
        let Home { dir, file, new, temporary, lock } = home;
        let node = |node| Node::new(node, dir.node(&node.name), &file.cluster, &settings);
        let inner = Inner {
            name: file.cluster.clone(),
            nodes: file.nodes.iter().map(node).collect(),
            kinds: Kinds::builtin(),
            preferred: Mutex::new(0),
            ended: CancellationToken::new(),
            home: Mutex::new(Some((lock, temporary))),
            dir,
        };
        let cluster = Cluster { inner: Arc::new(inner) };
        let started = async {
            cluster.start_all(new).await?;
            // Written when all are members: what is left of a first start that failed is not resumed.
            cluster.inner.dir.save(&file).map_err(|e| ClusterError::Directory(e.to_string()))?;
            cluster.until_ready().await
        };
        if let Err(error) = started.await {
            // What went wrong first is what matters.
            let _ = cluster.end(End::Kill).await;
            return Err(error);
        }
        Ok(cluster)
    }

    async fn start_all(&self, new: bool) -> Result<(), ClusterError> {
        let nodes = &self.inner.nodes;
        let (first, rest) = match nodes.split_first() {
            // Servers of a resumed cluster need each other: all start at once.
            Some((first, rest)) if new => (Some(first), rest),
            _ => (None, nodes.as_slice()),
        };
        if let Some(first) = first {
            first.start(None).await?;
        }
        let joining = rest.iter().map(|node| async move {
            // A machine that has joined before needs no token.
            let token = match node.is_known() {
                true => None,
                false => Some(self.inner.token(node).await?),
            };
            node.start(token).await
        });
        futures::future::try_join_all(joining).await.map(|_| ())
    }

    /// Waits until a leader has made the first objects, and every node may be given pods.
    async fn until_ready(&self) -> Result<(), ClusterError> {
        let begun = Instant::now();
        loop {
            let why = match self.not_ready().await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => why,
                Err(ClusterError::Unavailable { why, .. }) => why,
                Err(error) => return Err(error),
            };
            if begun.elapsed() >= READY_DEADLINE {
                return Err(ClusterError::Unavailable { after: READY_DEADLINE, why });
            }
            tokio::time::sleep(CALL_RETRY).await;
        }
    }

    async fn not_ready(&self) -> Result<Option<String>, ClusterError> {
        match self.get::<Namespace>(None, DEFAULT_NAMESPACE).await {
            Err(ClusterError::Api(status)) if status.http_code() == 404 => return Ok(Some(status.to_string())),
            other => drop(other?),
        }
        let nodes: Vec<NodeObject> = self.list(None).await?;
        let is_ready = |node: &NodeObject| {
            let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let ready: Vec<&str> =
            nodes.iter().filter(|node| is_ready(node)).filter_map(|node| node.metadata.name.as_deref()).collect();
        let missing = self.inner.nodes.iter().find(|node| !ready.contains(&node.name.as_str()));
        if let Some(node) = missing {
            return Ok(Some(format!("node {} is not Ready", node.name)));
        }
        Ok(self.inner.introduce())
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where it lives.
    pub fn dir(&self) -> &Path {
        &self.inner.dir.0
    }

    /// Makes an object, or changes it to what is declared; fields that are not mentioned, and were not mentioned the last
    /// time, are left to others. Answers with the object as it is then.
    ///
    /// # Errors
    /// [`ClusterError::Api`] in Kubernetes' words for an object that breaks a rule.
    pub async fn apply<K: ApiObject>(&self, object: &K) -> Result<K, ClusterError> {
        let object = serde_json::to_value(object).map_err(Status::internal)?;
        let intent = Intent::of(&self.inner.kinds, object)?;
        Ok(watch::parse(self.inner.apply(intent).await?)?)
    }

    /// Applies a manifest of any number of documents, in order. Answers with the objects.
    ///
    /// # Errors
    /// A document that cannot be read, has an unknown kind or an unknown field is told before anything is applied; one that
    /// breaks another rule when its turn comes, with its number and line, and those behind it are not applied.
    pub async fn apply_yaml(&self, text: &str) -> Result<Vec<Object>, ClusterError> {
        let mut applied = Vec::new();
        for (document, line, intent) in apply::manifest(&self.inner.kinds, text)? {
            applied.push(self.inner.apply(intent).await.map_err(|error| match error {
                ClusterError::Api(status) => ClusterError::Manifest { document, line, why: status.to_string() },
                other => other,
            })?);
        }
        Ok(applied)
    }

    /// One object; sees every write that was acknowledged before.
    pub async fn get<'a, K: ApiObject>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<K, ClusterError> {
        let namespace = namespace.into().unwrap_or(DEFAULT_NAMESPACE).to_owned();
        let name = name.to_owned();
        let got = self.inner.call(move |registry| {
            let (namespace, name) = (namespace.clone(), name.clone());
            async move { registry.api::<K>().get(Some(&namespace), &name).await }
        });
        got.await
    }

    /// All objects of a type, in one namespace or in all.
    pub async fn list<'a, K: ApiObject>(&self, namespace: impl Into<Option<&'a str>>) -> Result<Vec<K>, ClusterError> {
        self.select(namespace, "").await
    }

    /// The objects of a type whose labels match a selector such as `app=web,tier!=test`.
    pub async fn select<'a, K: ApiObject>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        selector: &str,
    ) -> Result<Vec<K>, ClusterError> {
        let namespace = namespace.into().map(str::to_owned);
        let options = ListOptions { label: LabelSelector::parse(selector)?, ..ListOptions::default() };
        let listed = self.inner.call(move |registry| {
            let (namespace, options) = (namespace.clone(), options.clone());
            async move { registry.api::<K>().list(namespace.as_deref(), &options).await }
        });
        listed.await
    }

    /// Deletes an object, with everything that it owns. A pod gets its grace period to end in; see
    /// [`Cluster::wait_gone`].
    pub async fn delete<'a, K: ApiObject>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
    ) -> Result<(), ClusterError> {
        let namespace = namespace.into().unwrap_or(DEFAULT_NAMESPACE).to_owned();
        let name = name.to_owned();
        let (unsure, deleted) = self
            .inner
            .attempt(move |registry| {
                let (namespace, name) = (namespace.clone(), name.clone());
                async move { registry.api::<K>().delete(Some(&namespace), &name, &DeleteOptions::default()).await }
            })
            .await;
        match deleted {
            // By this very call, at a server that died before it could say so.
            Err(ClusterError::Api(status)) if unsure && status.http_code() == 404 => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    /// Follows the objects of a type, in one namespace or in all: first those that are there, then every change. The stream
    /// goes on when the server that it came from is killed, and ends when the cluster is shut down.
    pub async fn watch<'a, K: ApiObject>(
        &self,
        namespace: impl Into<Option<&'a str>>,
    ) -> Result<Watch<K>, ClusterError> {
        self.watch_with(namespace.into(), WatchOptions::default()).await
    }

    /// As [`Cluster::watch`], for the objects whose labels match a selector.
    pub async fn watch_selected<'a, K: ApiObject>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        selector: &str,
    ) -> Result<Watch<K>, ClusterError> {
        let options = WatchOptions { label: LabelSelector::parse(selector)?, ..WatchOptions::default() };
        self.watch_with(namespace.into(), options).await
    }

    async fn watch_with<K: ApiObject>(
        &self,
        namespace: Option<&str>,
        options: WatchOptions,
    ) -> Result<Watch<K>, ClusterError> {
        let kind = self.kind::<K>()?;
        watch::watch(self.inner.clone(), kind, namespace.map(str::to_owned), options).await
    }

    async fn watch_one<K: ApiObject>(&self, namespace: &str, name: &str) -> Result<Watch<K>, ClusterError> {
        let field = FieldSelector::parse(&*self.kind::<K>()?, &format!("metadata.name={name}"))?;
        self.watch_with(Some(namespace), WatchOptions { field, ..WatchOptions::default() }).await
    }

    fn kind<K: ApiObject>(&self) -> Result<Arc<Kind>, ClusterError> {
        let kind = self.inner.kinds.by_kind(K::GROUP, K::VERSION, K::KIND);
        Ok(kind.cloned().ok_or_else(Status::unknown_resource)?)
    }

    /// Waits until an object exists and is as `wanted` says; answers with it.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`], which says how the object stood at the end.
    pub async fn wait_for<'a, K: ApiObject>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
        mut wanted: impl FnMut(&K) -> bool,
        timeout: Duration,
    ) -> Result<K, ClusterError> {
        let namespace = namespace.into().unwrap_or(DEFAULT_NAMESPACE);
        let mut last = None;
        let waiting = async {
            let mut events = self.watch_one::<K>(namespace, name).await?;
            while let Some(event) = events.try_next().await? {
                last = event.into_existing();
                if let Some(object) = last.take_if(|object| wanted(object)) {
                    return Ok(object);
                }
            }
            Err(ClusterError::ShutDown)
        };
        match tokio::time::timeout(timeout, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(timed_out::<K>(namespace, name, timeout, last.as_ref())),
        }
    }

    /// Waits until an object does not exist.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`].
    pub async fn wait_gone<'a, K: ApiObject>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        name: &str,
        timeout: Duration,
    ) -> Result<(), ClusterError> {
        let namespace = namespace.into().unwrap_or(DEFAULT_NAMESPACE);
        let mut last = None;
        let waiting = async {
            let mut events = self.watch_one::<K>(namespace, name).await?;
            // The watch begins before this question, so that it hears of an end that comes after the answer.
            match self.get::<K>(namespace, name).await {
                Err(ClusterError::Api(status)) if status.http_code() == 404 => return Ok(()),
                other => last = Some(other?),
            }
            while let Some(event) = events.try_next().await? {
                last = event.into_existing();
                if last.is_none() {
                    return Ok(());
                }
            }
            Err(ClusterError::ShutDown)
        };
        match tokio::time::timeout(timeout, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(timed_out::<K>(namespace, name, timeout, last.as_ref())),
        }
    }

    /// What a pod's container has written so far.
    pub async fn logs<'a>(
        &self,
        namespace: impl Into<Option<&'a str>>,
        pod: &str,
        options: &LogOptions,
    ) -> Result<String, ClusterError> {
        let namespace = namespace.into().unwrap_or(DEFAULT_NAMESPACE);
        let found: Pod = self.get(namespace, pod).await?;
        let spec = found.spec.unwrap_or_default();
        let names: Vec<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
        let container = match (&options.container, names.as_slice()) {
            (Some(container), _) => container.clone(),
            (None, [only]) => (*only).to_owned(),
            (None, several) => {
                let choices = several.join(" ");
                let why = format!("a container name must be specified for pod {pod}, choose one of: [{choices}]");
                return Err(Status::bad_request(why).into());
            }
        };
        let Some(node) = spec.node_name.filter(|node| !node.is_empty()) else {
            return Err(Status::bad_request(format!("pod {pod} does not have a host assigned")).into());
        };
        let request = LogRequest {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: found.metadata.uid.unwrap_or_default(),
            container,
            previous: options.previous,
            tail_lines: options.tail_lines,
            timestamps: options.timestamps,
            ..LogRequest::default()
        };
        let bytes = self.inner.call_server(move |server| {
            let (view, node, request) = (server.view(), node.clone(), request.clone());
            async move {
                let pieces = NodeAccess::logs(&view, &node, request).await?;
                let all = pieces.try_fold(Vec::new(), |mut all, piece| async move {
                    all.extend_from_slice(&piece);
                    Ok(all)
                });
                all.await.map_err(Status::internal)
            }
        });
        Ok(String::from_utf8_lossy(&bytes.await?).into_owned())
    }

    /// Kills a node as if its machine had lost power: nothing is written, nobody is told, its tasks and processes die with
    /// it. Returns when nothing of it runs any more. Its directory stays, for [`Cluster::start_node`].
    pub async fn kill_node(&self, name: &str) -> Result<(), ClusterError> {
        self.end_node(name, End::Kill).await
    }

    /// Stops a node in order: a leader hands over, tasks are asked to stop.
    pub async fn stop_node(&self, name: &str) -> Result<(), ClusterError> {
        self.end_node(name, End::Stop).await
    }

    async fn end_node(&self, name: &str, how: End) -> Result<(), ClusterError> {
        match self.inner.node(name)?.end(how).await {
            true => Ok(()),
            false => Err(ClusterError::NotRunning(name.to_owned())),
        }
    }

    /// Starts a node that was killed or stopped. Returns when it serves again.
    pub async fn start_node(&self, name: &str) -> Result<(), ClusterError> {
        self.inner.node(name)?.start(None).await
    }

    /// Cuts a node's network: nothing reaches it from the others, and nothing the others from it.
    pub fn partition_node(&self, name: &str) -> Result<(), ClusterError> {
        self.inner.node(name)?.cut(true)
    }

    /// Ends what [`Cluster::partition_node`] began.
    pub fn heal_node(&self, name: &str) -> Result<(), ClusterError> {
        self.inner.node(name)?.cut(false)
    }

    /// All nodes, in the order of their names.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let leader = self.inner.leader();
        let info = |node: &Node| {
            let access = node.access();
            let api = access.as_ref().and_then(|access| access.shared.node.member.api.clone());
            NodeInfo {
                name: node.name.clone(),
                server: node.server,
                running: access.is_some(),
                leader: leader.as_deref() == Some(node.name.as_str()),
                api_url: api.map(|api| format!("https://{api}")),
            }
        };
        self.inner.nodes.iter().map(info).collect()
    }

    /// The server that leads; waits for an election to end.
    ///
    /// # Errors
    /// [`ClusterError::Unavailable`] when there is none for 10 s, which means that there is no majority.
    pub async fn leader(&self) -> Result<String, ClusterError> {
        let begun = Instant::now();
        while begun.elapsed() < CALL_DEADLINE {
            if self.inner.ended.is_cancelled() {
                return Err(ClusterError::ShutDown);
            }
            match self.inner.leader() {
                Some(leader) => return Ok(leader),
                None if self.inner.server().is_none() => return Err(ClusterError::NoServer),
                None => tokio::time::sleep(CALL_RETRY).await,
            }
        }
        Err(ClusterError::Unavailable { after: CALL_DEADLINE, why: "no server leads".into() })
    }

    /// The objects as a living server sees them, for what the other methods do not do. It ends with that server.
    pub fn registry(&self) -> Result<Registry, ClusterError> {
        let server = self.inner.server().ok_or(ClusterError::NoServer)?;
        server.shared.registry().ok_or(ClusterError::NoServer)
    }

    /// Administrator's credentials for `kubectl` and other clients, at a server that runs now.
    pub async fn kubeconfig(&self) -> Result<String, ClusterError> {
        let server = self.inner.server().ok_or(ClusterError::NoServer)?;
        let answer = admin::call(&server.shared.dir, &AdminRequest::Kubeconfig).await;
        let text = answer.map_err(|e| ClusterError::Unavailable { after: Duration::ZERO, why: e.to_string() })?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// A client of the `kube` crate that reaches the cluster through the HTTPS face of a server that runs now, as any
    /// operator would.
    pub async fn client(&self) -> Result<kube::Client, ClusterError> {
        let invalid = |e: &dyn fmt::Display| ClusterError::Invalid(format!("no client can be made: {e}"));
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&self.kubeconfig().await?).map_err(|e| invalid(&e))?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| invalid(&e))?;
        kube::Client::try_from(config).map_err(|e| invalid(&e))
    }

    /// The supervision tree of every node that runs, by the node's name: each actor's path, state, uptime, restarts and last
    /// exit.
    pub fn tree(&self) -> BTreeMap<String, Vec<ActorInfo>> {
        self.inner.nodes.iter().filter_map(|node| Some((node.name.clone(), node.tree()?))).collect()
    }

    /// Stops everything in order, agents before servers, and removes what is temporary.
    ///
    /// # Errors
    /// When the temporary directory cannot be removed.
    pub async fn shutdown(self) -> Result<(), ClusterError> {
        self.end(End::Stop).await
    }

    async fn end(&self, how: End) -> Result<(), ClusterError> {
        self.inner.ended.cancel();
        let (servers, agents): (Vec<&Node>, Vec<&Node>) = self.inner.nodes.iter().partition(|node| node.server);
        for group in [agents, servers] {
            futures::future::join_all(group.into_iter().map(|node| node.end(how))).await;
        }
        self.inner.leave()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name())
            .field("dir", &self.dir())
            .field("nodes", &self.nodes())
            .finish()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.inner.ended.cancel();
        if self.inner.nodes.iter().all(|node| node.access().is_none()) {
            let _ = self.inner.leave();
            return;
        }
        // Killing waits for threads, which must not be done on one that drives a runtime.
        let (inner, (done, dead)) = (self.inner.clone(), std::sync::mpsc::channel());
        let killer = std::thread::Builder::new().name("cluster-drop".into()).spawn(move || {
            std::thread::scope(|scope| {
                for node in &inner.nodes {
                    scope.spawn(|| node.kill_blocking());
                }
            });
            if let Err(error) = inner.leave() {
                tracing::warn!(%error, "a dropped cluster leaves something behind");
            }
            let _ = done.send(());
        });
        match killer {
            Ok(_) => drop(dead.recv_timeout(DROP_DEADLINE)),
            Err(error) => tracing::warn!(%error, "a dropped cluster cannot be ended"),
        }
    }
}

impl Inner {
    fn node(&self, name: &str) -> Result<&Node, ClusterError> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            ClusterError::NoNode { name: name.to_owned(), nodes: names.join(", ") }
        })
    }

    /// Makes every node know all others; says what is missing. A server that knows only who was there when it joined could
    /// neither vote for nor follow one that came later, if the one that let both in were killed now.
    fn introduce(&self) -> Option<String> {
        let running: Vec<Access> = self.nodes.iter().filter_map(Node::access).collect();
        let (servers, agents): (Vec<&Access>, Vec<&Access>) =
            running.iter().partition(|access| access.shared.store.is_some());
        for server in &servers {
            let members = server.shared.members.read();
            let known = |other: &Access| members.iter().any(|member| *member == other.shared.node.member);
            if let Some(other) = running.iter().find(|other| !known(other)) {
                return Some(format!("{} does not know where {} is", server.name, other.name));
            }
            let voters = server.shared.store.iter().flat_map(|store| store.status().members).filter(|m| m.voter);
            if voters.count() < servers.len() {
                return Some(format!("{} does not know all servers", server.name));
            }
        }
        let members = servers.first()?.shared.members.read().clone();
        for agent in agents {
            // It would ask a server in its own time.
            agent.shared.learn(members.clone());
        }
        None
    }

    async fn token(&self, node: &Node) -> Result<JoinToken, ClusterError> {
        let failed = |why: String| ClusterError::Start { node: node.name.clone(), why };
        let role = if node.server { TokenRole::Server } else { TokenRole::Agent };
        let server = self.server().ok_or(ClusterError::NoServer)?;
        let request = AdminRequest::Token { role, ttl_s: OWN_TOKEN_TTL_S };
        let answer = admin::call(&server.shared.dir, &request).await.map_err(|e| failed(e.to_string()))?;
        JoinToken::parse(answer["token"].as_str().unwrap_or_default()).map_err(|e| failed(e.to_string()))
    }

    async fn apply(&self, intent: Intent) -> Result<Object, ClusterError> {
        let intent = Arc::new(intent);
        let applied = self.call(move |registry| {
            let intent = intent.clone();
            async move { intent.apply(&registry).await }
        });
        applied.await
    }

    /// Gives the directory back; once.
    fn leave(&self) -> Result<(), ClusterError> {
        match self.home.lock().take() {
            Some((_lock, Some(temporary))) => {
                let path = temporary.path().to_owned();
                let failed = |e| ClusterError::Directory(format!("cannot remove {}: {e}", path.display()));
                temporary.close().map_err(failed)
            }
            _ => Ok(()),
        }
    }
}

impl Access {
    fn view(&self) -> View {
        View { shared: Arc::downgrade(&self.shared) }
    }
}

fn timed_out<K: ApiObject>(namespace: &str, name: &str, after: Duration, last: Option<&K>) -> ClusterError {
    let last = match last.and_then(|object| serde_json::to_value(object).ok()) {
        None => "it does not exist".to_owned(),
        Some(object) => {
            let state = object.get("status").filter(|status| !status.is_null());
            let text = state.map_or_else(|| object.to_string(), |status| format!("its status is {status}"));
            match text.char_indices().nth(STATE_CHARS_MAX) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            }
        }
    };
    ClusterError::TimedOut { what: format!("{} {namespace}/{name}", K::KIND), after, last }
}
