//! What a lost node means for the Node object and its pods, and which pods a NoExecute taint drives away.
//!
//! Pure. Whether a node is lost is decided elsewhere, from its lease; here it is a fact. Taints, tolerations and
//! conditions follow Kubernetes, except that a pod without a toleration for an unreachable node is replaced at once:
//! a node is declared lost only when it is fenced.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::controllers::pods;
use crate::scheduler::requests::Tolerates;

pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const NO_SCHEDULE: &str = "NoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

/// Conditions that nobody can vouch for once a node is lost.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The node as it is written when it is declared lost. `None` when it already says so.
pub fn marked_lost(node: &Node, now: Timestamp) -> Option<Node> {
    let mut marked = node.clone();
    let taints = marked.spec.get_or_insert_default().taints.get_or_insert_default();
    for effect in [NO_SCHEDULE, NO_EXECUTE] {
        if !taints.iter().any(|taint| taint.key == UNREACHABLE && taint.effect == effect) {
            taints.push(Taint {
                key: UNREACHABLE.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    let conditions = marked.status.get_or_insert_default().conditions.get_or_insert_default();
    for type_ in CONDITIONS {
        let known = conditions.iter_mut().find(|condition| condition.type_ == type_);
        match known {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Node stopped renewing its lease.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            None if type_ == "Ready" => conditions.push(NodeCondition {
                type_: type_.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Node never posted its status.".to_owned()),
                last_heartbeat_time: None,
                last_transition_time: Some(Time(now)),
            }),
            None => {}
        }
    }
    (marked != *node).then_some(marked)
}

/// The node as it is written when it is back. `None` when nothing says that it was lost.
pub fn marked_back(node: &Node, now: Timestamp) -> Option<Node> {
    let mut marked = node.clone();
    if let Some(spec) = &mut marked.spec
        && let Some(taints) = &mut spec.taints
    {
        taints.retain(|taint| taint.key != UNREACHABLE);
        if taints.is_empty() {
            spec.taints = None;
        }
    }
    let conditions = marked.status.as_mut().and_then(|status| status.conditions.as_mut());
    for condition in conditions.into_iter().flatten() {
        if condition.status != "Unknown" || !CONDITIONS.contains(&condition.type_.as_str()) {
            continue;
        }
        let ready = condition.type_ == "Ready";
        condition.status = if ready { "True" } else { "False" }.to_owned();
        condition.reason = Some(if ready { "NodeReady" } else { "NodeHasSufficientResources" }.to_owned());
        condition.message = Some("Node renews its lease.".to_owned());
        condition.last_transition_time = Some(Time(now));
    }
    (marked != *node).then_some(marked)
}

/// Pods to delete now, and when the next will be due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evictions {
    pub now: Vec<Arc<Pod>>,
    pub next_at: Option<Timestamp>,
}

/// Which pods of a lost node go now. Those that were terminating go too: their node cannot confirm any more.
pub fn lost_pods(node: &Node, on_node: &[Arc<Pod>], now: Timestamp) -> Evictions {
    let mut evictions = evictions(node, on_node, |_| now, now);
    let terminating = on_node.iter().filter(|pod| pods::is_terminating(pod));
    evictions.now.extend(terminating.cloned());
    evictions
}

/// Which pods the node's NoExecute taints drive away. `since` tells when a taint without `timeAdded` was first seen.
pub fn evictions(node: &Node, on_node: &[Arc<Pod>], since: impl Fn(&Taint) -> Timestamp, now: Timestamp) -> Evictions {
    let mut evictions = Evictions::default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let driving: Vec<(&Taint, Timestamp)> = taints
        .iter()
        .filter(|taint| taint.effect == NO_EXECUTE)
        .map(|taint| (taint, taint.time_added.as_ref().map_or_else(|| since(taint), |time| time.0)))
        .collect();
    if driving.is_empty() {
        return evictions;
    }
    for pod in on_node.iter().filter(|pod| pods::is_active(pod)) {
        match due(pod, &driving) {
            Some(at) if at <= now => evictions.now.push(Arc::clone(pod)),
            Some(at) => evictions.next_at = Some(evictions.next_at.map_or(at, |soonest| soonest.min(at))),
            None => {}
        }
    }
    evictions
}

/// When the pod must go: at once for a taint that it does not tolerate, else after the shortest `tolerationSeconds` of
/// the tolerations that apply, else never.
fn due(pod: &Pod, taints: &[(&Taint, Timestamp)]) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut due: Option<Timestamp> = None;
    for (taint, since) in taints {
        let value = taint.value.as_deref().unwrap_or_default();
        let matching: Vec<_> = tolerations
            .iter()
            .filter(|toleration| Tolerates::of(toleration).covers(&taint.key, value, NO_EXECUTE))
            .collect();
        let at = if matching.is_empty() {
            Some(*since)
        } else {
            let shortest = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min();
            // Longer than time itself is never.
            shortest.and_then(|seconds| since.checked_add(SignedDuration::from_secs(seconds.max(0))).ok())
        };
        due = match (due, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    due
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(taints: Value) -> Node {
        let value = json!({
            "metadata": {"name": "n"},
            "spec": {"taints": taints},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "reason": "NodeReady"},
                {"type": "DiskPressure", "status": "False"},
            ]},
        });
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, tolerations: Value) -> Arc<Pod> {
        let value = json!({
            "metadata": {"name": name, "uid": name},
            "spec": {"nodeName": "n", "containers": [], "tolerations": tolerations},
            "status": {"phase": "Running"},
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect()
    }

    #[test]
    fn a_lost_node_is_tainted_and_unknown_and_comes_back_as_it_was() {
        let before = node(json!([{"key": "own", "effect": "NoSchedule"}]));
        let lost = marked_lost(&before, at(0)).unwrap();
        let taints = lost.spec.as_ref().unwrap().taints.as_ref().unwrap();
        assert_eq!(taints.len(), 3);
        let conditions = lost.status.as_ref().unwrap().conditions.as_ref().unwrap();
        assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
        assert_eq!(marked_lost(&lost, at(1)), None, "said once");
        let back = marked_back(&lost, at(2)).unwrap();
        assert_eq!(back.spec, before.spec);
        let status: Vec<_> = back
            .status
            .as_ref()
            .unwrap()
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .map(|condition| condition.status.as_str())
            .collect();
        assert_eq!(status, ["True", "False"]);
        assert_eq!(marked_back(&back, at(3)), None);
    }

    #[test]
    fn pods_of_a_lost_node_go_at_once_unless_they_ask_for_time() {
        let lost = marked_lost(&node(json!([])), at(0)).unwrap();
        let patient =
            json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}]);
        let forever = json!([{"key": UNREACHABLE, "operator": "Exists"}]);
        let other = json!([{"key": "other", "operator": "Exists"}]);
        let mut terminating = (*pod("terminating", forever.clone())).clone();
        terminating.metadata.deletion_timestamp = Some(Time(at(-5)));
        let mut ended = (*pod("ended", json!([]))).clone();
        ended.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        let all = [
            pod("plain", json!([])),
            pod("patient", patient),
            pod("forever", forever),
            pod("other", other),
            Arc::new(terminating),
            Arc::new(ended),
        ];
        let first = lost_pods(&lost, &all, at(0));
        assert_eq!(names(&first.now), ["plain", "other", "terminating"]);
        assert_eq!(first.next_at, Some(at(30)));
        assert_eq!(names(&lost_pods(&lost, &all[1..3], at(30)).now), ["patient"]);
    }

    #[test]
    fn a_taint_of_a_user_drives_away_what_does_not_tolerate_it() {
        let tainted =
            node(json!([{"key": "k", "value": "v", "effect": "NoExecute"}, {"key": "s", "effect": "NoSchedule"}]));
        let all = [
            pod("plain", json!([])),
            pod("tolerates", json!([{"key": "k", "value": "v", "effect": "NoExecute"}])),
            pod(
                "short",
                json!([
                    {"key": "k", "operator": "Exists", "tolerationSeconds": 60},
                    {"operator": "Exists", "tolerationSeconds": 10},
                ]),
            ),
        ];
        let evicted = evictions(&tainted, &all, |_| at(0), at(5));
        assert_eq!((names(&evicted.now), evicted.next_at), (vec!["plain"], Some(at(10))));
        assert_eq!(evictions(&node(json!([])), &all, |_| at(0), at(5)), Evictions::default());
    }
}
