//! Reads messages from the source of k8s-pb: tags, and the markers in the documentation of each field.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[derive(Clone, Debug, Default)]
pub struct Field {
    /// Lower case without underscores: what is left of the JSON name.
    pub name: String,
    pub tag: u32,
    /// The message's module and name, where the field is a single message.
    pub message: Option<(String, String)>,
    /// `listType=map`, `patchStrategy=merge` and so on.
    pub markers: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default)]
pub struct Message {
    pub markers: Vec<(String, String)>,
    pub fields: Vec<Field>,
}

/// By module (`api/core/v1`) and lower-case name (`pod`): prost writes `HttpGetAction` where Kubernetes has `HTTPGetAction`.
pub type Messages = BTreeMap<(String, String), Message>;

pub fn read(root: &Path) -> Result<Messages, String> {
    let mut messages = Messages::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "mod.rs") {
                let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                let module = folder.strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default();
                read_module(module, &text, &mut messages);
            }
        }
    }
    Ok(messages)
}

fn read_module(module: &str, text: &str, messages: &mut Messages) {
    let mut markers = Vec::new();
    let mut current: Option<(String, Message)> = None;
    let mut lines = text.lines().peekable();
    let mut prost = String::new();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            if let Some(marker) = doc.trim().strip_prefix('+') {
                let (key, value) = marker.split_once('=').unwrap_or((marker, ""));
                markers.push((key.to_owned(), value.to_owned()));
            }
        } else if let Some(attribute) = line.strip_prefix("#[prost(") {
            prost = attribute.to_owned();
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{']).next().unwrap_or_default();
            let message = Message { markers: std::mem::take(&mut markers), fields: Vec::new() };
            current = Some((name.to_owned(), message));
        } else if line == "}" {
            if let Some((name, message)) = current.take() {
                messages.insert((module.to_owned(), name.to_ascii_lowercase()), message);
            }
        } else if let (Some((_, message)), Some(rest)) = (&mut current, line.strip_prefix("pub "))
            && !prost.is_empty()
        {
            let (name, mut ty) = rest.split_once(':').map(|(n, t)| (n, t.to_owned())).unwrap_or_default();
            while !ty.trim_end().ends_with(',') {
                match lines.next() {
                    Some(more) => ty.push_str(more.trim()),
                    None => break,
                }
            }
            let tag = prost.rsplit("tag = \"").next().and_then(|t| t.split('"').next()).and_then(|t| t.parse().ok());
            let single = prost.starts_with("message, optional");
            message.fields.push(Field {
                name: name.replace("r#", "").replace('_', "").to_ascii_lowercase(),
                tag: tag.unwrap_or_default(),
                message: single.then(|| resolve(module, &ty)),
                markers: std::mem::take(&mut markers),
            });
            prost.clear();
        } else if line.is_empty() {
            markers.clear();
        }
    }
}

/// Module and name of the type in `::core::option::Option<super::super::core::v1::PodTemplateSpec>,`.
fn resolve(module: &str, ty: &str) -> (String, String) {
    let path = ty.rsplit('<').next().unwrap_or_default();
    let path = path.trim_end_matches([',', '>', ' ']);
    let mut parts: Vec<&str> = path.split("::").collect();
    let name = parts.pop().unwrap_or_default().to_ascii_lowercase();
    let mut at: Vec<&str> = module.split('/').collect();
    for part in parts {
        if part == "super" {
            at.pop();
        } else {
            at.push(part);
        }
    }
    (at.join("/"), name)
}
