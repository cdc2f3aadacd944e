//! Who is where: every node of the tree by its path, with its live incarnation.
//!
//! Must never call out while locked. Written by supervisors and by ending actors, read by lookups and observers.

use crate::exit::Exit;
use crate::far::later;
use crate::inspect::{ActorInfo, Current, Kind, LAST_EXITS, PastExit, State, ms};
use crate::observe::Totals;
use crate::pid::Pid;
use parking_lot::{Mutex, RwLock};
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// The typed mailbox of an actor, as `Arc<Inbox<A>>`; of a supervisor, its handle.
pub(crate) type AnyInbox = Arc<dyn Any + Send + Sync>;

#[derive(Default)]
pub(crate) struct Registry {
    nodes: RwLock<HashMap<Arc<str>, Node>>,
    /// By type name.
    totals: Mutex<HashMap<&'static str, Totals>>,
    /// How many look. Changed only while the nodes are locked.
    observers: AtomicUsize,
}

struct Node {
    kind: Kind,
    type_name: &'static str,
    state: Life,
    since: Instant,
    restarts: u32,
    /// The last one first. Shared with whoever looks at it just then.
    exits: Option<Arc<VecDeque<Past>>>,
    /// Messages that earlier incarnations did not handle.
    dropped: u64,
    live: Option<(Pid, Option<AnyInbox>)>,
}

/// The end of an incarnation.
#[derive(Clone)]
struct Past {
    id: u64,
    exit: Exit,
    at: Instant,
}

#[derive(Clone, Copy)]
enum Life {
    /// Starting or running: its pid knows which.
    Begun,
    Restarting {
        due: Instant,
    },
    Stopping,
    Stopped,
}

impl Registry {
    /// A new incarnation is about to run at its path. False when another one lives there.
    pub(crate) fn enter(
        &self,
        pid: &Pid,
        inbox: Option<AnyInbox>,
        kind: Kind,
        type_name: &'static str,
        restart: bool,
    ) -> bool {
        let now = Instant::now();
        let mut nodes = self.nodes.write();
        let node = nodes.entry(pid.arc_path().clone()).or_insert_with(|| Node {
            kind,
            type_name,
            state: Life::Begun,
            since: now,
            restarts: 0,
            exits: None,
            dropped: 0,
            live: None,
        });
        match &mut node.live {
            // A supervisor comes twice: before its spec is made, and then with it.
            Some((live, own)) if live == pid => {
                *own = inbox;
                node.type_name = type_name;
                return true;
            }
            Some(_) => return false,
            None => {}
        }
        node.kind = kind;
        node.type_name = type_name;
        node.state = Life::Begun;
        node.since = now;
        node.restarts += u32::from(restart);
        if self.observers.load(Relaxed) > 0 {
            pid.observe();
        }
        if restart {
            self.totals.lock().entry(type_name).or_default().restarts += 1;
        }
        node.live = Some((pid.clone(), inbox));
        true
    }

    pub(crate) fn stopping(&self, pid: &Pid) {
        self.update(pid, |node| node.state = Life::Stopping);
    }

    /// The incarnation has ended. Nothing happens if it is not the one that lives at its path.
    pub(crate) fn leave(&self, pid: &Pid, exit: &Exit) {
        let mut gone = None;
        self.update(pid, |node| {
            node.state = Life::Stopped;
            node.past(pid, exit);
            self.totals.lock().entry(node.type_name).or_default().ended(pid, exit);
            node.dropped += pid.dropped();
            gone = node.live.take();
        });
        drop(gone); // outside the lock: the mailbox may hold messages whose Drop does anything
    }

    /// Nothing lives at the path, and something will. Returns how often it was started again before.
    pub(crate) fn restarting(&self, path: &str, delay: Duration) -> u32 {
        let mut nodes = self.nodes.write();
        let Some(node) = nodes.get_mut(path).filter(|node| node.live.is_none()) else { return 0 };
        node.state = Life::Restarting { due: later(Instant::now(), delay) };
        node.restarts
    }

    pub(crate) fn stopped(&self, path: &str) {
        if let Some(node) = self.nodes.write().get_mut(path).filter(|node| node.live.is_none()) {
            node.state = Life::Stopped;
        }
    }

    /// Messages that earlier incarnations left behind, and no later one will handle.
    pub(crate) fn dropped(&self, path: &str, messages: u64) {
        if let Some(node) = self.nodes.write().get_mut(path) {
            node.dropped += messages;
        }
    }

    /// The path is no longer part of the tree.
    pub(crate) fn forget(&self, path: &str) {
        let mut nodes = self.nodes.write();
        if nodes.get(path).is_some_and(|node| node.live.is_none()) {
            nodes.remove(path);
        }
    }

    pub(crate) fn find(&self, path: &str) -> Option<Pid> {
        Some(self.nodes.read().get(path)?.live.as_ref()?.0.clone())
    }

    pub(crate) fn inbox(&self, path: &str) -> Option<AnyInbox> {
        self.nodes.read().get(path)?.live.as_ref()?.1.clone()
    }

    /// Whoever lives at the path, with its mailbox.
    pub(crate) fn found(&self, path: &str) -> Option<(Pid, AnyInbox)> {
        let nodes = self.nodes.read();
        let (pid, inbox) = nodes.get(path)?.live.as_ref()?;
        Some((pid.clone(), inbox.clone()?))
    }

    pub(crate) fn live(&self) -> Vec<Pid> {
        self.nodes.read().values().filter_map(|node| Some(node.live.as_ref()?.0.clone())).collect()
    }

    pub(crate) fn type_name(&self, path: &str) -> Option<&'static str> {
        Some(self.nodes.read().get(path)?.type_name)
    }

    /// What lies below the paths for which this is true, and does not live, is no longer part of the tree.
    pub(crate) fn forget_below(&self, gone: impl Fn(&str) -> bool) {
        self.nodes.write().retain(|path, node| node.live.is_some() || !above(path).any(&gone));
    }

    /// All nodes in the order of their paths. `running`: who has the arbiters' threads, and since how many milliseconds.
    pub(crate) fn tree(&self, running: &[(u64, u64)]) -> Vec<ActorInfo> {
        let now = Instant::now();
        // Texts are made, and measures taken, when nobody waits for the lock any more: a start or an end is not to take as long as that.
        let nodes: Vec<(Arc<str>, Node)> =
            self.nodes.read().iter().map(|(path, node)| (path.clone(), node.seen())).collect();
        let mut tree: Vec<ActorInfo> = nodes.iter().map(|(path, node)| node.info(path, now, running)).collect();
        tree.sort_unstable_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
        tree
    }

    /// Someone looks, at all that live and all that will.
    pub(crate) fn observe(&self) {
        let nodes = self.nodes.write();
        self.observers.fetch_add(1, Relaxed);
        nodes.values().filter_map(|node| node.live.as_ref()).for_each(|(pid, _)| pid.observe());
    }

    pub(crate) fn unobserve(&self) {
        let nodes = self.nodes.write();
        if self.observers.fetch_sub(1, Relaxed) > 1 {
            return;
        }
        let mut totals = self.totals.lock();
        for node in nodes.values() {
            if let Some(stats) = node.live.as_ref().and_then(|(pid, _)| pid.unobserve()) {
                totals.entry(node.type_name).or_default().measured(&stats);
            }
        }
    }

    /// Shows all that live.
    pub(crate) fn each_live(&self, mut f: impl FnMut(&Pid, Kind, &'static str)) {
        for node in self.nodes.read().values() {
            if let Some((pid, _)) = &node.live {
                f(pid, node.kind, node.type_name);
            }
        }
    }

    /// The accounts of all types that have ever ended.
    pub(crate) fn totals(&self) -> HashMap<&'static str, Totals> {
        self.totals.lock().clone()
    }

    fn update(&self, pid: &Pid, f: impl FnOnce(&mut Node)) {
        let mut nodes = self.nodes.write();
        if let Some(node) = nodes.get_mut(pid.arc_path())
            && node.live.as_ref().is_some_and(|(live, _)| live == pid)
        {
            f(node);
        }
    }
}

/// The paths above one, nearest first.
pub(crate) fn above(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('/').map(|(at, _)| &path[..at])
}

impl Node {
    /// A copy that costs no texts. Not with the mailbox: it could be the last that holds it, and what waits there is the user's.
    fn seen(&self) -> Node {
        let live = self.live.as_ref().map(|(pid, _)| (pid.clone(), None));
        let Node { kind, type_name, state, since, restarts, ref exits, dropped, .. } = *self;
        Node { kind, type_name, state, since, restarts, exits: exits.clone(), dropped, live }
    }

    fn past(&mut self, pid: &Pid, exit: &Exit) {
        let exits = Arc::make_mut(self.exits.get_or_insert_default());
        exits.truncate(LAST_EXITS - 1);
        // Most have ended once, if ever.
        exits.reserve_exact(1);
        exits.push_front(Past { id: pid.id(), exit: exit.clone(), at: Instant::now() });
    }

    fn past_exits(&self, now: Instant) -> Vec<PastExit> {
        let Some(exits) = &self.exits else { return Vec::new() };
        let past = |past: &Past| {
            let ago_ms = ms(now.saturating_duration_since(past.at));
            PastExit { id: past.id, exit: past.exit.clone(), ago_ms }
        };
        exits.iter().map(past).collect()
    }

    fn info(&self, path: &str, now: Instant, running: &[(u64, u64)]) -> ActorInfo {
        let pid = self.live.as_ref().map(|(pid, _)| pid);
        let current = pid.and_then(|pid| {
            let (_, for_ms) = *running.iter().find(|(id, _)| *id == pid.id())?;
            Some(Current { doing: pid.last_doing().to_owned(), for_ms })
        });
        ActorInfo {
            path: path.to_owned(),
            kind: self.kind,
            type_name: self.type_name.to_owned(),
            state: match self.state {
                Life::Begun if !pid.is_some_and(Pid::is_up) => State::Starting,
                Life::Begun if pid.is_some_and(Pid::ending) => State::Stopping,
                Life::Begun => State::Running,
                Life::Restarting { due } => State::Restarting { in_ms: ms(due.saturating_duration_since(now)) },
                Life::Stopping => State::Stopping,
                Life::Stopped => State::Stopped,
            },
            id: pid.map(Pid::id),
            uptime_ms: if pid.is_some() { ms(now.saturating_duration_since(self.since)) } else { 0 },
            restarts: self.restarts,
            last_exit: self.exits.as_ref().and_then(|exits| exits.front()).map(|past| past.exit.clone()),
            last_exits: self.past_exits(now),
            queue_oldest_ms: pid.and_then(|pid| pid.measured(|stats| stats.oldest(now).map(ms))).flatten(),
            by_message: pid.and_then(|pid| pid.measured(|stats| stats.messages())).unwrap_or_default(),
            queue_len: pid.map_or(0, Pid::queue_len),
            queue_max: pid.map_or(0, Pid::queue_max),
            messages: pid.map_or(0, Pid::messages),
            dropped: self.dropped + pid.map_or(0, Pid::dropped),
            current,
            stuck: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Mailbox;
    use std::sync::mpsc::channel;

    fn enter(registry: &Registry, id: u64, path: &str) -> Pid {
        let pid = Pid::new(id, path.into(), Mailbox::NONE);
        assert!(registry.enter(&pid, None, Kind::Worker, "T", false));
        pid
    }

    /// Whoever looks at the tree may have to wait for one of the actors in it.
    #[test]
    fn who_starts_does_not_wait_for_who_looks_at_the_tree() {
        let registry = Arc::new(Registry::default());
        registry.observe();
        let slow = enter(&registry, 1, "slow");
        let (free, held) = channel::<()>();
        let (holds, held_now) = channel();
        // Its account is locked as long as this lasts.
        let holder = std::thread::spawn(move || {
            slow.stats(|_| {
                holds.send(()).expect("waited for");
                let _ = held.recv();
            })
        });
        held_now.recv().expect("it is locked");
        let looker = std::thread::spawn({
            let registry = registry.clone();
            move || registry.tree(&[])
        });
        std::thread::sleep(Duration::from_millis(50));
        let (entered, in_time) = channel();
        let starter = std::thread::spawn({
            let registry = registry.clone();
            move || drop((enter(&registry, 2, "new"), entered.send(())))
        });
        let in_time = in_time.recv_timeout(Duration::from_secs(20));
        drop(free);
        for thread in [holder.join().map(drop), looker.join().map(drop), starter.join()] {
            thread.expect("no panic");
        }
        in_time.expect("the start waited");
    }
}
