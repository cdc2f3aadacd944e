//! Compares with the recorded answers of a real Kubernetes, where they lie beside this repository (`../shared/oracle`).
//! They are no part of it: without them these tests say that they were skipped.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{FieldValidation, Kinds, NewObject, Object, Status, decode, meta, prepare_create, validate_create};

fn recorded(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/oracle").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

fn read(path: &PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON")
}

fn create(
    kinds: &Kinds,
    body: &[u8],
    kind: &super::Kind,
    validation: FieldValidation,
    namespace: &str,
) -> Result<Object, Status> {
    let mut object = decode(kinds, None, body, Some(kind), validation)?.object;
    prepare_create(kind, &mut object, &NewObject { now: jiff::Timestamp::UNIX_EPOCH, uid: "u", namespace });
    let causes = validate_create(kind, &object);
    if causes.is_empty() { Ok(object) } else { Err(Status::invalid(kind, meta::name(&object), causes)) }
}

/// What differs from Kubernetes by design, or from run to run.
fn comparable(mut object: Object) -> Object {
    let metadata = meta::metadata_mut(&mut object);
    for field in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
        metadata.remove(field);
    }
    let token = |item: &Value| item["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-"));
    let default_toleration = |item: &Value| item["tolerationSeconds"] == 300;
    strip(&mut object, &token);
    strip(&mut object, &default_toleration);
    object
}

/// Removes list items, and lists that become empty.
fn strip(value: &mut Value, doomed: &dyn Fn(&Value) -> bool) {
    match value {
        Value::Object(map) => {
            for value in map.values_mut() {
                strip(value, doomed);
            }
            map.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
        }
        Value::Array(items) => {
            items.retain(|item| !doomed(item));
            items.iter_mut().for_each(|item| strip(item, doomed));
        }
        _ => {}
    }
}

#[test]
fn new_objects_equal_those_of_kubernetes() {
    let Some(folder) = recorded("defaults") else { return };
    let kinds = Kinds::builtin();
    let mut differences = Vec::new();
    let mut compared = 0;
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let case = read(&entry.path());
        let Some(kind) = kinds.of(&case["input"]) else { continue };
        let body = case["input"].to_string();
        match create(&kinds, body.as_bytes(), kind, FieldValidation::Strict, "default") {
            Ok(object) => {
                compared += 1;
                let (ours, theirs) = (comparable(object), comparable(case["created"].clone()));
                if ours != theirs {
                    differences.push(format!("{:?}\n  ours   {ours}\n  theirs {theirs}", entry.file_name()));
                }
            }
            Err(status) => differences.push(format!("{:?}: refused: {status}", entry.file_name())),
        }
    }
    assert!(compared > 10, "only {compared} compared");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn refusals_equal_those_of_kubernetes() {
    let Some(path) = recorded("requests.json") else { return };
    let kinds = Kinds::builtin();
    let mut differences = Vec::new();
    let mut compared = 0;
    for case in read(&path).as_array().expect("a list") {
        let request = &case["request"];
        let full = request["path"].as_str().expect("a path");
        let (path, query) = full.split_once('?').unwrap_or((full, ""));
        let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let kind = match words[..] {
            ["api", version, "namespaces", _, plural] => kinds.by_resource("", version, plural),
            ["apis", group, version, "namespaces", _, plural] => kinds.by_resource(group, version, plural),
            _ => None,
        };
        let (Some(kind), "POST", true) =
            (kind, request["method"].as_str().unwrap_or_default(), request["ct"].is_null())
        else {
            continue;
        };
        // What other objects decide is the registry's.
        let name = case["case"].as_str().unwrap_or_default();
        if name.contains("priorityclass")
            || name.contains("serviceaccount")
            || name.contains("runtimeclass")
            || name.contains("namespace")
            || name == "already exists"
        {
            continue;
        }
        let body = match &request["body"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let validation = if query.contains("Strict") { FieldValidation::Strict } else { FieldValidation::Warn };
        compared += 1;
        let theirs = case["response"].clone();
        let ours = match create(&kinds, body.as_bytes(), kind, validation, "default") {
            Ok(object) => json!({"kind": object["kind"]}),
            Err(status) => status.to_value(),
        };
        // Kubernetes names its source file here.
        let clean = |mut status: Value| {
            if let Some(message) = status["message"].as_str() {
                status["message"] = message.split(" in scheme ").next().unwrap_or_default().into();
            }
            status
        };
        let same =
            if theirs["kind"] == "Status" { clean(theirs.clone()) == ours } else { theirs["kind"] == ours["kind"] };
        if !same {
            differences.push(format!("{name}\n  ours   {ours}\n  theirs {theirs}"));
        }
    }
    assert!(compared > 20, "only {compared} compared");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn columns_equal_those_of_kubernetes() {
    let Some(path) = recorded("tables.json") else { return };
    let kinds = Kinds::builtin();
    let tables = read(&path);
    for kind in kinds.iter() {
        let root = if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", kind.api_version()) };
        let theirs = &tables[format!("{root}/{}", kind.plural)]["columnDefinitions"];
        let ours = super::table(
            kind,
            &[],
            jiff::Timestamp::UNIX_EPOCH,
            super::IncludeObject::None,
            &super::table::ListMeta::default(),
        );
        let shape = |columns: &Value| -> Vec<Value> {
            columns
                .as_array()
                .into_iter()
                .flatten()
                .map(|c| json!([c["name"], c["type"], c["format"], c["priority"]]))
                .collect()
        };
        assert_eq!(shape(&ours["columnDefinitions"]), shape(theirs), "{}", kind.kind);
    }
}
