use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::api::{FieldSelector, LabelSelector, Patch, Status, meta};
use crate::store::{MemoryNetwork, ReplicatedStore, StoreConfig};

const WAIT: Duration = Duration::from_secs(20);

/// A registry over a real store of one server.
struct Cluster {
    registry: Registry,
    store: ReplicatedStore,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::new("test", 1, "s1", "s1:1", dir.path(), MemoryNetwork::new().transport(1));
        let store = ReplicatedStore::start(config).await.unwrap();
        store.bootstrap().await.unwrap();
        store.wait_for_leader(WAIT).await.unwrap();
        let registry = Registry::new(Kinds::builtin(), Arc::new(store.clone()));
        registry.ensure_bootstrap().await.unwrap();
        Cluster { registry, store, _dir: dir }
    }

    fn kind(&self, name: &str) -> Arc<Kind> {
        self.registry.kinds().by_any_name(name).unwrap().clone()
    }

    async fn create(&self, object: Value) -> Result<Object, Status> {
        let kind = self.registry.kind_of(&object).unwrap();
        let namespace = object["metadata"]["namespace"].as_str().or(kind.namespaced.then_some("default"));
        self.registry.create(&kind, namespace, object.clone(), &WriteOptions::default()).await
    }

    async fn patch(&self, kind: &str, name: &str, patch: Value) -> Result<Object, Status> {
        let patch = Patch::Merge(patch);
        let kind = self.kind(kind);
        self.registry.patch(&kind, Some("default"), name, None, &patch, &WriteOptions::default()).await
    }

    async fn delete(&self, kind: &str, name: &str, options: DeleteOptions) -> Result<Deleted, Status> {
        self.registry.delete(&self.kind(kind), Some("default"), name, &options).await
    }

    async fn get(&self, kind: &str, name: &str) -> Result<Object, Status> {
        self.registry.get(&self.kind(kind), Some("default"), name).await
    }

    async fn end(self) {
        self.store.shutdown().await;
    }
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    })
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> u16 {
    result.unwrap_err().http_code()
}

async fn next(watch: &mut ObjectWatch) -> ObjectEvent {
    timeout(WAIT, watch.next()).await.expect("an event").expect("the watch goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_created_once_and_a_write_of_the_same_changes_nothing() {
    let cluster = Cluster::start().await;
    let created = cluster.create(config_map("a", json!({"k": "v"}))).await.unwrap();
    assert_eq!(meta::namespace(&created), "default");
    assert!(!meta::uid(&created).is_empty() && meta::creation_timestamp(&created).is_some());
    assert_eq!(cluster.get("cm", "a").await.unwrap(), created);
    assert_eq!(code(cluster.create(config_map("a", json!({}))).await), 409);

    let revision = cluster.store_revision();
    assert_eq!(cluster.patch("cm", "a", json!({"data": {"k": "v"}})).await.unwrap(), created);
    let kind = cluster.kind("cm");
    let options = WriteOptions::default();
    let same = cluster.registry.update(&kind, Some("default"), "a", None, created.clone(), &options).await.unwrap();
    assert_eq!(same, created);
    assert_eq!(cluster.store_revision(), revision);

    let mut generated = config_map("", json!({}));
    generated["metadata"] = json!({"generateName": "web-"});
    let generated = cluster.create(generated).await.unwrap();
    assert!(meta::name(&generated).starts_with("web-") && meta::name(&generated).len() == 9);
    cluster.end().await;
}

impl Cluster {
    fn store_revision(&self) -> u64 {
        self.registry.store().revision()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_version_conflicts_and_writers_without_one_all_win() {
    let cluster = Cluster::start().await;
    let first = cluster.create(config_map("a", json!({}))).await.unwrap();
    cluster.patch("cm", "a", json!({"data": {"x": "1"}})).await.unwrap();
    let kind = cluster.kind("cm");
    let stale = cluster
        .registry
        .update(&kind, Some("default"), "a", None, first.clone(), &WriteOptions::default())
        .await
        .unwrap_err();
    assert!(
        stale.message.starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );
    let mut another = first.clone();
    meta::set_text(&mut another, "uid", "someone-else");
    meta::set_text(&mut another, "resourceVersion", "");
    let options = WriteOptions::default();
    assert_eq!(code(cluster.registry.update(&kind, Some("default"), "a", None, another, &options).await), 409);

    let writers = (0..8).map(|n| {
        let (registry, kind) = (cluster.registry.clone(), kind.clone());
        tokio::spawn(async move {
            let patch = Patch::Merge(json!({"data": {format!("w{n}"): "1"}}));
            registry.patch(&kind, Some("default"), "a", None, &patch, &WriteOptions::default()).await
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
    let data = cluster.get("cm", "a").await.unwrap()["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 9);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_answers_like_a_write_and_stores_nothing() {
    let cluster = Cluster::start().await;
    let kind = cluster.kind("cm");
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let made = cluster.registry.create(&kind, Some("default"), config_map("a", json!({})), &dry).await.unwrap();
    assert!(!meta::uid(&made).is_empty());
    assert_eq!(code(cluster.get("cm", "a").await), 404);
    cluster.create(config_map("a", json!({"x": "1"}))).await.unwrap();
    assert_eq!(code(cluster.registry.create(&kind, Some("default"), config_map("a", json!({})), &dry).await), 409);
    let patch = Patch::Merge(json!({"data": {"x": "2"}}));
    let changed = cluster.registry.patch(&kind, Some("default"), "a", None, &patch, &dry).await.unwrap();
    assert_eq!(changed["data"]["x"], "2");
    let options = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    cluster.delete("cm", "a", options).await.unwrap();
    assert_eq!(cluster.get("cm", "a").await.unwrap()["data"]["x"], "1");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_created_in_a_namespace_that_is_missing_or_going() {
    let cluster = Cluster::start().await;
    let mut lost = config_map("a", json!({}));
    lost["metadata"]["namespace"] = "nope".into();
    let status = cluster.create(lost.clone()).await.unwrap_err();
    assert_eq!(status.message, "namespaces \"nope\" not found");
    cluster.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nope"}})).await.unwrap();
    cluster.create(lost.clone()).await.unwrap();
    let namespaces = cluster.kind("ns");
    let going = cluster.registry.delete(&namespaces, None, "nope", &DeleteOptions::default()).await.unwrap();
    assert!(matches!(&going, Deleted::Terminating(ns) if ns["status"]["phase"] == "Terminating"), "{going:?}");
    meta::set_text(&mut lost, "name", "b");
    let status = cluster.create(lost).await.unwrap_err();
    assert_eq!(
        status.message,
        "configmaps \"b\" is forbidden: unable to create new content in namespace nope because it is being terminated"
    );
    // The namespace goes once its finalizer is taken off.
    let mut done = going.object().clone();
    done["spec"]["finalizers"] = json!([]);
    cluster.registry.update(&namespaces, None, "nope", Some("finalize"), done, &WriteOptions::default()).await.unwrap();
    assert_eq!(code(cluster.registry.get(&namespaces, None, "nope").await), 404);
    let immortal = cluster.registry.delete(&namespaces, None, "default", &DeleteOptions::default()).await;
    assert_eq!(immortal.unwrap_err().message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_and_grace_hold_an_object_until_they_are_done() {
    let cluster = Cluster::start().await;
    let mut held = config_map("a", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let created = cluster.create(held).await.unwrap();
    let wrong = DeleteOptions { uid: Some("nope".to_owned()), ..DeleteOptions::default() };
    assert_eq!(code(cluster.delete("cm", "a", wrong).await), 409);
    let going = cluster.delete("cm", "a", DeleteOptions::default()).await.unwrap();
    assert!(matches!(&going, Deleted::Terminating(cm) if meta::is_terminating(cm)));
    let again = cluster.delete("cm", "a", DeleteOptions::default()).await.unwrap();
    assert_eq!(again, going, "a second delete changes nothing");
    cluster.patch("cm", "a", json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert_eq!(code(cluster.get("cm", "a").await), 404);

    let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
    cluster.create(config_map("b", json!({}))).await.unwrap();
    let going = cluster.delete("cm", "b", foreground).await.unwrap();
    assert_eq!(meta::finalizers(going.object()), ["foregroundDeletion"]);

    // A pod goes at once while no node has it, and by its node's word afterwards.
    cluster.create(pod("free")).await.unwrap();
    assert!(matches!(cluster.delete("pod", "free", DeleteOptions::default()).await.unwrap(), Deleted::Removed(_)));
    cluster.create(pod("bound")).await.unwrap();
    cluster.bind("bound", "", "n1").await.unwrap();
    let going = cluster.delete("pod", "bound", DeleteOptions::default()).await.unwrap();
    assert_eq!(going.object()["metadata"]["deletionGracePeriodSeconds"], 30);
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    assert!(matches!(cluster.delete("pod", "bound", now).await.unwrap(), Deleted::Removed(_)));
    assert_eq!(code(cluster.delete("cm", "a", DeleteOptions::default()).await), 404);
    assert_ne!(meta::uid(&created), "");
    cluster.end().await;
}

impl Cluster {
    async fn bind(&self, name: &str, uid: &str, node: &str) -> Result<(), Status> {
        let binding = Binding {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            node: node.to_owned(),
        };
        self.registry.bind_many(vec![binding]).await.remove(0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_list_fit_together_whatever_is_written_meanwhile() {
    let cluster = Cluster::start().await;
    for n in 0..7 {
        let mut object = config_map(&format!("c{n}"), json!({}));
        object["metadata"]["labels"] = json!({"parity": if n % 2 == 0 { "even" } else { "odd" }});
        cluster.create(object).await.unwrap();
    }
    let kind = cluster.kind("cm");
    for (selector, expected) in [("", 7), ("parity=odd", 3)] {
        let mut options =
            ListOptions { limit: 2, label: LabelSelector::parse(selector).unwrap(), ..ListOptions::default() };
        let mut names = Vec::new();
        loop {
            let page = cluster.registry.list(&kind, Some("default"), &options).await.unwrap();
            assert!(page.items.len() <= 2);
            if names.is_empty() && selector.is_empty() {
                assert_eq!(page.remaining, Some(5));
            }
            names.extend(page.items.iter().map(|item| meta::name(item).to_owned()));
            let _ = cluster.create(config_map("c0a", json!({}))).await;
            if page.continue_token.is_empty() {
                break;
            }
            options.continue_token = page.continue_token;
        }
        assert_eq!(names.len(), expected, "{names:?}");
        let _ = cluster.delete("cm", "c0a", DeleteOptions::default()).await;
    }
    let one = ListOptions { field: FieldSelector::parse(&kind, "metadata.name=c3").unwrap(), ..ListOptions::default() };
    assert_eq!(cluster.registry.list(&kind, Some("default"), &one).await.unwrap().items.len(), 1);
    assert_eq!(cluster.registry.list(&kind, None, &one).await.unwrap().items.len(), 1);
    let broken = ListOptions { continue_token: "xx".to_owned(), ..ListOptions::default() };
    assert_eq!(code(cluster.registry.list(&kind, None, &broken).await), 400);
    let exact = ListOptions {
        resource_version: "1".to_owned(),
        version_match: Some(VersionMatch::Exact),
        ..ListOptions::default()
    };
    assert_eq!(cluster.registry.list(&kind, None, &exact).await.unwrap().items.len(), 0);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_when_an_object_begins_and_ceases_to_match() {
    let cluster = Cluster::start().await;
    let kind = cluster.kind("cm");
    let before = cluster.store_revision();
    let options = WatchOptions {
        label: LabelSelector::parse("on=yes").unwrap(),
        resource_version: before.to_string(),
        ..WatchOptions::default()
    };
    let mut watch = cluster.registry.watch(&kind, Some("default"), &options).await.unwrap();
    cluster.create(config_map("a", json!({"n": "1"}))).await.unwrap();
    cluster.patch("cm", "a", json!({"metadata": {"labels": {"on": "yes"}}})).await.unwrap();
    let changed = cluster.patch("cm", "a", json!({"data": {"n": "2"}})).await.unwrap();
    let off = cluster.patch("cm", "a", json!({"metadata": {"labels": {"on": "no"}}})).await.unwrap();
    assert!(matches!(next(&mut watch).await, ObjectEvent::Added(cm) if cm["data"]["n"] == "1"));
    assert_eq!(next(&mut watch).await, ObjectEvent::Modified(changed.clone()));
    let ObjectEvent::Deleted(last) = next(&mut watch).await else { panic!("it left the selection") };
    assert_eq!(last["data"], changed["data"]);
    assert_eq!(meta::label(&last, "on"), Some("yes"), "the last state that matched");
    assert_eq!(meta::resource_version(&last), meta::resource_version(&off), "at the revision it left");

    // A watch-list: what is there, then a bookmark that says so, then what comes.
    let options = WatchOptions { send_initial_events: true, bookmarks: true, ..WatchOptions::default() };
    let mut watch = cluster.registry.watch(&kind, Some("default"), &options).await.unwrap();
    assert_eq!(next(&mut watch).await, ObjectEvent::Added(off.clone()));
    let ObjectEvent::Bookmark(end) = next(&mut watch).await else { panic!("the end of the initial events") };
    assert_eq!(meta::annotation(&end, INITIAL_EVENTS_END), Some("true"));
    cluster.delete("cm", "a", DeleteOptions::default()).await.unwrap();
    let ObjectEvent::Deleted(gone) = next(&mut watch).await else { panic!("the deletion") };
    assert!(meta::resource_version(&gone) > meta::resource_version(&off));

    cluster.store.compact(cluster.store_revision()).await.unwrap();
    let old = WatchOptions { resource_version: before.to_string(), ..WatchOptions::default() };
    assert_eq!(code(cluster.registry.watch(&kind, None, &old).await.map(|_| ())), 410);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_bound_once_and_only_the_pod_that_was_meant() {
    let cluster = Cluster::start().await;
    let created = cluster.create(pod("a")).await.unwrap();
    cluster.create(pod("b")).await.unwrap();
    let binding = |name: &str, uid: &str| Binding {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        node: "n1".to_owned(),
    };
    let answers = cluster
        .registry
        .bind_many(vec![binding("a", meta::uid(&created)), binding("b", "another"), binding("nope", "")])
        .await;
    assert!(answers[0].is_ok());
    assert_eq!(answers[1].as_ref().unwrap_err().http_code(), 409);
    assert_eq!(answers[2].as_ref().unwrap_err().message, "pods \"nope\" not found");
    let bound = cluster.get("pod", "a").await.unwrap();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let scheduled = bound["status"]["conditions"].as_array().unwrap();
    assert!(scheduled.iter().any(|c| c["type"] == "PodScheduled" && c["status"] == "True"));
    let again = cluster.bind("a", "", "n2").await.unwrap_err();
    assert!(again.message.ends_with("pod a is already assigned to node \"n1\""), "{}", again.message);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_are_written_together_and_equal_ones_not_at_all() {
    let cluster = Cluster::start().await;
    let created = cluster.create(pod("a")).await.unwrap();
    let kind = cluster.kind("pod");
    let report = |uid: &str, phase: &str| StatusReport {
        namespace: "default".to_owned(),
        name: "a".to_owned(),
        uid: uid.to_owned(),
        status: json!({"phase": phase}),
    };
    let reports = vec![report(meta::uid(&created), "Running"), report("another", "Failed")];
    let answers = cluster.registry.update_status_many(&kind, reports).await;
    assert_eq!(answers[0].as_ref().unwrap()["status"]["phase"], "Running");
    assert_eq!(answers[1].as_ref().unwrap_err().http_code(), 409);
    let revision = cluster.store_revision();
    let answers = cluster.registry.update_status_many(&kind, vec![report(meta::uid(&created), "Running")]).await;
    assert!(answers[0].is_ok());
    assert_eq!(cluster.store_revision(), revision);
    // Two reports about one object in one call: the later one stands.
    let uid = meta::uid(&created);
    let answers =
        cluster.registry.update_status_many(&kind, vec![report(uid, "Pending"), report(uid, "Succeeded")]).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(cluster.get("pod", "a").await.unwrap()["status"]["phase"], "Succeeded");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_informer_ends_with_the_present_state_though_history_was_dropped() {
    let cluster = Cluster::start().await;
    cluster.create(config_map("early", json!({}))).await.unwrap();
    let options = InformerOptions { namespace: Some("default".to_owned()), ..InformerOptions::default() };
    let (informer, mut events) = Informer::<ConfigMap>::start(&cluster.registry, options);
    timeout(WAIT, informer.synced()).await.unwrap();
    assert!(informer.get("default/early").is_some());
    let mut seen = Vec::new();
    for n in 0..50 {
        cluster.create(config_map(&format!("c{n}"), json!({}))).await.unwrap();
    }
    cluster.delete("cm", "early", DeleteOptions::default()).await.unwrap();
    cluster.store.compact(cluster.store_revision()).await.unwrap();
    cluster.create(config_map("last", json!({}))).await.unwrap();
    timeout(WAIT, async {
        while !(seen.contains(&"last".to_owned()) && seen.contains(&"-early".to_owned())) {
            match events.recv().await.unwrap() {
                InformerEvent::Applied { new, .. } => seen.push(new.metadata.name.clone().unwrap()),
                InformerEvent::Deleted(old) => seen.push(format!("-{}", old.metadata.name.clone().unwrap())),
                InformerEvent::Resynced => {}
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(informer.len(), 51);
    assert!(informer.get("default/early").is_none());
    for n in 0..50 {
        assert!(seen.contains(&format!("c{n}")), "c{n} in {seen:?}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_events_are_counted_in_one_object() {
    let cluster = Cluster::start().await;
    let created = cluster.create(pod("a")).await.unwrap();
    let recorder = Recorder::start(cluster.registry.clone());
    let about = ObjectRef::of(&created);
    for _ in 0..3 {
        recorder.record(&about, EventType::Warning, "BackOff", "restarting", "kubelet");
    }
    recorder.record(&about, EventType::Normal, "Started", "started", "kubelet");
    let kind = cluster.kind("events");
    let field = FieldSelector::parse(&kind, "involvedObject.name=a").unwrap();
    let list = ListOptions { field, ..ListOptions::default() };
    let events = timeout(WAIT, async {
        loop {
            let events = cluster.registry.list(&kind, Some("default"), &list).await.unwrap().items;
            if events.len() == 2 && events.iter().any(|event| event["count"] == 3) {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let repeated = events.iter().find(|event| event["count"] == 3).unwrap();
    assert_eq!(repeated["reason"], "BackOff");
    assert_eq!(repeated["involvedObject"]["uid"], meta::uid(&created));
    assert_eq!(recorder.dropped(), 0);

    // A new leader's recorder knows nothing of the last one's, and counts on all the same.
    drop(recorder);
    let next = Recorder::start(cluster.registry.clone());
    next.record(&about, EventType::Warning, "BackOff", "restarting", "kubelet");
    timeout(WAIT, async {
        loop {
            let events = cluster.registry.list(&kind, Some("default"), &list).await.unwrap().items;
            assert_eq!(events.len(), 2);
            if events.iter().any(|event| event["count"] == 4) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scale_is_a_view_of_the_replicas() {
    let cluster = Cluster::start().await;
    cluster
        .create(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}},
        }))
        .await
        .unwrap();
    let kind = cluster.kind("deploy");
    let scale = cluster.registry.scale(&kind, Some("default"), "web").await.unwrap();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("a=b")));
    let patch = |replicas: i64| Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let options = WriteOptions::default();
    let registry = &cluster.registry;
    let scaled = registry.patch(&kind, Some("default"), "web", Some("scale"), &patch(5), &options).await.unwrap();
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(5)));
    let target = cluster.get("deploy", "web").await.unwrap();
    assert_eq!((&target["spec"]["replicas"], meta::generation(&target)), (&json!(5), 2));
    let negative = registry.patch(&kind, Some("default"), "web", Some("scale"), &patch(-1), &options).await;
    assert_eq!(
        negative.unwrap_err().message,
        "Scale.autoscaling \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
    let stale = registry.update(&kind, Some("default"), "web", Some("scale"), scale, &options).await;
    assert_eq!(code(stale), 409);
    cluster.end().await;
}
