//! The runtime `task`: a container is an async Rust function that the embedding program registered by name.
//!
//! The name is `command[0]`, or what follows `task/` in the image. A function that returns an error exits with 1, one
//! that panics with 101; both say why in the termination message. Tasks end with their process: nothing is adopted.
//! A task that never awaits cannot be killed: it must be cooperative, as all async code.
use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::container_log::{Lines, LogFile, Rotation, Stream, record_time};
use super::{Container, ContainerSpec, ExecResult, ExitStatus, Runtime, RuntimeError};

/// The exit code of a Rust program that panicked.
const PANIC_EXIT_CODE: i32 = 101;
const SIGKILL: i32 = 9;

type Task = Arc<dyn Fn(TaskContext) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The functions that pods may name. Cloning shares it; functions may be added at any time.
#[derive(Clone, Default)]
pub struct TaskRegistry(Arc<RwLock<HashMap<String, Task>>>);

impl TaskRegistry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a function, in place of an earlier one of the same name.
    pub fn register<F, Fut, E>(&self, name: impl Into<String>, task: F)
    where
        F: Fn(TaskContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let task: Task = Arc::new(move |context| {
            let running = task(context);
            async move { running.await.map_err(|error| error.to_string()) }.boxed()
        });
        self.0.write().insert(name.into(), task);
    }

    fn find(&self, name: &str) -> Option<Task> {
        self.0.read().get(name).cloned()
    }
}

/// What a task knows of its container.
#[derive(Clone)]
pub struct TaskContext {
    spec: Arc<ContainerSpec>,
    stop: CancellationToken,
    log: Arc<Mutex<(LogFile, Lines, Lines)>>,
}

impl TaskContext {
    pub fn pod(&self) -> &str {
        &self.spec.pod
    }

    pub fn namespace(&self) -> &str {
        &self.spec.namespace
    }

    /// How often this container was restarted before.
    pub fn restarts(&self) -> u32 {
        self.spec.attempt
    }

    /// The words after the task's name.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.spec.command.iter().skip(1).chain(&self.spec.args).map(String::as_str)
    }

    pub fn env(&self, name: &str) -> Option<&str> {
        self.spec.env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The address that this pod may listen on.
    pub fn pod_ip(&self) -> Option<std::net::IpAddr> {
        self.spec.pod_ip
    }

    /// Resolves when the container is asked to stop (SIGTERM). What then takes longer than the grace period is cut off.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Cancelled when the container is asked to stop.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.stop
    }

    /// One line to the container's log, as if printed to stdout.
    pub fn log(&self, line: impl Display) {
        self.write(Stream::Stdout, &line.to_string());
    }

    /// One line to the container's log, as if printed to stderr.
    pub fn log_error(&self, line: impl Display) {
        self.write(Stream::Stderr, &line.to_string());
    }

    fn write(&self, stream: Stream, text: &str) {
        let mut log = self.log.lock();
        let (file, stdout, stderr) = &mut *log;
        let lines = if stream == Stream::Stdout { stdout } else { stderr };
        let mut records = Vec::with_capacity(text.len() + 64);
        let now = record_time(Timestamp::now());
        lines.push(&now, text.as_bytes(), &mut records);
        lines.push(&now, b"\n", &mut records);
        file.write(&records);
    }
}

/// Runs registered functions as containers.
pub struct TaskRuntime {
    registry: TaskRegistry,
    /// Where the tasks run.
    on: Handle,
    running: TaskTracker,
    /// The parents of every task's own.
    stop: CancellationToken,
    kill: CancellationToken,
}

impl TaskRuntime {
    /// Tasks run on the tokio runtime `on`, which should not be the one of the actors: a task may be slow to yield.
    pub fn new(registry: TaskRegistry, on: Handle) -> Self {
        Self {
            registry,
            on,
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        }
    }

    /// Asks every task to stop, gives them `grace` to do so, and cuts off the rest. What is started from now on is cut
    /// off, too: the node ends.
    pub async fn shutdown(&self, grace: Duration) {
        self.stop.cancel();
        self.running.close();
        let _ = tokio::time::timeout(grace, self.running.wait()).await;
        self.kill();
    }

    /// Cuts off every task, and whatever is started from now on: the node has died.
    pub fn kill(&self) {
        self.kill.cancel();
    }
}

/// The name of the function that a container means.
fn task_name(spec: &ContainerSpec) -> Option<&str> {
    let from_image = || spec.image.strip_prefix("task/").map(|name| name.split(':').next().unwrap_or(name));
    spec.command.first().map(String::as_str).or_else(from_image)
}

#[async_trait]
impl Runtime for TaskRuntime {
    fn name(&self) -> &'static str {
        "task"
    }

    async fn start(&self, spec: ContainerSpec) -> Result<Arc<dyn Container>, RuntimeError> {
        let Some(name) = task_name(&spec).map(str::to_owned) else {
            return Err(RuntimeError::Config(format!(
                "container {:?} names no task: set command: [NAME] or image: task/NAME",
                spec.container
            )));
        };
        let Some(task) = self.registry.find(&name) else {
            return Err(RuntimeError::Start(format!("no task is registered under the name {name:?}")));
        };
        if let Some(logs) = spec.log_path.parent() {
            std::fs::create_dir_all(logs).map_err(RuntimeError::io("cannot create", logs))?;
        }
        let log = LogFile::open(&spec.log_path, Rotation::default());
        let spec = Arc::new(spec);
        let stop = self.stop.child_token();
        let context = TaskContext {
            spec: spec.clone(),
            stop: stop.clone(),
            log: Arc::new(Mutex::new((log, Lines::new(Stream::Stdout), Lines::new(Stream::Stderr)))),
        };
        let (tell, exit) = watch::channel(None);
        let kill = self.kill.child_token();
        let killed = kill.clone();
        let logged = context.clone();
        let life = async move {
            let run = AssertUnwindSafe(async move { task(context).await }).catch_unwind();
            let status = tokio::select! {
                biased;
                () = killed.cancelled() => ExitStatus::signalled(SIGKILL),
                outcome = run => match outcome {
                    Ok(Ok(())) => ExitStatus::exited(0),
                    Ok(Err(error)) => ExitStatus::exited(1).because("Error", error),
                    Err(panic) => {
                        let message = format!("panicked: {}", panic_message(&*panic));
                        logged.log_error(&message);
                        ExitStatus::exited(PANIC_EXIT_CODE).because("Error", message)
                    }
                },
            };
            let _ = tell.send(Some(status));
        };
        self.running.spawn_on(life, &self.on);
        Ok(Arc::new(TaskContainer { spec, started_at: Timestamp::now(), stop, kill, exit }))
    }

    async fn adopt(&self, _dir: &Path) -> Result<Option<Arc<dyn Container>>, RuntimeError> {
        Ok(None)
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is not text")
}

struct TaskContainer {
    spec: Arc<ContainerSpec>,
    started_at: Timestamp,
    stop: CancellationToken,
    kill: CancellationToken,
    exit: watch::Receiver<Option<ExitStatus>>,
}

#[async_trait]
impl Container for TaskContainer {
    fn id(&self) -> &str {
        &self.spec.id
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn started_at(&self) -> Timestamp {
        self.started_at
    }

    async fn wait(&self) -> ExitStatus {
        match self.exit.clone().wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_else(|| ExitStatus::exited(0)),
            Err(_) => ExitStatus::signalled(SIGKILL).because("Error", "the runtime that ran the task was shut down"),
        }
    }

    /// A task knows only one signal: every one but SIGKILL asks it to stop.
    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        if signal == SIGKILL {
            self.kill.cancel();
        } else {
            self.stop.cancel();
        }
        Ok(())
    }

    async fn kill(&self) -> Result<(), RuntimeError> {
        self.kill.cancel();
        Ok(())
    }

    async fn exec(&self, _command: &[String], _timeout: Duration) -> Result<ExecResult, RuntimeError> {
        Err(RuntimeError::Unsupported { runtime: "task", what: "run a command inside a container" })
    }

    async fn cleanup(&self) -> Result<(), RuntimeError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dir: &Path, command: &[&str], image: &str) -> ContainerSpec {
        ContainerSpec {
            id: "uid_c_0".into(),
            namespace: "default".into(),
            pod: "web".into(),
            pod_uid: "uid".into(),
            container: "c".into(),
            attempt: 2,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            args: vec!["--fast".into()],
            env: vec![("NAME".into(), "value".into())],
            working_dir: None,
            dir: dir.join("state"),
            log_path: dir.join("logs").join("2.log"),
            image: image.into(),
            pod_ip: None,
            port: None,
            bound_to: None,
        }
    }

    #[tokio::test]
    async fn a_task_ends_as_a_process_would() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = TaskRegistry::new();
        tasks.register("hello", |context: TaskContext| async move {
            context.log(format!(
                "{} {:?} {:?}",
                context.restarts(),
                context.args().collect::<Vec<_>>(),
                context.env("NAME")
            ));
            Ok::<(), String>(())
        });
        tasks.register("fails", |_| async { Err("no disk") });
        tasks.register("panics", |_| async { if true { panic!("boom {}", 7) } else { Ok::<(), String>(()) } });
        tasks.register("serves", |context: TaskContext| async move {
            context.stopped().await;
            Ok::<(), String>(())
        });
        tasks.register("deaf", |_| async { std::future::pending::<Result<(), String>>().await });
        let runtime = TaskRuntime::new(tasks, Handle::current());
        let start = |command: &'static [&'static str], image: &'static str| {
            let spec = spec(dir.path(), command, image);
            let runtime = &runtime;
            async move { runtime.start(spec).await }
        };

        assert_eq!(start(&["hello", "a"], "x").await.unwrap().wait().await.code, 0);
        let log = std::fs::read_to_string(dir.path().join("logs/2.log")).unwrap();
        assert!(log.ends_with("stdout F 2 [\"a\", \"--fast\"] Some(\"value\")\n"), "{log}");
        let failed = start(&[], "task/fails:v1").await.unwrap().wait().await;
        assert_eq!((failed.code, failed.message.as_deref()), (1, Some("no disk")));
        let panicked = start(&["panics"], "x").await.unwrap().wait().await;
        assert_eq!((panicked.code, panicked.message.as_deref()), (101, Some("panicked: boom 7")));
        let served = start(&["serves"], "x").await.unwrap();
        served.signal(15).await.unwrap();
        assert_eq!(served.wait().await.code, 0);
        let deaf = start(&["deaf"], "x").await.unwrap();
        deaf.signal(15).await.unwrap();
        deaf.kill().await.unwrap();
        assert_eq!(deaf.wait().await.code, 137);
        assert!(matches!(start(&["nobody"], "x").await, Err(RuntimeError::Start(_))));
        assert!(matches!(start(&[], "nginx").await, Err(RuntimeError::Config(_))));
    }

    #[tokio::test]
    async fn no_task_outlives_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = TaskRegistry::new();
        tasks.register("serves", |context: TaskContext| async move {
            context.stopped().await;
            Ok::<(), String>(())
        });
        tasks.register("deaf", |_| async { std::future::pending::<Result<(), String>>().await });
        let runtime = TaskRuntime::new(tasks, Handle::current());
        let serves = runtime.start(spec(dir.path(), &["serves"], "x")).await.unwrap();
        let deaf = runtime.start(spec(dir.path(), &["deaf"], "x")).await.unwrap();
        runtime.shutdown(Duration::from_millis(200)).await;
        assert_eq!((serves.wait().await.code, deaf.wait().await.code), (0, 137));
        let late = runtime.start(spec(dir.path(), &["deaf"], "x")).await.unwrap();
        assert_eq!(late.wait().await.code, 137);
    }
}
