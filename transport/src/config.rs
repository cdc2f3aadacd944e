//! What a transport is started with: who it is, whom it trusts, and every limit and time that it keeps.
//! Nothing here does I/O.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use tokio::runtime::Handle;

use crate::{
    credentials::Revoked,
    event::NodeName,
    flow::{ROUTE_BYTES, ROUTES_BYTES_MAX, ROUTES_MAX, TAKEN_BYTES_MAX},
    frame::{MAX_FRAME_BYTES, PROTOCOL_VERSION},
    network::{Network, UdpNetwork},
    outbox::URGENT_FACTOR,
    ties::LINK_BYTES,
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
    /// Newest protocol version to speak. Lower than [`PROTOCOL_VERSION`] while nodes that do not know that are to come back
    /// after an upgrade.
    pub protocol_max: u8,
    /// Where packets go: UDP, or a simulated network.
    pub network: Arc<dyn Network>,
    /// Who is not let in, from the start; see [`Transport::set_revoked`](crate::Transport::set_revoked).
    pub revoked: Revoked,
    /// The wall clock that certificates are held against. A simulation gives its own.
    pub clock: Arc<dyn TimeProvider>,
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
            protocol_max: PROTOCOL_VERSION,
            network: Arc::new(UdpNetwork),
            revoked: Revoked::default(),
            clock: Arc::new(DefaultTimeProvider),
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
    /// Bytes of tells from one peer waiting for all handlers together, with what each costs to keep; the same happens.
    pub inboxes_bytes: usize,
    /// Asks in flight to one peer; further ones wait, at most until their deadline.
    pub asks_in_flight: u32,
    /// Bytes of requests from one peer being read or handled; further requests wait unread.
    pub ask_bytes: usize,
    /// Bytes of replies to one peer that wait until it takes them; a reply beyond that is not kept, its asker is told so
    /// (`AskError::Remote`). And bytes of replies from one peer that are being read; further ones wait unread, at most until
    /// the deadline of their asks.
    pub reply_bytes: usize,
    /// Open streams to one peer; further ones wait, at most `open_stream_ms`.
    pub streams_open: u32,
    /// Monitors held on one peer; a further one is down at once with `NoConnection`.
    pub monitors: usize,
    /// Members of groups that are taken of one peer, of all groups together; further ones are not seen here, with a line in the log,
    /// until the node is connected anew and has fewer.
    pub group_members: usize,
    /// Links that actors here have made with actors of one peer; a further one is down at once with `NoConnection`. And links that
    /// a peer has made with actors here; one that makes more loses its connection.
    pub links: usize,
    /// Nodes remembered; a node beyond that is refused.
    pub peers: usize,
    /// Inbound handshakes going on; further ones are turned away. From half of it, a dialer must prove its address.
    pub handshakes: usize,
    /// The same for those from one IP address, so that one machine cannot take the places of all others.
    pub handshakes_per_address: usize,
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
            inboxes_bytes: 64 << 20,
            asks_in_flight: 512,
            ask_bytes: 64 << 20,
            reply_bytes: 64 << 20,
            streams_open: 64,
            monitors: 262_144,
            group_members: 65_536,
            links: 16_384,
            peers: 10_000,
            handshakes: 256,
            handshakes_per_address: 64,
            stream_window_bytes: 512 << 10,
            datagram_bytes: 128 << 10,
        }
    }
}

/// What a monitor costs on the side that is watched, in bytes: its entries in two tables, and a task.
const MONITOR_BYTES: usize = 1 << 10;

/// What a member of a group on another node costs here, in bytes: its recipient, and its entries in two tables.
const MEMBER_BYTES: usize = 512;

/// What a stream costs beside its data, in bytes: its task and QUIC's state.
const STREAM_BYTES: usize = 16 << 10;

impl Limits {
    /// The most memory that one peer can make this node hold, in bytes, whatever it sends and whatever it does not read:
    /// what arrived and is not taken, requests and replies, tells that wait, what is told to it, monitors, links, members of groups. A node whose
    /// certificate is not of the cluster holds nothing but a place among the `handshakes`.
    ///
    /// Not in it: what handlers keep themselves, one message up to 16 KiB for each path that is served here, and for each actor that does not
    /// take them 1,024 exits of what was linked to it.
    pub fn peer_bytes_max(&self) -> usize {
        // What it sent and we do not read, what we sent and it does not acknowledge.
        let windows = self.unread_bytes().saturating_add(self.unacknowledged_bytes());
        // What waits to be written, what waits for credit, and the control lane.
        let lanes = 2 * self.frame_bytes + self.outbox_bytes * (2 + URGENT_FACTOR);
        let streams = self.bidi_streams() as usize * STREAM_BYTES;
        let monitors = self.monitors * MONITOR_BYTES;
        let links = self.links * LINK_BYTES;
        let routes = ROUTES_MAX * ROUTE_BYTES + ROUTES_BYTES_MAX + TAKEN_BYTES_MAX;
        let members = self.group_members * MEMBER_BYTES;
        [
            windows,
            self.ask_bytes,
            self.reply_bytes,
            self.inboxes_bytes,
            lanes,
            streams,
            monitors,
            links,
            routes,
            members,
            2 * self.datagram_bytes,
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// The streams a peer may have open: the hello's, one for each ask and each body, and a few that are just closing.
    pub(crate) fn bidi_streams(&self) -> u32 {
        const STREAMS_CLOSING: u32 = 64;
        self.asks_in_flight.saturating_add(self.streams_open).saturating_add(STREAMS_CLOSING)
    }

    /// Bytes that a peer may have sent on all its streams and nobody here has taken: what the streams add up to. With less,
    /// requests that wait for others to be handled, or bodies that nobody reads, could take up what those others need to
    /// come to their end, and what an exit needs to be told.
    pub(crate) fn unread_bytes(&self) -> usize {
        (self.bidi_streams() as usize + 1).saturating_mul(self.stream_window_bytes as usize)
    }

    /// Bytes that a peer may leave unacknowledged; further ones wait to be sent. Room for every body and both lanes, and for
    /// as many replies as may be waiting.
    pub(crate) fn unacknowledged_bytes(&self) -> usize {
        (self.streams_open as usize)
            .saturating_add(2)
            .saturating_mul(self.stream_window_bytes as usize)
            .saturating_add(self.reply_bytes)
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
    /// A request must be complete this long after its stream was opened.
    pub request_read_ms: u64,
    /// `open_stream` gives up after this.
    pub open_stream_ms: u64,
    /// How long a full inbox holds up its lane before it starts to drop.
    pub inbox_wait_ms: u64,
    /// A lookup of an actor gives up after this.
    pub lookup_ms: u64,
    /// `close` waits this long for what was already told to be written out.
    pub close_flush_ms: u64,
    /// Certificates, the peers' and our own, are held against the wall clock this often: one that has expired costs its
    /// connection at most so much later.
    pub certificate_check_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            keep_alive_ms: 250,
            idle_timeout_ms: 1_000,
            connect_timeout_ms: 2_000,
            backoff_initial_ms: 50,
            backoff_max_ms: 2_000,
            request_read_ms: 30_000,
            open_stream_ms: 10_000,
            inbox_wait_ms: 1_000,
            lookup_ms: 5_000,
            close_flush_ms: 500,
            certificate_check_ms: 5_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_of_one_peer_add_up_to_what_the_readme_says() {
        let mib = Limits::default().peer_bytes_max() >> 20;
        assert!((1_060..1_070).contains(&mib), "{mib} MiB");
    }
}
