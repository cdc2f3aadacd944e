//! Process groups hold what OTP's `pg` promises: members join and leave and are gone when they end, and who watches learns each change once.

use futures::future::BoxFuture;
use parking_lot::Mutex;
use phalanx_actors::testkit::*;
use phalanx_actors::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
struct Job(u32);
impl Message for Job {
    type Reply = ();
}
#[derive(Clone, Debug, PartialEq)]
struct Question;
impl Message for Question {
    type Reply = u64;
}

/// Joins by itself, so that a restarted one is a member again.
struct Worker(&'static str);
impl Actor for Worker {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        ctx.system().group::<Job>(self.0).join(&ctx.self_ref()).map_err(|error| Exit::Error(error.to_string()))
    }
}
impl Handler<Job> for Worker {
    fn handle(&mut self, job: Job, _: &mut Ctx<Self>) -> Reply<()> {
        assert_ne!(job, Job(13), "an unlucky job");
        ().into()
    }
}
impl Handler<Question> for Worker {
    fn handle(&mut self, _: Question, ctx: &mut Ctx<Self>) -> Reply<u64> {
        ctx.pid().id().into()
    }
}

async fn probe(sim: &Sim, name: &str) -> Probe<Job> {
    Probe::start(sim.system(), name).await
}

fn pids<M: Message>(members: &[Member<M>]) -> Vec<Pid> {
    members.iter().filter_map(|member| member.pid()).collect()
}

#[test]
fn members_are_in_the_order_of_their_joins_and_as_often_as_they_joined() {
    explore(0..10, |sim| async move {
        let group = sim.system().group::<Job>("g");
        let (a, b) = (probe(&sim, "a").await, probe(&sim, "b").await);
        for actor in [&a, &b, &a] {
            group.join(&actor.actor()).expect("joins");
        }
        assert_eq!(pids(&group.members()), [a.pid(), b.pid(), a.pid()]);
        assert_eq!(pids(&sim.system().group::<Job>("g").members()).len(), 3, "one name, one group");
        assert!(group.leave(&a.pid()));
        assert_eq!(pids(&group.members()), [a.pid(), b.pid()]);
        assert!(group.leave(&a.pid()));
        assert!(!group.leave(&a.pid()), "not a member");
        assert_eq!(pids(&group.members()), [b.pid()]);
    });
}

#[test]
fn who_ends_has_left_all_its_groups_before_anyone_learns_of_its_end() {
    explore(0..50, |sim| async move {
        let (g, h) = (sim.system().group::<Job>("g"), sim.system().group::<Job>("h"));
        let a = probe(&sim, "a").await;
        let mut observer = probe(&sim, "observer").await;
        for group in [&g, &h, &g] {
            group.join(&a.actor()).expect("joins");
        }
        observer.monitor(&a.pid()).await;
        a.pid().kill();
        assert_eq!(observer.expect_down(&a.pid()).await, Exit::Killed);
        assert!(g.is_empty() && h.is_empty());
        assert_eq!(g.join(&a.actor()), Err(JoinError::Ended(a.pid())));
        assert!(!g.leave(&a.pid()));
        assert!(g.is_empty());
    });
}

#[test]
fn a_restarted_member_that_joins_when_it_starts_is_a_member_again() {
    explore(0..20, |sim| async move {
        let workers = ["a", "b"].map(|id| ChildSpec::actor(id, || Worker("g")));
        let spec = workers.into_iter().fold(SupervisorSpec::new("s", Strategy::OneForOne), SupervisorSpec::child);
        sim.system().start(spec).await.expect("started");
        let group = sim.system().group::<Job>("g");
        let before = pids(&group.members());
        assert_eq!(before.len(), 2);
        group.tell_one(Job(13)).expect("told");
        sim.settle().await;
        let after = pids(&group.members());
        assert_eq!(after.len(), 2);
        assert_eq!(after.iter().filter(|pid| before.contains(pid)).count(), 1);
        assert!(after.iter().all(Pid::is_alive));
    });
}

#[test]
fn a_watch_tells_each_join_and_each_leave_exactly_once_whoever_does_it_when() {
    explore(0..50, |sim| async move {
        let group = sim.system().group::<Job>("g");
        let early = probe(&sim, "early").await;
        group.join(&early.actor()).expect("joins");
        let (members, mut watch) = group.watch();
        let mut known: HashMap<u64, Pid> =
            members.iter().map(|member| (member.id(), member.pid().expect("local"))).collect();
        let workers = SupervisorSpec::new("s", Strategy::Dynamic).unlimited();
        let supervisor = sim.system().start(workers).await.expect("started");
        for n in 0..20u32 {
            supervisor.start_child(ChildSpec::actor(n.to_string(), || Worker("g"))).await.expect("started");
        }
        early.pid().stop(Exit::Normal);
        // Crashes and restarts, in the order of the seed.
        for _ in 0..10 {
            let _ = group.tell_one(Job(13));
        }
        sim.settle().await;
        let (mut joined, mut left) = (0, 0);
        while let Some(event) = watch.try_next() {
            let member = event.member();
            match &event {
                GroupEvent::Joined(_) => {
                    joined += 1;
                    assert!(known.insert(member.id(), member.pid().expect("local")).is_none(), "joined twice");
                }
                GroupEvent::Left(_) => {
                    left += 1;
                    assert!(known.remove(&member.id()).is_some(), "left twice, or unknown");
                }
            }
        }
        assert_eq!(joined, left + 19, "one was there before and has left");
        let mut known: Vec<_> = known.into_iter().collect();
        known.sort_by_key(|(id, _)| *id);
        let members = group.members();
        assert_eq!(known, members.iter().map(|m| (m.id(), m.pid().expect("local"))).collect::<Vec<_>>());
    });
}

#[test]
fn a_watch_that_nobody_reads_stays_small_and_still_tells_all_that_matters() {
    simulate(0, |sim| async move {
        let group = sim.system().group::<Job>("g");
        let (a, b) = (probe(&sim, "a").await, probe(&sim, "b").await);
        group.join(&a.actor()).expect("joins");
        let (_, mut watch) = group.watch();
        group.leave(&a.pid());
        for _ in 0..100 * GROUP_EVENTS {
            group.join(&b.actor()).expect("joins");
            group.leave(&b.pid());
        }
        group.join(&b.actor()).expect("joins");
        let mut events = Vec::new();
        while let Some(event) = watch.try_next() {
            events.push(event);
        }
        assert!(events.len() < GROUP_EVENTS + 2, "{} events", events.len());
        assert!(matches!(&events[0], GroupEvent::Left(member) if member.pid() == Some(a.pid())));
        assert!(matches!(events.last(), Some(GroupEvent::Joined(member)) if member.pid() == Some(b.pid())));
    });
}

#[test]
fn a_watch_is_woken_by_the_next_change() {
    explore(0..20, |sim| async move {
        let group = sim.system().group::<Job>("g");
        let (_, mut watch) = group.watch();
        let next = tokio::task::spawn_local(async move { watch.next().await.member().pid() });
        sim.settle().await;
        let a = probe(&sim, "a").await;
        group.join(&a.actor()).expect("joins");
        assert_eq!(next.await.expect("told"), Some(a.pid()));
    });
}

#[test]
fn one_in_turn_is_told_and_who_is_full_or_ended_is_passed_over() {
    explore(0..20, |sim| async move {
        let group = sim.system().group::<Job>("g");
        assert_eq!(group.tell_one(Job(0)), Err(SendError::NoProc));
        let (mut a, mut b) = (probe(&sim, "a").await, probe(&sim, "b").await);
        let child = ChildSpec::actor("it", || Worker("other")).mailbox(1);
        sim.system().start(SupervisorSpec::new("full", Strategy::OneForOne).child(child)).await.expect("started");
        let full = sim.system().lookup::<Worker>("full/it").expect("runs");
        for join in [group.join(&a.actor()), group.join(&full), group.join(&b.actor())] {
            join.expect("joins");
        }
        // No turn of it comes before this task waits.
        full.tell(Job(1)).expect("room for one");
        for n in 0..6 {
            group.tell_one(Job(n)).expect("told");
        }
        for n in [0, 2, 4] {
            assert_eq!(a.expect_message().await, Job(n));
            assert_eq!(b.expect_message().await, Job(n + 1));
        }
        a.pid().kill();
        b.pid().kill();
        full.kill();
        sim.settle().await;
        assert_eq!(group.tell_one(Job(9)), Err(SendError::NoProc));
    });
}

#[test]
fn all_are_told_and_one_in_turn_is_asked() {
    explore(0..10, |sim| async move {
        let jobs = sim.system().group::<Job>("g");
        let (mut a, mut b) = (probe(&sim, "a").await, probe(&sim, "b").await);
        jobs.join(&a.actor()).expect("joins");
        jobs.join(&b.actor()).expect("joins");
        assert_eq!(jobs.tell_all(Job(5)), 2);
        assert_eq!((a.expect_message().await, b.expect_message().await), (Job(5), Job(5)));

        // Another type, another group, whatever the name.
        let questions = sim.system().group::<Question>("g");
        assert_eq!(questions.ask_one(Question).await, Err(AskError::NoProc));
        let children = ["x", "y"].map(|id| ChildSpec::actor(id, || Worker("other")).restart(Restart::Temporary));
        let spec = children.into_iter().fold(SupervisorSpec::new("s", Strategy::OneForOne), SupervisorSpec::child);
        sim.system().start(spec).await.expect("started");
        let both = ["s/x", "s/y"].map(|path| sim.system().lookup::<Worker>(path).expect("runs"));
        both.iter().for_each(|worker| questions.join(worker).expect("joins"));
        for turn in 0..4 {
            assert_eq!(questions.ask_one(Question).await, Ok(both[turn % 2].pid().id()));
        }
        both[0].kill();
        assert_eq!(both[0].pid().exited().await, Exit::Killed);
        assert_eq!(questions.ask_one(Question).await, Ok(both[1].pid().id()));
        let infos: Vec<_> = sim.system().groups().into_iter().map(|info| (info.name, info.members)).collect();
        assert_eq!(infos, [("g".to_owned(), 2), ("g".to_owned(), 1), ("other".to_owned(), 1)]);
    });
}

#[test]
fn a_group_is_gone_when_nobody_is_in_it_or_holds_it() {
    simulate(0, |sim| async move {
        let a = probe(&sim, "a").await;
        sim.system().group::<Job>("g").join(&a.actor()).expect("joins");
        assert_eq!(sim.system().groups().len(), 1, "its member keeps it");
        assert_eq!(sim.system().group::<Job>("g").len(), 1);
        a.pid().kill();
        a.pid().exited().await;
        assert_eq!(sim.system().groups(), []);
    });
}

/// Stands for an actor on another machine.
struct Elsewhere(Arc<AtomicU32>);
impl Receive<Job> for Elsewhere {
    fn try_tell(&self, job: Job) -> Result<(), Rejected<Job>> {
        self.0.fetch_add(job.0, SeqCst);
        Ok(())
    }
    fn send(&self, job: Job) -> BoxFuture<'static, Result<(), SendError>> {
        Box::pin(std::future::ready(self.try_tell(job).map_err(|rejected| rejected.error)))
    }
    fn ask(&self, job: Job) -> BoxFuture<'static, Result<(), AskError>> {
        let _ = self.try_tell(job);
        Box::pin(std::future::ready(Ok(())))
    }
    fn pid(&self) -> Option<Pid> {
        None
    }
}

#[test]
fn receivers_elsewhere_are_members_as_long_as_their_membership_is_held() {
    simulate(0, |sim| async move {
        let group = sim.system().group::<Job>("g");
        let (_, mut watch) = group.watch();
        let got = Arc::new(AtomicU32::new(0));
        let membership = group.enter(Elsewhere(got.clone()));
        assert!(matches!(watch.try_next(), Some(GroupEvent::Joined(member)) if member.pid().is_none()));
        assert_eq!(group.tell_all(Job(5)), 1);
        group.ask_one(Job(6)).await.expect("answered");
        assert_eq!(got.load(SeqCst), 11);
        drop(membership);
        assert!(matches!(watch.try_next(), Some(GroupEvent::Left(_))));
        assert!(group.is_empty());
    });
}

#[test]
fn members_that_come_and_go_on_many_threads_are_each_told_once() {
    // Real threads: joins, ends and watches that meet.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let system = System::builder("t").arbiters(3).build().expect("system");
        let group = system.group::<Job>("g");
        let (_, mut watch) = group.watch();
        let top = system.start(SupervisorSpec::new("s", Strategy::Dynamic).unlimited()).await.expect("started");
        const ACTORS: usize = 300;
        for n in 0..ACTORS {
            let child = ChildSpec::actor(n.to_string(), || Worker("g")).placement(Placement::Spread);
            let pid = top.start_child(child.restart(Restart::Temporary)).await.expect("started");
            pid.kill();
        }
        let (mut joined, mut left) = (0, 0);
        while left < ACTORS {
            match tokio::time::timeout(Duration::from_secs(60), watch.next()).await.expect("told") {
                GroupEvent::Joined(_) => joined += 1,
                GroupEvent::Left(_) => left += 1,
            }
        }
        assert_eq!((joined, group.len()), (ACTORS, 0));
        system.shutdown().await;
        assert!(watch.try_next().is_none());
    });
}

/// Writes down each job, and crashes at every fiftieth.
struct Crashing(Arc<Mutex<Vec<u32>>>);
impl Actor for Crashing {}
impl Handler<Job> for Crashing {
    fn handle(&mut self, job: Job, _: &mut Ctx<Self>) -> Reply<()> {
        self.0.lock().push(job.0);
        assert_ne!(job.0 % 50, 49);
        ().into()
    }
}

#[test]
fn what_an_actor_does_not_take_is_given_back_whole() {
    // Real threads: the mailbox closes while others put messages in.
    const THREADS: u32 = 3;
    const JOBS: u32 = 2_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let system = System::builder("t").build().expect("system");
    let handled = Arc::new(Mutex::new(Vec::new()));
    let own = handled.clone();
    let child = ChildSpec::actor("it", move || Crashing(own.clone())).mailbox(16).keep_mailbox();
    let top = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(child);
    runtime.block_on(system.start(top)).expect("started");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let system = &system;
            scope.spawn(move || {
                for n in 0..JOBS {
                    let mut job = Job(thread * JOBS + n);
                    loop {
                        let Some(actor) = system.lookup::<Crashing>("s/it") else {
                            std::thread::yield_now();
                            continue;
                        };
                        match actor.try_tell(job) {
                            Ok(()) => break,
                            Err(rejected) => job = rejected.message,
                        }
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    runtime.block_on(async {
        let all = async {
            while handled.lock().len() < (THREADS * JOBS) as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("all handled");
        system.shutdown().await;
    });
    let mut handled = handled.lock().clone();
    handled.sort_unstable();
    assert_eq!(handled, (0..THREADS * JOBS).collect::<Vec<_>>());
}
