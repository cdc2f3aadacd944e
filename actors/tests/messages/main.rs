//! What is promised about messages, one test for each line of `docs/runtime-semantics.md`.
//!
//! They run in simulated time on one thread: there nobody runs while a test does not wait, so what a mailbox holds is known exactly. Those
//! that want several threads are in `threads.rs`.

mod threads;

use futures::poll;
use phalanx_actors::*;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, advance};

/// Runs a test in simulated time, on one thread.
fn simulated<F: Future<Output = ()>>(test: impl FnOnce(System) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
    tokio::task::LocalSet::new()
        .block_on(&runtime, async { test(System::builder("t").local().build().expect("system")).await });
}

/// What was handled, in order, by all incarnations.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u32>>>);

impl Log {
    fn push(&self, n: u32) {
        self.0.lock().expect("not poisoned").push(n);
    }
    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.0.lock().expect("not poisoned"))
    }
}

const DOWN: u32 = 1_000_001;
const EXIT: u32 = 1_000_002;
const STOPPING: u32 = 1_000_003;

/// Writes down the notes that it gets.
struct Clerk {
    log: Log,
    /// Answers that it owes.
    owed: Vec<Replier<u32>>,
}

impl Actor for Clerk {
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        self.log.push(STOPPING);
    }
    fn down(&mut self, _: Down, _: &mut Ctx<Self>) {
        self.log.push(DOWN);
    }
    fn exit_signal(&mut self, _: Pid, _: Exit, _: &mut Ctx<Self>) {
        self.log.push(EXIT);
    }
}

struct Note(u32);
impl Message for Note {
    type Reply = u32;
}
impl Handler<Note> for Clerk {
    fn handle(&mut self, note: Note, _: &mut Ctx<Self>) -> Reply<u32> {
        self.log.push(note.0);
        note.0.into()
    }
}

/// Makes it crash.
struct Crash;
impl Message for Crash {
    type Reply = u32;
}
impl Handler<Crash> for Clerk {
    fn handle(&mut self, _: Crash, _: &mut Ctx<Self>) -> Reply<u32> {
        panic!("asked to")
    }
}

/// Is answered when the clerk ends, that is never.
struct Owe;
impl Message for Owe {
    type Reply = u32;
}
impl Handler<Owe> for Clerk {
    fn handle(&mut self, _: Owe, ctx: &mut Ctx<Self>) -> Reply<u32> {
        let (reply, replier) = ctx.defer();
        self.owed.push(replier);
        reply
    }
}

/// Runs a piece of code in the clerk.
type Code = Box<dyn FnOnce(&mut Clerk, &mut Ctx<Clerk>) + Send>;
struct Run(Code);
impl Message for Run {
    type Reply = ();
}
impl Handler<Run> for Clerk {
    fn handle(&mut self, run: Run, ctx: &mut Ctx<Self>) -> Reply<()> {
        (run.0)(self, ctx);
        ().into()
    }
}
fn code(f: impl FnOnce(&mut Clerk, &mut Ctx<Clerk>) + Send + 'static) -> Run {
    Run(Box::new(f))
}

fn clerk(id: &str, log: &Log) -> ChildSpec {
    let log = log.clone();
    ChildSpec::actor(id, move || Clerk { log: log.clone(), owed: Vec::new() })
}

const CLERK: &str = "s/clerk";

async fn start(system: &System, clerk: ChildSpec) -> (SupervisorRef, Ref<Clerk>) {
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(clerk);
    let supervisor = system.start(spec).await.expect("started");
    (supervisor, system.lookup(CLERK).expect("runs"))
}

fn info(system: &System) -> ActorInfo {
    system.tree().into_iter().find(|info| info.path == CLERK).expect("known")
}

/// Waits until the next incarnation runs. In simulated time whoever waits lets all others go first.
async fn reborn(system: &System, old: &Ref<Clerk>) -> Ref<Clerk> {
    old.pid().exited().await;
    loop {
        if let Some(new) = system.lookup::<Clerk>(CLERK).filter(|new| new.pid() != old.pid()) {
            return new;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn panic_of(error: Result<u32, AskError>) -> bool {
    matches!(error, Err(AskError::Exited(Exit::Panic { message, .. })) if message == "asked to")
}

// ---- full mailboxes ----------------------------------------------------------------------------------------------------------

#[test]
fn a_full_mailbox_refuses_tells_and_makes_senders_and_askers_wait() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log).mailbox(2)).await;
        clerk.tell(Note(1)).expect("room");
        clerk.tell(Note(2)).expect("room");
        assert_eq!(clerk.tell(Note(9)), Err(SendError::Full));
        let mut sent = pin!(clerk.send(Note(3)));
        let mut asked = pin!(clerk.ask(Note(4)));
        assert!(poll!(&mut sent).is_pending());
        assert!(poll!(&mut asked).is_pending());
        assert_eq!((info(&system).queue_len, info(&system).queue_max), (2, 2), "who waits is not in the mailbox");
        assert_eq!(sent.await, Ok(()));
        assert_eq!(asked.await, Ok(4));
        assert_eq!(log.take(), [1, 2, 3, 4]);
        assert_eq!(info(&system).dropped, 0);
    });
}

#[test]
fn a_mailbox_that_fails_when_full_refuses_everyone_at_once() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log).mailbox(1).overflow(Overflow::Fail)).await;
        clerk.tell(Note(1)).expect("room");
        assert_eq!(clerk.tell(Note(9)), Err(SendError::Full));
        assert_eq!(clerk.send(Note(9)).await, Err(SendError::Full));
        assert_eq!(clerk.ask(Note(9)).await, Err(AskError::Full));
        assert_eq!(clerk.ask_timeout(Note(9), Duration::from_secs(1)).await, Err(AskError::Full));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(clerk.ask(Note(2)).await, Ok(2), "there is room again");
        assert_eq!(log.take(), [1, 2]);
        assert_eq!(info(&system).dropped, 0, "what was refused was never accepted");
    });
}

#[test]
fn a_mailbox_that_drops_its_oldest_keeps_the_newest_and_tells_the_asker() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log).mailbox(3).overflow(Overflow::DropOldest)).await;
        let mut lost = pin!(clerk.ask(Note(1)));
        assert!(poll!(&mut lost).is_pending());
        clerk.tell(Note(2)).expect("accepted");
        assert_eq!(clerk.send(Note(3)).await, Ok(()), "waits for nothing");
        clerk.tell(Note(4)).expect("accepted");
        assert_eq!(lost.await, Err(AskError::Dropped));
        clerk.tell(Note(5)).expect("accepted");
        assert_eq!(clerk.ask(Note(6)).await, Ok(6));
        assert_eq!(log.take(), [4, 5, 6]);
        let info = info(&system);
        assert_eq!((info.dropped, info.messages, info.queue_len), (3, 3, 0));
    });
}

/// Counts how many of it exist.
#[allow(dead_code)] // it is there to be dropped
struct Counted(Arc<()>);
impl Message for Counted {
    type Reply = ();
}
impl Handler<Counted> for Clerk {
    fn handle(&mut self, _: Counted, _: &mut Ctx<Self>) -> Reply<()> {
        self.log.push(0);
        ().into()
    }
}

#[test]
fn a_mailbox_that_drops_its_oldest_is_bounded_while_its_actor_is_stuck_in_a_handler() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log).mailbox(8).overflow(Overflow::DropOldest)).await;
        let seen = system.clone();
        let stuck = clerk.ask(code(move |_, ctx| {
            let alive = Arc::new(());
            for _ in 0..10_000 {
                ctx.self_ref().tell(Counted(alive.clone())).expect("accepted");
                assert!(Arc::strong_count(&alive) <= 1 + 8, "no more than the mailbox holds");
            }
            assert_eq!(info(&seen).queue_len, 8);
        }));
        stuck.await.expect("no assertion failed");
        clerk.ask(Note(1)).await.expect("answered");
        assert_eq!(log.take(), [0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(info(&system).dropped, 9_992);
    });
}

#[test]
fn who_waits_for_room_learns_that_the_actor_ended() {
    simulated(|system| async move {
        let (_s, clerk) = start(&system, clerk("clerk", &Log::default()).mailbox(1)).await;
        clerk.tell(Crash).expect("room");
        let mut sent = pin!(clerk.send(Note(1)));
        let mut asked = pin!(clerk.ask(Note(2)));
        assert!(poll!(&mut sent).is_pending() && poll!(&mut asked).is_pending());
        clerk.kill();
        assert_eq!(sent.await, Err(SendError::Closed));
        assert!(matches!(asked.await, Err(AskError::NoProc | AskError::Exited(Exit::Killed))));
    });
}

// ---- signals -----------------------------------------------------------------------------------------------------------------

/// Fills the mailbox while its actor is in a handler, which then does what `f` says, with the pid of one that has ended. What was
/// handled after that.
fn behind_a_full_mailbox(f: impl FnOnce(&mut Ctx<Clerk>, &Pid) + Send + 'static) -> Vec<u32> {
    let log = Log::default();
    let written = log.clone();
    simulated(|system| async move {
        let (supervisor, clerk) = start(&system, clerk("clerk", &log).mailbox(8).restart(Restart::Temporary)).await;
        let other = self::clerk("other", &Log::default()).restart(Restart::Temporary);
        let dead = supervisor.start_child(other).await.expect("started");
        dead.kill();
        dead.exited().await;
        let stuck = code(move |_, ctx| {
            for n in 1..=8 {
                ctx.self_ref().tell(Note(n)).expect("room");
            }
            assert_eq!(ctx.self_ref().tell(Note(9)), Err(SendError::Full));
            f(ctx, &dead);
        });
        clerk.tell(stuck).expect("room");
        // In simulated time, whatever can happen happens first.
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    written.take()
}

#[test]
fn a_stop_and_a_kill_overtake_all_that_waits_in_a_full_mailbox() {
    assert_eq!(behind_a_full_mailbox(|ctx, _| ctx.pid().stop(Exit::Shutdown)), [STOPPING]);
    assert_eq!(behind_a_full_mailbox(|ctx, _| ctx.stop(Exit::Normal)), [STOPPING]);
    assert_eq!(behind_a_full_mailbox(|ctx, _| ctx.pid().kill()), []);
    assert_eq!(behind_a_full_mailbox(|_, _| {}), [1, 2, 3, 4, 5, 6, 7, 8], "else all of it is handled");
}

#[test]
fn a_down_and_the_exit_of_a_linked_actor_overtake_all_that_waits_in_a_full_mailbox() {
    let down = behind_a_full_mailbox(|ctx, dead| drop(ctx.monitor(dead)));
    assert_eq!(down, [DOWN, 1, 2, 3, 4, 5, 6, 7, 8]);
    let trapped = behind_a_full_mailbox(|ctx, dead| {
        ctx.trap_exit(true);
        ctx.link(dead);
    });
    assert_eq!(trapped, [EXIT, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(behind_a_full_mailbox(|ctx, dead| ctx.link(dead)), [], "not trapped, it ends the actor");
}

#[test]
fn a_timer_that_is_due_is_handled_before_messages_that_come_later() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log)).await;
        clerk.ask(code(|_, ctx| drop(ctx.send_after(Duration::from_secs(1), Note(100))))).await.expect("set");
        tokio::time::sleep(Duration::from_millis(1_001)).await;
        clerk.ask(Note(1)).await.expect("answered");
        assert_eq!(log.take(), [100, 1]);
    });
}

// ---- the end of an incarnation -----------------------------------------------------------------------------------------------

#[test]
fn messages_that_wait_at_a_crash_are_dropped_and_counted_and_their_askers_learn_the_exit() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, old) = start(&system, clerk("clerk", &log)).await;
        old.tell(Note(1)).expect("room");
        old.tell(Crash).expect("room");
        let mut asked = pin!(old.ask(Note(2)));
        assert!(poll!(&mut asked).is_pending());
        old.tell(Note(3)).expect("room");
        assert!(panic_of(asked.await));
        let new = reborn(&system, &old).await;
        assert_eq!(new.ask(Note(4)).await, Ok(4));
        assert_eq!(log.take(), [1, 4]);
        let info = info(&system);
        assert_eq!((info.dropped, info.messages, info.restarts), (2, 1, 1));
        assert_eq!((old.tell(Note(5)), old.ask(Note(5)).await), (Err(SendError::Closed), Err(AskError::NoProc)));
    });
}

#[test]
fn messages_that_wait_at_an_end_in_order_are_dropped_and_counted() {
    simulated(|system| async move {
        let log = Log::default();
        let (supervisor, clerk) = start(&system, clerk("clerk", &log)).await;
        clerk.tell(code(|_, ctx| ctx.stop(Exit::Normal))).expect("room");
        clerk.tell(Note(1)).expect("room");
        let mut asked = pin!(clerk.ask(Note(2)));
        assert!(poll!(&mut asked).is_pending());
        assert_eq!(asked.await, Err(AskError::Exited(Exit::Normal)));
        supervisor.terminate_child("clerk").await.expect("terminated");
        assert_eq!(log.take(), [STOPPING, STOPPING], "it was restarted, being permanent, and terminated");
        assert_eq!(info(&system).dropped, 2);
    });
}

#[test]
fn a_kept_mailbox_hands_its_messages_to_the_next_incarnation_in_order_without_the_one_that_crashed() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, old) = start(&system, clerk("clerk", &log).keep_mailbox().mailbox(4)).await;
        let mut crashed = pin!(old.ask(Crash));
        assert!(poll!(&mut crashed).is_pending());
        old.tell(Note(1)).expect("room");
        let mut asked = pin!(old.ask(Note(2)));
        assert!(poll!(&mut asked).is_pending());
        assert_eq!(old.send(Note(3)).await, Ok(()));
        assert_eq!(old.tell(Note(9)), Err(SendError::Full));
        assert!(panic_of(crashed.await), "it is not asked again");
        assert_eq!(asked.await, Ok(2), "who asked waits on");
        let new = reborn(&system, &old).await;
        assert_eq!(new.ask(Note(4)).await, Ok(4));
        assert_eq!(log.take(), [1, 2, 3, 4]);
        let info = info(&system);
        assert_eq!((info.dropped, info.messages, info.queue_len, info.restarts), (0, 4, 0, 1));
        assert_eq!(old.tell(Note(5)), Err(SendError::Closed), "the old reference stays dead");
        assert_eq!(old.ask(Note(5)).await, Err(AskError::NoProc));
    });
}

/// Puts a note into its own mailbox when it starts.
struct Greeter(Log);
impl Actor for Greeter {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        self.0.push(if ctx.self_ref().tell(Note(10)) == Err(SendError::Full) { 100 } else { 200 });
        Ok(())
    }
}
impl Handler<Note> for Greeter {
    fn handle(&mut self, note: Note, ctx: &mut Ctx<Self>) -> Reply<u32> {
        self.0.push(note.0);
        if note.0 == 0 {
            for n in 1..=3 {
                ctx.self_ref().tell(Note(n)).expect("room");
            }
            panic!("with a full mailbox");
        }
        note.0.into()
    }
}

#[test]
fn a_kept_mailbox_holds_no_more_than_its_bound_after_a_restart_either() {
    simulated(|system| async move {
        let log = Log::default();
        let written = log.clone();
        let child = ChildSpec::actor("clerk", move || Greeter(written.clone())).keep_mailbox().mailbox(3);
        system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
        system.named::<Greeter>(CLERK).tell(Note(0)).expect("room");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(log.take(), [200, 10, 0, 100, 1, 2, 3]);
        assert_eq!(system.named::<Greeter>(CLERK).ask(Note(4)).await, Ok(4));
    });
}

#[test]
fn a_kept_mailbox_waits_out_a_backoff_and_starts_that_fail() {
    simulated(|system| async move {
        let log = Log::default();
        let starts = Arc::new(AtomicU32::new(0));
        let written = log.clone();
        let child = ChildSpec::actor("clerk", move || {
            let start = starts.fetch_add(1, SeqCst);
            assert!(!(1..4).contains(&start), "starts 1, 2 and 3 fail");
            Clerk { log: written.clone(), owed: Vec::new() }
        });
        let second = Duration::from_secs(1);
        let backoff = Backoff { initial: second, step: second, factor: 1.0, jitter: 0.0, ..Backoff::default() };
        let (_s, old) = start(&system, child.keep_mailbox().backoff(backoff)).await;
        old.tell(Crash).expect("room");
        let mut asked = pin!(old.ask(Note(1)));
        assert!(poll!(&mut asked).is_pending());
        let began = Instant::now();
        assert_eq!(asked.await, Ok(1));
        assert_eq!(began.elapsed().as_secs(), 4, "three starts failed and one did not, a second apart");
        assert_eq!(info(&system).dropped, 0);
    });
}

/// Writes 1,000 notes to the clerk when it is stopped.
struct LastWords;
impl Actor for LastWords {
    fn stopping(&mut self, _: &Exit, ctx: &mut Ctx<Self>) {
        if let Some(clerk) = ctx.system().lookup::<Clerk>(CLERK) {
            (0..1_000).for_each(|n| clerk.tell(Note(n)).expect("room"));
        }
    }
}

#[test]
fn a_kept_mailbox_outlives_a_stop_for_the_restart_of_its_group() {
    simulated(|system| async move {
        let log = Log::default();
        let spec = SupervisorSpec::new("s", Strategy::OneForAll)
            .unlimited()
            .child(clerk("clerk", &log).keep_mailbox())
            .child(ChildSpec::actor("last", || LastWords))
            .child(clerk("crashes", &Log::default()));
        system.start(spec).await.expect("started");
        let old = system.lookup::<Clerk>(CLERK).expect("runs");
        // Stopped in reverse: `last` fills the clerk's mailbox, and before the clerk has handled it all it is asked to stop, too.
        system.whereis("s/crashes").expect("runs").kill();
        let new = reborn(&system, &old).await;
        assert_eq!(new.ask(Note(1_000)).await, Ok(1_000));
        let mut handled = log.take();
        let stopped = handled.iter().position(|n| *n == STOPPING).expect("stopped in order");
        assert!(stopped < 1_000, "there was something to keep");
        handled.remove(stopped);
        assert_eq!(handled, (0..=1_000).collect::<Vec<u32>>());
        assert_eq!(info(&system).dropped, 0);
    });
}

/// Leaves two notes and a question in the mailbox of a clerk that waits for its restart, then does what `f` says. What the asker
/// learnt.
fn left_behind<F: Future<Output = ()>>(f: impl FnOnce(System, SupervisorRef) -> F) -> Result<u32, AskError> {
    let mut learnt = None;
    simulated(|system| {
        let learnt = &mut learnt;
        async move {
            let log = Log::default();
            let backoff = Backoff { initial: Duration::from_secs(3_600), ..Backoff::default() };
            let child = clerk("clerk", &log).keep_mailbox().backoff(backoff);
            let (supervisor, clerk) = start(&system, child).await;
            clerk.tell(Crash).expect("room");
            clerk.tell(Note(1)).expect("room");
            clerk.tell(Note(2)).expect("room");
            let mut asked = pin!(clerk.ask(Note(3)));
            assert!(poll!(&mut asked).is_pending());
            clerk.pid().exited().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(poll!(&mut asked).is_pending(), "the message is kept, and so is the asker");
            f(system, supervisor).await;
            *learnt = Some(asked.await);
            assert_eq!(log.take(), []);
        }
    });
    learnt.expect("ran")
}

#[test]
fn a_kept_mailbox_is_dropped_and_counted_when_its_child_is_terminated() {
    let learnt = left_behind(|system, supervisor| async move {
        supervisor.terminate_child("clerk").await.expect("terminated");
        assert_eq!(info(&system).dropped, 3);
        supervisor.restart_child("clerk").await.expect("restarted");
        assert_eq!(system.named::<Clerk>(CLERK).ask(Crash).await.err().map(|e| panic_of(Err(e))), Some(true));
        assert_eq!(info(&system).dropped, 3, "nothing comes back");
    });
    assert!(panic_of(learnt), "its asker learns why the incarnation ended");
}

#[test]
fn a_kept_mailbox_is_dropped_when_its_supervisor_ends() {
    assert!(panic_of(left_behind(|_, supervisor| async move {
        supervisor.stop().await;
    })));
    assert!(panic_of(left_behind(|_, supervisor| async move {
        supervisor.pid().kill();
        supervisor.exited().await;
    })));
    assert!(panic_of(left_behind(|system, _| async move { system.kill() })));
}

#[test]
fn a_kept_mailbox_is_dropped_when_its_child_ended_for_good() {
    for restart in [Restart::Transient, Restart::Temporary] {
        simulated(|system| async move {
            let log = Log::default();
            let (_s, clerk) = start(&system, clerk("clerk", &log).keep_mailbox().restart(restart)).await;
            clerk.tell(code(|_, ctx| ctx.stop(Exit::Normal))).expect("room");
            let mut asked = pin!(clerk.ask(Note(1)));
            assert!(poll!(&mut asked).is_pending());
            assert_eq!(asked.await, Err(AskError::Exited(Exit::Normal)));
            if restart == Restart::Transient {
                assert_eq!(info(&system).dropped, 1);
            }
        });
    }
}

#[test]
fn who_asked_a_kept_question_learns_the_exit_of_the_incarnation_that_took_it() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, old) = start(&system, clerk("clerk", &log).keep_mailbox()).await;
        old.tell(Crash).expect("room");
        let mut owed = pin!(old.ask(Owe));
        assert!(poll!(&mut owed).is_pending());
        let new = reborn(&system, &old).await;
        new.ask(Note(1)).await.expect("answered");
        assert!(poll!(&mut owed).is_pending(), "the next incarnation took it, and owes the answer");
        new.stop(Exit::Error("has enough".into()));
        assert_eq!(owed.await, Err(AskError::Exited(Exit::Error("has enough".into()))));
    });
}

#[test]
fn a_mailbox_that_drops_its_oldest_can_be_kept_and_drops_its_oldest_then_too() {
    simulated(|system| async move {
        let log = Log::default();
        let child = clerk("clerk", &log).keep_mailbox().mailbox(3).overflow(Overflow::DropOldest);
        let (_s, old) = start(&system, child).await;
        old.tell(code(|_, ctx| {
            for n in 1..=5 {
                ctx.self_ref().tell(Note(n)).expect("accepted");
            }
            panic!("asked to");
        }))
        .expect("accepted");
        let new = reborn(&system, &old).await;
        new.ask(Note(6)).await.expect("answered");
        assert_eq!(log.take(), [3, 4, 5, 6]);
        assert_eq!(info(&system).dropped, 2);
    });
}

// ---- deadlines and cancellation ----------------------------------------------------------------------------------------------

#[test]
fn a_question_whose_deadline_has_passed_is_not_handled() {
    for keep in [false, true] {
        simulated(|system| async move {
            let log = Log::default();
            let child = clerk("clerk", &log);
            let (_s, clerk) = start(&system, if keep { child.keep_mailbox() } else { child }).await;
            // Put into the mailbox, and not polled again: only the receiver's own look at the clock can tell.
            let mut asked = pin!(clerk.ask_timeout(Note(1), Duration::from_secs(1)));
            assert!(poll!(&mut asked).is_pending());
            advance(Duration::from_secs(2)).await;
            assert_eq!(clerk.ask(Note(2)).await, Ok(2));
            assert_eq!(asked.await, Err(AskError::Timeout));
            assert_eq!(log.take(), [2]);
            assert_eq!((info(&system).messages, info(&system).dropped), (1, 1));
            let late = clerk.ask_until(Note(3), Instant::now()).await;
            assert_eq!((late, info(&system).dropped), (Err(AskError::Timeout), 1), "one that is late is not even sent");
        });
    }
}

#[test]
fn a_question_of_an_asker_with_a_clock_of_its_own_is_late_for_the_actor_alone() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log)).await;
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut owed = pin!(clerk.ask_due(Owe, deadline));
        let mut asked = pin!(clerk.ask_due(Note(1), deadline));
        assert!(poll!(&mut owed).is_pending());
        clerk.ask(Note(2)).await.expect("answered");
        assert!(poll!(&mut asked).is_pending());
        advance(Duration::from_secs(2)).await;
        clerk.ask(Note(3)).await.expect("answered");
        assert_eq!(asked.await, Err(AskError::Timeout), "too late when its turn came");
        assert_eq!(log.take(), [2, 3]);
        assert!(poll!(&mut owed).is_pending(), "it was in time, and nobody has answered it");
    });
}

#[test]
fn an_ask_with_a_deadline_ends_with_it_while_it_waits_for_room_or_for_the_answer() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log).mailbox(1)).await;
        let began = Instant::now();
        assert_eq!(clerk.ask_timeout(Owe, Duration::from_secs(7)).await, Err(AskError::Timeout));
        assert_eq!(began.elapsed().as_secs(), 7);
        clerk.tell(Note(1)).expect("room");
        let mut waits = pin!(clerk.ask_timeout(Note(2), Duration::from_secs(1)));
        assert!(poll!(&mut waits).is_pending());
        advance(Duration::from_secs(2)).await;
        // Room and deadline are there both: either is right, and a question that comes too late is not handled.
        let answer = waits.await;
        clerk.ask(Note(3)).await.expect("answered");
        match answer {
            Ok(2) => assert_eq!(log.take(), [1, 2, 3]),
            Err(AskError::Timeout) => assert_eq!(log.take(), [1, 3]),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_handler_sees_the_deadline_of_its_question_and_can_hand_it_on() {
    simulated(|system| async move {
        let (supervisor, clerk) = start(&system, clerk("clerk", &Log::default())).await;
        supervisor.start_child(self::clerk("other", &Log::default())).await.expect("started");
        let other = system.lookup::<Clerk>("s/other").expect("runs");
        let began = Instant::now();
        let (gave_up, learnt) = tokio::sync::oneshot::channel();
        let ask = code(move |_, ctx| {
            assert_eq!(ctx.deadline(), Some(began + Duration::from_secs(10)));
            let deadline = ctx.deadline();
            ctx.pipe(async move { other.ask_until(Owe, deadline).await }, move |_, answer, ctx| {
                assert_eq!(ctx.deadline(), None, "the question is handled");
                let _ = gave_up.send((answer, Instant::now()));
            });
        });
        clerk.ask_timeout(ask, Duration::from_secs(10)).await.expect("handled");
        let (answer, at) = learnt.await.expect("told");
        assert_eq!(answer, Err(AskError::Timeout));
        assert_eq!((at - began).as_secs(), 10);
        clerk.ask(code(|_, ctx| assert_eq!(ctx.deadline(), None))).await.expect("none without one");
        let crash = code(|_, ctx| panic!("{:?}", ctx.deadline()));
        assert!(clerk.ask_timeout(crash, Duration::from_secs(1)).await.is_err());
        let new = reborn(&system, &clerk).await;
        new.ask(code(|_, ctx| assert_eq!(ctx.deadline(), None))).await.expect("nor after a crash with one");
    });
}

#[test]
fn a_dropped_ask_takes_its_question_back() {
    for keep in [false, true] {
        simulated(|system| async move {
            let log = Log::default();
            let child = clerk("clerk", &log).mailbox(2);
            let (_s, clerk) = start(&system, if keep { child.keep_mailbox() } else { child }).await;
            let alive = Arc::new(());
            {
                let mut asked = pin!(clerk.ask(Counted(alive.clone())));
                assert!(poll!(&mut asked).is_pending());
            }
            assert_eq!(clerk.ask(Note(1)).await, Ok(1));
            assert_eq!(log.take(), [1]);
            assert_eq!(Arc::strong_count(&alive), 1, "the message is gone");
            assert_eq!((info(&system).messages, info(&system).dropped), (1, 1));
        });
    }
}

#[test]
fn an_ask_dropped_while_it_waits_for_room_leaves_the_room_to_others() {
    simulated(|system| async move {
        let log = Log::default();
        let (_s, clerk) = start(&system, clerk("clerk", &log).mailbox(1)).await;
        clerk.tell(Note(1)).expect("room");
        let mut next = pin!(clerk.send(Note(3)));
        {
            let mut dropped = pin!(clerk.ask(Note(2)));
            assert!(poll!(&mut dropped).is_pending());
            assert!(poll!(&mut next).is_pending());
        }
        assert_eq!(next.await, Ok(()));
        assert_eq!(clerk.ask(Note(4)).await, Ok(4));
        assert_eq!(log.take(), [1, 3, 4]);
        assert_eq!(info(&system).dropped, 0, "it was never accepted");
    });
}
