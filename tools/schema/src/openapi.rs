//! Reads types from the source of k8s-openapi: the `json_schema!` literal of each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One definition.
pub struct Type {
    /// Such as `io.k8s.api.core.v1.Pod`.
    pub name: String,
    /// Where both crates keep it, such as `api/core/v1`, and under which name, such as `Pod`.
    pub module: String,
    pub ident: String,
    /// JSON schema; `$ref` holds a Rust path.
    pub schema: Value,
    /// Group, version and kind of a root type.
    pub root: Option<(String, String, String)>,
}

/// All types below `root`, by definition name.
pub fn read(root: &Path) -> Result<BTreeMap<String, Type>, String> {
    let mut types = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                if !is_unstable(&path) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs")
                && let Some(found) = read_file(root, &path)?
            {
                types.insert(found.name.clone(), found);
            }
        }
    }
    Ok(types)
}

fn is_unstable(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.starts_with('v') && (name.contains("alpha") || name.contains("beta"))
}

fn read_file(root: &Path, path: &PathBuf) -> Result<Option<Type>, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let wrong = |what: &str| format!("{}: {what}", path.display());
    let Some(at) = text.find("impl crate::schemars::JsonSchema for ") else {
        return Ok(None);
    };
    let tail = &text[at..];
    let ident = between(tail, "JsonSchema for ", " ").ok_or(wrong("no type name"))?;
    let name = between(tail, "\n        \"", "\".into()").ok_or(wrong("no definition name"))?;
    let literal = between(tail, "json_schema!(", "\n        })\n")
        .map(|body| format!("{body}\n}}"))
        .ok_or(wrong("no json_schema"))?;
    let schema = serde_json::from_str(&as_json(&literal)).map_err(|e| wrong(&e.to_string()))?;
    let module = path.parent().and_then(|p| p.strip_prefix(root).ok());
    let constant = |key: &str| between(&text, &format!("const {key}: &'static str = \""), "\"");
    let root_kind = match (constant("GROUP"), constant("VERSION"), constant("KIND")) {
        (Some(group), Some(version), Some(kind)) => Some((group.into(), version.into(), kind.into())),
        _ => None,
    };
    Ok(Some(Type {
        name: name.to_owned(),
        module: module.and_then(Path::to_str).ok_or(wrong("no module"))?.to_owned(),
        ident: ident.to_owned(),
        schema,
        root: root_kind,
    }))
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let rest = &text[text.find(open)? + open.len()..];
    Some(&rest[..rest.find(close)?])
}

/// Turns the literal into JSON: references become `{"$ref": "path"}`, Rust escapes and trailing commas go.
fn as_json(literal: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut reference = String::new();
    for line in literal.lines() {
        let text = line.trim();
        let path = between(text, "subschema_for::<", ">()").map(|p| p.replace("crate::", ""));
        if let Some(key) = text.strip_suffix("({") {
            lines.push(format!("{key}{{"));
        } else if text.starts_with("let mut schema_obj") {
            reference = path.unwrap_or_default();
        } else if text.starts_with("schema_obj.ensure_object()") {
            let doc = between(text, "\"description\".into(), ", ".into());").unwrap_or("\"\"");
            lines.push(format!("\"$ref\": \"{reference}\", \"description\": {doc}"));
        } else if text == "schema_obj" {
            continue;
        } else if text == "})," {
            lines.push("},".into());
        } else if let Some(path) = path {
            let key = text.split_once("__gen").map_or("", |(key, _)| key).trim_end_matches('(');
            lines.push(format!("{key}{{\"$ref\": \"{path}\"}},"));
        } else {
            lines.push(text.to_owned());
        }
    }
    let mut json = String::new();
    for (at, line) in lines.iter().enumerate() {
        let closes = lines.get(at + 1).is_some_and(|next| next.starts_with(['}', ']']));
        json.push_str(if closes { line.trim_end_matches(',') } else { line });
        json.push('\n');
    }
    json.replace("\\'", "'")
}
