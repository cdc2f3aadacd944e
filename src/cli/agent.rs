//! `phalanx agent`: runs one agent of a cluster in this process.

use clap::Args;

use super::server::{MemberArgs, run_member};
use super::{CliError, Global};
use crate::security::TokenRole;

/// Runs one agent of a cluster in this process. `--dir` is this node's own directory.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Flags of every member.
    #[command(flatten)]
    pub member: MemberArgs,
}

/// Runs the command.
pub async fn run(args: AgentArgs, global: &Global) -> Result<(), CliError> {
    let api = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    run_member(args.member, TokenRole::Agent, (api, None), String::new(), global).await
}
