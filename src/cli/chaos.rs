//! `phalanx chaos`: faults on purpose, for a cluster that `phalanx up` started.

use clap::{Args, Subcommand};

use super::error::println;
use super::{CliError, Global};
use crate::cluster::admin::AdminRequest;
use crate::cluster::local::LocalCluster;

/// Does harm to a node of a cluster made by `up`.
#[derive(Args, Clone, Debug)]
pub struct ChaosArgs {
    /// Which harm
    #[command(subcommand)]
    pub command: ChaosCommand,
}

/// The kinds of harm.
#[derive(Subcommand, Clone, Debug)]
pub enum ChaosCommand {
    /// SIGKILL to the node and everything it runs, as a power cut would
    Kill {
        /// Which node
        node: String,
    },
    /// Stop the node in order
    Stop {
        /// Which node
        node: String,
    },
    /// Start a node that was killed or stopped
    Start {
        /// Which node
        node: String,
    },
    /// Cut the node off from all others
    Partition {
        /// Which node
        node: String,
    },
    /// Let the disk of a server's store count as full: the cluster becomes read-only while that server leads
    FillDisk {
        /// Which node
        node: String,
    },
    /// End every partition and delay of the node, and give its disk room again
    Heal {
        /// Which node
        node: String,
    },
    /// Delay everything that the node sends
    Delay {
        /// Which node
        node: String,
        /// By how many milliseconds
        #[arg(long, default_value_t = 100)]
        ms: u64,
    },
}

/// Runs the command.
pub async fn run(args: ChaosArgs, global: &Global) -> Result<(), CliError> {
    let cluster = LocalCluster::open(&global.directory()).map_err(CliError::new)?;
    let (node, request, done) = match args.command {
        ChaosCommand::Kill { node } => {
            let n = cluster.kill(&node).map_err(CliError::new)?;
            return match n {
                0 => Err(CliError::new(format!("{node} was not running"))),
                1 => println(&format!("{node} killed")),
                n => println(&format!("{node} killed, {n} processes")),
            };
        }
        ChaosCommand::Stop { node } => {
            cluster.stop(&node).await.map_err(CliError::new)?;
            return println(&format!("{node} stopped"));
        }
        ChaosCommand::Start { node } => {
            cluster.restart(&node).await.map_err(CliError::new)?;
            return println(&format!("{node} started"));
        }
        ChaosCommand::Partition { node } => (node, AdminRequest::Partition, "cut off from all others".to_owned()),
        ChaosCommand::FillDisk { node } => (node, AdminRequest::FillDisk, "takes its disk for full".to_owned()),
        ChaosCommand::Heal { node } => (node, AdminRequest::Heal, "healed".to_owned()),
        ChaosCommand::Delay { node, ms } => {
            (node, AdminRequest::Delay { ms }, format!("delayed: {ms} ms on everything it sends"))
        }
    };
    cluster.ask(&node, &request).await.map_err(CliError::new)?;
    println(&format!("{node} {done}"))
}
