//! What an observer of actors sees: traces and spans that follow messages.

mod support;

use phalanx_actors::*;
use std::future::Future;
use std::time::Duration;
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
