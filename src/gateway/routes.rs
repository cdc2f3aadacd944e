//! From a request to whoever answers it: who asks, what for, may they, and is there room.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use hyper::Method;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::documents::{self, Documents};
use super::negotiate::Encoding;
use super::request::{self, Query, Target, Verb};
use super::{ClusterView, Identity, JoinHandler, NodeAccess, logs, resources, respond, watch};
use crate::api::Status;
use crate::registry::Registry;

/// Requests that are worked on at once, watches and followed logs aside (Kubernetes: 400 reading and 200 writing).
const IN_FLIGHT_MAX: usize = 600;
/// Watches and followed logs at once.
const STREAMS_MAX: usize = 20_000;
/// Machines that join at once; more are told to come back. Apart from the others' places: whoever joins is a stranger, and
/// strangers must not keep anybody else out.
const JOINS_MAX: usize = 64;
/// Largest join request, in bytes: a signing request and some names.
const JOIN_BYTES_MAX: usize = 64 * 1024;
/// A join request must have arrived whole within this time.
const JOIN_BODY_DEADLINE: Duration = Duration::from_secs(10);
/// When a refused client should come back.
const RETRY_AFTER_S: u32 = 1;

/// What all requests share.
pub struct Gate {
    pub registry: Registry,
    pub node_access: Arc<dyn NodeAccess>,
    pub cluster_view: Arc<dyn ClusterView>,
    pub join: Arc<dyn JoinHandler>,
    pub advertise: String,
    pub documents: Documents,
    /// Ends the streams when the gateway stops.
    pub stopping: CancellationToken,
    in_flight: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    joins: Arc<Semaphore>,
}

impl Gate {
    pub fn new(
        registry: Registry,
        node_access: Arc<dyn NodeAccess>,
        cluster_view: Arc<dyn ClusterView>,
        join: Arc<dyn JoinHandler>,
        advertise: String,
        stopping: CancellationToken,
    ) -> Gate {
        Gate {
            registry,
            node_access,
            cluster_view,
            join,
            advertise,
            documents: Documents::default(),
            stopping,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            joins: Arc::new(Semaphore::new(JOINS_MAX)),
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// `None` without a certificate.
    pub identity: Option<Identity>,
}

pub fn router(gate: Arc<Gate>) -> Router {
    Router::new()
        .route("/livez", get(|| async { respond::of(200, respond::TEXT, "ok") }))
        .route("/healthz", get(ready))
        .route("/readyz", get(ready))
        .route(crate::security::join::JOIN_PATH, post(join))
        .route("/phalanx/v1/status", get(cluster_status))
        .route("/phalanx/v1/tree", get(cluster_tree))
        .fallback(anything)
        .with_state(gate)
}

/// Whether this server can answer: it knows a leader.
async fn ready(State(gate): State<Arc<Gate>>) -> Response {
    let led = gate.registry.store().leadership().borrow().leader.is_some();
    match led {
        true => respond::of(200, respond::TEXT, "ok"),
        false => respond::of(503, respond::TEXT, "[-]store failed: no leader is known\n"),
    }
}

async fn join(State(gate): State<Arc<Gate>>, Extension(peer): Extension<Peer>, request: Request) -> Response {
    let _permit = match room(&gate.joins) {
        Ok(permit) => permit,
        Err(status) => return respond::status(&status),
    };
    let answer = async {
        let body = request::body_within(request.into_body(), JOIN_BYTES_MAX, JOIN_BODY_DEADLINE).await?;
        gate.join.join(body, peer.address).await
    };
    answer_value(answer.await)
}

async fn cluster_status(State(gate): State<Arc<Gate>>, Extension(peer): Extension<Peer>) -> Response {
    let answer = async {
        known(&peer)?.authorize_path("get", "/phalanx/v1/status")?;
        let _permit = room(&gate.in_flight)?;
        gate.cluster_view.status().await
    };
    answer_value(answer.await)
}

async fn cluster_tree(State(gate): State<Arc<Gate>>, Extension(peer): Extension<Peer>, uri: Uri) -> Response {
    let answer = async {
        known(&peer)?.authorize_path("get", "/phalanx/v1/tree")?;
        let _permit = room(&gate.in_flight)?;
        let query = Query::parse(uri.query());
        gate.cluster_view.tree(query.text("path")).await
    };
    answer_value(answer.await)
}

fn answer_value(answer: Result<serde_json::Value, Status>) -> Response {
    match answer {
        Ok(value) => respond::value(200, Encoding::Json, &value),
        Err(status) => respond::status(&status),
    }
}

async fn anything(State(gate): State<Arc<Gate>>, Extension(peer): Extension<Peer>, request: Request) -> Response {
    match serve(gate, peer, request).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    }
}

async fn serve(gate: Arc<Gate>, peer: Peer, request: Request) -> Result<Response, Status> {
    let identity = known(&peer)?;
    let (head, body) = request.into_parts();
    let query = Query::parse(head.uri.query());
    let path = head.uri.path();
    let kinds = gate.registry.kinds().clone();
    if head.method == Method::GET
        && let Some(response) = documents::answer(&gate.documents, &kinds, &gate.advertise, path, &head.headers, &query)
    {
        return Ok(response);
    }
    let wanted = match request::target(&kinds, &head.method, path, &query)? {
        Target::Resource(wanted) => wanted,
        Target::UnknownPath => {
            identity.authorize_path(&head.method.as_str().to_ascii_lowercase(), path)?;
            return Ok(respond::page_not_found());
        }
    };
    identity.authorize(&wanted)?;
    if wanted.verb == Verb::Watch {
        let permit = room(&gate.streams)?;
        return watch::serve(gate, wanted, &head.headers, &query, permit).await;
    }
    if wanted.subresource == "log" {
        let permit = room(if query.flag("follow") { &gate.streams } else { &gate.in_flight })?;
        return logs::serve(gate, wanted, &query, permit).await;
    }
    let _permit = room(&gate.in_flight)?;
    let body: Body = body;
    resources::serve(&gate, &wanted, &head.headers, &query, body).await
}

fn known(peer: &Peer) -> Result<&Identity, Status> {
    peer.identity.as_ref().ok_or_else(Status::unauthorized)
}

fn room(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    places
        .clone()
        .try_acquire_owned()
        .map_err(|_| Status::too_many_requests("too many requests, please try again later", RETRY_AFTER_S))
}
