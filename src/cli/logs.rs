//! `phalanx logs`: what containers say, of one pod or of all that a selector finds.

use std::pin::pin;

use clap::Args;
use futures::StreamExt;
use serde_json::Value;

use super::client::ApiClient;
use super::discovery::{Resources, Target, select};
use super::error::{complain, print, warn};
use super::progress::Progress;
use super::text::{self, query};
use super::{CliError, Global};

/// Lines of each container when a selector finds several pods and --tail says nothing (kubectl's default).
const SELECTOR_TAIL: i64 = 10;
/// Streams followed at once (kubectl's default is 5).
const STREAMS_MAX: usize = 100;
/// Lines that wait for the terminal; a stream waits when it is full.
const LINES_QUEUE: usize = 1024;

/// Prints what containers say.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx logs web-1 -f                 follow
  phalanx logs deploy/web --tail 20     of one pod of a Deployment
  phalanx logs -l app=web -f --prefix   of all pods with a label
  phalanx logs web-1 -c init --previous of a container's life before this one")]
pub struct LogsArgs {
    /// POD, or TYPE/NAME of something that has pods
    #[arg(value_name = "POD|TYPE/NAME", required_unless_present = "selector", conflicts_with = "selector")]
    pub what: Option<String>,

    /// Container [default: the pod's only or first one]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,

    /// All containers of the pod
    #[arg(long, conflicts_with = "container")]
    pub all_containers: bool,

    /// Print lines as they come
    #[arg(short, long)]
    pub follow: bool,

    /// Only the last lines; -1 is all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub tail: Option<i64>,

    /// Of the container's life before this one
    #[arg(short, long)]
    pub previous: bool,

    /// Only lines younger than this, such as 30s, 5m, 2h
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    pub since: Option<u64>,

    /// Each line with its time
    #[arg(long)]
    pub timestamps: bool,

    /// Each line with its pod and container
    #[arg(long)]
    pub prefix: bool,

    /// All pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
}

/// Seconds of `90`, `30s`, `5m`, `2h`, `1d`.
fn parse_span(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("expected a number and s, m, h or d".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number and s, m, h or d".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "too long".into())
}

/// Runs the command.
pub async fn run(args: LogsArgs, global: &Global) -> Result<(), CliError> {
    let progress = Progress::start("Asking the server");
    let client = ApiClient::connect(global).await?;
    let pods = pods(&client, &args).await?;
    if let [pod] = pods.as_slice()
        && text::str_at(pod, "/spec/nodeName").is_empty()
    {
        let name = text::name(pod);
        return Err(CliError::new(format!(
            "pod {name} has no node yet, so it has said nothing; `phalanx describe pod {name}` tells why"
        )));
    }
    let mut sources: Vec<Source> = Vec::new();
    for pod in &pods {
        for container in containers(pod, &args)? {
            sources.push(Source { namespace: text::namespace(pod).into(), pod: text::name(pod).into(), container });
        }
    }
    drop(progress);
    if sources.is_empty() {
        warn(&format!("No resources found in {} namespace.", client.namespace));
        return Ok(());
    }
    if sources.len() > STREAMS_MAX {
        return Err(CliError::new(format!(
            "{} containers; at most {STREAMS_MAX} at once: narrow the selector",
            sources.len()
        )));
    }
    let tail = args.tail.or(args.selector.is_some().then_some(SELECTOR_TAIL)).filter(|n| *n >= 0);
    let prefix = args.prefix;
    if let [source] = sources.as_slice() {
        return copy(&client, source, tail, &args, prefix).await;
    }
    if !args.follow {
        for source in &sources {
            copy(&client, source, tail, &args, prefix).await?;
        }
        return Ok(());
    }
    follow_all(&client, sources, tail, &args).await
}

struct Source {
    namespace: String,
    pod: String,
    container: String,
}

impl Source {
    fn path(&self, tail: Option<i64>, args: &LogsArgs) -> String {
        let on = |flag: bool| if flag { "true" } else { "" };
        let tail = tail.map(|n| n.to_string()).unwrap_or_default();
        let since = args.since.map(|s| s.to_string()).unwrap_or_default();
        format!(
            "/api/v1/namespaces/{}/pods/{}/log{}",
            text::escape(&self.namespace),
            text::escape(&self.pod),
            query(&[
                ("container", &self.container),
                ("follow", on(args.follow)),
                ("previous", on(args.previous)),
                ("sinceSeconds", &since),
                ("tailLines", &tail),
                ("timestamps", on(args.timestamps)),
            ])
        )
    }

    fn prefix(&self) -> String {
        format!("[pod/{}/{}] ", self.pod, self.container)
    }
}

/// The pods meant.
async fn pods(client: &ApiClient, args: &LogsArgs) -> Result<Vec<Value>, CliError> {
    let pods_path = format!("/api/v1/namespaces/{}/pods", text::escape(&client.namespace));
    if let Some(selector) = &args.selector {
        let list = client.get(&format!("{pods_path}{}", query(&[("labelSelector", selector)]))).await?;
        return Ok(text::list_at(&list, "/items").to_vec());
    }
    let what = args.what.as_deref().unwrap_or_default();
    let Some((kind, name)) = what.split_once('/') else {
        return Ok(vec![client.get(&format!("{pods_path}/{}", text::escape(what))).await?]);
    };
    let resources = Resources::discover(client).await?;
    let target = Target { resource: resources.resolve(kind)?.clone(), names: vec![name.to_owned()] };
    let mut found = select(client, std::slice::from_ref(&target), "", "", false).await?;
    let Some((resource, object)) = found.pop() else { return Ok(Vec::new()) };
    if resource.kind == "Pod" {
        return Ok(vec![object]);
    }
    let selector = selector_text(&object["spec"]["selector"])
        .ok_or_else(|| CliError::new(format!("{what}: has no pods whose logs could be printed")))?;
    let list = client.get(&format!("{pods_path}{}", query(&[("labelSelector", &selector)]))).await?;
    let mut pods = text::list_at(&list, "/items").to_vec();
    // One that runs says more than one that does not.
    pods.sort_by_key(|p| {
        (text::str_at(p, "/status/phase") != "Running", !p["metadata"]["deletionTimestamp"].is_null())
    });
    if pods.len() > 1 {
        warn(&format!("Found {} pods, using pod/{}", pods.len(), text::name(&pods[0])));
    }
    pods.truncate(1);
    if pods.is_empty() {
        return Err(CliError::new(format!("{what} has no pods now")));
    }
    Ok(pods)
}

/// A `metav1.LabelSelector`, or the plain map of older kinds, as a parameter. `None` when there is none.
pub fn selector_text(selector: &Value) -> Option<String> {
    let map = selector.as_object()?;
    if !map.contains_key("matchLabels") && !map.contains_key("matchExpressions") {
        return Some(text::pairs(selector, "=").join(",")).filter(|s| !s.is_empty());
    }
    let mut parts = text::pairs(&selector["matchLabels"], "=");
    for e in text::list_at(selector, "/matchExpressions") {
        let key = text::str_at(e, "/key");
        let values: Vec<&str> = text::list_at(e, "/values").iter().filter_map(Value::as_str).collect();
        parts.push(match text::str_at(e, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    Some(parts.join(",")).filter(|s| !s.is_empty())
}

/// Which containers of a pod.
fn containers(pod: &Value, args: &LogsArgs) -> Result<Vec<String>, CliError> {
    let named = |field: &str| -> Vec<String> {
        text::list_at(&pod["spec"], field).iter().map(|c| text::str_at(c, "/name").to_owned()).collect()
    };
    let (init, main) = (named("/initContainers"), named("/containers"));
    let mut all = init.clone();
    all.extend(main.clone());
    if let Some(wanted) = &args.container {
        if !all.contains(wanted) {
            return Err(CliError::new(format!(
                "container {wanted} is not in pod {}; it has {}",
                text::name(pod),
                all.join(", ")
            )));
        }
        return Ok(vec![wanted.clone()]);
    }
    if args.all_containers {
        return Ok(all);
    }
    if main.len() > 1 && args.selector.is_none() {
        warn(&format!("Defaulted container \"{}\" out of: {}", main[0], all.join(", ")));
    }
    Ok(main.into_iter().take(1).collect())
}

async fn copy(
    client: &ApiClient,
    source: &Source,
    tail: Option<i64>,
    args: &LogsArgs,
    prefix: bool,
) -> Result<(), CliError> {
    let mut stream = client.stream(&source.path(tail, args), "*/*").await?;
    if !prefix {
        while let Some(chunk) = stream.next().await {
            // Bytes as they are: logs need not be UTF-8.
            use std::io::Write;
            let mut out = std::io::stdout().lock();
            out.write_all(&chunk?)?;
            out.flush()?;
        }
        return Ok(());
    }
    let mut lines = pin!(lines(stream));
    while let Some(line) = lines.next().await {
        print(&format!("{}{}\n", source.prefix(), line?))?;
    }
    Ok(())
}

/// Cuts bytes into lines.
fn lines(
    stream: impl futures::Stream<Item = Result<bytes::Bytes, CliError>> + Unpin,
) -> impl futures::Stream<Item = Result<String, CliError>> {
    futures::stream::unfold((stream, Vec::<u8>::new(), false), |(mut stream, mut buffer, mut ended)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                return Some((Ok(text_of(&line)), (stream, buffer, ended)));
            }
            if ended {
                let rest = std::mem::take(&mut buffer);
                return (!rest.is_empty()).then(|| (Ok(text_of(&rest)), (stream, buffer, true)));
            }
            match stream.next().await {
                Some(Ok(chunk)) => buffer.extend_from_slice(&chunk),
                Some(Err(error)) => return Some((Err(error), (stream, Vec::new(), true))),
                None => ended = true,
            }
        }
    })
}

fn text_of(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches(['\n', '\r']).to_owned()
}

/// Follows all at once; lines stay whole. Ends when all have ended.
async fn follow_all(
    client: &ApiClient,
    sources: Vec<Source>,
    tail: Option<i64>,
    args: &LogsArgs,
) -> Result<(), CliError> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<String, CliError>>(LINES_QUEUE);
    let mut tasks = tokio::task::JoinSet::new();
    for source in sources {
        let (client, sender, args) = (client.clone(), sender.clone(), args.clone());
        tasks.spawn(async move {
            let prefix = if args.prefix { source.prefix() } else { String::new() };
            let stream = match client.stream(&source.path(tail, &args), "*/*").await {
                Ok(stream) => stream,
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            let mut lines = pin!(lines(stream));
            while let Some(line) = lines.next().await {
                if sender.send(line.map(|l| format!("{prefix}{l}\n"))).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut failed = false;
    while let Some(line) = receiver.recv().await {
        match line {
            Ok(line) => print(&line)?,
            // One pod that goes does not end the others.
            Err(error) => {
                complain(&error);
                failed = true;
            }
        }
    }
    if failed { Err(CliError::Reported) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn lines_are_cut_across_chunks_and_the_last_needs_no_line_feed() {
        let chunks = ["a\nb", "c\r\nd"].map(|c| Ok(bytes::Bytes::from_static(c.as_bytes())));
        let lines: Vec<String> = lines(futures::stream::iter(chunks)).map(|l| l.expect("line")).collect().await;
        assert_eq!(lines, ["a", "bc", "d"]);
    }

    #[test]
    fn selectors_of_all_forms_become_text() {
        assert_eq!(selector_text(&json!({"app": "web"})).as_deref(), Some("app=web"));
        let full = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&full).as_deref(), Some("a=b,c in (d,e),!f"));
        assert_eq!(selector_text(&Value::Null), None);
    }

    #[test]
    fn spans_have_units() {
        assert_eq!(parse_span("90"), Ok(90));
        assert_eq!(parse_span("5m"), Ok(300));
        assert!(parse_span("5x").is_err() && parse_span("m").is_err());
    }
}
