//! `phalanx cordon` and `phalanx uncordon`: `spec.unschedulable` of nodes.

use clap::Args;
use serde_json::json;

use super::client::{ApiClient, MERGE_PATCH};
use super::discovery::{Resources, select};
use super::error::println;
use super::progress::Progress;
use super::text;
use super::{CliError, Global};

/// Which nodes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx cordon n1        no new pods on n1; those that run stay
  phalanx uncordon n1")]
pub struct CordonArgs {
    /// Names of nodes
    #[arg(value_name = "NODE", required_unless_present = "selector")]
    pub nodes: Vec<String>,

    /// All nodes with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
}

/// Runs either command.
pub async fn run(args: CordonArgs, on: bool, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Changing");
    let client = ApiClient::connect(global).await?;
    let mut words = vec!["nodes".to_owned()];
    words.extend(args.nodes.iter().map(|n| n.trim_start_matches("node/").to_owned()));
    let targets = Resources::discover(&client).await?.targets(&words)?;
    let done = if on { "cordoned" } else { "uncordoned" };
    for (resource, node) in select(&client, &targets, &args.selector, "", false).await? {
        let name = text::name(&node);
        let line = if node["spec"]["unschedulable"].as_bool().unwrap_or(false) == on {
            format!("node/{name} already {done}")
        } else {
            let wanted = if on { json!(true) } else { json!(null) };
            client.patch(&resource.path("", name), MERGE_PATCH, &json!({"spec": {"unschedulable": wanted}})).await?;
            format!("node/{name} {done}")
        };
        progress.suspend(|| println(&line))?;
    }
    Ok(())
}
