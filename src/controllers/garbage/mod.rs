//! The garbage collector: deletes what nobody owns any more.

pub mod core;
