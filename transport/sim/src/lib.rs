//! The transport's network, simulated: whole transports as hosts of a [turmoil](https://docs.rs/turmoil) simulation, in
//! virtual time on one thread. Everything follows from the simulation's seed, so what a seed shows can be seen again.
//!
//! ```
//! use std::time::Duration;
//! use phalanx_transport::Transport;
//! use phalanx_transport_sim::{Authority, PORT, addr, config};
//!
//! let authority = Authority::new("test");
//! let mut sim = turmoil::Builder::new().rng_seed(1).udp_capacity(1_024).build();
//! for node in ["n1", "n2"] {
//!     let authority = authority.clone();
//!     let other = if node == "n1" { "n2" } else { "n1" };
//!     sim.client(node, async move {
//!         let transport = Transport::start(config(&authority, node, 1, 1))?;
//!         transport.set_peer(other, addr(other));
//!         while !transport.is_connected(other) {
//!             tokio::time::sleep(Duration::from_millis(10)).await;
//!         }
//!         Ok(())
//!     });
//! }
//! sim.run().expect("both connect");
//! assert!(sim.elapsed() < Duration::from_secs(1));
//! ```
//!
//! Of turmoil come latency, partitions and cuts of one direction, crashes and restarts; of
//! [`Transport::faults`](phalanx_transport::Transport::faults) loss, reordering and doubled packets. A host that
//! crashes sends nothing more, as a machine that lost its power. What is *not* simulated: real threads (a race between two
//! threads is not found here), the system's clock (certificates are judged by it), and the bytes of keys.
//!
//! For tests and simulations only: certificates made here are worth nothing.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod authority;
mod network;
mod stage;

pub use authority::Authority;
pub use network::SimNetwork;
pub use stage::{Node, Stage, Started};

use std::{net::SocketAddr, sync::Arc};

use phalanx_transport::TransportConfig;
use tokio::runtime::Handle;

/// The UDP port of every simulated node; each host has an address of its own.
pub const PORT: u16 = 7_443;

/// Where the transport of a host is, by the host's name in the simulation.
///
/// # Panics
/// Outside of a simulation.
pub fn addr(host: &str) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(host), PORT)
}

/// The configuration of a transport that lives wholly on the simulated host that calls this: network, timers, handlers and
/// randomness. Each node and each boot of it should have a seed of its own, drawn from the simulation's; a mix of all
/// three is made here.
///
/// # Panics
/// Outside of a simulated host.
pub fn config(authority: &Authority, node: &str, incarnation: u64, seed: u64) -> TransportConfig {
    let any = SocketAddr::from(([0, 0, 0, 0], PORT));
    let identity = authority.identity(node);
    let mut config =
        TransportConfig::new(authority.cluster(), node, incarnation, any, identity, vec![authority.root()]);
    config.driver = Some(Handle::current());
    config.handlers = Some(Handle::current());
    config.network = Arc::new(SimNetwork);
    config.seed = Some(mix(seed, node, incarnation));
    config
}

/// FNV-1a, for std's hasher may change with its version.
fn mix(seed: u64, node: &str, incarnation: u64) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(incarnation.to_le_bytes()).chain(node.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
