//! What surrounds a handler while it runs: the span of its message, and a guard that makes its panic the failure of this one message.
//! Must never let a panic pass. Used by whoever runs handlers.

use std::{any::Any, future::Future, panic::AssertUnwindSafe};

use futures::FutureExt;
use phalanx_actors::Trace;

use crate::registry::Failure;

/// Handles a message in the span that it was sent in, if any.
pub(crate) async fn traced<F: Future>(trace: Option<&str>, handling: F) -> F::Output {
    match trace.and_then(|trace| trace.parse::<Trace>().ok()) {
        Some(trace) => trace.scope_async(handling).await,
        None => handling.await,
    }
}

/// Runs a handler so that its panic is a failure of this one message.
pub(crate) async fn guarded<T, F: Future<Output = Result<T, Failure>>>(
    handler: impl FnOnce() -> F,
) -> Result<T, Failure> {
    let handling = async { handler().await };
    AssertUnwindSafe(handling).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// What a handler's panic is to whoever sent the message.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let message = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into());
    tracing::error!("a handler panicked: {message}");
    Failure::Failed(format!("the handler panicked: {message}"))
}
