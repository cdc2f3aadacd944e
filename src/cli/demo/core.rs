//! The show: what is Ready where, what is being timed, what was said. A function of events and their times.
//!
//! ```text
//!   Kill(node) ──▶ stopwatch starts ── Change... ──▶ goal reached? ──▶ stopwatch stops at that event's time
//! ```
//! Pure: times are handed in, as the time since the show began. Driven by `run`, drawn by `view` and `lines`.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::failover::board::{Board, Change, News};

/// Lines that are kept for the view.
pub const FEED_MAX: usize = 500;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub server: bool,
}

/// What stops a stopwatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// As many pods as wanted are Ready on nodes that live.
    Replicas,
    /// A write has been acknowledged.
    Write,
    /// These nodes are Ready, and exactly as many pods as wanted exist, all Ready.
    Settled(Vec<String>),
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopwatch {
    /// What happened.
    pub title: String,
    /// What is waited for, in words.
    pub until: String,
    pub goal: Goal,
    /// Pods that were lost.
    pub pods: usize,
    /// Since the show began.
    pub started: Duration,
    /// How long it took, once it is over.
    pub took: Option<Duration>,
}

/// What may happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A new act begins.
    Act(String),
    /// Something to say.
    Note(String),
    /// The cluster consists of these.
    Nodes(Vec<Node>),
    /// Who leads, if anyone is known to.
    Leader(Option<String>),
    /// A server has shown something.
    Change(Change),
    /// A node is about to be killed.
    Kill { node: String, leader: bool },
    /// Killed nodes are started again.
    Restart(Vec<String>),
    /// A server has acknowledged a write.
    Written,
}

/// The state of the show.
#[derive(Clone, Debug)]
pub struct Show {
    pub replicas: usize,
    pub nodes: Vec<Node>,
    pub leader: Option<String>,
    pub act: String,
    pub board: Board,
    pub stopwatches: Vec<Stopwatch>,
    pub feed: VecDeque<(Duration, String)>,
}

impl Show {
    /// Before anything has happened.
    pub fn new(replicas: usize) -> Self {
        Self {
            replicas,
            nodes: Vec::new(),
            leader: None,
            act: String::new(),
            board: Board::default(),
            stopwatches: Vec::new(),
            feed: VecDeque::new(),
        }
    }

    /// Takes in an event that happened at `now`; gives what is to be said of it.
    pub fn apply(&mut self, event: Event, now: Duration) -> Vec<String> {
        let mut said = Vec::new();
        match event {
            Event::Act(act) => {
                said.push(act.clone());
                self.act = act;
            }
            Event::Note(note) => said.push(note),
            Event::Nodes(nodes) => self.nodes = nodes,
            Event::Leader(leader) => {
                if let Some(name) = leader.as_ref().filter(|_| leader != self.leader) {
                    said.push(format!("{name} leads the control plane"));
                }
                self.leader = leader;
            }
            Event::Change(change) => said.extend(self.board.apply(change).into_iter().map(tell)),
            Event::Kill { node, leader } => {
                let pods = self.board.kill(&node);
                let what = if leader { "leader " } else { "node " };
                said.push(format!("kill -9: {what}{node} and the {pods} pods on it"));
                let title = format!("{what}{node} killed");
                let until = format!("{0}/{0} pods Ready on the nodes left", self.replicas);
                self.start(&title, until, Goal::Replicas, pods, now);
                if leader {
                    self.leader = None;
                    self.start(&title, "the next write is accepted".into(), Goal::Write, 0, now);
                }
            }
            Event::Restart(nodes) => {
                nodes.iter().for_each(|node| self.board.restart(node));
                let title = format!("{} started again", nodes.join(" and "));
                said.push(title.clone());
                let until = format!("nodes Ready, {0}/{0} pods Ready, none too many", self.replicas);
                self.start(&title, until, Goal::Settled(nodes), 0, now);
            }
            Event::Written => said.extend(self.stop(now, |goal, _| *goal == Goal::Write)),
        }
        let replicas = self.replicas;
        said.extend(self.stop(now, |goal, board| match goal {
            Goal::Replicas => board.ready() >= replicas,
            Goal::Settled(nodes) => board.settled(replicas) && nodes.iter().all(|n| board.node_ready(n)),
            Goal::Write => false,
        }));
        for line in &said {
            if self.feed.len() == FEED_MAX {
                self.feed.pop_front();
            }
            self.feed.push_back((now, line.clone()));
        }
        said
    }

    fn start(&mut self, title: &str, until: String, goal: Goal, pods: usize, now: Duration) {
        self.stopwatches.push(Stopwatch { title: title.to_owned(), until, goal, pods, started: now, took: None });
    }

    /// Stops what has reached its goal.
    fn stop(&mut self, now: Duration, reached: impl Fn(&Goal, &Board) -> bool) -> Vec<String> {
        let mut said = Vec::new();
        for watch in self.stopwatches.iter_mut().filter(|w| w.took.is_none()) {
            if reached(&watch.goal, &self.board) {
                let took = now.saturating_sub(watch.started);
                watch.took = Some(took);
                said.push(format!("{}: {} after {}", watch.title, watch.until, ms(took)));
            }
        }
        said
    }

    /// Whether every stopwatch has stopped.
    pub fn all_stopped(&self) -> bool {
        self.stopwatches.iter().all(|w| w.took.is_some())
    }

    /// The measurements, for programs.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .stopwatches
            .iter()
            .map(|w| {
                json!({"event": w.title, "until": w.until, "podsLost": w.pods,
                    "ms": w.took.map(|t| (t.as_secs_f64() * 10_000.0).round() / 10.0)})
            })
            .collect();
        json!({"replicas": self.replicas, "nodes": self.nodes.len(), "measured": rows})
    }
}

/// `843 ms`, `1.204 s`.
pub fn ms(span: Duration) -> String {
    match span.as_millis() {
        0..1000 => format!("{} ms", span.as_millis()),
        _ => format!("{:.3} s", span.as_secs_f64()),
    }
}

fn tell(news: News) -> String {
    match news {
        News::Placed { pod, node } => format!("{pod} placed on {node}"),
        News::Ready { pod, node } => format!("{pod} Ready on {node}"),
        News::Gone { pod, node } if node.is_empty() => format!("{pod} gone"),
        News::Gone { pod, node } => format!("{pod} gone from {node}"),
        News::Node { node, ready: true } => format!("node {node} Ready"),
        News::Node { node, ready: false } => format!("node {node} not Ready"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failover::board::PodSeen;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn pod(uid: &str, node: &str, ready: bool, version: u64) -> Event {
        let (uid, node) = (uid.to_owned(), node.to_owned());
        Event::Change(Change::Pod(PodSeen { name: uid.clone(), uid, node, ready, version, ..PodSeen::default() }))
    }

    fn node(name: &str, ready: bool, version: u64) -> Event {
        Event::Change(Change::Node { name: name.into(), ready, version })
    }

    fn gone(uid: &str, version: u64) -> Event {
        Event::Change(Change::PodGone { uid: uid.into(), version })
    }

    fn running() -> Show {
        let mut show = Show::new(2);
        show.apply(node("n1", true, 1), at(0));
        show.apply(node("n2", true, 2), at(0));
        show.apply(pod("a", "n1", true, 3), at(1));
        show.apply(pod("b", "n2", true, 4), at(2));
        show
    }

    #[test]
    fn a_stopwatch_stops_with_the_event_that_completes_the_replicas() {
        let mut show = running();
        show.apply(Event::Kill { node: "n1".into(), leader: false }, at(1000));
        assert!(!show.all_stopped());
        assert_eq!(show.stopwatches[0].pods, 1);
        show.apply(pod("c", "n2", false, 5), at(1500));
        assert!(!show.all_stopped());
        let said = show.apply(pod("c", "n2", true, 6), at(1700));
        assert_eq!(show.stopwatches[0].took, Some(at(700)));
        assert_eq!(said, ["c Ready on n2", "node n1 killed: 2/2 pods Ready on the nodes left after 700 ms"]);
        show.apply(pod("c", "n2", false, 7), at(1800));
        assert_eq!(show.stopwatches[0].took, Some(at(700)), "what is measured stays");
    }

    #[test]
    fn a_leaders_death_is_timed_to_the_next_write_too() {
        let mut show = running();
        show.apply(Event::Leader(Some("n1".into())), at(500));
        show.apply(Event::Kill { node: "n1".into(), leader: true }, at(1000));
        assert_eq!((show.stopwatches.len(), show.leader.as_deref()), (2, None));
        show.apply(Event::Written, at(1200));
        assert_eq!(show.stopwatches[1].took, Some(at(200)));
        assert!(show.stopwatches[0].took.is_none());
    }

    #[test]
    fn a_restart_is_over_when_nodes_are_ready_and_no_pod_is_too_many() {
        let mut show = running();
        show.apply(Event::Kill { node: "n1".into(), leader: false }, at(1000));
        show.apply(node("n1", false, 5), at(1400));
        show.apply(pod("c", "n2", true, 6), at(1500));
        show.apply(Event::Restart(vec!["n1".into()]), at(2000));
        show.apply(node("n1", true, 7), at(2300));
        assert!(!show.all_stopped(), "the pod that was replaced is still there");
        show.apply(gone("a", 8), at(2500));
        assert_eq!(show.stopwatches[1].took, Some(at(500)));
        assert!(show.all_stopped());
    }

    #[test]
    fn the_feed_is_bounded() {
        let mut show = Show::new(1);
        for i in 0..2 * FEED_MAX {
            show.apply(Event::Note(i.to_string()), at(0));
        }
        assert_eq!(show.feed.len(), FEED_MAX);
        assert_eq!(show.feed.back().map(|(_, l)| l.as_str()), Some("999"));
    }

    #[test]
    fn spans_below_a_second_are_milliseconds() {
        assert_eq!((ms(at(999)).as_str(), ms(at(1204)).as_str()), ("999 ms", "1.204 s"));
    }
}
