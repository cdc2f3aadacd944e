//! Node lifecycle: what a lost node means for its pods, and evictions by taint.
//!
//! [`node_lost`] and [`node_back`] are called by whoever watches the nodes' leases, which alone decides that a node is
//! lost. [`Nodes`] drives pods away that do not tolerate a NoExecute taint, those of a lost node that asked for time too.

pub mod core;
mod lost;
mod reconciler;

pub use lost::{Loss, node_back, node_lost};
pub use reconciler::Nodes;
