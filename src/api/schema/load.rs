//! Parses the generated table. Its format, with tabs between columns:
//!
//! ```text
//! io.k8s.api.core.v1.PodSpec <form> <notes> <doc>            a type; form: object, quantity, time, ...
//! <tab> containers <shape> <tag> <notes> <doc>                a field of the type above
//! ```
//!
//! A shape is `string`, `bytes`, `bool`, `int32`, `int64`, `double`, `any`, `@TYPE`, `[]SHAPE` or `{}SHAPE`. A tag `1.2` is
//! tag 2 inside the protobuf message of tag 1, which JSON does not have. Notes are words such as `required`, `pointer`,
//! `list=map:name`, `patch=merge`, `key=name`, `map=atomic`, `default="TCP"`, `gvk=apps/v1/Deployment`.
//!
//! The table is part of the binary, so a line that cannot be read is a bug of the generator; tests read every line.

use std::collections::HashMap;

use super::{Field, Form, ListType, Shape, Type, TypeId};

pub fn parse(text: &'static str) -> Vec<Type> {
    let lines = || text.lines().filter(|line| !line.starts_with('#'));
    let ids: HashMap<&str, TypeId> = lines()
        .filter(|line| !line.starts_with('\t'))
        .filter_map(|line| line.split('\t').next())
        .enumerate()
        .map(|(at, name)| (name, TypeId(at as u16)))
        .collect();
    let mut types: Vec<Type> = Vec::with_capacity(ids.len());
    for line in lines() {
        match line.strip_prefix('\t') {
            None => types.push(parse_type(line)),
            Some(rest) => {
                if let Some(ty) = types.last_mut() {
                    ty.fields.push(parse_field(rest, &ids));
                }
            }
        }
    }
    for ty in &mut types {
        ty.fields.sort_by_key(|field| field.name);
        ty.fields.shrink_to_fit();
    }
    types
}

fn parse_type(line: &'static str) -> Type {
    let mut columns = line.split('\t');
    let mut next = || columns.next().unwrap_or_default();
    let (name, form, notes, doc) = (next(), next(), next(), next());
    let root = notes.split(' ').find_map(|note| note.strip_prefix("gvk=")).and_then(|gvk| {
        let (group, rest) = gvk.split_once('/')?;
        let (version, kind) = rest.split_once('/')?;
        Some((group, version, kind))
    });
    Type {
        name,
        form: match form {
            "object" => Form::Object,
            "quantity" => Form::Quantity,
            "intorstring" => Form::IntOrString,
            "time" => Form::Time,
            "microtime" => Form::MicroTime,
            _ => Form::Any,
        },
        fields: Vec::new(),
        atomic: notes.split(' ').any(|note| note == "map=atomic"),
        root,
        doc,
    }
}

fn parse_field(line: &'static str, ids: &HashMap<&str, TypeId>) -> Field {
    let mut columns = line.split('\t');
    let mut next = || columns.next().unwrap_or_default();
    let (name, shape, tag, notes, doc) = (next(), next(), next(), next(), next());
    let (outer, inner) = tag.split_once('.').unwrap_or(("", tag));
    let mut field = Field {
        name,
        shape: parse_shape(shape, ids),
        tag: inner.parse().unwrap_or(0),
        outer_tag: outer.parse().unwrap_or(0),
        required: false,
        pointer: false,
        list: None,
        atomic_map: false,
        patch_merge: false,
        patch_retain_keys: false,
        merge_key: None,
        default: None,
        doc,
    };
    for note in notes.split(' ') {
        match note.split_once('=').unwrap_or((note, "")) {
            ("required", _) => field.required = true,
            ("pointer", _) => field.pointer = true,
            ("list", "set") => field.list = Some(ListType::Set),
            ("list", kind) => {
                field.list = Some(match kind.strip_prefix("map:") {
                    Some(keys) => ListType::Map(keys.split(',').collect()),
                    None => ListType::Atomic,
                });
            }
            ("map", _) => field.atomic_map = true,
            ("patch", strategy) => {
                field.patch_merge = strategy.contains("merge");
                field.patch_retain_keys = strategy.contains("retainKeys");
            }
            ("key", key) => field.merge_key = Some(key),
            ("default", value) => field.default = Some(value),
            _ => {}
        }
    }
    field
}

fn parse_shape(text: &str, ids: &HashMap<&str, TypeId>) -> Shape {
    if let Some(item) = text.strip_prefix("[]") {
        return Shape::List(Box::new(parse_shape(item, ids)));
    }
    if let Some(value) = text.strip_prefix("{}") {
        return Shape::Map(Box::new(parse_shape(value, ids)));
    }
    if let Some(name) = text.strip_prefix('@') {
        return ids.get(name).map_or(Shape::Any, |&id| Shape::Type(id));
    }
    match text {
        "string" => Shape::String,
        "bytes" => Shape::Bytes,
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "double" => Shape::Double,
        _ => Shape::Any,
    }
}
