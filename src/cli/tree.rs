//! `phalanx tree`: the live supervision tree of the whole cluster, from its nodes if they are on this machine, else as a
//! server gathers it.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use phalanx_actors::{ActorInfo, Exit, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::ApiClient;
use super::columns::Columns;
use super::error::print;
use super::progress::Progress;
use super::text::{self, human_duration, query};
use super::{CliError, Global, Output};
use crate::cluster::admin::AdminRequest;
use crate::cluster::local::LocalCluster;

/// How often `--watch` looks.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// Longest last exit that is shown; `-o json` has it whole.
const EXIT_CHARS_MAX: usize = 60;

/// Shows the live supervision tree of the whole cluster.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx tree                    all of all nodes
  phalanx tree agent/pods         only below this path, on every node
  phalanx tree --node n1 --watch  one node, as it changes
  phalanx tree -o wide            with types, message counts, queue limits

Columns: STATE of the actor; UPTIME of this incarnation; RESTARTS by its supervisor; LAST EXIT of the
incarnation before; QUEUE of messages that wait.")]
pub struct TreeArgs {
    /// Only actors at and below this path
    #[arg(value_name = "PATH", default_value = "", hide_default_value = true)]
    pub path: String,

    /// Only this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Look again every second
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Deserialize)]
struct Answer {
    nodes: Vec<NodeTree>,
}

#[derive(Debug, Deserialize)]
struct NodeTree {
    node: String,
    /// Why the node could not be asked.
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    actors: Vec<ActorInfo>,
}

/// Runs the command.
pub async fn run(args: TreeArgs, global: &Global) -> Result<(), CliError> {
    let source = Source::find(global).await?;
    let mut progress = Some(Progress::start("Asking all nodes"));
    loop {
        let mut answer = source.ask(args.path.trim_matches('/')).await?;
        drop(progress.take());
        if !args.watch {
            refuse_nothing(&answer, &args.path)?;
        }
        if let (Some(node), Some(nodes)) = (&args.node, answer["nodes"].as_array_mut()) {
            nodes.retain(|n| n["node"] == node.as_str());
            if nodes.is_empty() {
                return Err(CliError::new(format!(
                    "the cluster has no node \"{node}\"; `phalanx get nodes` lists them"
                )));
            }
        }
        let shown = match global.output() {
            Output::Json => text::json(&answer)?,
            Output::Yaml => text::yaml(&answer)?,
            form => render(&serde_json::from_value(answer)?, form == Output::Wide),
        };
        if !args.watch {
            return print(&shown);
        }
        // Home and clear below: the terminal does not flicker as with a full clear.
        match std::io::stdout().is_terminal() {
            true => print(&format!("\x1b[H\x1b[J{shown}"))?,
            false => print(&format!("{shown}\n"))?,
        }
        tokio::time::sleep(WATCH_PERIOD).await;
    }
}

/// An answer that shows nothing is a failure, and says why.
fn refuse_nothing(answer: &Value, path: &str) -> Result<(), CliError> {
    let nodes = text::list_at(answer, "/nodes");
    let errors: Vec<&str> = nodes.iter().filter_map(|n| n["error"].as_str()).collect();
    if let (Some(first), true) = (errors.first(), errors.len() == nodes.len()) {
        return Err(CliError::new(format!("no node of the cluster answers: {first}")));
    }
    let seen = nodes.iter().any(|n| !text::list_at(n, "/actors").is_empty());
    if !seen && errors.is_empty() {
        return Err(CliError::new(format!("no node has an actor at {path}; `phalanx tree` shows all paths")));
    }
    Ok(())
}

/// Who is asked about the cluster.
pub enum Source {
    /// The nodes of a cluster in a directory of this machine, one by one: works without a leader and without a network.
    Local(LocalCluster),
    /// Any server; it asks the nodes.
    Server(ApiClient),
}

impl Source {
    /// A kubeconfig that is asked for is used; else the cluster of the directory, if there is one.
    pub async fn find(global: &Global) -> Result<Self, CliError> {
        if global.kubeconfig.is_none()
            && let Ok(cluster) = LocalCluster::open(&global.directory())
        {
            return Ok(Self::Local(cluster));
        }
        Ok(Self::Server(ApiClient::connect(global).await?))
    }

    async fn ask(&self, path: &str) -> Result<Value, CliError> {
        let cluster = match self {
            Self::Server(client) => {
                return client.get(&format!("/phalanx/v1/tree{}", query(&[("path", path)]))).await;
            }
            Self::Local(cluster) => cluster,
        };
        let nodes = cluster.nodes();
        let asked = nodes.iter().map(|node| async move {
            let answer = cluster.ask(&node.name, &AdminRequest::Tree).await.map_err(|e| e.to_string());
            let actors = answer.and_then(|v| serde_json::from_value::<Vec<ActorInfo>>(v).map_err(|e| e.to_string()));
            match actors {
                Ok(actors) => json!({"node": node.name, "error": null, "actors": below(actors, path)}),
                Err(error) => json!({"node": node.name, "error": error, "actors": []}),
            }
        });
        Ok(json!({"nodes": futures::future::join_all(asked).await}))
    }
}

fn below(actors: Vec<ActorInfo>, path: &str) -> Vec<ActorInfo> {
    let inside = |actor: &ActorInfo| {
        path.is_empty() || actor.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    actors.into_iter().filter(inside).collect()
}

fn render(answer: &Answer, wide: bool) -> String {
    let mut header = vec!["ACTOR", "STATE", "UPTIME", "RESTARTS", "LAST EXIT", "QUEUE"];
    if wide {
        header.extend(["MESSAGES", "KIND", "TYPE"]);
    }
    let mut rows: Vec<Vec<String>> = vec![header.into_iter().map(str::to_owned).collect()];
    for tree in &answer.nodes {
        match &tree.error {
            Some(error) => rows.push(vec![format!("{}  ({error})", tree.node)]),
            None => rows.push(vec![tree.node.clone()]),
        }
        rows.extend(branches(&tree.actors).into_iter().map(|(branch, actor)| row(branch, actor, wide)));
    }
    let mut columns = Columns::default();
    // A node's own line may be long: it has no columns.
    rows.iter().filter(|r| r.len() > 1).for_each(|r| columns.fit(r));
    rows.iter().map(|r| columns.line(r)).collect()
}

fn row(branch: String, a: &ActorInfo, wide: bool) -> Vec<String> {
    let state = match a.state {
        State::Starting => "starting".to_owned(),
        State::Running => "running".to_owned(),
        State::Restarting { in_ms } => format!("restarting in {in_ms} ms"),
        State::Stopping => "stopping".to_owned(),
        State::Stopped => "stopped".to_owned(),
    };
    let uptime = match a.uptime_ms {
        0 => "-".to_owned(),
        ms @ 1..1000 => format!("{ms}ms"),
        ms => human_duration(i64::try_from(ms / 1000).unwrap_or(i64::MAX)),
    };
    let mut row = vec![
        branch,
        state,
        uptime,
        a.restarts.to_string(),
        a.last_exit.as_ref().map_or("-".into(), exit),
        a.queue_len.to_string(),
    ];
    if wide {
        row[5] = format!("{}/{}", a.queue_len, a.queue_max);
        row.extend([a.messages.to_string(), format!("{:?}", a.kind).to_lowercase(), a.type_name.clone()]);
    }
    row
}

fn exit(exit: &Exit) -> String {
    let text = exit.to_string().replace('\n', " ");
    if text.chars().count() <= EXIT_CHARS_MAX {
        return text;
    }
    let cut: String = text.chars().take(EXIT_CHARS_MAX - 1).collect();
    format!("{cut}…")
}

/// Each actor behind its branch, parents before children, siblings in the order given. An actor whose parent is not
/// among those given stands at the top with its whole path.
fn branches(actors: &[ActorInfo]) -> Vec<(String, &ActorInfo)> {
    let at: HashMap<&str, usize> = actors.iter().enumerate().map(|(i, a)| (a.path.as_str(), i)).collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); actors.len()];
    let mut top = Vec::new();
    for (i, a) in actors.iter().enumerate() {
        match a.path.rsplit_once('/').and_then(|(parent, _)| at.get(parent)) {
            Some(parent) => children[*parent].push(i),
            None => top.push(i),
        }
    }
    // A stack of its own: a tree may be deeper than the thread's.
    let mut out = Vec::with_capacity(actors.len());
    let mut stack: Vec<(usize, String, bool, bool)> = Vec::new();
    let push = |stack: &mut Vec<_>, list: &[usize], indent: &str, whole: bool| {
        for (n, i) in list.iter().enumerate().rev() {
            stack.push((*i, indent.to_owned(), n + 1 == list.len(), whole));
        }
    };
    push(&mut stack, &top, "", true);
    while let Some((i, indent, last, whole)) = stack.pop() {
        let path = &actors[i].path;
        let name = if whole { path } else { path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name) };
        out.push((format!("{indent}{}{name}", if last { "└─ " } else { "├─ " }), &actors[i]));
        let below = format!("{indent}{}", if last { "   " } else { "│  " });
        push(&mut stack, &children[i], &below, false);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_actors::Kind;

    fn actor(path: &str) -> ActorInfo {
        ActorInfo {
            path: path.into(),
            kind: Kind::Worker,
            type_name: "T".into(),
            state: State::Running,
            id: Some(1),
            uptime_ms: 61_000,
            restarts: 0,
            last_exit: None,
            queue_len: 0,
            queue_max: 8,
            messages: 3,
            dropped: 0,
        }
    }

    fn names(paths: &[&str]) -> Vec<String> {
        let actors: Vec<ActorInfo> = paths.iter().map(|p| actor(p)).collect();
        branches(&actors).into_iter().map(|(b, _)| b).collect()
    }

    #[test]
    fn children_hang_below_their_parents_in_the_order_given() {
        assert_eq!(
            names(&["agent", "agent/pods", "store", "agent/pods/b", "agent/pods/a", "store/raft"]),
            ["├─ agent", "│  └─ pods", "│     ├─ b", "│     └─ a", "└─ store", "   └─ raft"]
        );
    }

    #[test]
    fn a_subtree_stands_at_the_top_with_its_whole_path() {
        assert_eq!(names(&["agent/pods", "agent/pods/a"]), ["└─ agent/pods", "   └─ a"]);
    }

    #[test]
    fn a_path_selects_what_lies_at_or_below_it() {
        let all = || vec![actor("a"), actor("a/b"), actor("a/b/c"), actor("a/bc")];
        let paths = |path| below(all(), path).into_iter().map(|a| a.path).collect::<Vec<_>>();
        assert_eq!(paths("a/b"), ["a/b", "a/b/c"]);
        assert_eq!(paths("").len(), 4);
    }

    #[test]
    fn rows_are_aligned_and_a_node_that_cannot_be_asked_is_named() {
        let mut crashed = actor("a");
        crashed.restarts = 2;
        crashed.last_exit = Some(Exit::Panic { message: "x".repeat(100), location: None });
        let answer = Answer {
            nodes: vec![
                NodeTree { node: "n1".into(), error: None, actors: vec![crashed] },
                NodeTree { node: "n2".into(), error: Some("no connection".into()), actors: vec![] },
            ],
        };
        let text = render(&answer, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[2].starts_with("└─ a    running   61s      2          panic: xxx"), "{text}");
        assert!(lines[2].contains('…') && lines[2].ends_with("0"), "{text}");
        assert_eq!(lines[3], "n2  (no connection)");
        assert_eq!(lines[0].find("STATE"), Some(8));
    }

    #[test]
    fn the_answer_is_read_as_the_server_writes_it() {
        let json = serde_json::json!({"nodes": [{"node": "n1", "error": null, "actors": [actor("a")]},
            {"node": "n2", "error": "gone", "actors": []}]});
        let answer: Answer = serde_json::from_value(json).expect("read");
        assert_eq!(answer.nodes[0].actors[0], actor("a"));
        assert_eq!(answer.nodes[1].error.as_deref(), Some("gone"));
    }
}
