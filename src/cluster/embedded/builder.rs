//! What a cluster in this process shall be, checked before anything starts.

use std::fmt::Display;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::{Cluster, ClusterError};
use crate::cluster::layout::{ClusterDir, ClusterFile, ClusterNode, FORMAT};
use crate::cluster::local::{NODES_MAX, SERVERS_MAX};
use crate::cluster::membership::check_name;
use crate::runtime::process::ProcessRuntime;
use crate::runtime::task::{TaskContext, TaskRegistry, TaskRuntime};
use crate::runtime::{Runtime, Runtimes};

/// From this size on a cluster gets three servers: fewer could not lose one.
const NODES_FOR_THREE_SERVERS: u32 = 3;
/// The runtime of pods that name none, unless the builder says otherwise.
const DEFAULT_RUNTIME: &str = "task";
const LOCK_FILE: &str = "lock";

/// Describes a cluster to be started in this process; see [`Cluster::builder`].
#[must_use = "a builder starts nothing until `start` is awaited"]
pub struct ClusterBuilder {
    name: String,
    nodes: Option<u32>,
    servers: Option<u32>,
    dir: Option<PathBuf>,
    settings: Settings,
}

/// What every node of the cluster runs pods with.
#[derive(Clone)]
pub(super) struct Settings {
    tasks: TaskRegistry,
    shared: Vec<Arc<dyn Runtime>>,
    processes: Option<PathBuf>,
    default_runtime: String,
}

/// Where a cluster lives, for as long as it does.
pub(super) struct Home {
    pub dir: ClusterDir,
    pub file: ClusterFile,
    /// Nothing was there before.
    pub new: bool,
    pub temporary: Option<TempDir>,
    /// Held while the cluster exists: its directory is nobody else's.
    pub lock: File,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        let settings = Settings {
            tasks: TaskRegistry::new(),
            shared: Vec::new(),
            processes: None,
            default_runtime: DEFAULT_RUNTIME.into(),
        };
        Self { name: "phalanx".into(), nodes: None, servers: None, dir: None, settings }
    }
}

impl ClusterBuilder {
    /// How many nodes; 1 unless told otherwise. They are named `n1`, `n2`, and so on.
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = Some(nodes);
        self
    }

    /// How many of the nodes are servers, the first ones. Unless told otherwise three, or one where there are fewer
    /// than three nodes.
    pub fn servers(mut self, servers: u32) -> Self {
        self.servers = Some(servers);
        self
    }

    /// The cluster's name, `phalanx` unless told otherwise. Clusters in one process may share it.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Where to keep the cluster. A directory that holds one is resumed with everything in it. Without this call the
    /// cluster lives in a temporary directory that goes with it.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Registers a function that pods may run as a container: with `command: [NAME]` or `image: task/NAME`.
    ///
    /// It runs on threads of its node's own, and ends when that node is killed. Returning an error is exit code 1, a panic
    /// is 101; the pod's `restartPolicy` says what happens then.
    pub fn task<F, Fut, E>(self, name: impl Into<String>, task: F) -> Self
    where
        F: Fn(TaskContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        self.settings.tasks.register(name, task);
        self
    }

    /// Lets pods with `runtimeClassName: process` run commands of this machine. `shim` is the program that holds them:
    /// one whose `main` begins with [`run_shim_if_invoked`](crate::runtime::process::shim::run_shim_if_invoked), such as
    /// `phalanx`.
    pub fn processes(mut self, shim: impl Into<PathBuf>) -> Self {
        self.settings.processes = Some(shim.into());
        self
    }

    /// Adds a runtime, which all nodes share. Pods ask for it with `runtimeClassName`.
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.settings.shared.push(runtime);
        self
    }

    /// The runtime of pods that name none; `task` unless told otherwise.
    pub fn default_runtime(mut self, name: impl Into<String>) -> Self {
        self.settings.default_runtime = name.into();
        self
    }

    /// Starts the cluster. Returns when writes are accepted and every node is Ready for pods.
    ///
    /// # Errors
    /// When the numbers cannot be, the directory cannot be used, or a node does not start. Nothing is left running then.
    pub async fn start(self) -> Result<Cluster, ClusterError> {
        self.settings.check()?;
        let home = self.home()?;
        Cluster::start(home, self.settings).await
    }

    /// Opens the directory, or makes it.
    fn home(&self) -> Result<Home, ClusterError> {
        let planned = self.plan()?;
        let failed = |path: &Path, e: std::io::Error| {
            ClusterError::Directory(format!("cannot use {} for a cluster: {e}", path.display()))
        };
        let temporary = match self.dir {
            Some(_) => None,
            None => {
                let made = tempfile::Builder::new().prefix("phalanx-").tempdir();
                Some(made.map_err(|e| failed(&std::env::temp_dir(), e))?)
            }
        };
        let path = match (&self.dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => std::env::temp_dir(),
        };
        std::fs::create_dir_all(&path).map_err(|e| failed(&path, e))?;
        let path = std::path::absolute(&path).map_err(|e| failed(&path, e))?;
        let lock = File::create(path.join(LOCK_FILE)).map_err(|e| failed(&path, e))?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => {
                let shown = path.display();
                ClusterError::Directory(format!("the cluster in {shown} is running already; choose another directory"))
            }
            std::fs::TryLockError::Error(e) => failed(&path, e),
        })?;
        let dir = ClusterDir(path);
        let found = dir.load().map_err(|e| ClusterError::Directory(e.to_string()))?;
        let new = found.is_none();
        let file = match found {
            None => planned,
            Some(found) => self.agrees(&dir, found)?,
        };
        Ok(Home { dir, file, new, temporary, lock })
    }

    fn plan(&self) -> Result<ClusterFile, ClusterError> {
        let nodes = self.nodes.unwrap_or(1);
        if nodes == 0 || nodes > NODES_MAX {
            return Err(ClusterError::Invalid(format!("nodes must be 1 to {NODES_MAX}, not {nodes}")));
        }
        let servers = self.servers.unwrap_or(if nodes < NODES_FOR_THREE_SERVERS { 1 } else { 3 });
        if servers == 0 || servers > SERVERS_MAX.min(nodes) {
            let most = SERVERS_MAX.min(nodes);
            return Err(ClusterError::Invalid(format!(
                "servers must be 1 to {most} in a cluster of {nodes}, not {servers}"
            )));
        }
        check_name(&self.name).map_err(|_| {
            ClusterError::Invalid(format!(
                "{:?} cannot be the name of a cluster: use 1 to 63 of a-z, 0-9 and -, not - at either end",
                self.name
            ))
        })?;
        let nodes = (1..=nodes).map(|i| ClusterNode { name: format!("n{i}"), server: i <= servers }).collect();
        Ok(ClusterFile { format: FORMAT, cluster: self.name.clone(), nodes, api: None })
    }

    /// A cluster that is there already is resumed as it is; whoever asked for another one is told.
    fn agrees(&self, dir: &ClusterDir, found: ClusterFile) -> Result<ClusterFile, ClusterError> {
        let servers = found.nodes.iter().filter(|n| n.server).count();
        let differs = |asked: Option<u32>, there: usize| asked.is_some_and(|asked| asked as usize != there);
        if differs(self.nodes, found.nodes.len()) || differs(self.servers, servers) {
            return Err(ClusterError::Directory(format!(
                "{} holds a cluster of {} nodes, {servers} of them servers: ask for these numbers or none, or choose another directory",
                dir.0.display(),
                found.nodes.len()
            )));
        }
        Ok(found)
    }
}

impl Settings {
    /// The runtimes of one node, whose tasks are `tasks`.
    pub fn runtimes(&self, tasks: Arc<dyn Runtime>) -> Option<Runtimes> {
        let mut all = vec![tasks];
        if let Some(shim) = &self.processes {
            all.push(Arc::new(ProcessRuntime::with_binary(shim.clone())));
        }
        all.extend(self.shared.iter().cloned());
        let default = all.iter().find(|runtime| runtime.name() == self.default_runtime)?.clone();
        Some(all.into_iter().fold(Runtimes::new(default), Runtimes::with))
    }

    /// A node's own runtime for the functions that were registered.
    pub fn tasks(&self, on: tokio::runtime::Handle) -> Arc<TaskRuntime> {
        Arc::new(TaskRuntime::new(self.tasks.clone(), on))
    }

    /// Whether pods may run commands of this machine.
    pub fn has_processes(&self) -> bool {
        self.processes.is_some()
    }

    fn check(&self) -> Result<(), ClusterError> {
        let mut names = vec![DEFAULT_RUNTIME];
        names.extend(self.processes.as_ref().map(|_| "process"));
        names.extend(self.shared.iter().map(|runtime| runtime.name()));
        match names.contains(&self.default_runtime.as_str()) {
            true => Ok(()),
            false => Err(ClusterError::Invalid(format!(
                "no runtime {:?} is registered to be the default; there is {}",
                self.default_runtime,
                names.join(", ")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(builder: ClusterBuilder) -> String {
        builder.settings.check().and_then(|()| builder.home().map(|_| ())).expect_err("refused").to_string()
    }

    #[test]
    fn a_cluster_that_cannot_be_is_refused_with_the_numbers_that_can() {
        let builder = ClusterBuilder::default;
        assert_eq!(refused(builder().nodes(0)), "nodes must be 1 to 64, not 0");
        assert_eq!(refused(builder().nodes(65)), "nodes must be 1 to 64, not 65");
        assert_eq!(refused(builder().nodes(2).servers(3)), "servers must be 1 to 2 in a cluster of 2, not 3");
        assert_eq!(refused(builder().nodes(9).servers(8)), "servers must be 1 to 7 in a cluster of 9, not 8");
        assert_eq!(refused(builder().servers(0)), "servers must be 1 to 1 in a cluster of 1, not 0");
        assert!(refused(builder().name("No Name")).starts_with("\"No Name\" cannot be the name of a cluster"));
        let says = "no runtime \"process\" is registered to be the default; there is task";
        assert_eq!(refused(builder().default_runtime("process")), says);
        assert!(builder().processes("/bin/true").default_runtime("process").settings.check().is_ok());
    }

    #[test]
    fn the_number_of_servers_follows_from_that_of_the_nodes() {
        let servers = |nodes| {
            let file = ClusterBuilder::default().nodes(nodes).plan().expect("planned");
            file.nodes.iter().filter(|n| n.server).count()
        };
        assert_eq!((servers(1), servers(2), servers(3), servers(5)), (1, 1, 3, 3));
    }

    #[test]
    fn a_directory_is_one_clusters_at_a_time_and_keeps_its_size() {
        let dir = tempfile::tempdir().expect("tempdir");
        let builder = || ClusterBuilder::default().dir(dir.path());
        let first = builder().nodes(3).home().expect("opened");
        assert!(first.new);
        assert!(refused(builder()).contains("is running already"));
        first.dir.save(&first.file).expect("saved");
        drop(first);
        assert!(refused(builder().nodes(5)).contains("holds a cluster of 3 nodes, 3 of them servers"));
        let again = builder().home().expect("resumed");
        assert!(!again.new);
        assert_eq!(again.file.nodes.len(), 3);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("written");
        let says = refused(ClusterBuilder::default().dir(file.join("below")));
        assert!(says.contains("cannot use") && says.contains("file/below"), "{says}");
    }
}
