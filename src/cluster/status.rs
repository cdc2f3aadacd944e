//! The cluster in one table: what every node says of itself, and what the leader says of their leases. Pure.
//!
//! Called by `local`, which asks through control sockets, and by `front`, which asks over the transport.

use serde_json::{Value, json};

/// A node, and what it answered when it was asked for its own view ([`super::member::Shared::status`]).
pub struct NodeAnswer {
    pub name: String,
    /// Part of the control plane.
    pub server: bool,
    /// Whether its process runs; `None` when only the node itself could tell.
    pub running: Option<bool>,
    /// Its process, where known.
    pub pid: Option<i64>,
    pub answer: Option<Value>,
}

/// `{"cluster", "leader", "nodes": [{name, roles, leader, address, api, pid, state, pods, fenced, leaseAgeMs, incarnation,
/// readOnly}]}`. A node that does not run, or does not answer, is shown as such.
pub fn merge(cluster: &str, nodes: &[NodeAnswer]) -> Value {
    // Who leads keeps leases; an old leader that is cut off keeps some, too, so the newest term counts.
    let leading = nodes
        .iter()
        .filter_map(|node| node.answer.as_ref())
        .filter(|a| a["leases"].as_array().is_some_and(|l| !l.is_empty()))
        .max_by_key(|a| a["store"]["term"].as_u64().unwrap_or(0));
    let leader = leading.and_then(|a| a["name"].as_str());
    let lease = |name: &str| {
        let leases = leading?.get("leases")?.as_array()?;
        leases.iter().find(|l| l["node"] == name).cloned()
    };
    let rows: Vec<Value> = nodes
        .iter()
        .map(|node| {
            let lease = lease(&node.name).unwrap_or(Value::Null);
            let state = match (node.running, lease["state"].as_str()) {
                (_, Some(state)) => state,
                (Some(false), None) => "Stopped",
                (_, None) => "Unknown",
            };
            let field = |key: &str| node.answer.as_ref().map_or(Value::Null, |a| a[key].clone());
            json!({
                "name": node.name,
                "roles": if node.server { vec!["server", "agent"] } else { vec!["agent"] },
                "leader": leader == Some(node.name.as_str()),
                "address": field("transport"),
                "api": field("api"),
                "pid": node.pid,
                "state": state,
                "pods": lease["pods"],
                "fenced": field("fenced"),
                "leaseAgeMs": lease["leaseAgeMs"],
                "incarnation": field("incarnation"),
                "readOnly": node.answer.as_ref().map_or(Value::Null, |a| a["store"]["readOnly"].clone()),
            })
        })
        .collect();
    json!({"cluster": cluster, "leader": leader, "nodes": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_leader_speaks_for_all_and_the_silent_are_shown() {
        let answer = |name: &str, term: u64, state: &str| {
            let leases = json!([{"node": "n1", "state": state, "leaseAgeMs": 7, "pods": 3}]);
            Some(json!({"name": name, "store": {"term": term}, "leases": leases, "transport": "127.0.0.1:1"}))
        };
        let node = |name: &str, running, answer| NodeAnswer {
            name: name.to_owned(),
            server: true,
            running: Some(running),
            pid: running.then_some(5),
            answer,
        };
        let merged = merge(
            "c",
            &[
                node("n1", true, answer("n1", 2, "Ready")),
                node("n2", true, answer("n2", 3, "Lost")),
                node("n3", false, None),
            ],
        );
        assert_eq!(merged["leader"], "n2", "n1 was cut off while it led");
        let rows = &merged["nodes"];
        assert_eq!((&rows[0]["state"], &rows[0]["pods"]), (&json!("Lost"), &json!(3)));
        assert_eq!((&rows[1]["state"], &rows[1]["leader"]), (&json!("Unknown"), &json!(true)));
        assert_eq!((&rows[2]["state"], &rows[2]["pid"]), (&json!("Stopped"), &Value::Null));
    }
}
