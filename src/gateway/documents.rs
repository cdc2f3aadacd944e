//! What does not depend on the cluster's objects: version, discovery, OpenAPI, health.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::negotiate::{Encoding, accept, clauses};
use super::request::Query;
use super::respond;
use crate::api::discovery::{self, Aggregated};
use crate::api::{Kinds, Reason, Status, openapi};

/// The key of the OpenAPI index among the documents.
const INDEX: &str = "";

/// OpenAPI documents, rendered once; there is one for each served group and version.
#[derive(Default)]
pub struct Documents {
    openapi: Mutex<std::collections::HashMap<String, Bytes>>,
}

/// Kubernetes' discovery, version and OpenAPI paths; `None` when it is none of them.
pub fn answer(
    documents: &Documents,
    kinds: &Kinds,
    advertise: &str,
    path: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Option<Response> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let found = match segments.as_slice() {
        ["version"] => Some(discovery::version()),
        ["api"] => {
            return Some(match aggregated(headers) {
                Some(format) => aggregate(kinds, true, format, headers),
                None => tagged(&discovery::api_versions(advertise), respond::JSON, headers),
            });
        }
        ["apis"] => {
            return Some(match aggregated(headers) {
                Some(format) => aggregate(kinds, false, format, headers),
                None => tagged(&discovery::api_group_list(kinds), respond::JSON, headers),
            });
        }
        ["apis", group] => return Some(found(discovery::api_group(kinds, group))),
        ["api", version] => return Some(found(discovery::api_resource_list(kinds, "", version))),
        ["apis", group, version] => return Some(found(discovery::api_resource_list(kinds, group, version))),
        ["openapi", "v3"] => return Some(document(documents, INDEX, || Some(openapi::index(kinds)), query, headers)),
        ["openapi", "v3", rest @ ..] => {
            let path = rest.join("/");
            return Some(document(documents, &path, || openapi::document(kinds, &path), query, headers));
        }
        ["openapi", "v2"] => return Some(openapi_v2(headers)),
        _ => None,
    };
    found.map(|value| respond::value(200, Encoding::Json, &value))
}

fn found(value: Option<Value>) -> Response {
    match value {
        Some(value) => respond::value(200, Encoding::Json, &value),
        None => respond::page_not_found(),
    }
}

/// What kubectl asks for when OpenAPI v3 does not describe a kind.
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// `Document { swagger: "2.0", info: Info { title: "Phalanx", version: "v1" } }`, in protobuf.
const OPENAPI_V2_EMPTY: &[u8] = b"\x0a\x032.0\x12\x0d\x0a\x07Phalanx\x12\x02v1";

/// The old format describes nothing here, and says so: kubectl then skips its own validation and tells which kind is unknown,
/// where a refusal would make it speak of content types. Whoever wants it as JSON is refused and takes v3.
fn openapi_v2(headers: &HeaderMap) -> Response {
    if clauses(accept(headers)).any(|clause| clause.media_type == OPENAPI_V2_PROTOBUF) {
        return respond::of(
            200,
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            Bytes::from_static(OPENAPI_V2_EMPTY),
        );
    }
    respond::status(&Status {
        success: false,
        message: "OpenAPI v2 is not served; use /openapi/v3".to_owned(),
        reason: Some(Reason::NotAcceptable),
        details: None,
        code: 406,
    })
}

/// Whether the client asks for all groups in one document, and in which version of the format.
fn aggregated(headers: &HeaderMap) -> Option<Aggregated> {
    for clause in clauses(accept(headers)) {
        if clause.media_type != respond::JSON {
            continue;
        }
        match (clause.kind, clause.group, clause.version) {
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Some(Aggregated::V2),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => return Some(Aggregated::V2Beta1),
            ("", _, _) => return None,
            _ => {}
        }
    }
    None
}

fn aggregate(kinds: &Kinds, core: bool, format: Aggregated, headers: &HeaderMap) -> Response {
    tagged(&discovery::aggregated(kinds, core, format), format.media_type(), headers)
}

fn tagged(value: &Value, media_type: &'static str, headers: &HeaderMap) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => with_etag(Bytes::from(body), media_type, headers),
        Err(error) => respond::status(&Status::internal(error)),
    }
}

/// A document with an `ETag`, or 304 when the client has it already.
fn with_etag(body: Bytes, media_type: &'static str, headers: &HeaderMap) -> Response {
    let digest = ring::digest::digest(&ring::digest::SHA256, &body);
    let tag: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    let tag = format!("\"{tag}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut response = if known.split(',').any(|known| known.trim() == tag) {
        respond::of(304, media_type, Body::empty())
    } else {
        respond::of(200, media_type, body)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

/// A document that is rendered once; asked for under `hash`, it may be kept for ever.
fn document(
    documents: &Documents,
    path: &str,
    render: impl FnOnce() -> Option<Value>,
    query: &Query,
    headers: &HeaderMap,
) -> Response {
    let known = documents.openapi.lock().get(path).cloned();
    let body = match known {
        Some(body) => body,
        None => {
            let Some(document) = render() else { return respond::page_not_found() };
            let Ok(body) = serde_json::to_vec(&document) else {
                return respond::status(&Status::internal("the OpenAPI document cannot be rendered"));
            };
            let body = Bytes::from(body);
            documents.openapi.lock().insert(path.to_owned(), body.clone());
            body
        }
    };
    let mut response = with_etag(body, respond::JSON, headers);
    if query.has("hash") {
        // The index names each document with its hash, so this one never changes.
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    response
}
