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
    // A Ctrl-C while it starts must leave nothing running either.
    let cluster = tokio::select! {
        cluster = LocalCluster::up(options, say) => cluster.map_err(CliError::new)?,
        _ = interrupted() => {
            if let Ok(cluster) = LocalCluster::open(&dir) {
                cluster.down().await.map_err(CliError::new)?;
            }
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
    interrupted().await;
    if !quiet {
        warn("stopping");
    }
    cluster.down().await.map_err(CliError::new)
}

/// Resolves at Ctrl-C or SIGTERM.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}
