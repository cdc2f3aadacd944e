//! The node's side of its lease: a pure core that says when to renew, whom to ask, and when the node must take itself
//! for lost.
//!
//! Must never read a clock. Its fence is the reason that stateful pods can be replaced safely: a node that was not
//! granted its lease for the time to live stops its exclusive pods by itself, before the leader may replace them. The
//! time to live runs from when the *request* was sent, not from when the grant arrived, since the leader's clock started
//! no later than that. Driven by the node's lease task.

use std::collections::VecDeque;

use super::lease::{LeaseTimes, Millis};

/// Requests remembered while their answers are out.
const OUTSTANDING_MAX: usize = 16;
/// The least time between two renewals, in milliseconds, while nothing was granted yet: at the start of the node, or by a new leader.
const EAGER_MS: Millis = 20;

/// What happens to the node's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenewalEvent {
    /// The leader granted request `seq`.
    Granted {
        /// The leader's node.
        leader: String,
        /// Its Raft term: an older term's grant does not count.
        term: u64,
        /// Which request.
        seq: u64,
    },
    /// A server says that it leads (or whom it follows).
    Leader {
        /// The leader's node.
        leader: String,
        /// Its Raft term.
        term: u64,
    },
    /// This node led, and leads no more. What it granted itself in the last `silent_ms` does not count: its quorum may have
    /// left it by then, and its successor counts on that (see [`super::lease::LeaseTable::deposed`]).
    Deposed {
        /// The time, in milliseconds, for which a leader may go on without hearing from its quorum.
        silent_ms: Millis,
    },
    /// Time passed.
    Tick,
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenewalAction {
    /// Send a renewal to one node.
    Renew {
        /// The leader as this node knows it.
        to: String,
        /// To be repeated in the grant.
        seq: u64,
    },
    /// Nobody is known to lead, or the leader is silent: send a renewal to every server.
    RenewAll {
        /// To be repeated in the grant.
        seq: u64,
    },
    /// The lease has lapsed: stop exclusive pods now.
    Fence,
    /// The lease is held again.
    Unfence,
    /// Another node leads now: open the session with it.
    Follow {
        /// The leader's node.
        leader: String,
        /// Its Raft term.
        term: u64,
    },
}

/// The node's view of its own lease.
#[derive(Debug)]
pub struct Renewal {
    times: LeaseTimes,
    leader: Option<String>,
    term: u64,
    seq: u64,
    sent: VecDeque<(u64, Millis)>,
    /// The sending time of the newest request that was granted.
    granted: Millis,
    last_sent: Option<Millis>,
    /// The newest term in which a lease was granted.
    granted_term: u64,
    /// Whether this boot of the node was ever granted its lease.
    ever: bool,
    fenced: bool,
}

impl Renewal {
    /// A node that starts has its lease to win: what must not run twice waits for the first grant.
    pub fn new(times: LeaseTimes, now: Millis) -> Self {
        Self {
            times,
            leader: None,
            term: 0,
            seq: 0,
            sent: VecDeque::new(),
            granted: now,
            last_sent: None,
            granted_term: 0,
            ever: false,
            fenced: true,
        }
    }

    /// The leader, as far as this node knows.
    pub fn leader(&self) -> Option<&str> {
        self.leader.as_deref()
    }

    /// Whether the node must take itself for lost.
    pub fn fenced(&self) -> bool {
        self.fenced
    }

    /// Takes one event in; what must be done comes out.
    pub fn on_event(&mut self, event: RenewalEvent, now: Millis) -> Vec<RenewalAction> {
        let mut out = Vec::new();
        // First of all: a grant that comes after the lapse must not hide it.
        if !self.fenced && now.saturating_sub(self.granted) >= self.times.ttl_ms {
            self.fenced = true;
            out.push(RenewalAction::Fence);
        }
        match event {
            RenewalEvent::Leader { leader, term } => {
                // A follower hears of its leader from Raft before that leader grants anything; it asks again when told so by the
                // leader itself, and not only when the next renewal is due.
                let ungranted = term == self.term && self.granted_term < term;
                let rested = self.last_sent.is_none_or(|at| now.saturating_sub(at) >= EAGER_MS);
                if self.follow(leader, term, &mut out) || (ungranted && rested) {
                    self.renew(now, &mut out);
                }
            }
            RenewalEvent::Granted { leader, term, seq } => {
                if term < self.term {
                    return out;
                }
                self.follow(leader, term, &mut out);
                self.granted_term = term;
                if let Some(at) = self.sent.iter().find(|(s, _)| *s == seq).map(|(_, at)| *at) {
                    self.granted = self.granted.max(at);
                    self.sent.retain(|(s, _)| *s > seq);
                    self.ever = true;
                }
                if self.fenced && self.ever && now.saturating_sub(self.granted) < self.times.ttl_ms {
                    self.fenced = false;
                    out.push(RenewalAction::Unfence);
                }
            }
            RenewalEvent::Deposed { silent_ms } => {
                let heard = now.saturating_sub(silent_ms);
                self.granted = self.granted.min(heard);
                // A grant of its own that is still on its way must not undo this.
                self.sent.clear();
            }
            RenewalEvent::Tick => {
                // A node that starts has no connection yet, most likely.
                let period = if self.ever { self.times.renew_ms } else { EAGER_MS };
                if self.last_sent.is_none_or(|at| now.saturating_sub(at) >= period) {
                    self.renew(now, &mut out);
                }
            }
        }
        out
    }

    /// Whether the leader is a new one.
    fn follow(&mut self, leader: String, term: u64, out: &mut Vec<RenewalAction>) -> bool {
        if term < self.term || (term == self.term && self.leader.is_some()) {
            return false;
        }
        self.term = term;
        self.leader = Some(leader.clone());
        out.push(RenewalAction::Follow { leader, term });
        true
    }

    fn renew(&mut self, now: Millis, out: &mut Vec<RenewalAction>) {
        self.seq += 1;
        self.last_sent = Some(now);
        if self.sent.len() == OUTSTANDING_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.seq, now));
        // One unanswered renewal may be a lost datagram; the second means that the leader may be gone.
        let silent = now.saturating_sub(self.granted) >= self.times.renew_ms * 2;
        match &self.leader {
            Some(leader) if !silent => out.push(RenewalAction::Renew { to: leader.clone(), seq: self.seq }),
            _ => out.push(RenewalAction::RenewAll { seq: self.seq }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(term: u64, seq: u64) -> RenewalEvent {
        RenewalEvent::Granted { leader: format!("n{term}"), term, seq }
    }

    /// Ticks each 25 ms; grants each request after `delay`.
    fn settle(r: &mut Renewal, to: Millis) {
        for now in (0..=to).step_by(25) {
            for action in r.on_event(RenewalEvent::Tick, now) {
                if let RenewalAction::Renew { seq, .. } | RenewalAction::RenewAll { seq } = action {
                    r.on_event(granted(1, seq), now);
                }
            }
        }
    }

    #[test]
    fn a_new_node_asks_everybody_then_the_leader_alone() {
        let mut r = Renewal::new(LeaseTimes::default(), 0);
        assert_eq!(r.on_event(RenewalEvent::Tick, 0), [RenewalAction::RenewAll { seq: 1 }]);
        assert!(r.fenced(), "not held before it is granted");
        let follow = RenewalAction::Follow { leader: "n1".into(), term: 1 };
        assert_eq!(r.on_event(granted(1, 1), 5), [follow, RenewalAction::Unfence]);
        assert_eq!(r.on_event(RenewalEvent::Tick, 100), []);
        assert_eq!(r.on_event(RenewalEvent::Tick, 150), [RenewalAction::Renew { to: "n1".into(), seq: 2 }]);
    }

    #[test]
    fn the_fence_falls_at_the_time_to_live_after_the_last_granted_request() {
        let mut r = Renewal::new(LeaseTimes::default(), 0);
        settle(&mut r, 900);
        let mut fenced_at = None;
        for now in (925..2_000).step_by(25) {
            if r.on_event(RenewalEvent::Tick, now).contains(&RenewalAction::Fence) {
                assert_eq!(fenced_at.replace(now), None, "once");
            }
        }
        assert_eq!(fenced_at, Some(1_350), "the last granted request went out at 900");
    }

    #[test]
    fn a_grant_that_comes_too_late_does_not_lift_the_fence() {
        let mut r = Renewal::new(LeaseTimes::default(), 0);
        r.on_event(RenewalEvent::Tick, 0);
        r.on_event(RenewalEvent::Tick, 450);
        assert!(r.fenced());
        r.on_event(granted(1, 1), 600);
        assert!(r.fenced(), "request 1 went out 600 ms ago");
        assert!(r.on_event(granted(1, 2), 610).contains(&RenewalAction::Unfence));
    }

    #[test]
    fn a_deposed_leader_is_fenced_before_its_successor_may_replace_it() {
        use super::super::lease::{LeaseAction, LeaseEvent, LeaseTable};
        let times = LeaseTimes::default();
        let mut r = Renewal::new(times.clone(), 0);
        settle(&mut r, 900);
        // Its quorum is gone since 700; it notices at 900, when its successor may have been elected already.
        r.on_event(RenewalEvent::Deposed { silent_ms: 200 }, 900);
        r.on_event(granted(1, 7), 901);
        let mut table = LeaseTable::new("n2", times, [("n1".to_owned(), 1), ("n2".to_owned(), 1)], 900);
        table.deposed("n1", 200);
        let (mut fenced, mut lost) = (None, None);
        for now in (915..2_000).step_by(15) {
            if r.on_event(RenewalEvent::Tick, now).contains(&RenewalAction::Fence) {
                fenced = fenced.or(Some(now));
            }
            table.on_event(LeaseEvent::Renewed { node: "n2".into(), incarnation: 1 }, now);
            for action in table.on_event(LeaseEvent::Tick, now) {
                match action {
                    LeaseAction::Probe { node, .. } => {
                        table.on_event(LeaseEvent::Probed { node, by: "n2".into(), reached: false }, now);
                    }
                    LeaseAction::Lost { .. } => lost = lost.or(Some(now)),
                    _ => {}
                }
            }
        }
        assert_eq!((fenced, lost), (Some(1_155), Some(1_155)), "450 ms after 700, and not 450 ms after the election");
    }

    #[test]
    fn a_grant_between_two_ticks_does_not_hide_that_the_lease_had_lapsed() {
        let mut r = Renewal::new(LeaseTimes::default(), 0);
        r.on_event(RenewalEvent::Tick, 0);
        r.on_event(granted(1, 1), 1);
        r.on_event(RenewalEvent::Tick, 440);
        assert_eq!(r.on_event(granted(1, 2), 455), [RenewalAction::Fence, RenewalAction::Unfence]);
    }

    #[test]
    fn a_new_leader_is_followed_and_asked_at_once_and_an_old_one_is_not() {
        let mut r = Renewal::new(LeaseTimes::default(), 0);
        settle(&mut r, 300);
        let actions = r.on_event(RenewalEvent::Leader { leader: "n2".into(), term: 2 }, 310);
        assert_eq!(actions.len(), 2);
        assert!(matches!(&actions[1], RenewalAction::Renew { to, .. } if to == "n2"));
        assert_eq!(r.on_event(RenewalEvent::Leader { leader: "n1".into(), term: 1 }, 320), []);
        let again = || RenewalEvent::Leader { leader: "n2".into(), term: 2 };
        assert_eq!(r.on_event(again(), 325), [], "asked a moment ago");
        assert!(matches!(r.on_event(again(), 331)[..], [RenewalAction::Renew { .. }]), "nothing was granted yet");
        r.on_event(granted(2, 5), 340);
        assert_eq!(r.on_event(again(), 400), []);
        assert_eq!(r.leader(), Some("n2"));
        assert_eq!(r.on_event(granted(1, 99), 330), []);
    }
}
