//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch, server-side apply.
//!
//! The result of a patch is conformed, defaulted and validated by the caller, exactly as a whole new object would be.

mod strategic;
pub mod three_way;

use serde_json::Value;

use super::{Kind, Object, Status, yaml};

/// Media types of patches.
pub const JSON_PATCH: &str = "application/json-patch+json";
pub const MERGE_PATCH: &str = "application/merge-patch+json";
pub const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Most operations of one JSON patch, as in Kubernetes.
const OPERATIONS_MAX: usize = 10_000;

/// Deepest nesting of a patch's maps and lists. serde_json refuses more than 128 when it parses.
const DEPTH_MAX: usize = 128;

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
///
/// # Errors
/// 415 for another media type, 400 for a body that is no such patch, 413 for too many operations.
pub fn parse_patch(media_type: &str, body: &[u8]) -> Result<Patch, Status> {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let object = |body: &[u8]| -> Result<Value, Status> {
        let value: Value =
            serde_json::from_slice(body).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
        if value.is_object() {
            Ok(value)
        } else {
            Err(Status::bad_request(
                "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}",
            ))
        }
    };
    match essence {
        JSON_PATCH => {
            let value: Value =
                serde_json::from_slice(body).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
            if value.is_object() {
                return Err(Status::bad_request(
                    "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
                ));
            }
            let patch: json_patch::Patch =
                serde_json::from_value(value).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
            if patch.0.len() > OPERATIONS_MAX {
                return Err(Status::request_entity_too_large(OPERATIONS_MAX));
            }
            Ok(Patch::Json(patch))
        }
        MERGE_PATCH => object(body).map(Patch::Merge),
        STRATEGIC_MERGE_PATCH => object(body).map(Patch::Strategic),
        APPLY_PATCH => {
            let text = std::str::from_utf8(body).map_err(|_| Status::bad_request("the apply patch is not UTF-8"))?;
            let value = yaml::documents(text).map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?;
            match <[_; 1]>::try_from(value) {
                Ok([(value, _)]) if value.is_object() => Ok(Patch::Apply(value)),
                _ => Err(Status::bad_request("an apply patch must hold one object")),
            }
        }
        _ => Err(Status::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH])),
    }
}

/// The object after the patch; not conformed, not defaulted, not validated.
///
/// # Errors
/// 422 for a JSON patch that does not fit, 500 with Kubernetes' text for a bad strategic patch, 415 for [`Patch::Apply`].
pub fn apply_patch(kind: &Kind, current: &Object, patch: &Patch) -> Result<Object, Status> {
    match patch {
        Patch::Json(operations) => {
            let mut next = current.clone();
            json_patch::patch(&mut next, operations).map_err(|_| Status::unprocessable())?;
            Ok(next)
        }
        Patch::Merge(merge) => {
            let mut next = current.clone();
            json_patch::merge(&mut next, merge);
            Ok(next)
        }
        Patch::Strategic(merge) => strategic::merge(kind.schema, current, merge),
        Patch::Apply(_) => Err(Status::unsupported_media_type(&[JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Kinds;

    #[test]
    fn json_and_merge_patches_apply() {
        let kinds = Kinds::builtin();
        let kind = kinds.by_kind("", "v1", "ConfigMap").expect("served");
        let current = json!({"data": {"a": "1", "b": "2"}});
        let patch = parse_patch(MERGE_PATCH, br#"{"data": {"a": null, "c": "3"}}"#).expect("good");
        assert_eq!(apply_patch(kind, &current, &patch), Ok(json!({"data": {"b": "2", "c": "3"}})));
        let patch = parse_patch(
            "application/json-patch+json; charset=utf-8",
            br#"[{"op": "replace", "path": "/data/a", "value": "x"}]"#,
        )
        .expect("good");
        assert_eq!(apply_patch(kind, &current, &patch), Ok(json!({"data": {"a": "x", "b": "2"}})));
    }

    #[test]
    fn bad_patches_are_refused_in_kubernetes_words() {
        let kinds = Kinds::builtin();
        let kind = kinds.by_kind("", "v1", "ConfigMap").expect("served");
        let refused = |media: &str, body: &str| {
            let status = parse_patch(media, body.as_bytes())
                .and_then(|patch| apply_patch(kind, &json!({"data": {"a": "1"}}), &patch))
                .expect_err("bad");
            (status.code, status.message)
        };
        let unfit = (422, "the server rejected our request due to an error in our request".to_owned());
        assert_eq!(refused(JSON_PATCH, r#"[{"op": "test", "path": "/data/a", "value": "no"}]"#), unfit);
        assert_eq!(refused(JSON_PATCH, r#"[{"op": "remove", "path": "/data/zzz"}]"#), unfit);
        assert_eq!(
            refused(JSON_PATCH, r#"{"a": 1}"#),
            (
                400,
                "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
                    .to_owned()
            )
        );
        assert_eq!(refused("application/nope", "{}").0, 415);
        assert_eq!(refused(MERGE_PATCH, "[1]").0, 400);
    }
}
