//! ReplicaSets: keep the wanted number of pods, whatever happens to them.

pub mod core;
mod reconciler;

pub use reconciler::ReplicaSets;
