//! `phalanx get`: lists objects, or one; watches them.
//!
//! Tables come from the server (`Accept: ...;as=Table`), so every kind has its own columns and this file knows none.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::{ACCEPT_TABLE, ApiClient, JSON, Payload};
use super::columns::Columns;
use super::discovery::{Resource, Resources, Target, with_type};
use super::error::{complain, print, warn};
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global, Output};

/// Lists objects, or one.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx get pods                      all pods of the namespace
  phalanx get pods -A -o wide -w        all pods, more columns, as they change
  phalanx get deploy/web -o yaml        one object, whole
  phalanx get deploy,rs,pods -l app=web several kinds, by label
  phalanx get all                       what people mean by all")]
pub struct GetArgs {
    /// TYPE[,TYPE...] [NAME...], or TYPE/NAME...
    #[arg(required = true, value_name = "RESOURCE")]
    pub what: Vec<String>,

    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// Only objects with these labels: a=b, a!=b, 'a in (b,c)', a, !a
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,

    /// Only objects with these fields, such as status.phase=Running
    #[arg(long, value_name = "FIELDS", default_value = "", hide_default_value = true)]
    pub field_selector: String,

    /// After listing, print changes as they come
    #[arg(short, long)]
    pub watch: bool,

    /// Print a column with all labels
    #[arg(long)]
    pub show_labels: bool,

    /// Print no header
    #[arg(long)]
    pub no_headers: bool,

    /// A name that does not exist is no error
    #[arg(long)]
    pub ignore_not_found: bool,
}

/// Runs the command.
pub async fn run(args: GetArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Asking the server");
    let client = ApiClient::connect(global).await?;
    let resources = Resources::discover(&client).await?;
    let targets = resources.targets(&args.what)?;
    if args.watch {
        drop(progress);
        return watch(&client, &targets, &args, global.output()).await;
    }
    match global.output() {
        Output::Text | Output::Wide => {
            let found = tables(&client, &targets, &args, global.output()).await;
            drop(progress);
            found
        }
        form => {
            let (items, failed) = objects(&client, &targets, &args).await?;
            drop(progress);
            print_objects(items, &targets, form)?;
            if failed { Err(CliError::Reported) } else { Ok(()) }
        }
    }
}

/// The list's path with its parameters.
fn list_path(client: &ApiClient, resource: &Resource, args: &GetArgs, more: &[(&str, &str)]) -> String {
    let namespace = (!args.all_namespaces).then_some(client.namespace.as_str());
    let mut parameters = vec![("labelSelector", args.selector.as_str()), ("fieldSelector", &args.field_selector)];
    parameters.extend(more);
    format!("{}{}", resource.list_path(namespace), query(&parameters))
}

fn check_names(target: &Target, args: &GetArgs) -> Result<(), CliError> {
    if target.names.is_empty() {
        return Ok(());
    }
    if args.all_namespaces && target.resource.namespaced {
        return Err(CliError::new("a resource cannot be retrieved by name across all namespaces"));
    }
    if !args.selector.is_empty() || !args.field_selector.is_empty() {
        return Err(CliError::new("name cannot be provided when a selector is specified"));
    }
    Ok(())
}

/// Whole objects, and whether any was missing.
async fn objects(client: &ApiClient, targets: &[Target], args: &GetArgs) -> Result<(Vec<Value>, bool), CliError> {
    let (mut items, mut failed) = (Vec::new(), false);
    for target in targets {
        check_names(target, args)?;
        if target.names.is_empty() {
            let mut list = client.get(&list_path(client, &target.resource, args, &[])).await?;
            if let Some(found) = list["items"].as_array_mut() {
                items.extend(found.drain(..).map(|o| with_type(o, &target.resource)));
            }
            continue;
        }
        for name in &target.names {
            match client.get(&target.resource.path(&client.namespace, name)).await {
                Ok(object) => items.push(object),
                Err(error) if error.is_not_found() && args.ignore_not_found => {}
                Err(error @ CliError::Server { .. }) => {
                    complain(&error);
                    failed = true;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok((items, failed))
}

fn print_objects(items: Vec<Value>, targets: &[Target], form: Output) -> Result<(), CliError> {
    if form == Output::Name {
        let lines: String = items.iter().map(|o| format!("{}\n", display(o, targets))).collect();
        return print(&lines);
    }
    let one = targets.len() == 1 && targets[0].names.len() == 1;
    let mut items: Vec<Value> = items.into_iter().map(text::without_managed_fields).collect();
    let value = match (one, items.len()) {
        (true, 0) => return Ok(()),
        (true, 1) => items.remove(0),
        _ => json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}),
    };
    print(&if form == Output::Yaml { text::yaml(&value)? } else { text::json(&value)? })
}

fn display(object: &Value, targets: &[Target]) -> String {
    let kind = text::str_at(object, "/kind");
    match targets.iter().find(|t| t.resource.kind == kind) {
        Some(target) => target.resource.display(text::name(object)),
        None => format!("{}/{}", kind.to_lowercase(), text::name(object)),
    }
}

async fn table(client: &ApiClient, path: &str) -> Result<Value, CliError> {
    client.request("GET", path, ACCEPT_TABLE, Payload::default()).await
}

async fn tables(client: &ApiClient, targets: &[Target], args: &GetArgs, form: Output) -> Result<(), CliError> {
    let several = targets.len() > 1;
    let mut parts: Vec<String> = Vec::new();
    let mut failed = false;
    // `TYPE/NAME` words make a target each: those of one type share a table.
    let mut by_resource: Vec<(Resource, Vec<Value>)> = Vec::new();
    for target in targets {
        check_names(target, args)?;
        let mut answers = Vec::new();
        if target.names.is_empty() {
            answers.push(table(client, &list_path(client, &target.resource, args, &[])).await?);
        }
        for name in &target.names {
            match table(client, &target.resource.path(&client.namespace, name)).await {
                Ok(answer) => answers.push(answer),
                Err(error) if error.is_not_found() && args.ignore_not_found => {}
                Err(error @ CliError::Server { .. }) => {
                    complain(&error);
                    failed = true;
                }
                Err(error) => return Err(error),
            }
        }
        match by_resource.iter_mut().find(|(r, _)| r == &target.resource) {
            Some((_, known)) => known.extend(answers),
            None => by_resource.push((target.resource.clone(), answers)),
        }
    }
    for (resource, answers) in by_resource {
        let mut printer = Printer::new(&resource, several, args, form);
        let rows: Vec<Vec<String>> = answers.iter().flat_map(|a| printer.rows(a)).collect();
        if rows.is_empty() {
            continue;
        }
        let mut part = printer.fit(&rows);
        part.extend(rows.iter().map(|row| printer.columns.line(row)));
        parts.push(part);
    }
    if parts.is_empty() {
        if !failed && !args.ignore_not_found {
            match targets.iter().any(|t| t.resource.namespaced) && !args.all_namespaces {
                true => warn(&format!("No resources found in {} namespace.", client.namespace)),
                false => warn("No resources found"),
            }
        }
    } else {
        print(&parts.join("\n"))?;
    }
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

/// Turns the server's tables into lines.
pub struct Printer<'a> {
    resource: &'a Resource,
    /// Names carry their kind, since several kinds are printed.
    kinds: bool,
    namespaces: bool,
    labels: bool,
    wide: bool,
    headers: bool,
    /// Widths so far.
    pub columns: Columns,
    definitions: Vec<(String, bool)>,
}

impl<'a> Printer<'a> {
    fn new(resource: &'a Resource, kinds: bool, args: &GetArgs, form: Output) -> Self {
        Self {
            resource,
            kinds,
            namespaces: args.all_namespaces && resource.namespaced,
            labels: args.show_labels,
            wide: form == Output::Wide,
            headers: !args.no_headers,
            columns: Columns::default(),
            definitions: Vec::new(),
        }
    }

    /// The rows of a table. A server that answers no table gives name and age.
    pub fn rows(&mut self, answer: &Value) -> Vec<Vec<String>> {
        if answer["kind"] != "Table" {
            self.definitions = vec![("NAME".into(), true), ("AGE".into(), true)];
            let items = answer["items"].as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
            return items.iter().map(|o| self.row(&[json!(text::name(o)), json!(age(o))], o)).collect();
        }
        let defined = text::list_at(answer, "/columnDefinitions");
        // In a watch only the first event carries the definitions.
        if !defined.is_empty() {
            self.definitions = defined
                .iter()
                .map(|c| (text::str_at(c, "/name").to_uppercase(), self.wide || text::int_at(c, "/priority") == 0))
                .collect();
        }
        text::list_at(answer, "/rows").iter().map(|r| self.row(text::list_at(r, "/cells"), &r["object"])).collect()
    }

    fn row(&self, cells: &[Value], object: &Value) -> Vec<String> {
        let mut row = Vec::with_capacity(cells.len() + 2);
        if self.namespaces {
            row.push(text::namespace(object).to_owned());
        }
        for (i, (cell, (_, shown))) in cells.iter().zip(&self.definitions).enumerate() {
            if !shown {
                continue;
            }
            let cell = text::scalar(cell).replace('\n', "\\n");
            row.push(if i == 0 && self.kinds { self.resource.display(&cell) } else { cell });
        }
        if self.labels {
            row.push(text::labels(&object["metadata"]["labels"]));
        }
        row
    }

    /// Makes room for the rows; gives the header line.
    pub fn fit(&mut self, rows: &[Vec<String>]) -> String {
        let mut header: Vec<&str> = if self.namespaces { vec!["NAMESPACE"] } else { Vec::new() };
        header.extend(self.definitions.iter().filter(|(_, shown)| *shown).map(|(name, _)| name.as_str()));
        if self.labels {
            header.push("LABELS");
        }
        if self.headers {
            self.columns.fit(&header);
        }
        for row in rows {
            self.columns.fit(row);
        }
        if self.headers { self.columns.line(&header) } else { String::new() }
    }
}

fn age(object: &Value) -> String {
    text::age(&object["metadata"]["creationTimestamp"], Timestamp::now())
}

/// Lists and then follows one resource until the user or the reader of the output ends it.
async fn watch(client: &ApiClient, targets: &[Target], args: &GetArgs, form: Output) -> Result<(), CliError> {
    let [target] = targets else {
        return Err(CliError::new("you may only specify a single resource type with --watch"));
    };
    check_names(target, args)?;
    let mut args = args.clone();
    match target.names.as_slice() {
        [] => {}
        [name] => {
            // Tells at once when the name is wrong.
            client.get(&target.resource.path(&client.namespace, name)).await?;
            args.field_selector = format!("metadata.name={name}");
        }
        _ => return Err(CliError::new("you may only watch one name, or all")),
    }
    let resource = &target.resource;
    let tabular = matches!(form, Output::Text | Output::Wide);
    let accept = if tabular { ACCEPT_TABLE } else { JSON };
    let mut printer = Printer::new(resource, false, &args, form);
    let mut begun = false;
    'list: loop {
        let list = client.request("GET", &list_path(client, resource, &args, &[]), accept, Payload::default()).await?;
        let mut version = text::str_at(&list, "/metadata/resourceVersion").to_owned();
        if !begun {
            begun = true;
            if tabular {
                let rows = printer.rows(&list);
                let mut text = printer.fit(&rows);
                text.extend(rows.iter().map(|row| printer.columns.line(row)));
                print(&text)?;
            } else {
                for object in text::list_at(&list, "/items") {
                    print_one(with_type(object.clone(), resource), resource, form)?;
                }
            }
        }
        loop {
            let path = list_path(client, resource, &args, &[("watch", "1"), ("resourceVersion", &version)]);
            let mut events = match client.watch(&path, accept).await {
                Ok(events) => events,
                // The version is too old to start from: list anew (410 Gone).
                Err(CliError::Server { code: 410, .. }) => continue 'list,
                Err(error) => return Err(error),
            };
            while let Some(event) = events.next().await {
                let (kind, object) = match event {
                    Ok(event) => event,
                    Err(CliError::Server { code: 410, .. }) => continue 'list,
                    Err(error) => return Err(error),
                };
                let seen = if tabular {
                    object
                        .pointer("/rows/0/object/metadata/resourceVersion")
                        .or(object.pointer("/metadata/resourceVersion"))
                } else {
                    object.pointer("/metadata/resourceVersion")
                };
                if let Some(seen) = seen.and_then(Value::as_str).filter(|v| !v.is_empty()) {
                    version = seen.to_owned();
                }
                if kind == "BOOKMARK" {
                    continue;
                }
                if tabular {
                    for row in printer.rows(&object) {
                        printer.columns.fit(&row);
                        print(&printer.columns.line(&row))?;
                    }
                } else {
                    print_one(object, resource, form)?;
                }
            }
        }
    }
}

fn print_one(object: Value, resource: &Resource, form: Output) -> Result<(), CliError> {
    match form {
        Output::Name => print(&format!("{}\n", resource.display(text::name(&object)))),
        Output::Yaml => print(&format!("---\n{}", text::yaml(&text::without_managed_fields(object))?)),
        _ => print(&text::json(&text::without_managed_fields(object))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::discovery::tests::some;
    use clap::Parser;

    fn args(line: &str) -> GetArgs {
        let cli = crate::cli::Cli::try_parse_from(line.split(' ')).expect("parsed");
        match cli.command {
            crate::cli::Command::Get(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn answer() -> Value {
        json!({"kind": "Table", "columnDefinitions": [
            {"name": "Name", "priority": 0}, {"name": "Restarts", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [{"cells": ["a", 0, "10.0.0.1"], "object": {"metadata": {"namespace": "x", "labels": {"k": "v"}}}}]})
    }

    fn lines(line: &str, kinds: bool, form: Output) -> String {
        let resources = some();
        let resource = resources.resolve("po").expect("pods");
        let mut printer = Printer::new(resource, kinds, &args(line), form);
        let rows = printer.rows(&answer());
        let mut text = printer.fit(&rows);
        text.extend(rows.iter().map(|r| printer.columns.line(r)));
        text
    }

    #[test]
    fn tables_show_priority_0_and_wide_ones_all() {
        assert_eq!(lines("phalanx get po", false, Output::Text), "NAME   RESTARTS\na      0\n");
        assert_eq!(lines("phalanx get po", false, Output::Wide), "NAME   RESTARTS   IP\na      0          10.0.0.1\n");
    }

    #[test]
    fn namespaces_kinds_and_labels_are_columns_of_their_own() {
        assert_eq!(
            lines("phalanx get po -A --show-labels", true, Output::Text),
            "NAMESPACE   NAME    RESTARTS   LABELS\nx           pod/a   0          k=v\n"
        );
        assert_eq!(lines("phalanx get po --no-headers", false, Output::Text), "a     0\n");
    }

    #[test]
    fn an_answer_that_is_no_table_still_has_name_and_age() {
        let resources = some();
        let resource = resources.resolve("po").expect("pods");
        let mut printer = Printer::new(resource, false, &args("phalanx get po"), Output::Text);
        let rows = printer.rows(&json!({"kind": "PodList", "items": [{"metadata": {"name": "a"}}]}));
        assert_eq!(rows, [["a", "<unknown>"]]);
    }
}
