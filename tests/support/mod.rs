//! A cluster of real processes in a directory of its own, for tests. Nothing of it is left when a test ends, however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use phalanx::cluster::processes;
use serde_json::Value;

pub const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");
/// What takes longer than this does not happen.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);

pub struct Cluster(tempfile::TempDir);

/// What runs or shall run: the pods' uids by node.
pub type Placement = BTreeMap<String, BTreeSet<String>>;

impl Cluster {
    pub fn up(nodes: u32, servers: u32) -> Self {
        let cluster = Cluster(tempfile::tempdir().expect("tempdir"));
        let (nodes, servers) = (nodes.to_string(), servers.to_string());
        cluster.must(&["up", "--detach", "--nodes", &nodes, "--servers", &servers]);
        cluster
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(PHALANX).args(args).arg("--dir").arg(self.dir()).output().expect("run")
    }

    pub fn must(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The one line that a refused command says.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?} was not refused");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one line: {said}");
        errors[0].to_owned()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.must(&["status", "-o", "json"])).expect("JSON")
    }

    /// Waits until the status is as wanted.
    pub fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "never {what}: {status:#}");
        }
    }

    pub fn all_ready(&self) -> Value {
        let ready = |s: &Value| s["nodes"].as_array().is_some_and(|n| n.iter().all(|n| n["state"] == "Ready"));
        self.until("all ready", ready)
    }

    /// A new cluster whose nodes take pods, all of them.
    pub fn with_nodes(nodes: u32, servers: u32) -> Self {
        let cluster = Cluster::up(nodes, servers);
        cluster.wait_for("all nodes registered and ready", || {
            let known = cluster.list("nodes").unwrap_or_default();
            let takes_pods = |node: &&Value| is_ready(node) && node["spec"]["taints"].is_null();
            known.iter().filter(takes_pods).count() == nodes as usize
        });
        cluster
    }

    /// A file beside the cluster's own.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Applies a manifest, for as long as nobody leads.
    pub fn apply(&self, manifest: &str) {
        let file = self.file("manifest.yaml", manifest);
        let file = file.to_str().expect("UTF-8");
        self.wait_for("applied", || self.run(&["apply", "-f", file]).status.success());
    }

    pub fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "never {what}: {}", self.explain());
            std::thread::sleep(LOOK);
        }
    }

    fn explain(&self) -> String {
        let said = |args: &[&str]| String::from_utf8_lossy(&self.run(args).stdout).into_owned();
        format!("\n{}{}", said(&["status"]), said(&["get", "pods", "-o", "wide"]))
    }

    /// All objects of a resource. `None` when no server answers just now.
    pub fn list(&self, resource: &str) -> Option<Vec<Value>> {
        let output = self.run(&["get", resource, "-o", "json"]);
        let mut list: Value = serde_json::from_slice(&output.stdout).ok()?;
        match list["items"].take() {
            Value::Array(items) if output.status.success() => Some(items),
            _ => None,
        }
    }

    /// All objects of a resource, as soon as a server answers: a machine under load may elect a leader at any time.
    pub fn listed(&self, resource: &str) -> Vec<Value> {
        let mut found = None;
        self.wait_for("a list", || {
            found = self.list(resource);
            found.is_some()
        });
        found.unwrap_or_default()
    }

    /// Waits until `replicas` pods are ready and their containers, and no others, run on their nodes.
    pub fn settled(&self, replicas: usize) -> Placement {
        let mut found = Placement::new();
        self.wait_for("as many containers as pods, each on its node", || {
            let Some(pods) = self.list("pods") else { return false };
            found = Placement::new();
            for pod in pods.iter().filter(|pod| is_ready(pod)) {
                let (node, uid) = (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["uid"]));
                found.entry(node).or_default().insert(uid);
            }
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            pods.len() == replicas && ready == replicas && found == self.running()
        });
        found
    }

    /// The containers that the process table knows.
    pub fn running(&self) -> Placement {
        let mut running = Placement::new();
        for (node, uid, _) in self.shims() {
            running.entry(node).or_default().insert(uid);
        }
        running
    }

    /// The processes of the containers of a pod: children of their shims.
    pub fn pids(&self, uid: &str) -> BTreeSet<i32> {
        let shims: BTreeSet<i32> =
            self.shims().into_iter().filter(|(_, of, _)| of == uid).map(|(_, _, pid)| pid).collect();
        processes::table().into_values().filter(|p| shims.contains(&p.parent)).map(|p| p.pid).collect()
    }

    /// Node, pod and process id of each: the path of its container is `nodes/NODE/agent/containers/UID/NAME/ATTEMPT`.
    fn shims(&self) -> Vec<(String, String, i32)> {
        let nodes = self.dir().join("nodes");
        let shims = processes::table().into_values().filter(|p| p.args.get(1).is_some_and(|a| a == "shim"));
        shims
            .filter_map(|p| {
                let path = p.args.iter().find_map(|a| Path::new(a).strip_prefix(&nodes).ok().map(Path::to_owned))?;
                let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
                Some((parts.first()?.clone(), parts.get(3)?.clone(), p.pid))
            })
            .collect()
    }

    /// SIGKILL to a node's own process, and to nothing that it runs.
    pub fn kill_process(&self, node: &str) {
        let status = self.status();
        let pid = node_of(&status, node)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
        self.wait_for("gone", || processes::process(pid).is_none());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
        let left = processes_in(self.dir());
        for node in std::fs::read_dir(self.dir().join("nodes")).into_iter().flatten().flatten() {
            processes::kill_node(None, &node.path());
        }
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<String>::new(), "processes left behind");
        }
    }
}

/// Command lines that name the directory.
pub fn processes_in(dir: &Path) -> Vec<String> {
    let named = |p: &processes::Process| p.args.iter().any(|a| Path::new(a).starts_with(dir));
    processes::table().into_values().filter(named).map(|p| p.args.join(" ")).collect()
}

pub fn node_of<'a>(status: &'a Value, node: &str) -> &'a Value {
    let nodes = status["nodes"].as_array().expect("nodes");
    nodes.iter().find(|n| n["name"] == node).expect("in the status")
}

pub fn state<'a>(status: &'a Value, node: &str) -> &'a Value {
    &node_of(status, node)["state"]
}

/// Whether a pod or a node is.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let ready = conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
    ready && object["metadata"]["deletionTimestamp"].is_null()
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
