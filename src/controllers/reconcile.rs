//! The frame that every controller runs in: one kind actor, and below it one supervised actor for each object.
//!
//! ```text
//!   informers --feeds--> KindActor --Reconcile--> ObjectActor(default/web) --reconcile--> store
//!                           |                         |  panics: restarted with backoff, alone
//!                           +--- objects (dynamic) ---+  object gone: Gone(key), and its actor is ended
//! ```
//!
//! Level-triggered: an event only says which object to look at; what is to be done is decided on what the informers show
//! at that moment. While an object is being reconciled further events fold into one more pass. A kind actor that is
//! restarted makes a new [`Reconciler`] and starts from the informers, never from what the old one knew.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::LocalBoxStream;
use phalanx_actors::{
    Actor, Backoff, ChildError, ChildSpec, Ctx, Exit, Handler, Message, Ref, Reply, Restart, SendError, Shutdown,
    Strategy, SupervisorRef, SupervisorSpec, TimerRef,
};

/// Wait after the first failed pass; doubles with each more, up to [`RETRY_MAX`]. An event ends the wait.
const RETRY_INITIAL: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Restarts of one object's actor after a panic.
const RESTART_BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(50),
    step: Duration::from_millis(100),
    factor: 2.0,
    max: Duration::from_secs(30),
    reset_after: Duration::from_secs(60),
    jitter: 0.1,
};
/// Messages to an object's actor all mean "look again", so a full mailbox loses nothing.
const OBJECT_MAILBOX: usize = 2;
/// How long a pass that is under way may take to end when leadership is lost.
const STOP_WITHIN: Duration = Duration::from_millis(500);

/// `namespace/name`, or `name`.
pub type Key = Arc<str>;

/// A stream of objects to look at. Whoever makes it brings its indices up to date before it names a key.
pub type Feed = LocalBoxStream<'static, Vec<Key>>;

/// Called with the key before each pass; a test makes it panic.
pub type Fault = Arc<dyn Fn(&str) + Send + Sync>;

/// What a controller does for one object.
pub trait Reconciler: Send + Sync + 'static {
    /// The name of the kind's actor, such as `deployments`.
    const NAME: &'static str;

    /// Begins to watch. Each feed starts with every object there is. Must not fail: a feed that ends restarts the kind.
    fn feeds(self: &Arc<Self>) -> Vec<Feed>;

    /// Whether the object exists, as far as the informers know.
    fn exists(&self, key: &str) -> bool;

    /// Brings one object closer to what it asks for.
    fn reconcile(self: Arc<Self>, key: Key) -> impl Future<Output = Result<Next, ReconcileError>> + 'static;
}

/// When to look again without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not before something happens.
    Settled,
    After(Duration),
    /// The object does not exist: its actor may end.
    Gone,
}

/// A pass that could not be finished; it is tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReconcileError {
    /// Somebody else wrote first; the next pass sees what.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// A kind actor as a child of `controllers`. `make` is run for each of its incarnations.
pub fn kind_child<R: Reconciler>(make: impl Fn() -> R + Send + Sync + 'static, fault: Option<Fault>) -> ChildSpec {
    ChildSpec::actor(R::NAME, move || KindActor {
        reconciler: Arc::new(make()),
        fault: fault.clone(),
        objects: None,
        leaving: HashMap::new(),
    })
    .shutdown(Shutdown::Timeout(STOP_WITHIN * 2))
    .backoff(Backoff { initial: Duration::ZERO, ..RESTART_BACKOFF })
}

/// Watches one kind and keeps an actor for each of its objects.
pub struct KindActor<R: Reconciler> {
    reconciler: Arc<R>,
    fault: Option<Fault>,
    objects: Option<SupervisorRef>,
    /// Objects whose actor is being ended, and whether they are wanted again.
    leaving: HashMap<Key, bool>,
}

impl<R: Reconciler> Actor for KindActor<R> {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        self.objects = Some(ctx.supervise(SupervisorSpec::new("objects", Strategy::Dynamic).unlimited()));
        for feed in self.reconciler.feeds() {
            pump(feed, ctx);
        }
        Ok(())
    }
}

/// Takes one batch of keys after the other from a feed.
fn pump<R: Reconciler>(feed: Feed, ctx: &mut Ctx<KindActor<R>>) {
    ctx.pipe(feed.into_future(), |kind, (keys, feed), ctx| match keys {
        Some(keys) => {
            for key in keys {
                kind.wake(key, ctx);
            }
            pump(feed, ctx);
        }
        None => ctx.stop(Exit::Error(format!("{}: the watch ended", R::NAME))),
    });
}

impl<R: Reconciler> KindActor<R> {
    /// Has the object looked at, now or as soon as the pass under way is over.
    fn wake(&mut self, key: Key, ctx: &mut Ctx<Self>) {
        if let Some(again) = self.leaving.get_mut(&key) {
            *again = true;
            return;
        }
        let path = format!("{}/objects/{}", ctx.path(), id_of(&key));
        if let Some(object) = ctx.system().lookup::<ObjectActor<R>>(&path) {
            match object.tell(Reconcile) {
                // A full mailbox holds the same message.
                Ok(()) | Err(SendError::Full) => return,
                Err(SendError::Closed | SendError::NoProc) => {}
            }
        }
        if self.reconciler.exists(&key) {
            self.start(key, ctx);
        }
    }

    fn start(&mut self, key: Key, ctx: &mut Ctx<Self>) {
        let Some(objects) = self.objects.clone() else { return };
        let (reconciler, fault, kind) = (Arc::clone(&self.reconciler), self.fault.clone(), ctx.self_ref());
        let id = id_of(&key);
        let spec = ChildSpec::actor(id, move || ObjectActor {
            key: Arc::clone(&key),
            reconciler: Arc::clone(&reconciler),
            fault: fault.clone(),
            kind: kind.clone(),
            running: false,
            again: false,
            failures: 0,
            timer: None,
        })
        .restart(Restart::Transient)
        .backoff(RESTART_BACKOFF)
        .mailbox(OBJECT_MAILBOX)
        .shutdown(Shutdown::Timeout(STOP_WITHIN));
        ctx.pipe(async move { objects.start_child(spec).await }, |_, started, ctx| match started {
            // One that is there, or is waiting for its restart, looks at the object when it starts.
            Ok(_) | Err(ChildError::AlreadyStarted | ChildError::AlreadyPresent | ChildError::Restarting) => {}
            Err(ChildError::StartFailed(exit)) => {
                tracing::warn!(controller = R::NAME, %exit, "an object's actor failed to start");
            }
            Err(error) => ctx.stop(Exit::Error(format!("{}: {error}", R::NAME))),
        });
    }
}

/// The object does not exist any more, said its actor.
struct Gone(Key);

impl Message for Gone {
    type Reply = ();
}

impl<R: Reconciler> Handler<Gone> for KindActor<R> {
    fn handle(&mut self, Gone(key): Gone, ctx: &mut Ctx<Self>) -> Reply<()> {
        let Some(objects) = self.objects.clone() else { return ().into() };
        if self.reconciler.exists(&key) {
            self.wake(key, ctx);
            return ().into();
        }
        if self.leaving.insert(Arc::clone(&key), false).is_some() {
            return ().into();
        }
        let id = id_of(&key);
        ctx.pipe(async move { objects.terminate_child(&id).await }, move |kind, _, ctx| {
            if kind.leaving.remove(&key) == Some(true) {
                kind.wake(key, ctx);
            }
        });
        ().into()
    }
}

/// Looks after one object.
pub struct ObjectActor<R: Reconciler> {
    key: Key,
    reconciler: Arc<R>,
    fault: Option<Fault>,
    kind: Ref<KindActor<R>>,
    running: bool,
    /// Something happened while a pass was under way.
    again: bool,
    failures: u32,
    timer: Option<TimerRef>,
}

struct Reconcile;

impl Message for Reconcile {
    type Reply = ();
}

impl<R: Reconciler> Actor for ObjectActor<R> {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        // Through the timer, so that a panic in the first pass is the exit of an actor that was up.
        self.timer = Some(ctx.send_after(Duration::ZERO, Reconcile));
        Ok(())
    }
}

impl<R: Reconciler> Handler<Reconcile> for ObjectActor<R> {
    fn handle(&mut self, _: Reconcile, ctx: &mut Ctx<Self>) -> Reply<()> {
        if self.running {
            self.again = true;
        } else {
            self.begin(ctx);
        }
        ().into()
    }
}

impl<R: Reconciler> ObjectActor<R> {
    fn begin(&mut self, ctx: &mut Ctx<Self>) {
        if let Some(timer) = self.timer.take() {
            timer.cancel();
        }
        self.running = true;
        self.again = false;
        if let Some(fault) = &self.fault {
            fault(&self.key);
        }
        let pass = Arc::clone(&self.reconciler).reconcile(Arc::clone(&self.key));
        ctx.pipe(pass, |object, result, ctx| object.done(result, ctx));
    }

    fn done(&mut self, result: Result<Next, ReconcileError>, ctx: &mut Ctx<Self>) {
        self.running = false;
        match result {
            Ok(next) => {
                self.failures = 0;
                if self.again {
                    return self.begin(ctx);
                }
                match next {
                    Next::Settled => {}
                    Next::After(delay) => self.timer = Some(ctx.send_after(delay, Reconcile)),
                    Next::Gone => {
                        if self.kind.tell(Gone(Arc::clone(&self.key))).is_err() {
                            // The kind is busy: asked again in a moment.
                            self.timer = Some(ctx.send_after(RETRY_INITIAL, Reconcile));
                        }
                    }
                }
            }
            Err(error) => {
                let delay = retry_after(self.failures);
                self.failures = self.failures.saturating_add(1);
                match error {
                    ReconcileError::Conflict(_) => {
                        tracing::debug!(controller = R::NAME, key = &*self.key, %error, "looking again");
                    }
                    ReconcileError::Failed(_) => {
                        tracing::warn!(controller = R::NAME, key = &*self.key, %error, ?delay, "a pass failed; trying again");
                    }
                }
                self.timer = Some(ctx.send_after(delay, Reconcile));
            }
        }
    }
}

/// The object's actor, by the path of its kind's actor.
pub fn object_path(kind_path: &str, key: &str) -> String {
    format!("{kind_path}/objects/{}", id_of(key))
}

/// A name of the tree: no object's name has an underscore, so none collide.
fn id_of(key: &str) -> String {
    key.replace('/', "_")
}

fn retry_after(failures: u32) -> Duration {
    RETRY_INITIAL.saturating_mul(1 << failures.min(20)).min(RETRY_MAX)
}

#[cfg(test)]
#[path = "reconcile_test.rs"]
mod reconcile_test;
