//! Watches: events as lines of JSON, each sent as soon as it happens.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::negotiate::{Form, form};
use super::request::{self, Query, ResourceRequest};
use super::respond;
use super::routes::Gate;
use crate::api::{Cause, Status};
use crate::registry::{ObjectEvent, ObjectWatch, VersionMatch, WatchOptions};

/// A watch without `timeoutSeconds` ends after a random time of once to twice this, so that clients spread over the
/// servers again; Kubernetes' own figure.
const TIMEOUT_MIN_S: u64 = 1_800;
/// Bytes of events put together when many are ready at once.
const CHUNK_BYTES: usize = 64 * 1024;

struct Stream {
    watch: Option<ObjectWatch>,
    first: Option<Value>,
    request: ResourceRequest,
    form: Form,
    until: Instant,
    stopping: CancellationToken,
    bookmarks: bool,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

pub async fn serve(
    gate: Arc<Gate>,
    wanted: ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
    permit: OwnedSemaphorePermit,
) -> Result<Response, Status> {
    let form = form(headers, query)?;
    let options = options(&gate, &wanted, query)?;
    let seconds = match query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds,
        _ => rand::rng().random_range(TIMEOUT_MIN_S..=2 * TIMEOUT_MIN_S),
    };
    let until = Instant::now() + Duration::from_secs(seconds.min(u64::from(u32::MAX)));
    let bookmarks = options.bookmarks;
    let (watch, first) = match gate.registry.watch(&wanted.kind, wanted.namespace.as_deref(), &options).await {
        Ok(watch) => (Some(watch), None),
        // Clients take this one as an event, after which they list again.
        Err(status) if status.http_code() == 410 => (None, Some(error(&status))),
        Err(status) => return Err(status),
    };
    let stopping = gate.stopping.clone();
    let stream =
        Stream { watch, first, request: wanted, form, until, stopping, bookmarks, ended: false, _permit: permit };
    let lines = futures::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.chunk().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), stream))
    });
    Ok(respond::of(200, respond::JSON, Body::from_stream(lines)))
}

fn options(gate: &Gate, wanted: &ResourceRequest, query: &Query) -> Result<WatchOptions, Status> {
    let list = request::list_options(&wanted.kind, query)?;
    let initial = query.flag("sendInitialEvents");
    if query.has("sendInitialEvents") && list.version_match != Some(VersionMatch::NotOlderThan) {
        return Err(forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    if !query.has("sendInitialEvents") && list.version_match.is_some() {
        return Err(forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"));
    }
    let mut resource_version = list.resource_version;
    if query.has("sendInitialEvents") && !initial && matches!(resource_version.as_str(), "" | "0") {
        // Explicitly nothing of what is there: from now on.
        resource_version = gate.registry.store().revision().max(1).to_string();
    }
    Ok(WatchOptions {
        label: list.label,
        field: list.field,
        resource_version,
        send_initial_events: initial,
        bookmarks: query.flag("allowWatchBookmarks"),
    })
}

fn forbidden(why: &str) -> Status {
    let cause = Cause {
        reason: "FieldValueForbidden".to_owned(),
        message: format!("Forbidden: {why}"),
        field: "resourceVersionMatch".to_owned(),
    };
    Status::invalid_kind("meta.k8s.io", "ListOptions", "", vec![cause])
}

fn error(status: &Status) -> Value {
    json!({ "type": "ERROR", "object": status.to_value() })
}

impl Stream {
    /// The next lines; `None` ends the answer cleanly.
    async fn chunk(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut lines = Vec::new();
        if let Some(first) = self.first.take() {
            self.line(&mut lines, &first);
            self.ended = true;
            return Some(lines.into());
        }
        let event = {
            let watch = self.watch.as_mut()?;
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => None,
                event = watch.next() => event,
                () = sleep_until(self.until) => {
                    self.ended = true;
                    // The client resumes from here without missing or repeating anything.
                    let progress = watch.progress();
                    self.bookmarks.then_some(ObjectEvent::Bookmark(progress))
                }
            }
        }?;
        self.push(&mut lines, event);
        // What is ready now goes out together.
        while lines.len() < CHUNK_BYTES && !self.ended {
            let Some(event) = self.watch.as_mut().and_then(ObjectWatch::try_next) else { break };
            self.push(&mut lines, event);
        }
        Some(lines.into())
    }

    fn push(&mut self, lines: &mut Vec<u8>, event: ObjectEvent) {
        self.form.now = jiff::Timestamp::now();
        let kind = &self.request.kind;
        let (word, object) = match event {
            ObjectEvent::Added(object) => ("ADDED", self.form.object(kind, object)),
            ObjectEvent::Modified(object) => ("MODIFIED", self.form.object(kind, object)),
            ObjectEvent::Deleted(object) => ("DELETED", self.form.object(kind, object)),
            ObjectEvent::Bookmark(object) => ("BOOKMARK", self.form.bookmark(kind, object)),
            ObjectEvent::Error(status) => {
                self.ended = true;
                ("ERROR", status.to_value())
            }
        };
        self.line(lines, &json!({ "type": word, "object": object }));
    }

    fn line(&self, lines: &mut Vec<u8>, event: &Value) {
        // Writing JSON to memory fails for nothing that is JSON already.
        if serde_json::to_writer(&mut *lines, event).is_ok() {
            lines.push(b'\n');
        }
    }
}
