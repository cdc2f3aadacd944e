//! Pod templates, their hash, and the ReplicaSet that stands for one.
//!
//! Pure. The hash is ours, not Kubernetes' (which hashes a Go dump): FNV-1a over canonical JSON, written in the same
//! alphabet. It only has to be stable, since a ReplicaSet is recognised by comparing templates.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::controllers::ownership::controller_reference;

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a deployment that its ReplicaSets do not take over.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];
/// Kubernetes' bound on the text of the revision history.
const HISTORY_LENGTH_MAX: usize = 2000;
/// No vowels and nothing that looks like another: no word can appear in a name.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether two templates make the same pods. The hash that a ReplicaSet adds does not count.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    a.spec == b.spec && bare_meta(a) == bare_meta(b)
}

/// The metadata without the hash, and with nothing where there is an empty map.
fn bare_meta(template: &PodTemplateSpec) -> ObjectMeta {
    let mut meta = template.metadata.clone().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.filter(|annotations| !annotations.is_empty());
    meta
}

/// The hash that names a template's ReplicaSet. `collisions` is the deployment's `collisionCount`.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let bare = PodTemplateSpec { metadata: Some(bare_meta(template)), spec: template.spec.clone() };
    let json = serde_json::to_value(&bare).unwrap_or_default();
    let mut hash = Fnv(0x811c_9dc5);
    hash.value(&json);
    if let Some(collisions) = collisions {
        hash.bytes(&collisions.to_le_bytes());
    }
    hash.0.to_string().bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

/// FNV-1a, 32 bits.
struct Fnv(u32);

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    /// Each kind of value starts with a byte of its own, and maps go by key: no two values are written alike.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(b"0"),
            Value::Bool(flag) => self.bytes(if *flag { b"t" } else { b"f" }),
            Value::Number(number) => {
                self.bytes(b"n");
                self.bytes(number.to_string().as_bytes());
                self.bytes(b";");
            }
            Value::String(text) => {
                self.bytes(b"s");
                self.bytes(&(text.len() as u64).to_le_bytes());
                self.bytes(text.as_bytes());
            }
            Value::Array(items) => {
                self.bytes(b"[");
                items.iter().for_each(|item| self.value(item));
                self.bytes(b"]");
            }
            Value::Object(fields) => {
                self.bytes(b"{");
                for (key, field) in fields.iter().collect::<BTreeMap<_, _>>() {
                    self.bytes(&(key.len() as u64).to_le_bytes());
                    self.bytes(key.as_bytes());
                    self.value(field);
                }
                self.bytes(b"}");
            }
        }
    }
}

/// The ReplicaSet for the deployment's template, without replicas and annotations.
pub fn new_replica_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference("apps/v1", "Deployment", &deployment.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(0),
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Sets an annotation; true when that changed something.
pub fn annotate(meta: &mut ObjectMeta, key: &str, value: String) -> bool {
    if annotation(meta, key) == Some(&value) {
        return false;
    }
    meta.annotations.get_or_insert_default().insert(key.to_owned(), value);
    true
}

/// The revision of a ReplicaSet or deployment; 0 when it has none.
pub fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub fn replicas_annotation(meta: &ObjectMeta, key: &str) -> Option<i32> {
    annotation(meta, key)?.parse().ok()
}

/// Writes down for how many replicas the set was scaled: what proportional scaling goes by.
pub fn annotate_replicas(set: &mut ReplicaSet, desired: i32, most: i32) -> bool {
    let desired = annotate(&mut set.metadata, DESIRED_REPLICAS, desired.to_string());
    annotate(&mut set.metadata, MAX_REPLICAS, most.to_string()) || desired
}

/// Hands the deployment's annotations and the revision on to its current ReplicaSet. A set that comes back into use keeps
/// its former revisions in a list. True when that changed something.
pub fn annotate_current(deployment: &Deployment, set: &mut ReplicaSet, new_revision: i64) -> bool {
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN_ANNOTATIONS.contains(&key.as_str()) {
            changed |= annotate(&mut set.metadata, key, value.clone());
        }
    }
    let old = annotation(&set.metadata, REVISION).map(str::to_owned);
    let old_revision = match old.as_deref() {
        None | Some("") => 0,
        // Somebody else's word is left alone.
        Some(text) => match text.parse::<i64>() {
            Ok(revision) => revision,
            Err(_) => return changed,
        },
    };
    if old_revision >= new_revision {
        return changed;
    }
    annotate(&mut set.metadata, REVISION, new_revision.to_string());
    if let Some(old) = old.filter(|old| !old.is_empty()) {
        let history = match annotation(&set.metadata, REVISION_HISTORY).unwrap_or_default() {
            "" => old,
            history => bounded(format!("{history},{old}")),
        };
        annotate(&mut set.metadata, REVISION_HISTORY, history);
    }
    true
}

/// Drops the oldest revisions until the text is short enough.
fn bounded(mut history: String) -> String {
    while history.len() > HISTORY_LENGTH_MAX {
        match history.split_once(',') {
            Some((_, rest)) => history = rest.to_owned(),
            None => break,
        }
    }
    history
}
