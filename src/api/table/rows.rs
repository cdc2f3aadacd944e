//! The cells of one object.

use serde_json::{Value, json};

use super::pod;
use crate::api::quantity::age;
use crate::api::{Kind, LabelSelector, Object, meta};

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

pub fn cells(kind: &Kind, object: &Object, now: jiff::Timestamp) -> Vec<Value> {
    let name = Value::from(meta::name(object));
    let age = Value::from(age(meta::creation_timestamp(object), now));
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap") => vec![name, (count(&object["data"]) + count(&object["binaryData"])).into(), age],
        ("", "Secret") => vec![name, object["type"].clone(), count(&object["data"]).into(), age],
        ("", "Namespace") => vec![name, object["status"]["phase"].clone(), age],
        ("", "Node") => node(object, name, age),
        ("", "Pod") => pod::cells(object, name, age, now),
        ("", "Event") => event(object, now),
        ("apps", "Deployment") => deployment(object, name, age),
        ("apps", "ReplicaSet") => replica_set(object, name, age),
        ("coordination.k8s.io", "Lease") => vec![name, text(&object["spec"]["holderIdentity"], "").into(), age],
        _ => vec![name, age],
    }
}

fn count(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

/// A text, or `empty` where there is none.
pub fn text<'a>(value: &'a Value, empty: &'a str) -> &'a str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or(empty)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn joined(items: &[Value], field: &str) -> String {
    items.iter().filter_map(|item| item[field].as_str()).collect::<Vec<_>>().join(",")
}

fn selector(value: &Value) -> String {
    let text = LabelSelector::from_object(value).map(|selector| selector.to_string()).unwrap_or_default();
    if text.is_empty() { NONE.to_owned() } else { text }
}

fn deployment(object: &Object, name: Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let containers = list(&spec["template"]["spec"]["containers"]);
    vec![
        name,
        format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])).into(),
        number(&status["updatedReplicas"]).into(),
        number(&status["availableReplicas"]).into(),
        age,
        joined(containers, "name").into(),
        joined(containers, "image").into(),
        selector(&spec["selector"]).into(),
    ]
}

fn replica_set(object: &Object, name: Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let containers = list(&spec["template"]["spec"]["containers"]);
    vec![
        name,
        number(&spec["replicas"]).into(),
        number(&status["replicas"]).into(),
        number(&status["readyReplicas"]).into(),
        age,
        joined(containers, "name").into(),
        joined(containers, "image").into(),
        selector(&spec["selector"]).into(),
    ]
}

fn node(object: &Object, name: Value, age: Value) -> Vec<Value> {
    let status = &object["status"];
    let ready = list(&status["conditions"]).iter().find(|condition| condition["type"] == "Ready");
    let mut state = match ready.map(|condition| text(&condition["status"], "")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object["spec"]["unschedulable"] == Value::Bool(true) {
        state.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = list(&status["addresses"]).iter().find(|address| address["type"] == kind);
        found.map_or(NONE, |address| text(&address["address"], NONE)).to_owned()
    };
    let info = &status["nodeInfo"];
    let mut kernel = text(&info["kernelVersion"], UNKNOWN).to_owned();
    if let (true, Some(arch)) = (kernel != UNKNOWN, info["architecture"].as_str().filter(|arch| !arch.is_empty())) {
        kernel = format!("{kernel} ({arch})");
    }
    vec![
        name,
        state.into(),
        roles(object).into(),
        age,
        text(&info["kubeletVersion"], "").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        text(&info["osImage"], UNKNOWN).into(),
        kernel.into(),
        text(&info["containerRuntimeVersion"], UNKNOWN).into(),
    ]
}

fn roles(object: &Object) -> String {
    let mut roles: Vec<&str> = meta::labels(object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

fn event(object: &Object, now: jiff::Timestamp) -> Vec<Value> {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let series = &object["series"];
    let first = time(&object["firstTimestamp"]).or(time(&object["eventTime"]));
    let mut last = time(&object["lastTimestamp"]).or(first);
    let mut times = number(&object["count"]).max(1);
    if !series.is_null() {
        last = time(&series["lastObservedTime"]).or(last);
        times = number(&series["count"]);
    }
    let about = &object["involvedObject"];
    let kind = text(&about["kind"], "").to_ascii_lowercase();
    let target = match text(&about["name"], "") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = text(&object["source"]["component"], text(&object["reportingComponent"], ""));
    let source = match text(&object["source"]["host"], text(&object["reportingInstance"], "")) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    vec![
        age(last, now).into(),
        object["type"].clone(),
        object["reason"].clone(),
        target.into(),
        text(&about["fieldPath"], "").into(),
        source.into(),
        text(&object["message"], "").trim().into(),
        age(first, now).into(),
        json!(times),
        meta::name(object).into(),
    ]
}
