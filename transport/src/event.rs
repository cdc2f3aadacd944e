//! What a transport tells about its peers: who they are, whether they are up, and why not.

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A node's name, unique in its cluster.
pub type NodeName = Arc<str>;

/// Who sent a message: the name in its verified certificate, and which boot of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Node name from the certificate.
    pub node: NodeName,
    /// Boot number from the hello.
    pub incarnation: u64,
}

/// A change of a peer. For one node `Up` and `Down` alternate, starting with `Up`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// The connection was lost; every monitor on that node has fired, and its members have left all groups.
    Down {
        /// Which node.
        node: NodeName,
        /// Which boot of it.
        incarnation: u64,
        /// Why.
        reason: LossReason,
    },
    /// A connection was refused, by us or by them.
    Refused {
        /// Which node, where its name is known.
        node: Option<NodeName>,
        /// Where it is.
        addr: SocketAddr,
        /// Why.
        reason: Refusal,
    },
    /// Both sides are authenticated and have said hello; messages flow.
    Up {
        /// Which node.
        node: NodeName,
        /// Which boot of it.
        incarnation: u64,
    },
}

/// Why an established connection ended.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum LossReason {
    /// The peer closed it in order.
    #[error("closed by the peer: {0}")]
    ClosedByPeer(String),
    /// This transport was closed.
    #[error("this transport was closed")]
    Closing,
    /// Nothing was heard for the idle timeout: killed, cut off, or stalled.
    #[error("nothing heard for the idle timeout")]
    IdleTimeout,
    /// One side broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// `remove_peer`, or `set_peer` with another address.
    #[error("peer removed or moved")]
    Removed,
    /// The peer came back with another connection: it restarted, or had lost this one.
    #[error("replaced by a newer connection")]
    Replaced,
    /// The node, or its certificate, was revoked here.
    #[error("revoked")]
    Revoked,
    /// The peer's certificate counts no more: it has expired, or its CA is trusted no longer.
    #[error("its certificate is not trusted any more: {0}")]
    Untrusted(String),
}

/// Why a connection was refused before it was up.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The other side refused us; its words.
    #[error("the peer refused: {0}")]
    ByPeer(String),
    /// A certificate of our CA, but for no node, or not for a node of this cluster.
    #[error("certificate names no node of cluster {cluster}: {presented}")]
    CertificateName {
        /// Our cluster.
        cluster: String,
        /// Names in the certificate.
        presented: String,
    },
    /// The hello names another cluster.
    #[error("belongs to cluster {theirs}, this is {ours}")]
    Cluster {
        /// Our cluster.
        ours: String,
        /// Their cluster.
        theirs: String,
    },
    /// The hello did not come in time or was not a hello.
    #[error("no valid hello: {0}")]
    Hello(String),
    /// The hello names another node than the certificate, or the name is our own.
    #[error("calls itself {claimed}, expected {expected}")]
    Name {
        /// Name that was to be.
        expected: String,
        /// Name that it gave.
        claimed: String,
    },
    /// The node, or its certificate, is revoked here.
    #[error("node {0} is revoked")]
    Revoked(String),
    /// A newer boot of this node has been seen.
    #[error("incarnation {theirs} is stale: {newest} has been seen")]
    StaleIncarnation {
        /// Incarnation refused.
        theirs: u64,
        /// Newest one seen.
        newest: u64,
    },
    /// TLS refused: unknown issuer, name mismatch, expired certificate...
    #[error("TLS: {0}")]
    Tls(String),
    /// `Limits::peers` nodes are known already.
    #[error("more than {0} peers")]
    TooManyPeers(usize),
    /// No protocol version in common.
    #[error("speaks protocol versions {their_min} to {their_max}, this node {our_min} to {our_max}")]
    Version {
        /// Oldest we speak.
        our_min: u8,
        /// Newest we speak.
        our_max: u8,
        /// Oldest they speak.
        their_min: u8,
        /// Newest they speak.
        their_max: u8,
    },
}

/// A change of this node's own certificate, or a need of one. Times are the wall clock's, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityEvent {
    /// Another certificate is in use.
    Changed {
        /// The last second in which it counts.
        expires_secs: u64,
    },
    /// About two thirds of the certificate's life are over: give it another one now
    /// ([`Transport::renew_with`](crate::Transport::renew_with) does so by itself).
    Due {
        /// The last second in which it counts.
        expires_secs: u64,
    },
    /// The certificate has expired. Peers refuse this node, and close the connections that they have with it.
    Expired,
    /// The hook of `renew_with` gave no usable identity; it is asked again.
    RenewalFailed {
        /// Why.
        reason: String,
        /// When it is asked again.
        retry_in_secs: u64,
        /// The last second in which the certificate in use counts.
        expires_secs: u64,
    },
}

/// What is known of one peer, for status displays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Node name.
    pub node: NodeName,
    /// Where it is dialed, or where it came from.
    pub addr: Option<SocketAddr>,
    /// Connection state.
    pub state: PeerState,
    /// Newest boot seen.
    pub incarnation: Option<u64>,
    /// Smoothed round-trip time, while connected.
    pub rtt_ms: Option<f64>,
    /// Tells, asks, replies and datagrams sent.
    pub sent_messages: u64,
    /// The same, received.
    pub received_messages: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Messages from it that were dropped here: nothing served at the path, or its inbox was full.
    pub dropped_messages: u64,
}

/// State of the connection to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerState {
    /// Up.
    Connected,
    /// Being dialed for the first time.
    Connecting,
    /// Lost or not reached; dialed again and again if it was set.
    Down {
        /// Why.
        reason: String,
    },
}
