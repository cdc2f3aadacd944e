//! One error enum for each operation; a variant's text does not repeat its source.

use std::{io, net::SocketAddr};

use thiserror::Error;

/// Why a transport did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The UDP address cannot be bound.
    #[error("cannot bind UDP {addr}: is another node running there?")]
    Bind {
        /// Address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate, key or trust roots cannot be used.
    #[error("cannot use the node's TLS identity: {reason}")]
    Identity {
        /// What is wrong with it.
        reason: String,
    },
    /// A cluster or node name that cannot stand in a certificate.
    #[error(
        "invalid {what} name {name:?}: lowercase letters, digits and '-' (node names also '.'), at most 63 characters a label"
    )]
    InvalidName {
        /// `cluster` or `node`.
        what: &'static str,
        /// The name given.
        name: String,
    },
    /// No handlers' runtime was configured and `start` was called outside of one.
    #[error("no tokio runtime for handlers: call start() on one, or set `handlers`")]
    NoRuntime,
    /// The transport's thread or runtime cannot be made.
    #[error("cannot start the transport's thread")]
    Thread(#[source] io::Error),
}

/// Why another certificate, key or set of roots was not taken. What was in use stays in use.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The certificate is for another name: peers would refuse it.
    #[error("the certificate is not for node {expected}: {presented}")]
    Name {
        /// This node.
        expected: String,
        /// Whom it is for.
        presented: String,
    },
    /// The certificate leads to none of the roots, has expired, or lacks a key usage: peers would refuse it. When the CA
    /// changes, first every node trusts both, then every node gets its new certificate, then the old CA is dropped.
    #[error("peers with the same roots would not trust this node's certificate: {reason}")]
    Untrusted {
        /// What TLS says.
        reason: String,
    },
    /// It cannot be read, or the key does not fit the certificate.
    #[error("{reason}")]
    Unusable {
        /// What is wrong with it.
        reason: String,
    },
}

impl From<IdentityError> for StartError {
    fn from(error: IdentityError) -> Self {
        Self::Identity { reason: error.to_string() }
    }
}

/// Why an ask (or `open_stream`) has no answer. Except for `NoProc` and `UnknownMessage` the request may or may not
/// have been handled.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AskError {
    /// The path's handler does not understand the bytes of this message.
    #[error("{path} cannot read the message: {reason}")]
    BadMessage {
        /// Path asked.
        path: String,
        /// Decoding error.
        reason: String,
    },
    /// The answer cannot be read.
    #[error("cannot read the answer of {path}: {reason}")]
    BadReply {
        /// Path asked.
        path: String,
        /// Decoding error.
        reason: String,
    },
    /// This transport is closed.
    #[error("the transport is closed")]
    Closed,
    /// No connection to the node by the deadline, or it was lost while waiting.
    #[error("no connection to node {node}")]
    NoConnection {
        /// Node asked.
        node: String,
    },
    /// Nothing is served there.
    #[error("no process at {path} on node {node}")]
    NoProc {
        /// Node asked.
        node: String,
        /// Path asked.
        path: String,
    },
    /// No connection by the deadline, because one side refused it.
    #[error("node {node} cannot be reached: {reason}")]
    Refused {
        /// Node asked.
        node: String,
        /// Why the last dial was refused.
        reason: String,
    },
    /// The actor ended before it answered.
    #[error("{path} on node {node} ended before it answered: {exit}")]
    Exited {
        /// Node asked.
        node: String,
        /// Path asked.
        path: String,
        /// Why it ended.
        exit: phalanx_actors::Exit,
    },
    /// The actor dropped its [`Replier`](phalanx_actors::Replier).
    #[error("{path} on node {node} chose not to answer")]
    NoReply {
        /// Node asked.
        node: String,
        /// Path asked.
        path: String,
    },
    /// An actor runs there, and is not of the type that was asked for.
    #[error("{path} on node {node} is a {found}")]
    OtherType {
        /// Node asked.
        node: String,
        /// Path asked.
        path: String,
        /// [`RemoteActor::NAME`](crate::RemoteActor::NAME) of the actor there.
        found: String,
    },
    /// The handler answered with an error.
    #[error("{0}")]
    Remote(String),
    /// The deadline passed.
    #[error("no answer from {path} on node {node} in time")]
    Timeout {
        /// Node asked.
        node: String,
        /// Path asked.
        path: String,
    },
    /// The message does not fit a frame.
    #[error("message of {bytes} bytes is over the limit of {limit}: send it on a stream")]
    TooLarge {
        /// Size of the encoded message.
        bytes: usize,
        /// `Limits::frame_bytes`.
        limit: usize,
    },
    /// The message cannot be encoded.
    #[error("cannot encode the message: {0}")]
    Unencodable(String),
    /// The node runs a version that knows no references to actors.
    #[error("node {node} knows no references to actors: upgrade it")]
    Unsupported {
        /// Node asked.
        node: String,
    },
    /// The path is served, but not this message in this version.
    #[error("{path} does not know message {name} version {version}")]
    UnknownMessage {
        /// Path asked.
        path: String,
        /// [`Remote::NAME`](crate::Remote::NAME).
        name: String,
        /// [`Remote::VERSION`](crate::Remote::VERSION).
        version: u16,
    },
}

/// Why a system was not attached.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AttachError {
    /// A transport has one system: actors' numbers are unique within one.
    #[error("this transport has an actor system already")]
    Attached,
}

/// Why a group was not spread.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpreadError {
    /// This transport is closed.
    #[error("the transport is closed")]
    Closed,
    /// The name is too long.
    #[error("a group's name of {bytes} bytes is over the limit of {limit}")]
    Name {
        /// Its length.
        bytes: usize,
        /// The longest that is spread.
        limit: usize,
    },
    /// No system is [attached](crate::Transport::attach), whose groups could be spread.
    #[error("no actor system is attached")]
    NoSystem,
    /// A group of this name is spread for another type, whose messages have the same name: another node could not tell them apart.
    #[error("group {group} is spread for another type named {message}")]
    OtherType {
        /// Its name.
        group: String,
        /// [`Remote::NAME`](crate::Remote::NAME) of both.
        message: String,
    },
    /// So many are spread already.
    #[error("{0} groups are spread already")]
    TooMany(usize),
}

/// A message that was not taken, with the reason.
#[derive(Debug)]
pub struct Rejected<M> {
    /// Why.
    pub error: SendError,
    /// What was to be told.
    pub message: M,
}

/// Why a tell or datagram was not taken. `Ok` means taken, not arrived: delivery is at most once.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SendError {
    /// This transport is closed.
    #[error("the transport is closed")]
    Closed,
    /// The peer takes messages more slowly than they are told; try later.
    #[error("outbox to node {node} is full")]
    Full {
        /// Node told.
        node: String,
    },
    /// The node is not connected now.
    #[error("no connection to node {node}")]
    NoConnection {
        /// Node told.
        node: String,
    },
    /// The actor has ended, or its node has been restarted.
    #[error("no process at {path} on node {node}")]
    NoProc {
        /// Node told.
        node: String,
        /// Path told.
        path: String,
    },
    /// The message does not fit a frame, or the datagram a packet.
    #[error("message of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Size of the encoded message.
        bytes: usize,
        /// The limit that it breaks.
        limit: usize,
    },
    /// The message cannot be encoded.
    #[error("cannot encode the message: {0}")]
    Unencodable(String),
    /// The node runs a version that knows no references to actors.
    #[error("node {node} knows no references to actors: upgrade it")]
    Unsupported {
        /// Node told.
        node: String,
    },
}
