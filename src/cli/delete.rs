//! `phalanx delete`: deletes objects and waits until they are gone.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::client::{ApiClient, JSON};
use super::discovery::{Resource, Resources, select};
use super::error::{complain, println, warn};
use super::manifest::{Filename, Intent};
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global, Output};

/// What happens to what the object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cascade {
    /// Deleted afterwards.
    Background,
    /// Deleted first.
    Foreground,
    /// Left alone.
    Orphan,
}

/// Deletes objects and waits until they are gone.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx delete deploy/web
  phalanx delete pods a b
  phalanx delete pods -l app=web --wait=false
  phalanx delete -f web.yaml")]
pub struct DeleteArgs {
    /// TYPE NAME..., or TYPE/NAME...
    #[arg(value_name = "RESOURCE", required_unless_present = "filename", conflicts_with = "filename")]
    pub what: Vec<String>,

    #[command(flatten)]
    pub files: Filename,

    /// All objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,

    /// All objects of the type
    #[arg(long)]
    pub all: bool,

    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,

    /// How long to wait, in seconds; 0 is for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub timeout: u64,

    /// Seconds that a pod gets to end by itself [default: its own]
    #[arg(long, value_name = "SECONDS")]
    pub grace_period: Option<u64>,

    /// Delete at once, without waiting for the node to confirm
    #[arg(long)]
    pub force: bool,

    /// What happens to what the object owns
    #[arg(long, value_enum, default_value_t = Cascade::Background)]
    pub cascade: Cascade,

    /// An object that does not exist is no error
    #[arg(long)]
    pub ignore_not_found: bool,
}

struct Doomed {
    resource: Resource,
    namespace: String,
    name: String,
}

/// Runs the command.
pub async fn run(args: DeleteArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Deleting");
    let documents = args.files.documents()?;
    let client = ApiClient::connect(global).await?;
    let resources = Resources::discover(&client).await?;
    let mut failed = false;
    let mut doomed = Vec::new();
    for document in documents {
        let intent = document
            .map_err(CliError::new)
            .and_then(|d| Intent::of(&d, &resources, global.namespace.as_deref(), &client.namespace));
        match intent {
            Ok(i) => doomed.push(Doomed { resource: i.resource, namespace: i.namespace, name: i.name }),
            Err(error) => {
                complain(&error);
                failed = true;
            }
        }
    }
    if !args.what.is_empty() {
        doomed.extend(named(&client, &resources, &args).await?);
    }
    if args.force {
        warn(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. \
             The resource may continue to run on the cluster indefinitely.",
        );
    }
    if doomed.is_empty() && !failed {
        warn("No resources found");
    }
    let options = options(&args);
    let mut going = Vec::new();
    for d in doomed {
        match client.delete(&d.resource.path(&d.namespace, &d.name), &options).await {
            Ok(answer) => {
                progress.suspend(|| println(&line(&d, &args, global.output())))?;
                going.push((d, uid(&answer)));
            }
            Err(error) if error.is_not_found() && args.ignore_not_found => {}
            Err(error @ CliError::Server { .. }) => {
                progress.suspend(|| complain(&error));
                failed = true;
            }
            Err(error) => return Err(error),
        }
    }
    if args.wait && !args.force {
        let all = async {
            for (d, uid) in &going {
                progress.set(format!("Waiting until {} is gone", d.resource.display(&d.name)));
                until_gone(&client, d, uid.as_deref()).await?;
            }
            Ok(())
        };
        match args.timeout {
            0 => all.await?,
            seconds => tokio::time::timeout(Duration::from_secs(seconds), all).await.unwrap_or_else(|_| {
                Err(CliError::new(format!("timed out after {seconds} s waiting until the objects are gone")))
            })?,
        }
    }
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

async fn named(client: &ApiClient, resources: &Resources, args: &DeleteArgs) -> Result<Vec<Doomed>, CliError> {
    let targets = resources.targets(&args.what)?;
    let mut doomed = Vec::new();
    for target in targets {
        if target.names.is_empty() {
            let resource = target.resource.clone();
            for (resource, object) in
                select(client, std::slice::from_ref(&target), &args.selector, "", args.all && args.selector.is_empty())
                    .await
                    .map_err(|e| match e {
                        CliError::Message(_) => CliError::new(format!(
                            "which {}? Give names, a selector (-l), or --all",
                            resource.plural_group()
                        )),
                        other => other,
                    })?
            {
                let (namespace, name) = (text::namespace(&object).to_owned(), text::name(&object).to_owned());
                doomed.push(Doomed { resource, namespace, name });
            }
        } else if args.selector.is_empty() && !args.all {
            doomed.extend(target.names.into_iter().map(|name| Doomed {
                resource: target.resource.clone(),
                namespace: client.namespace.clone(),
                name,
            }));
        } else {
            return Err(CliError::new("name cannot be provided when a selector is specified"));
        }
    }
    Ok(doomed)
}

fn options(args: &DeleteArgs) -> Value {
    let mut options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions",
        "propagationPolicy": match args.cascade {
            Cascade::Background => "Background",
            Cascade::Foreground => "Foreground",
            Cascade::Orphan => "Orphan",
        },
    });
    if let Some(seconds) = args.grace_period.or(args.force.then_some(0)) {
        options["gracePeriodSeconds"] = seconds.into();
    }
    options
}

fn line(d: &Doomed, args: &DeleteArgs, form: Output) -> String {
    if form == Output::Name {
        return d.resource.display(&d.name);
    }
    let place = if d.resource.namespaced { format!(" from {} namespace", d.namespace) } else { String::new() };
    let force = if args.force { " force" } else { "" };
    format!("{} \"{}\"{force} deleted{place}", d.resource.singular_group(), d.name)
}

/// From the object, or from the `Status` that stands for it.
fn uid(answer: &Value) -> Option<String> {
    answer.pointer("/metadata/uid").or(answer.pointer("/details/uid"))?.as_str().map(str::to_owned)
}

/// Returns when the object does not exist any more, or another one of its name does.
async fn until_gone(client: &ApiClient, d: &Doomed, uid: Option<&str>) -> Result<(), CliError> {
    loop {
        let Some(object) = client.find(&d.resource.path(&d.namespace, &d.name)).await? else { return Ok(()) };
        if uid.is_some_and(|uid| text::str_at(&object, "/metadata/uid") != uid) {
            return Ok(());
        }
        let path = format!(
            "{}{}",
            d.resource.list_path(Some(&d.namespace)),
            query(&[
                ("watch", "1"),
                ("fieldSelector", &format!("metadata.name={}", d.name)),
                ("resourceVersion", text::str_at(&object, "/metadata/resourceVersion")),
            ])
        );
        let mut events = match client.watch(&path, JSON).await {
            Ok(events) => events,
            // Too old a version: look again.
            Err(CliError::Server { code: 410, .. }) => continue,
            Err(error) => return Err(error),
        };
        // Ends with a DELETED event or with the watch; either way, look again.
        while let Some(Ok((kind, _))) = events.next().await {
            if kind == "DELETED" {
                break;
            }
        }
    }
}
