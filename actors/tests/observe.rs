//! What an observer of actors sees: traces that follow messages, queues and handlers, the past, metrics.

mod support;

use futures::FutureExt;
use phalanx_actors::*;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Do, Log, probe, tell};
use tokio::sync::mpsc;

/// Runs a test in simulated time, on one thread.
fn simulated<F: Future<Output = ()>>(test: impl FnOnce(System) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
    tokio::task::LocalSet::new()
        .block_on(&runtime, async { test(System::builder("t").local().build().expect("system")).await });
}

/// Hands what it is told to the next one, and reports the trace that it works under.
struct Relay {
    next: Option<Named<Relay>>,
    seen: mpsc::UnboundedSender<(&'static str, Option<Trace>)>,
}

enum Hand {
    /// In the handler itself.
    On,
    /// In a future of the actor's.
    Spawned,
    /// With what a future brings.
    Piped,
    /// With a timer.
    Later,
}

impl Message for Hand {
    type Reply = ();
}

impl Actor for Relay {}

impl Relay {
    fn on(&self, how: &'static str) {
        let _ = self.seen.send((how, Trace::current()));
        if let Some(next) = &self.next {
            next.tell(Hand::On).expect("told");
        }
    }
}

impl Handler<Hand> for Relay {
    fn handle(&mut self, hand: Hand, ctx: &mut Ctx<Self>) -> Reply<()> {
        match hand {
            Hand::On => self.on("handled"),
            Hand::Spawned => {
                let next = self.next.clone();
                let seen = self.seen.clone();
                ctx.spawn(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = seen.send(("spawned", Trace::current()));
                    if let Some(next) = next {
                        next.tell(Hand::On).expect("told");
                    }
                });
            }
            Hand::Piped => {
                ctx.pipe(tokio::time::sleep(Duration::from_secs(1)), |relay, (), _| relay.on("piped"));
            }
            Hand::Later => {
                ctx.send_after(Duration::from_secs(1), Hand::On);
            }
        }
        ().into()
    }
}

type Seen = mpsc::UnboundedReceiver<(&'static str, Option<Trace>)>;

async fn relays(system: &System) -> (Named<Relay>, Seen) {
    let (tx, rx) = mpsc::unbounded_channel();
    let (first, second) = (system.named::<Relay>("s/first"), system.named::<Relay>("s/second"));
    let make = |next: Option<Named<Relay>>| {
        let tx = tx.clone();
        move || Relay { next: next.clone(), seen: tx.clone() }
    };
    let spec = SupervisorSpec::new("s", Strategy::OneForOne)
        .child(ChildSpec::actor("first", make(Some(second))))
        .child(ChildSpec::actor("second", make(None)));
    system.start(spec).await.expect("started");
    (first, rx)
}

#[test]
fn a_trace_follows_a_message_through_handlers_futures_pipes_and_timers() {
    simulated(|system| async move {
        let (first, mut seen) = relays(&system).await;
        for (hand, how) in
            [(Hand::On, "handled"), (Hand::Spawned, "spawned"), (Hand::Piped, "piped"), (Hand::Later, "handled")]
        {
            let trace = Trace::root();
            trace.scope(|| first.tell(hand)).expect("told");
            let (at, Some(here)) = seen.recv().await.expect("reported") else { panic!("{how}: no trace") };
            let (_, Some(there)) = seen.recv().await.expect("reported") else { panic!("{how}: lost on its way") };
            assert_eq!(at, how);
            assert_eq!((here.trace_id(), there.trace_id()), (trace.trace_id(), trace.trace_id()), "{how}");
            assert!(here.span_id() != trace.span_id() && there.span_id() != here.span_id(), "each handler is a span");
        }
        // An ask carries it too, over an await.
        let trace = Trace::root();
        trace.scope_async(async { first.ask(Hand::On).await }).await.expect("handled");
        assert_eq!(seen.recv().await.expect("reported").1.map(|seen| seen.trace_id()), Some(trace.trace_id()));
        assert_eq!(seen.recv().await.expect("reported").1.map(|seen| seen.trace_id()), Some(trace.trace_id()));
        // And what is sent outside of any is under none.
        first.tell(Hand::On).expect("told");
        assert_eq!(seen.recv().await.expect("reported"), ("handled", None));
        assert_eq!(seen.recv().await.expect("reported"), ("handled", None));
        assert_eq!(Trace::current(), None);
        system.shutdown().await;
    });
}

// ---- queues and handlers -------------------------------------------------------------------------------------------------------

/// Takes its time.
struct Slow;
impl Actor for Slow {}
struct Spin(Duration);
impl Message for Spin {
    type Reply = ();
}
impl Handler<Spin> for Slow {
    fn handle(&mut self, spin: Spin, ctx: &mut Ctx<Self>) -> Reply<()> {
        let began = std::time::Instant::now();
        while began.elapsed() < spin.0 {
            std::hint::spin_loop();
        }
        if spin.0.is_zero() {
            ctx.stop(Exit::Normal);
        }
        ().into()
    }
}
struct Quick(u64);
impl Message for Quick {
    type Reply = u64;
}
impl Handler<Quick> for Slow {
    fn handle(&mut self, quick: Quick, _: &mut Ctx<Self>) -> Reply<u64> {
        quick.0.into()
    }
}

async fn slow(system: &System) -> Ref<Slow> {
    let child = ChildSpec::actor("slow", || Slow).restart(Restart::Temporary);
    system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
    system.lookup("s/slow").expect("lives")
}

fn row(system: &System, path: &str) -> ActorInfo {
    system.tree().into_iter().find(|row| row.path == path).expect("in the tree")
}

#[test]
fn an_observer_sees_messages_and_busy_time_by_type_and_nobody_else_does() {
    simulated(|system| async move {
        let slow = slow(&system).await;
        slow.ask(Quick(1)).await.expect("handled");
        assert_eq!(row(&system, "s/slow").by_message, []);
        let observer = system.observe();
        let second = system.observe();
        drop(second);
        let spin = Duration::from_millis(3);
        for n in 0..5 {
            slow.ask(Quick(n)).await.expect("handled");
        }
        slow.ask(Spin(spin)).await.expect("handled");
        slow.ask(Spin(spin * 2)).await.expect("handled");
        let seen = observer.tree().into_iter().find(|row| row.path == "s/slow").expect("in the tree");
        assert_eq!(seen.messages, 8);
        let [busiest, other] = &seen.by_message[..] else { panic!("{seen:?}") };
        assert!(busiest.name.ends_with("::Spin") && busiest.count == 2, "{busiest:?}");
        assert!(busiest.busy_us >= 9_000 && busiest.longest_us >= 6_000, "{busiest:?}");
        assert!(other.name.ends_with("::Quick") && other.count == 5, "{other:?}");
        drop(observer);
        assert_eq!(row(&system, "s/slow").by_message, [], "nothing is kept for nobody");
        slow.ask(Quick(1)).await.expect("handled");
        assert_eq!(row(&system, "s/slow").by_message, []);
        system.shutdown().await;
    });
}

struct Block {
    entered: std::sync::mpsc::Sender<()>,
    until: std::sync::mpsc::Receiver<()>,
}
impl Message for Block {
    type Reply = ();
}
impl Handler<Block> for Slow {
    fn handle(&mut self, block: Block, _: &mut Ctx<Self>) -> Reply<()> {
        let _ = block.entered.send(());
        let _ = block.until.recv();
        ().into()
    }
}

#[tokio::test]
async fn an_observer_sees_how_old_the_oldest_message_of_a_queue_is_and_what_is_handled_now() {
    let system = support::system();
    let observer = system.observe();
    let slow = slow(&system).await;
    assert_eq!(row(&system, "s/slow").queue_oldest_ms, None);
    let (entered, inside) = std::sync::mpsc::channel();
    let (free, until) = std::sync::mpsc::channel();
    slow.tell(Block { entered, until }).expect("told");
    inside.recv().expect("it is in its handler");
    let current = row(&system, "s/slow").current.expect("in a handler");
    assert!(current.doing.ends_with("::Block"), "{current:?}");
    assert_eq!(row(&system, "s/slow").queue_oldest_ms, None, "a message that is handled waits no more");

    let before = std::time::Instant::now();
    slow.tell(Quick(1)).expect("told");
    let after = std::time::Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    slow.tell(Quick(2)).expect("told");
    // Whatever the machine does meanwhile, the age lies between these two.
    let at_least = after.elapsed().as_millis();
    let age = u128::from(row(&system, "s/slow").queue_oldest_ms.expect("two wait"));
    let at_most = before.elapsed().as_millis();
    assert!(at_least <= age && age <= at_most, "{at_least} {age} {at_most}");
    drop(free);
    slow.ask(Quick(3)).await.expect("handled");
    // An answer is there before its handler has returned; the next one is not.
    slow.ask(Quick(4)).await.expect("handled");
    let seen = row(&system, "s/slow");
    assert_eq!((seen.queue_len, seen.queue_oldest_ms), (0, None));
    let quick = seen.by_message.iter().find(|message| message.name.ends_with("::Quick")).expect("handled");
    assert!(quick.count >= 3 && u128::from(quick.waited_us) >= at_least * 1_000, "{quick:?}");
    system.shutdown().await;
    drop(observer);
}

#[test]
fn messages_that_are_never_handled_leave_the_queue_of_an_observed_actor_too() {
    simulated(|system| async move {
        let observer = system.observe();
        let slow = slow(&system).await;
        // Taken back while it waits: the stamp goes with the question when its turn comes, and the actor lives on.
        assert!(slow.ask(Quick(0)).now_or_never().is_none());
        assert_eq!(row(&system, "s/slow").queue_oldest_ms, Some(0));
        slow.ask(Quick(1)).await.expect("handled");
        slow.ask(Quick(2)).await.expect("handled");
        let seen = row(&system, "s/slow");
        assert_eq!((seen.queue_len, seen.queue_oldest_ms), (0, None));

        let asked = tokio::task::spawn_local({
            let slow = slow.clone();
            async move { slow.ask(Quick(3)).await }
        });
        slow.tell(Spin(Duration::ZERO)).expect("told");
        for n in 0..10 {
            slow.tell(Quick(n)).expect("told");
        }
        assert_eq!(row(&system, "s/slow").queue_oldest_ms, Some(0));
        assert_eq!(slow.pid().exited().await, Exit::Normal);
        assert!(asked.await.expect("joined").is_err());
        assert!(!observer.tree().iter().any(|row| row.path == "s/slow"), "it is forgotten");
        system.shutdown().await;
    });
}

#[test]
fn messages_that_are_pushed_out_or_left_behind_leave_the_queue_of_an_observed_actor_too() {
    simulated(|system| async move {
        let _observer = system.observe();
        let child = ChildSpec::actor("slow", || Slow).mailbox(2).overflow(Overflow::DropOldest).keep_mailbox();
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(child);
        system.start(spec).await.expect("started");
        let slow = system.named::<Slow>("s/slow");
        for n in 0..3 {
            slow.tell(Quick(n)).expect("told");
        }
        assert_eq!(row(&system, "s/slow").queue_len, 2, "the first was pushed out");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seen = row(&system, "s/slow");
        assert_eq!((seen.messages, seen.queue_len, seen.queue_oldest_ms), (2, 0, None));
        slow.tell(Spin(Duration::ZERO)).expect("told");
        slow.tell(Quick(4)).expect("told");
        tokio::time::sleep(Duration::from_secs(1)).await;
        // The next incarnation has handled what the first one left behind.
        let seen = row(&system, "s/slow");
        assert_eq!((seen.restarts, seen.messages, seen.queue_len, seen.queue_oldest_ms), (1, 1, 0, None));
        system.shutdown().await;
    });
}

// ---- the past ------------------------------------------------------------------------------------------------------------------

#[test]
fn the_last_exits_are_kept_with_their_place_and_age() {
    simulated(|system| async move {
        let log = Log::default();
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(probe("a", &log));
        system.start(spec).await.expect("started");
        assert_eq!(row(&system, "s/a").last_exits, []);
        let mut ids = Vec::new();
        for _ in 0..LAST_EXITS + 2 {
            ids.push(row(&system, "s/a").id.expect("lives"));
            tell(&system, "s/a", Do::Panic).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        ids.push(row(&system, "s/a").id.expect("lives"));
        system.lookup::<support::Probe>("s/a").expect("lives").stop(Exit::Error("enough".into()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seen = row(&system, "s/a");
        ids.reverse();
        assert_eq!(seen.last_exits.iter().map(|past| past.id).collect::<Vec<_>>(), ids[..LAST_EXITS]);
        assert_eq!(seen.last_exits[0].exit, Exit::Error("enough".into()));
        assert_eq!(seen.last_exit.as_ref(), Some(&seen.last_exits[0].exit));
        for (i, past) in seen.last_exits.iter().enumerate() {
            assert_eq!(past.ago_ms, 1_000 * (1 + i as u64));
            if i > 0 {
                assert!(
                    matches!(&past.exit, Exit::Panic { message, location: Some(at) } if message == "asked to" && at.contains("support/mod.rs:"))
                );
            }
        }
        system.shutdown().await;
    });
}

#[test]
fn a_row_of_a_node_that_knows_less_can_be_read() {
    let old = r#"{"path":"a","kind":"Worker","type_name":"T","state":"Running","id":1,"uptime_ms":2,"restarts":3,
        "last_exit":"Shutdown","queue_len":4,"queue_max":5,"messages":6}"#;
    let row: ActorInfo = serde_json::from_str(old).expect("read");
    assert_eq!((row.last_exits.len(), row.queue_oldest_ms, row.by_message.len()), (0, None, 0));
    assert_eq!((row.messages, row.current, row.stuck), (6, None, None));
}

// ---- metrics -------------------------------------------------------------------------------------------------------------------

/// Keeps what is recorded, by name and labels.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<String, Vec<f64>>>>);

struct Series(Recorder, String);

impl Series {
    fn put(&self, value: f64) {
        self.0.0.lock().expect("no panic").entry(self.1.clone()).or_default().push(value);
    }
}

impl metrics::CounterFn for Series {
    fn increment(&self, _: u64) {
        panic!("counters are set from the accounts");
    }
    fn absolute(&self, value: u64) {
        self.put(value as f64);
    }
}
impl metrics::GaugeFn for Series {
    fn increment(&self, _: f64) {
        panic!("gauges are set");
    }
    fn decrement(&self, _: f64) {
        panic!("gauges are set");
    }
    fn set(&self, value: f64) {
        self.put(value);
    }
}
impl metrics::HistogramFn for Series {
    fn record(&self, value: f64) {
        self.put(value);
    }
}

impl Recorder {
    fn series(&self, key: &metrics::Key) -> Arc<Series> {
        let labels = key.labels().map(|label| format!("{}={}", label.key(), short(label.value())));
        let name = std::iter::once(key.name().to_owned()).chain(labels).collect::<Vec<_>>().join(" ");
        Arc::new(Series(self.clone(), name))
    }

    /// Records once, and takes what came.
    fn take(&self, system: &System) -> BTreeMap<String, Vec<f64>> {
        metrics::with_local_recorder(self, || system.record_metrics());
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

fn short(type_name: &str) -> &str {
    type_name.rsplit("::").next().unwrap_or(type_name)
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(self.series(key))
    }
    fn register_gauge(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::from_arc(self.series(key))
    }
    fn register_histogram(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::from_arc(self.series(key))
    }
}

#[test]
fn metrics_are_recorded_on_demand_and_counters_never_fall() {
    simulated(|system| async move {
        let recorder = Recorder::default();
        let log = Log::default();
        let spec = SupervisorSpec::new("s", Strategy::Dynamic).unlimited();
        let supervisor = system.start(spec.child(probe("a", &log)).child(probe("b", &log))).await.expect("started");
        let observer = system.observe();
        tell(&system, "s/a", Do::Ping).await;
        tell(&system, "s/b", Do::Panic).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let a = system.lookup::<support::Probe>("s/a").expect("lives");
        a.tell(Do::Ping).expect("told");
        a.tell(Do::Ping).expect("told");
        let seen = recorder.take(&system);
        let of = |name: &str| seen.get(&format!("phalanx_actors_{name}")).cloned().unwrap_or_default();
        assert_eq!(of("running system=t type=Probe"), [2.0]);
        assert_eq!(of("running system=t type=dynamic"), [1.0]);
        assert_eq!(of("messages_total system=t type=Probe"), [2.0]);
        assert_eq!(of("restarts_total system=t type=Probe"), [1.0]);
        assert_eq!(of("exits_total system=t type=Probe reason=panic"), [1.0]);
        assert_eq!(of("queued_messages system=t type=Probe"), [2.0]);
        let mut queues = of("queue_length system=t type=Probe");
        queues.sort_by(f64::total_cmp);
        assert_eq!(queues, [0.0, 2.0]);
        assert_eq!(of("handled_total system=t type=Probe message=Do"), [2.0]);
        assert_eq!(of("busy_microseconds_total system=t type=Probe message=Do").len(), 1);
        assert_eq!(of("waited_microseconds_total system=t type=Probe message=Do").len(), 1);

        // What has ended, and what nobody observes any more, stays in the accounts.
        tell(&system, "s/a", Do::Ping).await;
        drop(observer);
        supervisor.terminate_child("a").await.expect("terminated");
        let seen = recorder.take(&system);
        let of = |name: &str| seen.get(&format!("phalanx_actors_{name}")).cloned().unwrap_or_default();
        assert_eq!(of("running system=t type=Probe"), [1.0]);
        assert_eq!(of("messages_total system=t type=Probe"), [5.0]);
        assert_eq!(of("exits_total system=t type=Probe reason=shutdown"), [1.0]);
        assert_eq!(of("exits_total system=t type=Probe reason=panic"), [1.0]);
        assert_eq!(of("handled_total system=t type=Probe message=Do"), [5.0]);
        system.shutdown().await;
    });
}
