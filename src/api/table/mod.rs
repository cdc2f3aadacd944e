//! `meta.k8s.io/v1` Tables: the columns that `kubectl get` prints, rendered by the server.
//!
//! Columns and cells are those of Kubernetes' printers. A kind without columns of its own shows name and age.

mod columns;
mod pod;
mod rows;

use serde_json::{Map, Value, json};

use super::{Kind, Object};

/// What each row's `object` holds: the `includeObject` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    /// As `PartialObjectMetadata`.
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// Parses the `includeObject` parameter; an empty one is the default. None if there is no such value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(IncludeObject::Metadata),
            "None" => Some(IncludeObject::None),
            "Object" => Some(IncludeObject::Object),
            _ => None,
        }
    }
}

/// The metadata of the list that a table stands for.
#[derive(Clone, Debug, Default)]
pub struct ListMeta<'a> {
    pub resource_version: &'a str,
    pub continue_token: &'a str,
    pub remaining_item_count: Option<u64>,
}

/// The objects as a Table. `now` is for the ages.
pub fn table(
    kind: &Kind,
    items: &[&Object],
    now: jiff::Timestamp,
    include: IncludeObject,
    list: &ListMeta<'_>,
) -> Object {
    let mut metadata = Map::new();
    if !list.resource_version.is_empty() {
        metadata.insert("resourceVersion".to_owned(), list.resource_version.into());
    }
    if !list.continue_token.is_empty() {
        metadata.insert("continue".to_owned(), list.continue_token.into());
    }
    if let Some(count) = list.remaining_item_count {
        metadata.insert("remainingItemCount".to_owned(), count.into());
    }
    let rows: Vec<Value> = items
        .iter()
        .map(|object| {
            let cells = rows::cells(kind, object, now);
            match include {
                IncludeObject::None => json!({"cells": cells}),
                IncludeObject::Metadata => json!({"cells": cells, "object": partial_object_metadata(object)}),
                IncludeObject::Object => json!({"cells": cells, "object": object}),
            }
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns::of(kind),
        "rows": rows,
    })
}

/// The metadata of an object alone, as metadata informers want it.
pub fn partial_object_metadata(object: &Object) -> Object {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

#[cfg(test)]
#[path = "table_test.rs"]
mod table_test;
