//! What is measured of each actor while someone looks, and what is counted of all of them, as metrics.
//!
//! Must never cost anything measurable while nobody looks: a sender and a handler look at one mark of the pid then, and nothing is allocated.
//! Written by the shell and by [`crate::Ref`]; read by [`crate::System::tree`] and [`crate::System::record_metrics`].

use crate::exit::Exit;
use crate::inspect::{ActorInfo, Kind, MessageInfo, TreeEvent};
use crate::pid::Pid;
use crate::registry::Registry;
use crate::system::{Inner, System};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;

/// How many types of messages are told apart of one actor; all others are counted together as [`OTHER_MESSAGES`].
pub const MESSAGE_TYPES: usize = 64;
/// The name under which further types of messages are counted.
pub const OTHER_MESSAGES: &str = "others";

/// Someone looks: while one of these lives, queues and handlers of all actors of a system are measured. Made by [`System::observe`].
///
/// What a message costs in addition meanwhile is a lock of its actor's own when it is sent, one when it is taken, and one when it is handled.
pub struct Observer(Arc<Inner>);

impl Observer {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        inner.registry.observe();
        Observer(inner)
    }

    /// See [`System::tree`].
    pub fn tree(&self) -> Vec<ActorInfo> {
        System::guest(self.0.clone()).tree()
    }

    /// See [`System::subscribe`].
    pub fn subscribe(&self) -> broadcast::Receiver<TreeEvent> {
        System::guest(self.0.clone()).subscribe()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.0.registry.unobserve();
    }
}

// ---- of one actor --------------------------------------------------------------------------------------------------------------

/// What is measured of one incarnation.
#[derive(Default)]
pub(crate) struct Stats {
    /// When the messages that wait were sent, those that were while someone looked.
    queued: BTreeMap<u64, Instant>,
    next: u64,
    handled: Vec<(&'static str, Handled)>,
}

/// Of one type of message.
#[derive(Clone, Copy, Default)]
pub(crate) struct Handled {
    count: u64,
    busy: Duration,
    longest: Duration,
    waited: Duration,
}

impl Handled {
    fn add(&mut self, more: &Handled) {
        self.count += more.count;
        self.busy += more.busy;
        self.longest = self.longest.max(more.longest);
        self.waited += more.waited;
    }
}

impl Stats {
    fn handled(&mut self, name: &'static str, once: &Handled) {
        let full = self.handled.len() >= MESSAGE_TYPES;
        match self.handled.iter_mut().find(|(known, _)| *known == name) {
            Some((_, handled)) => handled.add(once),
            None if full && name != OTHER_MESSAGES => self.handled(OTHER_MESSAGES, once),
            None => self.handled.push((name, *once)),
        }
    }

    pub(crate) fn oldest(&self, now: Instant) -> Option<Duration> {
        self.queued.first_key_value().map(|(_, sent)| now.saturating_duration_since(*sent))
    }

    /// The busiest first.
    pub(crate) fn messages(&self) -> Vec<MessageInfo> {
        let mut messages: Vec<MessageInfo> = self
            .handled
            .iter()
            .map(|(name, handled)| MessageInfo {
                name: (*name).to_owned(),
                count: handled.count,
                busy_us: us(handled.busy),
                longest_us: us(handled.longest),
                waited_us: us(handled.waited),
            })
            .collect();
        messages.sort_by_key(|message| std::cmp::Reverse(message.busy_us));
        messages
    }
}

/// When a message was sent. Its actor knows how old its queue is by these.
pub(crate) struct Stamp {
    pid: Pid,
    number: u64,
    sent: Instant,
}

impl Stamp {
    /// For a message that is sent to `pid` now; `None` when nobody looks any more.
    pub(crate) fn new(pid: &Pid) -> Option<Self> {
        let sent = Instant::now();
        let number = pid.stats(|stats| {
            stats.next += 1;
            stats.queued.insert(stats.next, sent);
            stats.next
        })?;
        Some(Stamp { pid: pid.clone(), number, sent })
    }

    /// How long it has waited until now.
    pub(crate) fn waited(&self) -> Duration {
        self.sent.elapsed()
    }
}

impl Drop for Stamp {
    fn drop(&mut self) {
        self.pid.stats(|stats| stats.queued.remove(&self.number));
    }
}

/// Something of an actor's that runs, until this is dropped.
pub(crate) struct Measure {
    pid: Pid,
    name: &'static str,
    waited: Duration,
    // Of the machine and not of the runtime: in simulated time, too, it is work that is measured.
    began: std::time::Instant,
}

impl Measure {
    #[cold]
    pub(crate) fn new(pid: &Pid, name: &'static str, waited: Duration) -> Self {
        Measure { pid: pid.clone(), name, waited, began: std::time::Instant::now() }
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        let busy = self.began.elapsed();
        let once = Handled { count: 1, busy, longest: busy, waited: self.waited };
        self.pid.stats(|stats| stats.handled(self.name, &once));
    }
}

// ---- of all --------------------------------------------------------------------------------------------------------------------

/// What ended incarnations of one type have left in the accounts, which never fall.
#[derive(Clone, Default)]
pub(crate) struct Totals {
    pub(crate) restarts: u64,
    messages: u64,
    exits: BTreeMap<&'static str, u64>,
    handled: HashMap<&'static str, Handled>,
}

impl Totals {
    /// An incarnation has ended.
    pub(crate) fn ended(&mut self, pid: &Pid, exit: &Exit) {
        self.messages += pid.messages();
        *self.exits.entry(reason(exit)).or_default() += 1;
        if let Some(stats) = pid.unobserve() {
            self.measured(&stats);
        }
    }

    /// Nobody looks at an incarnation any more.
    pub(crate) fn measured(&mut self, stats: &Stats) {
        for (name, handled) in &stats.handled {
            self.handled.entry(name).or_default().add(handled);
        }
    }
}

/// The word for it in metrics.
fn reason(exit: &Exit) -> &'static str {
    match exit {
        Exit::Normal => "normal",
        Exit::Shutdown => "shutdown",
        Exit::Killed => "killed",
        Exit::Panic { .. } => "panic",
        Exit::Error(_) => "error",
        Exit::NoProc => "no_proc",
        Exit::NoConnection => "no_connection",
        Exit::ArbiterGone => "arbiter_gone",
        Exit::ArbiterStuck { .. } => "arbiter_stuck",
        Exit::RestartIntensity { .. } => "restart_intensity",
        Exit::StartFailed { .. } => "start_failed",
        Exit::ShutdownWith(_) => "shutdown_with",
        Exit::Ignore => "ignore",
    }
}

/// Of the living incarnations of one type.
#[derive(Default)]
struct Living {
    running: usize,
    queues: Vec<usize>,
    oldest: Duration,
}

/// Records the accounts of a system with the recorder of the `metrics` crate.
#[expect(clippy::cast_precision_loss, reason = "no system holds 2^52 actors or messages")]
pub(crate) fn record(system: &str, registry: &Registry) {
    let now = Instant::now();
    let mut living = HashMap::<&'static str, Living>::new();
    // Those that have ended first: one that ends meanwhile is not counted twice, and counters that lag make up for it.
    let mut totals = registry.totals();
    registry.each_live(|pid, kind, type_name| {
        let of_type = living.entry(type_name).or_default();
        of_type.running += 1;
        let total = totals.entry(type_name).or_default();
        if kind == Kind::Worker {
            total.messages += pid.messages();
            of_type.queues.push(pid.queue_len());
        }
        pid.measured(|stats| {
            total.measured(stats);
            of_type.oldest = of_type.oldest.max(stats.oldest(now).unwrap_or_default());
        });
    });
    // No lock is held from here on: the recorder is someone else's code.
    for (type_name, total) in totals {
        let living = living.remove(type_name).unwrap_or_default();
        let labels = [("system", system.to_owned()), ("type", type_name.to_owned())];
        metrics::counter!("phalanx_actors_restarts_total", &labels).absolute(total.restarts);
        metrics::counter!("phalanx_actors_messages_total", &labels).absolute(total.messages);
        metrics::gauge!("phalanx_actors_running", &labels).set(living.running as f64);
        metrics::gauge!("phalanx_actors_queued_messages", &labels).set(living.queues.iter().sum::<usize>() as f64);
        metrics::gauge!("phalanx_actors_queue_oldest_seconds", &labels).set(living.oldest.as_secs_f64());
        let queues = metrics::histogram!("phalanx_actors_queue_length", &labels);
        living.queues.iter().for_each(|length| queues.record(*length as f64));
        let with = |name: &'static str, value: &'static str| {
            let [system, of_type] = labels.clone();
            [system, of_type, (name, value.to_owned())]
        };
        for (reason, count) in total.exits {
            metrics::counter!("phalanx_actors_exits_total", &with("reason", reason)).absolute(count);
        }
        for (message, handled) in total.handled {
            let labels = with("message", message);
            metrics::counter!("phalanx_actors_handled_total", &labels).absolute(handled.count);
            metrics::counter!("phalanx_actors_busy_microseconds_total", &labels).absolute(us(handled.busy));
            metrics::counter!("phalanx_actors_waited_microseconds_total", &labels).absolute(us(handled.waited));
        }
    }
}

/// In whole microseconds.
fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
