//! The decisions of supervision as functions of state, event and time: no runtime, no clock, no thread.
//!
//! ```text
//!   child exits, start acks, timers, commands      ┌────────────┐     start / stop / kill a child
//!   ──────────── Event, now ─────────────────────▶ │ Supervisor │ ──── Vec<Action> ──────────────▶  driver (supervisor.rs)
//!                                                  └────────────┘     timers, replies, own exit
//! ```
//! Must never name tokio or actix. Called by the driver, and by tests without any runtime.

pub(crate) mod backoff;
pub(crate) mod child;
mod children;
mod event;
pub(crate) mod intensity;
#[cfg(test)]
mod model_test;
pub(crate) mod singleton;
#[cfg(test)]
mod singleton_test;
pub(crate) mod supervisor;
#[cfg(test)]
mod supervisor_test;
