//! With the real kubectl, where there is one: the commands of every day.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use phalanx::registry::{EventType, ObjectRef};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::fixture::{Server, WAIT};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: 'nginx:1', ports: [{containerPort: 80}]}
";

/// A kubectl that talks to one server.
struct Kubectl {
    config: PathBuf,
    dir: PathBuf,
}

impl Kubectl {
    /// `None` when there is no kubectl, said aloud; a failure where nothing may be skipped.
    async fn of(server: &Server) -> Option<Kubectl> {
        let found = Command::new("kubectl").args(["version", "--client"]).output().await;
        if found.is_ok_and(|output| output.status.success()) {
            return Some(Kubectl { config: server.kubeconfig(), dir: server.dir.path().to_owned() });
        }
        assert!(std::env::var_os("PHALANX_REQUIRE_ALL").is_none_or(|all| all != "1"), "kubectl is not on the PATH");
        eprintln!("SKIPPED: kubectl is not on the PATH");
        None
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg(format!("--kubeconfig={}", self.config.display()))
            .arg(format!("--cache-dir={}", self.dir.join("cache").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, line: &str) -> (bool, String) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = tokio::time::timeout(WAIT, self.command(&arguments).output());
        let output = output.await.unwrap_or_else(|_| panic!("kubectl {line} hangs")).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Runs a command that must succeed; words are split at blanks.
    async fn run(&self, line: &str) -> String {
        let (success, text) = self.output(line).await;
        assert!(success, "kubectl {line}: {text}");
        text
    }

    async fn says(&self, line: &str, expected: &str) {
        let text = self.run(line).await;
        assert!(text.contains(expected), "kubectl {line} says {text:?}, not {expected:?}");
    }

    async fn fails(&self, line: &str, expected: &str) {
        let (success, text) = self.output(line).await;
        assert!(!success && text.contains(expected), "kubectl {line} says {text:?}, not {expected:?}");
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = Path::new(&self.dir).join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_made_shown_and_changed_with_kubectl() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::of(&server).await else { return server.end().await };
    let manifest = kubectl.file("web.yaml", DEPLOYMENT);
    let changed = kubectl.file("web2.yaml", &DEPLOYMENT.replace("nginx:1", "nginx:2"));
    let wrong = kubectl.file("bad.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\ndataa: {a: b}\n");
    let mixed = kubectl.file(
        "mixed.yaml",
"kind: ConfigMap\napiVersion: v1\nmetadata: {name: good}\n---\nkind: ConfigMapp\napiVersion: v1\nmetadata: {name: bad}\n",
    );

    kubectl.says("version", "Server Version: v1.").await;
    let resources = kubectl.run("api-resources").await;
    for resource in ["configmaps", "nodes", "pods", "deployments", "replicasets", "leases", "events"] {
        assert!(resources.contains(resource), "{resources}");
    }
    // Typed creates come as protobuf.
    kubectl.says("create configmap cm --from-literal=a=b", "configmap/cm created").await;
    kubectl.fails("create configmap cm --from-literal=a=b", "configmaps \"cm\" already exists").await;
    kubectl.says("create secret generic s --from-literal=p=q", "secret/s created").await;
    kubectl.says("create deployment d --image=nginx --replicas=1", "deployment.apps/d created").await;
    kubectl.says("create namespace more", "namespace/more created").await;

    kubectl.says(&format!("apply -f {manifest}"), "deployment.apps/web created").await;
    kubectl.says(&format!("apply -f {manifest}"), "deployment.apps/web unchanged").await;
    kubectl.says(&format!("apply --dry-run=server -f {changed}"), "configured (server dry run)").await;
    kubectl.says(&format!("apply -f {changed}"), "deployment.apps/web configured").await;
    kubectl.fails(&format!("create -f {wrong}"), "strict decoding error: unknown field \"dataa\"").await;
    let (success, text) = kubectl.output(&format!("apply -f {mixed}")).await;
    assert!(
        !success && text.contains("configmap/good created") && text.contains("no matches for kind \"ConfigMapp\""),
        "{text}"
    );

    kubectl.says("get deployments", "UP-TO-DATE").await;
    kubectl.says("get deployment web -o wide", "nginx:2").await;
    kubectl.says("get deployment web -o yaml", "progressDeadlineSeconds: 600").await;
    let web: Value = serde_json::from_str(&kubectl.run("get deployment web -o json").await).unwrap();
    assert_eq!(web["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    kubectl.says("get cm,secrets -A --show-labels", "secret/s").await;
    kubectl.says("get ns --chunk-size=1 --no-headers", "kube-node-lease").await;
    kubectl.says("get cm -l x=y", "No resources found").await;
    kubectl.says("get cm --field-selector=metadata.name=cm -o name", "configmap/cm").await;
    kubectl.fails("get pod nope", "pods \"nope\" not found").await;
    kubectl.says("describe deployment web", "25% max unavailable").await;
    kubectl.says("explain deployment.spec.replicas", "FIELD: replicas").await;

    kubectl.says("label cm cm x=y", "labeled").await;
    kubectl.says("label cm cm x-", "unlabeled").await;
    kubectl.says("annotate cm cm note=1", "annotated").await;
    kubectl.says("scale deployment web --replicas=4", "scaled").await;
    kubectl.says("scale deployment web --current-replicas=4 --replicas=3", "scaled").await;
    kubectl.says("set image deployment/web c=nginx:3", "image updated").await;
    kubectl.says("rollout pause deployment/web", "paused").await;
    kubectl.says("rollout resume deployment/web", "resumed").await;
    kubectl.says("rollout restart deployment/web", "restarted").await;
    kubectl.says("wait --for=jsonpath={.spec.replicas}=3 deployment/web --timeout=10s", "condition met").await;
    kubectl.says("get deployment web --subresource=scale -o yaml", "kind: Scale").await;

    kubectl.says("delete cm cm", "deleted").await;
    kubectl.says("delete deployment web d", "\"web\" deleted").await;
    kubectl.says("delete cm --all", "\"good\" deleted").await;
    kubectl.fails(&format!("delete -f {manifest}"), "deployments.apps \"web\" not found").await;
    kubectl.says("delete ns more --wait=false", "\"more\" deleted").await;
    kubectl.says("get ns more", "Terminating").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_pods_logs_and_events_are_seen_with_kubectl() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::of(&server).await else { return server.end().await };
    server.node_and_pod().await;
    let pods = server.registry.kinds().by_any_name("pods").unwrap().clone();
    let pod = server.registry.get(&pods, Some("default"), "p1").await.unwrap();
    let about = ObjectRef::of(&pod);
    server.recorder.record(&about, EventType::Normal, "Scheduled", "assigned to n1", "default-scheduler");

    let mut watching = kubectl.command(&["get", "pods", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut shown = async |expected: &str| loop {
        let line = tokio::time::timeout(WAIT, lines.next_line()).await.expect("a line in time").unwrap().unwrap();
        if line.contains(expected) {
            return;
        }
    };
    shown("p1").await;
    kubectl.says("label pod p1 seen=yes", "labeled").await;
    shown("p1").await;

    kubectl.says("get nodes -o wide", "CONTAINER-RUNTIME").await;
    kubectl.says("cordon n1", "node/n1 cordoned").await;
    kubectl.says("get nodes", "SchedulingDisabled").await;
    kubectl.says("uncordon n1", "node/n1 uncordoned").await;
    kubectl.says("describe node n1", "p1").await;
    kubectl.says("logs p1 --tail=3", "n1 p1 c Some(3)").await;
    kubectl.fails("logs p1 -c nope", "container nope is not valid for pod p1").await;
    kubectl.says("get events --field-selector=involvedObject.name=p1", "assigned to n1").await;
    kubectl.says("events", "Scheduled").await;
    kubectl.says("describe pod p1", "default-scheduler").await;
    kubectl.says("delete pod p1 --grace-period=0 --force", "force deleted").await;
    kubectl.says("get pods", "No resources found").await;
    watching.kill().await.unwrap();
    server.end().await;
}
