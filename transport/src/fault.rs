//! Fault injection: which packets to and from which peers are cut, delayed, lost, reordered or doubled. The chaos commands and the tests set
//! it; the socket asks it for each packet. Holds rules only, touches no packet. Costs one atomic load when nothing is set.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::event::NodeName;

/// Which way, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Both ways.
    Both,
    /// From the peer to this node.
    In,
    /// From this node to the peer.
    Out,
}

/// Whom a fault concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Everybody, also addresses that belong to no known node.
    All,
    /// One node, wherever it is or comes from.
    Node(NodeName),
}

impl From<&str> for Target {
    fn from(node: &str) -> Self {
        Self::Node(node.into())
    }
}

impl From<String> for Target {
    fn from(node: String) -> Self {
        Self::Node(node.into())
    }
}

impl From<NodeName> for Target {
    fn from(node: NodeName) -> Self {
        Self::Node(node)
    }
}

/// Handle to a transport's faults. Faults are on the wire: streams, datagrams and handshakes suffer alike. A message to
/// one's own node name never leaves the process and suffers nothing.
#[derive(Clone, Debug)]
pub struct Faults {
    pub(crate) table: Arc<FaultTable>,
}

impl Faults {
    /// Loses every packet in that direction, until healed.
    pub fn cut(&self, target: impl Into<Target>, direction: Direction) {
        self.table.change(target.into(), direction, |way| way.cut = true);
    }

    /// Holds every packet to and from the target for `delay` (so the round trip grows by twice that); zero ends it.
    pub fn delay(&self, target: impl Into<Target>, delay: Duration) {
        self.delay_way(target, Direction::Both, delay);
    }

    /// As [`delay`](Self::delay), in one direction.
    pub fn delay_way(&self, target: impl Into<Target>, direction: Direction, delay: Duration) {
        self.table.change(target.into(), direction, |way| way.delay = delay);
    }

    /// Loses each packet to and from the target with this probability (0.0 to 1.0); zero ends it.
    pub fn drop(&self, target: impl Into<Target>, probability: f64) {
        self.drop_way(target, Direction::Both, probability);
    }

    /// As [`drop`](Self::drop), in one direction.
    pub fn drop_way(&self, target: impl Into<Target>, direction: Direction, probability: f64) {
        self.table.change(target.into(), direction, |way| {
            way.loss = probability.clamp(0.0, 1.0);
        });
    }

    /// Holds each packet to and from the target with this probability (0.0 to 1.0) for a random while of at most `by`, so
    /// that later ones overtake it; zero ends it.
    pub fn reorder(&self, target: impl Into<Target>, probability: f64, by: Duration) {
        self.reorder_way(target, Direction::Both, probability, by);
    }

    /// As [`reorder`](Self::reorder), in one direction.
    pub fn reorder_way(&self, target: impl Into<Target>, direction: Direction, probability: f64, by: Duration) {
        self.table.change(target.into(), direction, |way| {
            way.reorder = probability.clamp(0.0, 1.0);
            way.reorder_by = if probability > 0.0 { by } else { Duration::ZERO };
        });
    }

    /// Delivers each packet to and from the target with this probability (0.0 to 1.0) twice, the second time a random
    /// while of at most 10 ms (or the `by` of [`reorder`](Self::reorder), if longer) later; zero ends it.
    pub fn duplicate(&self, target: impl Into<Target>, probability: f64) {
        self.duplicate_way(target, Direction::Both, probability);
    }

    /// As [`duplicate`](Self::duplicate), in one direction.
    pub fn duplicate_way(&self, target: impl Into<Target>, direction: Direction, probability: f64) {
        self.table.change(target.into(), direction, |way| way.duplicate = probability.clamp(0.0, 1.0));
    }

    /// Ends the faults of one node, or, with [`Target::All`], every fault there is.
    pub fn heal(&self, target: impl Into<Target>) {
        self.table.heal(target.into());
    }
}

/// What happens to packets in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Way {
    pub(crate) cut: bool,
    pub(crate) delay: Duration,
    pub(crate) loss: f64,
    /// How likely a packet is held for up to `reorder_by`.
    pub(crate) reorder: f64,
    pub(crate) reorder_by: Duration,
    pub(crate) duplicate: f64,
}

impl Way {
    fn is_clear(&self) -> bool {
        *self == Self::default()
    }

    /// Both faults at once: cut if either cuts, delays add up, the rest is independent.
    fn with(self, other: Self) -> Self {
        let either = |a: f64, b: f64| 1.0 - (1.0 - a) * (1.0 - b);
        Self {
            cut: self.cut || other.cut,
            delay: self.delay + other.delay,
            loss: either(self.loss, other.loss),
            reorder: either(self.reorder, other.reorder),
            reorder_by: self.reorder_by.max(other.reorder_by),
            duplicate: either(self.duplicate, other.duplicate),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Rule {
    inward: Way,
    outward: Way,
}

impl Rule {
    fn way(&self, outward: bool) -> Way {
        if outward { self.outward } else { self.inward }
    }
}

#[derive(Debug, Default)]
struct Rules {
    all: Rule,
    nodes: HashMap<NodeName, Rule>,
    /// Where nodes are, as set and as seen.
    addresses: HashMap<NodeName, Addresses>,
    owners: HashMap<SocketAddr, NodeName>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Addresses {
    set: Option<SocketAddr>,
    seen: Option<SocketAddr>,
}

/// The rules, and the map from addresses to nodes.
#[derive(Debug, Default)]
pub(crate) struct FaultTable {
    active: AtomicBool,
    dead: AtomicBool,
    rules: Mutex<Rules>,
}

impl FaultTable {
    /// Whether any packet needs a second look.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Nothing goes out or in any more, for good: the process is as if it had died.
    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.active.store(true, Ordering::Release);
    }

    /// What happens to a packet to (`outward`) or from `addr`.
    pub(crate) fn way(&self, addr: SocketAddr, outward: bool) -> Way {
        if self.dead.load(Ordering::Relaxed) {
            return Way { cut: true, ..Way::default() };
        }
        let rules = self.rules.lock();
        let all = rules.all.way(outward);
        let node = rules.owners.get(&canonical(addr)).and_then(|owner| rules.nodes.get(owner));
        match node {
            Some(rule) => all.with(rule.way(outward)),
            None => all,
        }
    }

    /// Whether the node is cut in either direction. Asked at the hello, when an unknown address gets its name.
    pub(crate) fn cuts(&self, node: &str) -> bool {
        if !self.is_active() {
            return false;
        }
        let rules = self.rules.lock();
        let cut = |rule: &Rule| rule.inward.cut || rule.outward.cut;
        cut(&rules.all) || rules.nodes.get(node).is_some_and(cut)
    }

    /// `set_peer` gave the node this address (or none).
    pub(crate) fn place(&self, node: &NodeName, addr: Option<SocketAddr>) {
        self.rules.lock().locate(node, |a| a.set = addr);
    }

    /// A connection of the node is at this address.
    pub(crate) fn see(&self, node: &NodeName, addr: SocketAddr) {
        self.rules.lock().locate(node, |a| a.seen = Some(addr));
    }

    fn change(&self, target: Target, direction: Direction, mut change: impl FnMut(&mut Way)) {
        let mut rules = self.rules.lock();
        let rule = match target {
            Target::All => &mut rules.all,
            Target::Node(node) => rules.nodes.entry(node).or_default(),
        };
        if direction != Direction::Out {
            change(&mut rule.inward);
        }
        if direction != Direction::In {
            change(&mut rule.outward);
        }
        self.refresh(&rules);
    }

    fn heal(&self, target: Target) {
        let mut rules = self.rules.lock();
        match target {
            Target::All => {
                rules.all = Rule::default();
                rules.nodes.clear();
            }
            Target::Node(node) => {
                rules.nodes.remove(&node);
            }
        }
        self.refresh(&rules);
    }

    fn refresh(&self, rules: &Rules) {
        let clear = |rule: &Rule| rule.inward.is_clear() && rule.outward.is_clear();
        let active = !clear(&rules.all) || rules.nodes.values().any(|rule| !clear(rule));
        // `die` may have come first and must win; it is never undone.
        self.active.store(active || self.dead.load(Ordering::Relaxed), Ordering::Release);
    }
}

impl Rules {
    fn locate(&mut self, node: &NodeName, change: impl FnOnce(&mut Addresses)) {
        let entry = self.addresses.entry(node.clone()).or_default();
        let before = *entry;
        change(entry);
        let after = *entry;
        for old in [before.set, before.seen].into_iter().flatten() {
            let old = canonical(old);
            if self.owners.get(&old) == Some(node) {
                self.owners.remove(&old);
            }
        }
        for new in [after.set, after.seen].into_iter().flatten() {
            self.owners.insert(canonical(new), node.clone());
        }
        if after.set.is_none() && after.seen.is_none() {
            self.addresses.remove(node);
        }
    }
}

/// A dual-stack socket shows IPv4 peers as mapped IPv6 addresses.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn faults() -> Faults {
        Faults { table: Arc::new(FaultTable::default()) }
    }

    #[test]
    fn nothing_set_costs_nothing_and_healing_returns_to_that() {
        let faults = faults();
        assert!(!faults.table.is_active());
        faults.cut("n2", Direction::Both);
        faults.delay(Target::All, Duration::from_millis(5));
        assert!(faults.table.is_active());
        faults.heal("n2");
        assert!(faults.table.is_active());
        faults.heal(Target::All);
        assert!(!faults.table.is_active());
    }

    #[test]
    fn a_cut_has_a_direction_and_follows_the_node_to_each_of_its_addresses() {
        let faults = faults();
        let node: NodeName = "n2".into();
        faults.table.place(&node, Some(addr(1)));
        faults.table.see(&node, addr(2));
        faults.cut("n2", Direction::Out);
        for port in [1, 2] {
            assert!(faults.table.way(addr(port), true).cut);
            assert!(!faults.table.way(addr(port), false).cut);
        }
        assert!(!faults.table.way(addr(3), true).cut);
        faults.table.see(&node, addr(3));
        assert!(faults.table.way(addr(3), true).cut);
        assert!(!faults.table.way(addr(2), true).cut);
    }

    #[test]
    fn cutting_all_cuts_unknown_addresses_too() {
        let faults = faults();
        faults.cut(Target::All, Direction::Both);
        assert!(faults.table.way(addr(9), true).cut && faults.table.way(addr(9), false).cut);
    }

    #[test]
    fn healing_a_node_leaves_what_is_set_for_all() {
        let faults = faults();
        faults.table.place(&"n2".into(), Some(addr(1)));
        faults.drop(Target::All, 0.5);
        faults.drop("n2", 0.5);
        assert_eq!(faults.table.way(addr(1), true).loss, 0.75);
        faults.heal("n2");
        assert_eq!(faults.table.way(addr(1), true).loss, 0.5);
    }

    #[test]
    fn the_dead_stay_dead() {
        let faults = faults();
        faults.table.die();
        faults.heal(Target::All);
        assert!(faults.table.is_active() && faults.table.way(addr(1), true).cut);
    }
}
