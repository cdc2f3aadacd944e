//! Behaviour of placement: filters, scores, accounting and the words of a refusal.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn node(name: &str, cpu: &str, pods: u32) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": pods.to_string()},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec})
}

fn asking(name: &str, cpu: &str) -> Value {
    pod(name, json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
}

fn owned(name: &str, owner: &str) -> Value {
    let mut pod = pod(name, json!({}));
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]);
    pod
}

fn info(pod: &Value) -> PodInfo {
    PodInfo::of(&serde_json::from_value(pod.clone()).unwrap())
}

fn cluster(nodes: &[Value]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for node in nodes {
        snapshot.upsert_node(&serde_json::from_value(node.clone()).unwrap());
    }
    snapshot
}

fn place(snapshot: &mut Snapshot, pod: &Value) -> String {
    let pod = info(pod);
    match snapshot.place(&pod) {
        Ok(node) => {
            snapshot.assume(&pod, node);
            snapshot.node_name(node).to_string()
        }
        Err(why) => why.to_string(),
    }
}

fn with(mut node: Value, path: &str, value: Value) -> Value {
    let (parent, key) = path.rsplit_once('/').unwrap();
    node.pointer_mut(parent).unwrap()[key] = value;
    node
}

#[test]
fn without_nodes_the_message_says_so() {
    assert_eq!(place(&mut cluster(&[]), &asking("a", "1")), "no nodes available to schedule pods");
}

#[test]
fn refusals_are_counted_by_reason_in_kubernetes_words() {
    let tainted =
        |name| with(node(name, "4", 9), "/spec/taints", json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]));
    let mut snapshot = cluster(&[node("a", "1", 9), node("b", "1", 9), tainted("c"), tainted("d"), tainted("e")]);
    assert_eq!(
        place(&mut snapshot, &asking("p", "2")),
        "0/5 nodes are available: 2 Insufficient cpu, 3 node(s) had untolerated taint {k: v}."
    );
}

#[test]
fn each_filter_refuses_in_its_own_words() {
    let mut snapshot = cluster(&[node("a", "1", 0)]);
    assert_eq!(place(&mut snapshot, &pod("p", json!({}))), "0/1 nodes are available: 1 Too many pods.");
    let mut snapshot = cluster(&[with(node("a", "1", 9), "/spec/unschedulable", json!(true))]);
    assert_eq!(place(&mut snapshot, &pod("p", json!({}))), "0/1 nodes are available: 1 node(s) were unschedulable.");
    let mut snapshot = cluster(&[with(node("a", "1", 9), "/status/conditions/0/status", json!("Unknown"))]);
    assert_eq!(place(&mut snapshot, &pod("p", json!({}))), "0/1 nodes are available: 1 node(s) were not ready.");
    let mut snapshot = cluster(&[node("a", "1", 9)]);
    assert_eq!(
        place(&mut snapshot, &pod("p", json!({"nodeSelector": {"no": "where"}}))),
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    );
    let gpu =
        json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1", "memory": "9Gi"}}}]});
    assert_eq!(
        place(&mut snapshot, &pod("p", gpu)),
        "0/1 nodes are available: 1 Insufficient example.com/gpu, 1 Insufficient memory."
    );
}

#[test]
fn a_host_port_is_given_once_on_each_node() {
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    let mut snapshot = cluster(&[node("a", "4", 9), node("b", "4", 9)]);
    assert_eq!(place(&mut snapshot, &pod("p", port.clone())), "a");
    assert_eq!(place(&mut snapshot, &pod("q", port.clone())), "b");
    assert_eq!(
        place(&mut snapshot, &pod("r", port.clone())),
        "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."
    );
    assert!(snapshot.remove_pod("p").meets(Causes::PORTS));
    assert_eq!(place(&mut snapshot, &pod("r", port)), "a");
}

#[test]
fn a_toleration_opens_a_tainted_node_and_only_for_its_taint() {
    let taint = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]);
    let mut snapshot = cluster(&[with(node("a", "4", 9), "/spec/taints", taint)]);
    let tolerating = |toleration: Value| pod("p", json!({"tolerations": [toleration]}));
    for accepted in [
        json!({"operator": "Exists"}),
        json!({"key": "k", "operator": "Exists"}),
        json!({"key": "k", "value": "v"}),
        json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}),
    ] {
        assert_eq!(place(&mut snapshot, &tolerating(accepted.clone())), "a", "{accepted}");
    }
    for refused in [
        json!({"key": "k", "value": "w"}),
        json!({"key": "other", "operator": "Exists"}),
        json!({"key": "k", "value": "v", "effect": "NoExecute"}),
    ] {
        assert_ne!(place(&mut snapshot, &tolerating(refused.clone())), "a", "{refused}");
    }
}

#[test]
fn required_affinity_knows_all_operators() {
    let mut snapshot = cluster(&[with(node("a", "4", 99), "/metadata/labels", json!({"disk": "ssd", "size": "7"}))]);
    let mut fits = |terms: Value| {
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
        place(&mut snapshot, &pod("p", json!({"affinity": affinity}))) == "a"
    };
    let label = |operator: &str, key: &str, values: &[&str]| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
    assert!(fits(label("In", "disk", &["hdd", "ssd"])));
    assert!(!fits(label("In", "disk", &["hdd"])));
    assert!(fits(label("NotIn", "disk", &["hdd"])));
    assert!(fits(label("NotIn", "absent", &["hdd"])));
    assert!(!fits(label("NotIn", "disk", &["ssd"])));
    assert!(fits(label("Exists", "disk", &[])));
    assert!(!fits(label("Exists", "absent", &[])));
    assert!(fits(label("DoesNotExist", "absent", &[])));
    assert!(!fits(label("DoesNotExist", "disk", &[])));
    assert!(fits(label("Gt", "size", &["6"])));
    assert!(!fits(label("Gt", "size", &["7"])));
    assert!(fits(label("Lt", "size", &["8"])));
    assert!(!fits(label("Lt", "disk", &["8"])));
    assert!(fits(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}])));
    assert!(!fits(json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["a"]}]}])));
    assert!(!fits(json!([{}])), "an empty term matches nothing");
    assert!(!fits(json!([])));
}

#[test]
fn preferences_decide_between_nodes_that_fit() {
    let ssd = |name, value: &str| with(node(name, "4", 99), "/metadata/labels", json!({"disk": value}));
    let mut snapshot = cluster(&[ssd("a", "hdd"), ssd("b", "ssd")]);
    let prefers = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}},
    ]}}});
    assert_eq!(place(&mut snapshot, &pod("p", prefers)), "b");
    let disliked = json!([{"key": "k", "effect": "PreferNoSchedule"}]);
    let mut snapshot = cluster(&[with(node("a", "4", 99), "/spec/taints", disliked), node("b", "4", 99)]);
    assert_eq!(place(&mut snapshot, &pod("p", json!({}))), "b");
    assert_eq!(place(&mut snapshot, &pod("q", json!({"tolerations": [{"operator": "Exists"}]}))), "a");
}

#[test]
fn pods_of_one_owner_are_spread_evenly() {
    let mut snapshot = cluster(&[node("a", "64", 99), node("b", "8", 99), node("c", "8", 99)]);
    for n in 0..12 {
        place(&mut snapshot, &owned(&format!("p{n}"), "rs"));
    }
    assert_eq!(["a", "b", "c"].map(|name| snapshot.pods_on(name)), [4, 4, 4]);
}

#[test]
fn zones_are_spread_before_nodes_of_one_zone_are_filled() {
    let zoned = |name: &str, zone: &str| with(node(name, "8", 99), "/metadata/labels", json!({(ZONE_LABEL): zone}));
    let mut snapshot = cluster(&[zoned("a1", "a"), zoned("a2", "a"), zoned("a3", "a"), zoned("b1", "b")]);
    let placed: Vec<String> = (0..2).map(|n| place(&mut snapshot, &owned(&format!("p{n}"), "rs"))).collect();
    assert!(placed.contains(&"b1".to_owned()), "{placed:?}");
}

#[test]
fn an_init_container_counts_only_where_it_is_the_largest() {
    let spec = json!({
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "300m"}}}],
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
            {"name": "init", "resources": {"requests": {"cpu": "1"}}},
        ],
        "overhead": {"cpu": "10m"},
    });
    assert_eq!(info(&pod("p", spec)).requests.cpu_milli, 1110);
    let spec = json!({
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}],
        "initContainers": [{"name": "init", "resources": {"requests": {"cpu": "1"}}}],
    });
    assert_eq!(info(&pod("p", spec)).requests.cpu_milli, 2000);
}

#[test]
fn quantities_are_read_as_kubernetes_writes_them() {
    let cases = [
        ("1", 1000),
        ("100m", 100),
        ("1.5", 1500),
        ("0.1m", 1),
        ("2k", 2_000_000),
        ("1Ki", 1_024_000),
        ("1.5Gi", 1_610_612_736_000),
        ("12e3", 12_000_000),
        ("1E", i64::MAX),
        ("-1", -1000),
        ("x", 0),
        ("", 0),
    ];
    for (text, expected) in cases {
        let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
        assert_eq!(milli(&quantity), expected, "{text}");
    }
}

#[test]
fn an_assumed_pod_keeps_its_room_until_the_store_shows_it_or_it_is_forgotten() {
    let mut snapshot = cluster(&[node("a", "1", 9)]);
    let mut manifest = asking("p", "1");
    assert_eq!(place(&mut snapshot, &manifest), "a");
    // An older version of the pod comes by, still without its node.
    snapshot.upsert_pod(&serde_json::from_value(manifest.clone()).unwrap());
    assert_eq!(snapshot.pods_on("a"), 1);
    manifest["spec"]["nodeName"] = json!("a");
    snapshot.upsert_pod(&serde_json::from_value(manifest.clone()).unwrap());
    assert!(snapshot.forget("p").is_empty(), "what the store has shown is not an assumption");
    assert_eq!(snapshot.pods_on("a"), 1);
    manifest["status"] = json!({"phase": "Succeeded"});
    assert!(snapshot.upsert_pod(&serde_json::from_value(manifest).unwrap()).meets(Causes::RESOURCES));
    assert_eq!(snapshot.pods_on("a"), 0);
    assert_eq!(place(&mut snapshot, &asking("q", "1")), "a");
    assert!(!snapshot.forget("q").is_empty());
    assert_eq!(snapshot.pods_on("a"), 0);
}

#[test]
fn changes_of_a_node_tell_what_they_ease() {
    let mut snapshot = cluster(&[]);
    let mut upsert = |node: Value| snapshot.upsert_node(&serde_json::from_value(node).unwrap());
    let plain = node("a", "1", 9);
    assert_eq!(upsert(plain.clone()), Causes::ALL);
    assert_eq!(upsert(plain.clone()), Causes::NONE, "a heartbeat eases nothing");
    let cordoned = with(plain.clone(), "/spec/unschedulable", json!(true));
    assert_eq!(upsert(cordoned), Causes::NONE);
    assert_eq!(upsert(plain.clone()), Causes::UNSCHEDULABLE);
    assert_eq!(upsert(node("a", "2", 9)), Causes::RESOURCES);
    let dead = with(plain.clone(), "/status/conditions/0/status", json!("Unknown"));
    upsert(dead);
    assert!(upsert(plain).meets(Causes::NOT_READY));
}

#[test]
fn pods_of_an_unknown_node_count_once_the_node_is_known() {
    let mut snapshot = cluster(&[]);
    let mut manifest = asking("p", "1");
    manifest["spec"]["nodeName"] = json!("late");
    snapshot.upsert_pod(&serde_json::from_value(manifest).unwrap());
    assert_eq!(place(&mut snapshot, &asking("q", "1")), "no nodes available to schedule pods");
    snapshot.upsert_node(&serde_json::from_value(node("late", "1", 9)).unwrap());
    assert_eq!(place(&mut snapshot, &asking("q", "1")), "0/1 nodes are available: 1 Insufficient cpu.");
}

proptest! {
    /// However pods come and go, no node gets more than it has, and taking everything away leaves nothing behind.
    #[test]
    fn no_node_is_ever_overcommitted(steps in prop::collection::vec((0u8..40, 1u32..1500, any::<bool>()), 1..200)) {
        let nodes: Vec<Value> = (0..4).map(|n| node(&format!("n{n}"), "2", 5)).collect();
        let mut snapshot = cluster(&nodes);
        for (id, cpu, add) in steps {
            let manifest = asking(&format!("p{id}"), &format!("{cpu}m"));
            if add && !snapshot.is_accounted(&format!("p{id}")) {
                place(&mut snapshot, &manifest);
            } else {
                snapshot.remove_pod(&format!("p{id}"));
            }
            for room in &snapshot.room {
                prop_assert!(room.cpu_used_milli >= 0 && room.cpu_used_milli <= room.cpu_milli);
                prop_assert!(room.pods <= room.pods_max);
            }
        }
        let left: Vec<_> = snapshot.accounted().cloned().collect();
        for uid in left {
            snapshot.remove_pod(&uid);
        }
        prop_assert!(snapshot.groups.is_empty());
        for room in &snapshot.room {
            prop_assert_eq!((room.cpu_used_milli, room.pods, room.scored_cpu_used_milli), (0, 0, 0));
        }
    }
}
