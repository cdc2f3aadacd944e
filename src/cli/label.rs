//! `phalanx label` and `phalanx annotate`: set and remove entries of `metadata.labels` and `metadata.annotations`.

use clap::Args;
use serde_json::{Map, Value, json};

use super::client::{ApiClient, MERGE_PATCH};
use super::discovery::{Resources, select};
use super::error::{complain, println};
use super::progress::Progress;
use super::text;
use super::{CliError, Global};

/// Sets and removes labels.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx label node n1 disk=ssd
  phalanx label pods -l app=web tier=front --overwrite
  phalanx label pod web-1 tier-                remove")]
pub struct LabelArgs {
    /// TYPE NAME... KEY=VALUE... KEY-..., or TYPE/NAME...
    #[arg(required = true, num_args = 1.., value_name = "RESOURCE|KEY=VALUE|KEY-")]
    pub words: Vec<String>,

    /// Replace values that are set already
    #[arg(long)]
    pub overwrite: bool,

    /// All objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,

    /// All objects of the type
    #[arg(long)]
    pub all: bool,
}

/// Sets and removes annotations.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx annotate deploy/web owner=me
  phalanx annotate deploy/web owner-           remove")]
pub struct AnnotateArgs {
    #[command(flatten)]
    pub inner: LabelArgs,
}

/// Runs `label`.
pub async fn run_label(args: LabelArgs, global: &Global) -> Result<(), CliError> {
    run(args, "labels", "labeled", "unlabeled", global).await
}

/// Runs `annotate`.
pub async fn run_annotate(args: AnnotateArgs, global: &Global) -> Result<(), CliError> {
    run(args.inner, "annotations", "annotated", "annotated", global).await
}

async fn run(args: LabelArgs, field: &str, set: &str, removed: &str, global: &Global) -> Result<(), CliError> {
    let (what, changes) = split(&args.words)?;
    let progress = Progress::start("Changing");
    let client = ApiClient::connect(global).await?;
    let targets = Resources::discover(&client).await?.targets(&what)?;
    let mut failed = false;
    for (resource, object) in select(&client, &targets, &args.selector, "", args.all).await? {
        let name = text::name(&object);
        let display = resource.display(name);
        let line = match change(&object["metadata"][field], &changes, args.overwrite) {
            Err(why) => Err(CliError::new(format!("{display}: {why}"))),
            Ok(None) => Ok(format!("{display} not {set}")),
            Ok(Some(patch)) => {
                let only_removed = patch.values().all(Value::is_null);
                let body = json!({"metadata": {field: patch}});
                client
                    .patch(&resource.path(&client.namespace, name), MERGE_PATCH, &body)
                    .await
                    .map(|_| format!("{display} {}", if only_removed { removed } else { set }))
            }
        };
        match line {
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

type Changes = Vec<(String, Option<String>)>;

/// The resources, and what to set or remove. What holds `=` or ends in `-` is a change; so are all words after it.
fn split(words: &[String]) -> Result<(Vec<String>, Changes), CliError> {
    let is_change = |w: &String| w.contains('=') || w.ends_with('-');
    let first = words.iter().position(is_change).unwrap_or(words.len());
    let (what, rest) = words.split_at(first);
    let mut changes = Changes::new();
    for word in rest {
        let change = match word.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => match word.strip_suffix('-') {
                Some(key) => (key, None),
                None => return Err(CliError::new(format!("\"{word}\": expected KEY=VALUE, or KEY- to remove"))),
            },
        };
        if change.0.is_empty() {
            return Err(CliError::new(format!("\"{word}\" has no key")));
        }
        if changes.iter().any(|(key, value)| key == change.0 && value.is_some() != change.1.is_some()) {
            return Err(CliError::new(format!("can not both modify and remove \"{}\" in the same command", change.0)));
        }
        changes.push((change.0.to_owned(), change.1));
    }
    if changes.is_empty() {
        return Err(CliError::new("nothing to change: give KEY=VALUE to set, KEY- to remove"));
    }
    Ok((what.to_vec(), changes))
}

/// The merge patch; `None` when all is as wanted.
fn change(now: &Value, changes: &Changes, overwrite: bool) -> Result<Option<Map<String, Value>>, String> {
    let mut patch = Map::new();
    for (key, value) in changes {
        match (now.get(key).and_then(Value::as_str), value) {
            (None, None) => {}
            (Some(_), None) => {
                patch.insert(key.clone(), Value::Null);
            }
            (Some(is), Some(wanted)) if is == wanted => {}
            (Some(is), Some(_)) if !overwrite => {
                return Err(format!("'{key}' already has a value ({is}), and --overwrite is false"));
            }
            (_, Some(wanted)) => {
                patch.insert(key.clone(), wanted.clone().into());
            }
        }
    }
    Ok((!patch.is_empty()).then_some(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn words_are_resources_until_the_first_change() {
        let (what, changes) = split(&words("pods a b x=y z-")).expect("split");
        assert_eq!(what, ["pods", "a", "b"]);
        assert_eq!(changes, [("x".into(), Some("y".into())), ("z".into(), None)]);
        assert!(split(&words("pods a")).is_err());
        assert!(split(&words("pods a x=y x-")).is_err());
        assert!(split(&words("pods a x=y stray")).is_err());
    }

    #[test]
    fn values_are_not_replaced_by_accident() {
        let now = json!({"a": "1", "b": "2"});
        let set = |k: &str, v: Option<&str>| vec![(k.to_owned(), v.map(str::to_owned))];
        assert!(change(&now, &set("a", Some("9")), false).expect_err("set").contains("already has a value (1)"));
        assert_eq!(change(&now, &set("a", Some("9")), true).expect("ok").expect("patch")["a"], "9");
        assert_eq!(change(&now, &set("a", Some("1")), false), Ok(None));
        assert_eq!(change(&now, &set("b", None), false).expect("ok").expect("patch")["b"], Value::Null);
        assert_eq!(change(&now, &set("c", None), false), Ok(None));
    }
}
