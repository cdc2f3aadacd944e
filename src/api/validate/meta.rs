//! Rules of metadata, and of the small types that many kinds use: selectors, taints, tolerations.

use serde_json::Value;

use super::{Causes, items, names, text};
use crate::api::meta as metadata;
use crate::api::{Kind, Object};

/// Largest sum of all annotations: 256 KiB.
const ANNOTATIONS_LEN_MAX: usize = 256 << 10;

pub(super) fn object(kind: &Kind, obj: &Object, causes: &mut Causes) {
    let name = metadata::name(obj);
    let check = |text: &str| match kind.kind.as_str() {
        "Namespace" => names::dns_label(text),
        _ => names::dns_subdomain(text),
    };
    let prefix = metadata::generate_name(obj);
    if !prefix.is_empty()
        && let Err(why) = check(&format!("{}a", prefix.trim_end_matches('-')))
    {
        causes.invalid("metadata.generateName", &prefix.into(), &why);
    }
    if name.is_empty() {
        causes.required("metadata.name", "name or generateName is required");
    } else if let Err(why) = check(name) {
        causes.invalid("metadata.name", &name.into(), &why);
    }
    let namespace = metadata::namespace(obj);
    if kind.namespaced {
        if namespace.is_empty() {
            causes.required("metadata.namespace", "");
        } else if let Err(why) = names::dns_label(namespace) {
            causes.invalid("metadata.namespace", &namespace.into(), &why);
        }
    } else if !namespace.is_empty() {
        causes.forbidden("metadata.namespace", "not allowed on this type");
    }
    labels(&obj["metadata"]["labels"], "metadata.labels", causes);
    annotations(&obj["metadata"]["annotations"], "metadata.annotations", causes);
    owners(obj, causes);
    for finalizer in metadata::finalizers(obj) {
        if let Err(why) = names::qualified_name(finalizer) {
            causes.invalid("metadata.finalizers", &finalizer.into(), &why);
        } else if !finalizer.contains('/') && !matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes") {
            causes.invalid(
                "metadata.finalizers",
                &finalizer.into(),
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}

fn owners(obj: &Object, causes: &mut Causes) {
    let mut controllers: Vec<String> = Vec::new();
    for (at, owner) in metadata::owner_references(obj).iter().enumerate() {
        let path = format!("metadata.ownerReferences[{at}]");
        let version_of = |api_version: &str| api_version.rsplit('/').next().unwrap_or_default().is_empty();
        if version_of(text(owner, "apiVersion")) {
            causes.invalid(format!("{path}.apiVersion"), &owner["apiVersion"], "version must not be empty");
        }
        for field in ["kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                causes.invalid(format!("{path}.{field}"), &"".into(), "must not be empty");
            }
        }
        if owner["controller"] == Value::Bool(true) {
            controllers.push(format!("{}/{}", text(owner, "kind"), text(owner, "name")));
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        causes.invalid("metadata.ownerReferences", &obj["metadata"]["ownerReferences"], &why);
    }
}

pub(super) fn update(old: &Object, new: &Object, causes: &mut Causes) {
    for field in ["name", "namespace", "uid"] {
        let (before, after) = (&old["metadata"][field], &new["metadata"][field]);
        if before != after {
            causes.invalid(format!("metadata.{field}"), after, "field is immutable");
        }
    }
    // What is being deleted can lose finalizers, but not gain them.
    if metadata::is_terminating(old) {
        let before = metadata::finalizers(old);
        let added: Vec<&str> = metadata::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            causes.forbidden("metadata.finalizers", &why);
        }
    }
}

pub(super) fn labels(labels: &Value, path: &str, causes: &mut Causes) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Err(why) = names::label_key(key) {
            causes.invalid(path, &key.as_str().into(), &why);
        }
        if let Err(why) = names::label_value(value.as_str().unwrap_or_default()) {
            causes.invalid(path, value, &why);
        }
    }
}

pub(super) fn annotations(annotations: &Value, path: &str, causes: &mut Causes) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        // The key of an annotation may have upper case in its prefix.
        if let Err(why) = names::qualified_name(&key.to_ascii_lowercase()) {
            causes.invalid(path, &key.as_str().into(), &why);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LEN_MAX {
        causes.too_long(path, ANNOTATIONS_LEN_MAX);
    }
}

/// A `metav1.LabelSelector`.
pub(super) fn label_selector(selector: &Value, path: &str, causes: &mut Causes) {
    labels(&selector["matchLabels"], &format!("{path}.matchLabels"), causes);
    for (at, expression) in items(&selector["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let values = items(&expression["values"]);
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                causes.required(format!("{path}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                causes.forbidden(
                    format!("{path}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => causes.invalid(format!("{path}.operator"), &expression["operator"], "not a valid selector operator"),
        }
        if let Err(why) = names::label_key(text(expression, "key")) {
            causes.invalid(format!("{path}.key"), &expression["key"], &why);
        }
        for (at, value) in values.iter().enumerate() {
            if let Err(why) = names::label_value(value.as_str().unwrap_or_default()) {
                causes.invalid(format!("{path}.values[{at}]"), value, &why);
            }
        }
    }
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

pub(super) fn taints(taints: &Value, path: &str, causes: &mut Causes) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (at, taint) in items(taints).iter().enumerate() {
        let path = format!("{path}[{at}]");
        if let Err(why) = names::qualified_name(text(taint, "key")) {
            causes.invalid(format!("{path}.key"), &taint["key"], &why);
        }
        if let Err(why) = names::label_value(text(taint, "value")) {
            causes.invalid(format!("{path}.value"), &taint["value"], &why);
        }
        causes.one_of(format!("{path}.effect"), &taint["effect"], &EFFECTS);
        let id = (text(taint, "key"), text(taint, "effect"));
        if seen.contains(&id) {
            causes.duplicate(&path, taint);
        }
        seen.push(id);
    }
}

pub(super) fn tolerations(tolerations: &Value, path: &str, causes: &mut Causes) {
    for (at, toleration) in items(tolerations).iter().enumerate() {
        let path = format!("{path}[{at}]");
        let (key, value) = (text(toleration, "key"), text(toleration, "value"));
        let (operator, effect) = (text(toleration, "operator"), text(toleration, "effect"));
        if !key.is_empty()
            && let Err(why) = names::qualified_name(key)
        {
            causes.invalid(format!("{path}.key"), &key.into(), &why);
        }
        if key.is_empty() && operator != "Exists" {
            causes.invalid(
                format!("{path}.operator"),
                &operator.into(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            causes.invalid(
                format!("{path}.effect"),
                &effect.into(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "" | "Equal" => {
                if let Err(why) = names::label_value(value) {
                    causes.invalid(format!("{path}.operator"), &value.into(), &why);
                }
            }
            "Exists" if !value.is_empty() => {
                causes.invalid(
                    format!("{path}.operator"),
                    toleration,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" => {}
            other => causes.not_supported(format!("{path}.operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            causes.not_supported(format!("{path}.effect"), effect, &EFFECTS);
        }
    }
}
