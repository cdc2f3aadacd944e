//! `phalanx demo`: a cluster that heals itself, in one command, without root and without kubectl.
//!
//! `core` is the show as a function of events, `view` and `lines` show it, `run` makes it happen.

pub mod core;
pub mod lines;
pub mod run;
pub mod view;

use clap::Args;

use super::{CliError, Global};

/// Shows a cluster that heals itself: starts five nodes, kills one, kills the leader, measures.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "It works in a temporary directory, which is removed at the end, as is everything that was started.
Exit code 0 only if all replicas were Ready again each time.

Examples:
  phalanx demo              a live view on a terminal, lines otherwise
  phalanx demo --plain      lines, also on a terminal
  phalanx demo -o json      the measurements, for a program"
)]
pub struct DemoArgs {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(4..=20))]
    pub nodes: u32,

    /// How many of them are servers, odd
    #[arg(long, value_name = "M", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=7))]
    pub servers: u32,

    /// How many replicas the Deployment has
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub replicas: u32,

    /// Print lines even on a terminal
    #[arg(long)]
    pub plain: bool,
}

/// Runs the command.
pub async fn run(args: DemoArgs, global: &Global) -> Result<(), CliError> {
    if args.servers >= args.nodes {
        return Err(CliError::new("--servers must be less than --nodes: the first node to be killed is not a server"));
    }
    run::run(args, global).await
}
