//! One actor for each node of the cluster, on the leader: writes down what its lease says.
//!
//! ```text
//!   held ──▶ no taint, Ready as the agent reports; its Lease object is renewed
//!   lost ──▶ tainted, unknown, its pods replaced
//! ```
//! Must never decide whether a node is lost: that is the lease table's. An actor that is restarted looks its standing up
//! again, so nothing is forgotten with it. Started by `cluster` as a child of `control/nodes`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use phalanx_actors::{Actor, Backoff, ChildSpec, Ctx, Exit, Handler, Message, Reply};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::session::assignments::Assignments;
use crate::api::Status;
use crate::controllers::nodes::{node_back, node_lost};
use crate::registry::{Api, EventType, ObjectRef, Recorder, Registry, WriteOptions};

/// kubelet's `nodeLeaseDurationSeconds`.
const LEASE_DURATION_S: i32 = 40;
/// kubelet renews after a quarter of that.
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// The pause before a write that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// Kubernetes' namespace of the nodes' Lease objects.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Who says so in events: Kubernetes' node lifecycle controller.
const COMPONENT: &str = "node-controller";

/// What the lease table says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Held,
    Lost,
}

/// The standing of every node, kept by whoever hears the lease table, and what of it is written down.
#[derive(Clone, Default)]
pub struct Standings(Arc<StandingsInner>);

#[derive(Default)]
struct StandingsInner {
    nodes: Mutex<BTreeMap<String, Stand>>,
    written: watch::Sender<()>,
}

#[derive(Default)]
struct Stand {
    is: Option<Standing>,
    written: Option<Standing>,
}

impl Standings {
    pub fn set(&self, node: &str, standing: Standing) {
        let mut nodes = self.0.nodes.lock();
        let stand = nodes.entry(node.to_owned()).or_default();
        stand.is = Some(standing);
        if standing == Standing::Lost {
            // Nobody is let in by what was written before, however short the loss was.
            stand.written = None;
        }
    }

    /// Waits until the node holds its lease and the store says so: until then its pods may still be on their way to others.
    pub async fn held(&self, node: &str) {
        let mut written = self.0.written.subscribe();
        loop {
            let held = self
                .0
                .nodes
                .lock()
                .get(node)
                .is_some_and(|stand| stand.is == Some(Standing::Held) && stand.written == Some(Standing::Held));
            // The sender lives as long as we do.
            if held || written.changed().await.is_err() {
                return;
            }
        }
    }

    fn wrote(&self, node: &str, standing: Standing) {
        {
            let mut nodes = self.0.nodes.lock();
            let stand = nodes.entry(node.to_owned()).or_default();
            // What has changed meanwhile is not written yet, also if it changes back.
            stand.written = (stand.is == Some(standing)).then_some(standing);
        }
        self.0.written.send_replace(());
    }

    fn is_written(&self, node: &str) -> bool {
        self.0.nodes.lock().get(node).is_some_and(|stand| stand.written.is_some())
    }

    fn of(&self, node: &str) -> Standing {
        self.0.nodes.lock().get(node).and_then(|stand| stand.is).unwrap_or(Standing::Held)
    }
}

/// What a node's actor needs.
#[derive(Clone)]
pub struct NodeDeps {
    pub registry: Registry,
    pub recorder: Recorder,
    pub assignments: Assignments,
    pub standings: Standings,
    /// Where writes run.
    pub runtime: Handle,
}

impl NodeDeps {
    /// An event on the node itself, with kubelet's and the node controller's words.
    fn tell(&self, node: &str, reason: &str) {
        let about = ObjectRef {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            // Kubernetes' convention for nodes, by which `kubectl describe` finds them.
            uid: node.to_owned(),
            ..ObjectRef::default()
        };
        let message = format!("Node {node} status is now: {reason}");
        self.recorder.record(&about, EventType::Normal, reason, &message, COMPONENT);
    }
}

/// The child of `control/nodes` for one node.
pub fn node_child(node: &str, deps: &NodeDeps) -> ChildSpec {
    let (name, deps) = (node.to_owned(), deps.clone());
    ChildSpec::actor(node, move || NodeActor { name: name.clone(), deps: deps.clone(), written: None, writing: false })
        .backoff(Backoff::default())
}

/// Writes down the standing of one node.
pub struct NodeActor {
    name: String,
    deps: NodeDeps,
    /// What the store says, as far as this incarnation has written it.
    written: Option<Standing>,
    writing: bool,
}

/// The standing has changed.
pub struct Look;

impl Message for Look {
    type Reply = ();
}

impl NodeActor {
    fn look(&mut self, ctx: &mut Ctx<Self>) {
        let wanted = self.deps.standings.of(&self.name);
        if self.writing {
            return;
        }
        if self.written == Some(wanted) && self.deps.standings.is_written(&self.name) {
            return;
        }
        self.writing = true;
        let (deps, node) = (self.deps.clone(), self.name.clone());
        // Ends with the actor: what a past term decided must not be written later.
        let write = AbortOnDropHandle::new(self.deps.runtime.spawn(async move {
            match wanted {
                Standing::Lost => {
                    deps.assignments.synced().await;
                    let pods = deps.assignments.pods(&node);
                    let loss = node_lost(&deps.registry, &node, pods.clone()).await?;
                    tracing::info!(node, pods = loss.evicted, "the pods of a lost node are being replaced");
                    if loss.marked {
                        deps.tell(&node, "NodeNotReady");
                        for pod in &pods {
                            let about = ObjectRef::of_typed(&**pod);
                            let text = format!("Node {node} is lost");
                            deps.recorder.record(&about, EventType::Warning, "NodeNotReady", &text, COMPONENT);
                        }
                    }
                    Ok(())
                }
                Standing::Held => {
                    if node_back(&deps.registry, &node).await? {
                        deps.tell(&node, "NodeReady");
                    }
                    Ok(())
                }
            }
        }));
        ctx.pipe(write, move |this, result, ctx| {
            this.writing = false;
            let result = result.unwrap_or_else(|error| Err(Status::internal(error)));
            match result {
                Ok(()) => {
                    this.wrote(wanted);
                    this.look(ctx);
                }
                // It has not registered yet: there is nothing to write on.
                Err(status) if status.http_code() == 404 => this.wrote(wanted),
                Err(status) => {
                    tracing::warn!(node = this.name, ?wanted, %status, "cannot write down a node's standing; trying again");
                    ctx.send_after(RETRY, Look);
                }
            }
        });
    }

    fn wrote(&mut self, standing: Standing) {
        self.written = Some(standing);
        self.deps.standings.wrote(&self.name, standing);
    }

    fn renew(&mut self, ctx: &mut Ctx<Self>) {
        if self.deps.standings.of(&self.name) == Standing::Held {
            let (registry, node) = (self.deps.registry.clone(), self.name.clone());
            let renewal = self.deps.runtime.spawn(async move { renew(&registry, &node).await });
            ctx.pipe(renewal, |this, result, _| {
                if let Ok(Err(status)) = result {
                    tracing::debug!(node = this.name, %status, "the Lease object of a node was not renewed");
                }
            });
        }
    }
}

impl Actor for NodeActor {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        self.look(ctx);
        self.renew(ctx);
        ctx.interval(LEASE_RENEWAL, |this: &mut Self, ctx| {
            this.renew(ctx);
            // What somebody else has written over it, such as a leader of before, is put right.
            this.written = None;
            this.look(ctx);
        });
        Ok(())
    }
}

impl Handler<Look> for NodeActor {
    fn handle(&mut self, _: Look, ctx: &mut Ctx<Self>) -> Reply<()> {
        self.look(ctx);
        ().into()
    }
}

/// Renews the Lease object, for clients that look there. Phalanx itself goes by the leases on the wire.
async fn renew(registry: &Registry, name: &str) -> Result<(), Status> {
    let node = match registry.api::<Node>().get_local(None, name).await {
        Ok(node) => node,
        Err(status) if status.http_code() == 404 => return Ok(()),
        Err(status) => return Err(status),
    };
    let options = WriteOptions { field_manager: Some("kubelet".to_owned()), ..WriteOptions::default() };
    let leases: Api<Lease> = registry.api();
    let spec = LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(LEASE_DURATION_S),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    match leases.get_local(Some(LEASE_NAMESPACE), name).await {
        Ok(mut lease) => {
            lease.spec = Some(spec);
            leases.update(&lease, &options).await.map(drop)
        }
        Err(status) if status.http_code() == 404 => {
            let owner = OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid: node.metadata.uid.unwrap_or_default(),
                ..OwnerReference::default()
            };
            let metadata = ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(LEASE_NAMESPACE.to_owned()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            leases.create(None, &Lease { metadata, spec: Some(spec) }, &options).await.map(drop)
        }
        Err(status) => Err(status),
    }
}
