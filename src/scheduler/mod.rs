//! The scheduler: gives every waiting pod a node.
//!
//! [`core`] decides where, [`queue`] when; [`actor`] feeds both from the informers and writes bindings. It runs on the
//! leader only, under `control/scheduler`, and rebuilds itself from the informers when it is restarted.

pub mod actor;
pub mod core;
pub mod fit;
pub mod queue;
pub mod requests;
