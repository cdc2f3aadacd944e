//! One node of a cluster in this process: its member and the threads that are its own.
//!
//! ```text
//!   Node ── Running ──┬─ control   tokio runtime: member, store, HTTPS    (the transport and the actors bring their threads)
//!                     └─ tasks     tokio runtime: the functions that pods run
//! ```
//! A runtime of its own is what makes it mortal: when it is shut down nothing of the node is left, as if a process had died,
//! and a function that blocks its thread stops neither other nodes nor its own node's lease. Must never be dropped while it
//! runs without its threads being told to end.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_actors::ActorInfo;
use phalanx_transport::{Direction, Target};
use tokio::runtime::{Handle, Runtime};

use super::ClusterError;
use super::builder::Settings;
use crate::cluster::layout::{ClusterNode, NodeDir};
use crate::cluster::member::{Member, MemberConfig, MemberError, Shared};
use crate::node::Layout;
use crate::runtime::process::kill_node_processes;
use crate::runtime::task::TaskRuntime;
use crate::security::{JoinToken, TokenRole};
use crate::store::Store;

/// Threads of each of a node's two runtimes.
const WORKERS: usize = 2;
/// A dying node is given up after this time: its threads are told to end, and not waited for.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// The same for a node that stops in order.
const STOP_DEADLINE: Duration = Duration::from_secs(40);
/// What tasks that are left when their node stops get to end in.
const TASK_GRACE: Duration = Duration::from_secs(2);
/// How long threads that were told to end are waited for.
const THREADS_DEADLINE: Duration = Duration::from_secs(1);

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At once, as if its process had died.
    Kill,
    /// In order, with what it runs.
    Stop,
}

/// A node, running or not.
pub(super) struct Node {
    pub name: String,
    pub server: bool,
    dir: NodeDir,
    cluster: String,
    settings: Settings,
    /// Held by whoever starts or ends it.
    turn: tokio::sync::Mutex<()>,
    running: Mutex<Option<Running>>,
}

struct Running {
    member: Option<Member>,
    task_runtime: Arc<TaskRuntime>,
    control: Threads,
    tasks: Threads,
}

/// A tokio runtime that may be dropped anywhere.
struct Threads(Option<Runtime>);

impl Threads {
    fn start(name: String) -> std::io::Result<(Self, Handle)> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(WORKERS).thread_name(name).enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok((Self(Some(runtime)), handle))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running node, for a while: it may end at any time.
#[derive(Clone)]
pub(super) struct Access {
    pub name: String,
    pub shared: Arc<Shared>,
    on: Handle,
}

impl Access {
    /// Runs something on the node's own threads; `None` when the node ended before it was done.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        match Spawned(self.on.spawn(work)).wait().await {
            Ok(done) => Some(done),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => None,
        }
    }

    /// The node knows that it is cut off from the leader.
    pub fn fenced(&self) -> bool {
        self.shared.leases.status().borrow().fenced
    }

    /// The Raft term in which it leads, if it does.
    pub fn leads(&self) -> Option<u64> {
        let office = self.shared.store.as_ref()?.leadership().borrow().clone();
        office.is_self.then_some(office.term)
    }
}

/// A task that ends with whoever waits for it.
struct Spawned<T>(tokio::task::JoinHandle<T>);

impl<T> Spawned<T> {
    async fn wait(mut self) -> Result<T, tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for Spawned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Node {
    pub fn new(node: &ClusterNode, dir: NodeDir, cluster: &str, settings: &Settings) -> Self {
        Self {
            name: node.name.clone(),
            server: node.server,
            dir,
            cluster: cluster.to_owned(),
            settings: settings.clone(),
            turn: tokio::sync::Mutex::new(()),
            running: Mutex::new(None),
        }
    }

    /// Whether it was part of the cluster before.
    pub fn is_known(&self) -> bool {
        matches!(self.dir.load(&self.name), Ok(Some(_)))
    }

    /// Starts it; returns when it is part of the cluster and serves.
    pub async fn start(&self, join: Option<JoinToken>) -> Result<(), ClusterError> {
        let _turn = self.turn.lock().await;
        if self.running.lock().is_some() {
            return Err(ClusterError::Running(self.name.clone()));
        }
        let failed = |why: String| ClusterError::Start { node: self.name.clone(), why };
        let threads = |name| Threads::start(name).map_err(|e| failed(format!("cannot start its threads: {e}")));
        let (control, on) = threads(self.name.clone())?;
        let (tasks, tasks_on) = threads(format!("{}-tasks", self.name))?;
        let task_runtime = self.settings.tasks(tasks_on);
        let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let config = MemberConfig {
            name: self.name.clone(),
            dir: self.dir.clone(),
            role: if self.server { TokenRole::Server } else { TokenRole::Agent },
            join,
            cluster: self.cluster.clone(),
            transport: any_port,
            api: any_port,
            shared_api: None,
            runtimes: self.settings.runtimes(task_runtime.clone()),
        };
        let start = |config| {
            let starting = Spawned(on.spawn(Member::start(config)));
            async { starting.wait().await.map_err(|e| failed(e.to_string())) }
        };
        let mut started = start(config.clone()).await?;
        if let Err(MemberError::Listen { .. }) = &started
            && self.forget_ports()
        {
            // Somebody took the port while the node was down. The others are told where it is now.
            started = start(config).await?;
        }
        let member = started.map_err(|e| failed(e.to_string()))?;
        *self.running.lock() = Some(Running { member: Some(member), task_runtime, control, tasks });
        Ok(())
    }

    /// Lets the system choose ports anew; false if that cannot help.
    fn forget_ports(&self) -> bool {
        let Ok(Some(mut file)) = self.dir.load(&self.name) else { return false };
        file.member.transport = "127.0.0.1:0".into();
        file.member.api = file.member.api.map(|_| "127.0.0.1:0".into());
        self.dir.save(&file).is_ok()
    }

    /// Ends it, and returns when nothing of it is left; false if it did not run.
    pub async fn end(&self, how: End) -> bool {
        let _turn = self.turn.lock().await;
        let Some(running) = self.running.lock().take() else { return false };
        let containers = self.containers();
        // Waiting for threads blocks.
        let ended = tokio::task::spawn_blocking(move || running.end(how, containers.as_deref()));
        let _ = ended.await;
        true
    }

    /// Kills it from a thread that may block.
    pub fn kill_blocking(&self) {
        let running = self.running.lock().take();
        if let Some(running) = running {
            running.end(End::Kill, self.containers().as_deref());
        }
    }

    /// Where its processes are kept, if it has any.
    fn containers(&self) -> Option<PathBuf> {
        self.settings.has_processes().then(|| Layout::new(self.dir.agent()).containers())
    }

    pub fn access(&self) -> Option<Access> {
        let running = self.running.lock();
        let running = running.as_ref()?;
        let on = running.control.0.as_ref()?.handle().clone();
        Some(Access { name: self.name.clone(), shared: running.member.as_ref()?.shared().clone(), on })
    }

    /// Its actors, while it runs.
    pub fn tree(&self) -> Option<Vec<ActorInfo>> {
        Some(self.running.lock().as_ref()?.member.as_ref()?.system().tree())
    }

    /// Cuts it off from all others, or ends that.
    pub fn cut(&self, cut: bool) -> Result<(), ClusterError> {
        let access = self.access().ok_or_else(|| ClusterError::NotRunning(self.name.clone()))?;
        let faults = access.shared.transport.faults();
        match cut {
            true => faults.cut(Target::All, Direction::Both),
            false => faults.heal(Target::All),
        }
        Ok(())
    }
}

impl Running {
    /// Blocks until nothing of the node runs, nor anything in `containers`.
    fn end(mut self, how: End, containers: Option<&Path>) {
        let (control, tasks) = (self.control.0.take(), self.tasks.0.take());
        if let (Some(runtime), Some(member)) = (&control, self.member.take()) {
            let task_runtime = &self.task_runtime;
            runtime.block_on(async {
                let done = match how {
                    End::Kill => tokio::time::timeout(KILL_DEADLINE, member.abort()).await,
                    End::Stop => tokio::time::timeout(STOP_DEADLINE, member.stop(true)).await,
                };
                if done.is_err() {
                    tracing::warn!("a node did not end in time; its threads are told to end");
                }
                match how {
                    End::Kill => task_runtime.kill(),
                    End::Stop => task_runtime.shutdown(TASK_GRACE).await,
                }
            });
        }
        for runtime in [tasks, control].into_iter().flatten() {
            runtime.shutdown_timeout(THREADS_DEADLINE);
        }
        if let Some(containers) = containers {
            kill_node_processes(containers);
        }
    }
}
