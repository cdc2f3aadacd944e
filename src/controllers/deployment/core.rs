//! One pass over a deployment: which ReplicaSets to create, resize and delete, its status, and what to tell users.
//!
//! ```text
//!   Deployment, its ReplicaSets, their pods --plan--> Plan --(reconciler)--> store --events--> next pass
//! ```
//!
//! Pure. Follows Kubernetes' deployment controller: a pass never looks at its own results, it decides on a working copy,
//! and the next pass starts from what the store then says. Called by the reconciler of this folder only.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use super::rollout::{desired, is_recreate, max_surge, new_replicas, replicas};
use super::status::{
    PAUSED, PROGRESSING, TIMED_OUT, after_rollout, condition, counted, has_progress_deadline, is_complete,
    look_again_at, set_condition,
};
use super::template::{
    DESIRED_REPLICAS, REVISION, annotate_current, annotate_replicas, annotation, new_replica_set, replicas_annotation,
    revision, same_template,
};
use crate::controllers::ownership::{Claim, claim, controller_of};
use crate::controllers::pods;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub adopt: Vec<Arc<ReplicaSet>>,
    pub release: Vec<Arc<ReplicaSet>>,
    pub create: Option<ReplicaSet>,
    /// Sets with other replicas or annotations than the store has; `resourceVersion` guards them.
    pub update: Vec<ReplicaSet>,
    pub delete: Vec<Arc<ReplicaSet>>,
    /// The deployment's revision annotation, when it must change.
    pub revision: Option<String>,
    /// When it differs from what is stored.
    pub status: Option<DeploymentStatus>,
    /// Messages of ScalingReplicaSet events, in order, for when all of the above is done.
    pub scaled: Vec<String>,
    /// When to look again although nothing happens.
    pub again_at: Option<Timestamp>,
}

impl Plan {
    /// Nothing to write.
    pub fn is_settled(&self) -> bool {
        Plan { again_at: None, ..self.clone() } == Plan::default()
    }
}

/// A working copy of a deployment and its sets.
pub(super) struct Pass<'a> {
    pub deployment: Deployment,
    pub members: Vec<Member>,
    /// Index of the set for the current template.
    pub new: Option<usize>,
    scaled: Vec<String>,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
}

#[derive(Debug)]
pub(super) struct Member {
    pub set: ReplicaSet,
    /// Not yet in the store.
    pub fresh: bool,
    pub changed: bool,
}

/// `candidates`: the sets that this deployment controls, and those of its namespace that nobody does. `pods`: the pods
/// that those sets control (only Recreate looks at them).
pub fn plan(deployment: &Deployment, candidates: &[Arc<ReplicaSet>], pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &deployment.spec else { return plan };
    let mut owned: Vec<Arc<ReplicaSet>> = Vec::new();
    for set in candidates {
        match claim(&deployment.metadata, &spec.selector, &set.metadata) {
            Claim::Own => owned.push(Arc::clone(set)),
            Claim::Adopt => {
                plan.adopt.push(Arc::clone(set));
                owned.push(Arc::clone(set));
            }
            Claim::Release => plan.release.push(Arc::clone(set)),
            Claim::Ignore => {}
        }
    }
    if !plan.adopt.is_empty() || !plan.release.is_empty() {
        // What follows writes to these sets; their new versions come back as events and start the next pass.
        return plan;
    }
    let members = owned.iter().map(|set| Member { set: (**set).clone(), fresh: false, changed: false }).collect();
    let mut pass = Pass { deployment: deployment.clone(), members, new: None, scaled: Vec::new(), pods, now };
    pass.new = pass.find_new();
    let status = if deployment.metadata.deletion_timestamp.is_some() {
        pass.counted()
    } else {
        pass.note_pause();
        if spec.paused == Some(true) || pass.is_scaling() {
            pass.sync_revision(false);
            pass.scale_to_desired();
            if spec.paused == Some(true) {
                plan.delete = pass.surplus_history(&owned);
            }
            pass.counted()
        } else {
            let complete_before = deployment.status.as_ref().is_some_and(|status| is_complete(deployment, status));
            if is_recreate(deployment) {
                pass.recreate();
            } else {
                pass.sync_revision(true);
                pass.roll();
            }
            if complete_before && pass.scaled.is_empty() {
                plan.delete = pass.surplus_history(&owned);
            }
            pass.after_rollout()
        }
    };
    plan.again_at = look_again_at(deployment, &status);
    let revision = annotation(&pass.deployment.metadata, REVISION);
    if revision != annotation(&deployment.metadata, REVISION) {
        plan.revision = revision.map(str::to_owned);
    }
    if deployment.status.as_ref() != Some(&status) {
        plan.status = Some(status);
    }
    plan.scaled = pass.scaled;
    for member in pass.members {
        if member.fresh {
            plan.create = Some(member.set);
        } else if member.changed {
            plan.update.push(member.set);
        }
    }
    plan
}

/// The status that makes the next pass choose another name: the one it chose is taken by a set of another template.
pub fn after_collision(deployment: &Deployment) -> DeploymentStatus {
    let mut status = deployment.status.clone().unwrap_or_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    status
}

/// The status that says that the new ReplicaSet was refused.
pub fn after_refusal(deployment: &Deployment, why: &str, now: Timestamp) -> Option<DeploymentStatus> {
    let mut status = deployment.status.clone().unwrap_or_default();
    if !has_progress_deadline(deployment) {
        return None;
    }
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let message = format!("Failed to create new replica set \"{name}\": {why}");
    set_condition(&mut status, PROGRESSING, "False", "ReplicaSetCreateError", message, now);
    (deployment.status.as_ref() != Some(&status)).then_some(status)
}

impl Pass<'_> {
    /// The oldest set of the current template.
    fn find_new(&self) -> Option<usize> {
        let template = &self.deployment.spec.as_ref()?.template;
        let same = |at: &usize| {
            let own = self.members[*at].set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            own.is_some_and(|own| same_template(own, template))
        };
        (0..self.members.len()).filter(same).min_by_key(|&at| self.member_age(at))
    }

    /// Orders sets from the oldest; a set that is not stored yet is the youngest.
    pub fn member_age(&self, at: usize) -> (Timestamp, String) {
        let meta = &self.members[at].set.metadata;
        let created = meta.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0);
        (created, meta.name.clone().unwrap_or_default())
    }

    pub fn old_by_age(&self) -> Vec<usize> {
        let mut old: Vec<usize> = (0..self.members.len()).filter(|&at| Some(at) != self.new).collect();
        old.sort_by_key(|&at| self.member_age(at));
        old
    }

    pub fn active(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.members.len()).filter(|&at| replicas(&self.members[at].set) > 0)
    }

    pub fn total(&self) -> i32 {
        self.members.iter().map(|member| replicas(&member.set)).sum()
    }

    /// Resizes a set; true when that is a change.
    pub fn scale(&mut self, at: usize, to: i32) -> bool {
        let (wanted, surge) = (desired(&self.deployment), max_surge(&self.deployment));
        let member = &mut self.members[at];
        let from = replicas(&member.set);
        if from == to {
            return false;
        }
        member.set.spec.get_or_insert_default().replicas = Some(to);
        annotate_replicas(&mut member.set, wanted, wanted.saturating_add(surge));
        member.changed = true;
        let name = member.set.metadata.name.as_deref().unwrap_or_default();
        let direction = if to > from { "up" } else { "down" };
        self.scaled.push(format!("Scaled {direction} replica set {name} from {from} to {to}"));
        true
    }

    /// Whether `replicas` changed since the sets were last scaled.
    fn is_scaling(&self) -> bool {
        let wanted = desired(&self.deployment);
        self.active().any(|at| {
            let noted = replicas_annotation(&self.members[at].set.metadata, DESIRED_REPLICAS);
            noted.is_some_and(|noted| noted != wanted)
        })
    }

    /// While a deployment is paused its progress is unknown, not late.
    fn note_pause(&mut self) {
        if !has_progress_deadline(&self.deployment) {
            return;
        }
        let paused = self.deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
        let now = self.now;
        let status = self.deployment.status.get_or_insert_default();
        let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.clone());
        match reason.as_deref() {
            Some(TIMED_OUT) => {}
            Some(PAUSED) if !paused => {
                let message = "Deployment is resumed".to_owned();
                set_condition(status, PROGRESSING, "Unknown", "DeploymentResumed", message, now);
            }
            _ if paused => {
                set_condition(status, PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned(), now)
            }
            _ => {}
        }
    }

    /// Gives the set of the current template the newest revision; creates it when there is none and `create` says so.
    fn sync_revision(&mut self, create: bool) {
        let newest_old = self.old_by_age().into_iter().map(|at| revision(&self.members[at].set.metadata)).max();
        let next = newest_old.unwrap_or(0) + 1;
        let now = self.now;
        let min_ready_seconds = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        match self.new {
            Some(at) => {
                let member = &mut self.members[at];
                member.changed |= annotate_current(&self.deployment, &mut member.set, next);
                let spec = member.set.spec.get_or_insert_default();
                if spec.min_ready_seconds.unwrap_or(0) != min_ready_seconds.unwrap_or(0) {
                    spec.min_ready_seconds = min_ready_seconds;
                    member.changed = true;
                }
                let name = member.set.metadata.name.clone().unwrap_or_default();
                let status = self.deployment.status.get_or_insert_default();
                if condition(status, PROGRESSING).is_none() && has_progress_deadline(&self.deployment) {
                    let message = format!("Found new replica set \"{name}\"");
                    let status = self.deployment.status.get_or_insert_default();
                    set_condition(status, PROGRESSING, "True", "FoundNewReplicaSet", message, now);
                }
            }
            None if create => {
                let mut set = new_replica_set(&self.deployment);
                let (wanted, surge) = (desired(&self.deployment), max_surge(&self.deployment));
                let size = new_replicas(&self.deployment, self.total(), 0);
                set.spec.get_or_insert_default().replicas = Some(size);
                annotate_current(&self.deployment, &mut set, next);
                annotate_replicas(&mut set, wanted, wanted.saturating_add(surge));
                let name = set.metadata.name.clone().unwrap_or_default();
                if size > 0 {
                    self.scaled.push(format!("Scaled up replica set {name} from 0 to {size}"));
                }
                if has_progress_deadline(&self.deployment) {
                    let message = format!("Created new replica set \"{name}\"");
                    let status = self.deployment.status.get_or_insert_default();
                    set_condition(status, PROGRESSING, "True", "NewReplicaSetCreated", message, now);
                }
                self.new = Some(self.members.len());
                self.members.push(Member { set, fresh: true, changed: true });
            }
            None => return,
        }
        if let Some(new) = self.new {
            let current = revision(&self.members[new].set.metadata).to_string();
            super::template::annotate(&mut self.deployment.metadata, REVISION, current);
        }
    }

    /// Recreate: no new pod before every old one is gone.
    fn recreate(&mut self) {
        if self.new.is_some() {
            self.sync_revision(false);
        }
        if self.scale_down_old() || self.old_pods_run() {
            return;
        }
        if self.new.is_none() {
            self.sync_revision(true);
        }
        if let Some(new) = self.new {
            self.scale(new, desired(&self.deployment));
        }
    }

    fn old_pods_run(&self) -> bool {
        let old: HashSet<&str> =
            self.old_by_age().into_iter().filter_map(|at| self.members[at].set.metadata.uid.as_deref()).collect();
        let counted = self
            .old_by_age()
            .into_iter()
            .any(|at| self.members[at].set.status.as_ref().is_some_and(|status| status.replicas > 0));
        // A terminating pod still runs.
        counted
            || self.pods.iter().any(|pod| {
                let owner = controller_of(&pod.metadata);
                !pods::is_finished(pod) && owner.is_some_and(|owner| old.contains(owner.uid.as_str()))
            })
    }

    /// Old sets beyond `revisionHistoryLimit`, the oldest revisions first.
    fn surplus_history(&self, stored: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return Vec::new() };
        let mut old: Vec<usize> = self.old_by_age();
        old.retain(|&at| self.members[at].set.metadata.deletion_timestamp.is_none());
        old.sort_by_key(|&at| revision(&self.members[at].set.metadata));
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let is_empty = |set: &ReplicaSet| {
            let status = set.status.clone().unwrap_or_default();
            status.replicas == 0 && replicas(set) == 0 && set.metadata.generation <= status.observed_generation
        };
        let surplus = old.into_iter().take(surplus);
        surplus.filter(|&at| is_empty(&self.members[at].set)).map(|at| Arc::clone(&stored[at])).collect()
    }

    fn sets(&self) -> Vec<&ReplicaSet> {
        self.members.iter().map(|member| &member.set).collect()
    }

    fn counted(&self) -> DeploymentStatus {
        counted(&self.deployment, &self.sets(), self.new.map(|at| &self.members[at].set), self.now)
    }

    fn after_rollout(&self) -> DeploymentStatus {
        after_rollout(&self.deployment, &self.sets(), self.new.map(|at| &self.members[at].set), self.now)
    }
}

#[cfg(test)]
#[path = "core_test.rs"]
mod core_test;
