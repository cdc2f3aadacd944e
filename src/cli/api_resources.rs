//! `phalanx api-resources`: the kinds of objects that the server serves.

use clap::Args;
use serde_json::json;

use super::client::ApiClient;
use super::columns::align;
use super::discovery::Resources;
use super::error::print;
use super::progress::Progress;
use super::text;
use super::{CliError, Global, Output};

/// Lists the kinds of objects that the server serves.
#[derive(Args, Clone, Debug)]
pub struct ApiResourcesArgs {}

/// Runs the command.
pub async fn run(_args: ApiResourcesArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Asking the server");
    let client = ApiClient::connect(global).await?;
    let mut resources = Resources::discover(&client).await?.0;
    drop(progress);
    resources.sort_by(|a, b| (&a.group, &a.plural, &a.version).cmp(&(&b.group, &b.plural, &b.version)));
    let form = global.output();
    if matches!(form, Output::Json | Output::Yaml) {
        let list: Vec<_> = resources
            .iter()
            .map(|r| {
                json!({"name": r.plural, "singularName": r.singular, "shortNames": r.short_names, "kind": r.kind,
                    "apiVersion": r.api_version(), "namespaced": r.namespaced, "verbs": r.verbs, "categories": r.categories})
            })
            .collect();
        return print(&if form == Output::Json { text::json(&json!(list))? } else { text::yaml(&json!(list))? });
    }
    if form == Output::Name {
        return print(&resources.iter().map(|r| format!("{}\n", r.plural_group())).collect::<String>());
    }
    let mut header = vec!["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
    if form == Output::Wide {
        header.extend(["VERBS", "CATEGORIES"]);
    }
    let mut rows: Vec<Vec<String>> = vec![header.into_iter().map(str::to_owned).collect()];
    for r in &resources {
        let mut row =
            vec![r.plural.clone(), r.short_names.join(","), r.api_version(), r.namespaced.to_string(), r.kind.clone()];
        if form == Output::Wide {
            row.extend([r.verbs.join(","), r.categories.join(",")]);
        }
        rows.push(row);
    }
    print(&align(&rows))
}
