//! Pods on real clusters of processes: what runs where, before and after `kill -9`, as the API and as the process table
//! see it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

#[allow(dead_code, reason = "shared with the tests of clusters, which need more of it")]
mod support;

use support::{Cluster, PHALANX, is_ready, processes_in, state, text};

/// A Deployment whose containers end at once when they are asked to, and say that they began.
fn deployment(replicas: u32) -> String {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"runtimeClassName": "process", "terminationGracePeriodSeconds": 5, "containers": [{
                    "name": "web",
                    "image": "nginx:1",
                    "command": ["sh", "-c", "echo it begins; exec sleep 1000"],
                }]},
            },
        },
    })
    .to_string()
}

fn pod(name: &str, spec: Value) -> String {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "c", "image": "x", "command": ["sleep", "1000"],
        }]},
    });
    for (field, value) in spec.as_object().expect("fields") {
        pod["spec"][field] = value.clone();
    }
    pod.to_string()
}

/// A node that runs pods and is none of the servers, which come first.
fn an_agent_of(placement: &support::Placement, servers: u32) -> String {
    let mut agents = placement.keys().filter(|node| **node > format!("n{servers}"));
    agents.next().expect("pods are spread over all nodes").clone()
}

#[test]
fn pods_of_a_killed_node_are_replaced_on_the_others() {
    let cluster = Cluster::with_nodes(5, 3);
    cluster.apply(&deployment(8));
    let before = cluster.settled(8);
    let victim = an_agent_of(&before, 3);
    cluster.must(&["chaos", "kill", &victim]);
    cluster.until("lost", |s| state(s, &victim) == "Lost");
    let after = cluster.settled(8);
    assert!(!after.contains_key(&victim), "{after:?}");
    let gone = &before[&victim];
    assert!(after.values().all(|uids| uids.is_disjoint(gone)), "new pods, not the old ones: {after:?}");
    cluster.wait_for("told why", || {
        let events = cluster.list("events").unwrap_or_default();
        let told = |kind: &str| {
            let is = |e: &&Value| e["reason"] == "NodeNotReady" && e["involvedObject"]["kind"] == kind;
            events.iter().find(is).is_some()
        };
        told("Node") && told("Pod")
    });
}

#[test]
fn a_node_that_comes_back_stops_what_was_replaced() {
    let cluster = Cluster::with_nodes(4, 1);
    cluster.apply(&deployment(6));
    let before = cluster.settled(6);
    let victim = an_agent_of(&before, 1);
    // Its containers go on without it: to the others it looks as if the machine had died.
    cluster.kill_process(&victim);
    cluster.wait_for("replaced", || {
        let pods = cluster.list("pods").unwrap_or_default();
        pods.len() == 6 && pods.iter().all(|pod| is_ready(pod) && pod["spec"]["nodeName"] != *victim)
    });
    assert_eq!(cluster.running()[&victim], before[&victim], "nobody was there to stop them");
    cluster.must(&["chaos", "start", &victim]);
    let after = cluster.settled(6);
    assert!(!after.contains_key(&victim), "{after:?}");
}

#[test]
fn a_node_cut_off_and_healed_ends_up_with_exactly_its_pods() {
    let cluster = Cluster::with_nodes(4, 1);
    cluster.apply(&deployment(6));
    let before = cluster.settled(6);
    let victim = an_agent_of(&before, 1);
    cluster.must(&["chaos", "partition", &victim]);
    cluster.wait_for("replaced", || {
        let pods = cluster.list("pods").unwrap_or_default();
        pods.len() == 6 && pods.iter().all(|pod| is_ready(pod) && pod["spec"]["nodeName"] != *victim)
    });
    assert_eq!(cluster.running()[&victim], before[&victim], "what is not exclusive goes on");
    // More for it to do when it is back, and less.
    cluster.apply(&deployment(3));
    cluster.must(&["chaos", "heal", &victim]);
    cluster.all_ready();
    cluster.settled(3);
    cluster.apply(&deployment(12));
    let after = cluster.settled(12);
    assert!(after.contains_key(&victim), "it takes pods again: {after:?}");
}

#[test]
fn a_killed_agent_process_adopts_its_containers() {
    let cluster = Cluster::with_nodes(2, 1);
    // It stays even when the node is declared lost meanwhile: a slow machine may take that long to start the agent.
    cluster.apply(&pod(
        "pinned",
        json!({
            "nodeSelector": {"kubernetes.io/hostname": "n2"},
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists"}],
        }),
    ));
    let before = cluster.settled(1);
    let uid = before["n2"].first().expect("one pod").clone();
    let pids = cluster.pids(&uid);
    assert_eq!(pids.len(), 1);
    cluster.kill_process("n2");
    assert_eq!(cluster.pids(&uid), pids, "they go on");
    cluster.must(&["chaos", "start", "n2"]);
    cluster.until("back", |s| state(s, "n2") == "Ready" && support::node_of(s, "n2")["incarnation"] == 2);
    assert_eq!(cluster.settled(1), before);
    assert_eq!(cluster.pids(&uid), pids, "the same processes");
    let pods = cluster.listed("pods");
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 0);
    // It is watched over as before.
    cluster.must(&["delete", "pod", "pinned"]);
    cluster.settled(0);
}

#[test]
fn no_acknowledged_write_is_lost_when_the_leader_is_killed() {
    let cluster = Cluster::with_nodes(3, 3);
    let leader = text(&cluster.all_ready()["leader"]);
    // Away from the cluster's directory, which would tell of other servers: the address in it must do.
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let kubeconfig = elsewhere.path().join("kubeconfig");
    std::fs::copy(cluster.dir().join("kubeconfig"), &kubeconfig).expect("copied");
    let mut acknowledged = BTreeSet::new();
    let mut write = |number: u32| {
        let name = format!("c{number}");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}});
        let file = cluster.file("map.json", &map.to_string());
        let mut apply = Command::new(PHALANX);
        apply.args(["apply", "-f"]).arg(file).arg("--kubeconfig").arg(&kubeconfig);
        let written = apply.output().expect("run").status.success();
        if written {
            acknowledged.insert(name);
        }
        written
    };
    let mut numbers = 0..;
    let mut next = || numbers.next().expect("endless");
    for _ in 0..5 {
        write(next());
    }
    cluster.must(&["chaos", "kill", &leader]);
    let mut after = 0;
    cluster.wait_for("written under a new leader", || {
        after += u32::from(write(next()));
        after == 10
    });
    cluster.must(&["chaos", "start", &leader]);
    cluster.all_ready();
    let maps = cluster.listed("configmaps");
    let there: BTreeSet<String> = maps.iter().map(|map| text(&map["metadata"]["name"])).collect();
    assert!(acknowledged.is_subset(&there), "lost: {:?}", acknowledged.difference(&there).collect::<Vec<_>>());
}

#[test]
fn down_stops_every_container_and_up_runs_them_again() {
    let cluster = Cluster::with_nodes(3, 1);
    cluster.apply(&deployment(5));
    let before = cluster.settled(5);
    cluster.must(&["down"]);
    assert_eq!(processes_in(cluster.dir()), Vec::<String>::new());
    cluster.must(&["up", "--detach"]);
    let after = cluster.settled(5);
    let uids = |of: &support::Placement| of.values().flatten().cloned().collect::<BTreeSet<_>>();
    assert_eq!(uids(&after).len(), uids(&before).len());
}

#[test]
fn a_pod_that_fits_nowhere_says_why_and_is_placed_when_it_fits() {
    let cluster = Cluster::with_nodes(2, 1);
    cluster.apply(&pod("picky", json!({"nodeSelector": {"disk": "ssd"}})));
    let why = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
    cluster.wait_for("told why", || {
        let events = cluster.list("events").unwrap_or_default();
        events.iter().any(|e| e["reason"] == "FailedScheduling" && e["message"] == why)
    });
    let pods = cluster.listed("pods");
    assert_eq!(pods[0]["status"]["phase"], "Pending");
    assert!(pods[0]["spec"]["nodeName"].is_null());
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2", "labels": {"disk": "ssd"}}}).to_string(),
    );
    let placed = cluster.settled(1);
    assert_eq!(placed.keys().collect::<Vec<_>>(), ["n2"]);
}

/// A kubectl for one cluster.
struct Kubectl(PathBuf);

impl Kubectl {
    /// `None` when there is no kubectl, said aloud; a failure where nothing may be skipped.
    fn of(cluster: &Cluster) -> Option<Kubectl> {
        let found = Command::new("kubectl").args(["version", "--client"]).output();
        if found.is_ok_and(|output| output.status.success()) {
            return Some(Kubectl(cluster.dir().join("kubeconfig")));
        }
        assert!(std::env::var_os("PHALANX_REQUIRE_ALL").is_none_or(|all| all != "1"), "kubectl is not on the PATH");
        eprintln!("SKIPPED: kubectl is not on the PATH");
        None
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.0).arg("--cache-dir").arg(self.0.with_file_name("cache"));
        command.args(line.split_whitespace());
        command
    }

    /// Runs a command that must succeed; words are split at blanks.
    fn run(&self, line: &str) -> String {
        let output = self.command(line).output().expect("run");
        assert!(output.status.success(), "kubectl {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fails(&self, line: &str) -> String {
        let output = self.command(line).output().expect("run");
        assert!(!output.status.success(), "kubectl {line}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[test]
fn rollouts_restart_undo_scale_and_logs_with_kubectl() {
    let cluster = Cluster::with_nodes(3, 1);
    let Some(kubectl) = Kubectl::of(&cluster) else { return };
    let manifest = cluster.file("web.yaml", &deployment(3));
    kubectl.run(&format!("apply -f {}", manifest.display()));
    let rolled_out = || {
        let said = kubectl.run("rollout status deploy/web --timeout=60s");
        assert!(said.contains("successfully rolled out"), "{said}");
    };
    rolled_out();
    assert_eq!(kubectl.run("logs deploy/web").trim(), "it begins");

    kubectl.run("set image deploy/web web=nginx:2");
    rolled_out();
    let history = kubectl.run("rollout history deploy/web");
    assert_eq!(history.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit())).count(), 2, "{history}");
    kubectl.run("rollout undo deploy/web");
    rolled_out();
    let image = "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(kubectl.run(image), "nginx:1");
    kubectl.run("rollout restart deploy/web");
    rolled_out();
    kubectl.run("scale deploy/web --replicas=5");
    rolled_out();
    cluster.settled(5);

    // A node goes in order, and nothing comes back to it before it is let.
    kubectl.run("drain n3 --ignore-daemonsets --timeout=60s");
    assert!(!cluster.settled(5).contains_key("n3"));
    assert!(kubectl.run("get nodes").contains("Ready,SchedulingDisabled"));
    kubectl.run("uncordon n3");

    // What is not there says so in one line.
    let pod = kubectl.run("get pods -o name").lines().next().expect("a pod").to_owned();
    let said = kubectl.fails(&format!("exec {pod} -- true"));
    assert!(said.contains("exec is not implemented"), "{said}");

    kubectl.run("delete deploy web");
    cluster.settled(0);
}
