//! Carries out what [`core`](super::core) decides, for one object at a time.
//!
//! Here an "object being reconciled" is a uid that something happened around; its actor ends as soon as there is nothing
//! left to do. Before anything is deleted the object is read live: what the graph knows may be old.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;

use super::core::{Decision, FOREGROUND, Graph, Item, ORPHAN, Owner, Propagation, Uid};
use crate::api::kinds::parse_group_version;
use crate::api::{Kind, Object, Patch, Status, meta};
use crate::controllers::edge::Writer;
use crate::controllers::reconcile::{Feed, Key, Next, ReconcileError, Reconciler};
use crate::controllers::watches::{Hub, Watches, feed};
use crate::registry::{ApiObject, DeleteOptions, InformerEvent, ListOptions, ObjectEvent, ObjectWatch, WatchOptions};

/// Kinds that are watched here through the hubs that others share.
const SHARED: [&str; 5] = ["Pod", "Node", "Namespace", "ReplicaSet", "Deployment"];
/// Kinds that own nothing and are owned by nothing that matters.
const LEFT_OUT: [&str; 1] = ["Event"];
/// Between two tries to watch a kind.
const WATCH_AGAIN: Duration = Duration::from_millis(100);

/// The controller that removes what has no owner left.
pub struct GarbageCollector {
    writer: Writer,
    watches: Watches,
    graph: Mutex<Graph>,
    /// Uids that wait for their pass.
    pending: Mutex<HashSet<Key>>,
}

impl GarbageCollector {
    pub fn new(writer: Writer, watches: Watches) -> GarbageCollector {
        GarbageCollector { writer, watches, graph: Mutex::default(), pending: Mutex::default() }
    }

    fn note(&self, look: Vec<Uid>, keys: &mut Vec<Key>) {
        self.pending.lock().extend(look.iter().cloned());
        keys.extend(look);
    }

    fn shared_feed<K: ApiObject>(self: &Arc<Self>, hub: &Hub<K>) -> Feed {
        let this = Arc::clone(self);
        let (api_version, kind): (Arc<str>, Arc<str>) = (K::API_VERSION.into(), K::KIND.into());
        feed(hub.subscribe(), move |event, keys| match event {
            InformerEvent::Applied { new, .. } => {
                let look = this.graph.lock().observe(Item::of(&api_version, &kind, new.metadata()));
                this.note(look, keys);
            }
            InformerEvent::Deleted(old) => {
                let look = this.graph.lock().gone(old.metadata().uid.as_deref().unwrap_or_default());
                this.note(look, keys);
            }
            InformerEvent::Resynced => {}
        })
    }

    /// A kind that only this controller watches: metadata is all that is kept of it.
    fn own_feed(self: &Arc<Self>, kind: Arc<Kind>) -> Feed {
        let state = (Arc::clone(self), kind, None::<ObjectWatch>);
        futures::stream::unfold(state, |(this, kind, watch)| async move {
            let (keys, watch) = this.step(&kind, watch).await;
            Some((keys, (this, kind, watch)))
        })
        .boxed_local()
    }

    /// One event, or a whole list when there is no watch.
    async fn step(&self, kind: &Arc<Kind>, watch: Option<ObjectWatch>) -> (Vec<Key>, Option<ObjectWatch>) {
        let mut keys = Vec::new();
        let Some(mut watch) = watch else {
            return match self.list(kind, &mut keys).await {
                Ok(watch) => (keys, Some(watch)),
                Err(status) => {
                    tracing::warn!(kind = kind.kind, %status, "the garbage collector cannot watch");
                    tokio::time::sleep(WATCH_AGAIN).await;
                    (keys, None)
                }
            };
        };
        match watch.next().await {
            Some(ObjectEvent::Added(object) | ObjectEvent::Modified(object)) => self.observe(kind, &object, &mut keys),
            Some(ObjectEvent::Deleted(object)) => {
                let look = self.graph.lock().gone(meta::uid(&object));
                self.note(look, &mut keys);
            }
            Some(ObjectEvent::Bookmark(_)) => {}
            Some(ObjectEvent::Error(_)) | None => {
                tokio::time::sleep(WATCH_AGAIN).await;
                return (keys, None);
            }
        }
        (keys, Some(watch))
    }

    async fn list(&self, kind: &Arc<Kind>, keys: &mut Vec<Key>) -> Result<ObjectWatch, Status> {
        let registry = self.writer.registry();
        let options = ListOptions { resource_version: "0".to_owned(), ..ListOptions::default() };
        let list = registry.list(kind, None, &options).await?;
        let present: HashSet<&str> = list.items.iter().map(meta::uid).collect();
        let api_version = kind.api_version();
        let known: Vec<Uid> = self.graph.lock().uids_of(&api_version, &kind.kind).cloned().collect();
        for uid in known.iter().filter(|uid| !present.contains(&***uid)) {
            let look = self.graph.lock().gone(uid);
            self.note(look, keys);
        }
        for object in &list.items {
            self.observe(kind, object, keys);
        }
        let options = WatchOptions { resource_version: list.resource_version.to_string(), ..WatchOptions::default() };
        registry.watch(kind, None, &options).await
    }

    fn observe(&self, kind: &Kind, object: &Object, keys: &mut Vec<Key>) {
        if let Some(item) = item_of(kind, object) {
            let look = self.graph.lock().observe(item);
            self.note(look, keys);
        }
    }

    fn kind_of(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let (group, version) = parse_group_version(api_version);
        self.writer.registry().kinds().by_kind(group, version, kind).cloned()
    }

    /// Whether an owner exists, asked live. One of a kind that is not served here cannot be judged and counts as existing.
    async fn owner_exists(&self, namespace: &str, owner: &Owner) -> Result<bool, Status> {
        let Some(kind) = self.kind_of(&owner.api_version, &owner.kind) else { return Ok(true) };
        match self.writer.registry().get(&kind, Some(namespace), &owner.name).await {
            Ok(found) => Ok(meta::uid(&found) == &*owner.uid),
            Err(status) if status.http_code() == 404 => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// The object as it is now. `None` when it is gone, or not what the graph thought it to be; the graph then knows better.
    async fn live(&self, item: &Item) -> Result<Option<(Arc<Kind>, Object)>, Status> {
        let Some(kind) = self.kind_of(&item.api_version, &item.kind) else { return Ok(None) };
        let found = match self.writer.registry().get(&kind, Some(&item.namespace), &item.name).await {
            Ok(found) if meta::uid(&found) == &*item.uid => found,
            Ok(_) => return Ok(None),
            Err(status) if status.http_code() == 404 => return Ok(None),
            Err(status) => return Err(status),
        };
        Ok(Some((kind, found)))
    }

    /// One decision carried out; true when there may be another.
    async fn step_object(&self, uid: &str) -> Result<bool, Status> {
        let (decision, item) = {
            let graph = self.graph.lock();
            let Some(item) = graph.item(uid).cloned() else { return Ok(false) };
            (graph.decide(uid), item)
        };
        if decision == Decision::Nothing {
            return Ok(false);
        }
        if let Decision::Verify(owners) = &decision {
            for owner in owners {
                let exists = self.owner_exists(&item.namespace, owner).await?;
                self.graph.lock().verified(&owner.uid, exists);
            }
            return Ok(true);
        }
        let Some((kind, object)) = self.live(&item).await? else { return Ok(false) };
        let now = item_of(&kind, &object);
        if now.as_ref() != Some(&*item) {
            // The watch will show the same; what else it leads to is looked at then.
            if let Some(now) = now {
                self.graph.lock().observe(now);
            }
            return Ok(true);
        }
        match decision {
            Decision::Nothing | Decision::Verify(_) => {}
            Decision::Delete(propagation) => self.delete(&kind, &object, propagation).await?,
            Decision::DropOwners(owners) => self.drop_owners(&kind, &object, &owners).await?,
            Decision::RemoveForegroundFinalizer => self.remove_finalizer(&kind, &object, FOREGROUND).await?,
            Decision::ReleaseDependents(dependents) => {
                for dependent in dependents {
                    let item = self.graph.lock().item(&dependent).cloned();
                    let Some(item) = item else { continue };
                    if let Some((kind, object)) = self.live(&item).await? {
                        self.drop_owners(&kind, &object, std::slice::from_ref(&Arc::from(uid))).await?;
                    }
                }
                self.remove_finalizer(&kind, &object, ORPHAN).await?;
            }
        }
        Ok(false)
    }

    async fn delete(&self, kind: &Kind, object: &Object, propagation: Propagation) -> Result<(), Status> {
        let options = DeleteOptions {
            uid: Some(meta::uid(object).to_owned()),
            resource_version: object["metadata"]["resourceVersion"].as_str().map(str::to_owned),
            propagation: Some(match propagation {
                Propagation::Background => crate::registry::Propagation::Background,
                Propagation::Foreground => crate::registry::Propagation::Foreground,
                Propagation::Orphan => crate::registry::Propagation::Orphan,
            }),
            ..DeleteOptions::default()
        };
        let deleted =
            self.writer.registry().delete(kind, Some(meta::namespace(object)), meta::name(object), &options).await;
        match deleted {
            Err(status) if status.http_code() != 404 => Err(status),
            _ => Ok(()),
        }
    }

    async fn drop_owners(&self, kind: &Kind, object: &Object, owners: &[Uid]) -> Result<(), Status> {
        let Ok(meta) = metadata_of(object) else { return Ok(()) };
        let mut kept = meta.owner_references.unwrap_or_default();
        let before = kept.len();
        kept.retain(|owner| !owners.iter().any(|uid| **uid == *owner.uid));
        if kept.len() == before {
            return Ok(());
        }
        let kept = if kept.is_empty() { json!(null) } else { json!(kept) };
        self.patch(kind, object, json!({"ownerReferences": kept})).await
    }

    async fn remove_finalizer(&self, kind: &Kind, object: &Object, finalizer: &str) -> Result<(), Status> {
        let kept: Vec<&str> = meta::finalizers(object).into_iter().filter(|own| *own != finalizer).collect();
        let kept = if kept.is_empty() { json!(null) } else { json!(kept) };
        self.patch(kind, object, json!({"finalizers": kept})).await
    }

    async fn patch(&self, kind: &Kind, object: &Object, mut change: Object) -> Result<(), Status> {
        change["uid"] = meta::uid(object).into();
        change["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
        let patch = Patch::Merge(json!({"metadata": change}));
        let (namespace, name) = (Some(meta::namespace(object)), meta::name(object));
        match self.writer.registry().patch(kind, namespace, name, None, &patch, &self.writer.options()).await {
            Err(status) if status.http_code() != 404 => Err(status),
            _ => Ok(()),
        }
    }
}

fn metadata_of(object: &Object) -> Result<ObjectMeta, serde_json::Error> {
    serde_json::from_value(object["metadata"].clone())
}

fn item_of(kind: &Kind, object: &Object) -> Option<Item> {
    let meta = metadata_of(object).ok()?;
    Some(Item::of(&kind.api_version().into(), &kind.kind.as_str().into(), &meta))
}

impl Reconciler for GarbageCollector {
    const NAME: &'static str = "garbagecollector";

    fn feeds(self: &Arc<Self>) -> Vec<Feed> {
        let watches = &self.watches;
        let mut feeds = vec![
            self.shared_feed(&watches.pods),
            self.shared_feed(&watches.nodes),
            self.shared_feed(&watches.namespaces),
            self.shared_feed(&watches.replica_sets),
            self.shared_feed(&watches.deployments),
        ];
        let kinds = self.writer.registry().kinds().iter();
        let own = kinds.filter(|kind| {
            let kind_name = kind.kind.as_str();
            kind.allows("watch") && !SHARED.contains(&kind_name) && !LEFT_OUT.contains(&kind_name)
        });
        feeds.extend(own.map(|kind| self.own_feed(Arc::clone(kind))));
        feeds
    }

    /// Whether something is left to look at: an actor of this kind ends when its work does.
    fn exists(&self, key: &str) -> bool {
        self.pending.lock().contains(key)
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, ReconcileError> {
        self.pending.lock().remove(&key);
        while self.step_object(&key).await.map_err(ReconcileError::from)? {}
        Ok(Next::Gone)
    }
}
