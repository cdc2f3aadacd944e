//! The HTTPS face: Kubernetes' REST API for any client, over the registry.
//!
//! ```text
//!   server      TLS, connections, who is asking (client certificate)
//!     │
//!   routes      path and method -> what is wanted; who may; how many at once
//!     ├── documents   version, discovery, OpenAPI, health
//!     ├── resources   get list create update patch delete of any kind
//!     ├── watch       events as a stream of lines
//!     └── logs        a container's output from its node
//!   negotiate   Accept: JSON, YAML, Table, PartialObjectMetadata
//! ```
//!
//! It knows no kind by name, except where Kubernetes' URLs do (namespaces, pod logs, bindings), and it holds no state of the
//! cluster. Nobody without a certificate of the cluster's authority gets anything but health and the joining of machines.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch::Receiver;

use crate::api::Status;
use crate::registry::Registry;

mod documents;
mod identity;
mod logs;
mod negotiate;
mod request;
mod resources;
mod respond;
mod routes;
mod server;
mod watch;

#[cfg(test)]
mod request_test;

pub use identity::Identity;
pub use server::{GatewayHandle, StartError};

/// Bytes that arrive in pieces; an error is told as text, as Kubernetes does it in a stream that has begun.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

/// Which part of a container's output: the parameters of `pods/NAME/log`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub follow: bool,
    /// Of the container's run before this one.
    pub previous: bool,
    pub tail_lines: Option<u64>,
    pub since_seconds: Option<u64>,
    /// RFC 3339.
    pub since_time: Option<String>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
}

/// The way to the machines that run pods.
#[async_trait]
pub trait NodeAccess: Send + Sync + 'static {
    /// A container's output.
    async fn logs(&self, node: &str, request: LogRequest) -> Result<ByteStream, Status>;

    /// The live supervision tree of one machine, below `path`.
    async fn tree(&self, node: &str, path: &str) -> Result<serde_json::Value, Status>;
}

/// What `phalanx status` and `phalanx tree` show.
#[async_trait]
pub trait ClusterView: Send + Sync + 'static {
    /// `/phalanx/v1/status`.
    async fn status(&self) -> Result<serde_json::Value, Status>;

    /// `/phalanx/v1/tree?path=`; an empty path is the whole tree of all machines.
    async fn tree(&self, path: &str) -> Result<serde_json::Value, Status>;
}

/// Admits machines; the only request that needs no certificate, since it carries a token.
#[async_trait]
pub trait JoinHandler: Send + Sync + 'static {
    /// `POST /phalanx/v1/join`: the body as it came, and from where.
    async fn join(&self, body: Bytes, peer: SocketAddr) -> Result<serde_json::Value, Status>;
}

/// Where to listen.
#[derive(Debug)]
pub enum Listen {
    Address(SocketAddr),
    /// A socket that was bound before.
    Bound(std::net::TcpListener),
}

/// An address that several gateways of one machine answer together; the system shares connections out among those that
/// listen, so that one that dies is not missed.
pub struct SharedAddress {
    pub address: SocketAddr,
    /// Listened on only while this is true: a server that has lost the others would only make clients wait.
    pub serving: Receiver<bool>,
}

/// What the gateway needs.
pub struct GatewayConfig {
    pub listen: Listen,
    /// Beside its own.
    pub shared: Option<SharedAddress>,
    /// Leaf first.
    pub server_cert_chain: Vec<CertificateDer<'static>>,
    pub server_key: PrivateKeyDer<'static>,
    /// The roots that clients' certificates must come from.
    pub client_ca: Vec<CertificateDer<'static>>,
    /// `host:port` that discovery tells clients.
    pub advertise: String,
    pub registry: Registry,
    pub node_access: Arc<dyn NodeAccess>,
    pub cluster_view: Arc<dyn ClusterView>,
    pub join: Arc<dyn JoinHandler>,
}

/// The HTTPS server.
pub struct Gateway;

impl Gateway {
    /// Starts serving on the current tokio runtime.
    ///
    /// # Errors
    /// When the port is taken or the certificates do not fit.
    pub async fn start(config: GatewayConfig) -> Result<GatewayHandle, StartError> {
        server::start(config).await
    }
}
