//! Carries out what [`core`](super::core) decides for one ReplicaSet.
//!
//! Reads from indices that the feeds keep, writes through the registry, and puts what it wrote into the indices at once.
//! Must never decide anything itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use super::core::{self, Failure};
use crate::api::Status;
use crate::controllers::edge::{Writer, is_namespace_terminating, until};
use crate::controllers::index::Index;
use crate::controllers::ownership::{controller_of, key_of, selects};
use crate::controllers::reconcile::{Feed, Key, Next, ReconcileError, Reconciler};
use crate::controllers::watches::{Synced, Watches, feed};
use crate::registry::{DeleteOptions, Deleted, EventType, InformerEvent};

/// Looks again at sets whose writes the informer has not shown: nothing is lost when it never does.
const AHEAD_CHECK: Duration = Duration::from_secs(6);

/// The controller of ReplicaSets.
pub struct ReplicaSets {
    writer: Writer,
    watches: Watches,
    sets: Mutex<Index<ReplicaSet>>,
    pods: Mutex<Index<Pod>>,
    synced: Synced,
}

impl ReplicaSets {
    pub fn new(writer: Writer, watches: Watches) -> ReplicaSets {
        ReplicaSets { writer, watches, sets: Mutex::default(), pods: Mutex::default(), synced: Synced::of(2) }
    }

    fn on_set(&self, event: &InformerEvent<ReplicaSet>, keys: &mut Vec<Key>) {
        match event {
            InformerEvent::Applied { new, .. } => {
                self.sets.lock().applied(new);
                keys.push(key_of(&new.metadata).into());
            }
            InformerEvent::Deleted(old) => {
                self.sets.lock().deleted(old);
                keys.push(key_of(&old.metadata).into());
            }
            InformerEvent::Resynced => self.synced.mark(0),
        }
    }

    fn on_pod(&self, event: &InformerEvent<Pod>, keys: &mut Vec<Key>) {
        match event {
            InformerEvent::Applied { new, old } => {
                self.pods.lock().applied(new);
                self.concerned(new, keys);
                if let Some(old) =
                    old.as_ref().filter(|old| old.metadata.owner_references != new.metadata.owner_references)
                {
                    self.concerned(old, keys);
                }
            }
            InformerEvent::Deleted(old) => {
                self.pods.lock().deleted(old);
                self.concerned(old, keys);
            }
            InformerEvent::Resynced => self.synced.mark(1),
        }
    }

    /// The set that controls the pod, or those that may want it.
    fn concerned(&self, pod: &Pod, keys: &mut Vec<Key>) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => keys.push(format!("{namespace}/{}", owner.name).into()),
            Some(_) => {}
            None => {
                for set in self.sets.lock().in_namespace(namespace) {
                    let selector = set.spec.as_ref().map(|spec| &spec.selector);
                    if selector.is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref())) {
                        keys.push(key_of(&set.metadata).into());
                    }
                }
            }
        }
    }

    /// The set as it is, and what is to be done for it.
    fn plan(&self, key: &str) -> Option<(Arc<ReplicaSet>, core::Plan)> {
        let sets = self.sets.lock();
        let set = Arc::clone(sets.get(key)?);
        let siblings = controller_of(&set.metadata).map(|owner| sets.owned_by(&owner.uid)).unwrap_or_default();
        drop(sets);
        let mut pods = self.pods.lock();
        pods.expire(Instant::now());
        let mut candidates = pods.owned_by(set.metadata.uid.as_deref().unwrap_or_default());
        candidates.extend(pods.orphans_in(set.metadata.namespace.as_deref().unwrap_or_default()));
        let related: Vec<Arc<Pod>> = siblings
            .iter()
            .flat_map(|sibling| pods.owned_by(sibling.metadata.uid.as_deref().unwrap_or_default()))
            .collect();
        drop(pods);
        let related = if related.is_empty() { &candidates } else { &related };
        let plan = core::plan(&set, &candidates, related);
        Some((set, plan))
    }

    async fn claim(&self, set: &ReplicaSet, plan: &core::Plan) -> Result<(), Status> {
        if !plan.adopt.is_empty() {
            self.writer.still_exists(set).await?;
        }
        for pod in &plan.adopt {
            self.keep(self.writer.adopt(set, &**pod).await?);
        }
        for pod in &plan.release {
            self.keep(self.writer.release(&set.metadata, &**pod).await?);
        }
        Ok(())
    }

    fn keep(&self, pod: Pod) {
        self.pods.lock().wrote(Arc::new(pod), Instant::now());
    }

    /// Creates in batches that double, so that a refusal costs one batch and not hundreds of tries.
    async fn create(&self, set: &ReplicaSet, count: usize) -> Option<Failure> {
        let template = core::new_pod(set);
        let namespace = set.metadata.namespace.as_deref();
        let mut failure = None;
        for batch in core::batches(count) {
            let created = join_all((0..batch).map(|_| self.writer.create(namespace, &template))).await;
            for result in created {
                match result {
                    Ok(pod) => {
                        let name = pod.metadata.name.clone().unwrap_or_default();
                        self.keep(pod);
                        self.writer.note(set, EventType::Normal, "SuccessfulCreate", &format!("Created pod: {name}"));
                    }
                    Err(status) if is_namespace_terminating(&status) => return None,
                    Err(status) => {
                        let message = format!("Error creating: {}", status.message);
                        self.writer.note(set, EventType::Warning, "FailedCreate", &message);
                        failure = Some(Failure { reason: "FailedCreate", message: status.message });
                    }
                }
            }
            if failure.is_some() {
                break;
            }
        }
        failure
    }

    async fn delete(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Option<Failure> {
        let deleted = join_all(pods.iter().map(|pod| self.writer.delete(&**pod, DeleteOptions::default()))).await;
        let mut failure = None;
        for (pod, result) in pods.iter().zip(deleted) {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match result {
                Ok(Some(Deleted::Terminating(object))) => {
                    if let Ok(pod) = serde_json::from_value(object) {
                        self.keep(pod);
                    }
                }
                Ok(_) => self.pods.lock().removed(&pod.metadata, Instant::now()),
                Err(status) => {
                    let message = format!("Error deleting: {}", status.message);
                    self.writer.note(set, EventType::Warning, "FailedDelete", &message);
                    failure = Some(Failure { reason: "FailedDelete", message: status.message });
                    continue;
                }
            }
            self.writer.note(set, EventType::Normal, "SuccessfulDelete", &format!("Deleted pod: {name}"));
        }
        failure
    }
}

impl Reconciler for ReplicaSets {
    const NAME: &'static str = "replicasets";

    fn feeds(self: &Arc<Self>) -> Vec<Feed> {
        let (sets, pods) = (Arc::clone(self), Arc::clone(self));
        vec![
            feed(self.watches.replica_sets.subscribe(), move |event, keys| sets.on_set(event, keys)),
            feed(self.watches.pods.subscribe(), move |event, keys| pods.on_pod(event, keys)),
        ]
    }

    fn exists(&self, key: &str) -> bool {
        self.sets.lock().contains(key)
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, ReconcileError> {
        self.synced.wait().await;
        let Some((set, plan)) = self.plan(&key) else { return Ok(Next::Gone) };
        self.claim(&set, &plan).await.map_err(ReconcileError::from)?;
        let failure = if plan.create > 0 {
            self.create(&set, plan.create).await
        } else if plan.delete.is_empty() {
            None
        } else {
            self.delete(&set, &plan.delete).await
        };
        let now = Timestamp::now();
        // What was just made or deleted is in the index; the status tells of it in the next pass.
        let (status, next) = core::status(&set, &plan.owned, failure.as_ref(), now);
        if set.status.as_ref() != Some(&status) {
            let mut update = (*set).clone();
            update.status = Some(status);
            let written = self.writer.update_status(&update).await.map_err(ReconcileError::from)?;
            self.sets.lock().wrote(Arc::new(written), Instant::now());
        }
        if let Some(failure) = failure {
            return Err(ReconcileError::Failed(failure.message));
        }
        Ok(match next {
            Some(at) => Next::After(until(at, now)),
            None if self.pods.lock().is_ahead() => Next::After(AHEAD_CHECK),
            None => Next::Settled,
        })
    }
}
