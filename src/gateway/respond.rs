//! Answers.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::Value;

use super::negotiate::Encoding;
use crate::api::Status;

pub const JSON: &str = "application/json";
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A body of a media type.
pub fn of(code: u16, media_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A value, as JSON or YAML.
pub fn value(code: u16, encoding: Encoding, value: &Value) -> Response {
    let encoded = match encoding {
        Encoding::Json => serde_json::to_vec(value).map_err(|e| e.to_string()),
        Encoding::Yaml => serde_saphyr::to_string(value).map(String::into_bytes).map_err(|e| e.to_string()),
    };
    match encoded {
        Ok(mut body) => {
            if encoding == Encoding::Json {
                body.push(b'\n');
                of(code, JSON, body)
            } else {
                of(code, "application/yaml", body)
            }
        }
        Err(error) => status(&Status::internal(error)),
    }
}

/// A `metav1.Status`, with `Retry-After` where it has one.
pub fn status(status: &Status) -> Response {
    let body = serde_json::to_vec(status).unwrap_or_default();
    let mut response = of(status.http_code(), JSON, body);
    if let Some(seconds) = status.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Kubernetes' answer to a path that is none.
pub fn page_not_found() -> Response {
    of(404, TEXT, "404 page not found\n")
}

/// Adds `Warning` headers (RFC 7234, code 299: miscellaneous persistent warning).
pub fn warn(mut response: Response, warnings: &[String]) -> Response {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}
