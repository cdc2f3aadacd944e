//! What a transport is started with: who it is, whom it trusts, and every limit and time that it keeps.
//! Nothing here does I/O.

use std::{net::SocketAddr, sync::Arc};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Handle;

use crate::{
    event::NodeName,
    frame::MAX_FRAME_BYTES,
    network::{Network, UdpNetwork},
};

/// A node's certificate chain (leaf first) and the key of the leaf.
///
/// The leaf carries the DNS name that [`server_name`](crate::server_name) gives for the node, and both extended key
/// usages, server and client authentication, for a node dials as well as accepts.
pub struct Identity {
    /// Leaf first, then intermediates; the root is not needed.
    pub cert_chain: Vec<CertificateDer<'static>>,
    /// Private key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { cert_chain: self.cert_chain.clone(), key: self.key.clone_key() }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is left out on purpose: configurations end up in logs.
        f.debug_struct("Identity").field("cert_chain", &self.cert_chain.len()).finish_non_exhaustive()
    }
}

/// Everything [`Transport::start`](crate::Transport::start) needs.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Cluster name: one RFC 1123 label. Peers of another cluster are refused.
    pub cluster: String,
    /// This node's name: an RFC 1123 subdomain, as Kubernetes demands of node names.
    pub node: NodeName,
    /// Number of this boot of the node; must grow with each boot. A peer keeps the newest that it has seen and refuses
    /// older ones.
    pub incarnation: u64,
    /// UDP address to bind; port 0 picks a free one.
    pub bind: SocketAddr,
    /// This node's certificate and key.
    pub identity: Identity,
    /// Roots that a peer's certificate must lead to: the cluster's CA, or two during a rotation.
    pub trust: Vec<CertificateDer<'static>>,
    /// Bounds of queues, frames and streams.
    pub limits: Limits,
    /// Timeouts and intervals.
    pub timings: Timings,
    /// Runtime on which message and stream handlers run; `None` takes the runtime that `start` is called on.
    pub handlers: Option<Handle>,
    /// Runtime on which the endpoint itself runs; `None` starts a thread of its own, named `transport`, so that no busy
    /// handler delays a lease. A simulation gives its own single-threaded runtime.
    pub driver: Option<Handle>,
    /// Where packets go: UDP, or a simulated network.
    pub network: Arc<dyn Network>,
    /// What the transport's own randomness comes from (jitter of dials, QUIC's ids, which packets faults hit); `None`
    /// takes the operating system's. Only for simulations: a seed that is known makes connection ids predictable.
    pub seed: Option<u64>,
}

impl TransportConfig {
    /// A configuration with default limits and times.
    pub fn new(
        cluster: impl Into<String>,
        node: impl Into<NodeName>,
        incarnation: u64,
        bind: SocketAddr,
        identity: Identity,
        trust: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self {
            cluster: cluster.into(),
            node: node.into(),
            incarnation,
            bind,
            identity,
            trust,
            limits: Limits::default(),
            timings: Timings::default(),
            handlers: None,
            driver: None,
            network: Arc::new(UdpNetwork),
            seed: None,
        }
    }
}

/// Bounds; the field's documentation says what happens at the bound.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest frame, sent or taken, in bytes (tells, asks, replies, stream headers). A larger message is
    /// `TooLarge` at the sender; a peer that announces more loses its connection.
    pub frame_bytes: usize,
    /// Tells waiting to be written to one peer; more are `SendError::Full`.
    pub outbox_messages: usize,
    /// Bytes waiting to be written to one peer; more are `SendError::Full`.
    pub outbox_bytes: usize,
    /// Control tells waiting to be written to one peer; more are `SendError::Full`.
    pub control_outbox_messages: usize,
    /// Tells from one peer waiting for the handler of one path. When full the lane waits `inbox_wait_ms`, then what
    /// comes for that path is dropped, counted and logged until there is room again.
    pub inbox_messages: usize,
    /// Bytes waiting there; the same happens.
    pub inbox_bytes: usize,
    /// Asks in flight to one peer; further ones wait, at most until their deadline.
    pub asks_in_flight: u32,
    /// Bytes of requests from one peer being read or handled; further requests wait unread.
    pub ask_bytes: usize,
    /// Open streams to one peer; further ones wait, at most `open_stream_ms`.
    pub streams_open: u32,
    /// Monitors held on one peer; a further one is down at once with `NoConnection`.
    pub monitors: usize,
    /// Nodes remembered; a node beyond that is refused.
    pub peers: usize,
    /// Inbound handshakes going on; further ones are turned away. From half of it, a dialer must prove its address.
    pub handshakes: usize,
    /// Bytes a peer may have sent on one stream that its reader has not taken; the sender waits.
    pub stream_window_bytes: u32,
    /// Datagram bytes waiting to be sent to one peer; the oldest are dropped.
    pub datagram_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes: MAX_FRAME_BYTES,
            outbox_messages: 65_536,
            outbox_bytes: 16 << 20,
            control_outbox_messages: 4_096,
            inbox_messages: 4_096,
            inbox_bytes: 16 << 20,
            asks_in_flight: 512,
            ask_bytes: 64 << 20,
            streams_open: 64,
            monitors: 262_144,
            peers: 10_000,
            handshakes: 256,
            stream_window_bytes: 512 << 10,
            datagram_bytes: 128 << 10,
        }
    }
}

/// Timeouts and intervals, all in milliseconds.
#[derive(Clone, Debug)]
pub struct Timings {
    /// A silent peer is sent a packet this often.
    pub keep_alive_ms: u64,
    /// A peer from which nothing came for so long is lost. A killed process is only seen by this: nothing else is sent.
    pub idle_timeout_ms: u64,
    /// A dial (handshake and hello together) is given up after this.
    pub connect_timeout_ms: u64,
    /// First pause between dials; doubles with each failure.
    pub backoff_initial_ms: u64,
    /// Longest pause between dials.
    pub backoff_max_ms: u64,
    /// `open_stream` gives up after this.
    pub open_stream_ms: u64,
    /// How long a full inbox holds up its lane before it starts to drop.
    pub inbox_wait_ms: u64,
    /// `close` waits this long for what was already told to be written out.
    pub close_flush_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            keep_alive_ms: 250,
            idle_timeout_ms: 1_000,
            connect_timeout_ms: 2_000,
            backoff_initial_ms: 50,
            backoff_max_ms: 2_000,
            open_stream_ms: 10_000,
            inbox_wait_ms: 1_000,
            close_flush_ms: 500,
        }
    }
}
