//! One of its kind in the whole cluster: a subtree that runs while a lease is held, and is gone before another can get the lease.
//!
//! Each node that may run it has a [`Singleton`]; the [`Lease`], which whoever embeds this crate gives, decides who of them does. What the lease
//! promises and what is promised in return is told at [`Lease`].
//!
//! Must never decide when to start or stop: that is [`crate::core::singleton`]'s. Put into a tree with [`Singleton::child`].

use crate::actor::{Actor, Handler, Message, Replier, Reply};
use crate::core::singleton::{Action, Answer, Event, Limits, Singleton as Core};
use crate::ctx::{Ctx, TimerRef};
use crate::exit::Exit;
use crate::far::later;
use crate::pid::Pid;
use crate::spec::{ChildSpec, SupervisorSpec};
use crate::supervisor::SupervisorRef;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long the subtree may take to stop in order, unless the settings say otherwise.
pub const SINGLETON_STOP_MS: u64 = 500;
/// How long before the end of its lease it is killed, unless the settings say otherwise.
pub const SINGLETON_MARGIN_MS: u64 = 200;
/// Between two tries to get the lease, unless the settings say otherwise.
pub const SINGLETON_RETRY_MS: u64 = 500;
/// After this time an unanswered request to the lease is repeated, unless the settings say otherwise.
pub const SINGLETON_ANSWER_MS: u64 = 500;

/// What decides who runs a singleton: a row in a replicated store, an etcd lease, a lock service. One value stands for one candidate, and no
/// two candidates may look the same to it: use the node *and* its incarnation.
///
/// It promises: what was granted to one candidate for `ttl` is granted to no other before `ttl` has passed since the grant was decided,
/// unless it was released with the token of that grant. Each grant by [`Lease::acquire`] has a greater token than all before it. Requests
/// may be lost, repeated, late and out of order.
///
/// Then, at most one candidate's subtree runs at any moment, if monotonic clocks run equally fast and the margin of the [`SingletonSettings`] covers
/// what a kill takes. A handler that never returns cannot be killed, and a machine that was suspended does not know it: for these, let
/// the subtree write its token with all that it writes, and let the receivers refuse an older one than they have seen.
///
/// Where the singleton should run is the lease's decision too: refuse whom it should not run on, and
/// [`StandDown`] whom it should leave.
pub trait Lease: Send + Sync + 'static {
    /// Asks for the lease.
    fn acquire(&self) -> BoxFuture<'static, Result<Grant, LeaseError>>;

    /// Asks for another full time of the grant with this token. [`LeaseError::Taken`] when it is not the present grant any more.
    fn renew(&self, token: u64) -> BoxFuture<'static, Result<Grant, LeaseError>>;

    /// Gives the grant with this token back: nothing runs by it any more. Must not block, and may be lost. A grant with another token stays.
    fn release(&self, token: u64);

    /// Returns when the grant with this token is gone before its time: the subtree is killed at once. Never, unless overridden.
    fn lost(&self, _token: u64) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its number; a later grant has a greater one (a fencing token).
    pub token: u64,
    /// How long it is granted for.
    pub ttl: Duration,
}

/// A lease that was not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another has it, or this candidate is not to have it.
    #[error("the lease is not to be had")]
    Taken {
        /// When it is worth asking again; after the usual time when not known.
        retry: Option<Duration>,
    },
    /// Nobody could say.
    #[error("the lease cannot be reached: {0}")]
    Unreachable(String),
}

/// The times of a [`Singleton`]. Its lease must be granted for longer than `stop` and `margin` together, and better for three times that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SingletonSettings {
    /// How long the subtree may take to stop in order; then it is killed.
    pub stop: Duration,
    /// How long before the end of the lease it is killed at the latest: what a late timer, a busy thread and a kill may take together.
    pub margin: Duration,
    /// Between two tries to get the lease.
    pub retry: Duration,
    /// After this time without an answer a request counts as lost.
    pub answer: Duration,
}

impl Default for SingletonSettings {
    fn default() -> Self {
        SingletonSettings {
            stop: Duration::from_millis(SINGLETON_STOP_MS),
            margin: Duration::from_millis(SINGLETON_MARGIN_MS),
            retry: Duration::from_millis(SINGLETON_RETRY_MS),
            answer: Duration::from_millis(SINGLETON_ANSWER_MS),
        }
    }
}

/// A candidate for running the singleton.
///
/// ```
/// use futures::future::{BoxFuture, FutureExt, ready};
/// use phalanx_actors::testkit::simulate;
/// use phalanx_actors::*;
/// use std::sync::{Arc, Mutex};
/// use std::time::Duration;
/// use tokio::time::Instant;
///
/// /// A lease within one process: who has it, by which token, until when. Yours asks a store.
/// #[derive(Clone, Default)]
/// struct Table(Arc<Mutex<(Option<(&'static str, u64, Instant)>, u64)>>);
/// struct Candidate(&'static str, Table);
///
/// impl Lease for Candidate {
///     fn acquire(&self) -> BoxFuture<'static, Result<Grant, LeaseError>> {
///         let mut table = self.1.0.lock().unwrap();
///         let taken = table.0.is_some_and(|(who, _, until)| who != self.0 && until > Instant::now());
///         if taken {
///             return ready(Err(LeaseError::Taken { retry: None })).boxed();
///         }
///         let (token, ttl) = (table.1 + 1, Duration::from_secs(3));
///         *table = (Some((self.0, token, Instant::now() + ttl)), token);
///         ready(Ok(Grant { token, ttl })).boxed()
///     }
///     fn renew(&self, token: u64) -> BoxFuture<'static, Result<Grant, LeaseError>> {
///         let (mut table, ttl) = (self.1.0.lock().unwrap(), Duration::from_secs(3));
///         match &mut table.0 {
///             Some((who, held, until)) if (*who, *held) == (self.0, token) => *until = Instant::now() + ttl,
///             _ => return ready(Err(LeaseError::Taken { retry: None })).boxed(),
///         }
///         ready(Ok(Grant { token, ttl })).boxed()
///     }
///     fn release(&self, token: u64) {
///         let mut table = self.1.0.lock().unwrap();
///         if table.0.is_some_and(|(who, held, _)| (who, held) == (self.0, token)) {
///             table.0 = None;
///         }
///     }
/// }
///
/// struct Leader;
/// impl Actor for Leader {}
///
/// simulate(0, |sim| async move {
///     let table = Table::default();
///     let candidate = |name| {
///         Singleton::child("leader", SingletonSettings::default(), Candidate(name, table.clone()), |_token| {
///             SupervisorSpec::new("held", Strategy::OneForOne).child(ChildSpec::actor("it", || Leader))
///         })
///     };
///     let nodes = [("a", sim.node("a")), ("b", sim.node("b"))];
///     for (name, node) in &nodes {
///         node.start(SupervisorSpec::new("top", Strategy::OneForOne).child(candidate(name))).await.unwrap();
///     }
///     let leaders = || nodes.iter().filter(|(_, node)| node.whereis("top/leader/held/it").is_some()).count();
///     sim.advance(Duration::from_secs(10)).await;
///     assert_eq!(leaders(), 1);
///     let (_, holder) = nodes.iter().find(|(_, node)| node.whereis("top/leader/held/it").is_some()).unwrap();
///     holder.named::<Singleton>("top/leader").ask(StandDown(Duration::from_secs(60))).await.unwrap();
///     sim.advance(Duration::from_secs(1)).await;
///     assert_eq!((leaders(), holder.whereis("top/leader/held")), (1, None)); // it has moved
/// });
/// ```
///
/// It runs `<path>/<id of the subtree>` while it holds the lease. A subtree that gives up is the exit of
/// its candidate, whose supervisor decides what then.
pub struct Singleton {
    lease: Arc<dyn Lease>,
    make: Make,
    core: Core,
    settings: SingletonSettings,
    epoch: Instant,
    timer: Option<TimerRef>,
    lost: Option<TimerRef>,
    subtree: Option<Running>,
    /// Who waits until nothing runs here.
    standing_down: Vec<Replier<()>>,
}

type Make = Arc<dyn Fn(u64) -> SupervisorSpec + Send + Sync>;

struct Running {
    supervisor: SupervisorRef,
    /// When it has to be killed: also while this actor ends, and after it has.
    deadline: watch::Sender<Option<Instant>>,
}

/// Stop the subtree, give the lease back and do not ask for it for this long. Answered when nothing runs here any more. So a singleton is moved.
pub struct StandDown(pub Duration);

impl Message for StandDown {
    type Reply = ();
}

/// What a candidate is at.
pub struct SingletonStatus;

impl Message for SingletonStatus {
    type Reply = SingletonState;
}

/// The answer to [`SingletonStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SingletonState {
    /// The token of the lease that it holds.
    pub token: Option<u64>,
    /// Whether its subtree runs and was not asked to stop.
    pub runs: bool,
}

impl Singleton {
    /// A candidate as a child of a supervisor. `make` gets the token of the grant, and makes the subtree each time that the lease is got.
    pub fn child(
        id: impl Into<String>,
        settings: SingletonSettings,
        lease: impl Lease,
        make: impl Fn(u64) -> SupervisorSpec + Send + Sync + 'static,
    ) -> ChildSpec {
        let (lease, make): (Arc<dyn Lease>, Make) = (Arc::new(lease), Arc::new(make));
        ChildSpec::actor(id, move || Singleton {
            lease: lease.clone(),
            make: make.clone(),
            core: Core::new(Limits {
                stop: settings.stop,
                margin: settings.margin,
                retry: settings.retry,
                answer: settings.answer,
            }),
            settings,
            epoch: Instant::now(),
            timer: None,
            lost: None,
            subtree: None,
            standing_down: Vec::new(),
        })
    }

    fn feed(&mut self, event: Event, ctx: &mut Ctx<Self>) {
        let actions = self.core.on_event(event, self.epoch.elapsed());
        for action in actions {
            self.apply(action, ctx);
        }
        let now = self.epoch.elapsed();
        if let Some(running) = &self.subtree {
            let at = self.core.kill_at().map(|at| later(self.epoch, at));
            running.deadline.send_if_modified(|deadline| std::mem::replace(deadline, at) != at);
        }
        if let Some(timer) = self.timer.take() {
            timer.cancel();
        }
        if let Some(at) = self.core.wake_at(now) {
            let timer = tokio::time::sleep_until(later(self.epoch, at));
            self.timer = Some(ctx.pipe(timer, |singleton, (), ctx| singleton.feed(Event::Timer, ctx)));
        }
        if self.core.idle() {
            self.standing_down.drain(..).for_each(|replier| replier.reply(()));
        }
    }

    fn apply(&mut self, action: Action, ctx: &mut Ctx<Self>) {
        match action {
            Action::Acquire { request } => self.ask(request, self.lease.acquire(), ctx),
            Action::Renew { request, token } => self.ask(request, self.lease.renew(token), ctx),
            Action::Release { token } => self.release(token),
            Action::Start { token } => self.start(token, ctx),
            Action::Stop => {
                if let Some(running) = &self.subtree {
                    running.supervisor.pid().stop(Exit::Shutdown);
                }
            }
            Action::Kill => {
                if let Some(running) = &self.subtree {
                    running.supervisor.pid().kill();
                }
            }
        }
    }

    fn ask(&self, request: u64, answer: BoxFuture<'static, Result<Grant, LeaseError>>, ctx: &mut Ctx<Self>) {
        // Longer than this the core does not wait, and a future that is never ready must not stay.
        let answer = tokio::time::timeout(self.settings.answer, answer);
        ctx.pipe(answer, move |singleton, answer, ctx| {
            let answer = match answer {
                Ok(Ok(Grant { token, ttl })) => {
                    let least = singleton.settings.stop.saturating_add(singleton.settings.margin);
                    if ttl <= least {
                        let path = ctx.path();
                        let text = format!("`{path}`: a lease of {ttl:?} leaves no time beside {least:?} for stopping");
                        return ctx.stop(Exit::Error(text));
                    }
                    Answer::Granted { token, ttl }
                }
                Ok(Err(LeaseError::Taken { retry })) => Answer::Refused { retry },
                Ok(Err(error @ LeaseError::Unreachable(_))) => {
                    tracing::debug!(path = ctx.path(), %error, "singleton");
                    Answer::Failed
                }
                Err(_) => Answer::Failed,
            };
            singleton.feed(Event::Answer { request, answer }, ctx);
        });
    }

    fn start(&mut self, token: u64, ctx: &mut Ctx<Self>) {
        let supervisor = ctx.supervise((self.make)(token));
        let (deadline, watched) = watch::channel(None);
        tokio::task::spawn_local(kill_in_time(supervisor.pid(), watched));
        let pid = supervisor.pid();
        ctx.pipe(async move { pid.exited().await }, |singleton, exit, ctx| {
            tracing::info!(path = ctx.path(), %exit, "singleton ended here");
            singleton.subtree = None;
            singleton.feed(Event::ChildExited, ctx);
        });
        if let Some(lost) = self.lost.take() {
            lost.cancel();
        }
        self.lost = Some(
            ctx.pipe(self.lease.lost(token), move |singleton, (), ctx| singleton.feed(Event::Lost { token }, ctx)),
        );
        tracing::info!(path = ctx.path(), token, "singleton runs here");
        self.subtree = Some(Running { supervisor, deadline });
    }

    fn release(&mut self, token: u64) {
        if let Some(lost) = self.lost.take() {
            lost.cancel();
        }
        self.lease.release(token);
    }
}

/// Kills the subtree when its time is over. A task of its own: the actor takes no timers while it waits for the subtree to end.
async fn kill_in_time(subtree: Pid, mut deadline: watch::Receiver<Option<Instant>>) {
    loop {
        let at = *deadline.borrow_and_update();
        let over = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = subtree.exited() => return,
            () = over => return subtree.kill(),
            changed = deadline.changed() => if changed.is_err() {
                // The actor is gone, and with it the lease's renewal: the last deadline stands.
                if let Some(at) = at {
                    tokio::select! {
                        biased;
                        _ = subtree.exited() => {}
                        () = tokio::time::sleep_until(at) => subtree.kill(),
                    }
                } else {
                    subtree.kill();
                }
                return;
            },
        }
    }
}

impl Actor for Singleton {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        self.feed(Event::Boot, ctx);
        Ok(())
    }

    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        // The subtree has ended before this.
        if let Some(Action::Release { token }) = self.core.ended() {
            self.release(token);
        }
    }
}

impl Handler<StandDown> for Singleton {
    fn handle(&mut self, stand_down: StandDown, ctx: &mut Ctx<Self>) -> Reply<()> {
        let (reply, replier) = ctx.defer();
        self.standing_down.push(replier);
        self.feed(Event::StandDown(stand_down.0), ctx);
        reply
    }
}

impl Handler<SingletonStatus> for Singleton {
    fn handle(&mut self, _: SingletonStatus, _: &mut Ctx<Self>) -> Reply<SingletonState> {
        SingletonState { token: self.core.token(), runs: self.core.runs() }.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pid::KILL;
    use crate::testkit::simulate;

    fn pid() -> Pid {
        Pid::new(1, "top/singleton/held".into(), crate::spec::Mailbox::NONE)
    }

    fn killed(pid: &Pid) -> bool {
        pid.take_requests() & KILL != 0
    }

    #[test]
    fn the_deadline_holds_also_when_the_candidate_is_busy_or_gone() {
        simulate(0, |sim| async move {
            let (subtree, now) = (pid(), Instant::now());
            let (deadline, watched) = watch::channel(None);
            tokio::task::spawn_local(kill_in_time(subtree.clone(), watched));
            deadline.send_replace(Some(now + Duration::from_secs(2)));
            sim.advance(Duration::from_secs(1)).await;
            deadline.send_replace(Some(now + Duration::from_secs(4)));
            sim.advance(Duration::from_secs(2)).await;
            assert!(!killed(&subtree), "the lease was renewed");
            drop(deadline);
            sim.advance(Duration::from_millis(999)).await;
            assert!(!killed(&subtree), "it has until the deadline to stop");
            sim.advance(Duration::from_millis(1)).await;
            assert!(killed(&subtree));
        });
    }

    #[test]
    fn a_subtree_that_has_ended_is_not_killed() {
        simulate(0, |sim| async move {
            let subtree = pid();
            let (deadline, watched) = watch::channel(Some(Instant::now() + Duration::from_secs(1)));
            let guard = tokio::task::spawn_local(kill_in_time(subtree.clone(), watched));
            subtree.set_exit(&Exit::Shutdown);
            guard.await.expect("ends");
            sim.advance(Duration::from_secs(2)).await;
            assert!(!killed(&subtree));
            drop(deadline);
        });
    }
}
