//! How one container is run: the trait [`Runtime`] and its implementations `process`, `task` and `sim`.
//!
//! A runtime starts, finds again, signals and reaps containers. It never decides whether or when a container
//! should run, and knows nothing of pods, probes or restart policies: that is `node`, its only caller.
pub mod container_log;
#[cfg(target_os = "linux")]
pub mod process;
pub mod sim;
pub mod task;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The exit code of a container that could not be started, as containerd reports it.
pub const START_ERROR_EXIT_CODE: i32 = 128;
/// The exit code of a container whose end nobody saw (kubelet: `ContainerStatusUnknown`), and of one killed by SIGKILL.
pub const SIGKILL_EXIT_CODE: i32 = 137;

/// Everything a runtime must know to run one attempt of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique on the node: pod uid, container name and attempt.
    pub id: String,
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub container: String,
    /// 0 for the first run; equals the restart count.
    pub attempt: u32,
    /// `command` of the container; what an image's entry point would be where empty.
    pub command: Vec<String>,
    pub args: Vec<String>,
    /// The whole environment that the pod asks for, in order. A runtime may add to it, never override it.
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    /// State of this attempt; owned by the runtime, removed by [`Container::cleanup`].
    pub dir: PathBuf,
    /// Where stdout and stderr go, in CRI format.
    pub log_path: PathBuf,
    pub image: String,
    /// The pod's address, which the container should listen on.
    pub pod_ip: Option<IpAddr>,
    /// The first declared `containerPort`.
    pub port: Option<u16>,
    /// A file on which the agent holds a shared lock (flock(2)). The container is killed as soon as nobody holds one: it must
    /// not run on without its agent, which alone knows whether it still may.
    #[serde(default)]
    pub bound_to: Option<PathBuf>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The exit code; 128 + signal where a signal ended it.
    pub code: i32,
    pub signal: Option<i32>,
    #[serde(with = "rfc3339")]
    pub finished_at: Timestamp,
    /// Kubernetes' reason, where the runtime knows better than the code (`StartError`, `OOMKilled`).
    pub reason: Option<String>,
    pub message: Option<String>,
}

impl ExitStatus {
    pub fn exited(code: i32) -> Self {
        Self { code, signal: None, finished_at: Timestamp::now(), reason: None, message: None }
    }

    pub fn signalled(signal: i32) -> Self {
        Self { code: 128 + signal, signal: Some(signal), ..Self::exited(0) }
    }

    pub fn because(mut self, reason: &str, message: impl Into<String>) -> Self {
        self.reason = Some(reason.to_owned());
        self.message = Some(message.into());
        self
    }

    pub fn success(&self) -> bool {
        self.code == 0
    }
}

/// What a command run inside a container gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecResult {
    pub code: i32,
    /// stdout and stderr in the order they came, at most [`EXEC_OUTPUT_BYTES_MAX`]; the rest is dropped.
    pub output: Vec<u8>,
}

/// More output of an exec than this is read and thrown away (kubelet limits a probe's output to 10 KiB).
pub const EXEC_OUTPUT_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The container cannot run as it is written: reported as `CreateContainerConfigError`.
    #[error("{0}")]
    Config(String),
    /// The runtime was asked properly and the container did not start: an exit with code 128.
    #[error("{0}")]
    Start(String),
    #[error("the runtime {runtime} cannot {what}")]
    Unsupported { runtime: &'static str, what: &'static str },
    #[error("command {command:?} timed out after {after:?}")]
    Timeout { command: Vec<String>, after: Duration },
    #[error("the container is not running")]
    NotRunning,
    #[error("{what} {path}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

impl RuntimeError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// A way to run containers. One value serves all containers of a node.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// The value of `runtimeClassName` that selects it.
    fn name(&self) -> &'static str;

    /// Starts a container and returns once it runs.
    async fn start(&self, spec: ContainerSpec) -> Result<Arc<dyn Container>, RuntimeError>;

    /// Finds the container whose state is in `dir` after the agent restarted: still running, or finished (then
    /// [`Container::wait`] answers at once). `None`: nothing ever started there, or nothing is known of it.
    async fn adopt(&self, dir: &Path) -> Result<Option<Arc<dyn Container>>, RuntimeError>;
}

/// One attempt of a container. Dropping it does not stop the container.
#[async_trait]
pub trait Container: Send + Sync {
    fn id(&self) -> &str;
    /// The process id, where the container is a process.
    fn pid(&self) -> Option<u32>;
    fn started_at(&self) -> Timestamp;
    /// Resolves when the container has ended and nothing of it runs any more. May be called any number of times.
    async fn wait(&self) -> ExitStatus;
    /// Sends a signal to everything in the container. Not an error when it has ended already.
    async fn signal(&self, signal: i32) -> Result<(), RuntimeError>;
    /// Ends everything in the container at once. Not an error when it has ended already.
    async fn kill(&self) -> Result<(), RuntimeError>;
    /// Runs a command with the environment and working directory of the container.
    async fn exec(&self, command: &[String], timeout: Duration) -> Result<ExecResult, RuntimeError>;
    /// Removes the state of an ended container (not its logs).
    async fn cleanup(&self) -> Result<(), RuntimeError>;
}

/// The runtimes of a node by name, and which one a pod gets that names none.
#[derive(Clone)]
pub struct Runtimes {
    default: &'static str,
    by_name: BTreeMap<&'static str, Arc<dyn Runtime>>,
}

impl Runtimes {
    /// `default` serves the pods without `runtimeClassName`.
    pub fn new(default: Arc<dyn Runtime>) -> Self {
        Self { default: default.name(), by_name: BTreeMap::from([(default.name(), default)]) }
    }

    pub fn with(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.by_name.insert(runtime.name(), runtime);
        self
    }

    pub fn default_name(&self) -> &'static str {
        self.default
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.by_name.keys().copied()
    }

    /// The runtime for a `runtimeClassName`, if this node has it.
    pub fn select(&self, class: Option<&str>) -> Option<Arc<dyn Runtime>> {
        self.by_name.get(class.filter(|class| !class.is_empty()).unwrap_or(self.default)).cloned()
    }
}

/// Timestamps in state files as RFC 3339 text.
pub(crate) mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(at)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
