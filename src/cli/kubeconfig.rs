//! `phalanx kubeconfig`: how to reach the cluster, for kubectl and other clients.

use clap::Args;

use super::error::print;
use super::{CliError, Global};
use crate::cluster::local::LocalCluster;

/// Prints how to reach the cluster, for kubectl and other clients.
#[derive(Args, Clone, Debug)]
pub struct KubeconfigArgs {}

/// Runs the command.
pub async fn run(_: KubeconfigArgs, global: &Global) -> Result<(), CliError> {
    let cluster = LocalCluster::open(&global.directory()).map_err(CliError::new)?;
    let path = cluster.kubeconfig_path();
    let text =
        std::fs::read_to_string(&path).map_err(|e| CliError::new(format!("cannot read {}: {e}", path.display())))?;
    print(&text)
}
