//! The actor that the tests put into trees: it writes down what happens to it, and misbehaves when told to.

#![allow(dead_code)] // each test binary uses a part of it

use phalanx_actors::*;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What happened, in order: `+a` started, `-a` stopped in order, `!a` failed to start.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    pub fn push(&self, line: impl Into<String>) {
        self.lock().push(line.into());
    }
    /// What was written since the last call.
    pub fn take(&self) -> String {
        std::mem::take(&mut *self.lock()).join(" ")
    }
    /// How many lines were written since the last take.
    pub fn len(&self) -> usize {
        self.lock().len()
    }
    /// Waits until `n` lines are there.
    pub async fn wait(&self, n: usize) {
        let enough = async {
            while self.lock().len() < n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), enough).await.expect("the log grows");
    }
}

/// How many of its starts fail, and how.
#[derive(Clone, Default)]
pub struct Faults {
    /// Starts that are to fail still.
    pub starts: Arc<Mutex<u32>>,
}

pub struct Probe {
    pub name: String,
    pub log: Log,
    pub faults: Faults,
    pub deaf: bool,
}

pub enum Do {
    Panic,
    Stop(Exit),
    PanicInFuture,
    PanicInTimer,
    Hang(Duration),
    Ping,
    Link(Pid),
    TrapAndLink(Pid),
    Monitor(Pid),
    Supervise(Arc<dyn Fn() -> SupervisorSpec + Send + Sync>),
}

impl Message for Do {
    type Reply = u64;
}

impl Actor for Probe {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        let mut left = self.faults.starts.lock().unwrap_or_else(|p| p.into_inner());
        if *left > 0 {
            *left -= 1;
            self.log.push(format!("!{}", self.name));
            return Err(Exit::Error("no start".into()));
        }
        assert_eq!(Pid::current(), Some(ctx.pid()));
        self.log.push(format!("+{}", self.name));
        Ok(())
    }
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        self.log.push(format!("-{}", self.name));
    }
    fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
        self.log.push(format!("down:{}:{}", down.pid.path(), down.reason));
    }
    fn exit_signal(&mut self, from: Pid, reason: Exit, _: &mut Ctx<Self>) {
        self.log.push(format!("exit:{}:{reason}", from.path()));
    }
}

impl Handler<Do> for Probe {
    fn handle(&mut self, what: Do, ctx: &mut Ctx<Self>) -> Reply<u64> {
        match what {
            Do::Panic => panic!("asked to"),
            Do::Stop(exit) => ctx.stop(exit),
            Do::PanicInFuture => drop(ctx.spawn(async { panic!("in a future") })),
            Do::PanicInTimer => {
                ctx.interval(Duration::from_millis(1), |_, _| panic!("in a timer"));
            }
            Do::Hang(time) => std::thread::sleep(time),
            Do::Ping => {}
            Do::Link(pid) => ctx.link(&pid),
            Do::TrapAndLink(pid) => {
                ctx.trap_exit(true);
                ctx.link(&pid);
            }
            Do::Monitor(pid) => drop(ctx.monitor(&pid)),
            Do::Supervise(make) => drop(ctx.supervise(make())),
        }
        ctx.pid().id().into()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if self.deaf {
            panic!("in drop");
        }
    }
}

pub fn probe(name: &str, log: &Log) -> ChildSpec {
    probe_with(name, log, Faults::default())
}

pub fn probe_with(name: &str, log: &Log, faults: Faults) -> ChildSpec {
    let (own, log) = (name.to_owned(), log.clone());
    ChildSpec::actor(name, move || Probe { name: own.clone(), log: log.clone(), faults: faults.clone(), deaf: false })
}

pub fn system() -> System {
    System::builder("t").build().expect("a system")
}

/// Asks `path` to do something; what it answers does not matter.
pub async fn tell(system: &System, path: &str, what: Do) {
    let _ = system.named::<Probe>(path).ask_timeout(what, Duration::from_secs(20)).await;
}

/// Waits until another incarnation than `old` runs at `path`.
pub async fn reborn(system: &System, path: &str, old: &Pid) -> Pid {
    let wait = async {
        loop {
            let info = system.tree().into_iter().find(|i| i.path == path && i.state == State::Running);
            if let (Some(info), Some(pid)) = (info, system.whereis(path))
                && info.id == Some(pid.id())
                && pid != *old
            {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("restarted")
}
