//! The process runtime with its real shim: what holds a container, what survives, what is killed.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::runtime::process::{ProcessRuntime, kill_node_processes, procfs, protocol};
use phalanx::runtime::{Container, ContainerSpec, Runtime, RuntimeError};

/// A directory of containers of which nothing is left when the test ends, however it ends.
struct Node {
    dir: tempfile::TempDir,
    runtime: ProcessRuntime,
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: ProcessRuntime::with_binary(env!("CARGO_BIN_EXE_phalanx").into()),
        }
    }

    fn state_dir(&self, container: &str) -> PathBuf {
        self.dir.path().join("containers").join(container)
    }

    fn spec(&self, container: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: format!("uid_{container}_0"),
            namespace: "default".into(),
            pod: "web".into(),
            pod_uid: "uid".into(),
            container: container.into(),
            attempt: 0,
            command: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            args: vec![],
            env: vec![("GREETING".into(), "hello world".into())],
            working_dir: Some(self.dir.path().to_owned()),
            dir: self.state_dir(container),
            log_path: self.dir.path().join("logs").join(format!("{container}.log")),
            image: "none".into(),
            pod_ip: Some("127.9.9.9".parse().unwrap()),
            port: None,
            bound_to: None,
        }
    }

    async fn start(&self, container: &str, script: &str) -> Arc<dyn Container> {
        self.runtime.start(self.spec(container, script)).await.unwrap()
    }

    /// The text of a container's log, by stream.
    fn log(&self, container: &str, stream: &str) -> String {
        let path = self.dir.path().join("logs").join(format!("{container}.log"));
        let mut text = String::new();
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let mut fields = line.splitn(4, ' ');
            let (_, of, tag, rest) =
                (fields.next(), fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
            if of == stream {
                text.push_str(rest);
                if tag == "F" {
                    text.push('\n');
                }
            }
        }
        text
    }

    /// Waits until the container has printed a word, and gives the line it stands in.
    async fn printed(&self, container: &str, word: &str) -> String {
        eventually(&format!("{container} prints {word}"), || {
            self.log(container, "stdout").lines().find(|line| line.contains(word)).map(str::to_owned)
        })
        .await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        kill_node_processes(&self.dir.path().join("containers"));
    }
}

async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn alive(pid: i32) -> bool {
    procfs::stat(pid).is_some_and(|stat| stat.state != 'Z')
}

async fn dies(pid: i32) {
    eventually(&format!("{pid} dies"), || (!alive(pid)).then_some(())).await;
}

fn state(dir: &Path) -> protocol::State {
    protocol::read_json(&dir.join(protocol::STATE_FILE)).unwrap().unwrap()
}

fn last_number(line: &str) -> i32 {
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_exit_code_or_the_signal_is_reported() {
    let node = Node::new();
    for (name, script, code, signal) in [
        ("zero", "true", 0, None),
        ("seven", "exit 7", 7, None),
        ("killed", "kill -KILL $$", 137, Some(9)),
        ("terminated", "kill -TERM $$", 143, Some(15)),
    ] {
        let exit = node.start(name, script).await.wait().await;
        assert_eq!((exit.code, exit.signal), (code, signal), "{name}");
    }
}

#[tokio::test]
async fn output_environment_and_working_directory_are_the_containers_own() {
    let node = Node::new();
    let script = r#"echo "$GREETING from $HOSTNAME on $HOST"; echo oops >&2; pwd; printf unfinished"#;
    let exit = node.start("c", script).await.wait().await;
    assert_eq!(exit.code, 0);
    let dir = node.dir.path().canonicalize().unwrap();
    assert_eq!(node.log("c", "stdout"), format!("hello world from web on 127.9.9.9\n{}\nunfinished", dir.display()));
    assert_eq!(node.log("c", "stderr"), "oops\n");
    // Nothing of the shim's own handling of signals is inherited.
    node.start("d", "exec grep SigBlk /proc/self/status").await.wait().await;
    assert_eq!(node.log("d", "stdout"), "SigBlk:\t0000000000000000\n");
}

#[tokio::test]
async fn the_last_output_is_not_lost_when_the_container_exits_at_once() {
    let node = Node::new();
    let exit = node.start("c", "seq 1 50000; exit 3").await.wait().await;
    assert_eq!(exit.code, 3);
    let expected: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    assert!(node.log("c", "stdout") == expected);
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let node = Node::new();
    let mut spec = node.spec("c", "");
    spec.command = vec!["no-such-program".into()];
    let error = node.runtime.start(spec).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        r#"failed to start container: exec: "no-such-program": executable file not found in $PATH"#
    );
    let mut spec = node.spec("d", "true");
    spec.working_dir = Some("/no/such/dir".into());
    let error = node.runtime.start(spec).await.err().unwrap();
    assert!(error.to_string().contains("working directory"), "{error}");
}

#[tokio::test]
async fn killing_a_container_kills_its_children_also_those_that_left_its_session() {
    let node = Node::new();
    let script = "trap '' TERM; sleep 1000 & echo child $!; setsid sh -c 'trap \"\" TERM; echo escaped $$; sleep 1000; true' & sleep 1000; sleep 1000";
    let container = node.start("c", script).await;
    let child = last_number(&node.printed("c", "child").await);
    let escaped = last_number(&node.printed("c", "escaped").await);
    container.signal(15).await.unwrap();
    assert!(alive(container.pid().unwrap() as i32));
    container.kill().await.unwrap();
    assert_eq!(container.wait().await.code, 137);
    assert!(!alive(child) && !alive(escaped), "the end is reported only when nothing runs any more");
}

#[tokio::test]
async fn what_the_main_process_leaves_behind_ends_with_it() {
    let node = Node::new();
    let container = node.start("c", "setsid sleep 1000 & echo child $!; exit 4").await;
    assert_eq!(container.wait().await.code, 4);
    let child = last_number(&node.printed("c", "child").await);
    assert!(!alive(child));
}

#[tokio::test]
async fn a_new_agent_adopts_the_same_process_and_sees_its_end() {
    let node = Node::new();
    let container = node.start("c", "while [ ! -e stop ]; do sleep 0.01; done; echo bye; exit 5").await;
    let pid = container.pid();
    let started_at = container.started_at();
    drop(container);
    let again = node.runtime.adopt(&node.state_dir("c")).await.unwrap().unwrap();
    assert_eq!((again.pid(), again.started_at()), (pid, started_at));
    std::fs::write(node.dir.path().join("stop"), "").unwrap();
    assert_eq!(again.wait().await.code, 5);
    let finished = node.runtime.adopt(&node.state_dir("c")).await.unwrap().unwrap();
    assert_eq!(finished.wait().await, again.wait().await);
    assert_eq!(node.log("c", "stdout"), "bye\n");
    finished.cleanup().await.unwrap();
    assert!(!node.state_dir("c").exists());
    assert!(node.runtime.adopt(&node.state_dir("c")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_container_whose_shim_is_killed_dies_with_everything_it_started() {
    let node = Node::new();
    let script = "sleep 1000 & echo child $!; setsid sh -c 'echo escaped $$; exec sleep 1000' & wait";
    let container = node.start("c", script).await;
    let child = last_number(&node.printed("c", "child").await);
    let escaped = last_number(&node.printed("c", "escaped").await);
    let state = state(&node.state_dir("c"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(state.shim_pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let exit = container.wait().await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    for pid in [state.pid, child, escaped] {
        dies(pid).await;
    }
}

#[tokio::test]
async fn a_container_that_lost_its_shim_while_no_agent_ran_is_ended_on_adoption() {
    let node = Node::new();
    let container = node.start("c", "sleep 1000 & echo child $!; wait").await;
    let child = last_number(&node.printed("c", "child").await);
    let state = state(&node.state_dir("c"));
    // A second runtime stands for the new agent; the first one's watcher is blind to what it adopts.
    drop(container);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(state.shim_pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    dies(state.shim_pid).await;
    let found = node.runtime.adopt(&node.state_dir("c")).await.unwrap().unwrap();
    assert_eq!(found.wait().await.code, 137);
    dies(state.pid).await;
    dies(child).await;
}

#[tokio::test]
async fn sigterm_reaches_the_whole_process_group() {
    let node = Node::new();
    let script = "sh -c 'trap \"echo child got it; exit 0\" TERM; echo ready; while :; do sleep 0.01; done' & sleep 0.2; trap 'wait; exit 9' TERM; echo parent ready; wait";
    let container = node.start("c", script).await;
    node.printed("c", "parent ready").await;
    container.signal(15).await.unwrap();
    assert_eq!(container.wait().await.code, 9);
    assert!(node.log("c", "stdout").contains("child got it"));
}

#[tokio::test]
async fn exec_sees_the_containers_environment_and_is_killed_after_its_timeout() {
    let node = Node::new();
    let container = node.start("c", "sleep 1000").await;
    let words = |script: &str| ["sh", "-c", script].map(String::from).to_vec();
    let result = container.exec(&words("echo $GREETING; pwd >&2; exit 3"), Duration::from_secs(30)).await.unwrap();
    assert_eq!(result.code, 3);
    let output = String::from_utf8(result.output).unwrap();
    assert!(output.contains("hello world\n") && output.contains(&*node.dir.path().to_string_lossy()), "{output}");
    let slow = container.exec(&words("echo $$ > slow.pid; sleep 1000; true"), Duration::from_millis(500)).await;
    assert!(matches!(slow, Err(RuntimeError::Timeout { .. })), "{slow:?}");
    let pid: i32 = std::fs::read_to_string(node.dir.path().join("slow.pid")).unwrap().trim().parse().unwrap();
    dies(pid).await;
    let background = container.exec(&words("sleep 1000 & echo done"), Duration::from_secs(30)).await.unwrap();
    assert_eq!((background.code, &background.output[..]), (0, &b"done\n"[..]));
    container.kill().await.unwrap();
    container.wait().await;
    assert!(matches!(container.exec(&words("true"), Duration::from_secs(30)).await, Err(RuntimeError::NotRunning)));
}

#[tokio::test]
async fn a_state_directory_longer_than_a_socket_path_may_be_works() {
    let node = Node::new();
    let mut spec = node.spec("c", "sleep 1000");
    spec.dir = node.state_dir(&"deep".repeat(40)).join("0");
    let container = node.runtime.start(spec.clone()).await.unwrap();
    let pid = container.pid();
    let adopted = node.runtime.adopt(&spec.dir).await.unwrap().unwrap();
    assert_eq!(adopted.pid(), pid);
    adopted.kill().await.unwrap();
    assert_eq!(container.wait().await.code, 137);
}

#[tokio::test]
async fn the_loss_of_a_node_kills_shims_and_containers_and_leaves_no_exit() {
    let node = Node::new();
    let _container = node.start("c", "sleep 1000 & echo child $!; wait").await;
    let child = last_number(&node.printed("c", "child").await);
    let state = state(&node.state_dir("c"));
    assert_eq!(kill_node_processes(&node.dir.path().join("containers")), 1);
    for pid in [state.shim_pid, state.pid, child] {
        dies(pid).await;
    }
}

#[tokio::test]
async fn the_loss_of_one_node_hits_no_other_that_runs_a_container_of_the_same_id() {
    let (lost, other) = (Node::new(), Node::new());
    let script = "setsid sleep 1000 & echo child $!; wait";
    let _gone = lost.start("c", script).await;
    let stays = other.start("c", script).await;
    let escaped = last_number(&lost.printed("c", "child").await);
    let neighbour = last_number(&other.printed("c", "child").await);
    kill_node_processes(&lost.dir.path().join("containers"));
    dies(escaped).await;
    assert!(alive(neighbour) && alive(stays.pid().unwrap() as i32));
}

#[tokio::test]
async fn a_bound_container_ends_when_nobody_holds_its_lock_any_more() {
    let node = Node::new();
    let lock_path = node.dir.path().join("agent.lock");
    let lock = std::fs::File::create(&lock_path).unwrap();
    lock.lock_shared().unwrap();
    let spec =
        |name| ContainerSpec { bound_to: Some(lock_path.clone()), ..node.spec(name, "sleep 300 & echo up; wait") };
    let (one, two) = (node.runtime.start(spec("one")).await.unwrap(), node.runtime.start(spec("two")).await.unwrap());
    node.printed("one", "up").await;
    node.printed("two", "up").await;
    // Many looks of both, which must not take each other for the agent's absence.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (first, second) = (state(&node.state_dir("one")).pid, state(&node.state_dir("two")).pid);
    assert!(alive(first) && alive(second));
    drop(lock);
    assert_eq!((one.wait().await.signal, two.wait().await.signal), (Some(9), Some(9)));
    dies(first).await;
    dies(second).await;
}
