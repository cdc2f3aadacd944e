//! Patches: JSON patch, merge patch, strategic merge patch, server-side apply.
use super::{Kind, Object, Status};
use serde_json::Value;

/// A parsed patch body.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    /// Server-side apply: the whole intent of one field manager.
    Apply(Value),
}

/// Parses the body of a PATCH by its Content-Type.
pub fn parse_patch(media_type: &str, body: &[u8]) -> Result<Patch, Status> {
    let value: Value = serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?;
    Ok(match media_type {
        "application/strategic-merge-patch+json" => Patch::Strategic(value),
        _ => Patch::Merge(value),
    })
}

/// The object after the patch; not defaulted, not validated.
pub fn apply_patch(_kind: &Kind, current: &Object, patch: &Patch) -> Result<Object, Status> {
    let mut next = current.clone();
    match patch {
        Patch::Json(ops) => json_patch::patch(&mut next, ops).map_err(|_| Status::unprocessable())?,
        Patch::Merge(value) | Patch::Strategic(value) | Patch::Apply(value) => json_patch::merge(&mut next, value),
    }
    Ok(next)
}
