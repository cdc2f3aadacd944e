//! Decodes Kubernetes' protobuf bodies, driven by the tags of the schema. Decoding only: answers are always JSON.
//!
//! ```text
//! "k8s\0"  runtime.Unknown { typeMeta = 1 { apiVersion = 1, kind = 2 }, raw = 2, contentEncoding = 3, contentType = 4 }
//! ```
//!
//! The result is JSON that [`super::conform`] still has to check: Go writes the zeros of scalars that are not pointers, and
//! that is where they are dropped.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::schema::{Field, Form, Shape, Type, TypeId};
use super::{Status, kinds, meta};

const MAGIC: &[u8] = b"k8s\0";

/// Deepest nesting of messages; no type of Kubernetes comes near it, except JSON schemas, which are recursive.
const DEPTH_MAX: usize = 64;

/// Decodes a body. `schema` finds the type of (group, version, kind), or says that it is not known.
///
/// # Errors
/// 415 for a kind that `schema` does not know, 400 for bytes that are no such message.
pub fn decode(body: &[u8], schema: impl Fn(&str, &str, &str) -> Option<TypeId>) -> Result<Value, Status> {
    let message = body.strip_prefix(MAGIC).ok_or_else(|| {
        malformed("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    })?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader { bytes: message };
    while let Some((tag, wire)) = reader.key()? {
        match (tag, wire) {
            (1, Wire::Len(bytes)) => {
                let mut meta = Reader { bytes };
                while let Some((tag, wire)) = meta.key()? {
                    match (tag, wire) {
                        (1, Wire::Len(bytes)) => api_version = text(bytes)?,
                        (2, Wire::Len(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Len(bytes)) => raw = bytes,
            (3, Wire::Len(encoding)) if !encoding.is_empty() => {
                return Err(malformed("the content encoding of a protobuf body must be empty"));
            }
            _ => {}
        }
    }
    let (group, version) = kinds::parse_group_version(&api_version);
    let Some(ty) = schema(group, version, &kind) else {
        return Err(Status::unsupported_media_type(&["application/json", "application/yaml"]));
    };
    let mut value = object(ty.get(), raw, 0)?;
    if let Some(map) = value.as_object_mut() {
        for (field, text) in [("apiVersion", api_version), ("kind", kind)] {
            if !text.is_empty() {
                map.insert(field.to_owned(), Value::String(text));
            }
        }
    }
    Ok(value)
}

fn malformed(why: impl AsRef<str>) -> Status {
    Status::bad_request(format!("the protobuf body cannot be read: {}", why.as_ref()))
}

enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Len(&'a [u8]),
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, Status> {
        let mut value = 0u64;
        for at in 0..10 {
            let (&byte, rest) = self.bytes.split_first().ok_or_else(|| malformed("unexpected EOF"))?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f).checked_shl(7 * at).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("integer overflow"))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Status> {
        let len = usize::try_from(len).map_err(|_| malformed("unexpected EOF"))?;
        if len > self.bytes.len() {
            return Err(malformed("unexpected EOF"));
        }
        let (head, rest) = self.bytes.split_at(len);
        self.bytes = rest;
        Ok(head)
    }

    /// The next field, or none at the end.
    fn key(&mut self) -> Result<Option<(u32, Wire<'a>)>, Status> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| malformed("illegal tag"))?;
        if tag == 0 {
            return Err(malformed("illegal tag 0"));
        }
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.take(8)?.try_into().unwrap_or_default()),
            2 => {
                let len = self.varint()?;
                Wire::Len(self.take(len)?)
            }
            5 => Wire::Fixed32(self.take(4)?.try_into().unwrap_or_default()),
            other => return Err(malformed(format!("illegal wire type {other}"))),
        };
        Ok(Some((tag, wire)))
    }
}

fn text(bytes: &[u8]) -> Result<String, Status> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed("a string is not UTF-8"))
}

fn object(ty: &'static Type, bytes: &[u8], depth: usize) -> Result<Value, Status> {
    if depth > DEPTH_MAX {
        return Err(malformed("nested too deeply"));
    }
    let mut map = Map::new();
    fields(ty, 0, bytes, depth, &mut map)?;
    Ok(Value::Object(map))
}

/// Reads the fields of a message into `map`. `outer` is the tag of the inlined message we are in, 0 for none.
fn fields(
    ty: &'static Type,
    outer: u32,
    bytes: &[u8],
    depth: usize,
    map: &mut Map<String, Value>,
) -> Result<(), Status> {
    let mut reader = Reader { bytes };
    while let Some((tag, wire)) = reader.key()? {
        let field = ty.fields.iter().find(|field| field.tag == tag && field.outer_tag == outer);
        match (field, wire) {
            (Some(field), wire) => read_field(field, wire, depth, map)?,
            (None, Wire::Len(inner)) if outer == 0 && ty.fields.iter().any(|field| field.outer_tag == tag) => {
                fields(ty, tag, inner, depth + 1, map)?;
            }
            // A field that is newer than the table: dropped, as protobuf demands.
            (None, _) => {}
        }
    }
    Ok(())
}

fn read_field(field: &Field, wire: Wire<'_>, depth: usize, map: &mut Map<String, Value>) -> Result<(), Status> {
    match &field.shape {
        Shape::List(item) => {
            let values = match (item.as_ref(), &wire) {
                (Shape::Int32 | Shape::Int64, Wire::Len(packed)) => {
                    let mut reader = Reader { bytes: packed };
                    let mut values = Vec::new();
                    while !reader.bytes.is_empty() {
                        values.push(Value::from(reader.varint()? as i64));
                    }
                    values
                }
                _ => vec![scalar(item, wire, depth)?],
            };
            let slot = map.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = slot {
                items.extend(values);
            }
        }
        Shape::Map(item) => {
            let Wire::Len(entry) = wire else {
                return Err(malformed(format!("{} is no map entry", field.name)));
            };
            let (mut key, mut value) = (String::new(), None);
            let mut reader = Reader { bytes: entry };
            while let Some((tag, wire)) = reader.key()? {
                match (tag, wire) {
                    (1, Wire::Len(bytes)) => key = text(bytes)?,
                    (2, wire) => value = Some(map_value(item, wire, depth)?),
                    _ => {}
                }
            }
            let value = match value {
                Some(value) => value,
                None => map_value(item, Wire::Len(&[]), depth)?,
            };
            let slot = map.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = slot {
                entries.insert(key, value);
            }
        }
        shape => {
            let value = scalar(shape, wire, depth)?;
            if !value.is_null() {
                map.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// A map's value. Go's named string lists (`ExtraValue`, `Verbs`) travel as a message with the items at tag 1.
fn map_value(shape: &Shape, wire: Wire<'_>, depth: usize) -> Result<Value, Status> {
    let (Shape::List(item), Wire::Len(bytes)) = (shape, &wire) else {
        return scalar(shape, wire, depth);
    };
    let mut items = Vec::new();
    let mut reader = Reader { bytes };
    while let Some((tag, wire)) = reader.key()? {
        if tag == 1 {
            items.push(scalar(item, wire, depth)?);
        }
    }
    Ok(Value::Array(items))
}

fn scalar(shape: &Shape, wire: Wire<'_>, depth: usize) -> Result<Value, Status> {
    Ok(match (shape, wire) {
        (Shape::String, Wire::Len(bytes)) => Value::String(text(bytes)?),
        (Shape::Bytes, Wire::Len(bytes)) => Value::String(base64::engine::general_purpose::STANDARD.encode(bytes)),
        (Shape::Bool, Wire::Varint(n)) => Value::Bool(n != 0),
        (Shape::Int32, Wire::Varint(n)) => Value::from(n as i32),
        (Shape::Int64, Wire::Varint(n)) => Value::from(n as i64),
        (Shape::Double, Wire::Fixed64(bytes)) => Value::from(f64::from_le_bytes(bytes)),
        (Shape::Double, Wire::Fixed32(bytes)) => Value::from(f32::from_le_bytes(bytes)),
        (Shape::Any, Wire::Len(bytes)) => raw_json(bytes)?,
        (Shape::Type(id), Wire::Len(bytes)) => typed(id.get(), bytes, depth + 1)?,
        (shape, _) => return Err(malformed(format!("wrong wire type for {shape:?}"))),
    })
}

fn typed(ty: &'static Type, bytes: &[u8], depth: usize) -> Result<Value, Status> {
    match ty.form {
        Form::Object => object(ty, bytes, depth),
        Form::Any => raw_json(bytes),
        Form::Quantity => {
            let mut quantity = String::from("0");
            let mut reader = Reader { bytes };
            while let Some((tag, wire)) = reader.key()? {
                if let (1, Wire::Len(bytes)) = (tag, wire) {
                    quantity = text(bytes)?;
                }
            }
            Ok(Value::String(quantity))
        }
        Form::IntOrString => {
            let (mut is_text, mut number, mut word) = (false, 0i32, String::new());
            let mut reader = Reader { bytes };
            while let Some((tag, wire)) = reader.key()? {
                match (tag, wire) {
                    (1, Wire::Varint(n)) => is_text = n == 1,
                    (2, Wire::Varint(n)) => number = n as i32,
                    (3, Wire::Len(bytes)) => word = text(bytes)?,
                    _ => {}
                }
            }
            Ok(if is_text { Value::String(word) } else { Value::from(number) })
        }
        Form::Time | Form::MicroTime => {
            let (mut seconds, mut nanos) = (0i64, 0i32);
            let mut reader = Reader { bytes };
            while let Some((tag, wire)) = reader.key()? {
                match (tag, wire) {
                    (1, Wire::Varint(n)) => seconds = n as i64,
                    (2, Wire::Varint(n)) => nanos = n as i32,
                    _ => {}
                }
            }
            // Go's zero time is sent as zero seconds, and is no time at all.
            if seconds == 0 && nanos == 0 {
                return Ok(Value::Null);
            }
            let at = jiff::Timestamp::new(seconds, nanos).map_err(|_| malformed("a time is out of range"))?;
            Ok(Value::String(if ty.form == Form::Time { meta::time(at) } else { meta::micro_time(at) }))
        }
    }
}

/// `FieldsV1`, `RawExtension`, `JSON`: a message whose tag 1 holds JSON.
fn raw_json(bytes: &[u8]) -> Result<Value, Status> {
    let mut reader = Reader { bytes };
    while let Some((tag, wire)) = reader.key()? {
        if let (1, Wire::Len(bytes)) = (tag, wire) {
            return serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()));
        }
    }
    Ok(Value::Null)
}

#[cfg(test)]
#[path = "protobuf_test.rs"]
mod protobuf_test;
