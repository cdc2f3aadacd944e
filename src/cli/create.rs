//! `phalanx create -f`: what a manifest says is created, and what exists already is an error.

use clap::Args;

use super::client::ApiClient;
use super::discovery::Resources;
use super::error::{complain, println};
use super::manifest::{Document, Filename, Intent, at};
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global, Output};

/// Creates what a manifest says; fails where it exists.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx create -f web.yaml
  phalanx create -f - -o name < job.yaml    prints the name, also one that the server generated")]
pub struct CreateArgs {
    #[command(flatten)]
    pub files: Filename,
}

/// Runs the command.
pub async fn run(args: CreateArgs, global: &Global) -> Result<(), CliError> {
    if args.files.filename.is_empty() {
        return Err(CliError::new("what to create? Give a manifest with -f FILE, -f DIR, or -f - for standard input"));
    }
    let documents = args.files.documents()?;
    if documents.is_empty() {
        return Err(args.files.empty("create"));
    }
    let progress = Progress::start("Creating");
    let client = ApiClient::connect(global).await?;
    let resources = Resources::discover(&client).await?;
    let mut failed = false;
    for document in documents {
        let result = match document {
            Err(error) => Err(CliError::new(error)),
            Ok(document) => one(&client, &resources, &document, global).await,
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
    document: &Document,
    global: &Global,
) -> Result<String, CliError> {
    let intent = Intent::of(document, resources, global.namespace.as_deref(), &client.namespace)?;
    let parameters = query(&[("fieldManager", "phalanx-create"), ("fieldValidation", "Strict")]);
    let object = client
        .post(&format!("{}{parameters}", intent.list_path()), &intent.object)
        .await
        .map_err(|e| at(&document.place, &format!("{} \"{}\"", intent.resource.kind, intent.name), e))?;
    let display = intent.resource.display(text::name(&object));
    Ok(match global.output() {
        Output::Json => text::json(&text::without_managed_fields(object))?.trim_end().to_owned(),
        Output::Yaml => format!("---\n{}", text::yaml(&text::without_managed_fields(object))?.trim_end()),
        Output::Name => display,
        Output::Text | Output::Wide => format!("{display} created"),
    })
}
