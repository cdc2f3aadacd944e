//! What controllers ask about a pod: is it active, ready, available, and which goes first when one must go.
//!
//! Pure. The rules and the order of deletion are those of Kubernetes' controllers.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub fn phase(pod: &Pod) -> &str {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.filter(|phase| !phase.is_empty()).unwrap_or("Pending")
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Counts as a replica: neither ended nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_deref()?.iter().find(|condition| condition.type_ == type_)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// When a ready pod counts as available: at once without `minReadySeconds`, else that long after it became ready.
/// `None` when it is not ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Timestamp::UNIX_EPOCH);
    }
    let since = ready_since(pod)?;
    since.checked_add(jiff::SignedDuration::from_secs(i64::from(min_ready_seconds))).ok()
}

pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// The `count` pods of `pods` that go first. `related` are all pods of the same workload, by which nodes are counted as
/// crowded.
pub fn to_delete(pods: &[Arc<Pod>], related: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| is_active(pod)) {
        if let Some(node) = node_name(pod) {
            *crowd.entry(node).or_default() += 1;
        }
    }
    let rank = |pod: &Pod| node_name(pod).and_then(|node| crowd.get(node)).copied().unwrap_or(0);
    let mut order: Vec<&Arc<Pod>> = pods.iter().collect();
    order.sort_by(|a, b| goes_before(a, rank(a), b, rank(b)));
    order.into_iter().take(count).cloned().collect()
}

/// Kubernetes' order: unassigned, pending, not ready, cheap to delete, on a crowded node, ready for less time, restarted
/// more often, younger.
fn goes_before(a: &Pod, rank_a: usize, b: &Pod, rank_b: usize) -> Ordering {
    let assigned = |pod: &Pod| node_name(pod).is_some();
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |pod: &Pod| -> i32 {
        let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(DELETION_COST));
        annotation.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
        statuses.unwrap_or_default().iter().map(|status| status.restart_count).max().unwrap_or(0)
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    // Without a time something is as young as can be.
    let younger_first = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
        (None, None) => Ordering::Equal,
        (None, _) => Ordering::Less,
        (_, None) => Ordering::Greater,
        (Some(a), Some(b)) => b.cmp(&a),
    };
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| {
            if is_ready(a) && is_ready(b) { younger_first(ready_since(a), ready_since(b)) } else { Ordering::Equal }
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| younger_first(created(a), created(b)))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, changes: &[(&str, Value)]) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "annotations": {}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {
                "phase": "Running",
                "containerStatuses": [],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}],
            },
        });
        for (path, change) in changes {
            let (parent, key) = path.rsplit_once('/').unwrap();
            match key.parse::<usize>() {
                Ok(at) => value.pointer_mut(parent).unwrap()[at] = change.clone(),
                Err(_) => value.pointer_mut(parent).unwrap()[key] = change.clone(),
            }
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn first(pods: &[Arc<Pod>], related: &[Arc<Pod>]) -> String {
        to_delete(pods, related, 1)[0].metadata.name.clone().unwrap()
    }

    #[test]
    fn each_rule_of_the_order_decides_when_all_before_it_are_equal() {
        let plain = pod("plain", &[]);
        let status = |restarts: i32| json!([{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": restarts}]);
        let rules = [
            pod("unassigned", &[("/spec/nodeName", Value::Null)]),
            pod("pending", &[("/status/phase", json!("Pending"))]),
            pod("not-ready", &[("/status/conditions/0/status", json!("False"))]),
            pod("cheap", &[("/metadata/annotations", json!({(DELETION_COST): "-5"}))]),
            pod("ready-for-less", &[("/status/conditions/0/lastTransitionTime", json!("2026-01-01T00:00:20Z"))]),
            pod("restarted", &[("/status/containerStatuses", status(3))]),
            pod("younger", &[("/metadata/creationTimestamp", json!("2026-01-01T00:00:05Z"))]),
        ];
        for pair in rules.windows(2) {
            let pods = [pair[1].clone(), plain.clone(), pair[0].clone()];
            let order: Vec<_> = to_delete(&pods, &[], 3).iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
            let expected = [&pair[0], &pair[1], &plain].map(|pod| pod.metadata.name.clone().unwrap());
            assert_eq!(order, expected);
        }
    }

    #[test]
    fn a_pod_on_a_crowded_node_goes_first() {
        let alone = pod("alone", &[("/spec/nodeName", json!("m"))]);
        let crowded = pod("crowded", &[]);
        let sibling = pod("sibling", &[]);
        let related = [alone.clone(), crowded.clone(), sibling];
        assert_eq!(first(&[alone, crowded], &related), "crowded");
    }

    #[test]
    fn a_pod_becomes_available_min_ready_seconds_after_it_is_ready() {
        let pod = pod("p", &[]);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(is_available(&pod, 0, at("2026-01-01T00:00:10Z")));
        assert!(!is_available(&pod, 5, at("2026-01-01T00:00:14Z")));
        assert!(is_available(&pod, 5, at("2026-01-01T00:00:15Z")));
    }
}
