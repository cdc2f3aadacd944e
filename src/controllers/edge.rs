//! How controllers write: the registry's operations with the options, events and error classes that they all share.
//!
//! Must never decide what to write. Used by the reconcilers only.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

use super::ownership::controller_reference;
use super::reconcile::ReconcileError;
use crate::api::{Patch, Status};
use crate::registry::{ApiObject, DeleteOptions, Deleted, EventType, ObjectRef, Recorder, Registry, WriteOptions};

/// Writes in the name of one controller.
#[derive(Clone)]
pub struct Writer {
    registry: Registry,
    recorder: Recorder,
    /// Such as `replicaset-controller`: whom events and managed fields name.
    component: &'static str,
}

impl Writer {
    pub fn new(registry: Registry, recorder: Recorder, component: &'static str) -> Writer {
        Writer { registry, recorder, component }
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn options(&self) -> WriteOptions {
        WriteOptions { field_manager: Some(self.component.to_owned()), ..WriteOptions::default() }
    }

    /// Tells users what happened to `about`.
    pub fn note<K: ApiObject>(&self, about: &K, event_type: EventType, reason: &str, message: &str) {
        self.recorder.record(&ObjectRef::of_typed(about), event_type, reason, message, self.component);
    }

    pub async fn create<K: ApiObject>(&self, namespace: Option<&str>, object: &K) -> Result<K, Status> {
        self.registry.api::<K>().create(namespace, object, &self.options()).await
    }

    pub async fn update<K: ApiObject>(&self, object: &K) -> Result<K, Status> {
        self.registry.api::<K>().update(object, &self.options()).await
    }

    pub async fn update_status<K: ApiObject>(&self, object: &K) -> Result<K, Status> {
        self.registry.api::<K>().update_status(object, &self.options()).await
    }

    /// Deletes this very object. `None` when it is gone already.
    pub async fn delete<K: ApiObject>(&self, object: &K, options: DeleteOptions) -> Result<Option<Deleted>, Status> {
        let meta = object.metadata();
        let options = DeleteOptions { uid: meta.uid.clone(), ..options };
        let name = meta.name.as_deref().unwrap_or_default();
        match self.registry.api::<K>().delete(meta.namespace.as_deref(), name, &options).await {
            Ok(deleted) => Ok(Some(deleted)),
            // Another object has the name, or none has.
            Err(status) if matches!(status.http_code(), 404 | 409) => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Refuses when `owner` is not there any more, or is going: asked live, since what it adopts would outlive it.
    pub async fn still_exists<K: ApiObject>(&self, owner: &K) -> Result<(), Status> {
        let meta = owner.metadata();
        let name = meta.name.as_deref().unwrap_or_default();
        let live = self.registry.api::<K>().get(meta.namespace.as_deref(), name).await?;
        if live.metadata().uid != meta.uid || live.metadata().deletion_timestamp.is_some() {
            let kind = self.registry.api::<K>();
            return Err(Status::conflict(kind.kind()?, name, "the owner is being deleted"));
        }
        Ok(())
    }

    /// Makes `owner` the controller of `object`.
    pub async fn adopt<O: ApiObject, K: ApiObject>(&self, owner: &O, object: &K) -> Result<K, Status> {
        let mut owners = object.metadata().owner_references.clone().unwrap_or_default();
        owners.push(controller_reference(O::API_VERSION, O::KIND, owner.metadata()));
        self.set_owners(object, &owners).await
    }

    /// Takes `owner` out of the owners of `object`.
    pub async fn release<K: ApiObject>(&self, owner: &ObjectMeta, object: &K) -> Result<K, Status> {
        let mut owners = object.metadata().owner_references.clone().unwrap_or_default();
        owners.retain(|reference| Some(&reference.uid) != owner.uid.as_ref());
        self.set_owners(object, &owners).await
    }

    async fn set_owners<K: ApiObject>(&self, object: &K, owners: &[OwnerReference]) -> Result<K, Status> {
        let meta = object.metadata();
        let patch = Patch::Merge(json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "ownerReferences": owners,
        }}));
        let name = meta.name.as_deref().unwrap_or_default();
        self.registry.api::<K>().patch(meta.namespace.as_deref(), name, None, &patch, &self.options()).await
    }
}

impl From<Status> for ReconcileError {
    fn from(status: Status) -> ReconcileError {
        match status.http_code() {
            404 | 409 => ReconcileError::Conflict(status.message),
            _ => ReconcileError::Failed(status.message),
        }
    }
}

/// How long it is from `now` to `at`; nothing when that is past.
pub fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// The namespace is being deleted: there is nothing left to do in it.
pub fn is_namespace_terminating(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}
