//! `phalanx server` and what it shares with `phalanx agent`: runs one member of a cluster in this process.

use std::net::SocketAddr;

use clap::Args;
use serde_json::json;

use super::error::print;
use super::up::Interrupts;
use super::{CliError, Global};
use crate::cluster::layout::NodeDir;
use crate::cluster::member::{Member, MemberConfig};
use crate::security::{JoinToken, TokenRole};

/// Runs one server of a cluster in this process. `--dir` is this node's own directory.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Flags of every member.
    #[command(flatten)]
    pub member: MemberArgs,

    /// Address of its HTTPS face; port 0 lets the system choose, and the choice is kept
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub api: SocketAddr,

    /// Address that all servers on this machine with the same flag answer together, beside their own
    #[arg(long, value_name = "ADDR")]
    pub shared_api: Option<SocketAddr>,

    /// Name of a new cluster, when there is no token
    #[arg(long, value_name = "NAME", default_value = "phalanx")]
    pub cluster: String,
}

/// Flags of every member.
#[derive(Args, Clone, Debug)]
pub struct MemberArgs {
    /// Join token of the cluster, needed once; without one a server begins a new cluster
    #[arg(long, value_name = "TOKEN", env = "PHALANX_JOIN", hide_env_values = true)]
    pub join: Option<String>,

    /// Name of the node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Address of its transport (UDP); port 0 lets the system choose, and the choice is kept
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

/// Runs the command.
pub async fn run(args: ServerArgs, global: &Global) -> Result<(), CliError> {
    run_member(args.member, TokenRole::Server, (args.api, args.shared_api), args.cluster, global).await
}

/// Runs a member until it is asked to stop. Its first and only line on standard output says that it is ready.
pub async fn run_member(
    args: MemberArgs,
    role: TokenRole,
    (api, shared_api): (SocketAddr, Option<SocketAddr>),
    cluster: String,
    global: &Global,
) -> Result<(), CliError> {
    let name = match args.name {
        Some(name) => name,
        None => host_name()?,
    };
    let join = args.join.as_deref().map(JoinToken::parse).transpose().map_err(CliError::new)?;
    let dir = NodeDir(std::path::absolute(global.directory())?);
    let config =
        MemberConfig { name, dir, role, join, cluster, transport: args.listen, api, shared_api, runtimes: None };
    let mut interrupts = Interrupts::listen()?;
    let member = tokio::select! {
        member = Member::start(config) => member.map_err(CliError::new)?,
        _ = interrupts.next() => return Err(CliError::new("interrupted")),
    };
    let record = member.record();
    let ready = json!({"ready": true, "name": record.name, "transport": record.transport, "api": record.api});
    print(&format!("{ready}\n"))?;
    tracing::info!(name = record.name, transport = record.transport, api = ?record.api, "ready");
    // A signal ends this process only: its containers go on, and the next start adopts them.
    let pods = tokio::select! {
        _ = interrupts.next() => false,
        pods = member.stop_requested() => pods,
    };
    tracing::info!(pods, "stopping");
    member.stop(pods).await;
    Ok(())
}

fn host_name() -> Result<String, CliError> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_err(|e| CliError::new(format!("cannot find the host name ({e}); give one with --name")))?;
    Ok(name.trim().to_ascii_lowercase())
}
