//! What `apply` sends: the patch from what was applied last, what is wanted, and what is there.
//!
//! ```text
//!   last applied ---- gone from wanted ----> delete (null, $patch: delete)
//!   wanted ---------- differs from live ---> set
//!   live ------------ in neither ----------> left alone: others own it
//! ```
//!
//! Pure. [`strategic`] follows kubectl's three-way strategic merge
//! (k8s.io/apimachinery/pkg/util/strategicpatch, `CreateThreeWayMergePatch`), with Kubernetes' merge keys; [`merge`] is
//! RFC 7386's, for kinds whose lists have no keys the client knows.

use serde_json::{Map, Value, json};

/// Annotation that holds what was applied last (kubectl's).
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListType {
    /// As a whole.
    Atomic,
    /// By this field of its elements.
    Map(&'static str),
    /// As a set of scalars.
    Set,
}

/// Kubernetes' `x-kubernetes-patch-merge-key`s: the list's name, the name of what holds it (any if empty), the key.
const MERGE_KEYS: &[(&str, &str, &str)] = &[
    ("containers", "", "name"),
    ("initContainers", "", "name"),
    ("ephemeralContainers", "", "name"),
    ("volumes", "", "name"),
    ("volumeMounts", "", "mountPath"),
    ("volumeDevices", "", "devicePath"),
    ("env", "", "name"),
    ("imagePullSecrets", "", "name"),
    ("secrets", "", "name"),
    ("hostAliases", "", "ip"),
    ("resourceClaims", "", "name"),
    ("topologySpreadConstraints", "", "topologyKey"),
    ("ownerReferences", "", "uid"),
    ("conditions", "status", "type"),
    ("addresses", "status", "type"),
    ("podIPs", "status", "ip"),
    ("webhooks", "", "name"),
    ("ports", "containers", "containerPort"),
    ("ports", "initContainers", "containerPort"),
    ("ports", "ephemeralContainers", "containerPort"),
    ("ports", "spec", "port"),
];

fn list_type(name: &str, holder: &str) -> ListType {
    if name == "finalizers" && holder == "metadata" {
        return ListType::Set;
    }
    MERGE_KEYS
        .iter()
        .find(|(list, of, _)| *list == name && (of.is_empty() || *of == holder))
        .map_or(ListType::Atomic, |(_, _, key)| ListType::Map(key))
}

/// The object with [`LAST_APPLIED`] set to what the user gave.
pub fn with_last_applied(object: &Value) -> Value {
    let mut plain = object.clone();
    if let Some(metadata) = plain.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if annotations.is_null() {
            *annotations = json!({});
        }
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.remove(LAST_APPLIED);
        }
    }
    // kubectl encodes with sorted keys and a line feed at the end.
    let text = format!("{}\n", canonical(&plain));
    if let Some(annotations) = plain.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.insert(LAST_APPLIED.into(), text.into());
    }
    plain
}

/// What was applied last, from the live object.
pub fn last_applied(live: &Value) -> Option<Value> {
    let text = live.pointer("/metadata/annotations")?.get(LAST_APPLIED)?.as_str()?;
    serde_json::from_str(text).ok()
}

fn canonical(value: &Value) -> String {
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    sorted.to_string()
}

/// The strategic merge patch; `None` when there is nothing to change.
pub fn strategic(last: Option<&Value>, wanted: &Value, live: &Value) -> Option<Value> {
    map_patch(last, wanted, live, "", true)
}

/// The merge patch (RFC 7386); `None` when there is nothing to change.
pub fn merge(last: Option<&Value>, wanted: &Value, live: &Value) -> Option<Value> {
    map_patch(last, wanted, live, "", false)
}

fn map_patch(last: Option<&Value>, wanted: &Value, live: &Value, holder: &str, by_key: bool) -> Option<Value> {
    let (Some(wanted), Some(live)) = (wanted.as_object(), live.as_object()) else {
        return (wanted != live).then(|| wanted.clone());
    };
    let mut patch = Map::new();
    for (key, value) in wanted {
        let there = live.get(key).filter(|v| !v.is_null());
        let before = last.and_then(|l| l.get(key));
        match (value, there) {
            (Value::Null, None) => {}
            (Value::Null, Some(_)) => {
                patch.insert(key.clone(), Value::Null);
            }
            // Nulls inside what is new would be sent as deletions of what is not there: harmless, and left as they are.
            (_, None) => {
                patch.insert(key.clone(), value.clone());
            }
            (Value::Object(_), Some(there @ Value::Object(_))) => {
                if let Some(inner) = map_patch(before, value, there, key, by_key) {
                    patch.insert(key.clone(), inner);
                }
            }
            (Value::Array(items), Some(Value::Array(there))) if by_key => {
                list_patch(&mut patch, key, holder, before.and_then(Value::as_array), items, there);
            }
            (_, Some(there)) if value != there => {
                patch.insert(key.clone(), value.clone());
            }
            _ => {}
        }
    }
    if let Some(last) = last.and_then(Value::as_object) {
        for key in last.keys() {
            if !wanted.contains_key(key) && live.get(key).is_some_and(|v| !v.is_null()) {
                patch.insert(key.clone(), Value::Null);
            }
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn list_patch(
    patch: &mut Map<String, Value>,
    name: &str,
    holder: &str,
    last: Option<&Vec<Value>>,
    wanted: &[Value],
    live: &[Value],
) {
    match list_type(name, holder) {
        ListType::Map(key)
            if wanted.iter().chain(live).chain(last.into_iter().flatten()).all(|e| e.get(key).is_some()) =>
        {
            keyed_list_patch(patch, name, key, last, wanted, live);
        }
        ListType::Set => {
            let new: Vec<Value> = wanted.iter().filter(|e| !live.contains(e)).cloned().collect();
            let gone: Vec<Value> =
                last.into_iter().flatten().filter(|e| !wanted.contains(e) && live.contains(e)).cloned().collect();
            if !new.is_empty() {
                patch.insert(name.to_owned(), new.into());
            }
            if !gone.is_empty() {
                patch.insert(format!("$deleteFromPrimitiveList/{name}"), gone.into());
            }
        }
        // A list by key whose elements lack it cannot be merged.
        _ if wanted != live => {
            patch.insert(name.to_owned(), wanted.to_vec().into());
        }
        _ => {}
    }
}

fn keyed_list_patch(
    patch: &mut Map<String, Value>,
    name: &str,
    key: &str,
    last: Option<&Vec<Value>>,
    wanted: &[Value],
    live: &[Value],
) {
    let find = |list: &[Value], element: &Value| list.iter().find(|e| e.get(key) == element.get(key)).cloned();
    let mut elements = Vec::new();
    for element in wanted {
        match find(live, element) {
            None => elements.push(element.clone()),
            Some(there) => {
                let before = last.and_then(|l| find(l, element));
                if let Some(mut inner) = map_patch(before.as_ref(), element, &there, name, true) {
                    inner[key] = element[key].clone();
                    elements.push(inner);
                }
            }
        }
    }
    for element in last.into_iter().flatten() {
        if find(wanted, element).is_none() && find(live, element).is_some() {
            elements.push(json!({"$patch": "delete", key: element[key]}));
        }
    }
    // The order of those that both have; others may have added elements between them.
    let order = |list: &[Value], others: &[Value]| -> Vec<Value> {
        list.iter().filter(|e| find(others, e).is_some()).map(|e| e[key].clone()).collect()
    };
    if elements.is_empty() && order(wanted, live) == order(live, wanted) {
        return;
    }
    let order: Vec<Value> = wanted.iter().map(|e| json!({key: e[key]})).collect();
    patch.insert(format!("$setElementOrder/{name}"), order.into());
    if !elements.is_empty() {
        patch.insert(name.to_owned(), elements.into());
    }
}

#[cfg(test)]
#[path = "three_way_test.rs"]
mod tests;
