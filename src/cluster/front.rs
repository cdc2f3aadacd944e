//! The HTTPS door of a server through which machines join, and where its health can be asked.
//!
//! Must never serve anything else without knowing who asks. Started by `member`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::membership::{Membership, MembershipError};
use crate::security::join::{JOIN_PATH, JoinRequest};
use crate::security::{Authority, ClientIdentity};

/// Largest request.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Connections at once; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 256;
/// A connection that takes longer than this for its handshake and one request is closed.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);

/// What the door needs.
pub struct Front {
    /// Signs the newcomers' certificates.
    pub authority: Arc<Authority>,
    /// Admits them.
    pub membership: Membership,
}

/// The TLS side of the door.
pub fn tls(identity: &ClientIdentity) -> Result<tokio_rustls::TlsAcceptor, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(identity.chain().map_err(|e| e.to_string())?, identity.key().map_err(|e| e.to_string())?)
        .map_err(|e| e.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, tls: tokio_rustls::TlsAcceptor, front: Front) {
    let front = Arc::new(front);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the HTTPS door cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, front) = (tls.clone(), front.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let served = tokio::time::timeout(CONNECTION_DEADLINE, connection(tcp, peer, tls, front)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%peer, error, "a connection to the HTTPS door failed");
            }
        });
    }
}

async fn connection(
    tcp: tokio::net::TcpStream,
    peer: SocketAddr,
    tls: tokio_rustls::TlsAcceptor,
    front: Arc<Front>,
) -> Result<(), String> {
    let stream = tls.accept(tcp).await.map_err(|e| e.to_string())?;
    let service = hyper::service::service_fn(move |request| {
        let front = front.clone();
        async move { Ok::<_, Infallible>(answer(request, peer, &front).await) }
    });
    let http = hyper::server::conn::http1::Builder::new();
    http.serve_connection(TokioIo::new(stream), service).await.map_err(|e| e.to_string())
}

async fn answer(request: Request<Incoming>, peer: SocketAddr, front: &Front) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/livez" | "/readyz" | "/healthz") => text(StatusCode::OK, "ok"),
        (&Method::POST, JOIN_PATH) => join(request, peer, front).await,
        _ => refuse(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"),
    }
}

async fn join(request: Request<Incoming>, peer: SocketAddr, front: &Front) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refuse(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string()),
    };
    let request: JoinRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            return refuse(StatusCode::BAD_REQUEST, "BadRequest", &format!("not a join request: {error}"));
        }
    };
    let now_s = jiff::Timestamp::now().as_second();
    match front.membership.admit(&front.authority, &request, now_s).await {
        Ok(response) => {
            tracing::info!(node = request.node, role = ?request.role, %peer, "joined the cluster");
            match serde_json::to_vec(&response) {
                Ok(body) => json_response(StatusCode::OK, body),
                Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &error.to_string()),
            }
        }
        Err(error) => {
            tracing::warn!(node = request.node, %peer, %error, "refused to let a machine join");
            let (code, reason) = match error {
                MembershipError::Token(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
                MembershipError::Refused(_) => (StatusCode::CONFLICT, "Conflict"),
                MembershipError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
                MembershipError::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            };
            refuse(code, reason, &error.to_string())
        }
    }
}

/// A `Status`, as every error of a Kubernetes server is.
fn refuse(code: StatusCode, reason: &str, message: &str) -> Response<Full<Bytes>> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    json_response(code, status.to_string().into_bytes())
}

fn json_response(code: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = code;
    response
}
