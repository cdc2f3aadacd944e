//! `phalanx tree`: the live supervision tree of the whole cluster.

use clap::Args;
use comfy_table::{Table, presets};
use phalanx_actors::{ActorInfo, State};
use serde_json::{Value, json};

use super::error::{print, println, warn};
use super::{CliError, Global};
use crate::cluster::admin::AdminRequest;
use crate::cluster::local::LocalCluster;

/// Shows the live supervision tree of the whole cluster.
#[derive(Args, Clone, Debug)]
pub struct TreeArgs {
    /// Show only what lies at or below this path, such as `member/leadership`
    pub path: Option<String>,
}

/// Runs the command.
pub async fn run(args: TreeArgs, global: &Global) -> Result<(), CliError> {
    let cluster = LocalCluster::open(&global.directory()).map_err(CliError::new)?;
    let mut nodes = Vec::new();
    for node in cluster.nodes() {
        let answer = cluster.ask(&node.name, &AdminRequest::Tree).await;
        let actors = answer.map_err(|e| e.to_string()).and_then(|v| parse(v).map_err(|e| e.to_string()));
        nodes.push((node.name, actors.map(|all| below(all, args.path.as_deref()))));
    }
    if global.json() {
        let nodes: Vec<Value> = nodes
            .into_iter()
            .map(|(node, actors)| match actors {
                Ok(actors) => json!({"node": node, "error": null, "actors": actors}),
                Err(error) => json!({"node": node, "error": error, "actors": []}),
            })
            .collect();
        return print(&format!("{}\n", serde_json::to_string_pretty(&json!({"nodes": nodes}))?));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ACTOR", "STATE", "UPTIME", "RESTARTS", "QUEUE", "LAST EXIT"]);
    for (node, actors) in nodes {
        table.add_row([node.as_str()]);
        match actors {
            Ok(actors) => {
                for actor in &actors {
                    table.add_row(row(actor));
                }
            }
            Err(error) => warn(&format!("{node}: {error}")),
        }
    }
    let lines: Vec<String> =
        table.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or_default().to_owned()).collect();
    println(&lines.join("\n"))
}

fn parse(value: Value) -> serde_json::Result<Vec<ActorInfo>> {
    serde_json::from_value(value)
}

fn below(actors: Vec<ActorInfo>, path: Option<&str>) -> Vec<ActorInfo> {
    let Some(path) = path.map(|p| p.trim_matches('/')) else { return actors };
    let inside =
        |actor: &ActorInfo| actor.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    actors.into_iter().filter(inside).collect()
}

fn row(actor: &ActorInfo) -> [String; 6] {
    let depth = actor.path.matches('/').count() + 1;
    let name = actor.path.rsplit('/').next().unwrap_or_default();
    let state = match actor.state {
        State::Restarting { in_ms } => format!("restarting in {in_ms} ms"),
        other => format!("{other:?}").to_lowercase(),
    };
    [
        format!("{}{name}", "  ".repeat(depth)),
        state,
        format!("{:.1}s", actor.uptime_ms as f64 / 1000.0),
        actor.restarts.to_string(),
        actor.queue_len.to_string(),
        actor.last_exit.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_actors::{Exit, Kind};

    fn actor(path: &str) -> ActorInfo {
        ActorInfo {
            path: path.into(),
            kind: Kind::Worker,
            type_name: "t".into(),
            state: State::Restarting { in_ms: 40 },
            id: None,
            uptime_ms: 1_500,
            restarts: 2,
            last_exit: Some(Exit::Error("gone".into())),
            queue_len: 1,
            queue_max: 8,
            messages: 9,
        }
    }

    #[test]
    fn a_path_selects_what_lies_at_or_below_it() {
        let all = || vec![actor("a"), actor("a/b"), actor("a/b/c"), actor("a/bc")];
        let paths = |path| below(all(), path).into_iter().map(|a| a.path).collect::<Vec<_>>();
        assert_eq!(paths(Some("/a/b/")), ["a/b", "a/b/c"]);
        assert_eq!(paths(None).len(), 4);
    }

    #[test]
    fn a_row_is_indented_and_tells_the_last_exit() {
        assert_eq!(row(&actor("a/b")), ["    b", "restarting in 40 ms", "1.5s", "2", "1", "gone"]);
    }
}
