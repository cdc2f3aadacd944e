//! Leases of nodes, as the leader keeps them: a pure core, driven by renewals, probe answers and ticks.
//!
//! ```text
//!            renewal                    renewal, or a probe that reached it
//!      ┌───────────────┐           ┌────────────────────────────────────────┐
//!      ▼               │           ▼                                        │
//!   ┌──────┐  no renewal for    ┌─────────┐  lapsed, no probe reached it  ┌──────┐
//!   │ Held │ ── SUSPECT_MS ───▶ │ Suspect │ ────────── Lost ────────────▶ │ Lost │ ── renewal ──▶ Held (Back)
//!   └──────┘  or a closed link  └─────────┘                               └──────┘
//! ```
//! Probing starts *before* the lease lapses, so that the answer is there when it does: a node that is gone is declared
//! lost at [`LeaseTimes::ttl_ms`], not a probe's time-out later. A node that some peer still reaches keeps its lease:
//! then the link to the leader is at fault, not the node.
//!
//! Must never read a clock (time is an argument, milliseconds of any monotonic clock), and never declare lost: a node
//! that renewed within the time to live; anybody right after the leader itself stood still; many at once before the
//! leader's own view has been confirmed by its quorum. Called by the lease driver of `control`.

use std::collections::BTreeMap;

/// A monotonic time, in milliseconds.
pub type Millis = u64;

/// The times of the failure detector. Defaults are the design's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// A node renews this often.
    pub renew_ms: Millis,
    /// Without a renewal for this long a node is suspect and is probed by others.
    pub suspect_ms: Millis,
    /// Without a renewal for this long a lease has lapsed; the node itself knows, too.
    pub ttl_ms: Millis,
    /// An unanswered probe counts as failed after this long.
    pub probe_ms: Millis,
    /// If the leader was not scheduled for this long it doubts its own clock and grants every lease anew.
    pub pause_ms: Millis,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self { renew_ms: 150, suspect_ms: 300, ttl_ms: 450, probe_ms: 120, pause_ms: 200 }
    }
}

/// How many peers are asked to probe a suspect node.
pub const PROBERS_MAX: usize = 3;
/// When more than one in this many nodes lapses together, the leader asks for confirmation first.
const DOUBT_ONE_IN: usize = 3;
/// Fewer nodes than this are never "many": in a cluster of three, one dead node is one in three.
const DOUBT_NODES_MIN: usize = 2;

/// What happens to the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// A node renewed, or registered.
    Renewed {
        /// Which node.
        node: String,
        /// Its boot. An older boot's renewal is ignored.
        incarnation: u64,
    },
    /// The link to a node closed: a hint that starts the probe at once.
    LinkClosed {
        /// Which node.
        node: String,
    },
    /// A peer's answer to [`LeaseAction::Probe`].
    Probed {
        /// Who was probed.
        node: String,
        /// Who probed.
        by: String,
        /// Whether it answered.
        reached: bool,
    },
    /// The other servers confirmed that they, too, see this server as leader (or did not).
    Confirmed {
        /// Whether a majority did.
        majority: bool,
    },
    /// The node has left the cluster for good.
    Removed {
        /// Which node.
        node: String,
    },
    /// The leader grants leases again after it could not: what nobody could renew counts as renewed now.
    Resumed,
    /// Time passed. Due at least every [`LeaseTimes::renew_ms`] / 4.
    Tick,
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAction {
    /// Ask each of `via` (and try yourself) whether `node` answers.
    Probe {
        /// The suspect.
        node: String,
        /// Other nodes whose leases are held.
        via: Vec<String>,
    },
    /// The node is lost: fence it out and replace what it ran.
    Lost {
        /// Which node.
        node: String,
        /// The boot that is lost.
        incarnation: u64,
        /// How long ago it renewed for the last time.
        silent_ms: Millis,
    },
    /// A lost node renews again.
    Back {
        /// Which node.
        node: String,
        /// Its boot.
        incarnation: u64,
    },
    /// Ask the other servers whether they follow this leader; answer with [`LeaseEvent::Confirmed`].
    Confirm,
}

/// The state of one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Renewed in time.
    Held,
    /// Silent; being probed.
    Suspect,
    /// Declared lost.
    Lost,
}

#[derive(Debug)]
struct Lease {
    incarnation: u64,
    renewed: Millis,
    state: LeaseState,
    /// Peers asked in the current round and not heard yet.
    asked: Vec<String>,
    /// When the current round began.
    round: Millis,
    /// Whether the current round has ended with nobody reaching the node.
    unreached: bool,
}

/// All leases of the cluster.
#[derive(Debug)]
pub struct LeaseTable {
    times: LeaseTimes,
    me: String,
    nodes: BTreeMap<String, Lease>,
    last_tick: Millis,
    /// `Some` while a confirmation is awaited; what time it was asked.
    confirming: Option<Millis>,
    /// Until when the last confirmation counts.
    confirmed_until: Millis,
}

impl LeaseTable {
    /// A new leader's table: every known node is granted a lease now. `me` is the leader's own node.
    pub fn new(me: &str, times: LeaseTimes, nodes: impl IntoIterator<Item = (String, u64)>, now: Millis) -> Self {
        let nodes = nodes.into_iter().map(|(name, incarnation)| (name, Lease::granted(incarnation, now))).collect();
        Self { times, me: me.into(), nodes, last_tick: now, confirming: None, confirmed_until: 0 }
    }

    /// The node that led in the term right before this one has had no lease to grant itself for `silent_ms`, so that much
    /// of its own lease is over (see [`super::renewal::RenewalEvent::Deposed`], its counterpart).
    pub fn deposed(&mut self, node: &str, silent_ms: Millis) {
        if let Some(lease) = self.nodes.get_mut(node) {
            lease.renewed = lease.renewed.saturating_sub(silent_ms);
        }
    }

    /// The state of a node's lease and the milliseconds since it renewed.
    pub fn state(&self, node: &str, now: Millis) -> Option<(LeaseState, Millis)> {
        self.nodes.get(node).map(|lease| (lease.state, now.saturating_sub(lease.renewed)))
    }

    /// Every node with its state and the milliseconds since it renewed.
    pub fn iter(&self, now: Millis) -> impl Iterator<Item = (&str, LeaseState, Millis)> {
        self.nodes.iter().map(move |(name, lease)| (name.as_str(), lease.state, now.saturating_sub(lease.renewed)))
    }

    /// Marks a node that was lost under an earlier leader, so that its return is seen as such.
    pub fn mark_lost(&mut self, node: &str) {
        if let Some(lease) = self.nodes.get_mut(node) {
            lease.state = LeaseState::Lost;
        }
    }

    /// Takes one event in; what must be done comes out.
    pub fn on_event(&mut self, event: LeaseEvent, now: Millis) -> Vec<LeaseAction> {
        let mut out = Vec::new();
        match event {
            LeaseEvent::Renewed { node, incarnation } => self.renewed(node, incarnation, now, &mut out),
            LeaseEvent::LinkClosed { node } => self.suspect(&node, now, &mut out),
            LeaseEvent::Probed { node, by, reached } => self.probed(&node, &by, reached, now),
            LeaseEvent::Confirmed { majority } => {
                self.confirming = None;
                // Without a majority nothing is replaced: somebody else may be leading already.
                self.confirmed_until = if majority { now + self.times.ttl_ms } else { 0 };
            }
            LeaseEvent::Removed { node } => {
                self.nodes.remove(&node);
            }
            LeaseEvent::Resumed => self.grant_anew(now),
            LeaseEvent::Tick => self.tick(now, &mut out),
        }
        out
    }

    fn renewed(&mut self, node: String, incarnation: u64, now: Millis, out: &mut Vec<LeaseAction>) {
        let Some(lease) = self.nodes.get_mut(&node) else {
            self.nodes.insert(node.clone(), Lease::granted(incarnation, now));
            out.push(LeaseAction::Back { node, incarnation });
            return;
        };
        if incarnation < lease.incarnation {
            return;
        }
        let back = lease.state == LeaseState::Lost || incarnation > lease.incarnation;
        *lease = Lease::granted(incarnation, now);
        if back {
            out.push(LeaseAction::Back { node, incarnation });
        }
    }

    fn suspect(&mut self, node: &str, now: Millis, out: &mut Vec<LeaseAction>) {
        let via: Vec<String> = self
            .nodes
            .iter()
            .filter(|(name, lease)| *name != node && **name != self.me && lease.state == LeaseState::Held)
            .map(|(name, _)| name.clone())
            .take(PROBERS_MAX)
            .collect();
        let me = self.me.clone();
        let Some(lease) = self.nodes.get_mut(node) else { return };
        if lease.state != LeaseState::Held {
            return;
        }
        lease.state = LeaseState::Suspect;
        lease.begin_round(&me, &via, now);
        out.push(LeaseAction::Probe { node: node.into(), via });
    }

    fn probed(&mut self, node: &str, by: &str, reached: bool, now: Millis) {
        let Some(lease) = self.nodes.get_mut(node) else { return };
        // Only who was asked in this round is believed.
        if lease.state != LeaseState::Suspect || !lease.asked.iter().any(|peer| peer == by) {
            return;
        }
        if reached {
            // Somebody reaches it: only the link to us is at fault. The node keeps its lease from now on.
            lease.state = LeaseState::Held;
            lease.renewed = now;
            return;
        }
        lease.asked.retain(|peer| peer != by);
        lease.unreached |= lease.asked.is_empty();
    }

    fn grant_anew(&mut self, now: Millis) {
        self.last_tick = now;
        for lease in self.nodes.values_mut().filter(|lease| lease.state != LeaseState::Lost) {
            *lease = Lease::granted(lease.incarnation, now);
        }
    }

    fn tick(&mut self, now: Millis, out: &mut Vec<LeaseAction>) {
        let stood_still = now.saturating_sub(self.last_tick) > self.times.pause_ms;
        self.last_tick = now;
        if stood_still {
            // The renewals are waiting in a socket that nobody read: we were away, not they.
            self.grant_anew(now);
            return;
        }
        let silent: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, l)| l.state == LeaseState::Held && now.saturating_sub(l.renewed) >= self.times.suspect_ms)
            .map(|(name, _)| name.clone())
            .collect();
        for node in silent {
            self.suspect(&node, now, out);
        }
        let probe_ms = self.times.probe_ms;
        for lease in self.nodes.values_mut().filter(|lease| lease.state == LeaseState::Suspect) {
            lease.unreached |= now.saturating_sub(lease.round) >= probe_ms;
        }
        self.declare(now, out);
    }

    fn declare(&mut self, now: Millis, out: &mut Vec<LeaseAction>) {
        let lapsed: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, l)| {
                l.state == LeaseState::Suspect && l.unreached && now.saturating_sub(l.renewed) >= self.times.ttl_ms
            })
            .map(|(name, _)| name.clone())
            .collect();
        if lapsed.is_empty() {
            return;
        }
        let alive = self.nodes.values().filter(|lease| lease.state != LeaseState::Lost).count();
        let many = lapsed.len() >= DOUBT_NODES_MIN && lapsed.len() * DOUBT_ONE_IN > alive;
        if many && now >= self.confirmed_until {
            // A question that got no answer is asked again after a time to live.
            if self.confirming.is_none_or(|asked| now.saturating_sub(asked) >= self.times.ttl_ms) {
                self.confirming = Some(now);
                out.push(LeaseAction::Confirm);
            }
            return;
        }
        for node in lapsed {
            let Some(lease) = self.nodes.get_mut(&node) else { continue };
            lease.state = LeaseState::Lost;
            let silent_ms = now.saturating_sub(lease.renewed);
            out.push(LeaseAction::Lost { incarnation: lease.incarnation, node, silent_ms });
        }
    }
}

impl Lease {
    fn granted(incarnation: u64, now: Millis) -> Self {
        Self { incarnation, renewed: now, state: LeaseState::Held, asked: Vec::new(), round: now, unreached: false }
    }

    fn begin_round(&mut self, me: &str, via: &[String], now: Millis) {
        self.asked = via.to_vec();
        self.asked.push(me.into());
        self.round = now;
        self.unreached = false;
    }
}

#[cfg(test)]
#[path = "lease_test.rs"]
mod tests;
