//! Placement: which node a pod goes to, given what every node has and runs.
//!
//! ```text
//!   Node, Pod events --> Snapshot (numbers by node index) --place(PodInfo)--> node | Unschedulable
//!                            ^                                  |
//!                            +------------- assume -------------+   (so that the next pod sees it taken)
//! ```
//!
//! Pure: no clock, no I/O, no randomness; the same events in the same order give the same placements. What depends on a
//! node's description alone (selectors, affinity, taints) is decided once for each pair of constraints and node and
//! remembered; what remains for every pod is one pass over arrays of integers. Called by the scheduler's actor only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::fit::{Causes, Unschedulable};
use super::requests::{Constraints, HostPort, PodInfo, Requests, milli, spread_group, whole};

/// Weights of the scores, each of which lies in 0..=100; Kubernetes' defaults.
const WEIGHT_TAINT: i64 = 3;
const WEIGHT_AFFINITY: i64 = 2;
const WEIGHT_SPREAD: i64 = 2;
const WEIGHT_LEAST_ALLOCATED: i64 = 1;

/// Distinct constraints that are remembered. When full all are forgotten and found anew: a cluster has as many as it has
/// pod templates in use at one time.
const CLASSES_MAX: usize = 512;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A node's place in the arrays. Stays the same while the snapshot lives.
pub type NodeIndex = u32;

/// What runs where and what is left, by node. See the module for how it is used.
#[derive(Debug, Default)]
pub struct Snapshot {
    by_name: HashMap<Arc<str>, NodeIndex>,
    nodes: Vec<NodeFacts>,
    /// The hot part, in step with `nodes`.
    room: Vec<Room>,
    zones: HashMap<String, u32>,
    pods: HashMap<Arc<str>, Accounted>,
    /// Pods of each spread group on each node.
    groups: HashMap<u64, HashMap<NodeIndex, u32>>,
    classes: HashMap<Arc<Constraints>, Class>,
    present: usize,
    scratch: Scratch,
}

/// A node's own description.
#[derive(Debug, Default)]
struct NodeFacts {
    name: Arc<str>,
    /// False for a node that pods name but that was never seen, or was deleted.
    present: bool,
    ready: bool,
    unschedulable: bool,
    labels: BTreeMap<String, String>,
    /// Key, value, effect.
    taints: Vec<(String, String, String)>,
    extended: Vec<(Arc<str>, Extended)>,
    host_ports: Vec<HostPort>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Extended {
    allocatable: i64,
    used: i64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Room {
    cpu_milli: i64,
    memory_bytes: i64,
    cpu_used_milli: i64,
    memory_used_bytes: i64,
    scored_cpu_used_milli: i64,
    scored_memory_used_bytes: i64,
    pods: u32,
    pods_max: u32,
    /// 0 for no zone.
    zone: u32,
}

#[derive(Debug)]
struct Accounted {
    node: NodeIndex,
    requests: Requests,
    group: Option<u64>,
    /// Placed here, and not yet seen with its node in the store.
    assumed: bool,
}

/// What one set of constraints says of every node.
#[derive(Debug, Default)]
struct Class {
    verdicts: Vec<Verdict>,
    /// Sum of the weights of preferred terms that the node meets.
    preferred: Vec<i64>,
    /// Count of PreferNoSchedule taints that are not tolerated.
    disliked: Vec<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fits,
    Absent,
    Unschedulable,
    /// Index into the node's taints.
    Taint(u16),
    NotReady,
    Affinity,
}

/// Buffers that live between calls, so that placing a pod allocates nothing.
#[derive(Debug, Default)]
struct Scratch {
    feasible: Vec<NodeIndex>,
    /// Pods of `group` by node, and by zone.
    group: Option<u64>,
    on_node: Vec<u32>,
    in_zone: Vec<u32>,
}

/// What about a node changed for the better, as causes that may be gone.
pub type Eased = Causes;

impl Snapshot {
    pub fn new() -> Snapshot {
        Snapshot::default()
    }

    /// Nodes that exist.
    pub fn node_count(&self) -> usize {
        self.present
    }

    pub fn node_name(&self, node: NodeIndex) -> &Arc<str> {
        &self.nodes[node as usize].name
    }

    /// Pods that the named node runs or was given.
    pub fn pods_on(&self, node: &str) -> usize {
        self.by_name.get(node).map_or(0, |&at| self.room[at as usize].pods as usize)
    }

    /// Takes over a node as it is now. Returns which refusals of pods may no longer hold.
    pub fn upsert_node(&mut self, node: &Node) -> Eased {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let at = self.index_of(name);
        let mut eased = Causes::NONE;
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let taints: Vec<_> = spec
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
            .iter()
            .map(|taint| (taint.key.clone(), taint.value.clone().unwrap_or_default(), taint.effect.clone()))
            .collect();
        let unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");

        let zone = labels.get(ZONE_LABEL).map_or(0, |zone| self.zone_id(zone));
        let facts = &mut self.nodes[at as usize];
        let described_as_before = facts.present
            && facts.ready == ready
            && facts.unschedulable == unschedulable
            && facts.labels == labels
            && facts.taints == taints;
        if !facts.present {
            facts.present = true;
            self.present += 1;
            eased = Causes::ALL;
        }
        if facts.labels != labels {
            eased = eased.with(Causes::AFFINITY);
        }
        if facts.taints != taints {
            eased = eased.with(Causes::TAINT);
        }
        if facts.unschedulable && !unschedulable {
            eased = eased.with(Causes::UNSCHEDULABLE);
        }
        if !facts.ready && ready {
            eased = eased.with(Causes::NOT_READY);
        }
        facts.labels = labels;
        facts.taints = taints;
        facts.unschedulable = unschedulable;
        facts.ready = ready;

        let room = &mut self.room[at as usize];
        if room.zone != zone {
            room.zone = zone;
            self.scratch.group = None;
        }
        let allocatable = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        let mut cpu_milli = 0;
        let mut memory_bytes = 0;
        let mut pods_max = 0;
        for (_, extended) in &mut facts.extended {
            extended.allocatable = 0;
        }
        for (resource, quantity) in allocatable.into_iter().flatten() {
            match resource.as_str() {
                "cpu" => cpu_milli = milli(quantity),
                "memory" => memory_bytes = whole(quantity),
                "pods" => pods_max = u32::try_from(whole(quantity).max(0)).unwrap_or(u32::MAX),
                _ => extended_of(&mut facts.extended, resource).allocatable = whole(quantity),
            }
        }
        if cpu_milli > room.cpu_milli || memory_bytes > room.memory_bytes || pods_max > room.pods_max {
            eased = eased.with(Causes::RESOURCES);
        }
        if !facts.extended.is_empty() {
            // Growth of these is rare; saying so needlessly costs one more try.
            eased = eased.with(Causes::RESOURCES);
        }
        room.cpu_milli = cpu_milli;
        room.memory_bytes = memory_bytes;
        room.pods_max = pods_max;
        if !described_as_before {
            self.judge_anew(at);
        }
        eased
    }

    /// Forgets a node; what it ran stays accounted until those pods go.
    pub fn remove_node(&mut self, name: &str) {
        let Some(&at) = self.by_name.get(name) else { return };
        let facts = &mut self.nodes[at as usize];
        if facts.present {
            facts.present = false;
            facts.ready = false;
            self.present -= 1;
            self.judge_anew(at);
        }
    }

    /// Accounts for a pod as the store has it. Returns which refusals may no longer hold.
    pub fn upsert_pod(&mut self, pod: &Pod) -> Eased {
        let Some(uid) = pod.metadata.uid.as_deref() else { return Causes::NONE };
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.remove_pod(uid);
        }
        let (Some(spec), Some(node)) = (spec, node) else {
            // A pod that was assumed is still shown without its node until the binding comes by.
            return Causes::NONE;
        };
        let at = self.index_of(node);
        let requests = Requests::of(spec);
        if let Some(known) = self.pods.get_mut(uid)
            && known.node == at
            && known.requests == requests
        {
            known.assumed = false;
            return Causes::NONE;
        }
        let eased = self.remove_pod(uid);
        self.account(Arc::from(uid), at, requests, spread_group(pod), false);
        eased
    }

    /// A pod is gone, or has ended: its room is free.
    pub fn remove_pod(&mut self, uid: &str) -> Eased {
        let Some(known) = self.pods.remove(uid) else { return Causes::NONE };
        let room = &mut self.room[known.node as usize];
        room.cpu_used_milli -= known.requests.cpu_milli;
        room.memory_used_bytes -= known.requests.memory_bytes;
        room.scored_cpu_used_milli -= known.requests.scored_cpu_milli;
        room.scored_memory_used_bytes -= known.requests.scored_memory_bytes;
        room.pods -= 1;
        let facts = &mut self.nodes[known.node as usize];
        for (resource, amount) in &known.requests.extended {
            extended_of(&mut facts.extended, resource).used -= amount;
        }
        for port in &known.requests.host_ports {
            if let Some(at) = facts.host_ports.iter().position(|used| used == port) {
                facts.host_ports.swap_remove(at);
            }
        }
        if let Some(group) = known.group {
            if let Some(counts) = self.groups.get_mut(&group) {
                if let Some(count) = counts.get_mut(&known.node) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&known.node);
                    }
                }
                if counts.is_empty() {
                    self.groups.remove(&group);
                }
            }
            if self.scratch.group == Some(group) {
                self.scratch.on_node[known.node as usize] -= 1;
                let zone = self.room[known.node as usize].zone;
                self.scratch.in_zone[zone as usize] -= 1;
            }
        }
        Causes::RESOURCES.with(Causes::PORTS)
    }

    /// Gives a placed pod its room before the store knows, so that the next pod sees it taken.
    pub fn assume(&mut self, pod: &PodInfo, node: NodeIndex) {
        self.remove_pod(&pod.uid);
        self.account(Arc::clone(&pod.uid), node, pod.requests.clone(), pod.group, true);
    }

    /// Takes an assumption back: the binding failed. Nothing happens when the store has shown the pod on its node.
    pub fn forget(&mut self, uid: &str) -> Eased {
        match self.pods.get(uid) {
            Some(known) if known.assumed => self.remove_pod(uid),
            _ => Causes::NONE,
        }
    }

    pub fn is_accounted(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The uids of all pods that have room somewhere, for comparing with a fresh list.
    pub fn accounted(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.keys()
    }

    pub fn node_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().filter(|facts| facts.present).map(|facts| &facts.name)
    }

    /// The best node for a pod. Of equals the one with fewest pods, then the first by name.
    pub fn place(&mut self, pod: &PodInfo) -> Result<NodeIndex, Unschedulable> {
        self.classify(&pod.constraints);
        self.focus(pod.group);
        let class = &self.classes[&pod.constraints];
        let scratch = &mut self.scratch;
        scratch.feasible.clear();
        let asks = &pod.requests;
        let picky = !asks.extended.is_empty() || !asks.host_ports.is_empty();
        let mut most_preferred = 0;
        let mut most_disliked = 0;
        let (mut node_most, mut node_least) = (0, u32::MAX);
        let (mut zone_most, mut zone_least) = (0, u32::MAX);
        for (at, room) in self.room.iter().enumerate() {
            if class.verdicts[at] != Verdict::Fits
                || room.pods >= room.pods_max
                || (asks.cpu_milli > 0 && room.cpu_used_milli + asks.cpu_milli > room.cpu_milli)
                || (asks.memory_bytes > 0 && room.memory_used_bytes + asks.memory_bytes > room.memory_bytes)
                || (picky && !has_special_room(&self.nodes[at], asks))
            {
                continue;
            }
            scratch.feasible.push(at as NodeIndex);
            most_preferred = most_preferred.max(class.preferred[at]);
            most_disliked = most_disliked.max(class.disliked[at]);
            if pod.group.is_some() {
                let here = scratch.on_node[at];
                node_most = node_most.max(here);
                node_least = node_least.min(here);
                let around = scratch.in_zone[room.zone as usize];
                zone_most = zone_most.max(around);
                zone_least = zone_least.min(around);
            }
        }
        let zoned = self.zones.len() > 1 && zone_most > 0;
        let mut best: Option<(i64, NodeIndex)> = None;
        for &node in &scratch.feasible {
            let at = node as usize;
            let room = &self.room[at];
            let mut score = WEIGHT_LEAST_ALLOCATED * room.least_allocated(asks);
            if most_preferred > 0 {
                score += WEIGHT_AFFINITY * (class.preferred[at] * 100 / most_preferred);
            }
            if most_disliked > 0 {
                score += WEIGHT_TAINT * (100 - class.disliked[at] * 100 / most_disliked);
            }
            if node_most > 0 {
                let mut spread = evenness(scratch.on_node[at], node_least, node_most);
                if zoned {
                    let around = scratch.in_zone[room.zone as usize];
                    spread = i64::midpoint(spread, evenness(around, zone_least, zone_most));
                }
                score += WEIGHT_SPREAD * spread;
            }
            let better = best.is_none_or(|(most, so_far)| {
                let rank = |node: NodeIndex| (self.room[node as usize].pods, &self.nodes[node as usize].name);
                score > most || (score == most && rank(node) < rank(so_far))
            });
            if better {
                best = Some((score, node));
            }
        }
        match best {
            Some((_, node)) => Ok(node),
            None => Err(self.explain(pod)),
        }
    }

    /// Counts, node by node, the first kind of refusal, in the order in which Kubernetes runs its filters.
    fn explain(&self, pod: &PodInfo) -> Unschedulable {
        let class = &self.classes[&pod.constraints];
        let mut why = Unschedulable { nodes: self.present, ..Unschedulable::default() };
        for (at, facts) in self.nodes.iter().enumerate() {
            match class.verdicts[at] {
                Verdict::Absent => {}
                Verdict::Unschedulable => why.count(Causes::UNSCHEDULABLE, "node(s) were unschedulable"),
                Verdict::Taint(index) => {
                    let (key, value, _) = &facts.taints[usize::from(index)];
                    let reason = format!("node(s) had untolerated taint {{{key}: {value}}}");
                    why.count(Causes::TAINT, &reason);
                }
                Verdict::NotReady => why.count(Causes::NOT_READY, "node(s) were not ready"),
                Verdict::Affinity => {
                    why.count(Causes::AFFINITY, "node(s) didn't match Pod's node affinity/selector");
                }
                Verdict::Fits => self.explain_room(at, &pod.requests, &mut why),
            }
        }
        if why.nodes == 0 {
            why.causes = Causes::ALL;
        }
        why
    }

    fn explain_room(&self, at: usize, asks: &Requests, why: &mut Unschedulable) {
        let (facts, room) = (&self.nodes[at], &self.room[at]);
        if asks.host_ports.iter().any(|port| facts.host_ports.iter().any(|used| used.conflicts(port))) {
            let reason = "node(s) didn't have free ports for the requested pod ports";
            return why.count(Causes::PORTS, reason);
        }
        if room.pods >= room.pods_max {
            why.count(Causes::RESOURCES, "Too many pods");
        }
        if asks.cpu_milli > 0 && room.cpu_used_milli + asks.cpu_milli > room.cpu_milli {
            why.count(Causes::RESOURCES, "Insufficient cpu");
        }
        if asks.memory_bytes > 0 && room.memory_used_bytes + asks.memory_bytes > room.memory_bytes {
            why.count(Causes::RESOURCES, "Insufficient memory");
        }
        for (resource, amount) in &asks.extended {
            if !facts.has_extended(resource, *amount) {
                why.count(Causes::RESOURCES, &format!("Insufficient {resource}"));
            }
        }
    }

    fn index_of(&mut self, name: &str) -> NodeIndex {
        if let Some(&at) = self.by_name.get(name) {
            return at;
        }
        let at = self.nodes.len() as NodeIndex;
        let name: Arc<str> = Arc::from(name);
        self.nodes.push(NodeFacts { name: Arc::clone(&name), ..NodeFacts::default() });
        self.room.push(Room::default());
        self.by_name.insert(name, at);
        self.scratch.group = None;
        for class in self.classes.values_mut() {
            class.verdicts.push(Verdict::Absent);
            class.preferred.push(0);
            class.disliked.push(0);
        }
        at
    }

    fn zone_id(&mut self, zone: &str) -> u32 {
        if let Some(&id) = self.zones.get(zone) {
            return id;
        }
        let id = self.zones.len() as u32 + 1;
        self.zones.insert(zone.to_owned(), id);
        self.scratch.group = None;
        id
    }

    fn account(&mut self, uid: Arc<str>, node: NodeIndex, requests: Requests, group: Option<u64>, assumed: bool) {
        let room = &mut self.room[node as usize];
        room.cpu_used_milli += requests.cpu_milli;
        room.memory_used_bytes += requests.memory_bytes;
        room.scored_cpu_used_milli += requests.scored_cpu_milli;
        room.scored_memory_used_bytes += requests.scored_memory_bytes;
        room.pods += 1;
        let zone = room.zone;
        let facts = &mut self.nodes[node as usize];
        for (resource, amount) in &requests.extended {
            extended_of(&mut facts.extended, resource).used += amount;
        }
        facts.host_ports.extend(requests.host_ports.iter().cloned());
        if let Some(group) = group {
            *self.groups.entry(group).or_default().entry(node).or_default() += 1;
            if self.scratch.group == Some(group) {
                self.scratch.on_node[node as usize] += 1;
                self.scratch.in_zone[zone as usize] += 1;
            }
        }
        self.pods.insert(uid, Accounted { node, requests, group, assumed });
    }

    /// Makes sure that the constraints have a verdict on every node.
    fn classify(&mut self, constraints: &Arc<Constraints>) {
        if self.classes.contains_key(constraints) {
            return;
        }
        if self.classes.len() >= CLASSES_MAX {
            self.classes.clear();
        }
        let mut class = Class::default();
        for facts in &self.nodes {
            let (verdict, preferred, disliked) = judge(constraints, facts);
            class.verdicts.push(verdict);
            class.preferred.push(preferred);
            class.disliked.push(disliked);
        }
        self.classes.insert(Arc::clone(constraints), class);
    }

    fn judge_anew(&mut self, node: NodeIndex) {
        let at = node as usize;
        for (constraints, class) in &mut self.classes {
            let (verdict, preferred, disliked) = judge(constraints, &self.nodes[at]);
            class.verdicts[at] = verdict;
            class.preferred[at] = preferred;
            class.disliked[at] = disliked;
        }
    }

    /// Spells out one spread group by node and zone. Pods of one owner come one after another, so this is seldom redone.
    fn focus(&mut self, group: Option<u64>) {
        let Some(group) = group else { return };
        if self.scratch.group == Some(group) {
            return;
        }
        let Scratch { on_node, in_zone, .. } = &mut self.scratch;
        on_node.clear();
        on_node.resize(self.nodes.len(), 0);
        in_zone.clear();
        in_zone.resize(self.zones.len() + 1, 0);
        for (&node, &count) in self.groups.get(&group).into_iter().flatten() {
            on_node[node as usize] = count;
            in_zone[self.room[node as usize].zone as usize] += count;
        }
        self.scratch.group = Some(group);
    }
}

impl Room {
    /// 100 for an empty node, 0 for a full one: the mean over processor and memory.
    fn least_allocated(&self, asks: &Requests) -> i64 {
        let free = |used: i64, all: i64| {
            if all <= 0 || used >= all { 0 } else { (all - used) * 100 / all }
        };
        let cpu = free(self.scored_cpu_used_milli + asks.scored_cpu_milli, self.cpu_milli);
        let memory = free(self.scored_memory_used_bytes + asks.scored_memory_bytes, self.memory_bytes);
        i64::midpoint(cpu, memory)
    }
}

impl NodeFacts {
    fn has_extended(&self, resource: &str, amount: i64) -> bool {
        let known = self.extended.iter().find(|(name, _)| &**name == resource);
        known.is_some_and(|(_, extended)| extended.used + amount <= extended.allocatable)
    }
}

fn has_special_room(facts: &NodeFacts, asks: &Requests) -> bool {
    asks.extended.iter().all(|(resource, amount)| facts.has_extended(resource, *amount))
        && !asks.host_ports.iter().any(|port| facts.host_ports.iter().any(|used| used.conflicts(port)))
}

fn extended_of<'a>(list: &'a mut Vec<(Arc<str>, Extended)>, resource: &str) -> &'a mut Extended {
    let at = match list.iter().position(|(name, _)| &**name == resource) {
        Some(at) => at,
        None => {
            list.push((Arc::from(resource), Extended::default()));
            list.len() - 1
        }
    };
    &mut list[at].1
}

/// 100 where fewest of the group are, less where more are.
fn evenness(count: u32, least: u32, most: u32) -> i64 {
    if most == 0 {
        return 100;
    }
    (i64::from(most) + i64::from(least) - i64::from(count)) * 100 / i64::from(most)
}

/// One set of constraints on one node: the verdict, the weight of preferences met, the count of disliked taints.
fn judge(constraints: &Constraints, facts: &NodeFacts) -> (Verdict, i64, i64) {
    (verdict(constraints, facts), preference(constraints, facts), dislikes(constraints, facts))
}

fn verdict(constraints: &Constraints, facts: &NodeFacts) -> Verdict {
    if !facts.present {
        return Verdict::Absent;
    }
    if facts.unschedulable && !constraints.tolerates(TAINT_UNSCHEDULABLE, "", "NoSchedule") {
        return Verdict::Unschedulable;
    }
    let refused = facts.taints.iter().position(|(key, value, effect)| {
        (effect == "NoSchedule" || effect == "NoExecute") && !constraints.tolerates(key, value, effect)
    });
    if let Some(index) = refused {
        return Verdict::Taint(u16::try_from(index).unwrap_or(u16::MAX));
    }
    if !facts.ready {
        return Verdict::NotReady;
    }
    let selected =
        constraints.node_selector.iter().all(|(key, value)| facts.labels.get(key).is_some_and(|own| own == value));
    let required = constraints
        .required
        .as_ref()
        .is_none_or(|terms| terms.iter().any(|term| term.matches(&facts.name, &facts.labels)));
    if selected && required { Verdict::Fits } else { Verdict::Affinity }
}

fn preference(constraints: &Constraints, facts: &NodeFacts) -> i64 {
    let met = constraints.preferred.iter().filter(|(_, term)| term.matches(&facts.name, &facts.labels));
    met.map(|(weight, _)| i64::from(*weight)).sum()
}

fn dislikes(constraints: &Constraints, facts: &NodeFacts) -> i64 {
    let disliked = facts
        .taints
        .iter()
        .filter(|(key, value, effect)| effect == "PreferNoSchedule" && !constraints.tolerates(key, value, effect));
    disliked.count() as i64
}

#[cfg(test)]
#[path = "core_test.rs"]
mod core_test;
