//! Content negotiation: in which form an answer goes out.
//!
//! JSON always suffices (clients that prefer protobuf list JSON too); YAML when asked; Tables and bare metadata for objects.

use axum::http::{HeaderMap, header};
use serde_json::{Value, json};

use super::request::Query;
use crate::api::table::ListMeta;
use crate::api::{IncludeObject, Kind, Object, Reason, Status, meta, table};

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Whole,
    /// `meta.k8s.io/v1`, or `v1beta1` for old clients.
    Table {
        beta: bool,
    },
    /// `PartialObjectMetadata`, or a list of them.
    Metadata {
        beta: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub view: View,
    pub encoding: Encoding,
    pub include: IncludeObject,
    pub now: jiff::Timestamp,
}

/// One media type of an `Accept` header with its parameters.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Clause<'a> {
    pub media_type: &'a str,
    pub kind: &'a str,
    pub group: &'a str,
    pub version: &'a str,
}

/// The clauses of `Accept` in the order they stand; Kubernetes' clients put what they prefer first.
pub fn clauses(accept: &str) -> impl Iterator<Item = Clause<'_>> {
    accept.split(',').map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let mut parsed = Clause { media_type: parts.next().unwrap_or_default(), ..Clause::default() };
        for part in parts {
            match part.split_once('=') {
                Some(("as", kind)) => parsed.kind = kind,
                Some(("g", group)) => parsed.group = group,
                Some(("v", version)) => parsed.version = version,
                _ => {}
            }
        }
        parsed
    })
}

/// The `Accept` header; empty when there is none.
pub fn accept(headers: &HeaderMap) -> &str {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The form for an answer that holds objects.
///
/// # Errors
/// 406 when the client takes nothing that is served.
pub fn form(headers: &HeaderMap, query: &Query) -> Result<Form, Status> {
    let mut form = Form {
        view: View::Whole,
        encoding: Encoding::Json,
        include: IncludeObject::parse(query.text("includeObject"))
            .ok_or_else(|| Status::bad_request("includeObject: must be None, Metadata or Object"))?,
        now: jiff::Timestamp::now(),
    };
    let accept = accept(headers);
    if accept.trim().is_empty() {
        return Ok(form);
    }
    for clause in clauses(accept) {
        form.encoding = match clause.media_type {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => continue,
        };
        let known_group = clause.group.is_empty() || clause.group == "meta.k8s.io";
        let beta = clause.version == "v1beta1";
        form.view = match clause.kind {
            "" => View::Whole,
            "Table" if known_group => View::Table { beta },
            "PartialObjectMetadata" | "PartialObjectMetadataList" if known_group => View::Metadata { beta },
            _ => continue,
        };
        return Ok(form);
    }
    Err(not_acceptable())
}

fn not_acceptable() -> Status {
    Status {
        success: false,
        message: "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/json;stream=watch"
            .to_owned(),
        reason: Some(Reason::NotAcceptable),
        details: Some(Box::default()),
        code: 406,
    }
}

impl Form {
    /// One object in this form.
    pub fn object(&self, kind: &Kind, object: Object) -> Value {
        match self.view {
            View::Whole => object,
            View::Metadata { beta } => metadata_of(&object, beta),
            View::Table { .. } => {
                let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                let list = ListMeta { resource_version: version, ..ListMeta::default() };
                self.rows(kind, &[&object], &list)
            }
        }
    }

    /// A list in this form.
    pub fn list(&self, kind: &Kind, mut items: Vec<Object>, list: &ListMeta<'_>) -> Value {
        if let View::Table { .. } = self.view {
            let items: Vec<&Object> = items.iter().collect();
            return self.rows(kind, &items, list);
        }
        let mut metadata = json!({ "resourceVersion": list.resource_version });
        if !list.continue_token.is_empty() {
            metadata["continue"] = list.continue_token.into();
        }
        if let Some(remaining) = list.remaining_item_count {
            metadata["remainingItemCount"] = remaining.into();
        }
        if let View::Metadata { beta } = self.view {
            let items: Vec<Value> = items.iter().map(|object| metadata_of(object, beta)).collect();
            return json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": meta_version(beta),
                "metadata": metadata,
                "items": items,
            });
        }
        for object in &mut items {
            // Go's typed lists carry the type once, for all.
            if let Some(object) = object.as_object_mut() {
                object.remove("kind");
                object.remove("apiVersion");
            }
        }
        json!({
            "kind": kind.list_kind(),
            "apiVersion": kind.api_version(),
            "metadata": metadata,
            "items": items,
        })
    }

    /// A bookmark in this form: nothing but a revision.
    pub fn bookmark(&self, kind: &Kind, bookmark: Object) -> Value {
        match self.view {
            View::Whole => bookmark,
            View::Metadata { beta } => metadata_of(&bookmark, beta),
            View::Table { .. } => {
                let version = meta::resource_version(&bookmark).unwrap_or(0).to_string();
                let list = ListMeta { resource_version: &version, ..ListMeta::default() };
                self.rows(kind, &[], &list)
            }
        }
    }

    fn rows(&self, kind: &Kind, items: &[&Object], list: &ListMeta<'_>) -> Value {
        let mut rows = table(kind, items, self.now, self.include, list);
        if self.view == (View::Table { beta: true }) {
            rows["apiVersion"] = meta_version(true).into();
        }
        rows
    }
}

fn meta_version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

fn metadata_of(object: &Object, beta: bool) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": meta_version(beta),
        "metadata": object["metadata"],
    })
}
