//! The agent with real processes under real shims, against a control plane in memory.
mod control;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use phalanx::node::logs::LogRequest;
use phalanx::node::{Agent, AgentConfig, CrashLoopTimes, Fence, PodActor, PodNetwork, SyncActor, Unfence};
use phalanx::runtime::process::{ProcessRuntime, kill_node_processes, procfs, protocol};
use phalanx::runtime::task::{TaskContext, TaskRegistry, TaskRuntime};
use phalanx::runtime::{Runtimes, sim::SimRuntime};
use phalanx_actors::System;
use serde_json::{Value, json};

use control::{Control, is_ready};

/// One node; nothing of it is left when the test ends, however it ends.
struct Node {
    dir: tempfile::TempDir,
    control: Arc<Control>,
    tasks: TaskRegistry,
    running: Option<(System, Arc<Agent>)>,
    crash_loop: CrashLoopTimes,
}

impl Node {
    async fn start() -> Self {
        let mut node = Self::stopped();
        node.boot().await;
        node
    }

    fn stopped() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            control: Arc::new(Control::default()),
            tasks: TaskRegistry::new(),
            running: None,
            crash_loop: CrashLoopTimes::default(),
        }
    }

    async fn boot(&mut self) {
        let runtimes = Runtimes::new(Arc::new(ProcessRuntime::with_binary(env!("CARGO_BIN_EXE_phalanx").into())))
            .with(Arc::new(TaskRuntime::new(self.tasks.clone(), tokio::runtime::Handle::current())))
            .with(Arc::new(SimRuntime::default()));
        let config = AgentConfig {
            crash_loop: self.crash_loop,
            pod_network: PodNetwork::loopback(77),
            ..AgentConfig::new("n1", self.dir.path())
        };
        let agent = Agent::new(config, runtimes, self.control.clone()).unwrap();
        let system = System::builder("n1").build().unwrap();
        system.start(agent.tree()).await.unwrap();
        self.running = Some((system, agent));
    }

    /// As `kill -9` of the agent's process: no hook runs, containers stay.
    fn kill_agent(&mut self) {
        self.running.take().unwrap().0.kill();
    }

    fn system(&self) -> &System {
        &self.running.as_ref().unwrap().0
    }

    fn agent(&self) -> &Arc<Agent> {
        &self.running.as_ref().unwrap().1
    }

    fn containers(&self) -> PathBuf {
        self.dir.path().join("containers")
    }

    fn state(&self, uid: &str, container: &str, attempt: u32) -> Option<protocol::State> {
        let dir = self.containers().join(uid).join(container).join(attempt.to_string());
        protocol::read_json(&dir.join(protocol::STATE_FILE)).unwrap()
    }

    fn pid(&self, uid: &str, attempt: u32) -> i32 {
        self.state(uid, "c", attempt).unwrap().pid
    }

    async fn log(&self, pod: &str, request: LogRequest) -> String {
        let mut stream = Box::pin(self.agent().open_logs("default", pod, request).unwrap());
        let mut text = Vec::new();
        while let Some(chunk) = stream.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    /// Waits until the log of a pod's only container has a line with this word, and gives the line.
    async fn printed(&self, pod: &str, word: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let known = self.agent().open_logs("default", pod, LogRequest::default()).is_ok();
            let log = if known { self.log(pod, LogRequest::default()).await } else { String::new() };
            if let Some(line) = log.lines().find(|line| line.contains(word)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "{pod} never printed {word}: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((system, _)) = self.running.take() {
            system.kill();
        }
        kill_node_processes(&self.containers());
    }
}

fn sh(script: &str) -> Value {
    // Kubernetes reads `$$` in a command as an escaped `$`.
    json!({"containers": [{"command": ["sh", "-c", script.replace("$$", "$$$$")]}]})
}

fn sh_with(script: &str, more: Value) -> Value {
    let mut spec = sh(script);
    for (key, value) in more.as_object().unwrap() {
        spec["containers"][0][key] = value.clone();
    }
    spec
}

fn policy(mut spec: Value, policy: &str) -> Value {
    spec["restartPolicy"] = policy.into();
    spec
}

fn alive(pid: i32) -> bool {
    procfs::stat(pid).is_some_and(|stat| stat.state != 'Z')
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

const SLEEP: &str = "exec sleep 1000";

#[tokio::test]
async fn a_pod_becomes_ready_and_a_killed_container_is_restarted_at_once() {
    let node = Node::start().await;
    node.control.apply("web", "u1", sh(SLEEP));
    let status = node.control.ready("u1").await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("127.1.77.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let container = &status.container_statuses.unwrap()[0];
    assert_eq!((container.restart_count, container.container_id.as_deref()), (0, Some("process://u1_c_0")));
    assert_eq!(node.control.event("u1", "Started").await, "Started container c");

    let before = Instant::now();
    kill(node.pid("u1", 0));
    let again = node.control.container("u1", "restarted", |of| of.restart_count == 1 && of.ready).await;
    println!("killed to Ready again: {:?}", before.elapsed());
    let last = again.last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.signal, last.reason.as_deref()), (137, Some(9), Some("Error")));
    assert!(alive(node.pid("u1", 1)));
    let tree: Vec<String> = node.system().tree().into_iter().map(|info| info.path).collect();
    assert!(tree.contains(&"agent/pods/default_web/containers/c".to_owned()), "{tree:#?}");
}

#[tokio::test]
async fn the_node_registers_what_it_is() {
    let node = Node::start().await;
    let registered = node.control.until("registered", Control::node).await;
    let labels = registered.metadata.labels.unwrap();
    assert_eq!(labels["kubernetes.io/hostname"], "n1");
    assert_eq!(labels["phalanx.dev/runtime"], "process");
    let status = registered.status.unwrap();
    let capacity = status.capacity.unwrap();
    assert!(capacity["cpu"].0.parse::<u32>().unwrap() >= 1);
    assert_eq!(capacity["pods"].0, "110");
    assert!(capacity["memory"].0.ends_with("Ki"));
    assert!(status.node_info.unwrap().kubelet_version.starts_with("v1.36"));
    assert!(status.conditions.unwrap().iter().any(|of| of.type_ == "Ready" && of.status == "True"));
}

#[tokio::test]
async fn restart_policies_are_restart_types() {
    let node = Node::start().await;
    node.control.apply("ok", "ok", policy(sh("exit 0"), "Never"));
    node.control.apply("bad", "bad", policy(sh("exit 3"), "Never"));
    node.control.apply("retry", "retry", policy(sh("[ -e done ] && exit 0; touch done; exit 5"), "OnFailure"));
    let status = node.control.phase("ok", "Succeeded").await;
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (0, Some("Completed")));
    let status = node.control.phase("bad", "Failed").await;
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (3, Some("Error")));
    let status = node.control.phase("retry", "Succeeded").await;
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 1);
}

#[tokio::test]
async fn a_crashing_container_is_in_crash_loop_back_off_and_says_so() {
    let node = Node::start().await;
    node.control.apply("crash", "u1", sh("exit 1"));
    let crashed = node
        .control
        .container("u1", "CrashLoopBackOff", |of| {
            of.state.as_ref().and_then(|state| state.waiting.as_ref()?.reason.as_deref()) == Some("CrashLoopBackOff")
        })
        .await;
    assert_eq!(crashed.restart_count, 1);
    assert_eq!(
        crashed.state.unwrap().waiting.unwrap().message.as_deref(),
        Some("back-off 10s restarting failed container=c pod=crash_default(u1)")
    );
    assert_eq!(crashed.last_state.unwrap().terminated.unwrap().exit_code, 1);
    assert_eq!(
        node.control.event("u1", "BackOff").await,
        "Back-off restarting failed container c in pod crash_default(u1)"
    );
    assert_eq!(node.control.status("u1").unwrap().phase.as_deref(), Some("Running"));
    // A pod in back-off is deleted without waiting for the restart.
    node.control.delete("u1", 30);
    node.control.gone("u1").await;
}

#[tokio::test]
async fn the_back_off_ends_and_the_container_runs_again() {
    let mut node = Node::stopped();
    node.crash_loop.step = Duration::from_millis(100);
    node.boot().await;
    node.control.apply("crash", "u1", sh("exit 1"));
    node.control.container("u1", "restarted often", |of| of.restart_count >= 4).await;
}

#[tokio::test]
async fn the_environment_comes_from_everywhere_and_what_is_missing_is_waited_for() {
    let node = Node::start().await;
    node.control.secret("sec", json!({"TOKEN": "aHVzaA=="}));
    node.control.apply(
        "env",
        "u1",
        sh_with(
            "echo \"$GREETING|$TOKEN|$IP|$NODE|$1\"; exec sleep 1000",
            json!({
                "args": ["sh", "arg-$(GREETING)"],
                "env": [
                    {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "greeting"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                ],
                "envFrom": [{"secretRef": {"name": "sec"}}],
            }),
        ),
    );
    let waiting = node
        .control
        .container("u1", "CreateContainerConfigError", |of| {
            let waiting = of.state.as_ref().and_then(|state| state.waiting.as_ref());
            waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CreateContainerConfigError"))
        })
        .await;
    assert_eq!(waiting.state.unwrap().waiting.unwrap().message.as_deref(), Some("configmap \"cm\" not found"));
    assert_eq!(node.control.event("u1", "Failed").await, "Error: configmap \"cm\" not found");
    node.control.config_map("cm", json!({"greeting": "hello"}));
    let status = node.control.ready("u1").await;
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0);
    assert_eq!(node.printed("env", "|").await, "hello|hush|127.1.77.1|n1|arg-hello");
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let node = Node::start().await;
    node.control.apply("empty", "u1", json!({"containers": [{"image": "nginx"}]}));
    node.control.apply("alien", "u2", json!({"runtimeClassName": "gvisor", "containers": [{"command": ["true"]}]}));
    node.control.apply("missing", "u3", json!({"containers": [{"command": ["/no/such/program"]}]}));
    assert!(node.control.event("u1", "Failed").await.contains("needs a command"));
    assert!(node.control.event("u2", "FailedCreatePodSandBox").await.contains("no runtime for \"gvisor\""));
    let message = node.control.event("u3", "Failed").await;
    assert!(message.contains("/no/such/program") && message.contains("no such file"), "{message}");
    let failed = node.control.container("u3", "start error", |of| of.last_state.as_ref().unwrap().terminated.is_some());
    let last = failed.await.last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (128, Some("StartError")));
    for uid in ["u1", "u2", "u3"] {
        node.control.delete(uid, 30);
        node.control.gone(uid).await;
    }
}

#[tokio::test]
async fn init_containers_run_in_order_and_to_success() {
    let node = Node::start().await;
    let dir = node.dir.path().display().to_string();
    let step = |name: &str, script: String| json!({"name": name, "command": ["sh", "-c", script]});
    let mut spec = sh(&format!("echo main >> {dir}/order; exec sleep 1000"));
    spec["initContainers"] = json!([
        step("first", format!("echo first >> {dir}/order")),
        step("flaky", format!("echo flaky >> {dir}/order; [ $(grep -c flaky {dir}/order) = 2 ]")),
        step("last", format!("echo last >> {dir}/order")),
    ]);
    node.control.apply("web", "u1", spec);
    let status = node.control.ready("u1").await;
    // Ready means that the process of `web` runs, not how far it has come.
    let order = async {
        loop {
            let order = std::fs::read_to_string(format!("{dir}/order")).unwrap();
            if order.ends_with("main\n") {
                return order;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let order = tokio::time::timeout(Duration::from_secs(30), order).await.expect("`web` writes its line");
    assert_eq!(order, "first\nflaky\nflaky\nlast\nmain\n");
    let init = status.init_container_statuses.unwrap();
    assert!(init.iter().all(|of| of.ready && of.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code == 0));
    assert_eq!(init.iter().map(|of| of.restart_count).collect::<Vec<_>>(), [0, 1, 0]);

    let mut spec = policy(sh("true"), "Never");
    spec["initContainers"] = json!([step("bad", "exit 9".into())]);
    node.control.apply("bad", "u2", spec);
    let status = node.control.phase("u2", "Failed").await;
    assert!(status.container_statuses.unwrap()[0].state.as_ref().unwrap().waiting.is_some());
}

#[tokio::test]
async fn readiness_gates_ready_and_a_failed_liveness_probe_restarts() {
    let node = Node::start().await;
    node.control.apply(
        "web",
        "u1",
        sh_with(
            "trap 'exit 7' TERM; while :; do sleep 0.01; done",
            json!({
                "startupProbe": {"exec": {"command": ["sh", "-c", "test -e up"]}, "periodSeconds": 1, "failureThreshold": 100},
                "readinessProbe": {"exec": {"command": ["sh", "-c", "test -e ready"]}, "periodSeconds": 1, "failureThreshold": 1},
                "livenessProbe": {"exec": {"command": ["sh", "-c", "echo sick; test ! -e sick"]}, "periodSeconds": 1, "failureThreshold": 1},
            }),
        ),
    );
    let work = node.dir.path().join("work/u1/c");
    let touch = |name: &str| std::fs::write(work.join(name), "").unwrap();
    let status = node.control.phase("u1", "Running").await;
    assert!(!is_ready(&status));
    assert_eq!(status.container_statuses.unwrap()[0].started, Some(false));
    touch("up");
    node.control.container("u1", "started, not ready", |of| of.started == Some(true) && !of.ready).await;
    touch("ready");
    node.control.ready("u1").await;
    std::fs::remove_file(work.join("ready")).unwrap();
    node.control.container("u1", "unready", |of| !of.ready).await;
    node.control
        .until("readiness event", |control| {
            control.events("u1", "Unhealthy").into_iter().find(|message| message.starts_with("Readiness probe failed"))
        })
        .await;
    touch("ready");
    node.control.ready("u1").await;
    touch("sick");
    let restarted = node.control.container("u1", "restarted", |of| of.restart_count == 1).await;
    assert_eq!(restarted.last_state.unwrap().terminated.unwrap().exit_code, 7, "it was asked to stop first");
    let unhealthy = node.control.events("u1", "Unhealthy");
    assert!(unhealthy.iter().any(|message| message.starts_with("Liveness probe failed: sick")), "{unhealthy:?}");
    assert_eq!(node.control.events("u1", "Killing")[0], "Container c failed liveness probe, will be restarted");
}

#[tokio::test]
async fn an_http_server_that_starts_late_is_ready_soon_after() {
    let node = Node::start().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    node.control.apply(
        "web",
        "u1",
        sh_with(
            SLEEP,
            json!({"readinessProbe": {"httpGet": {"port": port, "host": "127.0.0.1", "path": "/ready"}, "periodSeconds": 600}}),
        ),
    );
    node.control.phase("u1", "Running").await;
    let server = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    node.control.ready("u1").await;
    serving.abort();
}

#[tokio::test]
async fn a_container_that_ignores_sigterm_is_killed_after_its_grace_with_its_children() {
    let node = Node::start().await;
    let script = "trap '' TERM; sh -c 'trap \"\" TERM; echo child $$; while :; do sleep 0.05; done' & while :; do sleep 0.05; done";
    node.control.apply("web", "u1", sh(script));
    node.control.ready("u1").await;
    let child: i32 = node.printed("web", "child").await.split_whitespace().last().unwrap().parse().unwrap();
    let main = node.pid("u1", 0);
    let before = Instant::now();
    node.control.delete("u1", 1);
    node.control.gone("u1").await;
    assert!(before.elapsed() >= Duration::from_secs(1), "it has its grace");
    assert!(!alive(main) && !alive(child));
    let last = node.control.history("u1").pop().unwrap();
    let ended = last.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.signal), (137, Some(9)));
    assert_eq!(node.control.events("u1", "Killing"), ["Stopping container c"]);
    node.control
        .until("the disk is clear", |_| {
            let left = |dir: &str| std::fs::read_dir(node.dir.path().join(dir)).map_or(0, Iterator::count);
            (left("containers") + left("logs") + left("work") + left("pods") == 0).then_some(())
        })
        .await;
}

#[tokio::test]
async fn the_pre_stop_hook_runs_before_sigterm() {
    let node = Node::start().await;
    let dir = node.dir.path().display().to_string();
    node.control.apply(
        "web",
        "u1",
        sh_with(
            &format!("trap 'echo term >> {dir}/order; exit 0' TERM; echo up; while :; do sleep 0.01; done"),
            json!({"lifecycle": {
                "postStart": {"exec": {"command": ["sh", "-c", format!("echo started >> {dir}/order")]}},
                "preStop": {"exec": {"command": ["sh", "-c", format!("sleep 0.3; echo stop >> {dir}/order")]}}}}),
        ),
    );
    node.control.ready("u1").await;
    node.printed("web", "up").await;
    node.control.delete("u1", 30);
    node.control.gone("u1").await;
    assert_eq!(std::fs::read_to_string(format!("{dir}/order")).unwrap(), "started\nstop\nterm\n");
}

#[tokio::test]
async fn a_new_agent_adopts_running_containers_without_a_sign_in_their_status() {
    let mut node = Node::start().await;
    let probed =
        json!({"readinessProbe": {"exec": {"command": ["sh", "-c", "test -e ../../../go"]}, "periodSeconds": 1}});
    std::fs::write(node.dir.path().join("go"), "").unwrap();
    node.control.apply("web", "u1", sh(SLEEP));
    node.control.apply("probed", "u2", sh_with(SLEEP, probed));
    node.control.ready("u1").await;
    node.control.ready("u2").await;
    let (first, second) = (node.pid("u1", 0), node.pid("u2", 0));
    let reports = |node: &Node| (node.control.history("u1").len(), node.control.history("u2").len());
    node.kill_agent();
    let before = reports(&node);
    node.boot().await;
    // A pod that comes after them: once it is ready the others have long been taken up.
    node.control.until("a session", |control| control.node()).await;
    node.control.apply("new", "u3", sh(SLEEP));
    node.control.ready("u3").await;
    assert!(node.control.status("u3").unwrap().pod_ip.as_deref() == Some("127.1.77.3"), "addresses are kept");
    assert_eq!((node.pid("u1", 0), node.pid("u2", 0)), (first, second));
    assert!(alive(first) && alive(second));
    for uid in ["u1", "u2"] {
        let all = node.control.history(uid);
        assert!(all.iter().skip(before.0.min(before.1)).all(is_ready), "{uid}: {all:#?}");
        assert_eq!(all.last().unwrap().container_statuses.as_ref().unwrap()[0].restart_count, 0);
    }
    // It still holds them: a kill is seen, a deletion obeyed.
    kill(first);
    node.control.container("u1", "restarted", |of| of.restart_count == 1 && of.ready).await;
    node.control.delete("u2", 5);
    node.control.gone("u2").await;
    assert!(!alive(second));
}

#[tokio::test]
async fn an_exclusive_pod_runs_only_while_the_node_holds_its_lease() {
    let mut node = Node::start().await;
    node.control.apply_exclusive("only", "u1", sh(SLEEP));
    node.control.apply("other", "u2", sh(SLEEP));
    node.control.ready("u2").await;
    assert!(node.state("u1", "c", 0).is_none(), "the lease was never granted");
    let sync = node.system().named::<SyncActor>("agent/sync");
    sync.ask(Unfence).await.unwrap();
    node.control.ready("u1").await;
    let (first, other) = (node.pid("u1", 0), node.pid("u2", 0));

    assert_eq!(sync.ask(Fence).await.unwrap(), 1);
    dies(first).await;
    assert!(alive(other), "others run on");
    sync.ask(Unfence).await.unwrap();
    let second = runs_as_another(&node, first).await;

    // The agent's process dies: whoever holds the container ends it, since nobody could fence it any more.
    node.kill_agent();
    dies(second).await;
    assert!(alive(other));
    node.boot().await;
    let sync = node.system().named::<SyncActor>("agent/sync");
    sync.ask(Fence).await.unwrap();
    sync.ask(Unfence).await.unwrap();
    runs_as_another(&node, second).await;

    // Replaced elsewhere while the lease was lost: it stays away.
    assert_eq!(sync.ask(Fence).await.unwrap(), 1);
    node.control.remove("u1", false);
    sync.ask(Unfence).await.unwrap();
    node.control.until("all of it is gone", |_| (!node.containers().join("u1").exists()).then_some(())).await;
    node.control.apply("new", "u3", sh(SLEEP));
    node.control.ready("u3").await;
    assert!(!node.containers().join("u1").exists());
}

async fn dies(pid: i32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while alive(pid) {
        assert!(Instant::now() < deadline, "{pid} lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the container of `u1` runs under another process id.
async fn runs_as_another(node: &Node, before: i32) -> i32 {
    node.control
        .until("it runs again", |_| {
            let attempts = (0..4).rev().find_map(|attempt| node.state("u1", "c", attempt));
            attempts.map(|state| state.pid).filter(|pid| *pid != before && alive(*pid))
        })
        .await
}

#[tokio::test]
async fn what_ended_while_no_agent_ran_is_restarted_and_counted() {
    let mut node = Node::start().await;
    node.control.apply("web", "u1", sh(SLEEP));
    node.control.apply("job", "u2", policy(sh("exec sleep 1000"), "Never"));
    node.control.ready("u1").await;
    node.control.ready("u2").await;
    node.kill_agent();
    kill(node.pid("u1", 0));
    kill(node.pid("u2", 0));
    node.boot().await;
    let again = node.control.container("u1", "restarted", |of| of.restart_count == 1 && of.ready).await;
    assert_eq!(again.last_state.unwrap().terminated.unwrap().exit_code, 137);
    let job = node.control.phase("u2", "Failed").await;
    assert_eq!(job.container_statuses.unwrap()[0].restart_count, 0);
}

#[tokio::test]
async fn without_a_control_plane_a_node_runs_on_and_the_next_snapshot_decides() {
    let mut node = Node::start().await;
    node.control.config_map("cm", json!({"A": "kept"}));
    let from_map = json!({"envFrom": [{"configMapRef": {"name": "cm"}}]});
    node.control.apply("stays", "u1", sh_with("echo $A; exec sleep 1000", from_map));
    node.control.apply("goes", "u2", sh("trap '' TERM; echo up; while :; do sleep 0.05; done"));
    node.control.ready("u1").await;
    node.control.ready("u2").await;
    node.kill_agent();
    node.control.cut();
    kill(node.pid("u1", 0));
    let kept = node.pid("u2", 0);
    node.boot().await;
    node.control.until("restarted alone", |_| node.state("u1", "c", 1)).await;
    node.printed("stays", "kept").await;
    assert!(alive(kept));

    node.control.remove("u2", false); // replaced elsewhere meanwhile
    node.control.heal();
    node.control.container("u1", "reported", |of| of.restart_count == 1 && of.ready).await;
    node.control.until("what was replaced is stopped", |_| (!alive(kept)).then_some(())).await;
    assert!(alive(node.pid("u1", 1)));
}

#[tokio::test]
async fn a_removed_pod_is_stopped_and_a_new_one_of_its_name_follows() {
    let node = Node::start().await;
    node.control.apply("web", "u1", sh("trap '' TERM; while :; do sleep 0.05; done"));
    node.control.ready("u1").await;
    let old = node.pid("u1", 0);
    node.control.remove("u1", true);
    node.control.apply("web", "u2", sh(SLEEP));
    node.control.ready("u2").await;
    assert!(!alive(old), "never two of one name");
    // The control plane forgets one without telling: the next report is answered with Gone.
    let forgotten = node.pid("u2", 0);
    node.control.remove("u2", false);
    kill(forgotten);
    node.control
        .until("the forgotten pod is stopped", |_| (!node.containers().join("u2").exists()).then_some(()))
        .await;
}

#[tokio::test]
async fn failing_actors_leave_the_containers_alone() {
    let node = Node::start().await;
    node.control.apply("web", "u1", sh(SLEEP));
    node.control.ready("u1").await;
    let pid = node.pid("u1", 0);
    for path in ["agent/pods/default_web", "agent/reporter", "agent/sync", "agent/pods/default_web/containers/c"] {
        let victim = node.system().whereis(path).unwrap();
        victim.kill();
        node.control
            .until(&format!("{path} is back"), |_| {
                let back = node.system().whereis(path).is_some_and(|back| back.id() != victim.id());
                (back && node.system().lookup::<PodActor>("agent/pods/default_web").is_some()).then_some(())
            })
            .await;
        assert!(alive(pid), "after {path}");
    }
    kill(pid);
    let again = node.control.container("u1", "restarted", |of| of.restart_count >= 1 && of.ready).await;
    assert_eq!(again.restart_count, 1);
    node.control.delete("u1", 5);
    node.control.gone("u1").await;
}

#[tokio::test]
async fn logs_are_followed_to_the_end_of_the_run_and_the_previous_one_is_kept() {
    let node = Node::start().await;
    node.control.apply("web", "u1", sh("echo run $$; while [ ! -e stop ]; do sleep 0.01; done; rm stop; echo bye"));
    node.control.ready("u1").await;
    node.printed("web", "run").await;
    let following = node.log("web", LogRequest { follow: true, ..LogRequest::default() });
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::fs::write(node.dir.path().join("work/u1/c/stop"), "").unwrap();
    };
    let (text, ()) = tokio::join!(following, stopping);
    assert!(text.ends_with("bye\n"), "{text}");
    node.control.container("u1", "restarted", |of| of.restart_count == 1 && of.ready).await;
    let previous = node.log("web", LogRequest { previous: true, ..LogRequest::default() }).await;
    assert_eq!(previous, text);
    assert_ne!(node.printed("web", "run").await, previous.lines().next().unwrap());
}

#[tokio::test]
async fn a_task_that_panics_is_restarted_by_its_supervisor() {
    let node = Node::start().await;
    node.tasks.register("work", |context: TaskContext| async move {
        context.log(format!("run {}", context.restarts()));
        if context.restarts() == 0 {
            panic!("first time unlucky");
        }
        context.stopped().await;
        Ok::<(), String>(())
    });
    let spec = json!({"runtimeClassName": "task", "containers": [{"image": "task/work"}]});
    node.control.apply("web", "u1", spec);
    let again = node.control.container("u1", "restarted", |of| of.restart_count == 1 && of.ready).await;
    let last = again.last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.message.as_deref()), (101, Some("panicked: first time unlucky")));
    node.printed("web", "run 1").await;
    node.control.delete("u1", 30);
    node.control.gone("u1").await;
}

#[tokio::test]
async fn a_pod_past_its_active_deadline_fails() {
    let node = Node::start().await;
    let mut spec = sh(SLEEP);
    spec["activeDeadlineSeconds"] = 1.into();
    node.control.apply("web", "u1", spec);
    let status = node.control.phase("u1", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    node.control.until("it is stopped", |_| (!alive(node.pid("u1", 0))).then_some(())).await;
    assert!(node.control.exists("u1"));
}
