//! Actor messages between machines over QUIC.
//!
//! One [`Transport`] is one node of one cluster: it keeps a mutually authenticated QUIC connection to each peer and
//! carries tells, asks, monitors, streams and datagrams over it. It knows nodes, incarnations and paths; it must never
//! know what a path means (no pods, no leases). Called by everything in Phalanx that talks to another machine.
//!
//! ```text
//!  tell ──► outbox ──► tells lane (one ordered stream) ─────► inbox of the path ──► handler
//!  ask ───► a stream of its own, reset when the asker gives up ────────────────────► handler
//!  monitor, tell_control ──► control lane (first stream, highest priority) ──► Down, inbox
//!  pid of a reference, link, stop, kill ──► the same lane ──► the actor's own signals
//!  open_stream ──► a stream of its own, lowest priority ───────────────────────────► handler
//!  datagram ──► QUIC datagram, may be lost ──────────────► handler, inline on the transport's thread
//! ```
//!
//! Three ways to reach what is on another node: a path with handlers (`serve`, `ask`, `tell`), an actor at a path
//! ([`RemoteNamed`]), one incarnation of an actor ([`RemoteRef`]). And to reach whoever is in a group, wherever: [`Transport::spread`].
//!
//! Two nodes in one process, with a CA made on the spot:
//! ```
//! use phalanx_transport::{Identity, Remote, Transport, TransportConfig, server_name};
//! use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
//! use rustls::pki_types::PrivateKeyDer;
//! use serde::{Deserialize, Serialize};
//! use std::{error::Error, time::Duration};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Ping(u64);
//!
//! impl Remote for Ping {
//!     const NAME: &'static str = "example/Ping";
//!     type Reply = u64;
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn Error>> {
//!     let ca_key = KeyPair::generate()?;
//!     let mut params = CertificateParams::new(vec![])?;
//!     params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
//!     let root = params.self_signed(&ca_key)?.der().clone();
//!     let ca = Issuer::new(params, ca_key);
//!
//!     let start = |node: &str| -> Result<Transport, Box<dyn Error>> {
//!         let mut params = CertificateParams::new(vec![server_name("prod", node)])?;
//!         // A node dials as well as accepts.
//!         params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
//!         let key = KeyPair::generate()?;
//!         let cert_chain = vec![params.signed_by(&key, &ca)?.der().clone()];
//!         let identity = Identity { cert_chain, key: PrivateKeyDer::try_from(key.serialize_der())? };
//!         let any_port = ([127, 0, 0, 1], 0).into();
//!         Ok(Transport::start(TransportConfig::new("prod", node, 1, any_port, identity, vec![root.clone()]))?)
//!     };
//!     let (n1, n2) = (start("n1")?, start("n2")?);
//!
//!     let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
//!     n2.serve::<Ping, _, _>("pings", move |peer, Ping(n)| {
//!         let heard = heard.clone();
//!         async move {
//!             heard.send((peer.node.to_string(), n)).map_err(|e| e.to_string())?;
//!             Ok(n + 1)
//!         }
//!     });
//!     n1.set_peer("n2", n2.local_addr());
//!     // An ask waits for the connection, a tell does not.
//!     assert_eq!(n1.ask("n2", "pings", &Ping(1), Duration::from_secs(10)).await?, 2);
//!     n1.tell("n2", "pings", &Ping(5))?;
//!     assert_eq!(hears.recv().await, Some(("n1".into(), 1)));
//!     assert_eq!(hears.recv().await, Some(("n1".into(), 5)));
//!
//!     n1.close().await;
//!     n2.close().await;
//!     Ok(())
//! }
//! ```
//!
//! What is promised, and what is not, stands on one page in the crate's README.
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod ask;
mod backoff;
mod config;
mod credentials;
mod decode;
mod driven;
mod endpoint;
mod error;
mod event;
mod fault;
mod fault_socket;
mod flow;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod groups;
mod guard;
mod handshakes;
mod hello;
mod inbox;
mod lane;
mod link;
mod monitor;
mod named;
mod network;
mod outbox;
mod peer;
mod random;
mod reauth;
mod receive;
mod refs;
mod registry;
mod remote;
mod renewal;
mod requests;
mod shared;
#[cfg(unix)]
mod socket;
mod standing;
mod stream;
mod tells;
mod ties;
mod tls;
mod transport;

mod watch;

pub use config::{Identity, Limits, Timings, TransportConfig};
pub use credentials::{Fingerprint, NoFingerprint, Revoked};
pub use error::{AskError, AttachError, IdentityError, Rejected, SendError, SpreadError, StartError};
pub use event::{IdentityEvent, LossReason, NodeName, Peer, PeerEvent, PeerInfo, PeerState, Refusal};
pub use fault::{Direction, Faults, Target};
pub use frame::{MAX_FRAME_BYTES, PROTOCOL_VERSION};
pub use monitor::{Down, Monitor};
pub use named::RemoteNamed;
pub use network::{Network, UdpNetwork};
pub use refs::{RemoteAddress, RemoteRef};
pub use remote::Remote;
pub use shared::{Protocol, RemoteActor};
pub use stream::{RecvStream, SendStream};
pub use tls::{ALPN, server_name};
pub use transport::Transport;

pub use phalanx_actors::Exit;
/// What `TransportConfig::clock` has to be.
pub use rustls::time_provider::TimeProvider;
// What a `Network` has to produce.
pub use quinn::{AsyncUdpSocket, UdpPoller, udp};
