//! Defaulting: what Kubernetes fills in when a field is left out, so that nothing downstream has to guess.
//!
//! Idempotent, and it must equal Kubernetes: every difference is a drift that `kubectl diff` and Helm report forever.
//! Left out on purpose: the 300 s tolerations for unreachable nodes (here a pod of an unreachable node is replaced at
//! once; a pod's own `tolerations` win) and the service account token volume (there are no such tokens yet).

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::meta::child_mut;
use super::{Kind, Object};

/// Fills in what Kubernetes fills in. Run on a conformed object.
pub fn set_defaults(kind: &Kind, obj: &mut Object) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod(obj),
        ("", "Namespace") => {
            let name = super::meta::name(obj).to_owned();
            if !name.is_empty() {
                child_mut(&mut obj["metadata"], "labels").insert("kubernetes.io/metadata.name".to_owned(), name.into());
            }
            child_mut(obj, "spec");
            absent(child_mut(obj, "status"), "phase", "Active");
        }
        ("", "Node") => {
            child_mut(obj, "spec");
            let status = child_mut(obj, "status");
            if let (None, Some(capacity)) = (status.get("allocatable"), status.get("capacity").cloned()) {
                status.insert("allocatable".to_owned(), capacity);
            }
        }
        ("", "Secret") => secret(obj),
        ("", "Event") => event(obj),
        ("apps", "Deployment") => deployment(obj),
        ("apps", "ReplicaSet") => {
            let spec = child_mut(obj, "spec");
            absent(spec, "replicas", 1);
            template(spec);
            absent(child_mut(obj, "status"), "replicas", 0);
        }
        ("coordination.k8s.io", "Lease") => {
            child_mut(obj, "spec");
        }
        _ => {}
    }
}

/// Sets a field that is missing.
fn absent(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), value.into());
    }
}

/// The map at `field`, if there is one.
fn present<'a>(map: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(field)?.as_object_mut()
}

/// The maps in the list at `field`.
fn each<'a>(map: &'a mut Map<String, Value>, field: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let items = map.get_mut(field).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn secret(obj: &mut Object) {
    let Some(map) = obj.as_object_mut() else { return };
    // `stringData` is for writing only: it is folded into `data`.
    if let Some(Value::Object(texts)) = map.remove("stringData") {
        let data = child_mut(obj, "data");
        for (key, text) in texts {
            let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
            data.insert(key, encoded.into());
        }
    }
    if let Some(map) = obj.as_object_mut() {
        absent(map, "type", "Opaque");
    }
}

/// Fields of an Event that Go always writes.
fn event(obj: &mut Object) {
    let Some(map) = obj.as_object_mut() else { return };
    for field in ["eventTime", "firstTimestamp", "lastTimestamp"] {
        absent(map, field, Value::Null);
    }
    for field in ["reportingComponent", "reportingInstance"] {
        absent(map, field, "");
    }
    absent(map, "source", Map::new());
}

fn deployment(obj: &mut Object) {
    let spec = child_mut(obj, "spec");
    absent(spec, "replicas", 1);
    absent(spec, "revisionHistoryLimit", 10);
    absent(spec, "progressDeadlineSeconds", 600);
    absent(spec, "strategy", Map::new());
    if let Some(strategy) = present(spec, "strategy") {
        absent(strategy, "type", "RollingUpdate");
        if strategy.get("type").is_some_and(|kind| kind == "RollingUpdate") {
            absent(strategy, "rollingUpdate", Map::new());
            if let Some(rolling) = present(strategy, "rollingUpdate") {
                absent(rolling, "maxUnavailable", "25%");
                absent(rolling, "maxSurge", "25%");
            }
        }
    }
    template(spec);
    child_mut(obj, "status");
}

/// A pod template: as a pod, without what only admission of a pod adds.
fn template(spec: &mut Map<String, Value>) {
    absent(spec, "template", Map::new());
    if let Some(template) = present(spec, "template") {
        absent(template, "metadata", Map::new());
        absent(template, "spec", Map::new());
        if let Some(spec) = present(template, "spec") {
            pod_spec(spec);
        }
    }
}

fn pod(obj: &mut Object) {
    let spec = child_mut(obj, "spec");
    pod_spec(spec);
    absent(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in each(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        absent(port, "hostPort", number);
                    }
                }
            }
        }
    }
    // What Kubernetes' admission adds to every pod.
    let account = spec.get("serviceAccountName").or(spec.get("serviceAccount")).cloned();
    let account = account.filter(|name| name != "").unwrap_or("default".into());
    spec.insert("serviceAccountName".to_owned(), account.clone());
    spec.insert("serviceAccount".to_owned(), account);
    absent(spec, "preemptionPolicy", "PreemptLowerPriority");
    absent(spec, "priority", 0);
    let qos = qos_class(spec);
    let status = child_mut(obj, "status");
    absent(status, "phase", "Pending");
    absent(status, "qosClass", qos);
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = present(container, "resources") else { return };
    let Some(limits) = present(resources, "limits").map(|limits| limits.clone()) else { return };
    absent(resources, "requests", Map::new());
    if let Some(requests) = present(resources, "requests") {
        for (name, quantity) in limits {
            absent(requests, &name, quantity);
        }
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    absent(spec, "dnsPolicy", "ClusterFirst");
    absent(spec, "restartPolicy", "Always");
    absent(spec, "schedulerName", "default-scheduler");
    absent(spec, "securityContext", Map::new());
    absent(spec, "terminationGracePeriodSeconds", 30);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
}

fn container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    absent(container, "imagePullPolicy", policy);
    absent(container, "resources", Map::new());
    absent(container, "terminationMessagePath", "/dev/termination-log");
    absent(container, "terminationMessagePolicy", "File");
    for port in each(container, "ports") {
        absent(port, "protocol", "TCP");
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = present(container, name) {
            absent(probe, "timeoutSeconds", 1);
            absent(probe, "periodSeconds", 10);
            absent(probe, "successThreshold", 1);
            absent(probe, "failureThreshold", 3);
            if let Some(grpc) = present(probe, "grpc") {
                absent(grpc, "service", "");
            }
            handler(probe);
        }
    }
    if let Some(lifecycle) = present(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = present(lifecycle, hook) {
                handler(hook);
            }
        }
    }
    for variable in each(container, "env") {
        if let Some(source) = present(variable, "valueFrom") {
            references(source);
        }
    }
}

/// An action of a probe or a lifecycle hook.
fn handler(handler: &mut Map<String, Value>) {
    if let Some(http) = present(handler, "httpGet") {
        absent(http, "path", "/");
        absent(http, "scheme", "HTTP");
    }
}

fn references(source: &mut Map<String, Value>) {
    if let Some(field) = present(source, "fieldRef") {
        absent(field, "apiVersion", "v1");
    }
    if let Some(resource) = present(source, "resourceFieldRef") {
        absent(resource, "divisor", "0");
    }
}

/// Mode of files in volumes: 0644.
const FILE_MODE: i64 = 0o644;

fn volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = present(volume, source) {
            absent(source, "defaultMode", FILE_MODE);
            each(source, "items").for_each(references);
            for part in each(source, "sources") {
                if let Some(token) = present(part, "serviceAccountToken") {
                    absent(token, "expirationSeconds", 3600);
                }
                if let Some(downward) = present(part, "downwardAPI") {
                    each(downward, "items").for_each(references);
                }
            }
        }
    }
    if let Some(host) = present(volume, "hostPath") {
        absent(host, "type", "");
    }
    if let Some(ephemeral) = present(volume, "ephemeral")
        && let Some(claim) = present(ephemeral, "volumeClaimTemplate")
    {
        absent(claim, "metadata", Map::new());
        if let Some(spec) = present(claim, "spec") {
            absent(spec, "volumeMode", "Filesystem");
        }
    }
    if let Some(iscsi) = present(volume, "iscsi") {
        absent(iscsi, "iscsiInterface", "default");
    }
}

/// Whether an image names the tag `latest`, or neither tag nor digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from CPU and memory of all containers.
fn qos_class(spec: &Map<String, Value>) -> &'static str {
    let containers = ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| spec.get(list).and_then(Value::as_array).into_iter().flatten());
    let (mut any, mut guaranteed) = (false, true);
    let quantity =
        |value: &Value| super::quantity::Quantity::from_value(value).ok().filter(|quantity| !quantity.is_zero());
    for container in containers {
        for resource in ["cpu", "memory"] {
            let limit = quantity(&container["resources"]["limits"][resource]);
            let request = quantity(&container["resources"]["requests"][resource]).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Kinds;

    fn defaulted(mut object: Object) -> Object {
        let kinds = Kinds::builtin();
        let kind = kinds.of(&object).expect("a served kind");
        set_defaults(kind, &mut object);
        let once = object.clone();
        set_defaults(kind, &mut object);
        assert_eq!(once, object, "defaulting is idempotent");
        object
    }

    #[test]
    fn a_minimal_pod_gets_kubernetes_defaults() {
        let pod = defaulted(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}),
        );
        assert_eq!(
            pod["spec"],
            json!({
                "containers": [{
                    "name": "c", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "priority": 0,
                "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
                "serviceAccount": "default", "serviceAccountName": "default", "terminationGracePeriodSeconds": 30,
            })
        );
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    }

    #[test]
    fn a_deployment_gets_its_strategy_and_its_template() {
        let deployment = defaulted(
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "strategy": {"rollingUpdate": {"maxSurge": 1}}, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x:1", "ports": [{"containerPort": 80}]}]}}}}),
        );
        let spec = &deployment["spec"];
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": "25%"}})
        );
        assert_eq!(
            (&spec["replicas"], &spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
            (&json!(1), &json!(10), &json!(600))
        );
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert!(pod.get("serviceAccountName").is_none() && pod.get("enableServiceLinks").is_none());
    }

    #[test]
    fn limits_become_requests_and_decide_the_qos_class() {
        let pod = |resources: Value| {
            defaulted(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x:1", "resources": resources}]}}),
            )
        };
        let guaranteed = pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
        assert_eq!(guaranteed["status"]["qosClass"], "Guaranteed");
        assert_eq!(guaranteed["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(pod(json!({"requests": {"cpu": "1"}}))["status"]["qosClass"], "Burstable");
    }

    #[test]
    fn string_data_is_folded_into_data() {
        let secret = defaulted(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "b"}}),
        );
        assert_eq!(secret["data"], json!({"a": "Yg==", "b": "eQ=="}));
        assert_eq!(secret["type"], "Opaque");
        assert!(secret.get("stringData").is_none());
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
