//! Which pods each node shall run: an index over the leader's copy of all pods, and a queue for each open session.
//!
//! Must never wait for an agent: one that does not keep up loses its session and begins a new one, with everything. Lives
//! for one term of leadership; fed by the controllers' pod hub, read by `server`.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::controllers::watches::Hub;
use crate::node::AssignmentEvent;
use crate::registry::InformerEvent;

/// Events that wait for one agent. An agent that is further behind loses its session.
const SESSION_EVENTS_MAX: usize = 1_024;

/// The index. Cheap to clone; ends with its last clone.
#[derive(Clone)]
pub struct Assignments {
    shared: Arc<Shared>,
    _task: Arc<Abort>,
}

struct Shared {
    nodes: Mutex<HashMap<String, Assigned>>,
    synced: watch::Sender<bool>,
}

/// What one node has.
#[derive(Default)]
struct Assigned {
    /// By uid.
    pods: HashMap<String, Arc<Pod>>,
    session: Option<mpsc::Sender<AssignmentEvent>>,
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Assignments {
    /// Starts to follow the pods, on `runtime`.
    pub fn start(pods: &Hub<Pod>, runtime: &Handle) -> Self {
        let shared = Arc::new(Shared { nodes: Mutex::default(), synced: watch::Sender::new(false) });
        let (mut events, index) = (pods.subscribe(), shared.clone());
        let task = runtime.spawn(async move {
            while let Some(event) = events.recv().await {
                index.take(event);
            }
        });
        Self { shared, _task: Arc::new(Abort(task.abort_handle())) }
    }

    /// A session of a node: everything, then each change. It ends when another of the same node begins, when its
    /// reader does not keep up, and with the index. Waits until the index is complete.
    pub async fn open(&self, node: &str) -> mpsc::Receiver<AssignmentEvent> {
        self.synced().await;
        let (session, events) = mpsc::channel(SESSION_EVENTS_MAX);
        let mut nodes = self.shared.nodes.lock();
        let assigned = nodes.entry(node.to_owned()).or_default();
        // A new channel has room for one.
        let _ = session.try_send(AssignmentEvent::Snapshot(assigned.pods.values().cloned().collect()));
        assigned.session = Some(session);
        events
    }

    /// Waits until the index is complete.
    pub async fn synced(&self) {
        // The sender lives in `shared`.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// The pod is known to be gone before the watch has said so.
    pub fn forget(&self, pod: &Pod) {
        remove(&mut self.shared.nodes.lock(), pod);
    }

    /// The pods of a node, as far as they are known.
    pub fn pods(&self, node: &str) -> Vec<Arc<Pod>> {
        self.shared.nodes.lock().get(node).map(|assigned| assigned.pods.values().cloned().collect()).unwrap_or_default()
    }
}

impl Shared {
    fn take(&self, event: InformerEvent<Pod>) {
        match event {
            InformerEvent::Applied { new, old } => {
                let (Some(node), Some(uid)) = (node_of(&new), new.metadata.uid.clone()) else { return };
                let mut nodes = self.nodes.lock();
                // Deleted and made anew under the same name between two looks.
                if let Some(old) = old.filter(|old| old.metadata.uid != new.metadata.uid) {
                    remove(&mut nodes, &old);
                }
                let assigned = nodes.entry(node.to_owned()).or_default();
                let before = assigned.pods.insert(uid, new.clone());
                if before.is_none_or(|before| concerns_agent(&before, &new)) {
                    assigned.send(AssignmentEvent::Applied(new));
                }
            }
            InformerEvent::Deleted(pod) => remove(&mut self.nodes.lock(), &pod),
            InformerEvent::Resynced => drop(self.synced.send_replace(true)),
        }
    }
}

fn remove(nodes: &mut HashMap<String, Assigned>, pod: &Pod) {
    let (Some(node), Some(uid)) = (node_of(pod), pod.metadata.uid.as_deref()) else { return };
    let Some(assigned) = nodes.get_mut(node) else { return };
    if assigned.pods.remove(uid).is_none() {
        return;
    }
    let seconds = pod.metadata.deletion_grace_period_seconds;
    assigned.send(AssignmentEvent::Removed {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: uid.to_owned(),
        grace_seconds: seconds.map(|seconds| seconds.max(0).unsigned_abs()),
    });
}

impl Assigned {
    fn send(&mut self, event: AssignmentEvent) {
        if self.session.as_ref().is_some_and(|session| session.try_send(event).is_err()) {
            self.session = None;
        }
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Whether more than the agent's own reports changed. Conditions of others count where the pod waits for them.
fn concerns_agent(before: &Pod, after: &Pod) -> bool {
    let (old, new) = (&before.metadata, &after.metadata);
    old.deletion_timestamp != new.deletion_timestamp
        || old.deletion_grace_period_seconds != new.deletion_grace_period_seconds
        || old.labels != new.labels
        || old.annotations != new.annotations
        || before.spec != after.spec
        || after.spec.as_ref().is_some_and(|spec| spec.readiness_gates.as_ref().is_some_and(|gates| !gates.is_empty()))
}
