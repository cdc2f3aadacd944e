//! `phalanx up`: starts a whole cluster of separate processes on this machine.

use std::io::IsTerminal;

use clap::Args;
use serde_json::json;

use super::error::{print, warn};
use super::{CliError, Global};
use crate::cluster::local::{LocalCluster, UpOptions, UpProgress};

/// Starts a whole cluster of separate processes on this machine.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// How many nodes; a cluster that is there already keeps its own
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub nodes: u32,

    /// How many of them are servers, best an odd number [default: 3 of three nodes or more, else 1]
    #[arg(long, value_name = "M")]
    pub servers: Option<u32>,

    /// Name of a new cluster
    #[arg(long, value_name = "NAME", default_value = "phalanx")]
    pub name: String,

    /// Return when the cluster is up; it runs on until `phalanx down`
    #[arg(long)]
    pub detach: bool,
}

/// Runs the command.
pub async fn run(args: UpArgs, global: &Global) -> Result<(), CliError> {
    let dir = std::path::absolute(global.directory())?;
    let servers = args.servers.unwrap_or(if args.nodes >= 3 { 3 } else { 1 });
    let options = UpOptions { dir: dir.clone(), nodes: args.nodes, servers, cluster: args.name, binary: None };
    let quiet = global.json();
    let say = |progress: UpProgress| {
        if !quiet {
            warn(&match progress {
                UpProgress::Resuming { nodes } => format!("resuming the cluster of {nodes} nodes in {}", dir.display()),
                UpProgress::Starting { node } => format!("{node}: starting"),
                UpProgress::Ready { node } => format!("{node}: ready"),
            });
        }
    };
    let mut interrupts = Interrupts::listen()?;
    // A Ctrl-C while it starts must leave nothing running either.
    let cluster = tokio::select! {
        cluster = LocalCluster::up(options, say) => cluster.map_err(CliError::new)?,
        _ = interrupts.next() => {
            LocalCluster::abandon(&dir);
            return Err(CliError::new("interrupted"));
        }
    };
    if quiet {
        let names: Vec<String> = cluster.nodes().into_iter().map(|n| n.name).collect();
        print(&format!("{}\n", json!({"dir": dir, "kubeconfig": cluster.kubeconfig_path(), "nodes": names})))?;
    } else {
        let (d, k) = (dir.display(), cluster.kubeconfig_path());
        print(&format!(
            "The cluster {} is up, with {} nodes.\n  phalanx status --dir {d}\n  phalanx chaos kill n1 --dir {d}\n  export KUBECONFIG={}\n",
            cluster.name(),
            cluster.nodes().len(),
            k.display()
        ))?;
    }
    if args.detach {
        return Ok(());
    }
    if std::io::stdout().is_terminal() && !quiet {
        warn("Ctrl-C stops it.");
    }
    interrupts.next().await;
    if !quiet {
        warn("stopping");
    }
    cluster.down().await.map_err(CliError::new)
}

/// Ctrl-C and SIGTERM. Made once and kept: a signal that comes while nobody listens would be lost.
pub struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    /// From now on the two signals no longer end the process.
    pub fn listen() -> Result<Self, CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Resolves at the next of them, also one that came before the call.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
