//! Between objects and the bytes of the store, and between the store's errors and Kubernetes' statuses.

use bytes::Bytes;

use crate::api::{Kind, Object, Status, meta};
use crate::store::{KeyValue, StoreError, WatchError};

/// Seconds after which a client should repeat what failed because no leader could be reached.
const RETRY_AFTER_S: u32 = 1;
/// The same for a full disk: a person has to do something first.
const RETRY_AFTER_DISK_FULL_S: u32 = 10;

/// The bytes to store: canonical JSON (sorted keys), without `resourceVersion`.
pub fn encode(object: &Object) -> Result<Bytes, Status> {
    let encoded = if object["metadata"].get("resourceVersion").is_some() {
        let mut bare = object.clone();
        meta::metadata_mut(&mut bare).remove("resourceVersion");
        serde_json::to_vec(&bare)
    } else {
        serde_json::to_vec(object)
    };
    encoded.map(Bytes::from).map_err(Status::internal)
}

/// The object of a key, with the key's revision as its `resourceVersion`.
pub fn decode(kv: &KeyValue) -> Result<Object, Status> {
    decode_at(kv, kv.mod_revision)
}

/// As [`decode`], but with another revision: a deleted object carries that of its deletion.
pub fn decode_at(kv: &KeyValue, revision: u64) -> Result<Object, Status> {
    let mut object: Object = serde_json::from_slice(&kv.value)
        .map_err(|e| Status::internal(format!("the store holds no JSON under {}: {e}", kv.key)))?;
    meta::set_text(&mut object, "resourceVersion", &revision.to_string());
    Ok(object)
}

/// What a refusal of the store means to a client.
pub fn store_status(error: StoreError) -> Status {
    match error {
        StoreError::Unavailable { .. } | StoreError::Closed | StoreError::Corrupt { .. } => {
            Status::service_unavailable(error.to_string(), RETRY_AFTER_S)
        }
        StoreError::DiskFull { .. } => Status::service_unavailable(error.to_string(), RETRY_AFTER_DISK_FULL_S),
        StoreError::Unknown { .. } => Status::timeout(error, RETRY_AFTER_S),
        StoreError::Compacted { wanted, oldest } => Status::gone(wanted, oldest),
        StoreError::FutureRevision { wanted, current } => Status::resource_version_too_large(wanted, current),
        StoreError::TooLarge { limit, .. } => Status::request_entity_too_large(limit),
        StoreError::Invalid { .. } => Status::internal(error),
    }
}

pub fn watch_status(error: WatchError) -> Status {
    match error {
        WatchError::Lagged { wanted, oldest } | WatchError::Compacted { wanted, oldest } => {
            Status::gone(wanted, oldest)
        }
        WatchError::Closed => Status::service_unavailable(error.to_string(), RETRY_AFTER_S),
    }
}

/// The keys of all objects of `kind`, or of those in one namespace.
pub fn prefix(kind: &Kind, namespace: Option<&str>) -> String {
    match namespace.filter(|_| kind.namespaced) {
        Some(namespace) => kind.storage_key(namespace, ""),
        None => kind.storage_prefix(),
    }
}

/// The key of one object; `namespace` is ignored for cluster-scoped kinds.
pub fn key(kind: &Kind, namespace: Option<&str>, name: &str) -> String {
    kind.storage_key(namespace.unwrap_or_default(), name)
}
