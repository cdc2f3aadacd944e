//! From the bytes of a request to an [`Object`]: JSON, YAML or Kubernetes' protobuf, checked against the schema.
//!
//! Called for every body that creates or replaces an object, and for the bodies of subresources and options. Patches go
//! through [`super::patch`] and come back to [`conform_object`].

use serde_json::Value;

use super::conform::conform;
use super::kinds::{self, group_version};
use super::schema::{self, TypeId};
use super::{Kind, Kinds, Object, Status, json, meta, protobuf, yaml};

/// Media types of bodies that carry an object.
pub const MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// What to do about unknown and duplicate fields: the `fieldValidation` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    /// Drop them and warn; Kubernetes' default.
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// Parses the `fieldValidation` parameter; an empty one is the default.
    ///
    /// # Errors
    /// 422, as Kubernetes words it.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            "Strict" => Ok(FieldValidation::Strict),
            other => {
                let cause = super::validate::not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
                Err(Status::invalid_kind("meta.k8s.io", "CreateOptions", "", vec![cause]))
            }
        }
    }
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub object: Object,
    /// Texts for `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// What a body must be.
struct Target<'a> {
    api_version: String,
    kind: &'a str,
    schema: TypeId,
}

/// Decodes the body of a create or an update. `media_type` is the Content-Type header; a missing one is JSON.
///
/// With `expect`, a body without kind and apiVersion gets those, and one of another kind is refused. Without, the kind is
/// the body's own and must be one of `kinds`.
///
/// # Errors
/// 400 with Kubernetes' text for anything malformed, unknown or duplicate (under `Strict`), 415 for a media type or a
/// protobuf kind that is not served.
pub fn decode(
    kinds: &Kinds,
    media_type: Option<&str>,
    body: &[u8],
    expect: Option<&Kind>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let target = expect.map(|kind| Target { api_version: kind.api_version(), kind: &kind.kind, schema: kind.schema });
    match target {
        Some(target) => decode_target(media_type, body, &target, validation),
        None => {
            let raw = read(media_type, body, None)?;
            let kind = kinds.of(&raw.value).ok_or_else(|| unknown_kind(&raw.value))?;
            let target = Target { api_version: kind.api_version(), kind: &kind.kind, schema: kind.schema };
            finish(raw, &target, validation)
        }
    }
}

/// Decodes the body of a subresource, or options such as `DeleteOptions`, by the group, version and kind it must have.
///
/// `DeleteOptions` and its siblings are accepted with the apiVersion of any group, as Kubernetes does.
///
/// # Errors
/// As [`decode`]; 404 if the schema does not know such a kind.
pub fn decode_as(
    group: &str,
    version: &str,
    kind: &str,
    media_type: Option<&str>,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let schema = schema_of(group, version, kind).ok_or_else(Status::unknown_resource)?;
    let target = Target { api_version: group_version(group, version), kind, schema };
    decode_target(media_type, body, &target, validation)
}

/// Decodes the body of a DELETE; an empty body is empty options.
///
/// # Errors
/// As [`decode`].
pub fn decode_delete_options(media_type: Option<&str>, body: &[u8]) -> Result<Object, Status> {
    if body.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    decode_as("", "v1", "DeleteOptions", media_type, body, FieldValidation::Warn).map(|decoded| decoded.object)
}

/// Checks an object that did not come through [`decode`] (the result of a patch), and gives it its canonical form.
///
/// # Errors
/// 400, as [`decode`].
pub fn conform_object(kind: &Kind, object: Object, validation: FieldValidation) -> Result<Decoded, Status> {
    let target = Target { api_version: kind.api_version(), kind: &kind.kind, schema: kind.schema };
    finish(Raw { value: object, duplicates: Vec::new() }, &target, validation)
}

fn schema_of(group: &str, version: &str, kind: &str) -> Option<TypeId> {
    if is_options(kind) {
        return schema::type_named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    }
    schema::type_of_kind(group, version, kind)
}

/// Options have no group of their own: every group registers them.
fn is_options(kind: &str) -> bool {
    kind == "DeleteOptions"
}

struct Raw {
    value: Value,
    duplicates: Vec<String>,
}

fn decode_target(
    media_type: Option<&str>,
    body: &[u8],
    target: &Target<'_>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let raw = read(media_type, body, Some(target))?;
    finish(raw, target, validation)
}

/// The value of the body, whatever its encoding.
fn read(media_type: Option<&str>, body: &[u8], target: Option<&Target<'_>>) -> Result<Raw, Status> {
    let essence = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let wanted = target.map_or("", |t| t.kind);
    match essence.to_ascii_lowercase().as_str() {
        // Go clients send no Content-Type, or a stream's, for small bodies: both are JSON.
        "" | "application/json" | "text/json" | "application/octet-stream" | "application/x-www-form-urlencoded" => {
            let (value, duplicates) =
                json::parse(body).map_err(|e| unrecognized(wanted, &json_error(&e, body), body))?;
            if !value.is_object() {
                let found = match value {
                    Value::Array(_) => "array",
                    Value::String(_) => "string",
                    Value::Number(_) => "number",
                    Value::Bool(_) => "bool",
                    _ => "null",
                };
                let why = format!(
                    "json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
                );
                return Err(unrecognized(wanted, &why, body));
            }
            Ok(Raw { value, duplicates })
        }
        "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => {
            let text = std::str::from_utf8(body).map_err(|_| Status::bad_request("the YAML body is not UTF-8"))?;
            let value =
                yaml::value(text).map_err(|e| Status::bad_request(format!("error converting YAML to JSON: {e}")))?;
            Ok(Raw { value, duplicates: Vec::new() })
        }
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(body, |group, version, kind| match target {
                Some(target) if kind.is_empty() || kind == target.kind => Some(target.schema),
                _ => schema_of(group, version, kind),
            })?;
            Ok(Raw { value, duplicates: Vec::new() })
        }
        _ => Err(Status::unsupported_media_type(MEDIA_TYPES)),
    }
}

fn finish(raw: Raw, target: &Target<'_>, validation: FieldValidation) -> Result<Decoded, Status> {
    let Raw { mut value, duplicates } = raw;
    check_kind(&mut value, target)?;
    let unknown = conform(target.schema, &mut value).map_err(|why| cannot_be_handled(target, &why))?;
    let mut problems: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    problems.extend(duplicates.iter().map(|path| format!("duplicate field \"{path}\"")));
    match validation {
        FieldValidation::Strict if !problems.is_empty() => {
            Err(cannot_be_handled(target, &format!("strict decoding error: {}", problems.join(", "))))
        }
        FieldValidation::Warn => Ok(Decoded { object: value, warnings: problems }),
        _ => Ok(Decoded { object: value, warnings: Vec::new() }),
    }
}

fn check_kind(value: &mut Value, target: &Target<'_>) -> Result<(), Status> {
    let Some(map) = value.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {})",
            target.kind
        )));
    };
    for field in ["apiVersion", "kind"] {
        if map.get(field).is_some_and(|v| !v.is_string() && !v.is_null()) {
            return Err(Status::bad_request(format!("{field} must be a string")));
        }
    }
    let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let kind_differs = !kind.is_empty() && kind != target.kind;
    let version_differs = !api_version.is_empty() && api_version != target.api_version && !is_options(target.kind);
    if kind_differs || version_differs {
        let (group, version) = kinds::parse_group_version(&api_version);
        let shown = if kind.is_empty() { target.kind } else { kind.as_str() };
        let why = if kind_differs && schema_of(group, version, &kind).is_some() {
            let internal = |group: &str| match group.split('.').next() {
                Some("") | None => "core".to_owned(),
                Some(word) => word.to_owned(),
            };
            let (own_group, _) = kinds::parse_group_version(&target.api_version);
            format!("converting ({version}.{kind}) to ({}.{}): unknown conversion", internal(own_group), target.kind)
        } else {
            format!("no kind {shown:?} is registered for version {api_version:?}")
        };
        return Err(Status::bad_request(format!(
            "{shown} in version {:?} cannot be handled as a {}: {why}",
            if api_version.is_empty() { &target.api_version } else { &api_version },
            target.kind
        )));
    }
    map.insert("apiVersion".to_owned(), target.api_version.clone().into());
    map.insert("kind".to_owned(), target.kind.into());
    Ok(())
}

fn cannot_be_handled(target: &Target<'_>, why: &str) -> Status {
    let (_, version) = kinds::parse_group_version(&target.api_version);
    Status::bad_request(format!("{} in version {version:?} cannot be handled as a {}: {why}", target.kind, target.kind))
}

fn unknown_kind(value: &Value) -> Status {
    let (api_version, kind) = (meta::api_version(value), meta::kind(value));
    Status::bad_request(match (kind, api_version) {
        ("", _) => "Object 'Kind' is missing".to_owned(),
        (_, "") => "Object 'apiVersion' is missing".to_owned(),
        _ => format!("no kind {kind:?} is registered for version {api_version:?}"),
    })
}

/// Go's words where clients know them, serde's elsewhere.
fn json_error(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let text = error.to_string();
    let _ = body;
    text
}

/// A body whose kind cannot even be read. It is quoted in hexadecimal, as Kubernetes does, but at most so much of it.
fn unrecognized(wanted: &str, why: &str, body: &[u8]) -> Status {
    const QUOTED_BYTES_MAX: usize = 32;
    let quoted = if body.is_empty() {
        "<empty>".to_owned()
    } else {
        let hex: String = body.iter().take(QUOTED_BYTES_MAX).map(|b| format!("{b:02x}")).collect();
        if body.len() > QUOTED_BYTES_MAX { format!("{hex} ...") } else { hex }
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {wanted}): couldn't get version/kind; json parse error: {why} ({quoted})"
    ))
}

#[cfg(test)]
#[path = "decode_test.rs"]
mod decode_test;
