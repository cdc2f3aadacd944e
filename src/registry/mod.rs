//! Generic operations on objects of any kind: Kubernetes' "generic registry" over the store.
//!
//! ```text
//!   gateway (JSON)      controllers, scheduler, agents (typed)
//!        │                   │  Api<K>, Informer<K>, Recorder
//!        ▼                   ▼
//!   Registry   create get list update patch delete watch, bindings and statuses in bulk
//!        │        rules: api::{prepare_*, set_defaults, validate_*, apply_patch}
//!        ▼
//!   trait Store   bytes under /registry/<group>/<plural>/<namespace>/<name>
//! ```
//!
//! An object is stored as canonical JSON without its `resourceVersion`, which is the revision of its key and is put in on
//! reading. Whatever is not determined by the request (uid, time, generated name) is chosen here, before the transaction.
//! Nothing here may know HTTP, or a rule that holds for one kind only unless Kubernetes' own registry has it there
//! (the grace of pods, the finalizer of namespaces, scale, binding).

use std::sync::Arc;

use crate::api::{FieldValidation, Kind, Kinds, Object};
use crate::store::Store;

mod bootstrap;
mod bulk;
mod codec;
mod delete;
mod events;
mod informer;
mod read;
mod scale;
mod typed;
mod watch;
mod write;

#[cfg(test)]
mod registry_test;

pub use bulk::{Binding, StatusReport};
pub use delete::{DeleteOptions, Deleted, Propagation};
pub use events::{EventType, ObjectRef, Recorder};
pub use informer::{Informer, InformerEvent, InformerOptions, object_key};
pub use read::{ListOptions, ObjectList, VersionMatch, parse_resource_version};
pub use typed::{Api, ApiObject, TypedEvent, TypedWatch};
pub use watch::{INITIAL_EVENTS_END, ObjectEvent, ObjectWatch, WatchOptions};
pub use write::Patched;

/// Who writes, and how.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// The `fieldManager` parameter: whom server-side apply will name as owner.
    pub field_manager: Option<String>,
    /// Run the whole chain, store nothing, answer with the object as it would be.
    pub dry_run: bool,
    /// What a patch may do with fields that its kind does not have.
    pub field_validation: FieldValidation,
}

/// All objects of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    kinds: Arc<Kinds>,
    store: Arc<dyn Store>,
}

impl Registry {
    pub fn new(kinds: Arc<Kinds>, store: Arc<dyn Store>) -> Registry {
        Registry { kinds, store }
    }

    /// The kinds that are served.
    pub fn kinds(&self) -> &Arc<Kinds> {
        &self.kinds
    }

    /// The store below, for its status and its leadership.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The kind of an object's own `apiVersion` and `kind`.
    pub fn kind_of(&self, object: &Object) -> Option<Arc<Kind>> {
        self.kinds.of(object).cloned()
    }
}
