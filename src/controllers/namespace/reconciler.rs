//! Empties a namespace that is being deleted, kind by kind, and finalizes it.
//!
//! Works on kinds from the table, so that a new kind needs nothing here. While objects wait for their finalizers or their
//! nodes it looks again, since content of any kind may be the last to go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use super::core::{self, AfterSweep, FINALIZER, Remains};
use crate::api::{Status, meta};
use crate::controllers::edge::Writer;
use crate::controllers::index::Index;
use crate::controllers::ownership::key_of;
use crate::controllers::reconcile::{Feed, Key, Next, ReconcileError, Reconciler};
use crate::controllers::watches::{Watches, feed};
use crate::registry::{DeleteOptions, InformerEvent, ListOptions, Propagation};

/// Between two looks at a namespace that still has content of kinds whose end makes no event here.
const SWEEP_AGAIN: Duration = Duration::from_millis(500);

/// The controller of namespaces.
pub struct Namespaces {
    writer: Writer,
    watches: Watches,
    namespaces: Mutex<Index<Namespace>>,
}

impl Namespaces {
    pub fn new(writer: Writer, watches: Watches) -> Namespaces {
        Namespaces { writer, watches, namespaces: Mutex::default() }
    }

    /// Deletes everything in the namespace, and says what is still there.
    async fn sweep(&self, namespace: &str) -> Result<Remains, Status> {
        let registry = self.writer.registry();
        let mut kinds: Vec<_> =
            registry.kinds().iter().filter(|kind| kind.namespaced && kind.allows("delete")).cloned().collect();
        // Events last, since deletions make them; pods behind what would make them anew.
        kinds.sort_by_key(|kind| (kind.is("", "Event"), kind.is("", "Pod")));
        kinds.dedup_by_key(|kind| (kind.group.clone(), kind.kind.clone()));
        let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        let mut remains = Remains::default();
        let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
        for kind in kinds {
            if let Err(status) =
                registry.delete_collection(&kind, Some(namespace), &ListOptions::default(), &options).await
            {
                remains.failures.push(format!("{}: {}", kind.group_resource(), status.message));
            }
            let left = registry.list(&kind, Some(namespace), &ListOptions::default()).await?.items;
            if left.is_empty() {
                continue;
            }
            for object in &left {
                for finalizer in meta::finalizers(object) {
                    *finalizers.entry(finalizer.to_owned()).or_default() += 1;
                }
            }
            remains.objects.insert(kind.group_resource(), left.len());
        }
        remains.finalizers = finalizers;
        Ok(remains)
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), Status> {
        let mut update = namespace.clone();
        if let Some(finalizers) = update.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let registry = self.writer.registry();
        let api = registry.api::<Namespace>();
        let kind = api.kind()?;
        let object = serde_json::to_value(&update).map_err(Status::internal)?;
        registry.update(kind, None, name, Some("finalize"), object, &self.writer.options()).await?;
        Ok(())
    }
}

impl Reconciler for Namespaces {
    const NAME: &'static str = "namespaces";

    fn feeds(self: &Arc<Self>) -> Vec<Feed> {
        let (namespaces, pods) = (Arc::clone(self), Arc::clone(self));
        let of_namespaces = feed(self.watches.namespaces.subscribe(), move |event: &InformerEvent<Namespace>, keys| {
            match event {
                InformerEvent::Applied { new, .. } => {
                    namespaces.namespaces.lock().applied(new);
                    // One that lives needs no actor.
                    if new.metadata.deletion_timestamp.is_some() {
                        keys.push(key_of(&new.metadata).into());
                    }
                }
                InformerEvent::Deleted(old) => {
                    namespaces.namespaces.lock().deleted(old);
                    keys.push(key_of(&old.metadata).into());
                }
                InformerEvent::Resynced => {}
            }
        });
        // Pods are what a namespace mostly waits for.
        let of_pods = feed(self.watches.pods.subscribe(), move |event: &InformerEvent<Pod>, keys| {
            if let InformerEvent::Deleted(old) = event {
                let namespace = old.metadata.namespace.as_deref().unwrap_or_default();
                let leaving = pods
                    .namespaces
                    .lock()
                    .get(namespace)
                    .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some());
                if leaving {
                    keys.push(namespace.into());
                }
            }
        });
        vec![of_namespaces, of_pods]
    }

    fn exists(&self, key: &str) -> bool {
        self.namespaces.lock().contains(key)
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, ReconcileError> {
        let Some(namespace) = self.namespaces.lock().get(&key).cloned() else { return Ok(Next::Gone) };
        if core::next(&namespace) == core::Next::Nothing {
            return Ok(Next::Settled);
        }
        let remains = self.sweep(&key).await.map_err(ReconcileError::from)?;
        match core::after_sweep(&namespace, &remains, Timestamp::now()) {
            AfterSweep::Finalize => {
                match self.finalize(&namespace).await {
                    Ok(()) => {}
                    Err(status) if status.http_code() == 404 => {}
                    Err(status) => return Err(status.into()),
                }
                Ok(Next::Settled)
            }
            AfterSweep::Wait(status) => {
                if let Some(status) = status {
                    let update = Namespace { status: Some(status), ..(*namespace).clone() };
                    let written = self.writer.update_status(&update).await.map_err(ReconcileError::from)?;
                    self.namespaces.lock().wrote(Arc::new(written), Instant::now());
                }
                Ok(Next::After(SWEEP_AGAIN))
            }
        }
    }
}
