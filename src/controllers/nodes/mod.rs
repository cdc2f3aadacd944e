//! Node lifecycle: what a lost node means for its pods, and evictions by taint.

pub mod core;
