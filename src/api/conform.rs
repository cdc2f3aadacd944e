//! Makes a JSON value an object of its type, as a round trip through Kubernetes' Go types would.
//!
//! Wrong types are refused with Go's words. Unknown fields are removed and reported. Nulls, and empty values of optional
//! fields that are not pointers, are removed, so that equal objects have equal JSON. Quantities and times get their
//! canonical form.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::json::join;
use super::meta;
use super::quantity::Quantity;
use super::schema::{Field, Form, Shape, Type, TypeId};

/// Base64 as Go reads it: padded, or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Most unknown fields that are reported of one object.
const UNKNOWN_MAX: usize = 64;

/// What was removed because its type does not have it: paths such as `spec.containers[0].nope`.
pub type Unknown = Vec<String>;

/// Conforms a value to a type.
///
/// # Errors
/// One line with Go's words, such as `json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of
/// type bool`.
pub fn conform(ty: TypeId, value: &mut Value) -> Result<Unknown, String> {
    let mut walk = Walk { unknown: Vec::new() };
    let at = At { owner: ty.get().short_name(), dotted: String::new(), path: String::new(), root: true };
    walk.typed(ty.get(), value, &at)?;
    Ok(walk.unknown)
}

struct Walk {
    unknown: Unknown,
}

/// Where a value stands: the struct and the dotted path of Go's messages, and the exact path.
struct At {
    owner: &'static str,
    dotted: String,
    path: String,
    root: bool,
}

impl At {
    fn mismatch(&self, value: &Value, go_type: &str) -> String {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(n) if go_type.starts_with("int") => format!("number {n}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        if self.root {
            format!("json: cannot unmarshal {found} into Go value of type {go_type}")
        } else {
            format!(
                "json: cannot unmarshal {found} into Go struct field {}.{} of type {go_type}",
                self.owner, self.dotted
            )
        }
    }

    fn item(&self, path: String) -> At {
        At { owner: self.owner, dotted: self.dotted.clone(), path, root: false }
    }
}

impl Walk {
    fn typed(&mut self, ty: &'static Type, value: &mut Value, at: &At) -> Result<(), String> {
        match ty.form {
            Form::Any => Ok(()),
            Form::Quantity => {
                let quantity = Quantity::from_value(value).map_err(|e| e.to_string())?;
                *value = Value::String(quantity.to_string());
                Ok(())
            }
            Form::IntOrString => match value {
                Value::String(_) => Ok(()),
                Value::Number(n) if is_int32(n) => Ok(()),
                other => Err(at.mismatch(other, "intstr.IntOrString")),
            },
            Form::Time => time(value, at, "v1.Time", meta::time),
            Form::MicroTime => time(value, at, "v1.MicroTime", meta::micro_time),
            Form::Object => match value {
                Value::Object(map) => self.fields(ty, map, at),
                other => Err(at.mismatch(other, ty.go_name())),
            },
        }
    }

    fn fields(&mut self, ty: &'static Type, map: &mut Map<String, Value>, at: &At) -> Result<(), String> {
        // A type without fields holds what it is given (an empty struct upstream, or one whose fields are not described).
        if ty.fields.is_empty() {
            return Ok(());
        }
        let unknown: Vec<String> = map.keys().filter(|key| ty.field(key).is_none()).cloned().collect();
        for key in unknown {
            map.remove(&key);
            if self.unknown.len() < UNKNOWN_MAX {
                self.unknown.push(join(&at.path, &key));
            }
        }
        for field in &ty.fields {
            let Some(value) = map.get_mut(field.name) else {
                continue;
            };
            let keep = !value.is_null() && {
                let below = At {
                    owner: ty.short_name(),
                    dotted: join(&at.dotted, field.name),
                    path: join(&at.path, field.name),
                    root: false,
                };
                self.shaped(&field.shape, value, &below)?;
                field.required || field.pointer || !is_omitted(field, value)
            };
            if !keep {
                map.remove(field.name);
            }
        }
        Ok(())
    }

    fn shaped(&mut self, shape: &Shape, value: &mut Value, at: &At) -> Result<(), String> {
        match (shape, &mut *value) {
            (Shape::Any, _)
            | (Shape::String, Value::String(_))
            | (Shape::Bool, Value::Bool(_))
            | (Shape::Double, Value::Number(_)) => Ok(()),
            (Shape::Int32, Value::Number(n)) if is_int32(n) => Ok(()),
            (Shape::Int64, Value::Number(n)) if n.is_i64() => Ok(()),
            (Shape::Bytes, Value::String(text)) => bytes(text),
            (Shape::Type(id), _) => self.typed(id.get(), value, at),
            (Shape::List(item), Value::Array(items)) => {
                for (index, value) in items.iter_mut().enumerate() {
                    if value.is_null() {
                        *value = zero(item);
                    }
                    self.shaped(item, value, &at.item(format!("{}[{index}]", at.path)))?;
                }
                Ok(())
            }
            (Shape::Map(item), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    if value.is_null() {
                        *value = zero(item);
                    }
                    self.shaped(item, value, &at.item(join(&at.path, key)))?;
                }
                Ok(())
            }
            (_, other) => Err(at.mismatch(other, &go_type(shape))),
        }
    }
}

/// What Go's `omitempty` leaves out. Empty maps with a type stay: they are structs, or pointers to such.
fn is_omitted(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Number(n) => {
            matches!(field.shape, Shape::Int32 | Shape::Int64 | Shape::Double) && n.as_f64() == Some(0.0)
        }
        Value::Object(map) => map.is_empty() && matches!(field.shape, Shape::Map(_)),
    }
}

/// What a null item of a list or map reads as.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => Value::String(String::new()),
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::Double => Value::from(0),
        Shape::Any => Value::Null,
        Shape::Type(id) => match id.get().form {
            Form::Object => Value::Object(Map::new()),
            Form::Quantity => Value::String("0".to_owned()),
            Form::IntOrString => Value::from(0),
            _ => Value::Null,
        },
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Map(_) => Value::Object(Map::new()),
    }
}

fn is_int32(n: &serde_json::Number) -> bool {
    n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
}

fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::String => "string".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Double => "float64".to_owned(),
        Shape::Any => "interface {}".to_owned(),
        Shape::Type(id) => id.get().go_name().to_owned(),
        Shape::List(item) => format!("[]{}", go_type(item)),
        Shape::Map(item) => format!("map[string]{}", go_type(item)),
    }
}

fn time(value: &mut Value, at: &At, go_type: &str, write: impl Fn(jiff::Timestamp) -> String) -> Result<(), String> {
    let Value::String(text) = value else {
        return if value.is_null() { Ok(()) } else { Err(at.mismatch(value, go_type)) };
    };
    let parsed: jiff::Timestamp = text.parse().map_err(|_| {
        format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\"")
    })?;
    *value = Value::String(write(parsed));
    Ok(())
}

fn bytes(text: &mut String) -> Result<(), String> {
    match BASE64.decode(text.as_bytes()) {
        Ok(raw) => {
            *text = base64::engine::general_purpose::STANDARD.encode(raw);
            Ok(())
        }
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len(),
            };
            // Go skips line breaks inside base64; `kubectl` never sends them, hand-written manifests may.
            if text.contains(['\n', '\r']) {
                text.retain(|c| c != '\n' && c != '\r');
                return bytes(text);
            }
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}
