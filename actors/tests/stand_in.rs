//! Stand-ins for processes elsewhere, and what else routes messages between systems: any pid can be watched from outside, any
//! actor found whatever its type. Everything runs on one thread, so what has happened is known when the calls return.

mod support;

use phalanx_actors::*;
use std::sync::{Arc, Mutex};
use support::{Do, Log, Probe, probe};

/// Writes down what is asked of the process.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn push(&self, line: String) {
        self.0.lock().expect("no panic").push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

struct Carrier(Asked);

impl Proxy for Carrier {
    fn stop(&self, reason: Exit) {
        self.0.push(format!("stop:{reason}"));
    }
    fn kill(&self) {
        self.0.push("kill".into());
    }
    fn linked(&self, by: &Pid) {
        self.0.push(format!("linked:{}", by.path()));
    }
    fn unlinked(&self, by: &Pid) {
        self.0.push(format!("unlinked:{}", by.path()));
    }
    fn exited(&self, from: &Pid, reason: &Exit) {
        self.0.push(format!("exited:{}:{reason}", from.path()));
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.push("dropped".into());
    }
}

fn stand_in() -> (Pid, StandIn, Asked) {
    let asked = Asked::default();
    let (pid, stand_in) = Pid::stand_in(7, "p@far", Arc::new(Carrier(asked.clone())));
    (pid, stand_in, asked)
}

/// Probes `t/a` and `t/b` on this thread.
async fn scene() -> (System, Log) {
    let log = Log::default();
    let system = System::builder("t").local().build().expect("a system");
    let children = ["a", "b"].map(|id| probe(id, &log).restart(Restart::Temporary));
    let spec = children.into_iter().fold(SupervisorSpec::new("t", Strategy::OneForOne), SupervisorSpec::child);
    system.start(spec).await.expect("started");
    log.take();
    (system, log)
}

async fn ask(system: &System, path: &str, what: Do) {
    system.lookup::<Probe>(path).expect("runs").ask(what).await.expect("lives");
}

async fn local(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn the_exit_of_a_stand_in_reaches_all_its_watchers_and_links_once() {
    local(async {
        let (system, log) = scene().await;
        let (pid, stand_in, _) = stand_in();
        ask(&system, "t/a", Do::Monitor(pid.clone())).await;
        ask(&system, "t/a", Do::TrapAndLink(pid.clone())).await;
        let mut exited = Box::pin(pid.exited());
        assert!(futures::poll!(&mut exited).is_pending());
        stand_in.exit(&Exit::NoConnection);
        stand_in.exit(&Exit::Killed);
        assert_eq!(exited.await, Exit::NoConnection);
        assert_eq!((pid.is_alive(), pid.exit()), (false, Some(Exit::NoConnection)));
        ask(&system, "t/a", Do::Ping).await;
        let no_connection = Exit::NoConnection.to_string();
        assert_eq!(log.take(), format!("down:p@far:{no_connection} exit:p@far:{no_connection}"));
        // Whoever comes later learns that nobody can tell.
        ask(&system, "t/a", Do::Monitor(pid.clone())).await;
        ask(&system, "t/a", Do::TrapAndLink(pid.clone())).await;
        ask(&system, "t/a", Do::Ping).await;
        assert_eq!(log.take(), format!("down:p@far:{no_connection} exit:p@far:{no_connection}"));
        system.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn a_stand_in_that_exited_for_another_reason_is_no_such_process_to_those_who_come_later() {
    local(async {
        let (system, log) = scene().await;
        let (pid, stand_in, _) = stand_in();
        stand_in.exit(&Exit::Normal);
        ask(&system, "t/a", Do::Monitor(pid.clone())).await;
        ask(&system, "t/a", Do::TrapAndLink(pid)).await;
        ask(&system, "t/a", Do::Ping).await;
        let no_proc = Exit::NoProc.to_string();
        assert_eq!(log.take(), format!("down:p@far:{no_proc} exit:p@far:{no_proc}"));
        system.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_asked_of_a_stand_in_is_handed_to_its_carrier() {
    local(async {
        let (system, _log) = scene().await;
        let (pid, stand_in, asked) = stand_in();
        pid.stop(Exit::Shutdown);
        pid.kill();
        assert_eq!(asked.take(), [format!("stop:{}", Exit::Shutdown), "kill".into()]);
        assert!(pid.is_alive(), "until its carrier says otherwise");
        ask(&system, "t/a", Do::Link(pid.clone())).await;
        ask(&system, "t/a", Do::Link(pid.clone())).await;
        ask(&system, "t/b", Do::Link(pid.clone())).await;
        assert_eq!(asked.take(), ["linked:t/a", "linked:t/b"], "a second link changes nothing");
        let a = system.whereis("t/a").expect("runs");
        a.stop(Exit::Error("tired".into()));
        a.exited().await;
        assert_eq!(asked.take(), ["exited:t/a:tired"]);
        stand_in.exit(&Exit::Error("gone".into()));
        let b = system.whereis("t/b").expect("runs");
        assert_eq!(b.exited().await, Exit::Error("gone".into()));
        assert_eq!(asked.take(), ["dropped"], "and what it ends is no news to it");
        system.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn a_link_from_elsewhere_is_one_like_any_other_and_is_not_reported_back() {
    local(async {
        let (system, log) = scene().await;
        let (pid, stand_in, asked) = stand_in();
        let (a, b) = (system.whereis("t/a").expect("runs"), system.whereis("t/b").expect("runs"));
        assert!(stand_in.linked(&a) && stand_in.linked(&b));
        stand_in.unlinked(&b);
        assert!(asked.take().is_empty());
        a.kill();
        a.exited().await;
        assert_eq!(asked.take(), [format!("exited:t/a:{}", Exit::Killed)]);
        assert!(!stand_in.linked(&a), "it has ended");
        stand_in.exit(&Exit::Killed);
        ask(&system, "t/b", Do::Ping).await;
        // Linked to what is lost already: the actor hears of it all the same.
        ask(&system, "t/b", Do::TrapAndLink(pid.clone())).await;
        ask(&system, "t/b", Do::Ping).await;
        assert_eq!(log.take(), format!("exit:p@far:{}", Exit::NoProc));
        system.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn a_stand_in_lives_as_long_as_somebody_refers_to_it_and_its_carrier_hears_the_end() {
    local(async {
        let (system, _log) = scene().await;
        let (pid, stand_in, asked) = stand_in();
        ask(&system, "t/a", Do::Monitor(pid.clone())).await;
        drop(pid);
        assert!(stand_in.pid().is_some(), "its monitor refers to it");
        let a = system.whereis("t/a").expect("runs");
        a.kill();
        a.exited().await;
        tokio::task::yield_now().await;
        assert!(stand_in.pid().is_none());
        assert_eq!(asked.take(), ["dropped"]);
        system.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn a_call_on_exit_comes_once_or_never() {
    local(async {
        let (system, _log) = scene().await;
        let a = system.whereis("t/a").expect("runs");
        let asked = Asked::default();
        let note = |name: &'static str| {
            let asked = asked.clone();
            move |reason: &Exit| asked.push(format!("{name}:{reason}"))
        };
        let kept = a.on_exit(note("kept"));
        drop(a.on_exit(note("taken back")));
        a.kill();
        a.exited().await;
        assert_eq!(asked.take(), [format!("kept:{}", Exit::Killed)]);
        assert!(kept.is_some() && a.on_exit(note("late")).is_none());
        assert!(asked.take().is_empty());
        system.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn an_actor_is_found_whatever_its_type_and_is_no_other() {
    local(async {
        struct Other;
        impl Actor for Other {}
        let (system, _log) = scene().await;
        let found = system.guest_handle().find("t/a").expect("runs");
        assert_eq!(Some(found.pid().clone()), system.whereis("t/a"));
        assert_eq!(found.actor_type(), ActorType::of::<Probe>());
        assert_ne!(found.actor_type(), ActorType::of::<Other>());
        assert!(found.clone().downcast::<Other>().is_none());
        found.downcast::<Probe>().expect("it is one").ask(Do::Ping).await.expect("lives");
        let supervisor = system.find("t").expect("runs");
        assert!(supervisor.downcast::<Probe>().is_none());
        assert!(system.find("t/x").is_none());
        system.shutdown().await;
    })
    .await;
}
