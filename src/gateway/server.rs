//! TLS and connections.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::routes::{self, Gate, Peer};
use super::{GatewayConfig, Identity, Listen, SharedAddress};

/// Connections at once; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 10_000;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may take to send the head of a request; longer than clients keep idle connections (Go: 90 s).
const HEAD_DEADLINE: Duration = Duration::from_secs(120);
/// How long a connection without a certificate lives. Whoever is unknown may ask for health and join, and neither takes
/// longer; one that says nothing must not hold a place.
const STRANGER_DEADLINE: Duration = Duration::from_secs(20);
/// How often a silent HTTP/2 connection is asked whether it is alive, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(15);
/// Connections that wait in the socket of a shared address to be accepted.
const SHARED_BACKLOG: u32 = 1_024;
/// The pause before a shared address is tried again that could not be listened on.
const SHARED_RETRY: Duration = Duration::from_secs(1);
/// What requests under way get to end in when the gateway stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("port {} of {} is in use by another program; stop it or choose another port", .address.port(), .address.ip())]
    PortInUse { address: SocketAddr },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("the server's certificates cannot be used: {0}")]
    Certificates(String),
}

/// A running gateway. Dropping it stops it at once.
pub struct GatewayHandle {
    local_addr: SocketAddr,
    stopping: CancellationToken,
    accepting: Option<JoinHandle<()>>,
    sharing: Option<JoinHandle<()>>,
}

impl GatewayHandle {
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Ends watches, lets other requests finish for a moment, and closes everything.
    pub async fn shutdown(mut self) {
        self.stopping.cancel();
        for accepting in [self.sharing.take(), self.accepting.take()].into_iter().flatten() {
            // It ends by itself within the time to drain; its own panic would have been logged.
            let _ = accepting.await;
        }
    }
}

impl Drop for GatewayHandle {
    fn drop(&mut self) {
        self.stopping.cancel();
        for accepting in [&self.sharing, &self.accepting].into_iter().flatten() {
            accepting.abort();
        }
    }
}

pub async fn start(config: GatewayConfig) -> Result<GatewayHandle, StartError> {
    let tls = tls(&config)?;
    let listener = listen(config.listen)?;
    let local_addr =
        listener.local_addr().map_err(|source| StartError::Listen { address: "its socket".to_owned(), source })?;
    let stopping = CancellationToken::new();
    let gate = Gate::new(
        config.registry,
        config.node_access,
        config.cluster_view,
        config.join,
        if config.advertise.is_empty() { local_addr.to_string() } else { config.advertise },
        stopping.clone(),
    );
    let router = routes::router(Arc::new(gate));
    let sharing =
        config.shared.map(|shared| tokio::spawn(share(shared, tls.clone(), router.clone(), stopping.clone())));
    let accepting = tokio::spawn(accept(listener, tls, router, stopping.clone(), std::future::pending()));
    Ok(GatewayHandle { local_addr, stopping, accepting: Some(accepting), sharing })
}

/// Answers the shared address for as long as it is to be served.
async fn share(mut shared: SharedAddress, tls: TlsAcceptor, router: Router, stopping: CancellationToken) {
    let address = shared.address;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            serving = shared.serving.wait_for(|serving| *serving) => if serving.is_err() { return },
        }
        match listen_shared(address) {
            Ok(listener) => {
                let mut serving = shared.serving.clone();
                let until = async move { drop(serving.wait_for(|serving| !*serving).await) };
                accept(listener, tls.clone(), router.clone(), stopping.clone(), until).await;
            }
            Err(error) => {
                tracing::warn!(%address, %error, "cannot listen on the shared address");
                tokio::time::sleep(SHARED_RETRY).await;
            }
        }
    }
}

fn listen_shared(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(SHARED_BACKLOG)
}

fn listen(listen: Listen) -> Result<TcpListener, StartError> {
    let (address, bound) = match listen {
        Listen::Bound(listener) => {
            let address = listener.local_addr().map_or_else(|_| "its socket".to_owned(), |a| a.to_string());
            (address, Ok(listener))
        }
        Listen::Address(address) => match StdListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(StartError::PortInUse { address });
            }
            bound => (address.to_string(), bound),
        },
    };
    let listener = bound.and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    listener.map_err(|source| StartError::Listen { address, source })
}

fn tls(config: &GatewayConfig) -> Result<TlsAcceptor, StartError> {
    let broken = |what: &str, why: String| StartError::Certificates(format!("{what}: {why}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in &config.client_ca {
        roots.add(root.clone()).map_err(|e| broken("the authority of the clients", e.to_string()))?;
    }
    // Without a certificate a client still may join or ask for health; what it may do is decided by request.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| broken("the authority of the clients", e.to_string()))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| broken("TLS", e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(config.server_cert_chain.clone(), config.server_key.clone_key())
        .map_err(|e| broken("certificate and key", e.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    stopping: CancellationToken,
    until: impl Future<Output = ()>,
) {
    tokio::pin!(until);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stopping.cancelled() => break,
            () = &mut until => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => accepted,
        };
        let Ok(permit) = permit else { break };
        match accepted {
            Ok((tcp, address)) => {
                let (tls, router, stopping) = (tls.clone(), router.clone(), stopping.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = connection(tcp, address, tls, router, stopping).await {
                        tracing::debug!(%address, %error, "an HTTPS connection ended badly");
                    }
                });
            }
            Err(error) => {
                // Most often too many open files: connections that end make room.
                tracing::warn!(%error, "the gateway cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // Whoever is left over is cut off when the set is dropped.
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

async fn connection(
    tcp: TcpStream,
    address: SocketAddr,
    tls: TlsAcceptor,
    router: Router,
    stopping: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tcp.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(tcp)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates.and_then(<[_]>::first).and_then(Identity::of_certificate);
    let stranger = identity.is_none();
    let peer = Peer { address, identity };
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        hyper::service::Service::call(&router, request)
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE_DEADLINE);
    let serving = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = tokio::time::sleep(STRANGER_DEADLINE), if stranger => return Ok(()),
        () = stopping.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}
