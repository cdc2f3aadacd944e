//! What a ReplicaSet needs: pods to claim, to create, to delete, and its status.
//!
//! ```text
//!   ReplicaSet, pods --plan--> claim, release, create n, delete [..]     (carried out by the reconciler)
//!   ReplicaSet, pods, how that went --status--> ReplicaSetStatus
//! ```
//!
//! Pure. Follows Kubernetes' replicaset controller. Called by the reconciler of this folder only.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::controllers::ownership::{Claim, Labels, claim, controller_reference};
use crate::controllers::pods;

/// Most pods that one pass creates or deletes for one ReplicaSet, as in Kubernetes.
pub const BURST_REPLICAS: usize = 500;
/// Size of the first batch of creations; each batch that succeeds whole doubles the next. Kubernetes starts with one to
/// spare an API server that will refuse; a refusal here costs no network, and the pods of a lost node must return at once.
pub const SLOW_START_INITIAL: usize = 16;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
    /// All pods that count as owned once `adopt` is done: what the status is made of.
    pub owned: Vec<Arc<Pod>>,
}

/// `candidates`: the pods that this set controls, and the pods of its namespace that nobody does.
/// `related`: the pods of all sets of the same deployment, for choosing what to delete.
pub fn plan(set: &ReplicaSet, candidates: &[Arc<Pod>], related: &[Arc<Pod>]) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    for pod in candidates {
        match claim(&set.metadata, &spec.selector, &pod.metadata) {
            Claim::Own => plan.owned.push(Arc::clone(pod)),
            Claim::Release => plan.release.push(Arc::clone(pod)),
            Claim::Adopt if pods::is_active(pod) => {
                plan.adopt.push(Arc::clone(pod));
                plan.owned.push(Arc::clone(pod));
            }
            Claim::Adopt | Claim::Ignore => {}
        }
    }
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let active: Vec<Arc<Pod>> = plan.owned.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
    let wanted = desired(set);
    if active.len() < wanted {
        plan.create = (wanted - active.len()).min(BURST_REPLICAS);
    } else if active.len() > wanted {
        let surplus = (active.len() - wanted).min(BURST_REPLICAS);
        plan.delete = pods::to_delete(&active, related, surplus);
    }
    plan
}

pub fn desired(set: &ReplicaSet) -> usize {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

/// A new pod of the set, from its template.
pub fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference("apps/v1", "ReplicaSet", &set.metadata)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Sizes of the batches in which `count` pods are created.
pub fn batches(count: usize) -> impl Iterator<Item = usize> {
    let mut left = count;
    let mut size = SLOW_START_INITIAL;
    std::iter::from_fn(move || {
        let batch = size.min(left);
        left -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

/// Why pods could not be created or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    pub message: String,
}

/// The status as it should be, and when it changes next without any event (a pod becomes available).
pub fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Timestamp>) {
    let spec = set.spec.as_ref();
    let min_ready_seconds = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let template = spec.and_then(|spec| spec.template.as_ref());
    let template_labels = template.and_then(|template| template.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let (mut replicas, mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut next: Option<Timestamp> = None;
    for pod in owned {
        if !pods::is_active(pod) {
            terminating += i32::from(pods::is_terminating(pod) && !pods::is_finished(pod));
            continue;
        }
        replicas += 1;
        labelled += i32::from(has_labels(pod, &template_labels));
        ready += i32::from(pods::is_ready(pod));
        match pods::available_at(pod, min_ready_seconds) {
            Some(at) if at <= now => available += 1,
            Some(at) => next = Some(next.map_or(at, |soonest| soonest.min(at))),
            None => {}
        }
    }
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    match failure {
        Some(failure) if conditions.iter().all(|condition| condition.type_ != "ReplicaFailure") => {
            conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(failure.reason.to_owned()),
                message: Some(failure.message.clone()),
                last_transition_time: Some(Time(now)),
            });
        }
        Some(_) => {}
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
    }
    let counted = |count: i32| (count > 0).then_some(count);
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: counted(labelled),
        ready_replicas: counted(ready),
        available_replicas: counted(available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    };
    (status, next)
}

fn has_labels(pod: &Pod, wanted: &Labels) -> bool {
    let labels = pod.metadata.labels.as_ref();
    wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        let value = json!({
            "metadata": {"name": "r", "namespace": "default", "uid": "rs", "generation": 3},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "x"}},
                "template": {"metadata": {"labels": {"app": "x", "tier": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        });
        serde_json::from_value(value).unwrap()
    }

    fn pod(uid: &str, labels: Value, owner: Option<&str>) -> Pod {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let value = json!({
            "metadata": {"name": uid, "uid": uid, "labels": labels, "ownerReferences": owners},
            "spec": {"containers": [], "nodeName": "n"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        serde_json::from_value(value).unwrap()
    }

    fn mine(uid: &str) -> Arc<Pod> {
        Arc::new(pod(uid, json!({"app": "x", "tier": "web"}), Some("rs")))
    }

    fn ended(uid: &str, phase: &str) -> Arc<Pod> {
        let mut pod = (*mine(uid)).clone();
        pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
        Arc::new(pod)
    }

    fn terminating(uid: &str) -> Arc<Pod> {
        let mut pod = (*mine(uid)).clone();
        pod.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        Arc::new(pod)
    }

    #[test]
    fn missing_pods_are_created_and_surplus_deleted() {
        assert_eq!(plan(&set(3), &[mine("a")], &[]).create, 2);
        assert_eq!(plan(&set(1), &[mine("a"), mine("b"), mine("c")], &[]).delete.len(), 2);
        let settled = plan(&set(1), &[mine("a")], &[]);
        assert_eq!((settled.create, settled.delete.len()), (0, 0));
    }

    #[test]
    fn ended_and_terminating_pods_do_not_count() {
        let pods = [mine("a"), ended("b", "Failed"), ended("c", "Succeeded"), terminating("d")];
        let plan = plan(&set(3), &pods, &[]);
        assert_eq!((plan.create, plan.delete.len()), (2, 0));
        let (status, _) = status(&set(3), &plan.owned, None, Timestamp::now());
        assert_eq!((status.replicas, status.ready_replicas, status.terminating_replicas), (1, Some(1), Some(1)));
        assert_eq!(status.observed_generation, Some(3));
    }

    #[test]
    fn an_orphan_is_adopted_and_counts_and_a_relabelled_pod_is_released_and_does_not() {
        let orphan = Arc::new(pod("orphan", json!({"app": "x"}), None));
        let relabelled = Arc::new(pod("gone", json!({"app": "y"}), Some("rs")));
        let foreign = Arc::new(pod("foreign", json!({"app": "x"}), Some("other")));
        let plan = plan(&set(3), &[orphan.clone(), relabelled.clone(), foreign], &[]);
        assert_eq!(
            (plan.adopt.as_slice(), plan.release.as_slice(), plan.create),
            (&[orphan][..], &[relabelled][..], 2)
        );
        let (status, _) = status(&set(3), &plan.owned, None, Timestamp::now());
        assert_eq!((status.replicas, status.fully_labeled_replicas), (1, None));
    }

    #[test]
    fn a_set_that_is_being_deleted_neither_creates_nor_deletes() {
        let mut set = set(3);
        set.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(plan(&set, &[], &[]), Plan::default());
        set.spec.as_mut().unwrap().replicas = Some(0);
        assert!(plan(&set, &[mine("a")], &[]).delete.is_empty());
    }

    #[test]
    fn a_new_pod_is_named_after_the_set_and_owned_by_it() {
        let pod = new_pod(&set(1));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("r-"));
        let owner = &pod.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.uid.as_str(), owner.controller, owner.block_owner_deletion), ("rs", Some(true), Some(true)));
        assert_eq!(pod.metadata.labels.unwrap()["tier"], "web");
    }

    #[test]
    fn a_failure_becomes_a_condition_and_goes_when_it_is_over() {
        let failure = Failure { reason: "FailedCreate", message: "no".to_owned() };
        let mut set = set(1);
        let (failed, _) = status(&set, &[], Some(&failure), Timestamp::now());
        let conditions = failed.conditions.clone().unwrap();
        assert_eq!(
            (conditions[0].type_.as_str(), conditions[0].reason.as_deref()),
            ("ReplicaFailure", Some("FailedCreate"))
        );
        set.status = Some(failed);
        assert_eq!(status(&set, &[], None, Timestamp::now()).0.conditions, None);
    }

    #[test]
    fn a_pod_that_is_ready_but_not_long_enough_is_looked_at_again_in_time() {
        let mut set = set(1);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (early, next) = status(&set, &[mine("a")], None, at("2026-01-01T00:00:03Z"));
        assert_eq!((early.available_replicas, next), (None, Some(at("2026-01-01T00:00:10Z"))));
        let (late, next) = status(&set, &[mine("a")], None, at("2026-01-01T00:00:10Z"));
        assert_eq!((late.available_replicas, next), (Some(1), None));
    }

    #[test]
    fn batches_double_and_add_up() {
        assert_eq!(batches(100).collect::<Vec<_>>(), [16, 32, 52]);
        assert_eq!(batches(3).collect::<Vec<_>>(), [3]);
        assert_eq!(batches(0).count(), 0);
    }

    proptest! {
        /// From any mixture of pods, carrying out plans until there is nothing to do leaves exactly the wanted number.
        #[test]
        fn it_converges_from_any_state(
            replicas in 0i32..30,
            kinds in prop::collection::vec(0u8..6, 0..40),
        ) {
            let set = set(replicas);
            let mut pods: Vec<Arc<Pod>> = kinds.iter().enumerate().map(|(n, kind)| {
                let uid = format!("p{n}");
                match kind {
                    0 => ended(&uid, "Failed"),
                    1 => terminating(&uid),
                    2 => Arc::new(pod(&uid, json!({"app": "x"}), None)),
                    3 => Arc::new(pod(&uid, json!({"app": "y"}), Some("rs"))),
                    4 => Arc::new(pod(&uid, json!({"app": "x"}), Some("other"))),
                    _ => mine(&uid),
                }
            }).collect();
            let mut made = 0;
            for _ in 0..4 {
                let step = plan(&set, &pods, &pods);
                for pod in &step.delete {
                    pods.retain(|other| other.metadata.uid != pod.metadata.uid);
                }
                for pod in &mut pods {
                    if step.adopt.contains(pod) {
                        let mut adopted = (**pod).clone();
                        adopted.metadata.owner_references = new_pod(&set).metadata.owner_references;
                        *pod = Arc::new(adopted);
                    } else if step.release.contains(pod) {
                        let mut released = (**pod).clone();
                        released.metadata.owner_references = None;
                        *pod = Arc::new(released);
                    }
                }
                for _ in 0..step.create {
                    made += 1;
                    pods.push(mine(&format!("new{made}")));
                }
            }
            let settled = plan(&set, &pods, &pods);
            prop_assert_eq!((settled.create, settled.delete.len(), settled.adopt.len(), settled.release.len()), (0, 0, 0, 0));
            let active = settled.owned.iter().filter(|pod| pods::is_active(pod)).count();
            prop_assert_eq!(active, replicas as usize);
        }
    }
}
