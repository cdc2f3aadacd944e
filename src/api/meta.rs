//! Reading the metadata that every object has.
//!
//! These never fail: a field that is missing, or of a wrong type, reads as empty. Whoever needs to refuse such an object
//! validates it first.

use serde_json::{Map, Value};

use super::Object;

fn text<'a>(obj: &'a Object, field: &str) -> &'a str {
    obj["metadata"][field].as_str().unwrap_or_default()
}

fn map<'a>(obj: &'a Object, field: &str) -> Option<&'a Map<String, Value>> {
    obj["metadata"][field].as_object()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn api_version(obj: &Object) -> &str {
    obj["apiVersion"].as_str().unwrap_or_default()
}

pub fn kind(obj: &Object) -> &str {
    obj["kind"].as_str().unwrap_or_default()
}

pub fn name(obj: &Object) -> &str {
    text(obj, "name")
}

pub fn generate_name(obj: &Object) -> &str {
    text(obj, "generateName")
}

/// Empty for cluster-scoped objects.
pub fn namespace(obj: &Object) -> &str {
    text(obj, "namespace")
}

pub fn uid(obj: &Object) -> &str {
    text(obj, "uid")
}

/// The revision of the object's last write, if it has one and it is a number.
pub fn resource_version(obj: &Object) -> Option<u64> {
    text(obj, "resourceVersion").parse().ok()
}

pub fn generation(obj: &Object) -> i64 {
    obj["metadata"]["generation"].as_i64().unwrap_or_default()
}

pub fn labels(obj: &Object) -> Option<&Map<String, Value>> {
    map(obj, "labels")
}

pub fn label<'a>(obj: &'a Object, key: &str) -> Option<&'a str> {
    labels(obj)?.get(key)?.as_str()
}

pub fn annotations(obj: &Object) -> Option<&Map<String, Value>> {
    map(obj, "annotations")
}

pub fn annotation<'a>(obj: &'a Object, key: &str) -> Option<&'a str> {
    annotations(obj)?.get(key)?.as_str()
}

pub fn owner_references(obj: &Object) -> &[Value] {
    items(&obj["metadata"]["ownerReferences"])
}

/// The owner reference with `controller: true`.
pub fn controller(obj: &Object) -> Option<&Value> {
    owner_references(obj).iter().find(|owner| owner["controller"] == Value::Bool(true))
}

pub fn finalizers(obj: &Object) -> Vec<&str> {
    items(&obj["metadata"]["finalizers"]).iter().filter_map(Value::as_str).collect()
}

pub fn creation_timestamp(obj: &Object) -> Option<jiff::Timestamp> {
    text(obj, "creationTimestamp").parse().ok()
}

/// Set once the object is being deleted and something (a finalizer, a grace period) still holds it.
pub fn deletion_timestamp(obj: &Object) -> Option<jiff::Timestamp> {
    text(obj, "deletionTimestamp").parse().ok()
}

pub fn is_terminating(obj: &Object) -> bool {
    !text(obj, "deletionTimestamp").is_empty()
}

/// `obj.metadata` as a map, made if it is missing or not a map.
pub fn metadata_mut(obj: &mut Object) -> &mut Map<String, Value> {
    child_mut(obj, "metadata")
}

/// `obj[field]` as a map, made if it is missing or not a map.
pub fn child_mut<'a>(obj: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !obj.is_object() {
        *obj = Value::Object(Map::new());
    }
    let slot = &mut obj[field];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("invariant: the slot was just made a map"),
    }
}

/// Sets `metadata.<field>`; an empty text removes it.
pub fn set_text(obj: &mut Object, field: &str, value: &str) {
    let metadata = metadata_mut(obj);
    if value.is_empty() {
        metadata.remove(field);
    } else {
        metadata.insert(field.to_owned(), Value::String(value.to_owned()));
    }
}

/// A time as `metav1.Time` writes it: UTC, whole seconds.
pub fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as `metav1.MicroTime` writes it: UTC, six digits below the second.
pub fn micro_time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
