//! An informer: a typed copy of a kind's objects in memory, kept up to date, with an event for each change.
//!
//! It lists, watches, and lists again by itself when the watch ends (too slow, a new leader's snapshot, a store that
//! is away), with backoff. The difference between two lists is told like events, so no final state is missed; states
//! in between may be. The queue of events is bounded and a full one makes the informer wait: then history in the store is the
//! buffer, and a list the way out when that was not enough. A holder that reads no events should drop the receiver.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use super::typed::{Api, ApiObject, TypedEvent, from_object};
use super::{ListOptions, Registry, WatchOptions};
use crate::api::{FieldSelector, LabelSelector, Status};

/// Events that wait for their reader.
const EVENTS_MAX: usize = 1_024;
const BACKOFF_INITIAL: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Which objects to hold.
#[derive(Clone, Debug, Default)]
pub struct InformerOptions {
    /// All namespaces without it.
    pub namespace: Option<String>,
    pub label: LabelSelector,
    pub field: FieldSelector,
}

/// A change of what the informer holds; made after the change of the copy.
#[derive(Clone, Debug)]
pub enum InformerEvent<K> {
    Applied {
        new: Arc<K>,
        old: Option<Arc<K>>,
    },
    /// The last state that was seen.
    Deleted(Arc<K>),
    /// A list is complete: the first, or one after a watch that ended. Everything missed has been told before it.
    Resynced,
}

struct Shared<K> {
    objects: RwLock<HashMap<String, Arc<K>>>,
    synced: watch::Sender<bool>,
}

/// The copy. It is kept up to date until the last clone is dropped.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
    _task: Arc<Abort>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { shared: self.shared.clone(), _task: self._task.clone() }
    }
}

struct Abort(tokio::task::AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<K: ApiObject> Informer<K> {
    /// Starts on the current tokio runtime.
    pub fn start(registry: &Registry, options: InformerOptions) -> (Informer<K>, mpsc::Receiver<InformerEvent<K>>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::new(Shared { objects: RwLock::default(), synced: watch::Sender::new(false) });
        let driver = Driver { api: registry.api(), options, shared: shared.clone(), events };
        let task = tokio::spawn(driver.run());
        (Informer { shared, _task: Arc::new(Abort(task.abort_handle())) }, receiver)
    }

    /// By `namespace/name`, or `name` for cluster-scoped kinds.
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.shared.objects.read().get(key).cloned()
    }

    /// All objects, by key.
    pub fn snapshot(&self) -> HashMap<String, Arc<K>> {
        self.shared.objects.read().clone()
    }

    /// All objects, in no order.
    pub fn objects(&self) -> Vec<Arc<K>> {
        self.shared.objects.read().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.shared.objects.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        // The sender lives in `shared`, so this ends with the first list only.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }
}

/// `namespace/name`, or `name` for cluster-scoped kinds.
pub fn object_key<K: ApiObject>(object: &K) -> String {
    let metadata = object.metadata();
    let name = metadata.name.as_deref().unwrap_or_default();
    match metadata.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    }
}

fn version<K: ApiObject>(object: &K) -> Option<&str> {
    object.metadata().resource_version.as_deref()
}

struct Driver<K> {
    api: Api<K>,
    options: InformerOptions,
    shared: Arc<Shared<K>>,
    events: mpsc::Sender<InformerEvent<K>>,
}

impl<K: ApiObject> Driver<K> {
    async fn run(self) {
        let mut backoff = BACKOFF_INITIAL;
        loop {
            match self.follow(&mut backoff).await {
                // History was not long enough: the next list makes up for it at once.
                Err(status) if status.http_code() == 410 => {
                    tracing::debug!(kind = K::KIND, %status, "the informer lists again");
                }
                Err(status) => {
                    tracing::warn!(kind = K::KIND, %status, retry_ms = backoff.as_millis() as u64, "the informer lost its watch");
                }
                Ok(()) => {}
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn follow(&self, backoff: &mut Duration) -> Result<(), Status> {
        let kind = self.api.kind()?;
        let list = ListOptions {
            label: self.options.label.clone(),
            field: self.options.field.clone(),
            resource_version: "0".to_owned(),
            ..ListOptions::default()
        };
        let namespace = self.options.namespace.as_deref();
        let list = self.api.registry().list(kind, namespace, &list).await?;
        let from = list.resource_version;
        let mut present = HashMap::new();
        for object in list.items {
            match from_object::<K>(object) {
                Ok(object) => drop(present.insert(object_key(&object), Arc::new(object))),
                Err(status) => tracing::warn!(%status, "the informer leaves an object out"),
            }
        }
        self.replace(present).await;
        let options = WatchOptions {
            label: self.options.label.clone(),
            field: self.options.field.clone(),
            resource_version: from.to_string(),
            ..WatchOptions::default()
        };
        // (A watch from 0 begins with what is there, which `applied` has seen.)
        let mut watch = self.api.watch(namespace, &options).await?;
        while let Some(event) = watch.next().await {
            *backoff = BACKOFF_INITIAL;
            match event {
                TypedEvent::Added(object) | TypedEvent::Modified(object) => self.applied(object).await,
                TypedEvent::Deleted(object) => self.deleted(&object_key(&object), Some(Arc::new(object))).await,
                TypedEvent::Bookmark(_) => {}
                TypedEvent::Error(status) => return Err(status),
            }
        }
        Ok(())
    }

    async fn replace(&self, present: HashMap<String, Arc<K>>) {
        let gone: Vec<String> = {
            let objects = self.shared.objects.read();
            objects.keys().filter(|key| !present.contains_key(*key)).cloned().collect()
        };
        for key in gone {
            self.deleted(&key, None).await;
        }
        for object in present.into_values() {
            self.applied(Arc::unwrap_or_clone(object)).await;
        }
        self.shared.synced.send_replace(true);
        self.tell(InformerEvent::Resynced).await;
    }

    async fn applied(&self, object: K) {
        let new = Arc::new(object);
        let old = self.shared.objects.write().insert(object_key(&*new), new.clone());
        if old.as_ref().is_none_or(|old| version(&**old) != version(&*new)) {
            self.tell(InformerEvent::Applied { new, old }).await;
        }
    }

    async fn deleted(&self, key: &str, last: Option<Arc<K>>) {
        let held = self.shared.objects.write().remove(key);
        if let Some(last) = last.or(held) {
            self.tell(InformerEvent::Deleted(last)).await;
        }
    }

    async fn tell(&self, event: InformerEvent<K>) {
        // A reader that left only wants the copy.
        let _ = self.events.send(event).await;
    }
}
