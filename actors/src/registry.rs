//! Who is where: every node of the tree by its path, with its live incarnation.
//!
//! Must never call out while locked. Written by supervisors and by ending actors, read by lookups and observers.

use crate::exit::Exit;
use crate::inspect::{ActorInfo, Kind, State};
use crate::pid::Pid;
use parking_lot::RwLock;
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The typed mailbox of an actor, as `Arc<Inbox<A>>`; of a supervisor, its handle.
pub(crate) type AnyInbox = Arc<dyn Any + Send + Sync>;

#[derive(Default)]
pub(crate) struct Registry {
    nodes: RwLock<HashMap<Arc<str>, Node>>,
}

struct Node {
    kind: Kind,
    type_name: &'static str,
    state: Life,
    since: Instant,
    restarts: u32,
    last_exit: Option<Box<Exit>>,
    /// Messages that earlier incarnations did not handle.
    dropped: u64,
    live: Option<(Pid, Option<AnyInbox>)>,
}

#[derive(Clone, Copy)]
enum Life {
    Starting,
    Running,
    Restarting { due: Instant },
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
        let mut nodes = self.nodes.write();
        let node = nodes.entry(pid.arc_path().clone()).or_insert_with(|| Node {
            kind,
            type_name,
            state: Life::Starting,
            since: Instant::now(),
            restarts: 0,
            last_exit: None,
            dropped: 0,
            live: None,
        });
        if node.live.is_some() {
            return false;
        }
        node.kind = kind;
        node.type_name = type_name;
        node.state = Life::Starting;
        node.since = Instant::now();
        node.restarts += u32::from(restart);
        node.live = Some((pid.clone(), inbox));
        true
    }

    pub(crate) fn running(&self, pid: &Pid) {
        self.update(pid, |node| node.state = Life::Running);
    }

    pub(crate) fn stopping(&self, pid: &Pid) {
        self.update(pid, |node| node.state = Life::Stopping);
    }

    /// The incarnation has ended. Nothing happens if it is not the one that lives at its path.
    pub(crate) fn leave(&self, pid: &Pid, exit: &Exit) {
        let mut gone = None;
        self.update(pid, |node| {
            node.state = Life::Stopped;
            node.last_exit = Some(Box::new(exit.clone()));
            node.dropped += pid.dropped();
            gone = node.live.take();
        });
        drop(gone); // outside the lock: the mailbox may hold messages whose Drop does anything
    }

    /// Nothing lives at the path, and something will. Returns how often it was started again before.
    pub(crate) fn restarting(&self, path: &str, delay: Duration) -> u32 {
        let mut nodes = self.nodes.write();
        let Some(node) = nodes.get_mut(path).filter(|node| node.live.is_none()) else { return 0 };
        node.state = Life::Restarting { due: Instant::now() + delay };
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

    pub(crate) fn live(&self) -> Vec<Pid> {
        self.nodes.read().values().filter_map(|node| Some(node.live.as_ref()?.0.clone())).collect()
    }

    /// All nodes in the order of their paths.
    pub(crate) fn tree(&self) -> Vec<ActorInfo> {
        let now = Instant::now();
        let mut tree: Vec<ActorInfo> = self.nodes.read().iter().map(|(path, node)| node.info(path, now)).collect();
        tree.sort_unstable_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
        tree
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

impl Node {
    fn info(&self, path: &str, now: Instant) -> ActorInfo {
        let pid = self.live.as_ref().map(|(pid, _)| pid);
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        ActorInfo {
            path: path.to_owned(),
            kind: self.kind,
            type_name: self.type_name.to_owned(),
            state: match self.state {
                Life::Starting => State::Starting,
                Life::Running if pid.is_some_and(Pid::ending) => State::Stopping,
                Life::Running => State::Running,
                Life::Restarting { due } => State::Restarting { in_ms: ms(due.saturating_duration_since(now)) },
                Life::Stopping => State::Stopping,
                Life::Stopped => State::Stopped,
            },
            id: pid.map(Pid::id),
            uptime_ms: if pid.is_some() { ms(now.saturating_duration_since(self.since)) } else { 0 },
            restarts: self.restarts,
            last_exit: self.last_exit.as_deref().cloned(),
            queue_len: pid.map_or(0, Pid::queue_len),
            queue_max: pid.map_or(0, Pid::queue_max),
            messages: pid.map_or(0, Pid::messages),
            dropped: self.dropped + pid.map_or(0, Pid::dropped),
        }
    }
}
