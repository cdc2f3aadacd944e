//! A deployment's status: counts, the conditions Available and Progressing, and the progress deadline.
//!
//! Pure. Reasons and messages are Kubernetes', because `kubectl rollout status` and people read them.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rollout::{desired, max_unavailable, replicas};

pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";
pub const REPLICA_FAILURE: &str = "ReplicaFailure";
pub const NEW_REPLICA_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub const PAUSED: &str = "DeploymentPaused";

pub fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_deref()?.iter().find(|condition| condition.type_ == type_)
}

/// Replaces the condition of the same type, unless status and reason are as before. The time of transition stays when
/// only the reason changes.
pub fn set_condition(
    status: &mut DeploymentStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let mut since = Time(now);
    if let Some(at) = conditions.iter().position(|condition| condition.type_ == type_) {
        let old = &conditions[at];
        if old.status == value && old.reason.as_deref() == Some(reason) {
            return;
        }
        if old.status == value {
            since = old.last_transition_time.clone().unwrap_or(since);
        }
        conditions.remove(at);
    }
    conditions.push(DeploymentCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(since),
    });
}

fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

fn progress_deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

pub fn has_progress_deadline(deployment: &Deployment) -> bool {
    progress_deadline(deployment).is_some()
}

fn sum(sets: &[&ReplicaSet], count: impl Fn(&ReplicaSet) -> Option<i32>) -> i32 {
    sets.iter().map(|set| count(set).unwrap_or(0)).sum()
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn actual(set: &ReplicaSet) -> Option<i32> {
    set.status.as_ref().map(|status| status.replicas)
}

/// Counts, and the condition Available; the other conditions are taken over.
pub fn counted(
    deployment: &Deployment,
    sets: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let available_replicas = sum(sets, |set| Some(available(set)));
    let unavailable = (sum(sets, |set| Some(replicas(set))) - available_replicas).max(0);
    let some = |count: i32| (count > 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(sets, actual)),
        updated_replicas: some(new.and_then(actual).unwrap_or(0)),
        ready_replicas: some(sum(sets, |set| set.status.as_ref()?.ready_replicas)),
        available_replicas: some(available_replicas),
        unavailable_replicas: some(unavailable),
        terminating_replicas: Some(sum(sets, |set| set.status.as_ref()?.terminating_replicas)),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    if available_replicas >= desired(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".to_owned();
        set_condition(&mut status, AVAILABLE, "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        set_condition(&mut status, AVAILABLE, "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = desired(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let updated = |status: &DeploymentStatus| status.updated_replicas.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - updated(status);
    updated(new) > updated(old)
        || outdated(new) < outdated(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

/// When the rollout counts as stuck; `None` when it is over, has no deadline, or is known to be stuck.
fn stuck_at(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let deadline = progress_deadline(deployment)?;
    let condition = condition(status, PROGRESSING)?;
    if matches!(condition.reason.as_deref(), Some(NEW_REPLICA_SET_AVAILABLE | TIMED_OUT)) {
        return None;
    }
    condition.last_update_time.as_ref()?.0.checked_add(deadline).ok()
}

/// The status after a pass of a rollout. `deployment.status` is what was known before, with the conditions that the pass
/// itself set.
pub fn after_rollout(
    deployment: &Deployment,
    sets: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counted(deployment, sets, new, now);
    let old = deployment.status.clone().unwrap_or_default();
    let subject = match new {
        Some(set) => format!("ReplicaSet \"{}\"", set.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let before = condition(&old, PROGRESSING).cloned();
    let reason = before.as_ref().and_then(|condition| condition.reason.as_deref());
    if !has_progress_deadline(deployment) {
        remove_condition(&mut status, PROGRESSING);
    } else if status.replicas == status.updated_replicas && reason == Some(NEW_REPLICA_SET_AVAILABLE) {
        // The rollout is over; pods that fail later are no lack of progress.
    } else if is_complete(deployment, &status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(&mut status, PROGRESSING, "True", NEW_REPLICA_SET_AVAILABLE, message, now);
    } else if has_progressed(&old, &status) {
        remove_condition(&mut status, PROGRESSING);
        let message = format!("{subject} is progressing.");
        set_condition(&mut status, PROGRESSING, "True", "ReplicaSetUpdated", message, now);
        let conditions = status.conditions.get_or_insert_default();
        if let (Some(before), Some(fresh)) = (before.filter(|before| before.status == "True"), conditions.last_mut()) {
            fresh.last_transition_time = before.last_transition_time;
        }
    } else if reason == Some(TIMED_OUT) || stuck_at(deployment, &old).is_some_and(|at| at < now) {
        let message = format!("{subject} has timed out progressing.");
        set_condition(&mut status, PROGRESSING, "False", TIMED_OUT, message, now);
    }
    adopt_replica_failure(&mut status, sets, new, now);
    status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
    status
}

/// A failure of the new set, else of any, is the deployment's.
fn adopt_replica_failure(
    status: &mut DeploymentStatus,
    sets: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) {
    let failure_of = |set: &&ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_deref()?;
        conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE).cloned()
    };
    match new.as_ref().and_then(failure_of).or_else(|| sets.iter().find_map(failure_of)) {
        Some(failure) => {
            let (reason, message) = (failure.reason.unwrap_or_default(), failure.message.unwrap_or_default());
            set_condition(status, REPLICA_FAILURE, &failure.status, &reason, message, now);
        }
        None => remove_condition(status, REPLICA_FAILURE),
    }
}

/// When to look again without an event, so that the deadline is noticed.
pub fn look_again_at(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    if is_complete(deployment, status) {
        return None;
    }
    // Times are stored in whole seconds, and "after" is strict.
    stuck_at(deployment, status)?.checked_add(SignedDuration::from_secs(1)).ok()
}
