//! Whether an object follows the rules of its kind, in Kubernetes' words: clients show them, and some match on them.
//!
//! Run on conformed and defaulted objects, so types are right and defaults are there. All problems are reported, not only
//! the first.

mod apps;
mod meta;
mod names;
mod pod;

use serde_json::Value;

pub use names::{dns_label, dns_subdomain, label_key, label_value, qualified_name};

use super::{Cause, Kind, Object};

/// Why this object may not be created; empty if it may. Run on a defaulted object that has its name.
pub fn validate_create(kind: &Kind, obj: &Object) -> Vec<Cause> {
    let mut causes = Causes::default();
    meta::object(kind, obj, &mut causes);
    body(kind, obj, &mut causes);
    causes.list
}

/// Why this update is not allowed; empty if it is. Run on defaulted objects.
pub fn validate_update(kind: &Kind, old: &Object, new: &Object) -> Vec<Cause> {
    let mut causes = Causes::default();
    meta::object(kind, new, &mut causes);
    meta::update(old, new, &mut causes);
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::update(old, new, &mut causes),
        ("apps", "Deployment" | "ReplicaSet") => {
            body(kind, new, &mut causes);
            apps::selector_update(old, new, &mut causes);
        }
        ("", "ConfigMap") => {
            body(kind, new, &mut causes);
            immutable(old, new, &["data", "binaryData"], &mut causes);
        }
        ("", "Secret") => {
            if old["type"] != new["type"] {
                causes.invalid("type", &new["type"], "field is immutable");
            }
            body(kind, new, &mut causes);
            immutable(old, new, &["data"], &mut causes);
        }
        _ => body(kind, new, &mut causes),
    }
    causes.list
}

fn body(kind: &Kind, obj: &Object, causes: &mut Causes) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::pod(obj, causes),
        ("apps", "Deployment") => apps::deployment(obj, causes),
        ("apps", "ReplicaSet") => apps::replica_set(obj, causes),
        ("", "ConfigMap") => config_map(obj, causes),
        ("", "Secret") => secret(obj, causes),
        ("", "Node") => meta::taints(&obj["spec"]["taints"], "spec.taints", causes),
        ("", "Event") => event(obj, causes),
        ("coordination.k8s.io", "Lease") => lease(obj, causes),
        _ => {}
    }
}

/// The problems found so far.
#[derive(Default)]
pub(super) struct Causes {
    list: Vec<Cause>,
}

impl Causes {
    fn push(&mut self, reason: &str, field: impl Into<String>, message: String) {
        self.list.push(Cause { reason: reason.to_owned(), message, field: field.into() });
    }

    fn required(&mut self, field: impl Into<String>, why: &str) {
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        self.push("FieldValueRequired", field, message);
    }

    fn invalid(&mut self, field: impl Into<String>, value: &Value, why: &str) {
        self.push("FieldValueInvalid", field, format!("Invalid value: {value}: {why}"));
    }

    fn forbidden(&mut self, field: impl Into<String>, why: &str) {
        self.push("FieldValueForbidden", field, format!("Forbidden: {why}"));
    }

    fn duplicate(&mut self, field: impl Into<String>, value: &Value) {
        self.push("FieldValueDuplicate", field, format!("Duplicate value: {value}"));
    }

    fn not_found(&mut self, field: impl Into<String>, value: &Value) {
        self.push("FieldValueNotFound", field, format!("Not found: {value}"));
    }

    fn too_long(&mut self, field: impl Into<String>, max: usize) {
        self.push("FieldValueTooLong", field, format!("Too long: may not be more than {max} bytes"));
    }

    fn not_supported(&mut self, field: impl AsRef<str>, value: &str, supported: &[&str]) {
        self.list.push(not_supported(field.as_ref(), value, supported));
    }

    /// A text that must be one of `supported`; an empty one is a missing one.
    fn one_of(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        let field = field.into();
        match value.as_str().unwrap_or_default() {
            "" => self.required(field, ""),
            text if supported.contains(&text) => {}
            text => self.not_supported(field, text, supported),
        }
    }

    /// A whole number that must not be negative; nothing is fine.
    fn not_negative(&mut self, field: impl Into<String>, value: &Value) {
        if value.as_i64().is_some_and(|n| n < 0) {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }
}

/// A value that is none of those allowed.
pub fn not_supported(field: &str, value: &str, supported: &[&str]) -> Cause {
    let list: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
    Cause {
        reason: "FieldValueNotSupported".to_owned(),
        message: format!("Unsupported value: {value:?}: supported values: {}", list.join(", ")),
        field: field.to_owned(),
    }
}

/// The items of a list, none if it is missing.
fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Largest sum of a ConfigMap's or Secret's values: 1 MiB.
const DATA_LEN_MAX: usize = 1 << 20;

fn data_keys(obj: &Object, field: &str, causes: &mut Causes) -> usize {
    let mut size = 0;
    for (key, value) in obj[field].as_object().into_iter().flatten() {
        if let Err(why) = names::config_key(key) {
            causes.invalid(format!("{field}[{key}]"), &Value::from(key.as_str()), &why);
        }
        size += value.as_str().map_or(0, str::len);
    }
    size
}

fn config_map(obj: &Object, causes: &mut Causes) {
    let size = data_keys(obj, "data", causes) + data_keys(obj, "binaryData", causes);
    for key in obj["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
        if obj["binaryData"].get(key).is_some() {
            causes.invalid(
                format!("data[{key}]"),
                &Value::from(key.as_str()),
                "duplicate of key present in binaryData",
            );
        }
    }
    if size > DATA_LEN_MAX {
        causes.too_long("", DATA_LEN_MAX);
    }
}

fn secret(obj: &Object, causes: &mut Causes) {
    // Base64 holds three bytes in four characters.
    if data_keys(obj, "data", causes) / 4 * 3 > DATA_LEN_MAX {
        causes.too_long("data", DATA_LEN_MAX);
    }
    let needed: &[&str] = match text(obj, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/basic-auth" => {
            if obj["data"].get("username").is_none() && obj["data"].get("password").is_none() {
                causes.required("data[username]", "");
                causes.required("data[password]", "");
            }
            &[]
        }
        _ => &[],
    };
    for key in needed {
        if obj["data"].get(*key).is_none() {
            causes.required(format!("data[{key}]"), "");
        }
    }
}

/// Once `immutable` is set, neither it nor the data changes.
fn immutable(old: &Object, new: &Object, fields: &[&str], causes: &mut Causes) {
    if old["immutable"] != Value::Bool(true) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"] != Value::Bool(true) {
        causes.forbidden("immutable", why);
    }
    for field in fields {
        if old[*field] != new[*field] {
            causes.forbidden(*field, why);
        }
    }
}

fn event(obj: &Object, causes: &mut Causes) {
    let namespace = super::meta::namespace(obj);
    let about = text(&obj["involvedObject"], "namespace");
    // Events about cluster-scoped objects live in `default`.
    let fits = if about.is_empty() { matches!(namespace, "default" | "kube-system") } else { about == namespace };
    if !fits {
        causes.invalid("involvedObject.namespace", &about.into(), "does not match event.namespace");
    }
}

fn lease(obj: &Object, causes: &mut Causes) {
    let spec = &obj["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        causes.invalid("spec.leaseDurationSeconds", &spec["leaseDurationSeconds"], "must be greater than 0");
    }
    causes.not_negative("spec.leaseTransitions", &spec["leaseTransitions"]);
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod validate_test;
