//! What each verb prints, and with which exit code.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
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

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm1}\ndata: {a: b}\n";

struct Phalanx {
    config: PathBuf,
    dir: PathBuf,
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Phalanx {
    fn of(server: &Server) -> Self {
        Self { config: server.kubeconfig(), dir: server.dir.path().to_owned() }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
        // Words are split at blanks; what stands in single quotes is one word.
        for (i, part) in line.split('\'').enumerate() {
            match i % 2 {
                0 => drop(command.args(part.split_whitespace())),
                _ => drop(command.arg(part)),
            }
        }
        command
            .env("KUBECONFIG", &self.config)
            .env_remove("PHALANX_DIR")
            .env_remove("PHALANX_LOG")
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> Said {
        let output = tokio::time::timeout(WAIT, self.command(line).output());
        let output = output.await.unwrap_or_else(|_| panic!("{line} hangs")).unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Must succeed; gives standard output.
    async fn ok(&self, line: &str) -> String {
        let said = self.run(line).await;
        assert_eq!(said.code, 0, "{line}: {}{}", said.out, said.err);
        said.out
    }

    async fn says(&self, line: &str, expected: &str) {
        assert_eq!(self.ok(line).await, expected, "{line}");
    }

    /// Must fail with one line that holds this.
    async fn fails(&self, line: &str, expected: &str) {
        let said = self.run(line).await;
        assert_eq!(said.code, 1, "{line}: {}{}", said.out, said.err);
        assert!(said.err.contains(expected), "{line} says {:?}, not {expected:?}", said.err);
        assert!(
            said.err.lines().all(|l| ["error: ", "Warning: "].iter().any(|p| l.starts_with(p)) || l.ends_with(" ...")),
            "{}",
            said.err
        );
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(name), text).unwrap();
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line).await).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_creates_configures_and_leaves_unchanged() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    phalanx.file("web.yaml", DEPLOYMENT);
    phalanx.says("apply -f web.yaml", "deployment.apps/web created\n").await;
    phalanx.says("apply -f web.yaml", "deployment.apps/web unchanged\n").await;
    // What others set stays; what the manifest changes, changes.
    phalanx.says("annotate deploy/web note=mine", "deployment.apps/web annotated\n").await;
    phalanx.file("web.yaml", &DEPLOYMENT.replace("nginx:1", "nginx:2").replace("labels: {app: web}}\nspec", "}\nspec"));
    phalanx.says("apply -f web.yaml", "deployment.apps/web configured\n").await;
    let web = phalanx.json("get deploy web -o json").await;
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["image"], "nginx:2");
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"], 80);
    assert_eq!(web["metadata"]["annotations"]["note"], "mine");
    assert_eq!(web["metadata"]["labels"], Value::Null, "a label that is no longer in the manifest is removed");
    phalanx.says("apply -f web.yaml", "deployment.apps/web unchanged\n").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_second_document_is_named_and_the_first_is_applied() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    phalanx.file("two.yaml", &format!("{CONFIG_MAP}---\napiVersion: v1\nkind: ConfigMap\nmetadata: [x\ndata: {{}}\n"));
    let said = phalanx.run("apply -f two.yaml").await;
    assert_eq!((said.code, said.out.as_str()), (1, "configmap/cm1 created\n"));
    assert!(said.err.starts_with("error: two.yaml: document 2, line "), "{}", said.err);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);

    phalanx.file(
        "field.yaml",
        &format!("{CONFIG_MAP}---\n{}", CONFIG_MAP.replace("\ndata:", "\ndataa:").replace("cm1", "cm2")),
    );
    let said = phalanx.run("apply -f field.yaml").await;
    assert_eq!((said.code, said.out.as_str()), (1, "configmap/cm1 unchanged\n"));
    assert!(said.err.contains("field.yaml: document 2 (line 6): ConfigMap \"cm2\":"), "{}", said.err);
    assert!(said.err.contains("unknown field \"dataa\""), "{}", said.err);

    phalanx.file("kind.yaml", "apiVersion: v1\nkind: ConfigMop\nmetadata: {name: a}\n");
    phalanx.fails("apply -f kind.yaml", "no matches for kind \"ConfigMop\" in version \"v1\"").await;
    phalanx.fails("apply -f nowhere.yaml", "nowhere.yaml").await;
    phalanx.fails("create -f two.yaml", "already exists").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_input_and_directories_are_manifests() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    let mut command = phalanx.command("create -f - -o name");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(CONFIG_MAP.replace("name: cm1", "generateName: cm-").as_bytes()).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(WAIT, child.wait_with_output()).await.unwrap().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("configmap/cm-"));
    std::fs::create_dir(phalanx.dir.join("d")).unwrap();
    phalanx.file("d/b.yaml", &CONFIG_MAP.replace("cm1", "b"));
    phalanx.file("d/a.json", r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}"#);
    phalanx.file("d/README.md", "not a manifest");
    phalanx.says("apply -f d", "configmap/a created\nconfigmap/b created\n").await;
    phalanx
        .says(
            "delete -f d",
            "configmap \"a\" deleted from default namespace\nconfigmap \"b\" deleted from default namespace\n",
        )
        .await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_prints_tables_objects_and_names() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    server.node_and_pod().await;
    phalanx.file("cm.yaml", CONFIG_MAP);
    phalanx.ok("apply -f cm.yaml").await;
    let table = phalanx.ok("get po").await;
    let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(lines[1][0], "p1");
    assert!(phalanx.ok("get pods -o wide").await.lines().next().unwrap().contains("NODE"));
    assert!(phalanx.ok("get pods -A").await.starts_with("NAMESPACE   NAME"));
    phalanx.says("get pods,cm -o name", "pod/p1\nconfigmap/cm1\n").await;
    let both = phalanx.ok("get po,cm").await;
    assert!(both.contains("\n\nNAME ") && both.contains("pod/p1 ") && both.contains("configmap/cm1 "), "{both}");
    let one = phalanx.ok("get cm cm1 -o yaml").await;
    assert!(one.starts_with("apiVersion: v1\ndata:\n  a: b\nkind: ConfigMap\nmetadata:\n"), "{one}");
    assert!(!one.contains("managedFields"), "{one}");
    assert_eq!(phalanx.json("get cm -o json").await["kind"], "List");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said_so() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    phalanx.fails("get pod nope", "pods \"nope\" not found (NotFound)").await;
    phalanx.fails("get frobs", "doesn't have a resource type \"frobs\"").await;
    phalanx.says("get pod nope --ignore-not-found", "").await;
    let said = phalanx.run("get pods").await;
    assert_eq!((said.code, said.err.as_str()), (0, "No resources found in default namespace.\n"));
    phalanx.fails("delete cm nope", "configmaps \"nope\" not found").await;
    phalanx.fails("get pods --kubeconfig nowhere", "there is no kubeconfig at nowhere").await;
    let dead = std::fs::read_to_string(&phalanx.config).unwrap();
    let port = server.address.port().to_string();
    phalanx.file("dead", &dead.replace(&format!(":{port}\""), ":1\""));
    phalanx.fails("get pods --kubeconfig dead", "cannot reach the API server at https://127.0.0.1:1").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_changed_and_deleted() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    server.node_and_pod().await;
    phalanx.file("web.yaml", DEPLOYMENT);
    phalanx.file("cm.yaml", CONFIG_MAP);
    phalanx.says("create -f cm.yaml -f web.yaml", "configmap/cm1 created\ndeployment.apps/web created\n").await;
    phalanx.says("scale deploy/web --replicas 4", "deployment.apps/web scaled\n").await;
    phalanx.fails("scale deploy/web --current-replicas 3 --replicas 2", "expected replicas to be 3, was 4").await;
    phalanx.fails("scale cm/cm1 --replicas 2", "cannot be scaled").await;
    assert_eq!(phalanx.json("get deploy/web -o json").await["spec"]["replicas"], 4);
    phalanx.says("label cm cm1 x=y", "configmap/cm1 labeled\n").await;
    phalanx.fails("label cm cm1 x=z", "'x' already has a value (y), and --overwrite is false").await;
    phalanx.says("label cm cm1 x=z --overwrite", "configmap/cm1 labeled\n").await;
    phalanx.says("get cm -l x=z -o name", "configmap/cm1\n").await;
    phalanx.says("label cm cm1 x-", "configmap/cm1 unlabeled\n").await;
    phalanx.says("cordon n1", "node/n1 cordoned\n").await;
    phalanx.says("cordon n1", "node/n1 already cordoned\n").await;
    phalanx.says("uncordon n1", "node/n1 uncordoned\n").await;
    assert_eq!(phalanx.json("get node n1 -o json").await["spec"]["unschedulable"], Value::Null);
    phalanx.says("delete cm/cm1 deploy/web", "configmap \"cm1\" deleted from default namespace\ndeployment.apps \"web\" deleted from default namespace\n").await;
    phalanx.fails("delete cm", "which configmaps? Give names, a selector (-l), or --all").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_prints_changes_as_they_come() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    phalanx.file("cm.yaml", CONFIG_MAP);
    phalanx.ok("apply -f cm.yaml").await;
    let mut child = phalanx.command("get cm -l app=x -w --no-headers").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    phalanx.ok("label cm cm1 app=x").await;
    let line = tokio::time::timeout(WAIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.starts_with("cm1 "), "{line}");
    // The reader goes away: the command ends without a word, at the next line it cannot write.
    drop(lines);
    phalanx.ok("label cm cm1 y=z").await;
    let status = tokio::time::timeout(WAIT, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_the_right_container() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    server.node_and_pod().await;
    phalanx.says("logs p1", "n1 p1 c None\n").await;
    phalanx.says("logs p1 -c c --tail 5", "n1 p1 c Some(5)\n").await;
    phalanx.says("logs pod/p1 --prefix", "[pod/p1/c] n1 p1 c None\n").await;
    phalanx.fails("logs p1 -c nope", "container nope is not in pod p1; it has c").await;
    phalanx.fails("logs nope", "pods \"nope\" not found").await;
    let mut child = phalanx.command("logs -f p1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(WAIT, lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("n1 p1 c None"));
    child.kill().await.unwrap();
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn describe_tells_all_with_events() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    server.node_and_pod().await;
    let pod = phalanx.json("get pod p1 -o json").await;
    phalanx.file(
        "event.json",
        &json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1"}, "type": "Normal", "reason": "Scheduled",
            "message": "Successfully assigned default/p1 to n1", "reportingComponent": "scheduler",
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "p1", "uid": pod["metadata"]["uid"]}})
        .to_string(),
    );
    phalanx.ok("create -f event.json").await;
    let page = phalanx.ok("describe pod p1").await;
    for part in ["Name:             p1\n", "    Image:", "Successfully assigned default/p1 to n1"] {
        assert!(page.contains(part), "missing {part:?} in\n{page}");
    }
    let page = phalanx.ok("describe node n1").await;
    assert!(page.contains("(1 in total)") && page.contains("p1"), "{page}");
    let events = phalanx.ok("events --for pod/p1").await;
    assert!(events.lines().nth(1).unwrap().contains("Pod/p1"), "{events}");
    phalanx.file("cm.yaml", CONFIG_MAP);
    phalanx.ok("apply -f cm.yaml").await;
    assert!(phalanx.ok("describe cm cm1").await.contains("a:\n----\nb\n"));
    assert!(phalanx.ok("describe ns default").await.contains("Status:"));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_is_paused_resumed_and_restarted() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    phalanx.file("web.yaml", DEPLOYMENT);
    phalanx.ok("apply -f web.yaml").await;
    phalanx.says("rollout pause deploy/web", "deployment.apps/web paused\n").await;
    phalanx.fails("rollout pause deploy/web", "is already paused").await;
    phalanx.fails("rollout restart deploy/web", "is paused").await;
    phalanx.says("rollout resume deploy/web", "deployment.apps/web resumed\n").await;
    phalanx.says("rollout restart deploy/web", "deployment.apps/web restarted\n").await;
    let web = phalanx.json("get deploy/web -o json").await;
    let restarted = &web["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"];
    assert!(restarted.is_string(), "{web}");
    // No controller runs here: nothing is ever observed.
    let said = phalanx.ok("rollout status deploy/web --no-wait").await;
    assert_eq!(said, "Waiting for deployment spec update to be observed...\n");
    phalanx.fails("rollout status deploy/web --timeout 1", "timed out after 1 s").await;
    phalanx.fails("rollout undo deploy/web", "no rollout history found").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_says_what_it_is_and_has() {
    let server = Server::start().await;
    let phalanx = Phalanx::of(&server);
    let version = phalanx.ok("version").await;
    assert!(version.starts_with("Phalanx: v") && version.contains("Server (Kubernetes API): v1."), "{version}");
    let resources = phalanx.ok("api-resources").await;
    let pods: Vec<&str> = resources.lines().find(|l| l.starts_with("pods ")).unwrap().split_whitespace().collect();
    assert_eq!(pods, ["pods", "po", "v1", "true", "Pod"]);
    assert!(phalanx.ok("api-resources -o name").await.contains("deployments.apps\n"));
    server.end().await;
}
