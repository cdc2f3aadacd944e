//! Carries out what [`core`](super::core) decides for one Deployment.
//!
//! Every write is guarded by the version it was decided on, so a pass on an old picture fails instead of doing harm.
//! Must never decide anything itself.

use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::json;

use super::core::{self, Plan};
use super::template::{REVISION, same_template};
use crate::api::{Patch, Status};
use crate::controllers::edge::{Writer, is_namespace_terminating, until};
use crate::controllers::index::Index;
use crate::controllers::ownership::{controller_of, is_controlled_by, key_of, selects};
use crate::controllers::reconcile::{Feed, Key, Next, ReconcileError, Reconciler};
use crate::controllers::watches::{Synced, Watches, feed};
use crate::registry::DeleteOptions;
use crate::registry::{Deleted, EventType, InformerEvent, Propagation};

/// The controller of Deployments.
pub struct Deployments {
    writer: Writer,
    watches: Watches,
    deployments: Mutex<Index<Deployment>>,
    sets: Mutex<Index<ReplicaSet>>,
    pods: Mutex<Index<Pod>>,
    synced: Synced,
}

impl Deployments {
    pub fn new(writer: Writer, watches: Watches) -> Deployments {
        Deployments {
            writer,
            watches,
            deployments: Mutex::default(),
            sets: Mutex::default(),
            pods: Mutex::default(),
            synced: Synced::of(3),
        }
    }

    fn on_deployment(&self, event: &InformerEvent<Deployment>, keys: &mut Vec<Key>) {
        match event {
            InformerEvent::Applied { new, .. } => {
                self.deployments.lock().applied(new);
                keys.push(key_of(&new.metadata).into());
            }
            InformerEvent::Deleted(old) => {
                self.deployments.lock().deleted(old);
                keys.push(key_of(&old.metadata).into());
            }
            InformerEvent::Resynced => self.synced.mark(0),
        }
    }

    fn on_set(&self, event: &InformerEvent<ReplicaSet>, keys: &mut Vec<Key>) {
        match event {
            InformerEvent::Applied { new, old } => {
                self.sets.lock().applied(new);
                self.concerned(new, keys);
                if let Some(old) =
                    old.as_ref().filter(|old| old.metadata.owner_references != new.metadata.owner_references)
                {
                    self.concerned(old, keys);
                }
            }
            InformerEvent::Deleted(old) => {
                self.sets.lock().deleted(old);
                self.concerned(old, keys);
            }
            InformerEvent::Resynced => self.synced.mark(1),
        }
    }

    /// Only the end of a pod matters, and only to Recreate: all else comes through the status of the sets.
    fn on_pod(&self, event: &InformerEvent<Pod>, keys: &mut Vec<Key>) {
        match event {
            InformerEvent::Applied { new, .. } => {
                self.pods.lock().applied(new);
            }
            InformerEvent::Deleted(old) => {
                self.pods.lock().deleted(old);
                let Some(owner) = controller_of(&old.metadata) else { return };
                let namespace = old.metadata.namespace.as_deref().unwrap_or_default();
                let set = self.sets.lock().get(&format!("{namespace}/{}", owner.name)).cloned();
                if let Some(set) = set {
                    self.concerned(&set, keys);
                }
            }
            InformerEvent::Resynced => self.synced.mark(2),
        }
    }

    fn concerned(&self, set: &ReplicaSet, keys: &mut Vec<Key>) {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        match controller_of(&set.metadata) {
            Some(owner) if owner.kind == "Deployment" => keys.push(format!("{namespace}/{}", owner.name).into()),
            Some(_) => {}
            None => {
                for deployment in self.deployments.lock().in_namespace(namespace) {
                    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
                    if selector.is_some_and(|selector| selects(selector, set.metadata.labels.as_ref())) {
                        keys.push(key_of(&deployment.metadata).into());
                    }
                }
            }
        }
    }

    fn plan(&self, key: &str, now: Timestamp) -> Option<(Arc<Deployment>, Plan)> {
        let deployment = Arc::clone(self.deployments.lock().get(key)?);
        let mut sets = self.sets.lock();
        sets.expire(Instant::now());
        let mut candidates = sets.owned_by(deployment.metadata.uid.as_deref().unwrap_or_default());
        candidates.extend(sets.orphans_in(deployment.metadata.namespace.as_deref().unwrap_or_default()));
        drop(sets);
        let pods = self.pods.lock();
        let pods: Vec<Arc<Pod>> =
            candidates.iter().flat_map(|set| pods.owned_by(set.metadata.uid.as_deref().unwrap_or_default())).collect();
        let plan = core::plan(&deployment, &candidates, &pods, now);
        Some((deployment, plan))
    }

    async fn carry_out(&self, deployment: &Arc<Deployment>, plan: &Plan) -> Result<(), Status> {
        if !plan.adopt.is_empty() {
            self.writer.still_exists(&**deployment).await?;
        }
        for set in &plan.adopt {
            self.keep(self.writer.adopt(&**deployment, &**set).await?);
        }
        for set in &plan.release {
            self.keep(self.writer.release(&deployment.metadata, &**set).await?);
        }
        if let Some(set) = &plan.create {
            self.create(deployment, set).await?;
        }
        for set in try_join_all(plan.update.iter().map(|set| self.writer.update(set))).await? {
            self.keep(set);
        }
        for message in &plan.scaled {
            self.writer.note(&**deployment, EventType::Normal, "ScalingReplicaSet", message);
        }
        for set in &plan.delete {
            let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
            if let Some(Deleted::Removed(_)) | None = self.writer.delete(&**set, options).await? {
                self.sets.lock().removed(&set.metadata, Instant::now());
            }
        }
        let mut newest = Arc::clone(deployment);
        if let Some(revision) = &plan.revision {
            newest = self.annotate(&newest, revision).await?;
        }
        if let Some(status) = &plan.status {
            self.write_status(&newest, status.clone()).await?;
        }
        Ok(())
    }

    /// A set of that name that is ours and has the template is as good as created; any other makes us choose another name.
    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), Status> {
        let namespace = deployment.metadata.namespace.as_deref();
        let status = match self.writer.create(namespace, set).await {
            Ok(created) => {
                self.keep(created);
                return Ok(());
            }
            Err(status) => status,
        };
        if is_namespace_terminating(&status) {
            return Ok(());
        }
        if status.http_code() != 409 {
            if let Some(refused) = core::after_refusal(deployment, &status.message, Timestamp::now()) {
                self.write_status(deployment, refused).await?;
            }
            return Err(status);
        }
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let found: ReplicaSet = self.writer.registry().api().get(namespace, name).await?;
        let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        let ours = is_controlled_by(&found.metadata, deployment.metadata.uid.as_deref().unwrap_or_default());
        if ours && same_template(&template(&found), &template(set)) {
            self.keep(found);
        } else {
            self.write_status(deployment, core::after_collision(deployment)).await?;
        }
        // Either way the next pass decides anew.
        Err(status)
    }

    async fn annotate(&self, deployment: &Deployment, revision: &str) -> Result<Arc<Deployment>, Status> {
        let meta = &deployment.metadata;
        let patch = Patch::Merge(json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "annotations": {REVISION: revision},
        }}));
        let api = self.writer.registry().api::<Deployment>();
        let name = meta.name.as_deref().unwrap_or_default();
        let options = self.writer.options();
        let written = Arc::new(api.patch(meta.namespace.as_deref(), name, None, &patch, &options).await?);
        self.deployments.lock().wrote(Arc::clone(&written), Instant::now());
        Ok(written)
    }

    async fn write_status(&self, deployment: &Deployment, status: DeploymentStatus) -> Result<(), Status> {
        let update = Deployment { status: Some(status), ..deployment.clone() };
        let written = self.writer.update_status(&update).await?;
        self.deployments.lock().wrote(Arc::new(written), Instant::now());
        Ok(())
    }

    fn keep(&self, set: ReplicaSet) {
        self.sets.lock().wrote(Arc::new(set), Instant::now());
    }
}

impl Reconciler for Deployments {
    const NAME: &'static str = "deployments";

    fn feeds(self: &Arc<Self>) -> Vec<Feed> {
        let (deployments, sets, pods) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        vec![
            feed(self.watches.deployments.subscribe(), move |event, keys| deployments.on_deployment(event, keys)),
            feed(self.watches.replica_sets.subscribe(), move |event, keys| sets.on_set(event, keys)),
            feed(self.watches.pods.subscribe(), move |event, keys| pods.on_pod(event, keys)),
        ]
    }

    fn exists(&self, key: &str) -> bool {
        self.deployments.lock().contains(key)
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, ReconcileError> {
        self.synced.wait().await;
        let now = Timestamp::now();
        let Some((deployment, plan)) = self.plan(&key, now) else { return Ok(Next::Gone) };
        self.carry_out(&deployment, &plan).await.map_err(ReconcileError::from)?;
        Ok(plan.again_at.map_or(Next::Settled, |at| Next::After(until(at, now))))
    }
}
