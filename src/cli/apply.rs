//! `phalanx apply`: what a manifest says becomes so, document by document.
//!
//! As kubectl's client-side apply: what is missing is created with the last-applied annotation, what is there gets a
//! three-way patch (see [`three_way`]). A document that fails does not stop those after it; all
//! failures are named, and the exit code is 1.

use clap::Args;
use serde_json::Value;

use super::client::{APPLY_PATCH, ApiClient, MERGE_PATCH, Payload, STRATEGIC_PATCH};
use super::discovery::Resources;
use super::error::{complain, println, warn};
use super::manifest::{Filename, Intent, at};
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global, Output};
use crate::api::patch::three_way::{self, LAST_APPLIED};

/// Who owns the fields that are applied.
const FIELD_MANAGER: &str = "phalanx-client-side-apply";
const FIELD_MANAGER_SERVER_SIDE: &str = "phalanx";

/// Creates what a manifest says, or changes what is there to match it.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx apply -f web.yaml            one file, any number of documents
  phalanx apply -f deploy/ -R          a directory and all below it
  cat web.yaml | phalanx apply -f -    standard input")]
pub struct ApplyArgs {
    #[command(flatten)]
    pub files: Filename,

    /// Let the server merge and own fields (server-side apply)
    #[arg(long)]
    pub server_side: bool,

    /// Take over fields that others own; only with --server-side
    #[arg(long, requires = "server_side")]
    pub force_conflicts: bool,
}

/// Runs the command.
pub async fn run(args: ApplyArgs, global: &Global) -> Result<(), CliError> {
    if args.files.filename.is_empty() {
        return Err(CliError::new("what to apply? Give a manifest with -f FILE, -f DIR, or -f - for standard input"));
    }
    let documents = args.files.documents()?;
    if documents.is_empty() {
        return Err(args.files.empty("apply"));
    }
    let progress = Progress::start("Applying");
    let client = ApiClient::connect(global).await?;
    let mut resources = Resources::discover(&client).await?;
    let mut failed = false;
    for document in documents {
        let result = match document {
            Err(error) => Err(CliError::new(error)),
            Ok(document) => {
                // A definition applied before may have brought the kind.
                if resources
                    .of_manifest(text::str_at(&document.object, "/apiVersion"), text::str_at(&document.object, "/kind"))
                    .is_none()
                {
                    resources = Resources::discover(&client).await?;
                }
                one(&client, &resources, &document, &args, global).await
            }
        };
        match result {
            Ok(line) => progress.suspend(|| println(&line))?,
            Err(error @ CliError::Unreachable { .. }) => return Err(error),
            Err(error) => {
                progress.suspend(|| complain(&error));
                failed = true;
            }
        }
    }
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

async fn one(
    client: &ApiClient,
    resources: &Resources,
    document: &super::manifest::Document,
    args: &ApplyArgs,
    global: &Global,
) -> Result<String, CliError> {
    let intent = Intent::of(document, resources, global.namespace.as_deref(), &client.namespace)?;
    let named = |error| at(&document.place, &format!("{} \"{}\"", intent.resource.kind, intent.name), error);
    if intent.name.is_empty() {
        return Err(named(CliError::new("metadata.name is needed to apply; `phalanx create -f` can generate one")));
    }
    let applied = if args.server_side {
        server_side(client, &intent, args.force_conflicts).await
    } else {
        client_side(client, &intent).await
    };
    let (object, verb) = applied.map_err(named)?;
    Ok(match global.output() {
        Output::Json => text::json(&text::without_managed_fields(object))?.trim_end().to_owned(),
        Output::Yaml => format!("---\n{}", text::yaml(&text::without_managed_fields(object))?.trim_end()),
        Output::Name => intent.resource.display(&intent.name),
        Output::Text | Output::Wide => format!("{} {verb}", intent.resource.display(&intent.name)),
    })
}

/// Creates or patches the object; says which.
pub async fn client_side(client: &ApiClient, intent: &Intent) -> Result<(Value, &'static str), CliError> {
    let parameters = query(&[("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict")]);
    let path = intent.path();
    let wanted = three_way::with_last_applied(&intent.object);
    let Some(live) = client.find(&path).await? else {
        match client.post(&format!("{}{parameters}", intent.list_path()), &wanted).await {
            // Someone was faster: then it is there to be patched.
            Err(error) if error.is_already_exists() => {}
            other => return Ok((other?, "created")),
        }
        let live = client.get(&path).await?;
        return patch(client, intent, &wanted, live, &parameters).await;
    };
    patch(client, intent, &wanted, live, &parameters).await
}

async fn patch(
    client: &ApiClient,
    intent: &Intent,
    wanted: &Value,
    live: Value,
    parameters: &str,
) -> Result<(Value, &'static str), CliError> {
    let last = three_way::last_applied(&live);
    if last.is_none() {
        warn(&format!(
            "Warning: resource {}/{} is missing the {LAST_APPLIED} annotation, which apply needs to know what to remove; it is set now",
            intent.resource.plural, intent.name
        ));
    }
    let path = format!("{}{parameters}", intent.path());
    let Some(change) = three_way::strategic(last.as_ref(), wanted, &live) else { return Ok((live, "unchanged")) };
    match client.patch(&path, STRATEGIC_PATCH, &change).await {
        // Custom resources have no merge keys (415 UnsupportedMediaType).
        Err(CliError::Server { code: 415, .. }) => {
            let Some(change) = three_way::merge(last.as_ref(), wanted, &live) else { return Ok((live, "unchanged")) };
            Ok((client.patch(&path, MERGE_PATCH, &change).await?, "configured"))
        }
        other => Ok((other?, "configured")),
    }
}

async fn server_side(client: &ApiClient, intent: &Intent, force: bool) -> Result<(Value, &'static str), CliError> {
    let parameters = query(&[
        ("fieldManager", FIELD_MANAGER_SERVER_SIDE),
        ("fieldValidation", "Strict"),
        ("force", if force { "true" } else { "" }),
    ]);
    let payload = Payload { media_type: APPLY_PATCH, body: serde_json::to_vec(&intent.object)? };
    let path = format!("{}{parameters}", intent.path());
    Ok((client.request("PATCH", &path, super::client::JSON, payload).await?, "serverside-applied"))
}
