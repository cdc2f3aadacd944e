//! The leader's side of the cluster: leases of nodes, their sessions, failover.
//!
//! Must never decide placement (that is `scheduler`) or touch containers (that is `node`). Assembled by `cluster`.

pub mod endpoint;
pub mod lease;
pub mod node;
pub mod renewal;
pub mod session;
pub mod wire;
