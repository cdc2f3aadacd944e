//! OpenAPI v3.
use super::{Kinds, Object};

/// `/openapi/v3`.
pub fn index(_kinds: &Kinds) -> Object {
    serde_json::json!({"paths": {}})
}
/// `/openapi/v3/{path}`, where path is `api/v1` or `apis/G/V`.
pub fn document(_kinds: &Kinds, _path: &str) -> Option<Object> {
    None
}
