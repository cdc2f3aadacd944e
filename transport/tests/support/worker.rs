//! An actor that refers to others, also on other nodes, and writes down what it hears of them.

#![allow(dead_code)] // Each test file uses a part of it.

use std::sync::mpsc as std_mpsc;

use phalanx_actors::{
    Actor, ChildSpec, Ctx, Down, Exit, Handler, Message, Pid, Ref, Reply, Restart, Strategy, SupervisorSpec, System,
    Trace,
};
use phalanx_transport::{Protocol, Remote, RemoteActor, RemoteRef, Transport};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};

use super::support::within;

/// What a worker hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Down {
        of: String,
        reason: Exit,
    },
    Exit {
        of: String,
        reason: Exit,
    },
    Number(u64),
    Trace(Option<Trace>),
    /// It ends, in order.
    Stopping(Exit),
}

pub struct Worker {
    heard: mpsc::UnboundedSender<Heard>,
    sum: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Do {
    /// Adds to its sum, and answers with it.
    Add(u64),
    Crash,
    Monitor(RemoteRef<Worker>),
    Link(RemoteRef<Worker>),
    Unlink(RemoteRef<Worker>),
    TrapExits,
    /// Tells another worker to add.
    Forward(RemoteRef<Worker>, u64),
    /// Writes down in which span it was sent.
    Trace,
    /// Answers how many milliseconds are left until its deadline, rounded up; 0 without one.
    Left,
    /// Keeps its thread until the test lets it go.
    Stick(Stick),
    /// Never answers.
    Hold,
    /// Drops its replier.
    Ignore,
}

/// Where an actor is stuck; only within its own process.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stick {
    #[serde(skip)]
    ends: Option<(std_mpsc::Sender<()>, std_mpsc::Receiver<()>)>,
    never: (),
}

impl Stick {
    /// Says so on the one channel, and goes on when the sender of the other is gone.
    pub fn new(stuck: std_mpsc::Sender<()>, gate: std_mpsc::Receiver<()>) -> Self {
        Self { ends: Some((stuck, gate)), never: () }
    }

    fn stay(self) {
        if let Some((stuck, gate)) = self.ends {
            stuck.send(()).expect("the test waits");
            let _ = gate.recv();
        }
    }
}

impl Message for Do {
    type Reply = u64;
}

impl Remote for Do {
    const NAME: &'static str = "test/Do";
    type Reply = u64;
}

/// Not in the protocol.
#[derive(Debug, Serialize, Deserialize)]
pub struct Private;

impl Message for Private {
    type Reply = ();
}

impl Remote for Private {
    const NAME: &'static str = "test/Private";
    type Reply = ();
}

/// A reference to the actor itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct WhoAreYou;

impl Message for WhoAreYou {
    type Reply = u64;
}

impl Remote for WhoAreYou {
    const NAME: &'static str = "test/WhoAreYou";
    type Reply = u64;
}

impl RemoteActor for Worker {
    const NAME: &'static str = "test/Worker";

    fn protocol(protocol: &mut Protocol<Self>) {
        protocol.message::<Do>().message::<WhoAreYou>();
    }
}

impl Worker {
    fn hear(&self, heard: Heard) {
        // The test may have ended.
        let _ = self.heard.send(heard);
    }
}

impl Actor for Worker {
    fn stopping(&mut self, reason: &Exit, _: &mut Ctx<Self>) {
        self.hear(Heard::Stopping(reason.clone()));
    }

    fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
        self.hear(Heard::Down { of: down.pid.path().into(), reason: down.reason });
    }

    fn exit_signal(&mut self, from: Pid, reason: Exit, _: &mut Ctx<Self>) {
        self.hear(Heard::Exit { of: from.path().into(), reason });
    }
}

impl Handler<Do> for Worker {
    fn handle(&mut self, what: Do, ctx: &mut Ctx<Self>) -> Reply<u64> {
        match what {
            Do::Add(n) => {
                self.sum += n;
                self.hear(Heard::Number(n));
            }
            Do::Crash => panic!("crashed on request"),
            Do::Monitor(other) => drop(ctx.monitor(&other.pid())),
            Do::Link(other) => ctx.link(&other.pid()),
            Do::Unlink(other) => ctx.unlink(&other.pid()),
            Do::TrapExits => ctx.trap_exit(true),
            Do::Forward(other, n) => other.tell(Do::Add(n)).expect("connected"),
            Do::Trace => self.hear(Heard::Trace(Trace::current())),
            Do::Left => {
                let left = ctx.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
                return left.map_or(0, |left| left.as_millis() as u64 + 1).into();
            }
            Do::Stick(stick) => stick.stay(),
            Do::Hold => {
                let (reply, replier) = ctx.defer();
                ctx.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(replier);
                });
                return reply;
            }
            Do::Ignore => return ctx.defer().0,
        }
        self.sum.into()
    }
}

impl Handler<WhoAreYou> for Worker {
    fn handle(&mut self, _: WhoAreYou, ctx: &mut Ctx<Self>) -> Reply<u64> {
        ctx.pid().id().into()
    }
}

impl Handler<Private> for Worker {
    fn handle(&mut self, _: Private, _: &mut Ctx<Self>) -> Reply<()> {
        ().into()
    }
}

/// An actor of another type.
pub struct Other;
impl Actor for Other {}
impl RemoteActor for Other {
    const NAME: &'static str = "test/Other";
    fn protocol(_: &mut Protocol<Self>) {}
}

/// An actor that is not shared.
pub struct Hidden;
impl Actor for Hidden {}
impl RemoteActor for Hidden {
    const NAME: &'static str = "test/Hidden";
    fn protocol(_: &mut Protocol<Self>) {}
}

/// A node's actors: workers `top/w` and `top/v`, an `top/other`, and a `top/hidden`.
pub struct Crew {
    pub system: System,
    pub heard: mpsc::UnboundedReceiver<Heard>,
    /// Of the first incarnations.
    pids: Vec<Pid>,
}

pub async fn crew(transport: &Transport, restart: Restart) -> Crew {
    let system = System::builder(&**transport.node()).build().expect("starts");
    let (sender, heard) = mpsc::unbounded_channel();
    let worker = |id: &str| {
        let sender = sender.clone();
        ChildSpec::actor(id, move || Worker { heard: sender.clone(), sum: 0 }).restart(restart)
    };
    let spec = SupervisorSpec::new("top", Strategy::OneForOne)
        .unlimited()
        .child(worker("w"))
        .child(worker("v"))
        .child(ChildSpec::actor("other", || Other))
        .child(ChildSpec::actor("hidden", || Hidden));
    system.start(spec).await.expect("starts");
    transport.attach(&system).expect("the first");
    transport.share::<Worker>();
    transport.share::<Other>();
    let pids = ["top/w", "top/v"].map(|path| system.whereis(path).expect("runs")).into();
    Crew { system, heard, pids }
}

impl Crew {
    /// What is heard next.
    pub async fn next(&mut self) -> Heard {
        within(self.heard.recv()).await.expect("not ended")
    }

    /// The local worker.
    pub fn worker(&self, path: &str) -> Ref<Worker> {
        self.system.lookup(path).expect("runs")
    }

    /// The pid of a worker, which may have ended.
    pub fn pid(&self, path: &str) -> Pid {
        self.pids.iter().find(|pid| pid.path() == path).expect("was started").clone()
    }

    /// Has a worker of this node do something, and waits until it has.
    pub async fn does(&self, path: &str, what: Do) {
        within(self.worker(path).ask(what)).await.expect("lives");
    }
}

pub fn down(of: &str, reason: Exit) -> Heard {
    Heard::Down { of: of.into(), reason }
}

pub fn exit(of: &str, reason: Exit) -> Heard {
    Heard::Exit { of: of.into(), reason }
}

pub fn crashed(reason: &Exit) -> bool {
    matches!(reason, Exit::Panic { message, .. } if message == "crashed on request")
}
