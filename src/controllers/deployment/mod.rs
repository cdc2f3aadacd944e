//! Deployments: roll pods from one template to the next through ReplicaSets.

pub mod core;
mod reconciler;
mod rollout;
mod status;
mod template;

pub use reconciler::Deployments;
