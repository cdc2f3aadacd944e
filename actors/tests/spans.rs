//! Spans that follow a message from sender to receiver, also between machines.
//!
//! One test, alone in its process: while it is the only one, a subscriber of one thread decides for all threads which spans are wanted.

use phalanx_actors::*;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Runs a test in simulated time, on one thread.
fn simulated<F: Future<Output = ()>>(test: impl FnOnce(System) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
    tokio::task::LocalSet::new()
        .block_on(&runtime, async { test(System::builder("t").local().build().expect("system")).await });
}

/// Writes down the fields of each span that it is shown, and which span each event is in.
#[derive(Clone, Default)]
struct Spans {
    next: Arc<AtomicU64>,
    fields: Arc<Mutex<BTreeMap<u64, BTreeMap<String, String>>>>,
    entered: Arc<Mutex<Vec<u64>>>,
    events: Arc<Mutex<Vec<Option<u64>>>>,
}

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl tracing::Subscriber for Spans {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == MESSAGE_SPANS || metadata.target() == "work"
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let id = 1 + self.next.fetch_add(1, SeqCst);
        let mut fields = BTreeMap::new();
        span.record(&mut Fields(&mut fields));
        self.fields.lock().expect("no panic").insert(id, fields);
        tracing::span::Id::from_u64(id)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        let inside = self.entered.lock().expect("no panic").last().copied();
        self.events.lock().expect("no panic").push(inside);
    }
    fn enter(&self, span: &tracing::span::Id) {
        self.entered.lock().expect("no panic").push(span.into_u64());
    }
    fn exit(&self, span: &tracing::span::Id) {
        assert_eq!(self.entered.lock().expect("no panic").pop(), Some(span.into_u64()));
    }
}

/// Works, and hands the trace over to another machine's actor as a header of text.
struct Gate(Option<mpsc::UnboundedSender<String>>);
impl Actor for Gate {}
struct Work;
impl Message for Work {
    type Reply = ();
}
impl Handler<Work> for Gate {
    fn handle(&mut self, _: Work, _: &mut Ctx<Self>) -> Reply<()> {
        tracing::info!(target: "work", "at it");
        if let (Some(wire), Some(trace)) = (&self.0, Trace::current()) {
            let _ = wire.send(trace.to_string());
        }
        ().into()
    }
}

#[test]
fn spans_follow_a_message_from_sender_to_receiver_and_to_another_machine() {
    let spans = Spans::default();
    let own = spans.clone();
    simulated(|here| async move {
        let _subscribed = tracing::subscriber::set_default(own.clone());
        let there = System::builder("there").local().build().expect("system");
        let (wire, mut arriving) = mpsc::unbounded_channel();
        let gate = |wire: Option<mpsc::UnboundedSender<String>>| {
            let child = ChildSpec::actor("gate", move || Gate(wire.clone()));
            SupervisorSpec::new("s", Strategy::OneForOne).child(child)
        };
        here.start(gate(Some(wire))).await.expect("started");
        there.start(gate(None)).await.expect("started");
        // Under no trace: one begins with it.
        here.named::<Gate>("s/gate").tell(Work).expect("told");
        let header = arriving.recv().await.expect("sent");
        let trace: Trace = header.parse().expect("a traceparent");
        let remote = there.named::<Gate>("s/gate");
        trace.scope_async(async { remote.ask(Work).await }).await.expect("handled");

        let fields = own.fields.lock().expect("no panic").clone();
        let field = |span: u64, name: &str| fields[&span].get(name).cloned().unwrap_or_default();
        assert_eq!(fields.len(), 2, "a span for each handler");
        for span in [1, 2] {
            assert_eq!(field(span, "actor"), "s/gate");
            assert!(field(span, "message").ends_with("::Work"), "{}", field(span, "message"));
            assert_eq!(field(span, "trace_id"), format!("{:032x}", trace.trace_id()));
        }
        assert_eq!(field(1, "parent_id"), "");
        assert_eq!(field(2, "parent_id"), field(1, "span_id"), "the receiver's span hangs below the sender's");
        assert_ne!(field(2, "span_id"), field(1, "span_id"));
        assert_eq!(*own.events.lock().expect("no panic"), [Some(1), Some(2)], "what a handler logs is in its span");
        assert!(own.entered.lock().expect("no panic").is_empty());
        there.shutdown().await;
        here.shutdown().await;
    });
    assert_eq!(spans.fields.lock().expect("no panic").len(), 2);
}
