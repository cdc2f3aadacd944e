//! The garbage collector: deletes what nobody owns any more.

mod collector;
pub mod core;

pub use collector::GarbageCollector;
