//! Discovery documents.
use super::{Kinds, Object};
use serde_json::json;

/// `/api`.
pub fn api_versions(server_address: &str) -> Object {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}
/// `/apis`.
pub fn api_group_list(_kinds: &Kinds) -> Object {
    json!({})
}
/// `/apis/G`.
pub fn api_group(_kinds: &Kinds, _group: &str) -> Option<Object> {
    None
}
/// `/api/v1` and `/apis/G/V`.
pub fn api_resource_list(_kinds: &Kinds, _group: &str, _version: &str) -> Option<Object> {
    None
}
/// Version of the aggregated discovery format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregated {
    V2,
    V2Beta1,
}
/// The aggregated document of `/api` (core) or `/apis` (all other groups).
pub fn aggregated(_kinds: &Kinds, _core: bool, _format: Aggregated) -> Object {
    json!({})
}
/// `/version`.
pub fn version() -> Object {
    json!({})
}
