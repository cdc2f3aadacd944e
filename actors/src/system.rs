//! The actor system: the arbiters, the registry and the top-level supervisors of one node.
//!
//! Must never be a global: many systems live in one process. Made by whoever embeds the crate.

use crate::actor::Actor;
use crate::arbiter::{Arbiter, Heartbeat};
use crate::error::{BuildError, StartError};
use crate::exit::Exit;
use crate::inspect::{ActorInfo, ArbiterInfo, TREE_EVENTS, TreeEvent};
use crate::panic::install_hook;
use crate::pid::Pid;
use crate::refs::{Inbox, Named, Ref};
use crate::registry::Registry;
use crate::shell::{ExitGuard, Report, Reporter};
use crate::spec::{Mailbox, Placement, SupervisorSpec};
use crate::supervisor::{SupervisorRef, launch};
use parking_lot::Mutex;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use tokio::sync::{broadcast, oneshot};

/// A node's actors. Clones are the same system; when the last one made by [`System::builder`] is dropped, its threads end.
#[derive(Clone)]
pub struct System {
    inner: Arc<Inner>,
    /// `None` in handles that actors hold: they would keep the system, and so themselves, alive.
    _owner: Option<Arc<Owner>>,
}

pub(crate) struct Inner {
    name: String,
    pub(crate) registry: Registry,
    arbiters: Vec<Arc<Arbiter>>,
    next_arbiter: AtomicUsize,
    next_pid: AtomicU64,
    /// Made for the first subscriber: nobody pays for events that nobody reads.
    events: OnceLock<broadcast::Sender<TreeEvent>>,
    /// In the order of their start.
    tops: Mutex<Vec<Pid>>,
    /// Nothing more may be started at the top.
    down: AtomicBool,
    killed: AtomicBool,
}

struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Settings of a new [`System`].
pub struct SystemBuilder {
    name: String,
    arbiters: usize,
    local: bool,
}

impl SystemBuilder {
    /// How many threads run actors; at least one, and one unless set.
    pub fn arbiters(mut self, threads: usize) -> Self {
        self.arbiters = threads.max(1);
        self
    }

    /// Everything runs on the tokio `LocalSet` that `build` is called in: no threads, and time can be simulated.
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// Starts the threads.
    pub fn build(self) -> Result<System, BuildError> {
        install_hook();
        let arbiters = if self.local {
            // tokio panics outside a LocalSet: an error of the embedder's, which deserves a sentence.
            vec![crate::panic::guarded(Arbiter::local).map_err(|_| BuildError::NoLocalSet)?]
        } else {
            (0..self.arbiters)
                .map(|i| Arbiter::thread(format!("{}-actors-{i}", self.name)))
                .collect::<Result<_, _>>()?
        };
        let inner = Arc::new(Inner {
            name: self.name,
            registry: Registry::default(),
            arbiters,
            next_arbiter: AtomicUsize::new(0),
            next_pid: AtomicU64::new(1),
            events: OnceLock::new(),
            tops: Mutex::default(),
            down: AtomicBool::new(false),
            killed: AtomicBool::new(false),
        });
        let owner = Arc::new(Owner(inner.clone()));
        Ok(System { inner, _owner: Some(owner) })
    }
}

impl System {
    /// A new system; `name` is the node's.
    pub fn builder(name: impl Into<String>) -> SystemBuilder {
        SystemBuilder { name: name.into(), arbiters: 1, local: false }
    }

    pub(crate) fn guest(inner: Arc<Inner>) -> Self {
        System { inner, _owner: None }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Starts a top-level supervisor at the path `<id>` and waits until all its first children are up. When it gives up later, that is
    /// logged and seen through [`SupervisorRef::pid`]; nobody restarts it.
    pub async fn start(&self, spec: SupervisorSpec) -> Result<SupervisorRef, StartError> {
        if self.inner.down.load(SeqCst) {
            return Err(StartError::SystemDown);
        }
        let path: Arc<str> = spec.id().into();
        if self.inner.registry.find(&path).is_some() {
            return Err(StartError::AlreadyRunning(path.to_string()));
        }
        let pid = self.inner.pid(path, Mailbox::NONE);
        let (up, started) = oneshot::channel();
        let mut up = Some(up);
        let reporter = Reporter::new(move |report| {
            if let (Report::Started, Some(up)) = (report, up.take()) {
                let _ = up.send(());
            }
        });
        {
            let mut tops = self.inner.tops.lock();
            tops.retain(Pid::is_alive);
            tops.push(pid.clone());
        }
        let exit = ExitGuard::new(pid.clone(), self.inner.clone(), reporter).rootless();
        let (inner, own) = (self.inner.clone(), pid.clone());
        let (give, take) = oneshot::channel();
        self.inner.arbiter(Placement::Spread).run(Box::new(move || {
            let _ = give.send(launch(spec, own, inner, exit, false));
        }));
        let supervisor = take.await.map_err(|_| StartError::SystemDown)?;
        match started.await {
            Ok(()) => Ok(supervisor),
            Err(_) => Err(StartError::Failed(pid.exited().await)),
        }
    }

    /// Who runs at a path now.
    pub fn whereis(&self, path: &str) -> Option<Pid> {
        self.inner.registry.find(path)
    }

    /// The actor of type `A` that runs at a path now.
    pub fn lookup<A: Actor>(&self, path: &str) -> Option<Ref<A>> {
        self.inner.lookup(path)
    }

    /// The supervisor that runs at a path now: how an actor reaches a dynamic supervisor that is its sibling.
    pub fn supervisor(&self, path: &str) -> Option<SupervisorRef> {
        let handle = self.inner.registry.inbox(path)?.downcast::<SupervisorRef>().ok()?;
        Some(SupervisorRef::clone(&handle))
    }

    /// A reference to whoever runs at a path whenever it is used.
    pub fn named<A: Actor>(&self, path: &str) -> Named<A> {
        Named::new(path, self.inner.clone())
    }

    /// All actors and supervisors, in the order of their paths.
    pub fn tree(&self) -> Vec<ActorInfo> {
        self.inner.registry.tree()
    }

    /// What the arbiters do at this moment. The same odd count at two looks: an actor blocks its neighbours.
    pub fn arbiters(&self) -> Vec<ArbiterInfo> {
        let look = |arbiter: &Arc<Arbiter>| {
            let (turns, running) = arbiter.heartbeat.look();
            ArbiterInfo { alive: arbiter.is_alive(), turns, running }
        };
        self.inner.arbiters.iter().map(look).collect()
    }

    /// What changes in the tree from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<TreeEvent> {
        self.inner.events.get_or_init(|| broadcast::Sender::new(TREE_EVENTS)).subscribe()
    }

    /// Stops the top-level supervisors, last come first, then the threads.
    pub async fn shutdown(&self) {
        self.inner.down.store(true, SeqCst);
        let tops = std::mem::take(&mut *self.inner.tops.lock());
        for pid in tops.into_iter().rev() {
            pid.stop(Exit::Shutdown);
            pid.exited().await;
        }
        for arbiter in &self.inner.arbiters {
            arbiter.stop();
        }
        let mut arbiters = self.inner.arbiters.clone();
        // In simulated time no other thread may have a say in what happens when.
        arbiters.retain(|arbiter| arbiter.has_thread());
        if arbiters.is_empty() {
            return;
        }
        // Joining blocks, and the caller may share its thread with others.
        let _ = tokio::task::spawn_blocking(move || arbiters.iter().for_each(|arbiter| arbiter.join())).await;
    }

    /// Ends everything at once, as if the process had died: nothing is asked, no `stopping` runs.
    pub fn kill(&self) {
        self.inner.kill();
        for arbiter in &self.inner.arbiters {
            arbiter.join();
        }
    }
}

impl Inner {
    pub(crate) fn pid(&self, path: Arc<str>, mailbox: Mailbox) -> Pid {
        Pid::new(self.next_pid.fetch_add(1, Relaxed), path, mailbox)
    }

    pub(crate) fn event(&self, event: impl FnOnce() -> TreeEvent) {
        if let Some(events) = self.events.get().filter(|events| events.receiver_count() > 0) {
            // The last one may have gone meanwhile.
            let _ = events.send(event());
        }
    }

    /// Whether all of it is to vanish as if its process had died.
    pub(crate) fn killed(&self) -> bool {
        self.killed.load(SeqCst)
    }

    fn kill(&self) {
        self.down.store(true, SeqCst);
        // First, so that nothing is started while the others die.
        self.killed.store(true, SeqCst);
        for pid in self.registry.live() {
            pid.kill();
        }
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }

    pub(crate) fn lookup<A: Actor>(&self, path: &str) -> Option<Ref<A>> {
        self.registry.inbox(path)?.downcast::<Inbox<A>>().ok().map(Ref::from_inbox)
    }

    /// The heartbeat of the arbiter that the caller runs on.
    pub(crate) fn heartbeat(&self) -> Arc<Heartbeat> {
        self.arbiters[self.current_arbiter()].heartbeat.clone()
    }

    /// In local mode, and outside of all, the first.
    fn current_arbiter(&self) -> usize {
        self.arbiters.iter().position(|arbiter| arbiter.is_current()).unwrap_or(0)
    }

    pub(crate) fn arbiter(&self, placement: Placement) -> &Arc<Arbiter> {
        let n = self.arbiters.len();
        let index = match placement {
            Placement::Inherit => self.current_arbiter(),
            Placement::Spread => self.next_arbiter.fetch_add(1, Relaxed) % n,
            Placement::Arbiter(i) => i % n,
        };
        // One that is gone would only report that, again and again.
        let alive = (0..n).map(|step| (index + step) % n).find(|i| self.arbiters[*i].is_alive());
        &self.arbiters[alive.unwrap_or(index)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ChildSpec, Placement, Strategy};
    use std::time::Duration;

    struct Idle;
    impl Actor for Idle {}

    fn spec() -> SupervisorSpec {
        let child = |id: &str, arbiter| ChildSpec::actor(id, || Idle).placement(Placement::Arbiter(arbiter));
        SupervisorSpec::new("s", Strategy::OneForOne).child(child("a", 0)).child(child("b", 1))
    }

    #[tokio::test]
    async fn an_actor_whose_thread_dies_exits_with_arbiter_gone_and_is_restarted_on_another() {
        let system = System::builder("t").arbiters(2).build().expect("system");
        system.start(spec()).await.expect("started");
        let b = system.whereis("s/b").expect("b");
        // Not through an actor: those panics are caught. This one is the runtime's own death.
        system.inner.arbiters[1].run(Box::new(|| {
            std::panic::resume_unwind(Box::new("dies"));
        }));
        assert_eq!(b.exited().await, Exit::ArbiterGone);
        let again = async {
            while system.whereis("s/b").is_none_or(|pid| pid == b) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.expect("restarted");
        assert!(system.arbiters()[0].alive && !system.arbiters()[1].alive);
        system.shutdown().await;
    }

    #[test]
    fn a_heartbeat_names_the_actor_that_has_the_thread() {
        let heartbeat = Heartbeat::default();
        let pid = Pid::new(7, "a".into(), Mailbox::NONE);
        assert_eq!(heartbeat.look(), (0, None));
        heartbeat.enter(&pid);
        assert_eq!(heartbeat.look(), (1, Some(7)));
        heartbeat.leave();
        assert_eq!(heartbeat.look(), (2, None));
    }
}
