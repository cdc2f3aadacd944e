//! `phalanx status`: the nodes of the cluster, its leader, their leases, from the nodes if they are on this machine, else
//! as a server gathers it.

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::Value;

use super::error::{print, println};
use super::tree::Source;
use super::{CliError, Global};
use crate::cluster::local::LocalCluster;

/// Shows the nodes of the cluster, its leader, and their leases.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {}

/// Runs the command.
pub async fn run(_: StatusArgs, global: &Global) -> Result<(), CliError> {
    let status = match Source::find(global).await {
        Ok(Source::Local(cluster)) => cluster.status().await,
        Ok(Source::Server(client)) => client.get("/phalanx/v1/status").await?,
        // Most likely the directory was meant.
        Err(error) => return Err(LocalCluster::open(&global.directory()).map_or_else(CliError::new, |_| error)),
    };
    if global.json() {
        return print(&format!("{}\n", serde_json::to_string_pretty(&status)?));
    }
    println(&render(&status))
}

fn render(status: &Value) -> String {
    let mut table = Table::new();
    let mut remarks = Vec::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "ROLES", "LEADER", "STATE", "PODS", "LEASE AGE", "PID", "ADDRESS", "BOOT"]);
    for node in status["nodes"].as_array().into_iter().flatten() {
        let text = |key: &str| match &node[key] {
            Value::String(s) => s.clone(),
            Value::Null => "-".into(),
            other => other.to_string(),
        };
        let roles: Vec<&str> = node["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut state = text("state");
        if node["fenced"] == true {
            state.push_str(",Fenced");
        }
        if let Some(reason) = node["readOnly"].as_str() {
            state.push_str(",ReadOnly");
            remarks.push(format!("{} is read-only: {reason}", text("name")));
        }
        let age = node["leaseAgeMs"].as_u64().map_or("-".into(), |ms| format!("{ms} ms"));
        let leader = if node["leader"] == true { "yes".into() } else { String::new() };
        table.add_row([
            text("name"),
            roles.join(","),
            leader,
            state,
            text("pods"),
            age,
            text("pid"),
            text("address"),
            text("incarnation"),
        ]);
    }
    let mut lines: Vec<String> = table.lines().map(|line| line.trim().to_owned()).collect();
    lines.append(&mut remarks);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_does_not_answer_is_shown_with_what_is_known() {
        let text = render(&json!({"nodes": [
            {"name": "n1", "roles": ["server", "agent"], "leader": true, "state": "Ready", "pods": 4, "leaseAgeMs": 12, "pid": 7,
             "address": "127.0.0.1:1", "incarnation": 3, "fenced": false},
            {"name": "n2", "roles": ["agent"], "leader": false, "state": "Lost", "leaseAgeMs": 9000, "pid": null},
        ]}));
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["n1", "server,agent", "yes", "Ready", "4", "12", "ms", "7", "127.0.0.1:1", "3"]);
        assert_eq!(words[2], ["n2", "agent", "Lost", "-", "9000", "ms", "-", "-", "-"]);
    }
}
