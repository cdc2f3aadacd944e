//! What rides with a message besides the message, while someone looks: whose work it is, and when it was sent.
//!
//! Must never cost more than a look at one thread-local value and one mark while nobody looks: the note is an `Option<Box<..>>` of the envelope. Written by
//! [`crate::Ref`], read by the shell.

use crate::observe::{Measure, Stamp};
use crate::pid::Pid;
use crate::trace::{Scope, Trace};
use std::time::Duration;
use tracing::Level;
use tracing::span::EnteredSpan;

/// The target of the spans that are opened around handlers, at level `DEBUG`.
pub const MESSAGE_SPANS: &str = "phalanx_actors::message";

/// Rides in the envelope.
pub(crate) struct Note {
    /// The sender's span.
    trace: Option<Trace>,
    stamp: Option<Stamp>,
}

impl Note {
    /// For a message that is sent to `pid` now; mostly none.
    #[inline]
    pub(crate) fn for_message(pid: &Pid) -> Option<Box<Note>> {
        let trace = Trace::current();
        if trace.is_none() && !pid.observed() {
            return None;
        }
        Some(Note::new(pid, trace))
    }

    #[cold]
    fn new(pid: &Pid, trace: Option<Trace>) -> Box<Note> {
        Box::new(Note { trace, stamp: pid.observed().then(|| Stamp::new(pid)).flatten() })
    }
}

/// A handler that someone looks at, while it runs.
pub(crate) struct Looked {
    // Dropped in this order: the span is left before the trace is.
    _measure: Option<Measure>,
    _span: Option<EnteredSpan>,
    _scope: Scope,
}

impl Looked {
    /// Whether a handler needs one: its message carries a note, its actor is observed, or spans are wanted.
    #[inline]
    pub(crate) fn wanted(pid: &Pid, note: &Option<Box<Note>>) -> bool {
        note.is_some() || pid.observed() || spans_wanted()
    }

    #[cold]
    pub(crate) fn enter(pid: &Pid, note: Option<Box<Note>>, message: &'static str) -> Box<Looked> {
        let sender = note.as_ref().and_then(|note| note.trace);
        let waited = note.as_ref().and_then(|note| note.stamp.as_ref()).map_or(Duration::ZERO, Stamp::waited);
        // It waits no more.
        drop(note);
        let spans = spans_wanted();
        let trace = match sender {
            Some(sender) => Some(sender.child()),
            // What nobody began begins here, so that the spans of what it causes hang together.
            None => spans.then(Trace::root),
        };
        let span = trace.filter(|_| spans).map(|trace| {
            tracing::debug_span!(
                target: MESSAGE_SPANS,
                "handle",
                actor = pid.path(),
                message,
                trace_id = %format_args!("{:032x}", trace.trace_id()),
                span_id = %format_args!("{:016x}", trace.span_id()),
                parent_id = sender.map(|sender| format!("{:016x}", sender.span_id())),
            )
            .entered()
        });
        let scope = Scope::enter(trace);
        let measure = pid.observed().then(|| Measure::new(pid, message, waited));
        Box::new(Looked { _measure: measure, _span: span, _scope: scope })
    }
}

#[inline]
fn spans_wanted() -> bool {
    tracing::span_enabled!(target: MESSAGE_SPANS, Level::DEBUG)
}
