//! An actor that only writes down what it gets, and the test's end of it.
//!
//! Must never do anything with a message but keep it and answer. Made by tests.

use crate::actor::{Actor, Down, Handler, Message, Reply};
use crate::ctx::Ctx;
use crate::exit::Exit;
use crate::pid::Pid;
use crate::recipient::Recipient;
use crate::refs::Ref;
use crate::spec::{ChildSpec, Restart, Strategy, SupervisorSpec};
use crate::system::System;
use parking_lot::Mutex;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a probe waits for what is expected, in milliseconds; simulated time costs nothing.
pub const EXPECT_MS: u64 = 60_000;
/// How much a probe keeps that the test has not looked at. When full, the probe's actor panics: the test forgot it.
pub const PROBE_SEEN: usize = 65_536;
/// How many commands of the test may wait at its actor; the test waits for each.
const COMMANDS_WAITING: usize = 1;

/// What a probe got, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<M> {
    /// A message.
    Message(M),
    /// Something that it monitors has ended.
    Down(Down),
    /// Something that it is linked to has ended.
    ExitSignal {
        /// Who.
        from: Pid,
        /// Why.
        reason: Exit,
    },
}

/// The test's end of an actor that handles messages of type `M` and keeps them.
pub struct Probe<M: Message> {
    actor: Ref<Recorder<M>>,
    seen: mpsc::Receiver<Seen<M>>,
    commands: mpsc::Sender<Command>,
}

enum Command {
    Monitor(Pid, oneshot::Sender<()>),
    Link(Pid, oneshot::Sender<()>),
}

type Answers<M> = Arc<dyn Fn(&M) -> <M as Message>::Reply + Send + Sync>;

/// The actor of a [`Probe`]. It traps exits.
pub struct Recorder<M: Message> {
    seen: mpsc::Sender<Seen<M>>,
    answers: Answers<M>,
    commands: Option<mpsc::Receiver<Command>>,
}

impl<M: Message> Probe<M>
where
    M::Reply: Default,
{
    /// A probe at the path `<name>/probe` that answers with the default of the reply.
    ///
    /// # Panics
    /// When `name` is taken, or the system is down.
    pub async fn start(system: &System, name: &str) -> Self {
        Probe::answering(system, name, |_| M::Reply::default()).await
    }
}

impl<M: Message> Probe<M> {
    /// A probe at the path `<name>/probe` that answers as `answers` says.
    ///
    /// # Panics
    /// When `name` is taken, or the system is down.
    pub async fn answering(
        system: &System,
        name: &str,
        answers: impl Fn(&M) -> M::Reply + Send + Sync + 'static,
    ) -> Self {
        let (tx, seen) = mpsc::channel(PROBE_SEEN);
        let (commands, inbox) = mpsc::channel(COMMANDS_WAITING);
        let (answers, inbox): (Answers<M>, _) = (Arc::new(answers), Mutex::new(Some(inbox)));
        let make = move || Recorder { seen: tx.clone(), answers: answers.clone(), commands: inbox.lock().take() };
        let child = ChildSpec::actor("probe", make).restart(Restart::Temporary).mailbox(PROBE_SEEN);
        let started = system.start(SupervisorSpec::new(name, Strategy::OneForOne).child(child)).await;
        started.unwrap_or_else(|error| panic!("probe `{name}`: {error}"));
        let actor = system.lookup(&format!("{name}/probe"));
        Probe { actor: actor.unwrap_or_else(|| panic!("probe `{name}` ended at once")), seen, commands }
    }

    /// The actor, for whoever is to send to it.
    pub fn actor(&self) -> Ref<Recorder<M>> {
        self.actor.clone()
    }

    /// The same, known only by its type of message.
    pub fn recipient(&self) -> Recipient<M> {
        self.actor.recipient()
    }

    /// The actor's incarnation.
    pub fn pid(&self) -> Pid {
        self.actor.pid()
    }

    /// Has it monitor `pid`: one [`Seen::Down`] comes.
    pub async fn monitor(&self, pid: &Pid) {
        self.command(|done| Command::Monitor(pid.clone(), done)).await;
    }

    /// Links it to `pid`: one [`Seen::ExitSignal`] comes, and `pid` learns of the end of the probe.
    pub async fn link(&self, pid: &Pid) {
        self.command(|done| Command::Link(pid.clone(), done)).await;
    }

    async fn command(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, wait) = oneshot::channel();
        let sent = self.commands.send(command(done)).await.is_ok();
        assert!(sent && wait.await.is_ok(), "the probe at `{}` has ended", self.actor.pid().path());
    }
}

impl<M: Message + fmt::Debug> Probe<M> {
    /// Whatever comes next.
    ///
    /// # Panics
    /// When nothing comes within [`EXPECT_MS`], or the probe has ended.
    #[track_caller]
    pub fn expect_any(&mut self) -> impl Future<Output = Seen<M>> + use<'_, M> {
        let caller = std::panic::Location::caller();
        async move {
            let path = self.actor.pid();
            match tokio::time::timeout(Duration::from_millis(EXPECT_MS), self.seen.recv()).await {
                Ok(Some(seen)) => seen,
                Ok(None) => panic!("{caller}: the probe at `{}` has ended", path.path()),
                Err(_) => panic!("{caller}: nothing reached the probe at `{}` within {EXPECT_MS} ms", path.path()),
            }
        }
    }

    /// The next that comes, which must be a message.
    #[track_caller]
    pub fn expect_message(&mut self) -> impl Future<Output = M> + use<'_, M> {
        let caller = std::panic::Location::caller();
        let next = self.expect_any();
        async move {
            match next.await {
                Seen::Message(message) => message,
                other => panic!("{caller}: expected a message, got {other:?}"),
            }
        }
    }

    /// The next that comes, which must be the `Down` of `pid`. Returns why it ended.
    #[track_caller]
    pub fn expect_down(&mut self, pid: &Pid) -> impl Future<Output = Exit> + use<'_, M> {
        let (caller, pid) = (std::panic::Location::caller(), pid.clone());
        let next = self.expect_any();
        async move {
            match next.await {
                Seen::Down(down) if down.pid == pid => down.reason,
                other => panic!("{caller}: expected the end of {pid}, got {other:?}"),
            }
        }
    }

    /// The next that comes, which must be the exit signal of `pid`. Returns why it ended.
    #[track_caller]
    pub fn expect_exit_signal(&mut self, pid: &Pid) -> impl Future<Output = Exit> + use<'_, M> {
        let (caller, pid) = (std::panic::Location::caller(), pid.clone());
        let next = self.expect_any();
        async move {
            match next.await {
                Seen::ExitSignal { from, reason } if from == pid => reason,
                other => panic!("{caller}: expected an exit signal of {pid}, got {other:?}"),
            }
        }
    }

    /// Nothing has come that the test has not looked at. To be sure that nothing is on its way, let the simulation
    /// [`settle`](super::Sim::settle) or [`advance`](super::Sim::advance) first.
    #[track_caller]
    pub fn expect_nothing(&mut self) {
        if let Ok(seen) = self.seen.try_recv() {
            panic!("expected nothing, got {seen:?}");
        }
    }

    /// Nothing comes within `time`.
    #[track_caller]
    pub fn expect_no_message(&mut self, time: Duration) -> impl Future<Output = ()> + use<'_, M> {
        let caller = std::panic::Location::caller();
        async move {
            if let Ok(Some(seen)) = tokio::time::timeout(time, self.seen.recv()).await {
                panic!("{caller}: expected nothing for {time:?}, got {seen:?}");
            }
        }
    }
}

/// Waits until `pid` has ended, and says why.
///
/// # Panics
/// When it still runs after [`EXPECT_MS`].
#[track_caller]
pub fn expect_exit(pid: &Pid) -> impl Future<Output = Exit> + use<'_> {
    let caller = std::panic::Location::caller();
    async move {
        let exited = tokio::time::timeout(Duration::from_millis(EXPECT_MS), pid.exited()).await;
        exited.unwrap_or_else(|_| panic!("{caller}: {pid} still runs after {EXPECT_MS} ms"))
    }
}

impl<M: Message> Recorder<M> {
    fn keep(&self, seen: Seen<M>) {
        // Closed, the test has dropped its probe.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.seen.try_send(seen) {
            panic!("the test does not look at its probe: {PROBE_SEEN} wait there");
        }
    }

    fn listen(mut commands: mpsc::Receiver<Command>, ctx: &mut Ctx<Self>) {
        let next = async move { (commands.recv().await, commands) };
        ctx.pipe(next, |_, (command, commands), ctx| {
            let done = match command {
                Some(Command::Monitor(pid, done)) => {
                    ctx.monitor(&pid);
                    done
                }
                Some(Command::Link(pid, done)) => {
                    ctx.link(&pid);
                    done
                }
                None => return,
            };
            // The test may wait no more.
            let _ = done.send(());
            Self::listen(commands, ctx);
        });
    }
}

impl<M: Message> Actor for Recorder<M> {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        ctx.trap_exit(true);
        if let Some(commands) = self.commands.take() {
            Self::listen(commands, ctx);
        }
        Ok(())
    }

    fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
        self.keep(Seen::Down(down));
    }

    fn exit_signal(&mut self, from: Pid, reason: Exit, _: &mut Ctx<Self>) {
        self.keep(Seen::ExitSignal { from, reason });
    }
}

impl<M: Message> Handler<M> for Recorder<M> {
    fn handle(&mut self, message: M, _: &mut Ctx<Self>) -> Reply<M::Reply> {
        let answer = (self.answers)(&message);
        self.keep(Seen::Message(message));
        answer.into()
    }
}
