//! The pages of Deployments and ReplicaSets.

use serde_json::Value;

use super::page::{Page, controller, head, labels};
use super::pod::pod_template;
use crate::cli::logs::selector_text;
use crate::cli::rollout::REVISION;
use crate::cli::text::{self, NONE};

/// A Deployment's page. `sets` are the ReplicaSets of its namespace.
pub fn deployment(d: &Value, sets: &[Value]) -> String {
    let mut page = Page::default();
    head(&mut page, d);
    page.field(0, "CreationTimestamp", text::long_time(&d["metadata"]["creationTimestamp"]));
    labels(&mut page, d);
    page.field(0, "Selector", selector_text(&d["spec"]["selector"]).unwrap_or_else(|| NONE.into()));
    let status = |field: &str| text::int_at(&d["status"], &format!("/{field}"));
    page.field(
        0,
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            d["spec"]["replicas"].as_i64().unwrap_or(1),
            status("updatedReplicas"),
            status("replicas"),
            status("availableReplicas"),
            status("unavailableReplicas"),
        ),
    );
    page.field(0, "StrategyType", text::str_at(d, "/spec/strategy/type"));
    page.field(0, "MinReadySeconds", text::int_at(d, "/spec/minReadySeconds").to_string());
    let rolling = &d["spec"]["strategy"]["rollingUpdate"];
    if rolling.is_object() {
        let (down, surge) = (text::scalar(&rolling["maxUnavailable"]), text::scalar(&rolling["maxSurge"]));
        page.field(0, "RollingUpdateStrategy", format!("{down} max unavailable, {surge} max surge"));
    }
    if d["spec"]["paused"] == true {
        page.field(0, "Paused", "true");
    }
    let mut out = page.finish();
    out.push_str(&pod_template(&d["spec"]["template"]));
    let mut page = Page::default();
    let conditions = text::list_at(d, "/status/conditions");
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.row(1, ["Type", "Status", "Reason"]);
        page.row(1, ["----", "------", "------"]);
        for c in conditions {
            page.row(1, [text::str_at(c, "/type"), text::str_at(c, "/status"), text::str_at(c, "/reason")]);
        }
    }
    let uid = text::str_at(d, "/metadata/uid");
    let current = d["metadata"]["annotations"][REVISION].as_str();
    let owned = sets
        .iter()
        .filter(|s| text::list_at(s, "/metadata/ownerReferences").iter().any(|o| text::str_at(o, "/uid") == uid));
    let (new, old): (Vec<&Value>, Vec<&Value>) =
        owned.partition(|s| current.is_some() && s["metadata"]["annotations"][REVISION].as_str() == current);
    let shown = |sets: &[&Value]| {
        let sets: Vec<String> = sets
            .iter()
            .map(|s| {
                let (is, wanted) = (text::int_at(s, "/status/replicas"), text::int_at(s, "/spec/replicas"));
                format!("{} ({is}/{wanted} replicas created)", text::name(s))
            })
            .collect();
        if sets.is_empty() { NONE.to_owned() } else { sets.join(", ") }
    };
    page.field(0, "OldReplicaSets", shown(&old));
    page.field(0, "NewReplicaSet", shown(&new));
    out.push_str(&page.finish());
    out
}

/// A ReplicaSet's page. `pods` are those of its namespace.
pub fn replica_set(rs: &Value, pods: &[Value]) -> String {
    let mut page = Page::default();
    head(&mut page, rs);
    page.field(0, "Selector", selector_text(&rs["spec"]["selector"]).unwrap_or_else(|| NONE.into()));
    labels(&mut page, rs);
    if let Some(controller) = controller(rs) {
        page.field(0, "Controlled By", controller);
    }
    let (is, wanted) = (text::int_at(rs, "/status/replicas"), text::int_at(rs, "/spec/replicas"));
    page.field(0, "Replicas", format!("{is} current / {wanted} desired"));
    let uid = text::str_at(rs, "/metadata/uid");
    let count = |phase: &str| {
        pods.iter()
            .filter(|p| text::list_at(p, "/metadata/ownerReferences").iter().any(|o| text::str_at(o, "/uid") == uid))
            .filter(|p| text::str_at(p, "/status/phase") == phase)
            .count()
    };
    page.field(
        0,
        "Pods Status",
        format!(
            "{} Running / {} Waiting / {} Succeeded / {} Failed",
            count("Running"),
            count("Pending"),
            count("Succeeded"),
            count("Failed")
        ),
    );
    let mut out = page.finish();
    out.push_str(&pod_template(&rs["spec"]["template"]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployments_page_names_its_old_and_new_replica_sets() {
        let set = |name: &str, revision: &str, n: i64| {
            json!({"metadata": {"name": name, "annotations": {REVISION: revision}, "ownerReferences": [{"uid": "u"}]},
                "spec": {"replicas": n}, "status": {"replicas": n}})
        };
        let d = json!({"metadata": {"name": "web", "namespace": "x", "uid": "u", "annotations": {REVISION: "2"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}, "template": {"spec": {"containers": [{"name": "c"}]}}},
            "status": {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2,
                "conditions": [{"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}]}});
        let page = deployment(&d, &[set("web-1", "1", 0), set("web-2", "2", 2)]);
        for part in [
            "Replicas:               2 desired | 2 updated | 2 total | 2 available | 0 unavailable\n",
            "RollingUpdateStrategy:  25% max unavailable, 25% max surge\n",
            "Available  True    MinimumReplicasAvailable\n",
            "OldReplicaSets:  web-1 (0/0 replicas created)\n",
            "NewReplicaSet:   web-2 (2/2 replicas created)\n",
        ] {
            assert!(page.contains(part), "missing {part:?} in\n{page}");
        }
    }
}
