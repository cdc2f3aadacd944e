//! Drives pods away from nodes with NoExecute taints that they do not tolerate, or tolerate no longer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use parking_lot::Mutex;

use super::core::{self, NO_EXECUTE, UNREACHABLE};
use super::lost::evict;
use crate::controllers::edge::{Writer, until};
use crate::controllers::index::Index;
use crate::controllers::ownership::key_of;
use crate::controllers::pods::{is_active, is_terminating, node_name};
use crate::controllers::reconcile::{Feed, Key, Next, ReconcileError, Reconciler};
use crate::controllers::watches::{Synced, Watches, feed};
use crate::registry::{DeleteOptions, EventType, InformerEvent};

/// The controller of nodes' taints.
pub struct Nodes {
    writer: Writer,
    watches: Watches,
    nodes: Mutex<Index<Node>>,
    pods: Mutex<Bound>,
    /// When a taint without a time of its own was first seen, by node: it says when a toleration ends. Known to nobody
    /// else, so it starts anew when the controller does, as in Kubernetes.
    first_seen: Mutex<HashMap<Key, FirstSeen>>,
    synced: Synced,
}

/// By key and value of the taint.
type FirstSeen = HashMap<(String, Option<String>), Timestamp>;

/// Pods that have a node, by node.
#[derive(Default)]
struct Bound {
    index: Index<Pod>,
    by_node: HashMap<String, HashSet<Key>>,
}

impl Bound {
    fn on(&self, node: &str) -> Vec<Arc<Pod>> {
        self.by_node.get(node).into_iter().flatten().filter_map(|key| self.index.get(key)).cloned().collect()
    }
}

impl Nodes {
    pub fn new(writer: Writer, watches: Watches) -> Nodes {
        Nodes {
            writer,
            watches,
            nodes: Mutex::default(),
            pods: Mutex::default(),
            first_seen: Mutex::default(),
            synced: Synced::of(2),
        }
    }

    fn on_node(&self, event: &InformerEvent<Node>, keys: &mut Vec<Key>) {
        match event {
            InformerEvent::Applied { new, .. } => {
                self.nodes.lock().applied(new);
                // A node without such taints needs no actor; one that had them is looked at once more.
                let key: Key = key_of(&new.metadata).into();
                if drives_away(new) || self.first_seen.lock().contains_key(&key) {
                    keys.push(key);
                }
            }
            InformerEvent::Deleted(old) => {
                self.nodes.lock().deleted(old);
                keys.push(key_of(&old.metadata).into());
            }
            InformerEvent::Resynced => self.synced.mark(0),
        }
    }

    fn on_pod(&self, event: &InformerEvent<Pod>, keys: &mut Vec<Key>) {
        match event {
            InformerEvent::Applied { new, .. } => {
                let Some(node) = node_name(new) else { return };
                let mut pods = self.pods.lock();
                pods.index.applied(new);
                let fresh = pods.by_node.entry(node.to_owned()).or_default().insert(key_of(&new.metadata).into());
                drop(pods);
                if fresh && self.nodes.lock().get(node).is_some_and(|node| drives_away(node)) {
                    keys.push(node.into());
                }
            }
            InformerEvent::Deleted(old) => {
                let mut pods = self.pods.lock();
                pods.index.deleted(old);
                let key: Key = key_of(&old.metadata).into();
                if let Some(node) = node_name(old)
                    && !pods.index.contains(&key)
                    && let Some(keys) = pods.by_node.get_mut(node)
                {
                    keys.remove(&key);
                    if keys.is_empty() {
                        pods.by_node.remove(node);
                    }
                }
            }
            InformerEvent::Resynced => self.synced.mark(1),
        }
    }

    /// Remembers when taints were first seen, and forgets those that are gone.
    fn note_taints(&self, key: &Key, node: &Node, now: Timestamp) -> FirstSeen {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let present: HashSet<_> = taints.iter().filter(|taint| taint.effect == NO_EXECUTE).map(name_of).collect();
        let mut all = self.first_seen.lock();
        let seen = all.entry(Arc::clone(key)).or_default();
        seen.retain(|taint, _| present.contains(taint));
        for taint in present {
            seen.entry(taint).or_insert(now);
        }
        let seen = seen.clone();
        if seen.is_empty() {
            all.remove(key);
        }
        seen
    }
}

fn name_of(taint: &Taint) -> (String, Option<String>) {
    (taint.key.clone(), taint.value.clone())
}

fn drives_away(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.effect == NO_EXECUTE)
}

fn is_lost(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == UNREACHABLE && taint.effect == NO_EXECUTE)
}

impl Reconciler for Nodes {
    const NAME: &'static str = "nodes";

    fn feeds(self: &Arc<Self>) -> Vec<Feed> {
        let (nodes, pods) = (Arc::clone(self), Arc::clone(self));
        vec![
            feed(self.watches.nodes.subscribe(), move |event, keys| nodes.on_node(event, keys)),
            feed(self.watches.pods.subscribe(), move |event, keys| pods.on_pod(event, keys)),
        ]
    }

    fn exists(&self, key: &str) -> bool {
        self.nodes.lock().contains(key)
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, ReconcileError> {
        self.synced.wait().await;
        let now = Timestamp::now();
        let Some(node) = self.nodes.lock().get(&key).cloned() else {
            self.first_seen.lock().remove(&key);
            return Ok(Next::Gone);
        };
        let seen = self.note_taints(&key, &node, now);
        let on_node = self.pods.lock().on(&key);
        let since = |taint: &Taint| seen.get(&name_of(taint)).copied().unwrap_or(now);
        let evictions = core::evictions(&node, &on_node, since, now);
        if is_lost(&node) {
            // Also what a leader before us did not come to; nobody is left to stop these in order.
            let mut going = evictions.now;
            going.extend(on_node.iter().filter(|pod| is_terminating(pod)).cloned());
            evict(self.writer.registry(), &going).await;
        } else {
            for pod in evictions.now.iter().filter(|pod| is_active(pod)) {
                let name = key_of(&pod.metadata);
                let message = format!("Marking for deletion Pod {name}");
                self.writer.note(&**pod, EventType::Normal, "TaintManagerEviction", &message);
                self.writer.delete(&**pod, DeleteOptions::default()).await.map_err(ReconcileError::from)?;
            }
        }
        Ok(evictions.next_at.map_or(Next::Settled, |at| Next::After(until(at, now))))
    }
}
