//! Finds actors that do not give their thread back, leaves such a thread behind, and has all that lived on it started elsewhere.
//!
//! ```text
//!   look ──the same turn for the limit──▶ abandon, agreed with the thread ──▶ a fresh arbiter takes its slot
//!        ──▶ claim all that lived there ──▶ kill what lies below that on other threads, and wait for it
//!        ──▶ report the exits, deepest first ──▶ supervisors elsewhere, or the system, start it all again
//! ```
//! Rust cannot end a thread, so the code that is stuck may go on for as long as it likes; but nothing else of that thread runs any more, and
//! what it leaves is dropped there once it returns. Must never run an actor's code. Started by [`crate::SystemBuilder::build`] with a thread
//! of its own, and only on request: what is abandoned may overlap with what replaces it, so whoever holds something exclusive must agree.

use crate::arbiter::{Arbiter, Heartbeat};
use crate::error::BuildError;
use crate::exit::Exit;
use crate::inspect::{Current, TreeEvent, ms};
use crate::panic::drop_guarded;
use crate::pid::Pid;
use crate::registry::above;
use crate::shell::finish;
use crate::supervisor::SupervisorRef;
use crate::system::{Inner, TopRestart};
use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How many threads a system leaves behind. When as many have not ended, the next actor that is stuck is named in the log only, and keeps
/// its neighbours: each thread takes memory, and so many need another cure.
pub const STUCK_THREADS: usize = 16;
/// How often it looks within its limit.
const LOOKS: u32 = 8;
/// The shortest time between two looks, in milliseconds.
const LOOK_MIN_MS: u64 = 1;

/// Decides which arbiters are stuck, from what it is shown; reads no clock and asks nobody, so that it can be used also where a system
/// has no thread for it: show it [`crate::System::arbiters`] from outside.
///
/// An arbiter is stuck when it is in the same turn at all looks within the limit. A gap between two looks counts for no more than twice
/// [`Watch::every`]: when the whole process was stopped for a while, nobody is to blame.
#[derive(Debug)]
pub struct Watch {
    limit: Duration,
    last: Option<Duration>,
    seen: Vec<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    turn: u64,
    busy: Duration,
    said: bool,
}

/// An arbiter that has been in one turn for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// Its place in what was shown.
    pub arbiter: usize,
    /// Its count of turns.
    pub turn: u64,
    /// For how long it was seen in this turn.
    pub busy: Duration,
}

impl Watch {
    /// Turns may take as long as `limit`.
    pub fn new(limit: Duration) -> Self {
        Watch { limit, last: None, seen: Vec::new() }
    }

    /// How often it wants to look.
    pub fn every(&self) -> Duration {
        (self.limit / LOOKS).max(Duration::from_millis(LOOK_MIN_MS))
    }

    /// Looks at the counts of turns of all arbiters (odd: in a turn), always in the same order. Each turn is told of once.
    pub fn look(&mut self, now: Duration, turns: impl IntoIterator<Item = u64>) -> Vec<Overdue> {
        let gap = self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last)).min(self.every() * 2);
        self.last = Some(now);
        let mut overdue = Vec::new();
        for (arbiter, turn) in turns.into_iter().enumerate() {
            if arbiter == self.seen.len() {
                self.seen.push(Seen::default());
            }
            let seen = &mut self.seen[arbiter];
            if turn % 2 == 0 || turn != seen.turn {
                *seen = Seen { turn, ..Seen::default() };
                continue;
            }
            seen.busy += gap;
            if seen.busy >= self.limit && !std::mem::replace(&mut seen.said, true) {
                overdue.push(Overdue { arbiter, turn, busy: seen.busy });
            }
        }
        overdue
    }

    /// Another arbiter has taken this place.
    pub fn replaced(&mut self, arbiter: usize) {
        if let Some(seen) = self.seen.get_mut(arbiter) {
            *seen = Seen::default();
        }
    }

    /// For how long an arbiter was seen in this turn.
    fn busy(&self, arbiter: usize, turn: u64) -> Duration {
        self.seen.get(arbiter).filter(|seen| seen.turn == turn).map_or(Duration::ZERO, |seen| seen.busy)
    }
}

/// The watchdog of one system.
pub(crate) struct Watchdog {
    watch: Mutex<Watch>,
    stop: watch::Sender<bool>,
    left: Mutex<Vec<Left>>,
}

/// A thread that was left behind.
struct Left {
    path: String,
    doing: &'static str,
    since: Instant,
    arbiter: Arc<Arbiter>,
}

impl Watchdog {
    pub(crate) fn new(limit: Duration) -> Self {
        Watchdog { watch: Mutex::new(Watch::new(limit)), stop: watch::Sender::new(false), left: Mutex::default() }
    }

    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// For how long an arbiter was seen in this turn.
    pub(crate) fn busy(&self, arbiter: usize, turn: u64) -> Duration {
        self.watch.lock().busy(arbiter, turn)
    }

    /// Who does not return, on threads that were left behind: its path and what it does.
    pub(crate) fn stuck(&self) -> Vec<(String, Current)> {
        let mut left = self.left.lock();
        left.retain(|left| !left.arbiter.has_ended());
        let current = |left: &Left| Current { doing: left.doing.to_owned(), for_ms: ms(left.since.elapsed()) };
        left.iter().map(|left| (left.path.clone(), current(left))).collect()
    }

    /// Looks at its system until that ends, on a thread of its own.
    pub(crate) fn spawn(inner: &Arc<Inner>) -> Result<(), BuildError> {
        let Some(watchdog) = &inner.watchdog else { return Ok(()) };
        let name = format!("{}-watchdog", inner.name());
        let (every, stopped) = (watchdog.watch.lock().every(), watchdog.stop.subscribe());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|source| BuildError::Thread { name: name.clone(), source })?;
        let inner = Arc::downgrade(inner);
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || runtime.block_on(run(inner, every, stopped)))
            .map_err(|source| BuildError::Thread { name, source })?;
        Ok(())
    }
}

async fn run(inner: Weak<Inner>, every: Duration, mut stopped: watch::Receiver<bool>) {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Dropped with this, they report what they have not reported yet.
    let mut condemned = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => return,
            Some(_) = condemned.join_next() => {}
            _ = ticks.tick() => {
                let Some(inner) = inner.upgrade() else { return };
                for one in look(&inner, began.elapsed()) {
                    condemned.spawn(one.carry_out());
                }
            }
        }
    }
}

/// Looks once. What is stuck is left behind when this returns; its exits are reported by what this returns.
pub(crate) fn look(inner: &Arc<Inner>, now: Duration) -> Vec<Condemned> {
    let Some(watchdog) = &inner.watchdog else { return Vec::new() };
    let arbiters = inner.arbiters();
    let turns = arbiters.iter().map(|arbiter| arbiter.heartbeat.look().0);
    let overdue = watchdog.watch.lock().look(now, turns);
    overdue.into_iter().filter_map(|overdue| condemn(inner, watchdog, overdue, &arbiters[overdue.arbiter])).collect()
}

/// Whatever happens: the thread that was left behind may go on.
struct Sorting<'a>(&'a Heartbeat);

impl Drop for Sorting<'_> {
    fn drop(&mut self) {
        self.0.sorted();
    }
}

fn condemn(inner: &Arc<Inner>, watchdog: &Watchdog, overdue: Overdue, arbiter: &Arc<Arbiter>) -> Option<Condemned> {
    let Overdue { arbiter: slot, turn, busy } = overdue;
    let running = arbiter.heartbeat.look().1;
    let culprit = inner.registry.live().into_iter().find(|pid| Some(pid.id()) == running);
    let path = culprit.as_ref().map_or("unknown", Pid::path).to_owned();
    let doing = culprit.as_ref().map_or("unknown", Pid::last_doing);
    let type_name = inner.registry.type_name(&path).unwrap_or("unknown");
    let for_ms = ms(busy);
    let full = {
        let mut left = watchdog.left.lock();
        left.retain(|left| !left.arbiter.has_ended());
        left.len() >= STUCK_THREADS
    };
    if full {
        tracing::error!(
            path,
            type_name,
            doing,
            for_ms,
            "actor does not give its thread back, and {STUCK_THREADS} threads are left behind already: restart the process"
        );
        return None;
    }
    if !arbiter.heartbeat.abandon(turn) {
        return None;
    }
    let sorting = Sorting(&arbiter.heartbeat);
    if let Err(error) = inner.replace_arbiter(slot) {
        tracing::error!(%error, "no thread in place of the one that is stuck: its actors go to the others, if there are any");
    }
    watchdog.watch.lock().replaced(slot);
    arbiter.stop();
    let jobs = arbiter.close();
    // From here on nothing is added to what lives there: see `abandoned` where something is entered into the registry.
    let here = |pid: &Pid| pid.arbiter() == arbiter.id();
    let mut victims: Vec<Pid> = inner.registry.live().into_iter().filter(|pid| here(pid) && pid.claim()).collect();
    let paths: HashSet<&str> = victims.iter().map(Pid::path).collect();
    let below = |path: &str| above(path).any(|above| paths.contains(above));
    let outside: Vec<Pid> = inner.registry.live().into_iter().filter(|pid| !here(pid) && below(pid.path())).collect();
    outside.iter().for_each(Pid::kill);
    inner.registry.forget_below(|path| paths.contains(path));
    for pid in &victims {
        pid.set_ending();
        if let Some(handle) = inner.registry.inbox(pid.path()).and_then(|inbox| inbox.downcast::<SupervisorRef>().ok())
        {
            handle.close();
        }
    }
    let topmost: HashSet<u64> = victims.iter().filter(|pid| !below(pid.path())).map(Pid::id).collect();
    let restarts = inner.restarts_of(&victims);
    drop(sorting);
    // Nothing of it has begun, and all of it is claimed, but for supervisors at the top that are just being started.
    jobs.into_iter().for_each(drop_guarded);
    let neighbours = victims.len().saturating_sub(1);
    tracing::error!(
        path,
        type_name,
        doing,
        for_ms,
        neighbours,
        "actor does not give its thread back; all on it are started on another"
    );
    if let Some(pid) = culprit {
        let (path, doing) = (path.clone(), doing.to_owned());
        inner.event(|| TreeEvent::Stuck { path, pid, doing, for_ms });
    }
    let since = Instant::now().checked_sub(busy).unwrap_or_else(Instant::now);
    watchdog.left.lock().push(Left { path: path.clone(), doing, since, arbiter: arbiter.clone() });
    // What an actor waits for lies below it. So whoever is deepest of all, on all threads, waits for nobody, and all end.
    victims.sort_by_key(|pid| (std::cmp::Reverse(above(pid.path()).count()), std::cmp::Reverse(pid.id())));
    Some(Condemned {
        inner: inner.clone(),
        slot,
        victims: victims.into(),
        topmost,
        outside,
        restarts,
        exit: Exit::ArbiterStuck { path, doing: doing.to_owned() },
    })
}

/// All that lived on a thread that was left behind. Dropped, it reports what was not reported yet without waiting any more.
pub(crate) struct Condemned {
    inner: Arc<Inner>,
    slot: usize,
    /// Deepest first.
    victims: VecDeque<Pid>,
    /// Those of them whose supervisor lives on, or that have none.
    topmost: HashSet<u64>,
    /// What lies below them on other threads. It is killed, and must have ended before its supervisor is started again.
    outside: Vec<Pid>,
    restarts: Vec<TopRestart>,
    exit: Exit,
}

impl Condemned {
    pub(crate) async fn carry_out(mut self) {
        while let Some(next) = self.victims.front().cloned() {
            for pid in &self.outside {
                if above(pid.path()).any(|path| path == next.path()) {
                    pid.exited().await;
                    self.inner.registry.forget(pid.path());
                }
            }
            self.report();
        }
        for restart in std::mem::take(&mut self.restarts) {
            self.inner.start_again(restart, self.slot).await;
        }
    }

    fn report(&mut self) {
        let Some(pid) = self.victims.pop_front() else { return };
        finish(&self.inner, &pid, if self.inner.killed() { Exit::Killed } else { self.exit.clone() });
        if !self.topmost.contains(&pid.id()) {
            self.inner.registry.forget(pid.path());
        }
    }
}

impl Drop for Condemned {
    fn drop(&mut self) {
        while !self.victims.is_empty() {
            self.report();
        }
    }
}

#[cfg(test)]
#[path = "watchdog_test.rs"]
mod tests;
