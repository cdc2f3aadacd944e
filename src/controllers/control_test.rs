//! The scheduler and all controllers together, over a real registry and a real store of one server. Only the nodes are
//! played by the test: a bound pod becomes Ready at once, a terminating one is gone at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod};
use phalanx_actors::{Exit, Strategy, SupervisorRef, SupervisorSpec, System};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::api::{Kinds, Patch};
use crate::registry::{
    ApiObject, DeleteOptions, Informer, InformerEvent, InformerOptions, ListOptions, Propagation, StatusReport,
    WriteOptions,
};
use crate::store::{MemoryNetwork, ReplicatedStore, Store, StoreConfig};

const WITHIN: Duration = Duration::from_secs(30);

struct Cluster {
    registry: Registry,
    store: ReplicatedStore,
    system: System,
    control: SupervisorRef,
    watches: Watches,
    kubelet: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start(nodes: usize) -> Cluster {
        Cluster::start_with(nodes, None).await
    }

    async fn start_with(nodes: usize, fault: Option<Fault>) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let transport = MemoryNetwork::new().transport(1);
        let config = StoreConfig::new("test", 1, "n1", "127.0.0.1:0", dir.path(), transport);
        let store = ReplicatedStore::start(config).await.unwrap();
        store.bootstrap().await.unwrap();
        let registry = Registry::new(Kinds::builtin(), Arc::new(store.clone()));
        registry.ensure_bootstrap().await.unwrap();
        for n in 0..nodes {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": format!("node-{n}")}})).unwrap();
            let mut node = registry.api::<Node>().create(None, &node, &WriteOptions::default()).await.unwrap();
            node.status = serde_json::from_value(json!({
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now()}],
            }))
            .unwrap();
            registry.api::<Node>().update_status(&node, &WriteOptions::default()).await.unwrap();
        }
        let deps = ControlDeps {
            registry: registry.clone(),
            recorder: Recorder::start(registry.clone()),
            runtime: Handle::current(),
            fault,
        };
        let (children, watches) = control_children(&deps);
        let system = System::builder("n1").build().unwrap();
        let control =
            children.into_iter().fold(SupervisorSpec::new("control", Strategy::RestForOne), SupervisorSpec::child);
        let control = system.start(control).await.unwrap();
        let kubelet = tokio::spawn(kubelet(registry.clone()));
        Cluster { registry, store, system, control, watches, kubelet, _dir: dir }
    }

    async fn stop(self) {
        self.kubelet.abort();
        self.system.shutdown().await;
        self.store.shutdown().await;
    }

    async fn create<K: ApiObject>(&self, value: Value) -> K {
        let object = serde_json::from_value(value).unwrap();
        self.registry.api::<K>().create(Some("default"), &object, &WriteOptions::default()).await.unwrap()
    }

    async fn list<K: ApiObject>(&self) -> Vec<K> {
        self.registry.api::<K>().list(None, &ListOptions::default()).await.unwrap()
    }

    async fn get<K: ApiObject>(&self, name: &str) -> K {
        self.registry.api::<K>().get(Some("default"), name).await.unwrap()
    }

    async fn patch<K: ApiObject>(&self, name: &str, patch: Value) -> K {
        let api = self.registry.api::<K>();
        api.patch(Some("default"), name, None, &Patch::Merge(patch), &WriteOptions::default()).await.unwrap()
    }

    async fn delete<K: ApiObject>(&self, name: &str, propagation: Option<Propagation>) {
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        self.registry.api::<K>().delete(Some("default"), name, &options).await.unwrap();
    }

    /// Waits until the objects of a kind satisfy `holds`, looking again with every write to the store.
    async fn until<K: ApiObject>(&self, what: &str, mut holds: impl FnMut(&[K]) -> bool) -> Vec<K> {
        let mut watch = self.store.watch("/registry/".to_owned(), String::new(), 0).unwrap();
        let deadline = Instant::now() + WITHIN;
        loop {
            let all = self.list::<K>().await;
            if holds(&all) {
                return all;
            }
            if Instant::now() > deadline {
                let names: Vec<Value> = all.iter().map(|object| serde_json::to_value(object).unwrap()).collect();
                panic!("never: {what}; there is {}", serde_json::to_string_pretty(&names).unwrap());
            }
            // A write in between shows up here; the limit is for conditions that time alone changes.
            let _ = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
        }
    }

    async fn ready_pods(&self, count: usize) -> Vec<Pod> {
        let ready = |pods: &[Pod]| {
            let active: Vec<_> = pods.iter().filter(|pod| pods::is_active(pod)).collect();
            active.len() == count && active.iter().all(|pod| pods::is_ready(pod))
        };
        let all = self.until(&format!("{count} ready pods"), ready).await;
        all.into_iter().filter(pods::is_active).collect()
    }

    async fn rolled_out(&self, name: &str, image: &str) -> Deployment {
        let done = |all: &[Deployment]| {
            all.iter().any(|d| {
                let (spec, status) = (d.spec.as_ref().unwrap(), d.status.clone().unwrap_or_default());
                let template = spec.template.spec.as_ref().unwrap();
                let wanted = spec.replicas;
                d.metadata.name.as_deref() == Some(name)
                    && template.containers[0].image.as_deref() == Some(image)
                    && status.observed_generation == d.metadata.generation
                    && status.updated_replicas == wanted
                    && status.replicas == wanted
                    && status.available_replicas == wanted
                    && status.conditions.iter().flatten().any(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"))
            })
        };
        self.until::<Deployment>(&format!("{name} rolled out to {image}"), done).await;
        self.get(name).await
    }

    async fn event(&self, reason: &str, message: &str) {
        let said = |events: &[Event]| {
            events.iter().any(|event| {
                event.reason.as_deref() == Some(reason)
                    && event.message.as_deref().is_some_and(|text| text.contains(message))
            })
        };
        self.until::<Event>(&format!("{reason}: {message}"), said).await;
    }
}

/// Plays all nodes: runs what is bound to them, and ends what is to end.
async fn kubelet(registry: Registry) {
    let (_informer, mut events) = Informer::<Pod>::start(&registry, InformerOptions::default());
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, 256).await > 0 {
        let mut reports = Vec::new();
        for event in batch.drain(..) {
            let InformerEvent::Applied { new: pod, .. } = event else { continue };
            let (namespace, name) = (pod.metadata.namespace.clone().unwrap(), pod.metadata.name.clone().unwrap());
            if pods::node_name(&pod).is_none() || pods::is_finished(&pod) {
                continue;
            }
            if pods::is_terminating(&pod) {
                let now = DeleteOptions {
                    grace_period_seconds: Some(0),
                    uid: pod.metadata.uid.clone(),
                    ..DeleteOptions::default()
                };
                // Gone already is just as well.
                let _ = registry.api::<Pod>().delete(Some(&namespace), &name, &now).await;
            } else if !pods::is_ready(&pod)
                && pod.metadata.labels.as_ref().is_none_or(|l| !l.contains_key("never-ready"))
            {
                let mut status = serde_json::to_value(pod.status.clone().unwrap_or_default()).unwrap();
                status["phase"] = json!("Running");
                status["conditions"] = json!([
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now()},
                ]);
                reports.push(StatusReport { namespace, name, uid: pod.metadata.uid.clone().unwrap(), status });
            }
        }
        if !reports.is_empty() {
            let kind = registry.kinds().by_kind("", "v1", "Pod").cloned().unwrap();
            registry.update_status_many(&kind, reports).await;
        }
    }
}

fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
            },
        },
    })
}

fn by_node(pods: &[Pod]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        *counts.entry(pods::node_name(pod).unwrap().to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_becomes_ready_pods_spread_over_the_nodes() {
    let cluster = Cluster::start(3).await;
    cluster.create::<Deployment>(deployment("web", 6)).await;
    let pods = cluster.ready_pods(6).await;
    assert_eq!(by_node(&pods).into_values().collect::<Vec<_>>(), [2, 2, 2]);
    let done = cluster.rolled_out("web", "nginx:1").await;
    assert_eq!(done.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "1");
    cluster.event("ScalingReplicaSet", "Scaled up replica set web-").await;
    cluster.event("SuccessfulCreate", "Created pod: web-").await;
    cluster.event("Scheduled", "Successfully assigned default/web-").await;
    let tree: HashSet<String> = cluster.system.tree().iter().map(|info| info.path.to_string()).collect();
    assert!(tree.contains("control/controllers/deployments/objects/default_web"), "{tree:?}");
    assert!(tree.contains("control/scheduler"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_its_undo_and_scaling_reach_what_is_asked_for() {
    let cluster = Cluster::start(3).await;
    cluster.create::<Deployment>(deployment("web", 4)).await;
    cluster.rolled_out("web", "nginx:1").await;
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    cluster.patch::<Deployment>("web", image("nginx:2")).await;
    cluster.rolled_out("web", "nginx:2").await;
    cluster.patch::<Deployment>("web", image("nginx:1")).await;
    let back = cluster.rolled_out("web", "nginx:1").await;
    assert_eq!(back.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "3");
    assert_eq!(cluster.list::<ReplicaSet>().await.len(), 2, "undo reuses the old set");
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 7}})).await;
    cluster.ready_pods(7).await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    cluster.ready_pods(1).await;
    cluster.rolled_out("web", "nginx:1").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_ends_all_old_pods_before_the_first_new_one() {
    let cluster = Cluster::start(2).await;
    let mut manifest = deployment("web", 3);
    manifest["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create::<Deployment>(manifest).await;
    cluster.rolled_out("web", "nginx:1").await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}}});
    cluster.patch::<Deployment>("web", image).await;
    cluster.rolled_out("web", "nginx:2").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_is_replaced_and_never_twice() {
    let cluster = Cluster::start(3).await;
    cluster.create::<Deployment>(deployment("web", 5)).await;
    let pods = cluster.ready_pods(5).await;
    let mut ever: HashSet<String> = pods.iter().map(|pod| pod.metadata.uid.clone().unwrap()).collect();
    for round in 0..10 {
        let victim = cluster.ready_pods(5).await.remove(round % 5);
        cluster.delete::<Pod>(victim.metadata.name.as_deref().unwrap(), None).await;
        let gone = |pods: &[Pod]| pods.iter().all(|pod| pod.metadata.uid != victim.metadata.uid);
        cluster.until::<Pod>("the victim is gone", gone).await;
        for pod in cluster.ready_pods(5).await {
            ever.insert(pod.metadata.uid.unwrap());
        }
    }
    assert_eq!(ever.len(), 15, "one new pod for each deleted one");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_of_a_lost_node_are_replaced_on_others_and_it_can_come_back() {
    let cluster = Cluster::start(3).await;
    cluster.create::<Deployment>(deployment("web", 9)).await;
    cluster.ready_pods(9).await;
    let on_node = |pods: Vec<Pod>| -> Vec<Arc<Pod>> {
        pods.into_iter().filter(|pod| pods::node_name(pod) == Some("node-1")).map(Arc::new).collect()
    };
    let victims = on_node(cluster.list().await);
    let began = Instant::now();
    let nodes::Loss { evicted, marked } = nodes::node_lost(&cluster.registry, "node-1", victims.clone()).await.unwrap();
    assert!(marked);
    assert_eq!(evicted, 3);
    let replaced = |pods: &[Pod]| {
        pods.len() == 9 && pods.iter().all(|pod| pods::is_ready(pod) && pods::node_name(pod) != Some("node-1"))
    };
    cluster.until::<Pod>("nine pods ready on the other nodes", replaced).await;
    println!("replaced after {:?}", began.elapsed());
    let lost: Node = cluster.registry.api().get(None, "node-1").await.unwrap();
    assert_eq!(lost.spec.as_ref().unwrap().taints.as_ref().unwrap().len(), 2);
    assert!(nodes::node_back(&cluster.registry, "node-1").await.unwrap());
    assert!(!nodes::node_back(&cluster.registry, "node-1").await.unwrap(), "said once");
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 12}})).await;
    let pods = cluster.ready_pods(12).await;
    assert_eq!(by_node(&pods)["node-1"], 3, "a node that is back takes pods again");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_is_placed_when_that_changes() {
    let cluster = Cluster::start(2).await;
    let pod = json!({
        "metadata": {"name": "picky"},
        "spec": {"containers": [{"name": "c", "image": "x"}], "nodeSelector": {"disk": "ssd"}},
    });
    cluster.create::<Pod>(pod).await;
    let message = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
    let said = |pods: &[Pod]| {
        let condition = pods.first().and_then(|pod| pods::condition(pod, "PodScheduled"));
        condition.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message))
    };
    cluster.until::<Pod>("the condition", said).await;
    cluster.event("FailedScheduling", message).await;
    let api = cluster.registry.api::<Node>();
    let label = Patch::Merge(json!({"metadata": {"labels": {"disk": "ssd"}}}));
    api.patch(None, "node-1", None, &label, &WriteOptions::default()).await.unwrap();
    let pods = cluster.ready_pods(1).await;
    assert_eq!(pods::node_name(&pods[0]), Some("node-1"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_execute_taint_drives_pods_away_when_their_toleration_ends() {
    let cluster = Cluster::start(1).await;
    let pod = |name: &str, tolerations: Value| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x"}], "tolerations": tolerations}});
    cluster.create::<Pod>(pod("plain", json!([]))).await;
    cluster
        .create::<Pod>(pod(
            "brief",
            json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]),
        ))
        .await;
    cluster.create::<Pod>(pod("stays", json!([{"key": "k", "operator": "Exists"}]))).await;
    cluster.ready_pods(3).await;
    let taint = Patch::Merge(json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}));
    cluster.registry.api::<Node>().patch(None, "node-0", None, &taint, &WriteOptions::default()).await.unwrap();
    let names = |pods: &[Pod]| pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect::<Vec<_>>();
    cluster.until::<Pod>("plain leaves", |pods| names(pods) == ["brief", "stays"]).await;
    cluster.until::<Pod>("brief leaves", |pods| names(pods) == ["stays"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_deployment_takes_its_sets_and_pods_along() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let cluster = Cluster::start(2).await;
        cluster.create::<Deployment>(deployment("web", 3)).await;
        cluster.rolled_out("web", "nginx:1").await;
        cluster.delete::<Deployment>("web", Some(propagation)).await;
        cluster.until::<Pod>("no pods", <[Pod]>::is_empty).await;
        cluster.until::<ReplicaSet>("no sets", <[ReplicaSet]>::is_empty).await;
        cluster.until::<Deployment>("no deployment", <[Deployment]>::is_empty).await;
        let idle = |system: &System| system.tree().iter().all(|info| !info.path.contains("/objects/"));
        let deadline = Instant::now() + WITHIN;
        while !idle(&cluster.system) {
            assert!(Instant::now() < deadline, "actors of objects that are gone remain");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphaned_pods_live_on_and_are_adopted_again() {
    let cluster = Cluster::start(2).await;
    let set = |name: &str| {
        let mut set = deployment(name, 2);
        set["spec"]["selector"] = json!({"matchLabels": {"app": "shared"}});
        set["spec"]["template"]["metadata"]["labels"] = json!({"app": "shared"});
        set
    };
    cluster.create::<ReplicaSet>(set("first")).await;
    let before: HashSet<_> = cluster.ready_pods(2).await.into_iter().map(|pod| pod.metadata.uid).collect();
    cluster.delete::<ReplicaSet>("first", Some(Propagation::Orphan)).await;
    cluster.until::<ReplicaSet>("no sets", <[ReplicaSet]>::is_empty).await;
    let free = |pods: &[Pod]| pods.iter().all(|pod| pod.metadata.owner_references.is_none());
    cluster.until::<Pod>("pods without owner", free).await;
    cluster.create::<ReplicaSet>(set("second")).await;
    let owned = |pods: &[Pod]| {
        pods.iter().all(|pod| ownership::controller_of(&pod.metadata).is_some_and(|o| o.name == "second"))
    };
    let pods = cluster.until::<Pod>("pods of the second set", owned).await;
    assert_eq!(pods.into_iter().map(|pod| pod.metadata.uid).collect::<HashSet<_>>(), before);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_emptied_and_goes() {
    let cluster = Cluster::start(2).await;
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "doomed"}})).unwrap();
    let options = WriteOptions::default();
    cluster.registry.api::<Namespace>().create(None, &namespace, &options).await.unwrap();
    let web: Deployment = serde_json::from_value(deployment("web", 3)).unwrap();
    cluster.registry.api::<Deployment>().create(Some("doomed"), &web, &options).await.unwrap();
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "cm"}, "data": {"a": "b"}})).unwrap();
    cluster.registry.api::<ConfigMap>().create(Some("doomed"), &map, &options).await.unwrap();
    cluster.ready_pods(3).await;
    cluster.registry.api::<Namespace>().delete(None, "doomed", &DeleteOptions::default()).await.unwrap();
    let gone = |all: &[Namespace]| all.iter().all(|namespace| namespace.metadata.name.as_deref() != Some("doomed"));
    cluster.until::<Namespace>("the namespace is gone", gone).await;
    assert!(cluster.list::<Pod>().await.is_empty() && cluster.list::<ConfigMap>().await.is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_whose_reconciler_panics_is_retried_and_others_are_not_disturbed() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&attempts);
    let fault: Fault = Arc::new(move |key| {
        if key == "default/cursed" && seen.fetch_add(1, Ordering::SeqCst) < 3 {
            panic!("injected fault");
        }
    });
    let cluster = Cluster::start_with(2, Some(fault)).await;
    cluster.create::<Deployment>(deployment("cursed", 2)).await;
    cluster.create::<Deployment>(deployment("fine", 2)).await;
    cluster.rolled_out("fine", "nginx:1").await;
    cluster.rolled_out("cursed", "nginx:1").await;
    assert!(attempts.load(Ordering::SeqCst) > 3);
    let restarts = |name: &str| {
        let path = reconcile::object_path("control/controllers/deployments", name);
        cluster.system.tree().into_iter().find(|info| *info.path == *path).unwrap().restarts
    };
    assert_eq!((restarts("default/cursed"), restarts("default/fine")), (3, 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_leadership_stops_everything_promptly_and_a_new_term_goes_on() {
    let cluster = Cluster::start(3).await;
    cluster.create::<Deployment>(deployment("web", 4)).await;
    cluster.ready_pods(4).await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 30}})).await;
    let began = Instant::now();
    assert_eq!(cluster.control.stop().await, Exit::Shutdown);
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    assert!(cluster.system.tree().is_empty());
    let deps = ControlDeps {
        registry: cluster.registry.clone(),
        recorder: Recorder::start(cluster.registry.clone()),
        runtime: Handle::current(),
        fault: None,
    };
    let (children, _watches) = control_children(&deps);
    let control =
        children.into_iter().fold(SupervisorSpec::new("control", Strategy::RestForOne), SupervisorSpec::child);
    cluster.system.start(control).await.unwrap();
    cluster.ready_pods(30).await;
    assert!(cluster.watches.pods.informer().is_synced());
    cluster.stop().await;
}
