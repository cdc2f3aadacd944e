//! `phalanx events`: what has happened, oldest first.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::{ApiClient, JSON};
use super::columns::Columns;
use super::discovery::Resources;
use super::error::{print, warn};
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global, Output};

/// Lists events, newest last.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx events -A -w
  phalanx events --for deploy/web
  phalanx events --types Warning")]
pub struct EventsArgs {
    /// Events of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// Only those about one object
    #[arg(long = "for", value_name = "TYPE/NAME")]
    pub about: Option<String>,

    /// Only these types, such as Normal, Warning
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<String>,

    /// After listing, print events as they come
    #[arg(short, long)]
    pub watch: bool,

    /// Print no header
    #[arg(long)]
    pub no_headers: bool,
}

/// Runs the command.
pub async fn run(args: EventsArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Asking the server");
    let client = ApiClient::connect(global).await?;
    let mut fields = String::new();
    if let Some(about) = &args.about {
        let targets = Resources::discover(&client).await?.targets(std::slice::from_ref(about))?;
        let target = &targets[0];
        let [name] = target.names.as_slice() else { return Err(CliError::new("--for takes TYPE/NAME")) };
        fields = format!("involvedObject.kind={},involvedObject.name={name}", target.resource.kind);
    }
    let base = match args.all_namespaces {
        true => "/api/v1/events".to_owned(),
        false => format!("/api/v1/namespaces/{}/events", text::escape(&client.namespace)),
    };
    let list = client.get(&format!("{base}{}", query(&[("fieldSelector", &fields)]))).await?;
    drop(progress);
    let wanted = |e: &Value| {
        args.types.is_empty() || args.types.iter().any(|t| t.eq_ignore_ascii_case(text::str_at(e, "/type")))
    };
    let mut events: Vec<Value> = text::list_at(&list, "/items").iter().filter(|e| wanted(e)).cloned().collect();
    sort(&mut events);

    let form = global.output();
    if matches!(form, Output::Json | Output::Yaml) && !args.watch {
        let list = text::without_managed_fields(json!({"apiVersion": "v1", "kind": "List", "items": events}));
        return print(&if form == Output::Json { text::json(&list)? } else { text::yaml(&list)? });
    }
    let mut header = vec!["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];
    if args.all_namespaces {
        header.insert(0, "NAMESPACE");
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = events.iter().map(|e| row(e, args.all_namespaces, now)).collect();
    let mut columns = Columns::default();
    columns.fit(&header);
    rows.iter().for_each(|r| columns.fit(r));
    if rows.is_empty() && !args.watch {
        match args.all_namespaces {
            true => warn("No events found."),
            false => warn(&format!("No events found in {} namespace.", client.namespace)),
        }
        return Ok(());
    }
    let mut text = if args.no_headers { String::new() } else { columns.line(&header) };
    text.extend(rows.iter().map(|r| columns.line(r)));
    print(&text)?;
    if !args.watch {
        return Ok(());
    }
    let mut version = text::str_at(&list, "/metadata/resourceVersion").to_owned();
    loop {
        let parameters = query(&[("watch", "1"), ("fieldSelector", &fields), ("resourceVersion", &version)]);
        let mut watch = match client.watch(&format!("{base}{parameters}"), JSON).await {
            Ok(watch) => watch,
            // Too old a version: go on from now.
            Err(CliError::Server { code: 410, .. }) => {
                version.clear();
                continue;
            }
            Err(error) => return Err(error),
        };
        while let Some(event) = watch.next().await {
            let (kind, event) = match event {
                Ok(event) => event,
                Err(CliError::Server { code: 410, .. }) => break,
                Err(error) => return Err(error),
            };
            version = text::str_at(&event, "/metadata/resourceVersion").to_owned();
            if matches!(kind.as_str(), "ADDED" | "MODIFIED") && wanted(&event) {
                let row = row(&event, args.all_namespaces, Timestamp::now());
                columns.fit(&row);
                print(&columns.line(&row))?;
            }
        }
    }
}

/// When it was seen last: the series', the event's own, its creation, whichever is set.
pub fn last_seen(event: &Value) -> Value {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .iter()
        .find_map(|p| event.pointer(p).filter(|t| t.is_string()))
        .cloned()
        .unwrap_or_default()
}

/// Oldest first.
pub fn sort(events: &mut [Value]) {
    events.sort_by_key(|e| text::parse_time(&last_seen(e)));
}

/// `28s (x16 over 31s)`, or only the age.
pub fn seen(event: &Value, now: Timestamp) -> String {
    let last = text::age(&last_seen(event), now);
    let count = text::int_at(event, "/series/count").max(text::int_at(event, "/count"));
    if count > 1 {
        let first = ["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"]
            .iter()
            .find_map(|p| event.pointer(p).filter(|t| t.is_string()))
            .cloned()
            .unwrap_or_default();
        format!("{last} (x{count} over {})", text::age(&first, now))
    } else {
        last
    }
}

fn row(event: &Value, namespaces: bool, now: Timestamp) -> Vec<String> {
    let about = &event["involvedObject"];
    let mut row = vec![
        seen(event, now),
        text::str_at(event, "/type").to_owned(),
        text::str_at(event, "/reason").to_owned(),
        format!("{}/{}", text::str_at(about, "/kind"), text::str_at(about, "/name")),
        text::str_at(event, "/message").trim().replace('\n', "\\n"),
    ];
    if namespaces {
        row.insert(0, text::namespace(event).to_owned());
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_events_say_how_often_and_since_when() {
        let now: Timestamp = "2026-11-23T02:49:20Z".parse().expect("time");
        let event = json!({"count": 16, "firstTimestamp": "2026-11-23T02:48:49Z", "lastTimestamp": "2026-11-23T02:48:52Z",
            "type": "Normal", "reason": "R", "involvedObject": {"kind": "Pod", "name": "x"}, "message": "m\n"});
        assert_eq!(row(&event, false, now), ["28s (x16 over 31s)", "Normal", "R", "Pod/x", "m"]);
    }

    #[test]
    fn events_are_sorted_by_when_they_were_seen_last() {
        let at = |t: &str| json!({"eventTime": t});
        let mut events = vec![at("2026-11-23T02:48:52Z"), at("2026-11-23T02:48:49.5Z"), json!({})];
        sort(&mut events);
        assert_eq!(events[2], at("2026-11-23T02:48:52Z"));
    }
}
