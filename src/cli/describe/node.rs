//! The page of a node: what it is, what runs on it, how much of it is asked for.

use jiff::Timestamp;
use serde_json::Value;

use super::page::{Page, labels};
use crate::cli::text::{self, NONE};

const ROLE_LABEL: &str = "node-role.kubernetes.io/";

/// A node's page.
pub fn page(node: &Value, pods: &[Value], lease: Option<&Value>, now: Timestamp) -> String {
    let mut page = Page::default();
    page.field(0, "Name", text::name(node));
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix(ROLE_LABEL))
        .collect();
    roles.sort_unstable();
    page.field(0, "Roles", if roles.is_empty() { NONE.to_owned() } else { roles.join(",") });
    labels(&mut page, node);
    page.field(0, "CreationTimestamp", text::long_time(&node["metadata"]["creationTimestamp"]));
    let taints: Vec<String> = text::list_at(node, "/spec/taints")
        .iter()
        .map(|t| match text::str_at(t, "/value") {
            "" => format!("{}:{}", text::str_at(t, "/key"), text::str_at(t, "/effect")),
            value => format!("{}={value}:{}", text::str_at(t, "/key"), text::str_at(t, "/effect")),
        })
        .collect();
    page.list(0, "Taints", &taints);
    page.field(0, "Unschedulable", (node["spec"]["unschedulable"] == true).to_string());
    if let Some(lease) = lease {
        page.line(0, "Lease:");
        page.field(1, "HolderIdentity", text::str_at(lease, "/spec/holderIdentity"));
        page.field(1, "AcquireTime", text::long_time(&lease["spec"]["acquireTime"]));
        page.field(1, "RenewTime", text::long_time(&lease["spec"]["renewTime"]));
    }
    page.line(0, "Conditions:");
    page.row(1, ["Type", "Status", "LastHeartbeatTime", "LastTransitionTime", "Reason", "Message"]);
    page.row(1, ["----", "------", "-----------------", "------------------", "------", "-------"]);
    for c in text::list_at(node, "/status/conditions") {
        page.row(
            1,
            [
                text::str_at(c, "/type").to_owned(),
                text::str_at(c, "/status").to_owned(),
                text::long_time(&c["lastHeartbeatTime"]),
                text::long_time(&c["lastTransitionTime"]),
                text::str_at(c, "/reason").to_owned(),
                text::str_at(c, "/message").to_owned(),
            ],
        );
    }
    page.line(0, "Addresses:");
    for a in text::list_at(node, "/status/addresses") {
        page.field(1, text::str_at(a, "/type"), text::str_at(a, "/address"));
    }
    for (title, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        page.line(0, format!("{title}:"));
        for pair in text::pairs(&node["status"][field], "=") {
            let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
            page.field(1, name, value);
        }
    }
    page.line(0, "System Info:");
    for (title, field) in [
        ("Machine ID", "machineID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
    ] {
        page.field(1, title, node["status"]["nodeInfo"][field].as_str().unwrap_or_default());
    }
    let pods: Vec<&Value> =
        pods.iter().filter(|p| !matches!(text::str_at(p, "/status/phase"), "Succeeded" | "Failed")).collect();
    page.line(0, format!("Non-terminated Pods: ({} in total)", pods.len()));
    page.row(1, ["Namespace", "Name", "CPU Requests", "CPU Limits", "Memory Requests", "Memory Limits", "Age"]);
    page.row(1, ["---------", "----", "------------", "----------", "---------------", "-------------", "---"]);
    let capacity = |resource: &str| quantity(text::str_at(&node["status"]["allocatable"], &format!("/{resource}")));
    let share = |amount: f64, resource: &str| {
        let all = capacity(resource);
        let percent = if all > 0.0 { amount / all * 100.0 } else { 0.0 };
        format!("{} ({percent:.0}%)", show(amount, resource))
    };
    let mut totals = [0.0; 4];
    for pod in &pods {
        let mut cells = vec![text::namespace(pod).to_owned(), text::name(pod).to_owned()];
        for (i, (resource, what)) in
            [("cpu", "requests"), ("cpu", "limits"), ("memory", "requests"), ("memory", "limits")].iter().enumerate()
        {
            let amount = of_pod(pod, resource, what);
            totals[i] += amount;
            cells.push(share(amount, resource));
        }
        cells.push(text::age(&pod["metadata"]["creationTimestamp"], now));
        page.row(1, cells);
    }
    page.line(0, "Allocated resources:");
    page.row(1, ["Resource", "Requests", "Limits"]);
    page.row(1, ["--------", "--------", "------"]);
    page.row(1, ["cpu".to_owned(), share(totals[0], "cpu"), share(totals[1], "cpu")]);
    page.row(1, ["memory".to_owned(), share(totals[2], "memory"), share(totals[3], "memory")]);
    page.finish()
}

/// The sum over the containers of a pod.
fn of_pod(pod: &Value, resource: &str, what: &str) -> f64 {
    text::list_at(pod, "/spec/containers")
        .iter()
        .map(|c| quantity(text::str_at(c, &format!("/resources/{what}/{resource}"))))
        .sum()
}

/// A Kubernetes quantity as a number, for people: what cannot be read is 0.
fn quantity(text: &str) -> f64 {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    for (suffix, factor) in SUFFIXES {
        if let Some(number) = text.strip_suffix(suffix) {
            return number.parse::<f64>().unwrap_or(0.0) * factor;
        }
    }
    text.parse().unwrap_or(0.0)
}

fn show(amount: f64, resource: &str) -> String {
    let whole = |n: f64| format!("{n:.0}");
    match resource {
        _ if amount == 0.0 => "0".into(),
        "cpu" if (amount * 1000.0).round() % 1000.0 == 0.0 => whole(amount),
        "cpu" => format!("{}m", whole(amount * 1000.0)),
        _ if amount % 1_073_741_824.0 == 0.0 => format!("{}Gi", whole(amount / 1_073_741_824.0)),
        _ if amount % 1_048_576.0 == 0.0 => format!("{}Mi", whole(amount / 1_048_576.0)),
        _ => whole(amount),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_summed_and_set_beside_what_there_is() {
        let pod = |phase: &str| {
            json!({"metadata": {"name": "a", "namespace": "x"}, "status": {"phase": phase}, "spec": {"containers": [
                {"resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "1"}}}]}})
        };
        let node = json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}});
        let now: Timestamp = "2026-11-23T02:48:50Z".parse().expect("time");
        let page = page(&node, &[pod("Running"), pod("Running"), pod("Succeeded")], None, now);
        for part in [
            "Roles:              control-plane\n",
            "(2 in total)",
            "250m (12%)",
            "cpu       500m (25%)   2 (100%)",
            "memory    128Mi (12%)  0 (0%)",
        ] {
            assert!(page.contains(part), "missing {part:?} in\n{page}");
        }
    }
}
