//! What rides with a message besides the message, while someone looks: whose work it is.
//!
//! Must never cost more than a look at one thread-local value while nobody looks: the note is an `Option<Box<..>>` of the envelope. Written by
//! [`crate::Ref`], read by the shell.

use crate::pid::Pid;
use crate::trace::{Scope, Trace};
use tracing::Level;
use tracing::span::EnteredSpan;

/// The target of the spans that are opened around handlers, at level `DEBUG`.
pub const MESSAGE_SPANS: &str = "phalanx_actors::message";

/// Rides in the envelope.
pub(crate) struct Note {
    /// The sender's span.
    trace: Option<Trace>,
}

impl Note {
    /// For a message that is sent now; mostly none.
    #[inline]
    pub(crate) fn for_message() -> Option<Box<Note>> {
        let trace = Trace::current()?;
        Some(Box::new(Note { trace: Some(trace) }))
    }
}

/// A handler that someone looks at, while it runs.
pub(crate) struct Looked {
    // Dropped in this order: the span is left before the trace is.
    _span: Option<EnteredSpan>,
    _scope: Scope,
}

impl Looked {
    /// Whether a handler needs one: it was sent under a trace, or spans are wanted.
    #[inline]
    pub(crate) fn wanted(note: &Option<Box<Note>>) -> bool {
        note.is_some() || spans_wanted()
    }

    #[cold]
    pub(crate) fn enter(pid: &Pid, note: Option<Box<Note>>, message: &'static str) -> Box<Looked> {
        let sender = note.and_then(|note| note.trace);
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
        Box::new(Looked { _span: span, _scope: Scope::enter(trace) })
    }
}

#[inline]
fn spans_wanted() -> bool {
    tracing::span_enabled!(target: MESSAGE_SPANS, Level::DEBUG)
}
