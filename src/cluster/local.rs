//! A whole cluster of separate processes on this machine, in one directory: what `phalanx up` makes.
//!
//! Each node is a process of this same binary, with its own directory, ports chosen by the system, and a log file. Must
//! never signal a process that is not a node of its directory. Called by the CLI, the demo and the benchmarks.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpSocket;

use super::admin::{self, AdminError, AdminRequest};
use super::layout::{ClusterDir, ClusterFile, ClusterNode, FORMAT, LayoutError, NodeDir, NodeFile, make_directory};
use super::processes;
use super::status::{NodeAnswer, merge};
use crate::security::{TokenRole, write_secret};

/// A node must be ready within this time.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A started cluster waits this long for its last node to be granted its lease.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
const SETTLE_POLL: Duration = Duration::from_millis(10);
/// A node that was asked to stop must be gone within this time, or is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(45);
/// How long the tokens that `up` uses for its own nodes count, in seconds.
const OWN_TOKEN_TTL_S: u64 = 300;
/// Lines of a failed node's log that are shown.
const LOG_TAIL_LINES: usize = 5;
/// Most nodes of a local cluster: each is a process with several threads.
pub const NODES_MAX: u32 = 64;
/// Most servers: Raft gains nothing from more.
pub const SERVERS_MAX: u32 = 7;

/// What to start.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// The cluster's directory.
    pub dir: PathBuf,
    /// All nodes. Ignored when the directory holds a cluster already.
    pub nodes: u32,
    /// Servers among them. Ignored likewise.
    pub servers: u32,
    /// Name of a new cluster.
    pub cluster: String,
    /// The binary to run; `None` is this one.
    pub binary: Option<PathBuf>,
}

/// What happens while the cluster starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpProgress {
    /// The directory holds a cluster, which is resumed.
    Resuming {
        /// Its nodes.
        nodes: usize,
    },
    /// A process is being started.
    Starting {
        /// Which node.
        node: String,
    },
    /// It is part of the cluster and serves.
    Ready {
        /// Which node.
        node: String,
    },
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// Its name.
    pub name: String,
    /// Part of the control plane.
    pub server: bool,
    /// Its process; `None` while it does not run.
    pub pid: Option<i32>,
    /// Its directory.
    pub dir: PathBuf,
    /// `https://host:port`, servers only.
    pub api_url: Option<String>,
}

/// Why a local cluster did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A node did not answer.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A node did not start.
    #[error("node {node} did not start: {why} (its log: {})", log.display())]
    Start {
        /// Which node.
        node: String,
        /// What it said.
        why: String,
        /// Its log file.
        log: PathBuf,
    },
    /// Anything else; the text says it all.
    #[error("{0}")]
    Other(String),
}

/// A cluster of processes on this machine.
#[derive(Clone, Debug)]
pub struct LocalCluster {
    dir: ClusterDir,
    file: ClusterFile,
    binary: PathBuf,
}

impl LocalCluster {
    /// Starts a new cluster, or resumes the one in the directory. When a node does not start, those that this call started
    /// are stopped again.
    pub async fn up(options: UpOptions, progress: impl Fn(UpProgress)) -> Result<Self, LocalError> {
        let dir = ClusterDir(options.dir.clone());
        let binary = match options.binary.clone() {
            Some(binary) => binary,
            None => own_binary()?,
        };
        let resumed = dir.load()?;
        let mut file = match &resumed {
            Some(file) => file.clone(),
            None => plan(&options)?,
        };
        let running = file.nodes.iter().any(|n| running(&dir.node(&n.name)).is_some());
        // Held until the servers listen, so that nobody else is given it.
        let _held = if running { None } else { Some(hold_api(&mut file)?) };
        let cluster = Self { dir, file, binary };
        if let Some(node) = cluster.nodes().into_iter().find(|n| n.pid.is_some()) {
            let pid = node.pid.unwrap_or_default();
            return Err(LocalError::Other(format!(
                "the cluster in {} is running already ({} is process {pid}); stop it with `phalanx down --dir {}`",
                cluster.dir.0.display(),
                node.name,
                cluster.dir.0.display()
            )));
        }
        cluster.check_nodes()?;
        make_directory(&cluster.dir.0)?;
        if resumed.is_some() {
            progress(UpProgress::Resuming { nodes: cluster.file.nodes.len() });
        }
        let started = cluster.start_all(resumed.is_none(), &progress).await;
        if let Err(error) = started {
            for node in &cluster.file.nodes {
                cluster.kill_processes(&node.name);
            }
            return Err(error);
        }
        cluster.dir.save(&cluster.file)?;
        cluster.settle().await;
        let server = cluster.any_server()?;
        let kubeconfig = admin::call(&server, &AdminRequest::Kubeconfig).await?;
        write_secret(&cluster.kubeconfig_path(), kubeconfig.as_str().unwrap_or_default().as_bytes())
            .map_err(LayoutError::from)?;
        Ok(cluster)
    }

    /// Kills what an `up` that was given up has started in a directory.
    pub fn abandon(dir: &Path) {
        let nodes = std::fs::read_dir(dir.join("nodes")).into_iter().flatten().flatten();
        for node in nodes {
            let dir = NodeDir(node.path());
            processes::kill_node(running(&dir), &dir.0);
        }
    }

    /// The cluster that `up` made in a directory.
    pub fn open(dir: &Path) -> Result<Self, LocalError> {
        let dir = ClusterDir(dir.into());
        let Some(file) = dir.load()? else {
            return Err(LocalError::Other(format!(
                "there is no cluster in {}; make one with `phalanx up --dir {}`",
                dir.0.display(),
                dir.0.display()
            )));
        };
        Ok(Self { dir, file, binary: own_binary()? })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.file.cluster
    }

    /// Its kubeconfig.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.dir.kubeconfig()
    }

    /// A node's directory.
    pub fn node_dir(&self, name: &str) -> NodeDir {
        self.dir.node(name)
    }

    /// All nodes, as the directory and the process table know them.
    pub fn nodes(&self) -> Vec<LocalNode> {
        self.file.nodes.iter().map(|node| self.local(node)).collect()
    }

    /// One node.
    pub fn node(&self, name: &str) -> Result<LocalNode, LocalError> {
        let found = self.file.nodes.iter().find(|n| n.name == name).map(|n| self.local(n));
        found.ok_or_else(|| {
            let names: Vec<&str> = self.file.nodes.iter().map(|n| n.name.as_str()).collect();
            LocalError::Other(format!("there is no node {name} in this cluster; its nodes are {}", names.join(", ")))
        })
    }

    /// SIGKILL to the node and everything that it runs: what a power cut does. Returns how many processes died.
    pub fn kill(&self, name: &str) -> Result<usize, LocalError> {
        self.node(name)?;
        Ok(self.kill_processes(name))
    }

    /// Starts a node that does not run.
    pub async fn restart(&self, name: &str) -> Result<(), LocalError> {
        let node = self.node(name)?;
        if node.pid.is_some() {
            return Err(LocalError::Other(format!("{name} is running already")));
        }
        self.start(name, node.server, None).await
    }

    /// Stops a node in order, with what it runs.
    pub async fn stop(&self, name: &str) -> Result<(), LocalError> {
        let node = self.node(name)?;
        let Some(pid) = node.pid else { return Ok(()) };
        let asked = admin::call(&self.dir.node(name), &AdminRequest::Stop { pods: true }).await;
        if asked.is_err() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let gone = async {
            while self.node(name).is_ok_and(|n| n.pid.is_some()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // It had its time; what is left of it must not stay.
        let _ = tokio::time::timeout(STOP_DEADLINE, gone).await;
        self.kill_processes(name);
        Ok(())
    }

    /// Stops everything, agents first. The directory stays, and a later `up` resumes from it.
    pub async fn down(&self) -> Result<(), LocalError> {
        let (servers, agents): (Vec<_>, Vec<_>) = self.nodes().into_iter().partition(|n| n.server);
        for group in [agents, servers] {
            let stops = group.iter().map(|node| self.stop(&node.name));
            for result in futures::future::join_all(stops).await {
                result?;
            }
        }
        Ok(())
    }

    /// Asks one node something.
    pub async fn ask(&self, name: &str, request: &AdminRequest) -> Result<Value, LocalError> {
        self.node(name)?;
        Ok(admin::call(&self.dir.node(name), request).await?)
    }

    /// The cluster as its nodes see it, see [`super::status::merge`].
    pub async fn status(&self) -> Value {
        let asked = self.nodes().into_iter().map(|node| async move {
            let answer = match node.pid {
                Some(_) => admin::call(&self.dir.node(&node.name), &AdminRequest::Status).await.ok(),
                None => None,
            };
            NodeAnswer {
                name: node.name,
                server: node.server,
                running: Some(node.pid.is_some()),
                pid: node.pid.map(i64::from),
                answer,
            }
        });
        merge(&self.file.cluster, &futures::future::join_all(asked).await)
    }

    /// Waits a while until every node holds its lease, so that what is done next finds the cluster whole. One that takes longer
    /// is no reason to stop the others.
    async fn settle(&self) {
        let settled = async {
            loop {
                let status = self.status().await;
                let nodes = status["nodes"].as_array().into_iter().flatten();
                if nodes.map(|node| &node["state"]).all(|state| state == "Ready") {
                    return;
                }
                tokio::time::sleep(SETTLE_POLL).await;
            }
        };
        if tokio::time::timeout(SETTLE_DEADLINE, settled).await.is_err() {
            tracing::warn!("not every node holds its lease yet");
        }
    }

    fn local(&self, node: &ClusterNode) -> LocalNode {
        let dir = self.dir.node(&node.name);
        let known = dir.load(&node.name).ok().flatten();
        LocalNode {
            name: node.name.clone(),
            server: node.server,
            pid: running(&dir).map(|(pid, _)| pid),
            api_url: known.and_then(|k| k.member.api).map(|api| format!("https://{api}")),
            dir: dir.0,
        }
    }

    /// Refuses directories of nodes that are not of one cluster: such a node would run alone, and nobody would know.
    fn check_nodes(&self) -> Result<(), LocalError> {
        let mut first: Option<NodeFile> = None;
        for node in &self.file.nodes {
            let dir = self.dir.node(&node.name);
            let Some(known) = dir.load(&node.name)? else { continue };
            let ours = first.get_or_insert_with(|| known.clone());
            if known.cluster_id != ours.cluster_id || known.cluster != self.file.cluster {
                let other = LayoutError::Other {
                    path: dir.0,
                    found: format!("node {} of cluster {} ({})", node.name, known.cluster, known.cluster_id),
                    wanted: format!("cluster {} ({})", self.file.cluster, ours.cluster_id),
                };
                return Err(other.into());
            }
        }
        Ok(())
    }

    fn any_server(&self) -> Result<NodeDir, LocalError> {
        let server = self.nodes().into_iter().find(|n| n.server && n.pid.is_some());
        server.map(|n| self.dir.node(&n.name)).ok_or_else(|| LocalError::Other("no server runs".into()))
    }

    fn kill_processes(&self, name: &str) -> usize {
        let dir = self.dir.node(name);
        processes::kill_node(running(&dir), &dir.0)
    }

    async fn start_all(&self, new: bool, progress: &impl Fn(UpProgress)) -> Result<(), LocalError> {
        let first = self.file.nodes.first().map(|n| n.name.clone()).unwrap_or_default();
        if new {
            progress(UpProgress::Starting { node: first.clone() });
            self.start(&first, true, None).await?;
            progress(UpProgress::Ready { node: first.clone() });
        }
        // Servers of a resumed cluster need each other: all start at once.
        let rest = self.file.nodes.iter().filter(|n| !new || n.name != first).map(|node| {
            let first = &first;
            async move {
                progress(UpProgress::Starting { node: node.name.clone() });
                // A machine that has joined before needs no token.
                let token = match self.dir.node(&node.name).load(&node.name)? {
                    Some(_) => None,
                    None => Some(self.token(first, node.server).await?),
                };
                self.start(&node.name, node.server, token).await?;
                progress(UpProgress::Ready { node: node.name.clone() });
                Ok::<_, LocalError>(())
            }
        });
        futures::future::try_join_all(rest).await.map(|_| ())
    }

    async fn token(&self, server: &str, for_server: bool) -> Result<String, LocalError> {
        let role = if for_server { TokenRole::Server } else { TokenRole::Agent };
        let answer = admin::call(&self.dir.node(server), &AdminRequest::Token { role, ttl_s: OWN_TOKEN_TTL_S }).await?;
        Ok(answer["token"].as_str().unwrap_or_default().to_owned())
    }

    /// Starts a node's process and waits for its word that it is ready.
    async fn start(&self, name: &str, server: bool, token: Option<String>) -> Result<(), LocalError> {
        let dir = self.dir.node(name);
        let log = dir.log();
        let failed = |why: String| LocalError::Start { node: name.into(), why, log: log.clone() };
        std::fs::create_dir_all(&dir.0).map_err(|e| failed(e.to_string()))?;
        let file = OpenOptions::new().create(true).append(true).open(&log).map_err(|e| failed(e.to_string()))?;
        let said_before = file.metadata().map(|m| m.len()).unwrap_or(0);
        let mut command = std::process::Command::new(&self.binary);
        command.arg(if server { "server" } else { "agent" });
        command.arg("--dir").arg(&dir.0).args(["--name", name]);
        if server {
            command.args(["--cluster", &self.file.cluster]);
            if let Some(api) = self.file.api {
                command.args(["--shared-api", &api.to_string()]);
            }
        }
        if let Some(token) = token {
            // Not on the command line, which everybody on the machine can read.
            command.env("PHALANX_JOIN", token);
        }
        // A group of its own: a Ctrl-C at the terminal is for `up`, which stops its nodes in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut command = tokio::process::Command::from(command);
        let mut child = command.spawn().map_err(|e| failed(format!("cannot run {}: {e}", self.binary.display())))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let read = BufReader::new(stdout).read_line(&mut line).await;
            let _ = tokio::time::timeout(READY_DEADLINE, async { read }).await;
        }
        if serde_json::from_str::<Value>(&line).is_ok_and(|v| v["ready"] == true) {
            // Reaped when it ends, for as long as this process lives; else by init.
            tokio::spawn(async move { child.wait().await });
            return Ok(());
        }
        let _ = child.start_kill();
        let _ = child.wait().await;
        Err(failed(log_tail(&log, said_before)))
    }
}

/// Chooses the address that the servers share, or sees that the known one is free.
fn hold_api(file: &mut ClusterFile) -> Result<TcpSocket, LocalError> {
    let wanted = file.api.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let held = || {
        if wanted.port() != 0 {
            // The servers' own sockets would share it with whoever has it.
            drop(std::net::TcpListener::bind(wanted)?);
        }
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(wanted)?;
        Ok::<_, std::io::Error>((socket.local_addr()?, socket))
    };
    let (api, socket) = held().map_err(|e| {
        LocalError::Other(format!(
            "cannot listen on {wanted}, where kubectl looks for this cluster: {e}; stop what has it"
        ))
    })?;
    file.api = Some(api);
    Ok(socket)
}

fn own_binary() -> Result<PathBuf, LocalError> {
    std::env::current_exe().map_err(|e| LocalError::Other(format!("cannot find the path of this program: {e}")))
}

fn running(dir: &NodeDir) -> Option<(i32, u64)> {
    let run = dir.running().ok()??;
    let process = processes::process(run.pid)?;
    (process.start_ticks == run.start_ticks).then_some((run.pid, run.start_ticks))
}

fn plan(options: &UpOptions) -> Result<ClusterFile, LocalError> {
    let (nodes, servers) = (options.nodes, options.servers);
    if nodes == 0 || nodes > NODES_MAX {
        return Err(LocalError::Other(format!("--nodes must be 1 to {NODES_MAX}, not {nodes}")));
    }
    if servers == 0 || servers > nodes.min(SERVERS_MAX) {
        return Err(LocalError::Other(format!("--servers must be 1 to {}, not {servers}", nodes.min(SERVERS_MAX))));
    }
    let nodes = (1..=nodes).map(|i| ClusterNode { name: format!("n{i}"), server: i <= servers }).collect();
    Ok(ClusterFile { format: FORMAT, cluster: options.cluster.clone(), api: None, nodes })
}

/// What a process said last, in one line.
fn log_tail(log: &Path, from: u64) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(text.len());
    let text = String::from_utf8_lossy(&text[from..]).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    match lines.iter().rev().find_map(|l| l.strip_prefix("error: ")) {
        Some(error) => error.to_owned(),
        None if lines.is_empty() => "it ended without a word".into(),
        None => lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_cannot_be_is_refused_with_the_flag_to_change() {
        let options =
            |nodes, servers| UpOptions { dir: "/nowhere".into(), nodes, servers, cluster: "c".into(), binary: None };
        for (nodes, servers, says) in [
            (0, 1, "--nodes must be 1 to 64, not 0"),
            (65, 1, "--nodes must be 1 to 64, not 65"),
            (2, 3, "--servers must be 1 to 2, not 3"),
            (9, 0, "--servers must be 1 to 7, not 0"),
        ] {
            assert_eq!(plan(&options(nodes, servers)).expect_err("refused").to_string(), says);
        }
        let file = plan(&options(5, 3)).expect("planned");
        assert_eq!(file.nodes.iter().filter(|n| n.server).count(), 3);
    }

    #[test]
    fn the_reason_of_a_failed_start_is_its_error_line_of_this_start() {
        let dir = tempfile::tempdir().expect("tempdir");
        let log = dir.path().join("log");
        let before = "error: of an earlier start\n";
        std::fs::write(&log, format!("{before}INFO x\nerror: port in use\nbye\n")).expect("written");
        assert_eq!(log_tail(&log, before.len() as u64), "port in use");
        assert_eq!(log_tail(&log, 10_000), "it ended without a word");
    }
}
