//! What a person, a file or a stranger does wrong: one clear line, an exit code, nothing half done, and the cluster lives on.
//!
//! Beside it: `cli/verbs.rs` (each verb), `gateway/http.rs` (requests), `cluster.rs` (directories and ports of nodes), the
//! transport's `hostile.rs` (peers), `src/store/*_test.rs` (disks that fail in the middle of a write).

#[allow(dead_code, reason = "shared with the gateway's tests, which need more of it")]
#[path = "gateway/fixture.rs"]
mod fixture;

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use phalanx::cluster::admin::{self, AdminRequest};
use phalanx::cluster::layout::{ClusterDir, NodeDir};
use phalanx::security::join::{JOIN_PATH, JoinRequest, join};
use phalanx::security::{JoinToken, NodeRequest, TokenRole};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");
/// What takes longer than this does not happen.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\ndata: {a: b}\n";
const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      runtimeClassName: process
      nodeSelector: {no: where}
      containers:
      - {name: c, image: none, command: [sleep, '1000']}
";

fn phalanx(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PHALANX);
    command.args(args).current_dir(dir).stdin(Stdio::null());
    for variable in ["KUBECONFIG", "PHALANX_DIR", "PHALANX_LOG", "PHALANX_JOIN"] {
        command.env_remove(variable);
    }
    command
}

/// The one line that a refused command says, without its `error: `.
fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let remark = |l: &&str| l.ends_with(": starting") || l.ends_with(": ready") || l.ends_with(" ...");
    let lines: Vec<&str> = said.lines().filter(|l| !remark(l) && !l.contains(" INFO ")).collect();
    assert_eq!((output.status.code(), lines.len()), (Some(1), 1), "{said}");
    lines[0].strip_prefix("error: ").unwrap_or_else(|| panic!("no error: {said}")).to_owned()
}

/// Each command, run in this directory, is refused with a line that holds all of these.
fn each_refused(dir: &Path, cases: &[(&str, &[&str])]) {
    for (line, wanted) in cases {
        let args: Vec<&str> = line.split(' ').collect();
        let said = refused(&phalanx(dir, &args).output().expect("run"));
        for text in *wanted {
            assert!(said.contains(text), "{line}: {said:?} does not say {text:?}");
        }
    }
}

/// A cluster in a directory of its own. Nothing of it is left when the test ends, however it ends.
struct Cluster(tempfile::TempDir);

impl Cluster {
    fn up(nodes: &str) -> Self {
        let cluster = Cluster(tempfile::tempdir().expect("tempdir"));
        cluster.must(&["up", "--detach", "--servers", "1", "--nodes", nodes]);
        cluster
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir().join(file)
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(file), text).expect("written");
    }

    fn run(&self, args: &[&str]) -> Output {
        phalanx(self.dir(), args).arg("--dir").arg(self.dir()).output().expect("run")
    }

    fn must(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn refuses(&self, line: &str, wanted: &[&str]) {
        let args: Vec<&str> = line.split(' ').collect();
        let said = refused(&self.run(&args));
        for text in wanted {
            assert!(said.contains(text), "{line}: {said:?} does not say {text:?}");
        }
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.must(&["status", "-o", "json"])).expect("JSON")
    }

    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        while !wanted(&self.status()) {
            assert!(start.elapsed() < PATIENCE, "never {what}: {:#}", self.status());
        }
    }

    /// Writes go on, and every node is there.
    fn lives_on(&self) {
        let ready = |s: &Value| s["nodes"].as_array().is_some_and(|n| n.iter().all(|n| n["state"] == "Ready"));
        self.until("all ready", ready);
        self.write("lives.yaml", CONFIG_MAP.replace("first", "lives"));
        self.must(&["apply", "-f", "lives.yaml"]);
    }

    fn n1(&self) -> NodeDir {
        ClusterDir(self.dir().into()).node("n1")
    }

    fn n1_address(&self, field: &str) -> SocketAddr {
        let status = self.status();
        status["nodes"][0][field].as_str().and_then(|a| a.parse().ok()).expect("an address")
    }

    async fn token(&self, ttl_s: u64) -> JoinToken {
        let answer = admin::call(&self.n1(), &AdminRequest::Token { role: TokenRole::Agent, ttl_s }).await;
        JoinToken::parse(answer.expect("a token")["token"].as_str().expect("text")).expect("valid")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
        let table = phalanx::cluster::processes::table();
        let named =
            |p: &phalanx::cluster::processes::Process| p.args.iter().any(|a| Path::new(a).starts_with(self.dir()));
        let left: Vec<String> = table.into_values().filter(named).map(|p| p.args.join(" ")).collect();
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<String>::new(), "processes left behind");
        }
    }
}

#[test]
fn without_a_cluster_each_command_says_what_to_do() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("file"), "").expect("written");
    for verb in ["status", "down", "chaos kill n1"] {
        each_refused(
            dir.path(),
            &[(&format!("{verb} --dir d"), &["there is no cluster in d", "`phalanx up --dir d`"])],
        );
        each_refused(dir.path(), &[(&format!("{verb} --dir file"), &["file is a file, not a directory", "--dir"])]);
    }
    each_refused(
        dir.path(),
        &[
            ("kubeconfig --dir d", &["there is no cluster in d", "phalanx up"]),
            ("token create --dir d", &["no node runs in d; start it"]),
            ("tree --dir d", &["there is no kubeconfig at d/kubeconfig", "phalanx up"]),
            ("get pods --dir d", &["there is no kubeconfig at d/kubeconfig", "phalanx up"]),
            ("up --nodes 0 --dir d", &["--nodes must be 1 to 64, not 0"]),
            ("up --nodes 65 --dir d", &["--nodes must be 1 to 64, not 65"]),
            ("up --nodes 1 --servers 2 --dir d", &["--servers must be 1 to 1, not 2"]),
            ("up --detach --dir file", &["/file is a file, not a directory", "--dir"]),
            ("up --detach --dir file/below", &["/file is a file, not a directory", "--dir"]),
            // Nobody may make anything there, not even root.
            ("up --detach --dir /proc/phalanx", &["cannot make the directory /proc/phalanx: ", "--dir"]),
            ("server --name a --dir /proc/phalanx", &["cannot make the directory /proc/phalanx: ", "--dir"]),
            ("server --name a --dir file", &["/file is a file, not a directory", "--dir"]),
            ("server --name A_b --dir d", &["\"A_b\" cannot be the name of a node: use 1 to 63 of a-z"]),
            ("agent --name a --dir d --join nonsense", &["the join token is not valid", "`phalanx token create`"]),
        ],
    );
    assert!(!dir.path().join("d").exists(), "nothing was made");
    let usage = phalanx(dir.path(), &["token", "create", "--ttl", "0"]).output().expect("run");
    assert_eq!(usage.status.code(), Some(2), "a token that has ended when it is made");
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let write = |file: &str, text: &[u8]| std::fs::write(dir.path().join(file), text).expect("written");
    write("text", b"just text\nand more\n");
    write("empty", b"");
    write("binary", &[0xff; 64]);
    std::fs::create_dir(dir.path().join("d")).expect("made");
    each_refused(
        dir.path(),
        &[
            ("get pods --kubeconfig nowhere", &["there is no kubeconfig at nowhere", "--kubeconfig"]),
            ("get pods --kubeconfig text", &["text cannot be used as a kubeconfig", "line 1", "--kubeconfig"]),
            ("get pods --kubeconfig empty", &["empty cannot be used as a kubeconfig", "context"]),
            ("get pods --kubeconfig binary", &["binary cannot be used as a kubeconfig", "UTF-8"]),
            ("get pods --kubeconfig d", &["d cannot be used as a kubeconfig", "directory"]),
        ],
    );
}

#[test]
fn a_manifest_that_is_none_is_refused_before_the_server_is_asked() {
    let dir = tempfile::tempdir().expect("tempdir");
    let write = |file: &str, text: &[u8]| std::fs::write(dir.path().join(file), text).expect("written");
    write("empty.yaml", b"");
    write("comment.yaml", b"# nothing\n---\n");
    write("binary.yaml", &[0xff; 64]);
    std::fs::create_dir(dir.path().join("d")).expect("made");
    each_refused(
        dir.path(),
        &[
            ("apply", &["what to apply? Give a manifest with -f"]),
            ("apply -f nowhere.yaml", &["nowhere.yaml: No such file"]),
            ("apply -f empty.yaml", &["empty.yaml: there is no object in it to apply"]),
            ("apply -f comment.yaml", &["comment.yaml: there is no object in it to apply"]),
            ("create -f -", &["-: there is no object in it to create"]),
            ("apply -f binary.yaml", &["binary.yaml: not text (UTF-8)"]),
            ("apply -f d", &["d: there is no .yaml, .yml or .json file"]),
            ("apply -f /dev/zero", &["/dev/zero: more than 64 MiB"]),
            ("apply -f https://localhost/web.yaml", &["https://localhost/web.yaml: manifests are not fetched"]),
        ],
    );
}

#[test]
fn bad_manifests_and_wrong_names_get_one_line_and_change_nothing() {
    let cluster = Cluster::up("1");
    let second = |text: &str| format!("{CONFIG_MAP}---\n{text}");
    for (text, wanted) in [
        (
            second(&DEPLOYMENT.replace("replicas", "replica")),
            &["document 2 (line 6)", "unknown field \"spec.replica\""][..],
        ),
        (second(&DEPLOYMENT.replace(": 1\n", ": one\n")), &["document 2 (line 6)", "spec.replicas of type int32"]),
        (second(&DEPLOYMENT.replace(": 1\n", ": -1\n")), &["document 2 (line 6)", "spec.replicas: Invalid value: -1"]),
        (
            second(&DEPLOYMENT.replace("kind: D", "kind: d")),
            &["document 2 (line 6)", "no matches for kind \"deployment\"", "api-resources"],
        ),
        (second(&DEPLOYMENT.replace("apps/v1", "apps/v9")), &["document 2 (line 6)", "in version \"apps/v9\""]),
        (
            second(&DEPLOYMENT.replace("name: web", "name: Web")),
            &["document 2 (line 6)", "metadata.name: Invalid value: \"Web\""],
        ),
        (second(&DEPLOYMENT.replace("{name: web}", "{}")), &["document 2 (line 6)", "no metadata.name"]),
        (second("a: [1\nb: 2\n"), &["document 2, line 7, column 2: "]),
        (second("text\n"), &["document 2, line 6, column 1: not an object"]),
        (second("kind: Pod\n"), &["document 2, line 6, column 1: apiVersion not set"]),
    ] {
        cluster.write("m.yaml", &text);
        let output = cluster.run(&["apply", "-f", "m.yaml"]);
        assert!(
            String::from_utf8_lossy(&output.stdout).starts_with("configmap/first "),
            "the first is applied and said"
        );
        let said = refused(&output);
        assert!(said.starts_with("m.yaml: "), "{said}");
        for text in wanted {
            assert!(said.contains(text), "{said:?} does not say {text:?}");
        }
    }
    assert_eq!(cluster.must(&["get", "deploy", "-o", "name"]), "", "nothing half made");

    cluster.write("web.yaml", DEPLOYMENT);
    cluster.must(&["apply", "-f", "web.yaml"]);
    let pods = || cluster.must(&["get", "pods", "-o", "name"]);
    let start = Instant::now();
    while pods().is_empty() {
        assert!(start.elapsed() < PATIENCE, "no pod");
    }
    cluster.refuses(&format!("logs {}", pods().trim()), &["has no node yet", "`phalanx describe pod web-"]);
    for (line, wanted) in [
        ("up --detach --nodes 1", &["is running already (n1 is process ", "`phalanx down --dir "][..]),
        ("chaos kill n9", &["there is no node n9 in this cluster; its nodes are n1"]),
        ("chaos start n1", &["n1 is running already"]),
        ("tree nothing/here", &["no node has an actor at nothing/here"]),
        ("tree --node n9", &["the cluster has no node \"n9\""]),
        ("get frobs", &["the server doesn't have a resource type \"frobs\"; `phalanx api-resources`"]),
        ("get pod nope", &["pods \"nope\" not found"]),
        ("logs nope", &["pods \"nope\" not found"]),
        ("describe node n9", &["nodes \"n9\" not found"]),
        ("cordon n9", &["nodes \"n9\" not found"]),
        ("scale deploy nope --replicas 2", &["deployments.apps \"nope\" not found"]),
        ("scale cm/first --replicas 2", &["configmaps cannot be scaled"]),
        ("rollout undo deploy/web --to-revision 99", &["unable to find specified revision 99 in history; it has 1"]),
        ("rollout undo deploy/web", &["no rollout history found"]),
        ("delete pods", &["which pods? Give names, a selector (-l), or --all"]),
        ("delete namespace default", &["this namespace may not be deleted"]),
        ("apply -f web.yaml -n nowhere", &["namespaces \"nowhere\" not found"]),
    ] {
        cluster.refuses(line, wanted);
    }
    cluster.lives_on();
    cluster.must(&["down"]);
    cluster.refuses("get pods", &["cannot reach the API server at https://127.0.0.1:", "`phalanx up`"]);
    cluster.refuses("tree", &["no node of the cluster answers: no node runs in "]);
    cluster.refuses("token create", &["no node runs in ", "`phalanx up`"]);
    cluster.refuses("chaos kill n1", &["n1 was not running"]);
    assert!(cluster.must(&["status"]).contains("Stopped"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_a_full_output_is() {
    let cluster = Cluster::up("1");
    for line in ["get ns -o yaml", "tree", "status", "api-resources", "completions bash"] {
        let args: Vec<&str> = line.split(' ').collect();
        let mut command = phalanx(cluster.dir(), &args);
        let command = command.arg("--dir").arg(cluster.dir()).stderr(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("spawned");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ended");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{line}");

        let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
        let output = command.stdout(full).output().expect("run");
        assert!(refused(&output).starts_with("cannot write to standard output: No space left"), "{line}");
    }
}

#[test]
fn a_directory_of_another_cluster_is_refused() {
    let (ours, theirs) = (Cluster::up("2"), Cluster::up("1"));
    let token = theirs.must(&["token", "create"]);
    ours.must(&["down"]);
    let n2 = ours.path("nodes/n2");
    let join = ["agent", "--name", "n2", "--join", token.trim()];
    let said = refused(&phalanx(ours.dir(), &join).arg("--dir").arg(&n2).output().expect("run"));
    assert!(
        said.contains("nodes/n2 belongs to node n2 of cluster phalanx, not to the cluster of the join token"),
        "{said}"
    );

    // Another cluster's node n1 lies where n2 should be under its own name, while it runs elsewhere.
    for entry in ["node.json", "run.json"] {
        let text = std::fs::read_to_string(theirs.path("nodes/n1").join(entry)).expect("read");
        let text = text.replace("\"n1\"", "\"n2\"");
        std::fs::write(n2.join(entry), text).expect("written");
    }
    ours.refuses("up --detach", &["nodes/n2 belongs to node n2 of cluster phalanx (", "choose another directory"]);
    ours.must(&["down"]);
    theirs.lives_on();
}

#[test]
fn a_full_disk_makes_the_cluster_read_only_until_there_is_room() {
    let cluster = Cluster::up("2");
    cluster.write("first.yaml", CONFIG_MAP);
    cluster.must(&["apply", "-f", "first.yaml"]);
    cluster.refuses("chaos fill-disk n2", &["n2 is an agent; only servers have a store"]);
    cluster.must(&["chaos", "fill-disk", "n1"]);
    cluster.until("read-only", |s| s["nodes"][0]["readOnly"].is_string());
    let shown = cluster.must(&["status"]);
    assert!(shown.contains("ReadOnly") && shown.contains("n1 is read-only: less than 32 MiB are free"), "{shown}");

    cluster.write("second.yaml", CONFIG_MAP.replace("first", "second"));
    let words = ["is read-only: less than 32 MiB are free on the disk of ", "nodes/n1/store; make room there"];
    cluster.refuses("apply -f second.yaml", &[&words[..], &["second.yaml: document 1", "ServiceUnavailable"]].concat());
    cluster.refuses("delete cm first", &words);
    cluster.refuses("token create", &words);
    assert_eq!(cluster.must(&["get", "cm", "first", "-o", "name"]), "configmap/first\n", "reads go on");
    // Leases are not the disk's business: nobody is lost.
    assert_eq!(cluster.status()["nodes"][1]["state"], "Ready");

    cluster.must(&["chaos", "heal", "n1"]);
    cluster.until("writable", |s| s["nodes"][0]["readOnly"].is_null());
    cluster.must(&["apply", "-f", "second.yaml"]);
    cluster.must(&["down"]);
    cluster.must(&["up", "--detach"]);
    let names = cluster.must(&["get", "cm", "-o", "name"]);
    assert_eq!(names, "configmap/first\nconfigmap/second\n", "what was acknowledged, and nothing else");
    cluster.lives_on();
}

fn request(token: &JoinToken, ahead_s: i64) -> JoinRequest {
    JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        node: "late".into(),
        role: TokenRole::Agent,
        csr_pem: NodeRequest::generate().and_then(|r| r.csr_pem()).expect("a request"),
        addresses: vec![],
        clock_s: jiff::Timestamp::now().as_second() + ahead_s,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_token_or_key_lets_nobody_in_and_takes_no_name() {
    let cluster = Cluster::up("1");
    let (token, ended) = (cluster.token(600).await, cluster.token(0).await);
    let two_hours = 7_200;
    let nonsense = JoinRequest { csr_pem: "nonsense".into(), ..request(&token, 0) };
    let named = JoinRequest { node: "Late!".into(), ..request(&token, 0) };
    let other = JoinRequest { token_id: "../members/n1".into(), ..request(&token, 0) };
    let server = JoinRequest { role: TokenRole::Server, ..request(&token, 0) };
    for (request, wanted) in [
        (request(&token, two_hours), " s ahead of the cluster's (allowed: 300 s); set it and join again"),
        (request(&token, -two_hours), " s behind the cluster's (allowed: 300 s); set it and join again"),
        (request(&ended, 0), "the join token expired "),
        (nonsense, "the certificate signing request is not valid"),
        (named, "\"Late!\" cannot be the name of a node"),
        (other, "the cluster does not know this join token"),
        (server, "this join token is for an agent; a server needs one from `phalanx token create --role server`"),
    ] {
        let said = join(&token, &request).await.err().expect("refused").to_string();
        assert!(said.starts_with("the cluster at ") && said.contains(wanted) && !said.contains('\n'), "{said}");
    }
    let far = request(&token, two_hours);
    let said = join(&token, &far).await.err().expect("refused").to_string();
    assert!(said.contains("is 7200 s ahead") || said.contains("is 7199 s ahead"), "the difference: {said}");
    // A little off is nothing, and the name is still free.
    let let_in = join(&token, &request(&token, -200)).await.expect("let in");
    assert_eq!(let_in.member.index, 2, "no number was spent on the others");
    cluster.lives_on();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_with_garbage_keep_nobody_out() {
    const SILENT: usize = 40;
    const SLOW_JOINS: usize = 100;
    let cluster = Cluster::up("1");
    let (api, transport) = (cluster.n1_address("api"), cluster.n1_address("address"));
    let root = std::fs::read_to_string(cluster.n1().pki().join("ca.crt")).expect("the root");

    // Connections that say nothing, or no TLS.
    let (mut silent, mut stuck) = (Vec::new(), Vec::new());
    for _ in 0..SILENT {
        silent.push(tokio::net::TcpStream::connect(api).await.expect("connected"));
    }
    // Those that say nothing after the handshake, and those that stop in the middle of a request's head.
    for head in ["", "GET /readyz HTTP/1.1\r\nhost: local"] {
        for _ in 0..5 {
            let mut stream = tls(api, &root).await;
            stream.write_all(head.as_bytes()).await.expect("written");
            stuck.push(stream);
        }
    }
    let mut raw = tokio::net::TcpStream::connect(api).await.expect("connected");
    raw.write_all(&[0xff; 4096]).await.expect("written");
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, raw.read_to_end(&mut rest)).await.expect("thrown out");

    // Packets that are no QUIC.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    for i in 0..1_000_usize {
        socket.send_to(&vec![(i % 251) as u8 | 0xc0; i % 1_400], transport).expect("sent");
    }

    // The door for joining, which is open to all.
    for (body, code, wanted) in [
        (b"garbage".to_vec(), 400, "not a join request"),
        (br#"{"tokenId": 7}"#.to_vec(), 400, "not a join request"),
        (vec![b' '; 1024 * 1024], 413, "too large"),
    ] {
        let mut client = fixture::Client::connect(api, &root, None, "http/1.1").await.expect("connected");
        let answer = client.send("POST", JOIN_PATH, &["content-type: application/json"], body).await;
        assert_eq!(answer.code, code, "{}", answer.text);
        assert!(answer.json()["message"].as_str().is_some_and(|m| m.contains(wanted)), "{}", answer.text);
    }
    // Joins whose body never ends: they have room of their own, and a time to end in.
    let mut slow = Vec::new();
    for _ in 0..SLOW_JOINS {
        let mut stream = tls(api, &root).await;
        let head = format!("POST {JOIN_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.expect("written");
        slow.push(stream);
    }
    cluster.lives_on();
    let mut answers = [0, 0];
    for mut stream in slow {
        let mut answer = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("in time").expect("an answer");
        match &answer {
            b"HTTP/1.1 429" => answers[0] += 1,
            b"HTTP/1.1 400" => answers[1] += 1,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert_eq!(answers, [SLOW_JOINS - 64, 64], "who found no room, and who was too slow");
    for mut stream in silent {
        let mut nothing = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut nothing)).await;
        assert!(read.is_ok(), "a connection without a handshake is closed");
    }
    for mut stream in stuck {
        let mut nothing = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut nothing)).await;
        assert!(read.is_ok() && nothing.is_empty(), "a connection without a request is closed");
    }
    let token = cluster.token(600).await;
    assert!(join(&token, &request(&token, 0)).await.is_ok(), "and who is decent comes in");
    cluster.lives_on();
}

/// A connection without a client's certificate.
async fn tls(address: SocketAddr, root: &str) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(root.as_bytes()).expect("PEM")).expect("a root");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(address).await.expect("connected");
    let name = rustls_pki_types::ServerName::try_from("127.0.0.1").expect("a name");
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await.expect("TLS")
}
