//! `phalanx token`: tokens with which machines join the cluster.

use clap::{Args, Subcommand, ValueEnum};

use super::error::println;
use super::{CliError, Global};
use crate::cluster::admin::{self, AdminRequest};
use crate::cluster::layout::{ClusterDir, NodeDir};
use crate::security::{TOKEN_TTL_HOURS_DEFAULT, TokenRole};

/// Makes tokens with which machines join the cluster.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// What to do
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What to do with tokens.
#[derive(Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Makes a join token and prints it. Run it where a server runs
    Create {
        /// What its holder may become
        #[arg(long, value_enum, default_value_t = Role::Agent)]
        role: Role,
        /// For how many hours it counts
        #[arg(long, value_name = "HOURS", default_value_t = TOKEN_TTL_HOURS_DEFAULT,
            value_parser = clap::value_parser!(u64).range(1..))]
        ttl: u64,
    },
}

/// What a token lets its holder become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A machine that runs pods.
    Agent,
    /// A machine that is also part of the control plane.
    Server,
}

/// Runs the command.
pub async fn run(args: TokenArgs, global: &Global) -> Result<(), CliError> {
    let TokenCommand::Create { role, ttl } = args.command;
    let role = match role {
        Role::Agent => TokenRole::Agent,
        Role::Server => TokenRole::Server,
    };
    let request = AdminRequest::Token { role, ttl_s: ttl.saturating_mul(3_600) };
    // Either the directory of a cluster that `up` made, or that of one server.
    let dir = global.directory();
    let mut servers = Vec::new();
    if let Some(file) = ClusterDir(dir.clone()).load().map_err(CliError::new)? {
        let named = file.nodes.iter().filter(|n| n.server);
        servers.extend(named.map(|n| ClusterDir(dir.clone()).node(&n.name)));
    } else {
        servers.push(NodeDir(dir));
    }
    let mut last = None;
    for server in servers {
        match admin::call(&server, &request).await {
            Ok(answer) => return println(answer["token"].as_str().unwrap_or_default()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| CliError::new("the cluster has no server"), CliError::new))
}
