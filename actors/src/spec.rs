//! What a supervisor is told about its children (OTP: child specification, supervisor flags). Plain data and factories.
//!
//! Must never hold anything of a running actor. Written by whoever builds a tree; read by the supervisor.

use crate::actor::Actor;
use crate::inspect::Kind;
use crate::shell::{Factory, WorkerFactory};
use std::sync::Arc;
use std::time::Duration;

/// How long a worker may take to stop before it is killed, unless its spec says otherwise (OTP: 5 s).
pub const WORKER_SHUTDOWN_MS: u64 = 5_000;
/// How many messages a mailbox holds, unless the spec says otherwise. What happens when it is full: [`Overflow`].
pub const MAILBOX_MESSAGES: usize = 1_024;
/// The largest mailbox, in messages; a spec that asks for more gets this.
pub const MAILBOX_MAX_MESSAGES: usize = (1 << 31) - 1;
/// How many restarts a supervisor allows within [`RESTART_PERIOD_MS`], unless its spec says otherwise (OTP: 1).
pub const RESTART_INTENSITY: u32 = 1;
/// The window in which restarts are counted, unless the spec says otherwise (OTP: 5 s).
pub const RESTART_PERIOD_MS: u64 = 5_000;

/// When a child that has ended is started again (OTP `restart`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// Only after an abnormal exit, see [`crate::Exit::is_abnormal`].
    Transient,
    /// Never; the child is forgotten when it ends.
    Temporary,
}

/// How a child is stopped (OTP `shutdown`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Killed at once.
    Brutal,
    /// Asked to stop, and killed when it has not ended after this time.
    Timeout(Duration),
    /// Asked to stop, and waited for however long it takes. The default for supervisors.
    Infinity,
}

/// When the end of significant children is the end of their supervisor (OTP `auto_shutdown`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AutoShutdown {
    /// It does not end by itself. Significant children are refused.
    #[default]
    Never,
    /// It stops, with all its children, when one significant child has ended for good.
    AnySignificant,
    /// It stops, with all its children, when the last significant child has ended for good.
    AllSignificant,
}

/// Which children share the fate of one that ended (OTP `strategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Only the child itself is restarted.
    #[default]
    OneForOne,
    /// All are stopped in reverse order and started again in order.
    OneForAll,
    /// Those started after it are stopped in reverse order, and it and they are started again in order.
    RestForOne,
    /// Like `OneForOne` for many children without order among them: they start and stop in parallel, and a child that ends for good
    /// is forgotten (OTP `simple_one_for_one`, but children have ids and each its own spec).
    Dynamic,
}

/// How restarts of one child are delayed. OTP has no such thing; a child without it is restarted at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Delay of the first restart. Zero restarts at once.
    pub initial: Duration,
    /// Delay of the second restart.
    pub step: Duration,
    /// What the delay is multiplied with for each further restart.
    pub factor: f64,
    /// The longest delay.
    pub max: Duration,
    /// A child that ran this long before it ended starts over with `initial`.
    pub reset_after: Duration,
    /// The delay is shortened by a random part of up to this share, 0.0 to 1.0, so that many children do not return at the same moment.
    pub jitter: f64,
}

impl Default for Backoff {
    /// At once, then 100 ms, doubling up to 30 s; a minute of running resets it; a tenth of jitter.
    fn default() -> Self {
        Backoff {
            initial: Duration::ZERO,
            step: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
            jitter: 0.1,
        }
    }
}

/// On which arbiter (thread) a child runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Placement {
    /// On its supervisor's arbiter: restarts need no wake-up of another thread.
    #[default]
    Inherit,
    /// On the arbiters of the system in turn.
    Spread,
    /// On this arbiter, counted from 0 and taken modulo the number of arbiters.
    Arbiter(usize),
}

/// What a full mailbox does with one more message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Overflow {
    /// Who sends waits: `send` and `ask` until there is room. `tell`, which cannot wait, fails with [`crate::SendError::Full`].
    #[default]
    Wait,
    /// Who sends is refused at once, so that nobody piles up behind a slow actor: `tell` and `send` fail with
    /// [`crate::SendError::Full`], `ask` with [`crate::AskError::Full`].
    Fail,
    /// The message that waits longest is dropped and counted, and the new one takes its room: for what is worth only its newest state.
    /// Nothing waits and nothing is refused; who asked what was dropped learns [`crate::AskError::Dropped`].
    DropOldest,
}

/// The mailbox of an incarnation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mailbox {
    pub(crate) messages: u32,
    pub(crate) overflow: Overflow,
    /// Messages outlive a crash.
    pub(crate) keep: bool,
}

impl Mailbox {
    /// A supervisor has none.
    pub(crate) const NONE: Mailbox = Mailbox { messages: 0, overflow: Overflow::Wait, keep: false };

    pub(crate) fn new(messages: usize) -> Self {
        let messages = messages.clamp(1, MAILBOX_MAX_MESSAGES);
        Mailbox { messages: u32::try_from(messages).unwrap_or(u32::MAX >> 1), ..Mailbox::NONE }
    }

    /// Whether the messages lie in a ring of ours, and not in actix's channel.
    pub(crate) fn has_ring(&self) -> bool {
        self.keep || self.overflow == Overflow::DropOldest
    }
}

/// The part of a child's specification that decisions need.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) restart: Restart,
    pub(crate) significant: bool,
    pub(crate) shutdown: Shutdown,
    pub(crate) backoff: Option<Arc<Backoff>>,
}

impl Policy {
    pub(crate) fn new(shutdown: Shutdown) -> Self {
        Policy { restart: Restart::Permanent, significant: false, shutdown, backoff: None }
    }
}

/// [`Placement::Inherit`] and [`Placement::Spread`], beyond all arbiters.
const INHERIT: u32 = u32::MAX;
const SPREAD: u32 = u32::MAX - 1;

/// One child of a supervisor.
#[derive(Clone)]
pub struct ChildSpec {
    pub(crate) id: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) mailbox: Mailbox,
    /// Smaller than what it stands for, as there may be as many as there are pods.
    place: u32,
    pub(crate) start: Start,
}

#[derive(Clone)]
pub(crate) enum Start {
    Actor(Arc<dyn Factory>),
    Supervisor(Arc<dyn Fn() -> SupervisorSpec + Send + Sync>),
}

impl ChildSpec {
    /// An actor. `make` is run for each incarnation, on the thread that the actor will live on.
    pub fn actor<A: Actor>(id: impl Into<String>, make: impl Fn() -> A + Send + Sync + 'static) -> Self {
        ChildSpec {
            id: id.into().into(),
            policy: Policy::new(Shutdown::Timeout(Duration::from_millis(WORKER_SHUTDOWN_MS))),
            mailbox: Mailbox::new(MAILBOX_MESSAGES),
            place: INHERIT,
            start: Start::Actor(Arc::new(WorkerFactory::new(make))),
        }
    }

    /// An actor that is made of what exists only once, such as a connection; so it is [`Restart::Temporary`], and must stay so: a second
    /// incarnation would panic where it is made.
    pub fn once<A: Actor>(id: impl Into<String>, make: impl FnOnce() -> A + Send + 'static) -> Self {
        let make = parking_lot::Mutex::new(Some(make));
        let make = move || match make.lock().take() {
            Some(make) => make(),
            None => panic!("made by `ChildSpec::once`, it can be started only once"),
        };
        ChildSpec::actor(id, make).restart(Restart::Temporary)
    }

    /// A subtree. `make` is run for each incarnation; the id given here is its name, not the one in the spec that `make` returns.
    pub fn supervisor(id: impl Into<String>, make: impl Fn() -> SupervisorSpec + Send + Sync + 'static) -> Self {
        ChildSpec {
            id: id.into().into(),
            policy: Policy::new(Shutdown::Infinity),
            mailbox: Mailbox::NONE,
            place: INHERIT,
            start: Start::Supervisor(Arc::new(make)),
        }
    }

    /// When it is started again after it ended.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.policy.restart = restart;
        self
    }

    /// Whether its end can be its supervisor's, see [`AutoShutdown`] (OTP `significant`). Its end counts when it is not restarted after it:
    /// any end of a temporary child, a normal one of a transient child; not an end that its supervisor brought about. A permanent child,
    /// and any child of a supervisor that never shuts down for one, may not be significant.
    pub fn significant(mut self, significant: bool) -> Self {
        self.policy.significant = significant;
        self
    }

    /// How it is stopped.
    pub fn shutdown(mut self, shutdown: Shutdown) -> Self {
        self.policy.shutdown = shutdown;
        self
    }

    /// How many messages its mailbox holds; at least one, at most [`MAILBOX_MAX_MESSAGES`]. Means nothing for a supervisor.
    pub fn mailbox(mut self, messages: usize) -> Self {
        self.mailbox.messages = Mailbox::new(messages).messages;
        self
    }

    /// What its mailbox does when it is full. Means nothing for a supervisor.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.mailbox.overflow = overflow;
        self
    }

    /// Messages that wait when an incarnation ends are there for the next one, in their order, and whoever asked waits on; without
    /// this they are dropped. The message that was being handled does not come again: if it made the actor crash, it would do so each
    /// time. When the supervisor does not start the child again, they are dropped after all. Means nothing for a supervisor.
    pub fn keep_mailbox(mut self) -> Self {
        self.mailbox.keep = true;
        self
    }

    /// Delays its restarts.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.policy.backoff = Some(Arc::new(backoff));
        self
    }

    /// On which arbiter it runs.
    pub fn placement(mut self, placement: Placement) -> Self {
        self.place = match placement {
            Placement::Inherit => INHERIT,
            Placement::Spread => SPREAD,
            // There are never so many threads; it is taken modulo their number anyway.
            Placement::Arbiter(arbiter) => u32::try_from(arbiter).unwrap_or(0).min(SPREAD - 1),
        };
        self
    }

    pub(crate) fn placed(&self) -> Placement {
        match self.place {
            INHERIT => Placement::Inherit,
            SPREAD => Placement::Spread,
            arbiter => Placement::Arbiter(arbiter as usize),
        }
    }

    /// Its name among its siblings.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Actor or supervisor.
    pub fn kind(&self) -> Kind {
        match self.start {
            Start::Actor(_) => Kind::Worker,
            Start::Supervisor(_) => Kind::Supervisor,
        }
    }

    /// What was set with [`ChildSpec::restart`].
    pub fn restart_type(&self) -> Restart {
        self.policy.restart
    }

    /// What was set with [`ChildSpec::significant`].
    pub fn is_significant(&self) -> bool {
        self.policy.significant
    }

    /// What was set with [`ChildSpec::shutdown`].
    pub fn shutdown_type(&self) -> Shutdown {
        self.policy.shutdown
    }
}

impl std::fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChildSpec")
            .field("id", &self.id)
            .field("restart", &self.policy.restart)
            .field("significant", &self.policy.significant)
            .field("shutdown", &self.policy.shutdown)
            .finish_non_exhaustive()
    }
}

/// A supervisor and the children that it starts with, in order.
///
/// ```
/// use phalanx_actors::testkit::simulate;
/// use phalanx_actors::*;
/// use std::time::Duration;
///
/// struct Worker(&'static str);
/// impl Actor for Worker {}
///
/// // Plain data: what runs, in which order, how it is restarted and stopped.
/// fn shop() -> SupervisorSpec {
///     SupervisorSpec::new("shop", Strategy::RestForOne) // those behind one that crashes start again with it
///         .intensity(3, Duration::from_secs(10)) // a fourth crash in 10 s is the shop's own exit
///         .child(
///             ChildSpec::actor("stock", || Worker("stock"))
///                 .shutdown(Shutdown::Timeout(Duration::from_secs(2)))
///                 .placement(Placement::Spread), // on any of the system's threads
///         )
///         .child(ChildSpec::actor("audit", || Worker("audit")).restart(Restart::Transient)) // ends when it is done
///         .child(ChildSpec::supervisor("desks", desks))
/// }
/// fn desks() -> SupervisorSpec {
///     let slowly = Backoff { step: Duration::from_secs(1), max: Duration::from_secs(30), ..Backoff::default() };
///     let desk = |id| ChildSpec::actor(id, move || Worker(id)).backoff(slowly).mailbox(64);
///     SupervisorSpec::new("desks", Strategy::OneForOne).unlimited().child(desk("east")).child(desk("west"))
/// }
///
/// simulate(0, |sim| async move {
///     let shop = sim.system().start(shop()).await.unwrap();
///     let paths: Vec<String> = sim.system().tree().into_iter().map(|info| info.path).collect();
///     assert_eq!(paths, ["shop", "shop/audit", "shop/desks", "shop/desks/east", "shop/desks/west", "shop/stock"]);
///
///     // Children come and go while it runs.
///     let desks = sim.system().supervisor("shop/desks").unwrap();
///     desks.start_child(ChildSpec::once("night", || Worker("night"))).await.unwrap();
///     desks.terminate_child("east").await.unwrap();
///     assert_eq!(desks.count_children().await.unwrap().active, 2);
///     desks.restart_child("east").await.unwrap();
///     shop.stop().await; // in reverse order
/// });
/// ```
#[derive(Clone, Debug)]
pub struct SupervisorSpec {
    pub(crate) id: Arc<str>,
    pub(crate) strategy: Strategy,
    /// Restarts allowed within the period; `None` is without limit.
    pub(crate) intensity: Option<(u32, Duration)>,
    pub(crate) auto_shutdown: AutoShutdown,
    pub(crate) children: Vec<ChildSpec>,
}

impl SupervisorSpec {
    /// A supervisor without children, with OTP's intensity of 1 restart in 5 s.
    pub fn new(id: impl Into<String>, strategy: Strategy) -> Self {
        SupervisorSpec {
            id: id.into().into(),
            strategy,
            intensity: Some((RESTART_INTENSITY, Duration::from_millis(RESTART_PERIOD_MS))),
            auto_shutdown: AutoShutdown::Never,
            children: Vec::new(),
        }
    }

    /// Gives up at more than `restarts` restarts within `period`.
    pub fn intensity(mut self, restarts: u32, period: Duration) -> Self {
        self.intensity = Some((restarts, period));
        self
    }

    /// Restarts for ever. Wants a [`Backoff`] on its children.
    pub fn unlimited(mut self) -> Self {
        self.intensity = None;
        self
    }

    /// When it stops because its significant children have ended; never, unless set. Its exit is then [`crate::Exit::Shutdown`].
    /// ```
    /// use phalanx_actors::testkit::simulate;
    /// use phalanx_actors::*;
    /// struct Worker;
    /// impl Actor for Worker {}
    /// simulate(0, |sim| async move {
    ///     let job = ChildSpec::actor("job", || Worker).restart(Restart::Transient).significant(true);
    ///     let batch = SupervisorSpec::new("batch", Strategy::OneForOne)
    ///         .auto_shutdown(AutoShutdown::AnySignificant)
    ///         .child(ChildSpec::actor("helper", || Worker))
    ///         .child(job);
    ///     let batch = sim.system().start(batch).await.unwrap();
    ///     let helper = sim.system().whereis("batch/helper").unwrap();
    ///     sim.system().whereis("batch/job").unwrap().stop(Exit::Normal); // its work is done
    ///     assert_eq!(batch.exited().await, Exit::Shutdown);
    ///     assert_eq!(helper.exit(), Some(Exit::Shutdown)); // nobody needs its help any more
    /// });
    /// ```
    pub fn auto_shutdown(mut self, auto_shutdown: AutoShutdown) -> Self {
        self.auto_shutdown = auto_shutdown;
        self
    }

    /// Adds a child, started after those added before.
    pub fn child(mut self, child: ChildSpec) -> Self {
        self.children.push(child);
        self
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }
}
