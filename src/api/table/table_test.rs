use serde_json::{Value, json};

use super::*;
use crate::api::Kinds;

fn now() -> jiff::Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

fn cells(object: Value) -> Vec<Value> {
    let kinds = Kinds::builtin();
    let kind = kinds.of(&object).expect("served");
    let table = table(kind, &[&object], now(), IncludeObject::None, &ListMeta::default());
    let cells = table["rows"][0]["cells"].as_array().expect("cells").clone();
    assert_eq!(table["columnDefinitions"].as_array().map(Vec::len), Some(cells.len()));
    cells
}

fn pod(status: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:58:00Z"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}, "status": status})
}

/// Ready, status and restarts of a pod.
fn line(pod: Value) -> String {
    let cells = cells(pod);
    cells[1..4].iter().map(|cell| cell.as_str().expect("a text")).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_status_of_a_pod_is_the_word_that_kubectl_prints() {
    let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
    let waiting = |reason: &str, restarts: i64| {
        json!({"ready": false, "restartCount": restarts, "state": {"waiting": {"reason": reason}},
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:55Z"}}})
    };
    let ended = |code: i64, reason: &str| json!({"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code, "reason": reason}}});
    for (status, want) in [
        (json!({"phase": "Pending"}), "0/2 Pending 0"),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "0/2 SchedulingGated 0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"running": {}}}]}),
            "0/2 Init:0/1 0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            "0/2 Init:CrashLoopBackOff 2",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]}),
            "0/2 Init:ExitCode:3 0",
        ),
        (
            json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating", 0), waiting("ContainerCreating", 0)]}),
            "0/2 ContainerCreating 0",
        ),
        (json!({"phase": "Running", "containerStatuses": [running, running]}), "2/2 Running 0"),
        (
            json!({"phase": "Running", "containerStatuses": [waiting("CrashLoopBackOff", 3), running]}),
            "1/2 CrashLoopBackOff 3 (5s ago)",
        ),
        (json!({"phase": "Running", "containerStatuses": [running, ended(1, "Error")]}), "1/2 Error 0"),
        (
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [running, ended(0, "Completed")]}),
            "1/2 NotReady 0",
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [ended(0, "Completed"), ended(0, "Completed")]}),
            "0/2 Completed 0",
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/2 Evicted 0"),
        (
            json!({"phase": "Failed", "containerStatuses": [{"restartCount": 0, "state": {"terminated": {"exitCode": 0, "signal": 9}}}]}),
            "0/2 Signal:9 0",
        ),
    ] {
        assert_eq!(line(pod(status.clone())), want, "{status}");
    }
    let mut doomed = pod(json!({"phase": "Running", "containerStatuses": [running]}));
    doomed["metadata"]["deletionTimestamp"] = "2026-01-01T00:59:59Z".into();
    assert_eq!(line(doomed), "1/2 Terminating 0");
}

#[test]
fn a_sidecar_counts_as_a_container() {
    let mut object = pod(
        json!({"phase": "Running", "initContainerStatuses": [{"name": "i", "ready": true, "started": true, "restartCount": 1, "state": {"running": {}}}],
        "containerStatuses": [{"ready": true, "restartCount": 0, "state": {"running": {}}}, {"ready": true, "restartCount": 0, "state": {"running": {}}}]}),
    );
    object["spec"]["initContainers"][0]["restartPolicy"] = "Always".into();
    assert_eq!(line(object), "3/3 Running 1");
}

#[test]
fn wide_cells_of_a_pod_say_none_where_nothing_is() {
    let mut object = pod(
        json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "x/y", "status": "True"}]}),
    );
    assert_eq!(
        cells(object.clone())[4..],
        [json!("2m"), json!("10.0.0.1"), json!("n1"), json!("<none>"), json!("<none>")]
    );
    object["spec"]["readinessGates"] = json!([{"conditionType": "x/y"}, {"conditionType": "x/z"}]);
    assert_eq!(cells(object)[8], "1/2");
}

#[test]
fn workloads_nodes_and_events_have_kubernetes_cells() {
    assert_eq!(
        cells(
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "creationTimestamp": "2026-01-01T00:59:50Z"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"b": "c", "a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "nginx:1"}, {"name": "d", "image": "x"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}})
        ),
        [
            json!("d"),
            json!("1/2"),
            json!(2),
            json!(1),
            json!("10s"),
            json!("c,d"),
            json!("nginx:1,x"),
            json!("a=b,b=c")
        ]
    );
    assert_eq!(
        cells(
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                "nodeInfo": {"kubeletVersion": "v1", "osImage": "os", "kernelVersion": "6", "architecture": "amd64", "containerRuntimeVersion": "process://1"}}})
        ),
        [
            json!("n"),
            json!("Ready,SchedulingDisabled"),
            json!("control-plane"),
            json!("<unknown>"),
            json!("v1"),
            json!("1.2.3.4"),
            json!("<none>"),
            json!("os"),
            json!("6 (amd64)"),
            json!("process://1")
        ]
    );
    assert_eq!(
        cells(
            json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "R", "message": "m\n",
            "source": {"component": "c", "host": "h"}, "firstTimestamp": "2026-01-01T00:59:00Z", "lastTimestamp": "2026-01-01T00:59:51Z", "count": 4})
        ),
        [
            json!("9s"),
            json!("Normal"),
            json!("R"),
            json!("pod/p"),
            json!(""),
            json!("c, h"),
            json!("m"),
            json!("60s"),
            json!(4),
            json!("e")
        ]
    );
    assert_eq!(
        cells(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "Opaque", "data": {"a": ""}})
        )[1..3],
        [json!("Opaque"), json!(1)]
    );
}

#[test]
fn rows_carry_metadata_or_the_whole_object() {
    let kinds = Kinds::builtin();
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "b"}}, "data": {"k": "v"}});
    let kind = kinds.of(&object).expect("served");
    let list = ListMeta { resource_version: "7", continue_token: "t", remaining_item_count: Some(3) };
    let table = table(kind, &[&object], now(), IncludeObject::Metadata, &list);
    assert_eq!(table["metadata"], json!({"resourceVersion": "7", "continue": "t", "remainingItemCount": 3}));
    assert_eq!(
        table["rows"][0]["object"],
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "c", "labels": {"a": "b"}}})
    );
    let whole = super::table(kind, &[&object], now(), IncludeObject::Object, &list);
    assert_eq!(whole["rows"][0]["object"], object);
    assert_eq!(table["columnDefinitions"][0]["format"], "name");
}
