//! The pods that wait for a node: which are tried now, which later, and what brings them back.
//!
//! ```text
//!   add --> active --pop--> (tried) --placed--> gone
//!             ^                |
//!             |             failed(causes)
//!             |                v
//!             +-- backoff <-- eased(cause) <-- unschedulable   (also after FLUSH_AFTER_MS, whatever happens)
//! ```
//!
//! Pure: time comes in as milliseconds of a monotonic clock. Holds no pod longer than the store does: the actor deletes
//! what was bound or deleted. Bounded by the number of pods in the store that have no node.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use super::fit::Causes;
use super::requests::PodInfo;

/// Wait after the first failure; doubles with each more. Kubernetes starts at one second, which alone would break the
/// budget for replacing a lost node.
pub const BACKOFF_INITIAL_MS: u64 = 50;
pub const BACKOFF_MAX_MS: u64 = 10_000;
/// An unschedulable pod is tried again after this time even when nothing seems to have changed, as in Kubernetes.
pub const FLUSH_AFTER_MS: u64 = 300_000;

/// A pod's uid.
pub type Uid = Arc<str>;

#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Uid, Entry>,
    /// By priority, then first come first served. May name pods that have moved on: their ticket differs.
    active: BinaryHeap<(i32, Reverse<u64>, Uid)>,
    /// By the time at which they become active.
    backoff: BTreeSet<(u64, Uid)>,
    /// By the time at which they are flushed.
    unschedulable: BTreeSet<(u64, Uid)>,
    tickets: u64,
}

#[derive(Debug)]
struct Entry {
    pod: PodInfo,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active {
        ticket: u64,
    },
    Backoff {
        until_ms: u64,
    },
    Unschedulable {
        causes: Causes,
        flush_at_ms: u64,
        backoff_until_ms: u64,
    },
    /// Popped, and its outcome not yet told. `changed` says that the pod itself asks for something else meanwhile.
    InFlight {
        changed: bool,
    },
}

impl Queue {
    pub fn new() -> Queue {
        Queue::default()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Pods that were tried and fit nowhere.
    pub fn unschedulable_len(&self) -> usize {
        self.unschedulable.len()
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// The uids of all that wait.
    pub fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.entries.keys()
    }

    /// A pod without a node, new or changed. One whose requirements are as before keeps its place: a status update of a
    /// waiting pod, such as our own condition, is no reason to try again.
    pub fn add(&mut self, pod: PodInfo) {
        let uid = Arc::clone(&pod.uid);
        match self.entries.get_mut(&uid) {
            Some(entry) if entry.pod == pod => {}
            Some(entry) if matches!(entry.place, Place::InFlight { .. }) => {
                entry.pod = pod;
                entry.place = Place::InFlight { changed: true };
            }
            Some(entry) => {
                entry.pod = pod;
                self.leave(&uid);
                self.activate(&uid);
            }
            None => {
                self.entries.insert(Arc::clone(&uid), Entry { pod, attempts: 0, place: Place::Active { ticket: 0 } });
                self.activate(&uid);
            }
        }
    }

    /// Bound, deleted, or no longer ours.
    pub fn remove(&mut self, uid: &str) {
        let Some((uid, _)) = self.entries.get_key_value(uid) else { return };
        let uid = Arc::clone(uid);
        self.leave(&uid);
        self.entries.remove(&uid);
    }

    /// Takes up to `most` pods to try, in order. Each must be answered by `remove`, [`Queue::failed`] or
    /// [`Queue::refused`].
    pub fn pop(&mut self, most: usize, now_ms: u64) -> Vec<PodInfo> {
        self.wake(now_ms);
        let mut popped = Vec::new();
        while popped.len() < most {
            let Some((_, Reverse(ticket), uid)) = self.active.pop() else { break };
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            if entry.place == (Place::Active { ticket }) {
                entry.place = Place::InFlight { changed: false };
                popped.push(entry.pod.clone());
            }
        }
        popped
    }

    /// It fits nowhere. Waits for one of the causes to ease.
    pub fn failed(&mut self, uid: &str, causes: Causes, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let uid = Arc::clone(&entry.pod.uid);
        let Place::InFlight { changed } = entry.place else { return };
        entry.attempts = entry.attempts.saturating_add(1);
        let backoff_until_ms = now_ms + backoff_ms(entry.attempts);
        if changed {
            self.back_off(&uid, backoff_until_ms);
            return;
        }
        let flush_at_ms = now_ms + FLUSH_AFTER_MS;
        entry.place = Place::Unschedulable { causes, flush_at_ms, backoff_until_ms };
        self.unschedulable.insert((flush_at_ms, uid));
    }

    /// It was placed, but the binding was not taken: tried again after a backoff, whatever happens.
    pub fn refused(&mut self, uid: &str, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if matches!(entry.place, Place::InFlight { .. }) {
            entry.attempts = entry.attempts.saturating_add(1);
            let until_ms = now_ms + backoff_ms(entry.attempts);
            let uid = Arc::clone(&entry.pod.uid);
            self.back_off(&uid, until_ms);
        }
    }

    /// Something changed in the cluster that may lift refusals for these causes.
    pub fn eased(&mut self, causes: Causes, now_ms: u64) {
        if causes.is_empty() {
            return;
        }
        let mut moved = Vec::new();
        // Linear in the pods that wait; called for changes of nodes and ends of pods while some do.
        for (_, uid) in &self.unschedulable {
            let Some(Entry { place: Place::Unschedulable { causes: own, backoff_until_ms, .. }, .. }) =
                self.entries.get(uid)
            else {
                continue;
            };
            if own.meets(causes) {
                moved.push((Arc::clone(uid), *backoff_until_ms));
            }
        }
        for (uid, until_ms) in moved {
            self.leave(&uid);
            if until_ms > now_ms {
                self.back_off(&uid, until_ms);
            } else {
                self.activate(&uid);
            }
        }
    }

    /// When `pop` has something to give without any further event: at once (0), or at a time, or never.
    pub fn next_ms(&self) -> Option<u64> {
        if !self.active.is_empty() {
            return Some(0);
        }
        let backoff = self.backoff.first().map(|(at, _)| *at);
        let flush = self.unschedulable.first().map(|(at, _)| *at);
        backoff.into_iter().chain(flush).min()
    }

    fn wake(&mut self, now_ms: u64) {
        while let Some((at, uid)) = self.backoff.first().cloned() {
            if at > now_ms {
                break;
            }
            self.leave(&uid);
            self.activate(&uid);
        }
        while let Some((at, uid)) = self.unschedulable.first().cloned() {
            if at > now_ms {
                break;
            }
            self.leave(&uid);
            self.activate(&uid);
        }
    }

    fn activate(&mut self, uid: &Uid) {
        self.tickets += 1;
        let ticket = self.tickets;
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::Active { ticket };
            self.active.push((entry.pod.priority, Reverse(ticket), Arc::clone(uid)));
        }
    }

    fn back_off(&mut self, uid: &Uid, until_ms: u64) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::Backoff { until_ms };
            self.backoff.insert((until_ms, Arc::clone(uid)));
        }
    }

    /// Takes the pod out of the timed sets. Its tickets in `active` go stale by themselves.
    fn leave(&mut self, uid: &Uid) {
        match self.entries.get(uid).map(|entry| entry.place) {
            Some(Place::Backoff { until_ms }) => {
                self.backoff.remove(&(until_ms, Arc::clone(uid)));
            }
            Some(Place::Unschedulable { flush_at_ms, .. }) => {
                self.unschedulable.remove(&(flush_at_ms, Arc::clone(uid)));
            }
            _ => {}
        }
    }
}

fn backoff_ms(attempts: u32) -> u64 {
    let doublings = attempts.saturating_sub(1).min(20);
    (BACKOFF_INITIAL_MS << doublings).min(BACKOFF_MAX_MS)
}

#[cfg(test)]
mod tests {
    use super::super::requests::{Constraints, Requests};
    use super::*;

    fn pod(uid: &str, priority: i32) -> PodInfo {
        PodInfo {
            uid: Arc::from(uid),
            namespace: Arc::from("default"),
            name: Arc::from(uid),
            requests: Requests::default(),
            constraints: Arc::new(Constraints::default()),
            group: None,
            priority,
        }
    }

    fn names(pods: &[PodInfo]) -> Vec<&str> {
        pods.iter().map(|pod| &*pod.name).collect()
    }

    #[test]
    fn pods_come_out_by_priority_and_then_in_order_of_arrival() {
        let mut queue = Queue::new();
        for (uid, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.add(pod(uid, priority));
        }
        assert_eq!(names(&queue.pop(3, 0)), ["b", "d", "a"]);
        assert_eq!(names(&queue.pop(3, 0)), ["c"]);
        assert!(queue.pop(3, 0).is_empty());
    }

    #[test]
    fn an_unschedulable_pod_waits_for_a_change_that_matters() {
        let mut queue = Queue::new();
        queue.add(pod("a", 0));
        queue.pop(1, 0);
        queue.failed("a", Causes::RESOURCES, 0);
        queue.eased(Causes::TAINT, 10_000);
        assert!(queue.pop(1, 10_000).is_empty());
        queue.eased(Causes::RESOURCES, 10_000);
        assert_eq!(names(&queue.pop(1, 10_000)), ["a"]);
    }

    #[test]
    fn a_change_during_backoff_is_taken_up_when_the_backoff_ends() {
        let mut queue = Queue::new();
        queue.add(pod("a", 0));
        queue.pop(1, 0);
        queue.failed("a", Causes::TAINT, 0);
        queue.eased(Causes::TAINT, 1);
        assert!(queue.pop(1, 1).is_empty());
        assert_eq!(queue.next_ms(), Some(BACKOFF_INITIAL_MS));
        assert_eq!(names(&queue.pop(1, BACKOFF_INITIAL_MS)), ["a"]);
    }

    #[test]
    fn backoff_doubles_to_its_bound() {
        assert_eq!(backoff_ms(1), BACKOFF_INITIAL_MS);
        assert_eq!(backoff_ms(2), 2 * BACKOFF_INITIAL_MS);
        assert_eq!(backoff_ms(60), BACKOFF_MAX_MS);
    }

    #[test]
    fn an_unschedulable_pod_is_flushed_in_the_end() {
        let mut queue = Queue::new();
        queue.add(pod("a", 0));
        queue.pop(1, 0);
        queue.failed("a", Causes::RESOURCES, 7);
        assert_eq!(queue.next_ms(), Some(7 + FLUSH_AFTER_MS));
        assert!(queue.pop(1, FLUSH_AFTER_MS).is_empty());
        assert_eq!(names(&queue.pop(1, 7 + FLUSH_AFTER_MS)), ["a"]);
    }

    #[test]
    fn a_status_update_of_a_waiting_pod_is_no_reason_to_try_again() {
        let mut queue = Queue::new();
        queue.add(pod("a", 0));
        queue.pop(1, 0);
        queue.failed("a", Causes::RESOURCES, 0);
        queue.add(pod("a", 0));
        assert!(queue.pop(1, 1_000).is_empty());
        queue.add(pod("a", 5));
        assert_eq!(names(&queue.pop(1, 1_000)), ["a"]);
    }

    #[test]
    fn a_pod_is_never_out_twice_at_once() {
        let mut queue = Queue::new();
        queue.add(pod("a", 0));
        assert_eq!(queue.pop(1, 0).len(), 1);
        queue.add(pod("a", 3));
        assert!(queue.pop(1, 0).is_empty());
        queue.refused("a", 0);
        assert_eq!(queue.pop(1, BACKOFF_INITIAL_MS).len(), 1);
    }

    #[test]
    fn a_removed_pod_leaves_nothing_behind() {
        let mut queue = Queue::new();
        for uid in ["a", "b", "c"] {
            queue.add(pod(uid, 0));
        }
        queue.pop(2, 0);
        queue.failed("a", Causes::PORTS, 0);
        queue.refused("b", 0);
        for uid in ["a", "b", "c"] {
            queue.remove(uid);
        }
        assert!(queue.is_empty() && queue.backoff.is_empty() && queue.unschedulable.is_empty());
        assert!(queue.pop(9, u64::MAX).is_empty());
    }
}
