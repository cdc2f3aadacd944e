//! What everybody did and saw. Outlives the nodes that write it; holds no promise against it. The workload writes it, the
//! promises read it, and `planted` falsifies copies of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use phalanx_transport::{AskError, Exit, LossReason, SendError};

pub type Shared = Arc<Mutex<Records>>;

/// One boot of a node.
pub type Boot = (String, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Control,
    Tells,
}

/// What was told, by what must be kept in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub from: Boot,
    pub to: String,
    pub lane: Lane,
    pub path: String,
}

/// One tell; its number is its place in its flow.
#[derive(Clone, Debug)]
pub struct Tell {
    /// Which of the sender's connections to the receiver it was told on, counted from 1; 0 before the first.
    pub connection: usize,
    /// Whether that connection was up.
    pub up: bool,
    /// What `tell` said when it did not take it.
    pub refused: Option<SendError>,
}

impl Tell {
    /// Whether `tell` said `Ok`.
    pub fn is_taken(&self) -> bool {
        self.refused.is_none()
    }
}

/// One handling of a tell.
#[derive(Clone, Debug)]
pub struct Handled {
    pub number: usize,
    /// No other of its flow was being handled.
    pub alone: bool,
}

#[derive(Clone, Debug)]
pub struct Ask {
    pub from: Boot,
    pub to: String,
    pub path: String,
    pub begun: Duration,
    /// When it must have ended.
    pub deadline: Duration,
    pub ended: Option<(Duration, Result<u64, AskError>)>,
    /// The asker did not wait for its end.
    pub given_up: bool,
}

#[derive(Clone, Debug)]
pub struct Watch {
    pub from: Boot,
    pub to: String,
    pub path: String,
    pub set: Duration,
    /// From when on it was known to be registered with the other side.
    pub armed: Option<Duration>,
    /// The watcher's connection at that time; `None` without one.
    pub connection: Option<usize>,
    pub fired: Vec<(Duration, Exit)>,
    /// Had not fired when its watcher saw the `Down` of that connection.
    pub late: bool,
}

#[derive(Clone, Debug)]
pub enum Change {
    Up,
    Down(LossReason),
}

#[derive(Clone, Debug)]
pub struct Event {
    pub at: Duration,
    pub peer: Boot,
    pub change: Change,
}

#[derive(Clone, Debug, Default)]
pub struct Body {
    pub from: Boot,
    pub bytes: usize,
    /// The opener wrote all of it and finished.
    pub finished: bool,
    /// The opener got the size that the reader counted.
    pub answered: Option<usize>,
    /// What each reader saw: a whole body of so many bytes, or an error.
    pub read: Vec<Result<usize, String>>,
    pub opener_ended: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Receivers take their time, and all queues are short: tells may be refused, and control tells dropped.
    pub slow: bool,
    /// Nobody starts anything new.
    pub quiet: bool,
    /// When the simulation ended.
    pub ended_at: Duration,
    /// Boots that crashed or closed.
    pub gone: BTreeSet<Boot>,
    pub tells: BTreeMap<Flow, Vec<Tell>>,
    /// What was handled, in the order of handling.
    pub told: BTreeMap<Flow, Vec<Handled>>,
    /// How many of a flow are being handled by a boot.
    pub busy: BTreeMap<(Flow, Boot), usize>,
    pub asks: BTreeMap<u64, Ask>,
    /// How often each ask was begun to be handled.
    pub handled: BTreeMap<u64, usize>,
    /// Asks whose handler's future lives.
    pub handling: BTreeMap<u64, usize>,
    pub watches: BTreeMap<u64, Watch>,
    /// When a path was served (true) and unserved, by node.
    pub served: BTreeMap<(String, String), Vec<(Duration, bool)>>,
    pub events: BTreeMap<Boot, Vec<Event>>,
    pub bodies: BTreeMap<u64, Body>,
    pub datagrams_sent: BTreeSet<u64>,
    /// Those that `datagram` did not take.
    pub datagrams_refused: BTreeSet<u64>,
    /// How often each arrived.
    pub datagrams: BTreeMap<u64, usize>,
    /// Probes that were handled.
    pub probes: BTreeMap<u64, usize>,
    /// What was seen to be wrong on the spot.
    pub wrong: Vec<String>,
    next: u64,
}

impl Records {
    /// A number that nothing else has.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// How much of everything there was, so that nobody takes an empty run for a good one.
    pub fn summary(&self) -> String {
        let taken: usize = self.tells.values().map(|flow| flow.iter().filter(|tell| tell.is_taken()).count()).sum();
        let told: usize = self.told.values().map(Vec::len).sum();
        let answered = self.asks.values().filter(|ask| matches!(ask.ended, Some((_, Ok(_))))).count();
        let fired = self.watches.values().filter(|watch| !watch.fired.is_empty()).count();
        let whole = self.bodies.values().filter(|body| body.answered.is_some()).count();
        let downs = self.events.values().flatten().filter(|event| matches!(event.change, Change::Down(_))).count();
        format!(
            "tells taken {taken}, handled {told}; asks {}, answered {answered}; monitors {}, fired {fired}; bodies {}, whole {whole}; datagrams {}, arrived {}; downs {downs}; boots gone {}",
            self.asks.len(),
            self.watches.len(),
            self.bodies.len(),
            self.datagrams_sent.len(),
            self.datagrams.len(),
            self.gone.len(),
        )
    }
}
