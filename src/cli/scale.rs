//! `phalanx scale`: sets how many replicas a workload has, through its `scale` subresource.

use clap::Args;
use serde_json::json;

use super::client::{ApiClient, MERGE_PATCH};
use super::discovery::{Resources, select};
use super::error::println;
use super::progress::Progress;
use super::text;
use super::{CliError, Global};

/// Sets how many replicas a workload has.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx scale deploy/web --replicas 5
  phalanx scale deploy/web --current-replicas 5 --replicas 2   only if it has 5")]
pub struct ScaleArgs {
    /// TYPE NAME..., or TYPE/NAME...
    #[arg(required = true, value_name = "RESOURCE")]
    pub what: Vec<String>,

    /// How many there shall be
    #[arg(long, value_name = "N")]
    pub replicas: u32,

    /// Only if there are as many now
    #[arg(long, value_name = "N")]
    pub current_replicas: Option<u32>,

    /// All objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
}

/// Runs the command.
pub async fn run(args: ScaleArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Scaling");
    let client = ApiClient::connect(global).await?;
    let targets = Resources::discover(&client).await?.targets(&args.what)?;
    for target in &targets {
        if !target.resource.subresources.iter().any(|s| s == "scale") {
            return Err(CliError::new(format!(
                "{} cannot be scaled: they have no replicas",
                target.resource.plural_group()
            )));
        }
    }
    for (resource, object) in select(&client, &targets, &args.selector, "", false).await? {
        let name = text::name(&object);
        let path = format!("{}/scale", resource.path(&client.namespace, name));
        if let Some(expected) = args.current_replicas {
            let now = text::int_at(&client.get(&path).await?, "/spec/replicas");
            if now != i64::from(expected) {
                return Err(CliError::new(format!("expected replicas to be {expected}, was {now}")));
            }
        }
        client.patch(&path, MERGE_PATCH, &json!({"spec": {"replicas": args.replicas}})).await?;
        progress.suspend(|| println(&format!("{} scaled", resource.display(name))))?;
    }
    Ok(())
}
