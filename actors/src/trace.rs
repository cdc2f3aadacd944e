//! Whose work a piece of work is: the trace context of W3C Trace Context (level 1), carried from sender to receiver with each message.
//!
//! Must never cost anything while nobody traces: without a current trace, a sender looks at one thread-local value. Read by
//! [`crate::Ref`], entered by the shell around each handler, put into frames by whoever carries messages between machines.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::num::{NonZeroU64, NonZeroU128};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

/// The length of a `traceparent` of version 00, in bytes.
pub const TRACEPARENT_LEN: usize = 55;
/// The one flag that version 00 defines: whoever sent this may have recorded it.
const SAMPLED: u8 = 1;

thread_local! {
    static CURRENT: Cell<Option<Trace>> = const { Cell::new(None) };
    /// Whether there is one: all that most senders look at.
    static ANY: Cell<bool> = const { Cell::new(false) };
    static IDS: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
}

/// One span of a trace (W3C `traceparent`). A message that is sent while one is current carries it; its handler runs in a child of it.
///
/// ```
/// use phalanx_actors::Trace;
///
/// let trace: Trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
/// assert_eq!(Trace::current(), None);
/// let header = trace.scope(|| Trace::current().map(|trace| trace.to_string()));
/// assert_eq!(header.as_deref(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
/// assert_eq!(trace.child().trace_id(), trace.trace_id());
/// # Ok::<(), phalanx_actors::TraceError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trace {
    trace_id: NonZeroU128,
    span_id: NonZeroU64,
    sampled: bool,
}

/// A text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a W3C traceparent: expected `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, in lower case, no id all zero"
)]
pub struct TraceError;

impl Trace {
    /// A new trace with its first span, sampled.
    pub fn root() -> Self {
        let high = u128::from(random().get()) << 64;
        Trace { trace_id: NonZeroU128::from(random()) | high, span_id: random(), sampled: true }
    }

    /// A new span of the same trace.
    pub fn child(&self) -> Self {
        Trace { span_id: random(), ..*self }
    }

    /// The whole that the span is a part of.
    pub fn trace_id(&self) -> u128 {
        self.trace_id.get()
    }

    /// The span itself; the parent of what it sends.
    pub fn span_id(&self) -> u64 {
        self.span_id.get()
    }

    /// Whether whoever began the trace records it. Passed on as it came.
    pub fn sampled(&self) -> bool {
        self.sampled
    }

    /// The span that the caller works in: that of the handler that runs, or of the [`Trace::scope`] around it.
    pub fn current() -> Option<Trace> {
        CURRENT.with(Cell::get)
    }

    /// Whether there is a current one.
    #[inline]
    pub(crate) fn any() -> bool {
        ANY.get()
    }

    /// Runs `f` in this span: the messages that it sends, and the futures and timers that it gives to its actor, carry it on.
    pub fn scope<T>(self, f: impl FnOnce() -> T) -> T {
        let _entered = Scope::enter(Some(self));
        f()
    }

    /// As [`Trace::scope`], around each poll of a future.
    pub fn scope_async<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        Scoped { trace: self, future: Box::pin(future) }
    }
}

/// Makes a trace, or none, the current one of this thread until it is dropped.
pub(crate) struct Scope(Option<Trace>);

impl Scope {
    pub(crate) fn enter(trace: Option<Trace>) -> Self {
        Scope(Scope::replace(trace))
    }

    fn replace(trace: Option<Trace>) -> Option<Trace> {
        ANY.with(|any| any.set(trace.is_some()));
        CURRENT.with(|current| current.replace(trace))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        Scope::replace(self.0);
    }
}

struct Scoped<F> {
    trace: Trace,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _entered = Scope::enter(Some(self.trace));
        self.future.as_mut().poll(cx)
    }
}

/// Unlike any other with near certainty, and no secret: splitmix64 from a random start on each thread.
fn random() -> NonZeroU64 {
    IDS.with(|state| {
        loop {
            let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            state.set(next);
            let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            if let Some(id) = NonZeroU64::new(mixed ^ (mixed >> 31)) {
                return id;
            }
        }
    })
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled) * SAMPLED)
    }
}

impl FromStr for Trace {
    type Err = TraceError;

    /// Accepts also later versions, of which it reads what version 00 has, as the recommendation asks.
    fn from_str(text: &str) -> Result<Self, TraceError> {
        let version = field(text, 0, 2)?;
        let more = text.len() > TRACEPARENT_LEN;
        if version == 0xff || more && (version == 0 || text.as_bytes()[TRACEPARENT_LEN] != b'-') {
            return Err(TraceError);
        }
        for dash in [2, 35, 52] {
            if text.as_bytes().get(dash) != Some(&b'-') {
                return Err(TraceError);
            }
        }
        let span_id = u64::try_from(field(text, 36, 52)?).map_err(|_| TraceError)?;
        Ok(Trace {
            trace_id: NonZeroU128::new(field(text, 3, 35)?).ok_or(TraceError)?,
            span_id: NonZeroU64::new(span_id).ok_or(TraceError)?,
            sampled: field(text, 53, 55)? & u128::from(SAMPLED) != 0,
        })
    }
}

/// Hexadecimal digits in lower case; nothing else is allowed.
fn field(text: &str, from: usize, to: usize) -> Result<u128, TraceError> {
    let digits = text.get(from..to).ok_or(TraceError)?;
    if !digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(TraceError);
    }
    u128::from_str_radix(digits, 16).map_err(|_| TraceError)
}

impl Serialize for Trace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Trace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_as_the_recommendation_says() {
        let trace: Trace = HEADER.parse().expect("the recommendation's own example");
        assert_eq!(trace.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(trace.span_id(), 0x00f0_67aa_0ba9_02b7);
        assert!(trace.sampled());
        assert_eq!(trace.to_string(), HEADER);
        let unsampled = HEADER.replace("-01", "-00");
        assert_eq!(unsampled.parse::<Trace>().expect("unsampled").to_string(), unsampled);
        // Flags that version 00 does not define are not passed on.
        assert_eq!(HEADER.replace("-01", "-ff").parse::<Trace>(), Ok(trace));
        // A later version may have more behind a dash.
        assert_eq!(HEADER.replacen("00", "cc", 1).parse::<Trace>(), Ok(trace));
        assert_eq!(format!("{}-what-else", HEADER.replacen("00", "cc", 1)).parse::<Trace>(), Ok(trace));
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let zero_trace = HEADER.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_span = HEADER.replace("00f067aa0ba902b7", &"0".repeat(16));
        let upper = HEADER.to_uppercase();
        let long = format!("{HEADER}-more");
        let later_long = format!("cc{}.more", &HEADER[2..]);
        let forbidden = HEADER.replacen("00", "ff", 1);
        let signed = HEADER.replace("-4b", "-+b");
        let no_dash = HEADER.replace('-', "_");
        let short = &HEADER[..54];
        let wide = HEADER.replace("36-", "3é-");
        for text in
            ["", "00", short, &zero_trace, &zero_span, &upper, &long, &later_long, &forbidden, &signed, &no_dash, &wide]
        {
            assert_eq!(text.parse::<Trace>(), Err(TraceError), "{text}");
        }
    }

    #[test]
    fn a_scope_ends_also_with_a_panic_and_gives_back_the_one_around_it() {
        let (outer, inner) = (Trace::root(), Trace::root());
        outer.scope(|| {
            assert!(std::panic::catch_unwind(|| inner.scope(|| std::panic::resume_unwind(Box::new("out")))).is_err());
            assert_eq!(Trace::current(), Some(outer));
        });
        assert_eq!(Trace::current(), None);
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let root = Trace::root();
        let child = root.child();
        assert_eq!((child.trace_id(), child.sampled()), (root.trace_id(), root.sampled()));
        assert_ne!(child.span_id(), root.span_id());
        assert_ne!(Trace::root().trace_id(), root.trace_id());
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_so_that_it_reads_the_same(text in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?") {
            if let Ok(trace) = text.parse::<Trace>() {
                prop_assert_eq!(trace.to_string().parse::<Trace>(), Ok(trace));
            }
        }

        #[test]
        fn no_text_is_too_odd_to_be_refused_in_order(text in "\\PC{0,80}") {
            let _ = text.parse::<Trace>();
        }
    }
}
