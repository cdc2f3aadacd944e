//! Reading and writing objects of any kind.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde_json::Value;

use super::negotiate::{Form, form};
use super::request::{self, Query, ResourceRequest, Verb};
use super::respond;
use super::routes::Gate;
use crate::api::decode::{decode_as, decode_delete_options};
use crate::api::table::ListMeta;
use crate::api::validate::not_supported;
use crate::api::{Cause, Decoded, FieldValidation, Object, Patch, Reason, Status, decode, meta, parse_patch};
use crate::registry::{Binding, DeleteOptions, Deleted, Propagation};

/// Media types that are a patch of some kind, whether or not this resource takes it.
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];

/// 415 in the words of Kubernetes' patch handler.
fn unsupported_patch() -> Status {
    Status {
        success: false,
        message: "415: Unsupported Media Type".to_owned(),
        reason: Some(Reason::UnsupportedMediaType),
        details: Some(Box::default()),
        code: 415,
    }
}

pub async fn serve(
    gate: &Gate,
    wanted: &ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
    body: Body,
) -> Result<Response, Status> {
    let form = form(headers, query)?;
    match wanted.verb {
        Verb::Get => get(gate, wanted, &form).await,
        Verb::List | Verb::Watch => list(gate, wanted, query, &form).await,
        Verb::Create if wanted.subresource == "binding" => bind(gate, wanted, headers, body).await,
        Verb::Create => create(gate, wanted, headers, query, body, &form).await,
        Verb::Update => update(gate, wanted, headers, query, body, &form).await,
        Verb::Patch => patch(gate, wanted, headers, query, body, &form).await,
        Verb::Delete => delete(gate, wanted, headers, query, body, &form).await,
        Verb::DeleteCollection => delete_collection(gate, wanted, headers, query, body, &form).await,
    }
}

fn object(code: u16, form: &Form, wanted: &ResourceRequest, object: Object) -> Response {
    respond::value(code, form.encoding, &form.object(&wanted.kind, object))
}

fn subresource(wanted: &ResourceRequest) -> Option<&str> {
    Some(wanted.subresource.as_str()).filter(|sub| !sub.is_empty())
}

async fn get(gate: &Gate, wanted: &ResourceRequest, form: &Form) -> Result<Response, Status> {
    let found = match wanted.subresource.as_str() {
        "scale" => gate.registry.scale(&wanted.kind, wanted.namespace.as_deref(), &wanted.name).await?,
        _ => gate.registry.get(&wanted.kind, wanted.namespace.as_deref(), &wanted.name).await?,
    };
    Ok(object(200, form, wanted, found))
}

async fn list(gate: &Gate, wanted: &ResourceRequest, query: &Query, form: &Form) -> Result<Response, Status> {
    let options = request::list_options(&wanted.kind, query)?;
    let list = gate.registry.list(&wanted.kind, wanted.namespace.as_deref(), &options).await?;
    let version = list.resource_version.to_string();
    let metadata = ListMeta {
        resource_version: &version,
        continue_token: &list.continue_token,
        remaining_item_count: list.remaining,
    };
    Ok(respond::value(200, form.encoding, &form.list(&wanted.kind, list.items, &metadata)))
}

fn media_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
}

/// The object of a body, of the kind that this resource or subresource takes.
fn decoded(
    gate: &Gate,
    wanted: &ResourceRequest,
    headers: &HeaderMap,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let kind = &wanted.kind;
    match kind.subresource(&wanted.subresource) {
        Some(sub) if sub.kind != kind.kind => {
            decode_as(&sub.group, &sub.version, &sub.kind, media_type(headers), body, validation)
        }
        _ => decode(gate.registry.kinds(), media_type(headers), body, Some(kind), validation),
    }
}

async fn create(
    gate: &Gate,
    wanted: &ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
    body: Body,
    form: &Form,
) -> Result<Response, Status> {
    let options = request::write_options(query)?;
    let body = request::body(body).await?;
    if !wanted.subresource.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let Decoded { object: new, warnings } = decoded(gate, wanted, headers, &body, options.field_validation)?;
    let created = gate.registry.create(&wanted.kind, wanted.namespace.as_deref(), new, &options).await?;
    Ok(respond::warn(object(201, form, wanted, created), &warnings))
}

async fn update(
    gate: &Gate,
    wanted: &ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
    body: Body,
    form: &Form,
) -> Result<Response, Status> {
    let options = request::write_options(query)?;
    let body = request::body(body).await?;
    let Decoded { object: new, warnings } = decoded(gate, wanted, headers, &body, options.field_validation)?;
    let namespace = wanted.namespace.as_deref();
    let updated =
        gate.registry.update(&wanted.kind, namespace, &wanted.name, subresource(wanted), new, &options).await?;
    Ok(respond::warn(object(200, form, wanted, updated), &warnings))
}

async fn patch(
    gate: &Gate,
    wanted: &ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
    body: Body,
    form: &Form,
) -> Result<Response, Status> {
    let options = request::write_options(query)?;
    let body = request::body(body).await?;
    let media_type = media_type(headers).unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !PATCHES.contains(&media_type) {
        return Err(unsupported_patch());
    }
    let patch = parse_patch(media_type, &body)?;
    if matches!(patch, Patch::Apply(_)) && options.field_manager.is_none() {
        let cause = Cause {
            reason: "FieldValueRequired".to_owned(),
            message: "Required value: is required for apply patch".to_owned(),
            field: "fieldManager".to_owned(),
        };
        return Err(Status::invalid_kind("meta.k8s.io", "PatchOptions", "", vec![cause]));
    }
    let patched = gate
        .registry
        .patch_or_create(&wanted.kind, wanted.namespace.as_deref(), &wanted.name, subresource(wanted), &patch, &options)
        .await?;
    let code = if patched.created { 201 } else { 200 };
    Ok(respond::warn(object(code, form, wanted, patched.object), &patched.warnings))
}

/// `POST pods/NAME/binding`: what a scheduler outside the cluster's own sends.
async fn bind(gate: &Gate, wanted: &ResourceRequest, headers: &HeaderMap, body: Body) -> Result<Response, Status> {
    let body = request::body(body).await?;
    let binding = decoded(gate, wanted, headers, &body, FieldValidation::Ignore)?.object;
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        let cause = Cause {
            reason: "FieldValueRequired".to_owned(),
            message: "Required value".to_owned(),
            field: "target.name".to_owned(),
        };
        return Err(Status::invalid_kind("", "Binding", &wanted.name, vec![cause]));
    }
    let binding = Binding {
        namespace: wanted.namespace.clone().unwrap_or_default(),
        name: wanted.name.clone(),
        uid: meta::uid(&binding).to_owned(),
        node: node.to_owned(),
    };
    gate.registry.bind_many(vec![binding]).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut done = Status::success_deleted(&wanted.kind, "", "");
    done.details = None;
    done.code = 201;
    Ok(respond::status(&done))
}

async fn delete_options(headers: &HeaderMap, query: &Query, body: Body) -> Result<DeleteOptions, Status> {
    let body = request::body(body).await?;
    let given = decode_delete_options(media_type(headers), &body)?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let propagation = text(&given["propagationPolicy"])
        .or_else(|| Some(query.text("propagationPolicy").to_owned()).filter(|text| !text.is_empty()));
    let orphan = given["orphanDependents"].as_bool();
    let grace = match given["gracePeriodSeconds"].as_i64() {
        Some(seconds) => Some(seconds),
        None => query.number("gracePeriodSeconds")?.and_then(|seconds| i64::try_from(seconds).ok()),
    };
    if grace.is_some_and(|seconds| seconds < 0) {
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {}: must be greater than or equal to 0", grace.unwrap_or_default()),
            field: "gracePeriodSeconds".to_owned(),
        };
        return Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", vec![cause]));
    }
    Ok(DeleteOptions {
        grace_period_seconds: grace,
        uid: text(&given["preconditions"]["uid"]),
        resource_version: text(&given["preconditions"]["resourceVersion"]),
        propagation: match (propagation.as_deref(), orphan) {
            (None, None) => None,
            (None, Some(true)) | (Some("Orphan"), _) => Some(Propagation::Orphan),
            (None, Some(false)) | (Some("Background"), _) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some(other), _) => {
                let cause = not_supported("propagationPolicy", other, &["Foreground", "Background", "Orphan", "nil"]);
                return Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", vec![cause]));
            }
        },
        dry_run: match &given["dryRun"] {
            Value::Array(values) => values.iter().any(|value| value == "All"),
            _ => request::dry_run(query.text("dryRun"))?,
        },
    })
}

async fn delete(
    gate: &Gate,
    wanted: &ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
    body: Body,
    form: &Form,
) -> Result<Response, Status> {
    let options = delete_options(headers, query, body).await?;
    let kind = &wanted.kind;
    let deleted = gate.registry.delete(kind, wanted.namespace.as_deref(), &wanted.name, &options).await?;
    Ok(match deleted {
        // Kubernetes answers with the object where it may go on living for a while, or might have (pods).
        Deleted::Removed(object) if !kind.graceful_delete => {
            respond::status(&Status::success_deleted(kind, meta::name(&object), meta::uid(&object)))
        }
        Deleted::Removed(last) | Deleted::Terminating(last) => object(200, form, wanted, last),
    })
}

async fn delete_collection(
    gate: &Gate,
    wanted: &ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
    body: Body,
    form: &Form,
) -> Result<Response, Status> {
    let list = request::list_options(&wanted.kind, query)?;
    let options = delete_options(headers, query, body).await?;
    let deleted = gate.registry.delete_collection(&wanted.kind, wanted.namespace.as_deref(), &list, &options).await?;
    let version = gate.registry.store().revision().to_string();
    let metadata = ListMeta { resource_version: &version, ..ListMeta::default() };
    Ok(respond::value(200, form.encoding, &form.list(&wanted.kind, deleted, &metadata)))
}
