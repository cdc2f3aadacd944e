//! Kubernetes' `metav1.Status`: what every refused request answers, in Kubernetes' own words.
//!
//! Clients match on `reason` and on some texts, so the texts follow `k8s.io/apimachinery/pkg/api/errors`.
//! This module never logs and never looks at a request. The registry and the gateway build these.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::kinds::Kind;

/// The machine-readable part of a [`Status`]: `metav1.StatusReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    ServiceUnavailable,
    /// A reason this version does not know (a newer peer sent it).
    #[serde(other)]
    Unknown,
}

/// One reason why an object is invalid: `metav1.StatusCause`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Such as `FieldValueRequired`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Such as `Required value: name or generateName is required`; it does not repeat the field.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Such as `spec.containers[0].image`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// `metav1.StatusDetails`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The plural resource, or the kind where the reason is `Invalid` (as Kubernetes does it).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The outcome of a request that does not answer with an object. An `Err(Status)` always carries a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub struct Status {
    /// False for a failure.
    pub success: bool,
    pub message: String,
    pub reason: Option<Reason>,
    pub details: Option<Box<Details>>,
    /// The HTTP status code; 0 where Kubernetes sends none (a success answers 200).
    pub code: u16,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Box<Details>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    code: u16,
}

impl From<Status> for Wire {
    fn from(status: Status) -> Self {
        Wire {
            kind: "Status".to_owned(),
            api_version: "v1".to_owned(),
            metadata: serde_json::Map::new(),
            status: if status.success { "Success" } else { "Failure" }.to_owned(),
            message: status.message,
            reason: status.reason,
            details: status.details,
            code: status.code,
        }
    }
}

impl From<Wire> for Status {
    fn from(wire: Wire) -> Self {
        Status {
            success: wire.status == "Success",
            message: wire.message,
            reason: wire.reason,
            details: wire.details,
            code: wire.code,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() && self.success { f.write_str("Success") } else { f.write_str(&self.message) }
    }
}

impl std::error::Error for Status {}

impl Status {
    fn failure(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Status { success: false, message: message.into(), reason: Some(reason), details: None, code }
    }

    /// Details that name an object by its plural resource.
    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: kind.group.clone(),
            kind: kind.plural.clone(),
            ..Details::default()
        }));
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_with(Box::default).retry_after_seconds = seconds;
        self
    }

    /// 404: no object of this name.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.group_resource());
        Self::failure(404, Reason::NotFound, message).about(kind, name)
    }

    /// 404: no such resource, group, version or subresource.
    pub fn unknown_resource() -> Self {
        let mut status = Self::failure(404, Reason::NotFound, "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// 409: an object of this name exists.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.group_resource());
        Self::failure(409, Reason::AlreadyExists, message).about(kind, name)
    }

    /// 409: `why` is Kubernetes' reason, such as [`Status::MODIFIED`].
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.group_resource());
        Self::failure(409, Reason::Conflict, message).about(kind, name)
    }

    /// Why a write with an old `resourceVersion` conflicts.
    pub const MODIFIED: &'static str =
        "the object has been modified; please apply your changes to the latest version and try again";

    /// 409: a delete's preconditions do not hold. Kubernetes names the kind here, not the resource.
    pub fn precondition_failed(kind: &Kind, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(&kind.kind, &kind.group));
        let mut status = Self::failure(409, Reason::Conflict, message).about(kind, name);
        if let Some(details) = &mut status.details {
            details.kind = kind.kind.clone();
        }
        status
    }

    /// 409: server-side apply would take fields that others own. `causes` have the reason `FieldManagerConflict`.
    pub fn apply_conflict(causes: Vec<Cause>) -> Self {
        let list: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.message, c.field)).collect();
        let message = match list.as_slice() {
            [one] => format!("Apply failed with 1 conflict: {one}"),
            many => format!("Apply failed with {} conflicts: {}", many.len(), many.join("; ")),
        };
        let mut status = Self::failure(409, Reason::Conflict, message);
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    /// 422: the object breaks a rule of its kind.
    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Self {
        Self::invalid_kind(&kind.group, &kind.kind, name, causes)
    }

    /// 422 for something that has no [`Kind`] of its own: `DeleteOptions`, `ListOptions`, `Scale`.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let mut seen: Vec<String> = Vec::new();
        for cause in &causes {
            let text = format!("{}: {}", cause.field, cause.message);
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        let why = match seen.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {why}", qualified(kind, group));
        let mut status = Self::failure(422, Reason::Invalid, message);
        status.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..Details::default()
        }));
        status
    }

    /// 422 without causes: a JSON patch that does not fit the object.
    pub fn unprocessable() -> Self {
        let mut status =
            Self::failure(422, Reason::Invalid, "the server rejected our request due to an error in our request");
        status.details = Some(Box::default());
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, Reason::BadRequest, message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::failure(401, Reason::Unauthorized, "Unauthorized")
    }

    /// 403 about one object, or about the whole resource where `name` is empty.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", kind.group_resource())
        } else {
            format!("{} {name:?} is forbidden: {why}", kind.group_resource())
        };
        Self::failure(403, Reason::Forbidden, message).about(kind, name)
    }

    /// 403: nothing is created in a namespace that is being deleted.
    pub fn namespace_terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Self::forbidden(kind, name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        status
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let mut status = Self::failure(
            405,
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        );
        status.details = Some(Box::default());
        status
    }

    /// 406: none of the media types in `Accept` is served.
    pub fn not_acceptable() -> Self {
        Self::failure(
            406,
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json, application/yaml, application/json;stream=watch",
        )
    }

    /// 413: a body over its limit.
    pub fn request_entity_too_large(limit_bytes: usize) -> Self {
        Self::failure(413, Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {limit_bytes}"))
    }

    /// 415: the body's media type is none of `accepted`.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::failure(
            415,
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 410: a resourceVersion or a continue token that the store no longer holds.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, Reason::Expired, message)
    }

    /// 410 on a watch that starts before the oldest event that is kept.
    pub fn gone(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 429, with the seconds after which a client should try again.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(429, Reason::TooManyRequests, message).retry_after(retry_after_seconds)
    }

    /// 500.
    pub fn internal(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let mut status = Self::failure(500, Reason::InternalError, format!("Internal error occurred: {message}"));
        status.details =
            Some(Box::new(Details { causes: vec![Cause { message, ..Cause::default() }], ..Details::default() }));
        status
    }

    /// 500 with Kubernetes' bare text and no reason, as its patch code answers.
    pub fn server_error(message: impl Into<String>) -> Self {
        Status { success: false, message: message.into(), reason: None, details: None, code: 500 }
    }

    /// 503: no leader, store full, shutting down. Clients try again after the given seconds (0: no hint).
    pub fn service_unavailable(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let status = Self::failure(503, Reason::ServiceUnavailable, message);
        if retry_after_seconds == 0 { status } else { status.retry_after(retry_after_seconds) }
    }

    /// 504: the request could not be finished in time.
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u32) -> Self {
        Self::failure(504, Reason::Timeout, format!("Timeout: {message}")).retry_after(retry_after_seconds)
    }

    /// 504: a read asked for a revision that does not exist yet.
    pub fn resource_version_too_large(requested: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {requested}, current: {current}");
        let mut status = Self::failure(504, Reason::Timeout, message).retry_after(1);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "ResourceVersionTooLarge".to_owned(),
                message: "Too large resource version".to_owned(),
                field: String::new(),
            });
        }
        status
    }

    /// 200: the object is gone. kubectl waits for this `uid` to disappear.
    pub fn success_deleted(kind: &Kind, name: &str, uid: &str) -> Self {
        let mut status =
            Status { success: true, message: String::new(), reason: None, details: None, code: 0 }.about(kind, name);
        if let Some(details) = &mut status.details {
            details.uid = uid.to_owned();
        }
        status
    }

    /// The HTTP status code to answer with.
    pub fn http_code(&self) -> u16 {
        match self.code {
            0 if self.success => 200,
            0 => 500,
            code => code,
        }
    }

    /// Seconds for the `Retry-After` header, if the client should try again.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        let seconds = self.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then_some(seconds)
    }

    /// The status as an object of the wire.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// `Deployment.apps`, or `Pod` for the core group.
fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}
