//! The identity of one incarnation, and the cell beneath it: signals, watchers, the account of the mailbox, the exit.
//!
//! Must never run user code. Shared by the running actor, its supervisor, its references, its watchers.

use crate::actor::Down;
use crate::exit::Exit;
use crate::groups::AnyGroup;
use crate::mailbox::Backlog;
use crate::observe::Stats;
use crate::panic::guarded;
use crate::shell::{Report, Reporter};
use crate::spec::Mailbox;
use crate::stand_in::Proxy;
use crossbeam_utils::atomic::AtomicCell;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use tokio::sync::{Notify, oneshot};

mod account;
mod elsewhere;

use account::{Places, Taken, Waiters};
pub use elsewhere::ExitWatch;
pub(crate) use elsewhere::WeakPid;

/// One incarnation of an actor or a supervisor. A restarted actor has another pid, and the same path.
#[derive(Clone)]
pub struct Pid(Arc<Cell>);

/// One monitor. Compares equal only to itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MonitorRef {
    pub(crate) target: Pid,
    watch: u64,
}

/// Someone asked for a stop.
pub(crate) const STOP: u16 = 1;
/// Someone killed it.
pub(crate) const KILL: u16 = 1 << 1;
/// There are signals to deliver.
pub(crate) const SIGNAL: u16 = 1 << 2;
/// A subtree has ended.
pub(crate) const SUBTREE: u16 = 1 << 3;
/// Someone has begun to wait for room in its mailbox. No reason to end a turn for it.
pub(crate) const ROOM: u16 = 1 << 4;
/// It takes no more messages.
const ENDING: u16 = 1 << 5;
const DEAD: u16 = 1 << 6;
/// Its exit belongs to whoever set this: nobody else reports it, and none of its code is begun any more.
const CLAIMED: u16 = 1 << 7;
/// Its thread may be left behind while it lives, and with it whatever waits in its mailbox.
const WATCHED: u16 = 1 << 8;
/// No supervisor keeps it in its list, so nobody else would take it out of the tree.
const ROOTLESS: u16 = 1 << 9;
/// Someone looks at its queue and its handlers.
const OBSERVED: u16 = 1 << 10;
/// Its start has succeeded.
const UP: u16 = 1 << 11;
const REQUESTS: u16 = STOP | KILL | SIGNAL | SUBTREE;

/// The name of what an actor does: `std::any::type_name` of its message, or of one of the types in [`doing`]. A function and not its
/// result, because that fits into one atomic word.
pub(crate) type Name = fn() -> &'static str;

/// What an actor does that is no message.
pub(crate) mod doing {
    pub(crate) fn nothing() -> &'static str {
        "nothing"
    }
    pub(crate) fn start() -> &'static str {
        "its start"
    }
    pub(crate) fn signal() -> &'static str {
        "a signal"
    }
    pub(crate) fn task() -> &'static str {
        "a task, timer or stream"
    }
    pub(crate) fn stop() -> &'static str {
        "its stop"
    }
    pub(crate) fn supervision() -> &'static str {
        "supervision"
    }
}

/// In this order: what the senders write with each message, what both sides read with each message, and what the actor's thread
/// writes with each message lie so far apart that no two of them ever share a cache line of 64 bytes. Between them is what is touched seldom.
#[repr(C)]
struct Cell {
    places: Places,
    path: Arc<str>,
    id: u64,
    /// Made for the first who waits for room.
    room: OnceLock<Box<Notify>>,
    /// Messages that were accepted, and not handled.
    dropped: AtomicU64,
    mailbox: Mailbox,
    flags: AtomicU16,
    waiters: Waiters,
    /// Where it runs; 0 before that is known.
    arbiter: AtomicU32,
    control: Mutex<Control>,
    taken: Taken,
    doing: AtomicCell<Name>,
}

#[derive(Default)]
struct Control {
    exit: Option<Box<Exit>>,
    ties: Option<Box<Ties>>,
    reporter: Reporter,
    /// Wakes whoever runs it, until it has exited.
    waker: Option<Waker>,
}

/// What few actors have: there may be as many actors as there are pods.
#[derive(Default)]
struct Ties {
    stop: Option<Exit>,
    /// Where the messages of the actor lie, if not in actix's channel. Left there for the next incarnation when it ends.
    backlog: Option<Arc<dyn Backlog>>,
    watchers: BTreeMap<u64, Watcher>,
    next_watch: u64,
    links: Vec<Pid>,
    /// At most one for each monitor and link that the actor made, or that was made to it.
    signals: VecDeque<Signal>,
    /// At most one for each subtree that the actor supervises.
    subtree_exits: VecDeque<(u64, Exit)>,
    /// The groups that it is a member of, one entry for each join.
    groups: Vec<(Arc<dyn AnyGroup>, u64)>,
    /// `None` while nobody looks.
    stats: Option<Box<Stats>>,
    /// Of a stand-in for a process elsewhere, until it exits.
    proxy: Option<Arc<dyn Proxy>>,
    /// It is a stand-in.
    elsewhere: bool,
}

enum Watcher {
    Monitor(Pid),
    Once(oneshot::Sender<Exit>),
    Call(Box<dyn FnOnce(&Exit) + Send>),
}

/// What reaches an actor outside its mailbox.
pub(crate) enum Signal {
    Down(Down),
    Exit { from: Pid, reason: Exit },
}

impl Pid {
    pub(crate) fn new(id: u64, path: Arc<str>, mailbox: Mailbox) -> Self {
        Pid::with_reporter(id, path, mailbox, Reporter::None)
    }

    /// `reporter` is told how it starts and ends.
    pub(crate) fn with_reporter(id: u64, path: Arc<str>, mailbox: Mailbox, reporter: Reporter) -> Self {
        Pid(Arc::new(Cell {
            places: Places::new(mailbox),
            path,
            id,
            room: OnceLock::new(),
            dropped: AtomicU64::new(0),
            mailbox,
            flags: AtomicU16::new(0),
            waiters: Waiters::default(),
            arbiter: AtomicU32::new(0),
            control: Mutex::new(Control { reporter, ..Control::default() }),
            taken: Taken::default(),
            doing: AtomicCell::new(doing::nothing),
        }))
    }

    /// The actor that runs on this thread now, if any (OTP `self()`).
    pub fn current() -> Option<Pid> {
        let current = CURRENT.take();
        CURRENT.set(current.clone());
        current
    }

    /// Its place in the tree, shared by all its incarnations.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// Its number, unique within its system.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        self.0.flags.load(Acquire) & DEAD == 0
    }

    /// Waits until it has ended, and says why. At once if it has.
    pub async fn exited(&self) -> Exit {
        let (watch, ended) = {
            let mut control = self.0.control.lock();
            if let Some(exit) = &control.exit {
                return Exit::clone(exit);
            }
            let (tx, rx) = oneshot::channel();
            (control.watch(Watcher::Once(tx)), rx)
        };
        let _unwatch = Unwatch { pid: self, watch };
        ended.await.unwrap_or(Exit::ArbiterGone)
    }

    /// Why it ended; `None` while it lives.
    pub fn exit(&self) -> Option<Exit> {
        self.0.control.lock().exit.as_deref().cloned()
    }

    /// Asks it to stop with this reason. It jumps the mailbox; the first reason counts.
    pub fn stop(&self, reason: Exit) {
        if let Some(proxy) = self.proxy() {
            return proxy.stop(reason);
        }
        self.0.control.lock().ties().stop.get_or_insert(reason);
        self.raise(STOP);
    }

    /// Ends it without asking; its `stopping` is not run. A handler that runs just now returns first.
    pub fn kill(&self) {
        if let Some(proxy) = self.proxy() {
            return proxy.kill();
        }
        self.raise(KILL);
    }

    // ---- for the shell and the driver -------------------------------------------------------------------------------------

    pub(crate) fn arc_path(&self) -> &Arc<str> {
        &self.0.path
    }

    /// What it does from now on. One plain store.
    #[inline]
    pub(crate) fn doing(&self, name: Name) {
        self.0.doing.store(name);
    }

    /// What it did last.
    pub(crate) fn last_doing(&self) -> &'static str {
        (self.0.doing.load())()
    }

    /// The id of the arbiter that it was put on.
    pub(crate) fn arbiter(&self) -> u32 {
        self.0.arbiter.load(Acquire)
    }

    pub(crate) fn set_arbiter(&self, id: u32) {
        self.0.arbiter.store(id, Release);
    }

    /// Takes its exit into one's own hands. True for one caller only.
    pub(crate) fn claim(&self) -> bool {
        self.0.flags.fetch_or(CLAIMED, AcqRel) & CLAIMED == 0
    }

    /// Whether somebody has: no code of the actor's is to begin any more.
    pub(crate) fn claimed(&self) -> bool {
        self.0.flags.load(Acquire) & CLAIMED != 0
    }

    pub(crate) fn watch(&self) {
        self.0.flags.fetch_or(WATCHED, AcqRel);
    }

    pub(crate) fn watched(&self) -> bool {
        self.0.flags.load(Relaxed) & WATCHED != 0
    }

    pub(crate) fn set_rootless(&self, rootless: bool) {
        match rootless {
            true => self.0.flags.fetch_or(ROOTLESS, AcqRel),
            false => self.0.flags.fetch_and(!ROOTLESS, AcqRel),
        };
    }

    pub(crate) fn rootless(&self) -> bool {
        self.0.flags.load(Acquire) & ROOTLESS != 0
    }

    /// Whether someone looks at it.
    #[inline]
    pub(crate) fn observed(&self) -> bool {
        self.0.flags.load(Relaxed) & OBSERVED != 0
    }

    pub(crate) fn observe(&self) {
        self.0.flags.fetch_or(OBSERVED, AcqRel);
    }

    /// Nobody looks any more. What was measured goes to the caller.
    pub(crate) fn unobserve(&self) -> Option<Box<Stats>> {
        if self.0.flags.fetch_and(!OBSERVED, AcqRel) & OBSERVED == 0 {
            return None;
        }
        self.0.control.lock().ties.as_mut()?.stats.take()
    }

    /// Something is measured; not so when nobody looks any more.
    pub(crate) fn stats<R>(&self, f: impl FnOnce(&mut Stats) -> R) -> Option<R> {
        let mut control = self.0.control.lock();
        self.observed().then(|| f(control.ties().stats.get_or_insert_default()))
    }

    /// What has been measured, if anything was.
    pub(crate) fn measured<R>(&self, f: impl FnOnce(&Stats) -> R) -> Option<R> {
        if !self.observed() {
            return None;
        }
        self.0.control.lock().ties.as_ref()?.stats.as_deref().map(f)
    }

    /// Who is told how it starts and ends.
    pub(crate) fn set_reporter(&self, reporter: Reporter) {
        self.0.control.lock().reporter = reporter;
    }

    pub(crate) fn set_up(&self) {
        self.0.flags.fetch_or(UP, AcqRel);
    }

    /// Whether its start has succeeded.
    pub(crate) fn is_up(&self) -> bool {
        self.0.flags.load(Acquire) & UP != 0
    }

    pub(crate) fn report_started(&self) {
        let mut reporter = std::mem::take(&mut self.0.control.lock().reporter);
        reporter.tell(Report::Started);
        let exit = {
            let mut control = self.0.control.lock();
            match &control.exit {
                // Meanwhile someone else has ended it, and found nobody to tell.
                Some(exit) => Exit::clone(exit),
                None => {
                    control.reporter = reporter;
                    return;
                }
            }
        };
        reporter.tell(Report::Exited(exit));
    }

    /// See [`Registered`].
    #[cold]
    fn register(&self, waker: &Waker) {
        let mut control = self.0.control.lock();
        let before = match control.exit {
            // Nobody wakes it any more.
            Some(_) => None,
            None => control.waker.replace(waker.clone()),
        };
        drop(control);
        drop(before); // outside the lock: it may be the last that holds its task
    }

    pub(crate) fn wake(&self) {
        let waker = self.0.control.lock().waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the requests raised since the last call, and whether someone began to wait for [`ROOM`].
    #[inline]
    pub(crate) fn take_requests(&self) -> u16 {
        if self.0.flags.load(Acquire) & (REQUESTS | ROOM) == 0 {
            return 0;
        }
        self.0.flags.fetch_and(!(REQUESTS | ROOM), AcqRel) & (REQUESTS | ROOM)
    }

    pub(crate) fn stop_reason(&self) -> Exit {
        self.0.control.lock().ties().stop.clone().unwrap_or(Exit::Shutdown)
    }

    pub(crate) fn next_signal(&self) -> Option<Signal> {
        self.0.control.lock().ties.as_mut()?.signals.pop_front()
    }

    pub(crate) fn next_subtree_exit(&self) -> Option<(u64, Exit)> {
        self.0.control.lock().ties.as_mut()?.subtree_exits.pop_front()
    }

    pub(crate) fn subtree_exited(&self, subtree: u64, exit: Exit) {
        self.0.control.lock().ties().subtree_exits.push_back((subtree, exit));
        self.raise(SUBTREE);
    }

    /// Whether it is to handle no message now: there are requests to take, or its exit is someone else's already.
    #[inline]
    pub(crate) fn interrupted(&self) -> bool {
        self.0.flags.load(Acquire) & (REQUESTS | CLAIMED) != 0
    }

    /// How many exits of others, that it monitors or is linked to, it has not heard of yet: many, if it does not give its thread back. Whoever
    /// brings links from elsewhere can refuse them to such an actor.
    pub fn signals_waiting(&self) -> usize {
        self.0.control.lock().ties.as_ref().map_or(0, |ties| ties.signals.len())
    }

    /// Ends it: watchers, links and whoever started it learn the reason, once.
    pub(crate) fn set_exit(&self, exit: &Exit) {
        let (mut reporter, _waker, (watchers, links, groups, _proxy)) = {
            let mut control = self.0.control.lock();
            if control.exit.is_some() {
                return;
            }
            control.exit = Some(Box::new(exit.clone()));
            self.0.flags.fetch_or(DEAD, AcqRel);
            let told = match &mut control.ties {
                Some(ties) => {
                    ties.signals = VecDeque::new();
                    let groups = std::mem::take(&mut ties.groups);
                    let watchers = std::mem::take(&mut ties.watchers);
                    (watchers, std::mem::take(&mut ties.links), groups, ties.proxy.take())
                }
                None => Default::default(),
            };
            (std::mem::take(&mut control.reporter), control.waker.take(), told)
        };
        self.set_ending();
        // Who learns of the end finds it in no group any more.
        for (group, member) in groups {
            group.left(member);
        }
        for (watch, watcher) in watchers {
            match watcher {
                Watcher::Monitor(by) => {
                    let monitor = MonitorRef { target: self.clone(), watch };
                    by.signal(Signal::Down(Down { monitor, pid: self.clone(), reason: exit.clone() }));
                }
                Watcher::Once(tx) => {
                    let _ = tx.send(exit.clone());
                }
                Watcher::Call(f) => self.foreign(|| f(exit)),
            }
        }
        for link in links {
            // A stand-in's goes to whoever carries it.
            self.foreign(|| link.linked_exited(self, exit));
        }
        reporter.tell(Report::Exited(exit.clone()));
    }

    /// Runs code of others at its end. Those that have to learn of it, too, must not miss it for a panic of someone else's.
    fn foreign(&self, f: impl FnOnce()) {
        if let Err(panic) = guarded(f) {
            tracing::error!(path = self.path(), %panic, "a call on the exit of an actor panicked");
        }
    }

    /// It is a member of `group` until it ends. False when it has.
    pub(crate) fn joins(&self, group: Arc<dyn AnyGroup>, member: u64) -> bool {
        let mut control = self.0.control.lock();
        if control.exit.is_some() {
            return false;
        }
        control.ties().groups.push((group, member));
        true
    }

    /// It is no member any more: which it was last.
    pub(crate) fn leaves(&self, group: &Arc<dyn AnyGroup>) -> Option<u64> {
        let mut control = self.0.control.lock();
        let groups = &mut control.ties.as_mut()?.groups;
        let at = groups.iter().rposition(|(own, _)| Arc::ptr_eq(own, group))?;
        // The caller holds the group too, so nothing is dropped under the lock.
        Some(groups.remove(at).1)
    }

    /// `from`, to which this is linked, has exited. Nothing comes of it when the link was taken back meanwhile: looked at under the lock
    /// under which it would be.
    fn linked_exited(&self, from: &Pid, reason: &Exit) {
        let mut control = self.0.control.lock();
        if control.exit.is_some() {
            return;
        }
        let Some(ties) = control.ties.as_mut().filter(|ties| ties.links.contains(from)) else { return };
        ties.links.retain(|link| link != from);
        match ties.proxy.clone() {
            None => ties.signals.push_back(Signal::Exit { from: from.clone(), reason: reason.clone() }),
            Some(proxy) => {
                drop(control);
                return proxy.exited(from, reason);
            }
        }
        drop(control);
        self.raise(SIGNAL);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        {
            let mut control = self.0.control.lock();
            if control.exit.is_some() {
                return;
            }
            let ties = control.ties();
            match ties.proxy.clone() {
                None => ties.signals.push_back(signal),
                Some(proxy) => {
                    drop(control);
                    if let Signal::Exit { from, reason } = signal {
                        proxy.exited(&from, &reason);
                    }
                    return;
                }
            }
        }
        self.raise(SIGNAL);
    }

    /// `by` monitors this. One that has ended already is reported at once.
    pub(crate) fn monitored_by(&self, by: &Pid) -> MonitorRef {
        let mut control = self.0.control.lock();
        if control.exit.is_none() {
            let watch = control.watch(Watcher::Monitor(by.clone()));
            return MonitorRef { target: self.clone(), watch };
        }
        let watch = control.ties().next_watch();
        let reason = control.gone();
        drop(control);
        let monitor = MonitorRef { target: self.clone(), watch };
        by.signal(Signal::Down(Down { monitor: monitor.clone(), pid: self.clone(), reason }));
        monitor
    }

    /// Links both ways. A second link between the same two changes nothing.
    pub(crate) fn link(&self, other: &Pid) {
        if self == other {
            return;
        }
        // First on this side: if the other one ends meanwhile, its signal finds the link here.
        if !self.0.control.lock().add_link(other) {
            return;
        }
        let proxy = {
            let mut control = other.0.control.lock();
            if control.exit.is_some() {
                let reason = control.gone();
                drop(control);
                if self.forget_link(other) {
                    self.signal(Signal::Exit { from: other.clone(), reason });
                }
                return;
            }
            if !control.add_link(self) {
                return;
            }
            control.ties().proxy.clone()
        };
        if let Some(proxy) = proxy {
            proxy.linked(self);
        }
    }

    /// No exit signal of `other` comes after this, not even one that is on its way.
    pub(crate) fn unlink(&self, other: &Pid) {
        let linked = self.forget_link(other);
        let flushed = self.flush_exits(other);
        other.forget_link(self);
        if linked && let Some(proxy) = other.proxy() {
            proxy.unlinked(self);
        }
        drop(flushed);
    }

    /// The exit signals of `other` that wait, for the caller to drop outside of the lock: they may hold the last reference to a pid.
    fn flush_exits(&self, other: &Pid) -> Vec<Signal> {
        let mut control = self.0.control.lock();
        let Some(ties) = &mut control.ties else { return Vec::new() };
        let of_other = |signal: &Signal| matches!(signal, Signal::Exit { from, .. } if from == other);
        if !ties.signals.iter().any(of_other) {
            return Vec::new();
        }
        let (gone, kept): (Vec<_>, _) = std::mem::take(&mut ties.signals).into_iter().partition(of_other);
        ties.signals = VecDeque::from(kept);
        gone
    }

    /// Whether there was one.
    pub(crate) fn forget_link(&self, other: &Pid) -> bool {
        let mut control = self.0.control.lock();
        let Some(ties) = &mut control.ties else { return false };
        let at = ties.links.iter().position(|pid| pid == other);
        let link = at.map(|at| ties.links.remove(at));
        // Outside the lock: it may be the last reference.
        drop(control);
        link.is_some()
    }

    fn forget_watcher(&self, watch: u64) {
        // Dropped outside the lock: it may hold the last reference to another pid.
        let _watcher = self.0.control.lock().ties.as_mut().and_then(|ties| ties.watchers.remove(&watch));
    }

    pub(crate) fn raise(&self, flag: u16) {
        // Before the lock in which the waker is looked for: whoever registers one there afterwards finds the flag.
        self.0.flags.fetch_or(flag, AcqRel);
        self.wake();
    }
}

impl PartialEq for Pid {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Pid {}

impl Hash for Pid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}#{}>", self.0.path, self.0.id)
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.0.path, self.0.id)
    }
}

impl MonitorRef {
    /// Removes the monitor from its target.
    pub(crate) fn cancel(&self) {
        self.target.forget_watcher(self.watch);
    }
}

impl Control {
    fn watch(&mut self, watcher: Watcher) -> u64 {
        let ties = self.ties();
        let watch = ties.next_watch();
        ties.watchers.insert(watch, watcher);
        watch
    }

    fn ties(&mut self) -> &mut Ties {
        self.ties.get_or_insert_default()
    }

    /// False if there was one already.
    fn add_link(&mut self, pid: &Pid) -> bool {
        let links = &mut self.ties().links;
        if links.contains(pid) {
            return false;
        }
        links.push(pid.clone());
        true
    }

    /// What those learn who come after the end: there is no such process, or nobody can tell.
    fn gone(&self) -> Exit {
        let out_of_reach = self.ties.as_ref().is_some_and(|ties| ties.elsewhere);
        match self.exit.as_deref() {
            Some(Exit::NoConnection) if out_of_reach => Exit::NoConnection,
            _ => Exit::NoProc,
        }
    }
}

impl Ties {
    fn next_watch(&mut self) -> u64 {
        self.next_watch += 1;
        self.next_watch
    }
}

/// Takes a waiter for the exit off the list when it is no longer waited for.
struct Unwatch<'a> {
    pid: &'a Pid,
    watch: u64,
}

impl Drop for Unwatch<'_> {
    fn drop(&mut self) {
        self.pid.forget_watcher(self.watch);
    }
}

/// The waker that whoever runs a pid has registered. A task has the same one all its life, so mostly it is registered already, and
/// nothing needs to be locked for it.
#[derive(Default)]
pub(crate) struct Registered(usize);

impl Registered {
    /// From now on `waker` is woken when there are requests for `pid`.
    #[inline]
    pub(crate) fn renew(&mut self, pid: &Pid, waker: &Waker) {
        // In one word, as there may be as many as there are pods. The pid holds the one that is registered, so that no other one has its address.
        let address = waker.data().addr() ^ std::ptr::from_ref(waker.vtable()).addr().rotate_left(usize::BITS / 2);
        if self.0 != address {
            self.0 = address;
            pid.register(waker);
        }
    }
}

thread_local!(static CURRENT: std::cell::Cell<Option<Pid>> = const { std::cell::Cell::new(None) });

/// Makes `pid` the current one of this thread until it is dropped.
pub(crate) struct Entered(Option<Pid>);

impl Entered {
    pub(crate) fn new(pid: &Pid) -> Self {
        Entered::with(pid.clone())
    }

    /// As [`Entered::new`], with a reference to the pid that [`Entered::leave`] gives back: not even a counter is changed.
    #[inline]
    pub(crate) fn with(pid: Pid) -> Self {
        Entered(CURRENT.replace(Some(pid)))
    }

    #[inline]
    pub(crate) fn leave(mut self) -> Option<Pid> {
        let previous = self.0.take();
        std::mem::forget(self);
        CURRENT.replace(previous)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let previous = self.0.take();
        // Replaced before it is dropped: dropping the last reference could come back here.
        let gone = CURRENT.replace(previous);
        drop(gone);
    }
}
