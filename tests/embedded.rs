//! A cluster inside a program, through its public interface only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use phalanx::k8s_openapi::api::apps::v1::Deployment;
use phalanx::k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Node, Pod, Secret};
use phalanx::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use phalanx::{Cluster, ClusterError, LogOptions, TaskContext, WatchEvent};

/// Nothing here takes a tenth of it on an idle machine.
const WITHIN: Duration = Duration::from_secs(60);

fn config_map(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        data: Some(data.collect()),
        ..ConfigMap::default()
    }
}

fn deployment(name: &str, task: &str, replicas: u32) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: task/{task}}}]}}}}}}}}"
    )
}

fn ready(replicas: i32) -> impl Fn(&Deployment) -> bool {
    move |d| d.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0) == replicas
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn serve(context: TaskContext) -> Result<(), String> {
    context.log(format!("{} serves", context.pod()));
    context.stopped().await;
    Ok(())
}

async fn next<K>(watch: &mut phalanx::Watch<K>) -> WatchEvent<K> {
    let event = tokio::time::timeout(WITHIN, watch.next()).await.expect("an event in time");
    event.expect("the cluster lives").expect("no error")
}

#[tokio::test]
async fn objects_are_applied_read_watched_and_deleted() {
    let cluster = Cluster::builder().start().await.expect("started");
    let mut changes = cluster.watch::<ConfigMap>("default").await.expect("watched");

    let made = cluster.apply(&config_map("a", &[("x", "1"), ("y", "2")])).await.expect("applied");
    assert!(made.metadata.uid.is_some());
    let again = cluster.apply(&config_map("a", &[("x", "1"), ("y", "2")])).await.expect("applied again");
    assert_eq!(again.metadata.resource_version, made.metadata.resource_version, "nothing to change");
    let changed = cluster.apply(&config_map("a", &[("x", "3")])).await.expect("changed");
    let only_x = Some(BTreeMap::from([("x".to_owned(), "3".to_owned())]));
    assert_eq!(changed.data, only_x, "what is no longer declared goes");
    assert_eq!(cluster.get::<ConfigMap>(None, "a").await.expect("there").data, only_x);
    assert_eq!(cluster.list::<ConfigMap>("default").await.expect("listed").len(), 1);

    assert!(matches!(next(&mut changes).await, WatchEvent::Added(map) if map.data == made.data));
    assert!(matches!(next(&mut changes).await, WatchEvent::Modified(map) if map.data == only_x));
    cluster.delete::<ConfigMap>("default", "a").await.expect("deleted");
    assert!(matches!(next(&mut changes).await, WatchEvent::Deleted(map) if map.data == only_x));
    cluster.wait_gone::<ConfigMap>("default", "a", WITHIN).await.expect("gone");
    let error = cluster.delete::<ConfigMap>("default", "a").await.expect_err("gone already");
    assert_eq!(error.to_string(), "configmaps \"a\" not found");

    cluster.shutdown().await.expect("shut down");
    assert!(changes.next().await.is_none(), "a watch ends with its cluster");
}

#[tokio::test]
async fn bad_requests_get_one_clear_line() {
    let refused = |result: Result<Cluster, ClusterError>| result.expect_err("refused").to_string();
    assert_eq!(refused(Cluster::builder().nodes(0).start().await), "nodes must be 1 to 64, not 0");
    let says = "servers must be 1 to 2 in a cluster of 2, not 3";
    assert_eq!(refused(Cluster::builder().nodes(2).servers(3).start().await), says);

    let cluster = Cluster::builder().start().await.expect("started");
    let says = "there is no node n9 in this cluster; its nodes are n1";
    assert_eq!(cluster.kill_node("n9").await.expect_err("unknown").to_string(), says);
    assert_eq!(cluster.start_node("n1").await.expect_err("runs").to_string(), "node n1 is running already");
    let error = cluster.get::<Pod>("default", "web").await.expect_err("missing");
    assert_eq!(error.to_string(), "pods \"web\" not found");
    let error = cluster.apply(&config_map("Not_A_Name", &[])).await.expect_err("invalid").to_string();
    assert!(error.starts_with("ConfigMap \"Not_A_Name\" is invalid: metadata.name: Invalid value"), "{error}");
    let mut lost = config_map("a", &[]);
    lost.metadata.namespace = Some("nowhere".into());
    assert_eq!(cluster.apply(&lost).await.expect_err("404").to_string(), "namespaces \"nowhere\" not found");

    let good = "{apiVersion: v1, kind: ConfigMap, metadata: {name: good}}";
    let bad = "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: []}}";
    let error = cluster.apply_yaml(&format!("{good}\n---\n{bad}\n")).await.expect_err("second").to_string();
    assert!(error.starts_with("document 2 (line 3): Pod \"bad\" is invalid: spec.containers: Required"), "{error}");
    assert!(cluster.get::<ConfigMap>(None, "good").await.is_ok(), "the document before it was applied");

    let never = |_: &ConfigMap| false;
    let wait = cluster.wait_for(None, "good", never, Duration::from_millis(200)).await;
    let error = wait.expect_err("never").to_string();
    assert!(error.starts_with("ConfigMap default/good is not as awaited after 200 ms: {"), "{error}");
    let wait = cluster.wait_for(None, "nothing", never, Duration::from_millis(200)).await;
    let says = "ConfigMap default/nothing is not as awaited after 200 ms: it does not exist";
    assert_eq!(wait.expect_err("never").to_string(), says);

    cluster.kill_node("n1").await.expect("killed");
    let error = cluster.get::<ConfigMap>(None, "good").await.expect_err("nobody is there").to_string();
    assert_eq!(error, "no server of the cluster runs; start one with start_node");
    assert!(cluster.kill_node("n1").await.expect_err("dead").to_string().starts_with("node n1 is not running"));
    cluster.start_node("n1").await.expect("started again");
    cluster.get::<ConfigMap>(None, "good").await.expect("kept on disk");
    cluster.shutdown().await.expect("shut down");
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_leader_is_killed() {
    let cluster = Cluster::builder().nodes(3).start().await.expect("started");
    let mut changes = cluster.watch::<ConfigMap>("default").await.expect("watched");
    let mut told = BTreeSet::new();
    for round in 0..3 {
        let leader = cluster.leader().await.expect("a leader");
        // Writes that are under way when it dies, and writes after it.
        let writes = async {
            for i in 0..10 {
                cluster.apply(&config_map(&format!("m{round}-{i}"), &[])).await.expect("applied");
            }
        };
        let (_, killed) = tokio::join!(writes, cluster.kill_node(&leader));
        killed.expect("killed");
        cluster.apply(&config_map(&format!("m{round}-after"), &[])).await.expect("written without it");
        assert_ne!(cluster.leader().await.expect("another"), leader);
        assert_eq!(cluster.nodes().iter().filter(|n| n.running).count(), 2);
        cluster.start_node(&leader).await.expect("started again");
    }
    let there = cluster.list::<ConfigMap>("default").await.expect("listed");
    let there: BTreeSet<String> = there.into_iter().filter_map(|map| map.metadata.name).collect();
    assert_eq!(there.len(), 33);
    while told != there {
        let WatchEvent::Added(map) = next(&mut changes).await else { panic!("each is told once, as new") };
        assert!(told.insert(map.metadata.name.expect("named")), "told twice");
    }
    cluster.shutdown().await.expect("shut down");
}

#[tokio::test]
async fn two_clusters_in_one_process_know_nothing_of_each_other() {
    // On tasks of their own, as a program might do it.
    let start = || tokio::spawn(async { Cluster::builder().nodes(2).start().await.expect("started") });
    let (a, b) = tokio::join!(start(), start());
    let (a, b) = (a.expect("no panic"), b.expect("no panic"));
    a.apply(&config_map("mine", &[("of", "a")])).await.expect("applied");
    b.apply(&config_map("mine", &[("of", "b")])).await.expect("applied");
    let of = |map: ConfigMap| map.data.and_then(|mut data| data.remove("of"));
    assert_eq!(of(a.get(None, "mine").await.expect("there")).as_deref(), Some("a"));
    b.kill_node("n1").await.expect("killed");
    assert_eq!(of(a.get(None, "mine").await.expect("there")).as_deref(), Some("a"));
    let dirs = [a.dir().to_owned(), b.dir().to_owned()];
    let shut_down = tokio::spawn(async move {
        a.wait_for::<ConfigMap>(None, "mine", |_| true, WITHIN).await.expect("there");
        a.shutdown().await
    });
    shut_down.await.expect("no panic").expect("shut down");
    drop(b);
    assert_eq!(dirs.map(|dir| dir.exists()), [false, false], "temporary directories go with their clusters");
}

#[tokio::test]
async fn a_cluster_with_a_directory_is_resumed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let builder = || Cluster::builder().nodes(3).dir(dir.path());
    let cluster = builder().start().await.expect("started");
    cluster.apply(&config_map("kept", &[])).await.expect("applied");
    let error = builder().start().await.expect_err("in use").to_string();
    assert!(error.contains("is running already; choose another directory"), "{error}");
    cluster.shutdown().await.expect("shut down");
    assert!(builder().nodes(2).start().await.is_err(), "it has three");
    let cluster = Cluster::builder().dir(dir.path()).start().await.expect("resumed");
    assert_eq!(cluster.nodes().len(), 3);
    cluster.get::<ConfigMap>(None, "kept").await.expect("still there");
    cluster.shutdown().await.expect("shut down");
}

#[tokio::test]
async fn a_client_reaches_it_as_any_kubernetes() {
    let cluster = Cluster::builder().start().await.expect("started");
    cluster.apply(&config_map("seen", &[])).await.expect("applied");
    let client = cluster.client().await.expect("client");
    let api: phalanx::kube::Api<ConfigMap> = phalanx::kube::Api::namespaced(client.clone(), "default");
    assert_eq!(api.get("seen").await.expect("over HTTPS").metadata.name.as_deref(), Some("seen"));
    let secrets: phalanx::kube::Api<Secret> = phalanx::kube::Api::all(client);
    assert!(secrets.list(&Default::default()).await.expect("listed").items.is_empty());
    cluster.shutdown().await.expect("shut down");
}

#[tokio::test]
async fn pods_of_a_killed_node_move_and_their_tasks_die_with_it() {
    let (alive, count) =
        (std::sync::Arc::new(std::sync::atomic::AtomicI32::new(0)), std::sync::atomic::Ordering::SeqCst);
    let counter = alive.clone();
    struct Leaving(std::sync::Arc<std::sync::atomic::AtomicI32>);
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let builder = Cluster::builder().nodes(4).task("serve", move |context: TaskContext| {
        counter.fetch_add(1, count);
        let leaving = Leaving(counter.clone());
        async move {
            let _leaving = leaving;
            serve(context).await
        }
    });
    let cluster = builder.start().await.expect("started");
    cluster.apply_yaml(&deployment("web", "serve", 8)).await.expect("applied");
    cluster.wait_for("default", "web", ready(8), WITHIN).await.expect("all Ready");
    let on = |pods: &[Pod], node: &str| {
        pods.iter().filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)).count()
    };
    let pods = cluster.select::<Pod>("default", "app=web").await.expect("listed");
    assert!(on(&pods, "n4") > 0, "spread over all nodes");
    let name = pods[0].metadata.name.clone().expect("named");
    let log = cluster.logs("default", &name, &LogOptions::default()).await.expect("its log");
    assert_eq!(log, format!("{name} serves\n"));

    let before = alive.load(count);
    cluster.kill_node("n4").await.expect("killed");
    assert!(alive.load(count) < before, "its tasks are gone when the call returns");
    let elsewhere = async {
        let mut watch = cluster.watch_selected::<Pod>("default", "app=web").await.expect("watched");
        loop {
            let pods = cluster.select::<Pod>("default", "app=web").await.expect("listed");
            let ready = |p: &&Pod| container(p).is_some_and(|c| c.ready) && p.metadata.deletion_timestamp.is_none();
            let serving: Vec<Pod> = pods.iter().filter(ready).cloned().collect();
            if serving.len() == 8 && on(&serving, "n4") == 0 {
                return;
            }
            watch.next().await;
        }
    };
    tokio::time::timeout(WITHIN, elsewhere).await.expect("replaced");
    cluster.start_node("n4").await.expect("started again");
    cluster.wait_for("default", "web", ready(8), WITHIN).await.expect("all Ready");
    cluster.shutdown().await.expect("shut down");
    assert_eq!(alive.load(count), 0, "no task outlives its cluster");
}

#[tokio::test]
async fn a_task_that_panics_is_restarted_and_counted() {
    let fragile = |context: TaskContext| async move {
        if context.restarts() == 0 {
            panic!("the first run is doomed");
        }
        serve(context).await
    };
    let cluster = Cluster::builder().task("fragile", fragile).start().await.expect("started");
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: task/fragile}]}}";
    cluster.apply_yaml(pod).await.expect("applied");
    let restarted = |pod: &Pod| container(pod).is_some_and(|c| c.ready && c.restart_count == 1);
    let pod: Pod = cluster.wait_for(None, "p", restarted, WITHIN).await.expect("restarted");
    let last = container(&pod).and_then(|c| c.last_state.as_ref()?.terminated.clone()).expect("a last state");
    assert_eq!((last.exit_code, last.message.as_deref()), (101, Some("panicked: the first run is doomed")));
    let previous = LogOptions { previous: true, ..LogOptions::default() };
    let log = cluster.logs(None, "p", &previous).await.expect("the log of the first run");
    assert!(log.contains("panicked: the first run is doomed"), "{log}");
    let tree = cluster.tree();
    let actors = &tree["n1"];
    assert!(actors.iter().any(|a| a.path.starts_with("agent/pods/default_p/")), "its actors are in the tree");
    cluster.delete::<Pod>(None, "p").await.expect("deleted");
    cluster.wait_gone::<Pod>(None, "p", WITHIN).await.expect("gone");
    cluster.shutdown().await.expect("shut down");
}

#[tokio::test]
async fn a_watch_leaves_a_server_that_is_cut_off() {
    let cluster = Cluster::builder().nodes(3).start().await.expect("started");
    let mut changes = cluster.watch::<ConfigMap>("default").await.expect("watched");
    // Whichever it began at, each is cut off once.
    for node in ["n1", "n2", "n3"] {
        cluster.partition_node(node).expect("cut");
        cluster.apply(&config_map(node, &[])).await.expect("the others are a majority");
        assert!(
            matches!(next(&mut changes).await, WatchEvent::Added(map) if map.metadata.name.as_deref() == Some(node))
        );
        cluster.heal_node(node).expect("healed");
        // Back before the next one goes: two of three are needed.
        cluster.wait_for::<Node>(None, node, is_ready, WITHIN).await.expect("back");
    }
    cluster.shutdown().await.expect("shut down");
}

/// Dropped without a word, inside a runtime of one thread, with a watch that is still held. In a process of its own, whose
/// threads and files are all its own.
#[tokio::test]
async fn a_dropped_cluster_leaves_no_thread_and_no_file_behind() {
    const ALONE: &str = "PHALANX_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().expect("this test"));
        alone.args(["--exact", "a_dropped_cluster_leaves_no_thread_and_no_file_behind"]).env(ALONE, "1");
        let output = alone.output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let count = |of: &str| std::fs::read_dir(format!("/proc/self/{of}")).expect("readable").count();
    let before = (count("task"), count("fd"));
    let cluster = Cluster::builder().nodes(3).task("serve", serve).start().await.expect("started");
    cluster.apply_yaml(&deployment("web", "serve", 3)).await.expect("applied");
    cluster.wait_for("default", "web", ready(3), WITHIN).await.expect("all Ready");
    let dir = cluster.dir().to_owned();
    let mut watch = cluster.watch::<ConfigMap>(None).await.expect("watched");
    assert!(count("task") > before.0 + 9);
    drop(cluster);
    assert!(!dir.exists());
    let rest = async { while watch.next().await.is_some() {} };
    tokio::time::timeout(WITHIN, rest).await.expect("the watch ends");
    drop(watch);
    let deadline = std::time::Instant::now() + WITHIN;
    while count("task") > before.0 || count("fd") > before.1 {
        assert!(std::time::Instant::now() < deadline, "{before:?} became {} and {}", count("task"), count("fd"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn without_a_majority_a_request_fails_in_time_and_the_cluster_recovers() {
    let cluster = Cluster::builder().nodes(3).start().await.expect("started");
    cluster.apply(&config_map("kept", &[])).await.expect("applied");
    cluster.kill_node("n1").await.expect("killed");
    cluster.kill_node("n2").await.expect("killed");
    let error = cluster.apply(&config_map("lost", &[])).await.expect_err("one of three").to_string();
    assert!(error.starts_with("the cluster did not do it within 10 s: "), "{error}");
    cluster.start_node("n2").await.expect("started again");
    cluster.get::<ConfigMap>(None, "kept").await.expect("kept");
    cluster.apply(&config_map("new", &[])).await.expect("two of three");
    cluster.shutdown().await.expect("shut down");
}

#[tokio::test]
async fn processes_die_with_their_node_and_with_their_cluster() {
    let phalanx = env!("CARGO_BIN_EXE_phalanx");
    let cluster = Cluster::builder().processes(phalanx).start().await.expect("started");
    // Kubernetes makes one dollar of two.
    let pid_of = async |name: &str| {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{runtimeClassName: process, \
             containers: [{{name: c, image: none, command: [sh, -c, 'echo $$$$; exec sleep 1000']}}]}}}}"
        );
        cluster.apply_yaml(&pod).await.expect("applied");
        let running = |pod: &Pod| container(pod).is_some_and(|c| c.ready);
        cluster.wait_for::<Pod>(None, name, running, WITHIN).await.expect("running");
        loop {
            let log = cluster.logs(None, name, &LogOptions::default()).await.expect("its log");
            if let Some((pid, _)) = log.split_once('\n') {
                return pid.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // What has died and waits for init to notice has no command line.
    let exists = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    let first = pid_of("first").await;
    assert!(exists(&first));
    cluster.kill_node("n1").await.expect("killed");
    assert!(!exists(&first), "it died with its node");
    cluster.start_node("n1").await.expect("started again");
    let second = pid_of("second").await;
    assert!(exists(&second));
    cluster.shutdown().await.expect("shut down");
    assert!(!exists(&second), "it ended with its cluster");
}
