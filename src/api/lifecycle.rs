//! What the system itself writes into an object when it is created or updated, and what a writer may not touch.
//!
//! Pure: names, uids and times are chosen by the caller, before anything is proposed to the store.

use serde_json::{Map, Value, json};

use super::{Kind, Object, meta, set_defaults};

/// What the caller chose for a new object.
#[derive(Clone, Debug)]
pub struct NewObject<'a> {
    pub now: jiff::Timestamp,
    pub uid: &'a str,
    /// The namespace of the URL; empty for cluster-scoped kinds.
    pub namespace: &'a str,
}

/// Metadata that only the system writes.
const SYSTEM_METADATA: [&str; 4] =
    ["creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation"];

/// Prepares a decoded object for its creation, defaults included: metadata of the system is set, status starts afresh where it
/// is a subresource. The name must be set already. Validate afterwards.
pub fn prepare_create(kind: &Kind, obj: &mut Object, new: &NewObject<'_>) {
    let metadata = meta::metadata_mut(obj);
    for field in SYSTEM_METADATA.into_iter().chain(["selfLink", "resourceVersion"]) {
        metadata.remove(field);
    }
    if kind.has_generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
    meta::set_text(obj, "uid", new.uid);
    meta::set_text(obj, "creationTimestamp", &meta::time(new.now));
    meta::set_text(obj, "namespace", if kind.namespaced { new.namespace } else { "" });
    // A node registers itself with its status; everyone else's begins empty.
    if kind.has_status
        && !kind.is("", "Node")
        && let Some(map) = obj.as_object_mut()
    {
        map.remove("status");
    }
    set_defaults(kind, obj);
    if kind.is("", "Namespace") {
        meta::child_mut(obj, "spec").insert("finalizers".to_owned(), json!(["kubernetes"]));
    }
}

/// Prepares the new state of an object for an update through `subresource` (empty: the object itself), defaults included.
/// Whatever this path may not change is taken from `old`. Validate afterwards; compare with `old` to find that nothing
/// changed.
pub fn prepare_update(kind: &Kind, subresource: &str, old: &Object, new: &mut Object, _now: jiff::Timestamp) {
    match subresource {
        "" => prepare_main(kind, old, new),
        "status" => {
            // Only the status, and the version that the writer saw.
            let status = new.get_mut("status").map_or(Value::Null, Value::take);
            let seen = new["metadata"].get("resourceVersion").cloned();
            *new = old.clone();
            replace(new, "status", status);
            keep_version(new, seen);
        }
        "finalize" => {
            let finalizers = new["spec"].get_mut("finalizers").map_or(Value::Null, Value::take);
            let seen = new["metadata"].get("resourceVersion").cloned();
            *new = old.clone();
            let spec = meta::child_mut(new, "spec");
            match finalizers {
                Value::Array(list) if !list.is_empty() => spec.insert("finalizers".to_owned(), Value::Array(list)),
                _ => spec.remove("finalizers"),
            };
            keep_version(new, seen);
        }
        _ => {
            keep_system_metadata(old, new);
            count_generation(kind, old, new);
        }
    }
}

fn prepare_main(kind: &Kind, old: &Object, new: &mut Object) {
    keep_system_metadata(old, new);
    if kind.has_status {
        replace(new, "status", old.get("status").cloned().unwrap_or_default());
    }
    if kind.is("", "Namespace") {
        // Finalizers of a namespace change through `finalize` only.
        replace(new, "spec", old.get("spec").cloned().unwrap_or_default());
    }
    set_defaults(kind, new);
    count_generation(kind, old, new);
}

/// What identifies the object and what the system wrote stays as it was.
fn keep_system_metadata(old: &Object, new: &mut Object) {
    let empty = Map::new();
    let before = old["metadata"].as_object().unwrap_or(&empty);
    let metadata = meta::metadata_mut(new);
    for field in SYSTEM_METADATA.into_iter().chain(["generateName", "selfLink"]) {
        match before.get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    // An empty name, namespace or uid means the object's own; a different one is refused by validation.
    for field in ["name", "namespace", "uid"] {
        let missing = metadata.get(field).and_then(Value::as_str).unwrap_or_default().is_empty();
        if let (true, Some(value)) = (missing, before.get(field)) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
}

fn count_generation(kind: &Kind, old: &Object, new: &mut Object) {
    if kind.has_generation && old.get("spec") != new.get("spec") {
        let next = meta::generation(old) + 1;
        meta::metadata_mut(new).insert("generation".to_owned(), next.into());
    }
}

fn keep_version(new: &mut Object, seen: Option<Value>) {
    match seen {
        Some(version) => meta::metadata_mut(new).insert("resourceVersion".to_owned(), version),
        None => meta::metadata_mut(new).remove("resourceVersion"),
    };
}

/// Sets a field; null removes it.
fn replace(obj: &mut Object, field: &str, value: Value) {
    if let Some(map) = obj.as_object_mut() {
        if value.is_null() {
            map.remove(field);
        } else {
            map.insert(field.to_owned(), value);
        }
    }
}

/// `base` and five characters that make no words: Kubernetes' `generateName`. A base that would make the name longer than
/// 63 characters is cut.
pub fn generate_name(base: &str, rng: &mut impl rand::Rng) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const SUFFIX_LEN: usize = 5;
    const NAME_LEN_MAX: usize = 63;
    let mut name: String = base.chars().take(NAME_LEN_MAX - SUFFIX_LEN).collect();
    for _ in 0..SUFFIX_LEN {
        name.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    }
    name
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::api::Kinds;

    fn deployment(replicas: i64) -> Object {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}})
    }

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_700_000_000).expect("in range")
    }

    fn created(mut object: Object) -> (Kinds, Object) {
        let kinds = Kinds::builtin();
        let kind = kinds.of(&object).expect("served").clone();
        prepare_create(&kind, &mut object, &NewObject { now: now(), uid: "u1", namespace: "default" });
        (Kinds::clone(&kinds), object)
    }

    #[test]
    fn a_new_object_has_metadata_of_the_system_and_no_status_of_its_writer() {
        let mut object = deployment(2);
        object["status"] = json!({"replicas": 9});
        object["metadata"]["resourceVersion"] = "7".into();
        object["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into();
        let (_, object) = created(object);
        assert_eq!(
            object["metadata"],
            json!({"name": "d", "namespace": "default", "uid": "u1", "generation": 1, "creationTimestamp": "2023-11-14T22:13:20Z"})
        );
        assert_eq!(object["status"], json!({}));
    }

    #[test]
    fn generation_counts_changes_of_the_spec_only() {
        let (kinds, old) = created(deployment(2));
        let kind = kinds.of(&old).expect("served");
        let mut labelled = old.clone();
        labelled["metadata"]["labels"] = json!({"x": "y"});
        labelled["status"] = json!({"replicas": 7});
        prepare_update(kind, "", &old, &mut labelled, now());
        assert_eq!(meta::generation(&labelled), 1);
        assert_eq!(labelled["status"], old["status"], "the main resource does not write status");
        let mut scaled = deployment(3);
        prepare_update(kind, "", &old, &mut scaled, now());
        assert_eq!(meta::generation(&scaled), 2);
        assert_eq!(meta::uid(&scaled), "u1");
        let mut same = deployment(2);
        prepare_update(kind, "", &old, &mut same, now());
        assert_eq!(same, old, "a write of the same manifest changes nothing");
    }

    #[test]
    fn a_status_write_changes_status_only() {
        let (kinds, old) = created(deployment(2));
        let kind = kinds.of(&old).expect("served");
        let mut new = deployment(5);
        new["metadata"]["resourceVersion"] = "12".into();
        new["status"] = json!({"replicas": 2});
        prepare_update(kind, "status", &old, &mut new, now());
        assert_eq!(new["status"], json!({"replicas": 2}));
        assert_eq!((new["spec"].clone(), meta::generation(&new)), (old["spec"].clone(), 1));
        assert_eq!(meta::resource_version(&new), Some(12));
    }

    #[test]
    fn namespaces_are_finalized_through_their_subresource() {
        let (kinds, old) = created(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}));
        let kind = kinds.of(&old).expect("served");
        assert_eq!(old["spec"]["finalizers"], json!(["kubernetes"]));
        assert_eq!(old["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
        let mut new = old.clone();
        new["spec"] = json!({});
        let mut through_main = new.clone();
        prepare_update(kind, "", &old, &mut through_main, now());
        assert_eq!(through_main, old);
        prepare_update(kind, "finalize", &old, &mut new, now());
        assert_eq!(new["spec"], json!({}));
    }

    #[test]
    fn generated_names_are_short_enough_and_differ() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let name = generate_name("web-", &mut rng);
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_ne!(name, generate_name("web-", &mut rng));
        assert_eq!(generate_name(&"x".repeat(200), &mut rng).len(), 63);
    }
}
