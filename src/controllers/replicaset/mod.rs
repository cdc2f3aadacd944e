//! ReplicaSets: keep the wanted number of pods, whatever happens to them.

pub mod core;
