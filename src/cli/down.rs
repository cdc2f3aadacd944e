//! `phalanx down`: stops the cluster that `up` started.

use clap::Args;

use super::error::warn;
use super::{CliError, Global};
use crate::cluster::local::LocalCluster;

/// Stops the cluster that `up` started, with everything it runs. Its directory stays: `up` resumes it.
#[derive(Args, Clone, Debug)]
pub struct DownArgs {}

/// Runs the command.
pub async fn run(_: DownArgs, global: &Global) -> Result<(), CliError> {
    let cluster = LocalCluster::open(&global.directory()).map_err(CliError::new)?;
    let running = cluster.nodes().iter().filter(|n| n.pid.is_some()).count();
    if !global.json() {
        warn(&match running {
            0 => format!("no node of the cluster {} runs", cluster.name()),
            1 => format!("stopping 1 node of the cluster {}", cluster.name()),
            n => format!("stopping {n} nodes of the cluster {}", cluster.name()),
        });
    }
    cluster.down().await.map_err(CliError::new)
}
