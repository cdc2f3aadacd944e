//! The `scale` subresource: `autoscaling/v1` Scale as a view of an object's `spec.replicas`.

use serde_json::{Value, json};

use super::Registry;
use crate::api::{Cause, Kind, Object, Status, meta};

impl Registry {
    /// The `scale` of an object.
    pub async fn scale(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Result<Object, Status> {
        self.get(kind, namespace, name).await.map(|target| of(&target))
    }
}

/// The Scale of a Deployment, ReplicaSet or anything else with `spec.replicas` and `spec.selector`.
pub fn of(target: &Object) -> Object {
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = target["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let mut scale = json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": metadata,
        "spec": {},
        "status": {
            "replicas": target["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector_text(&target["spec"]["selector"]),
        },
    });
    // Go leaves a zero out here, and clients compare.
    if let Some(replicas) = target["spec"]["replicas"].as_i64().filter(|replicas| *replicas != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    scale
}

/// The target as a written Scale wants it.
pub fn apply(_kind: &Kind, current: &Object, scale: &Object) -> Result<Object, Status> {
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => value.as_i64().ok_or_else(|| {
            Status::bad_request(
                "Scale in version \"v1\" cannot be handled as a Scale: spec.replicas must be a whole number",
            )
        })?,
    };
    if replicas < 0 {
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".to_owned(),
        };
        return Err(Status::invalid_kind("autoscaling", "Scale", meta::name(current), vec![cause]));
    }
    let mut next = current.clone();
    // An optimistic precondition of the Scale holds for the target too.
    meta::set_text(&mut next, "resourceVersion", scale["metadata"]["resourceVersion"].as_str().unwrap_or_default());
    if let Some(uid) = scale["metadata"]["uid"].as_str() {
        meta::set_text(&mut next, "uid", uid);
    }
    meta::child_mut(&mut next, "spec").insert("replicas".to_owned(), replicas.into());
    Ok(next)
}

/// A `metav1.LabelSelector` in the form of the `labelSelector` parameter.
fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<String> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        match expression["operator"].as_str().unwrap_or_default() {
            "In" => terms.push(format!("{key} in ({values})")),
            "NotIn" => terms.push(format!("{key} notin ({values})")),
            "Exists" => terms.push(key.to_owned()),
            "DoesNotExist" => terms.push(format!("!{key}")),
            _ => {}
        }
    }
    terms.sort_unstable();
    terms.join(",")
}
