//! Objects as Rust types, for controllers, the scheduler and the embedding program.

use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{DeleteOptions, Deleted, ListOptions, ObjectEvent, ObjectWatch, Registry, WatchOptions, WriteOptions};
use crate::api::{Kind, Object, Patch, Status};

/// A Kubernetes type that is served under a name of its own.
pub trait ApiObject:
    k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<K> ApiObject for K where
    K: k8s_openapi::Resource
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The operations of [`Registry`] on one type.
pub struct Api<K> {
    registry: Registry,
    /// None when this cluster does not serve the kind: every call answers 404.
    kind: Option<Arc<Kind>>,
    _type: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Api { registry: self.registry.clone(), kind: self.kind.clone(), _type: PhantomData }
    }
}

/// A typed event.
#[derive(Clone, Debug)]
pub enum TypedEvent<K> {
    Added(K),
    Modified(K),
    Deleted(K),
    /// Everything up to this `resourceVersion` has been told.
    Bookmark(u64),
    /// The last word: list again and start from there.
    Error(Status),
}

/// A typed [`ObjectWatch`].
pub struct TypedWatch<K> {
    watch: ObjectWatch,
    _type: PhantomData<fn() -> K>,
}

impl<K: ApiObject> TypedWatch<K> {
    /// The next event; `None` after an error. Cancel safe.
    pub async fn next(&mut self) -> Option<TypedEvent<K>> {
        let event = match self.watch.next().await? {
            ObjectEvent::Added(object) => from_object(object).map(TypedEvent::Added),
            ObjectEvent::Modified(object) => from_object(object).map(TypedEvent::Modified),
            ObjectEvent::Deleted(object) => from_object(object).map(TypedEvent::Deleted),
            ObjectEvent::Bookmark(object) => {
                Ok(TypedEvent::Bookmark(crate::api::meta::resource_version(&object).unwrap_or(0)))
            }
            ObjectEvent::Error(status) => Err(status),
        };
        Some(event.unwrap_or_else(TypedEvent::Error))
    }
}

impl Registry {
    /// The operations on one type.
    pub fn api<K: ApiObject>(&self) -> Api<K> {
        let kind = self.kinds().by_kind(K::GROUP, K::VERSION, K::KIND).cloned();
        Api { registry: self.clone(), kind, _type: PhantomData }
    }
}

impl<K: ApiObject> Api<K> {
    /// The kind behind the type.
    ///
    /// # Errors
    /// 404 when this cluster does not serve it.
    pub fn kind(&self) -> Result<&Arc<Kind>, Status> {
        self.kind.as_ref().ok_or_else(Status::unknown_resource)
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// `namespace` may be `None` when the object names its own, or has none.
    pub async fn create(&self, namespace: Option<&str>, object: &K, options: &WriteOptions) -> Result<K, Status> {
        from_object(self.registry.create(self.kind()?, namespace, to_object(object)?, options).await?)
    }

    pub async fn get(&self, namespace: Option<&str>, name: &str) -> Result<K, Status> {
        from_object(self.registry.get(self.kind()?, namespace, name).await?)
    }

    /// From this server's memory; may be behind.
    pub async fn get_local(&self, namespace: Option<&str>, name: &str) -> Result<K, Status> {
        from_object(self.registry.get_local(self.kind()?, namespace, name).await?)
    }

    pub async fn list(&self, namespace: Option<&str>, options: &ListOptions) -> Result<Vec<K>, Status> {
        let list = self.registry.list(self.kind()?, namespace, options).await?;
        list.items.into_iter().map(from_object).collect()
    }

    /// Replaces the object of the same name; only if unchanged since, where it has a `resourceVersion`.
    pub async fn update(&self, object: &K, options: &WriteOptions) -> Result<K, Status> {
        self.replace(None, object, options).await
    }

    /// Replaces the status of the object of the same name.
    pub async fn update_status(&self, object: &K, options: &WriteOptions) -> Result<K, Status> {
        self.replace(Some("status"), object, options).await
    }

    async fn replace(&self, subresource: Option<&str>, object: &K, options: &WriteOptions) -> Result<K, Status> {
        let (name, namespace) = names(object);
        let written =
            self.registry.update(self.kind()?, namespace, name, subresource, to_object(object)?, options).await?;
        from_object(written)
    }

    pub async fn patch(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<K, Status> {
        let patched = self.registry.patch(self.kind()?, namespace, name, subresource, patch, options).await?;
        from_object(patched)
    }

    pub async fn delete(
        &self,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.registry.delete(self.kind()?, namespace, name, options).await
    }

    pub async fn watch(&self, namespace: Option<&str>, options: &WatchOptions) -> Result<TypedWatch<K>, Status> {
        let watch = self.registry.watch(self.kind()?, namespace, options).await?;
        Ok(TypedWatch { watch, _type: PhantomData })
    }
}

fn names<K: ApiObject>(object: &K) -> (&str, Option<&str>) {
    let metadata = object.metadata();
    (metadata.name.as_deref().unwrap_or_default(), metadata.namespace.as_deref())
}

pub(super) fn to_object<K: ApiObject>(object: &K) -> Result<Object, Status> {
    serde_json::to_value(object).map_err(Status::internal)
}

pub(super) fn from_object<K: ApiObject>(object: Object) -> Result<K, Status> {
    let name = crate::api::meta::name(&object).to_owned();
    serde_json::from_value(object)
        .map_err(|e| Status::internal(format!("{} {name:?} does not fit its type: {e}", K::KIND)))
}
