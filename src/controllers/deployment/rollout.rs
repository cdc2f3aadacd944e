//! How many pods each ReplicaSet of a deployment gets: rolling update, recreate, and scaling in proportion.
//!
//! Pure arithmetic on [`Pass`], a working copy of a deployment's sets; rounding rules are Kubernetes'. The invariant of a
//! rolling update: never more than `replicas + maxSurge` pods wanted, and none taken away that would leave fewer than
//! `replicas - maxUnavailable` available.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::core::Pass;
use super::status::available;
use super::template::{DESIRED_REPLICAS, MAX_REPLICAS, annotate_replicas, replicas_annotation};

pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"))
}

fn rolling(deployment: &Deployment) -> Option<&RollingUpdateDeployment> {
    deployment.spec.as_ref()?.strategy.as_ref()?.rolling_update.as_ref()
}

/// Available pods that stay when the set has its wanted size. The status of a set that was just shrunk still counts pods
/// that are as good as gone; Kubernetes trusts it, and can take one pod too many when the template changes at that moment.
fn serving(set: &ReplicaSet) -> i32 {
    available(set).min(replicas(set))
}

/// A count, or a share of `total` in percent.
fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => resolve(Some(&IntOrString::String("25%".to_owned())), total, round_up),
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.strip_suffix('%').and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            let share = percent * i64::from(total);
            let rounded =
                if round_up { share.div_euclid(100) + i64::from(share.rem_euclid(100) != 0) } else { share / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// How many pods more than desired there may be.
pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) {
        return 0;
    }
    let value = rolling(deployment).and_then(|rolling| rolling.max_surge.as_ref());
    resolve(value, desired(deployment), true).max(0)
}

/// How many of the desired pods may be missing. One at least when there is no surge, or nothing could ever move.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = desired(deployment);
    if is_recreate(deployment) || wanted == 0 {
        return 0;
    }
    let value = rolling(deployment).and_then(|rolling| rolling.max_unavailable.as_ref());
    let most = resolve(value, wanted, false).max(0);
    let most = if most == 0 && max_surge(deployment) == 0 { 1 } else { most };
    most.min(wanted)
}

/// How many replicas the new set gets, given what all have.
pub fn new_replicas(deployment: &Deployment, total: i32, current: i32) -> i32 {
    let wanted = desired(deployment);
    if is_recreate(deployment) {
        return wanted;
    }
    let most = wanted.saturating_add(max_surge(deployment));
    if total >= most {
        return current;
    }
    current + (most - total).min(wanted - current)
}

impl Pass<'_> {
    /// One step of a rolling update: grow the new set, or else shrink the old ones.
    pub(super) fn roll(&mut self) {
        if !self.grow_new() {
            self.shrink_old();
        }
    }

    fn grow_new(&mut self) -> bool {
        let Some(new) = self.new else { return false };
        let current = replicas(&self.members[new].set);
        let wanted = desired(&self.deployment);
        if current == wanted {
            return false;
        }
        let target = if current > wanted { wanted } else { new_replicas(&self.deployment, self.total(), current) };
        self.scale(new, target)
    }

    fn shrink_old(&mut self) -> bool {
        let old = self.old_by_age();
        if old.iter().all(|&at| replicas(&self.members[at].set) == 0) {
            return false;
        }
        let least = desired(&self.deployment) - max_unavailable(&self.deployment);
        let new_unavailable = self.new.map_or(0, |new| {
            let set = &self.members[new].set;
            replicas(set) - serving(set)
        });
        let most = self.total() - least - new_unavailable;
        if most <= 0 {
            return false;
        }
        let unhealthy = self.drop_unhealthy(&old, most);
        let healthy = self.drop_healthy(&old, least);
        unhealthy || healthy
    }

    /// Pods that are not available go first: taking them costs nothing.
    fn drop_unhealthy(&mut self, old: &[usize], most: i32) -> bool {
        let mut dropped = 0;
        for &at in old {
            let set = &self.members[at].set;
            let count = (replicas(set) - serving(set)).clamp(0, most - dropped);
            if count > 0 {
                let target = replicas(set) - count;
                self.scale(at, target);
                dropped += count;
            }
        }
        dropped > 0
    }

    /// Takes as many available pods as there are beyond the least that must stay.
    fn drop_healthy(&mut self, old: &[usize], least: i32) -> bool {
        let available: i32 = self.members.iter().map(|member| serving(&member.set)).sum();
        let mut spare = available - least;
        let mut dropped = false;
        for &at in old {
            if spare <= 0 {
                break;
            }
            let current = replicas(&self.members[at].set);
            let count = current.min(spare);
            if count > 0 {
                self.scale(at, current - count);
                spare -= count;
                dropped = true;
            }
        }
        dropped
    }

    /// Takes all pods of old sets away. True when there was something to take.
    pub(super) fn scale_down_old(&mut self) -> bool {
        let mut scaled = false;
        for at in self.old_by_age() {
            scaled |= self.scale(at, 0);
        }
        scaled
    }

    /// Follows a change of `replicas`. While a rollout is under way all sets are scaled in proportion, so that the share
    /// of pods at risk stays as it was.
    pub(super) fn scale_to_desired(&mut self) {
        let wanted = desired(&self.deployment);
        let active: Vec<usize> = self.active().collect();
        if active.len() <= 1 {
            let only = active.first().copied().or(self.new).or_else(|| self.old_by_age().last().copied());
            if let Some(only) = only {
                self.scale(only, wanted);
            }
            return;
        }
        if self.is_saturated() {
            self.scale_down_old();
            return;
        }
        if is_recreate(&self.deployment) {
            return;
        }
        let total: i32 = active.iter().map(|&at| replicas(&self.members[at].set)).sum();
        let surge = max_surge(&self.deployment);
        let allowed = if wanted > 0 { wanted.saturating_add(surge) } else { 0 };
        let to_add = allowed - total;
        let mut order = active;
        order.sort_by(|&a, &b| {
            let (size_a, size_b) = (replicas(&self.members[a].set), replicas(&self.members[b].set));
            let age = self.member_age(a).cmp(&self.member_age(b));
            // Of equals, grow the youngest and shrink the oldest.
            size_b.cmp(&size_a).then(if to_add > 0 { age.reverse() } else { age })
        });
        let mut added = 0;
        let mut sizes: Vec<i32> = Vec::with_capacity(order.len());
        for &at in &order {
            let share = if to_add == 0 { 0 } else { self.share(at, to_add, added) };
            added += share;
            sizes.push(replicas(&self.members[at].set) + share);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (&at, &size) in order.iter().zip(&sizes) {
            self.scale(at, size);
            let member = &mut self.members[at];
            member.changed |= annotate_replicas(&mut member.set, wanted, wanted.saturating_add(surge));
        }
    }

    /// What the set gets of `to_add`, of which `added` is given out already.
    fn share(&self, at: usize, to_add: i32, added: i32) -> i32 {
        let set = &self.members[at].set;
        let size = replicas(set);
        if size == 0 || to_add == added {
            return 0;
        }
        let wanted = desired(&self.deployment);
        let fair = if wanted == 0 {
            -size
        } else {
            let most_now = f64::from(wanted) + f64::from(max_surge(&self.deployment));
            let most_before = replicas_annotation(&set.metadata, MAX_REPLICAS)
                .filter(|most| *most > 0)
                .or_else(|| self.deployment.status.as_ref()?.replicas)
                .filter(|most| *most > 0)
                .unwrap_or(size);
            let scaled = f64::from(size) * most_now / f64::from(most_before);
            scaled.round() as i32 - size
        };
        let left = to_add - added;
        if to_add > 0 { fair.min(left) } else { fair.max(left) }
    }

    /// The new set alone can serve: scaled for this size, and all available.
    fn is_saturated(&self) -> bool {
        let Some(new) = self.new else { return false };
        let set = &self.members[new].set;
        let wanted = desired(&self.deployment);
        replicas_annotation(&set.metadata, DESIRED_REPLICAS) == Some(wanted)
            && replicas(set) == wanted
            && serving(set) == wanted
    }
}
