//! What a request asks for: Kubernetes' URLs and parameters, taken apart. Pure.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut};
use http_body_util::BodyExt;
use hyper::Method;

use crate::api::validate::not_supported;
use crate::api::{FieldSelector, FieldValidation, Kind, Kinds, LabelSelector, Status};
use crate::registry::{ListOptions, VersionMatch, WriteOptions};

/// Largest body; Kubernetes' own limit.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How much of a body that is too large is read and thrown away before the answer; a longer one is cut off.
const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A body must have arrived whole within this time (kube-apiserver's `--request-timeout`).
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Kubernetes' verbs, as authorisation names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
}

/// A request for a resource that is served.
#[derive(Clone, Debug)]
pub struct ResourceRequest {
    pub verb: Verb,
    pub kind: Arc<Kind>,
    /// `None` for cluster-scoped kinds, and across all namespaces.
    pub namespace: Option<String>,
    /// Empty for the collection.
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
}

/// What a path names.
#[derive(Debug)]
pub enum Target {
    Resource(ResourceRequest),
    /// Nothing of Kubernetes' API: answered with plain text.
    UnknownPath,
}

/// Parameters of a URL, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Query {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent_decode(name, true), percent_decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of a parameter; empty when it is missing.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// Go's `strconv.ParseBool`, with everything else (and a bare name) true, as Kubernetes' conversion does it.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.text(name), "false" | "0" | "False" | "FALSE" | "f" | "F")
    }

    /// # Errors
    /// 400 with Go's words.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        match self.text(name) {
            "" => Ok(None),
            text => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
            },
        }
    }
}

/// `%41+b` as `Ab` and a blank; what is no valid escape stays as it is.
pub fn percent_decode(text: &str, plus_is_blank: bool) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match bytes[at] {
            b'%' => {
                if let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2)) {
                    decoded.push((high * 16 + low) as u8);
                    at += 3;
                    continue;
                }
                decoded.push(b'%');
            }
            b'+' if plus_is_blank => decoded.push(b' '),
            byte => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8(decoded).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Subresources of a namespace itself: `/namespaces/NS/status` names no resource in it.
const NAMESPACE_SUBRESOURCES: &[&str] = &["status", "finalize"];

/// Takes the path of a resource apart: `/api/v1/...` or `/apis/G/V/...`.
///
/// # Errors
/// 404 for a resource that is not served, 405 for a method it does not have.
pub fn target(kinds: &Kinds, method: &Method, path: &str, query: &Query) -> Result<Target, Status> {
    let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(|s| percent_decode(s, false)).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Ok(Target::UnknownPath),
    };
    if !kinds.iter().any(|kind| kind.group == group && kind.version == version) {
        return Ok(Target::UnknownPath);
    }
    let (namespace, rest) = match rest {
        ["namespaces", namespace, below @ ..] if !below.is_empty() && !NAMESPACE_SUBRESOURCES.contains(&below[0]) => {
            (Some(*namespace), below)
        }
        rest => (None, rest),
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, "", ""),
        [resource, name] => (*resource, *name, ""),
        [resource, name, subresource] => (*resource, *name, *subresource),
        _ => return Err(Status::unknown_resource()),
    };
    let kind = kinds.by_resource(group, version, resource).ok_or_else(Status::unknown_resource)?.clone();
    if !kind.namespaced && namespace.is_some() || kind.namespaced && namespace.is_none() && !name.is_empty() {
        return Err(Status::unknown_resource());
    }
    let verb = verb(method, name, query).ok_or_else(Status::method_not_allowed)?;
    let served = match subresource {
        "" => kind.allows(verb.as_str()),
        sub => {
            let sub = kind.subresource(sub).ok_or_else(|| unserved(&kind, sub))?;
            let verb = if method == Method::POST { "create" } else { verb.as_str() };
            sub.verbs.iter().any(|allowed| allowed == verb)
        }
    };
    let everywhere = kind.namespaced && namespace.is_none();
    if !served || (verb == Verb::Create && (everywhere || (!name.is_empty() && subresource.is_empty()))) {
        return Err(Status::method_not_allowed());
    }
    Ok(Target::Resource(ResourceRequest {
        verb,
        kind,
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    }))
}

/// Says of Kubernetes' interactive subresources that they are not served, so that nobody looks for the fault in their pod.
fn unserved(kind: &Kind, subresource: &str) -> Status {
    let what = match subresource {
        "exec" => "running commands in containers (exec, cp)",
        "attach" => "attaching to containers",
        "portforward" => "forwarding ports",
        "ephemeralcontainers" => "ephemeral containers (debug)",
        _ => return Status::unknown_resource(),
    };
    let mut status = Status::unknown_resource();
    status.message = format!("this server does not serve {what}: {}/{subresource} is not implemented", kind.plural);
    status
}

fn verb(method: &Method, name: &str, query: &Query) -> Option<Verb> {
    Some(match (method.as_str(), name.is_empty()) {
        ("GET", true) if query.flag("watch") => Verb::Watch,
        ("GET", true) => Verb::List,
        ("GET", false) => Verb::Get,
        ("POST", _) => Verb::Create,
        ("PUT", false) => Verb::Update,
        ("PATCH", false) => Verb::Patch,
        ("DELETE", false) => Verb::Delete,
        ("DELETE", true) => Verb::DeleteCollection,
        _ => return None,
    })
}

/// The parameters of a write.
///
/// # Errors
/// 422 for a value that Kubernetes does not know.
pub fn write_options(query: &Query) -> Result<WriteOptions, Status> {
    Ok(WriteOptions {
        field_manager: Some(query.text("fieldManager")).filter(|name| !name.is_empty()).map(str::to_owned),
        dry_run: dry_run(query.text("dryRun"))?,
        field_validation: FieldValidation::parse(query.text("fieldValidation"))?,
    })
}

/// # Errors
/// 422 for anything but nothing and `All`.
pub fn dry_run(text: &str) -> Result<bool, Status> {
    match text {
        "" => Ok(false),
        "All" => Ok(true),
        other => {
            let cause = not_supported("dryRun", other, &["All"]);
            Err(Status::invalid_kind("meta.k8s.io", "CreateOptions", "", vec![cause]))
        }
    }
}

/// The parameters of a list; a watch begins with the same.
///
/// # Errors
/// 400 for a selector or a number that cannot be read, 422 for an unknown match.
pub fn list_options(kind: &Kind, query: &Query) -> Result<ListOptions, Status> {
    Ok(ListOptions {
        label: LabelSelector::parse(query.text("labelSelector"))?,
        field: FieldSelector::parse(kind, query.text("fieldSelector"))?,
        limit: usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX),
        continue_token: query.text("continue").to_owned(),
        resource_version: query.text("resourceVersion").to_owned(),
        version_match: match query.text("resourceVersionMatch") {
            "" => None,
            "Exact" => Some(VersionMatch::Exact),
            "NotOlderThan" => Some(VersionMatch::NotOlderThan),
            other => {
                let cause = not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan", ""]);
                return Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", vec![cause]));
            }
        },
    })
}

/// The whole body.
///
/// # Errors
/// 413 when it is too large, 400 when the client breaks off or is too slow.
pub async fn body<B>(body: B) -> Result<bytes::Bytes, Status>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    body_within(body, BODY_BYTES_MAX, BODY_DEADLINE).await
}

/// As [`body`], with limits of its own.
pub async fn body_within<B>(body: B, bytes_max: usize, deadline: Duration) -> Result<bytes::Bytes, Status>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(deadline, collect(body, bytes_max)).await {
        Ok(Ok(Some(collected))) => Ok(collected),
        Ok(Ok(None)) => Err(Status::request_entity_too_large(bytes_max)),
        Ok(Err(error)) => Err(Status::bad_request(format!("the body of the request broke off: {error}"))),
        Err(_) => {
            Err(Status::bad_request(format!("the body of the request did not arrive within {} s", deadline.as_secs())))
        }
    }
}

/// The whole body; `None` when it is longer than `bytes_max`. What is too much is read and thrown away, within [`DISCARD_BYTES_MAX`]: a
/// client that is still sending when the connection closes sees a broken pipe instead of the answer that tells it why (RFC 9112, 9.6).
async fn collect<B>(body: B, bytes_max: usize) -> Result<Option<bytes::Bytes>, Box<dyn std::error::Error + Send + Sync>>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(body);
    let mut whole = bytes::BytesMut::new();
    let mut discarded = 0;
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(Into::into)?.into_data() else { continue };
        if discarded == 0 && whole.len() + data.remaining() <= bytes_max {
            whole.put(data);
            continue;
        }
        whole = bytes::BytesMut::new();
        discarded += data.remaining();
        data.advance(data.remaining());
        if discarded > DISCARD_BYTES_MAX {
            return Ok(None);
        }
    }
    Ok((discarded == 0).then(|| whole.freeze()))
}
