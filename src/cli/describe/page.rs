//! What the pages of `describe` are made of, and those that need nothing else.
//!
//! Pure. Columns follow kubectl's describe: each cell as wide as the widest of its block and two spaces.

use jiff::Timestamp;
use serde_json::Value;

use crate::cli::events;
use crate::cli::text::{self, NONE};

/// Lines of `indent` and tab-separated cells, laid out together: a block ends at a line of other indent or cell count.
#[derive(Default)]
pub struct Page {
    lines: Vec<(usize, Vec<String>)>,
}

impl Page {
    /// `name:  value`, at an indent in steps of two spaces.
    pub fn field(&mut self, indent: usize, name: &str, value: impl Into<String>) {
        self.lines.push((indent, vec![format!("{name}:"), value.into()]));
    }

    /// Cells of a table.
    pub fn row<S: Into<String>>(&mut self, indent: usize, cells: impl IntoIterator<Item = S>) {
        self.lines.push((indent, cells.into_iter().map(Into::into).collect()));
    }

    /// A line without columns.
    pub fn line(&mut self, indent: usize, text: impl Into<String>) {
        self.lines.push((indent, vec![text.into()]));
    }

    /// A field of one value a line.
    pub fn list(&mut self, indent: usize, name: &str, values: &[String]) {
        match values.split_first() {
            None => self.field(indent, name, NONE),
            Some((first, rest)) => {
                self.field(indent, name, first.clone());
                for value in rest {
                    self.row(indent, ["", value]);
                }
            }
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        let mut out = String::new();
        let mut at = 0;
        while at < self.lines.len() {
            let (indent, count) = (self.lines[at].0, self.lines[at].1.len());
            let end = at + self.lines[at..].iter().take_while(|(i, c)| *i == indent && c.len() == count).count();
            let block = &self.lines[at..end];
            let width = |column: usize| block.iter().map(|(_, c)| c[column].chars().count()).max().unwrap_or(0) + 2;
            let widths: Vec<usize> = (0..count).map(width).collect();
            for (_, cells) in block {
                let mut line = "  ".repeat(indent);
                for (i, cell) in cells.iter().enumerate() {
                    line.push_str(cell);
                    if i + 1 < count {
                        line.extend(std::iter::repeat_n(' ', widths[i].saturating_sub(cell.chars().count())));
                    }
                }
                out.push_str(line.trim_end());
                out.push('\n');
            }
            at = end;
        }
        out
    }
}

/// Name, namespace, labels, annotations.
pub fn head(page: &mut Page, object: &Value) {
    page.field(0, "Name", text::name(object));
    if !text::namespace(object).is_empty() {
        page.field(0, "Namespace", text::namespace(object));
    }
}

/// Labels and annotations, one a line.
pub fn labels(page: &mut Page, object: &Value) {
    page.list(0, "Labels", &text::pairs(&object["metadata"]["labels"], "="));
    annotations(page, object);
}

/// Annotations but the one that only `apply` reads.
pub fn annotations(page: &mut Page, object: &Value) {
    let mut annotations = object["metadata"]["annotations"].clone();
    if let Some(map) = annotations.as_object_mut() {
        map.remove(crate::api::patch::three_way::LAST_APPLIED);
    }
    let lines: Vec<String> = text::pairs(&annotations, ": ").iter().map(|l| l.replace('\n', "\\n")).collect();
    page.list(0, "Annotations", &lines);
}

/// `Kind/name` of the controller.
pub fn controller(object: &Value) -> Option<String> {
    let owner = text::list_at(object, "/metadata/ownerReferences").iter().find(|o| o["controller"] == true)?;
    Some(format!("{}/{}", text::str_at(owner, "/kind"), text::str_at(owner, "/name")))
}

/// The events at the end of a page.
pub fn events(list: &[Value], now: Timestamp) -> String {
    let mut page = Page::default();
    if list.is_empty() {
        page.field(0, "Events", NONE);
        return page.finish();
    }
    let mut list = list.to_vec();
    events::sort(&mut list);
    page.line(0, "Events:");
    page.row(1, ["Type", "Reason", "Age", "From", "Message"]);
    page.row(1, ["----", "------", "----", "----", "-------"]);
    for event in &list {
        let from = ["/source/component", "/reportingComponent"]
            .iter()
            .map(|p| text::str_at(event, p))
            .find(|s| !s.is_empty())
            .unwrap_or_default();
        page.row(
            1,
            [
                text::str_at(event, "/type").to_owned(),
                text::str_at(event, "/reason").to_owned(),
                events::seen(event, now),
                from.to_owned(),
                text::str_at(event, "/message").trim().replace('\n', "\\n"),
            ],
        );
    }
    page.finish()
}

/// A ConfigMap's page.
pub fn config_map(object: &Value) -> String {
    let mut page = Page::default();
    head(&mut page, object);
    labels(&mut page, object);
    let mut out = page.finish();
    out.push_str("\nData\n====\n");
    for (key, value) in sorted(&object["data"]) {
        out.push_str(&format!("{key}:\n----\n{}\n\n", text::scalar(value)));
    }
    out.push_str("\nBinaryData\n====\n");
    for (key, value) in sorted(&object["binaryData"]) {
        out.push_str(&format!("{key}: {} bytes\n", decoded_len(value)));
    }
    out.push('\n');
    out
}

/// A Namespace's page.
pub fn namespace(object: &Value) -> String {
    let mut page = Page::default();
    head(&mut page, object);
    labels(&mut page, object);
    page.field(0, "Status", text::str_at(object, "/status/phase"));
    page.finish()
}

/// A Secret's page: sizes, never values.
pub fn secret(object: &Value) -> String {
    let mut page = Page::default();
    head(&mut page, object);
    labels(&mut page, object);
    page.line(0, "");
    page.field(0, "Type", text::str_at(object, "/type"));
    let mut out = page.finish();
    out.push_str("\nData\n====\n");
    let mut data = Page::default();
    for (key, value) in sorted(&object["data"]) {
        data.field(0, key, format!("{} bytes", decoded_len(value)));
    }
    out.push_str(&data.finish());
    out.push('\n');
    out
}

fn sorted(map: &Value) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.as_object().into_iter().flatten().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

fn decoded_len(value: &Value) -> usize {
    use base64::Engine;
    let text = value.as_str().unwrap_or_default();
    base64::engine::general_purpose::STANDARD.decode(text).map_or(text.len(), |b| b.len())
}

/// The page of a kind that this program knows nothing of.
pub fn generic(object: &Value) -> String {
    let mut page = Page::default();
    head(&mut page, object);
    labels(&mut page, object);
    page.field(0, "API Version", text::str_at(object, "/apiVersion"));
    page.field(0, "Kind", text::str_at(object, "/kind"));
    page.line(0, "Metadata:");
    for (key, value) in sorted(&object["metadata"]) {
        if !["name", "namespace", "labels", "annotations", "managedFields"].contains(&key.as_str()) {
            tell(&mut page, 1, key, value);
        }
    }
    for (key, value) in sorted(object) {
        if !["apiVersion", "kind", "metadata"].contains(&key.as_str()) {
            tell(&mut page, 0, key, value);
        }
    }
    page.finish()
}

fn tell(page: &mut Page, indent: usize, key: &str, value: &Value) {
    let title = title(key);
    match value {
        Value::Object(map) if !map.is_empty() => {
            page.line(indent, format!("{title}:"));
            for (key, value) in sorted(value) {
                tell(page, indent + 1, key, value);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            page.line(indent, format!("{title}:"));
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    page.line(0, "");
                }
                for (key, value) in sorted(item) {
                    tell(page, indent + 1, key, value);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            page.line(indent, format!("{title}:"));
            for item in items {
                page.line(indent + 1, text::scalar(item));
            }
        }
        Value::Object(_) | Value::Array(_) => page.line(indent, format!("{title}:")),
        scalar => page.field(indent, &title, text::scalar(scalar)),
    }
}

/// `creationTimestamp` as `Creation Timestamp`, `podIP` as `Pod IP`.
fn title(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    let mut out = String::new();
    for (i, c) in chars.iter().enumerate() {
        if i == 0 {
            out.extend(c.to_uppercase());
            continue;
        }
        let after_small = chars[i - 1].is_lowercase() || chars[i - 1].is_ascii_digit();
        let before_small = chars.get(i + 1).is_some_and(|n| n.is_lowercase()) && chars[i - 1].is_uppercase();
        if c.is_uppercase() && (after_small || before_small) {
            out.push(' ');
        }
        out.push(*c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_are_aligned_by_themselves() {
        let mut page = Page::default();
        page.field(0, "Name", "web");
        page.field(0, "Annotations", NONE);
        page.field(1, "Inner", "x");
        assert_eq!(page.finish(), "Name:         web\nAnnotations:  <none>\n  Inner:  x\n");
    }

    #[test]
    fn field_names_become_titles() {
        assert_eq!(title("creationTimestamp"), "Creation Timestamp");
        assert_eq!(title("podIP"), "Pod IP");
        assert_eq!(title("uid"), "Uid");
        assert_eq!(title("clusterIPs"), "Cluster I Ps");
    }

    #[test]
    fn a_secret_shows_sizes_and_no_values() {
        let page = secret(&json!({"metadata": {"name": "s"}, "type": "Opaque", "data": {"p": "c2VjcmV0"}}));
        assert!(page.contains("p:  6 bytes") && !page.contains("c2VjcmV0"), "{page}");
    }

    #[test]
    fn an_unknown_kind_is_told_field_by_field() {
        let page = generic(&json!({"apiVersion": "x/v1", "kind": "Y", "metadata": {"name": "y", "uid": "u"},
            "spec": {"maxItems": 3, "rules": [{"a": 1}, {"a": 2}], "words": ["p", "q"]}}));
        for part in [
            "Name:",
            "Metadata:\n  Uid:  u",
            "Spec:\n  Max Items:  3",
            "  Rules:\n    A:  1\n\n    A:  2",
            "  Words:\n    p\n    q",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
    }

    #[test]
    fn events_end_the_page() {
        let now: Timestamp = "2026-11-23T02:48:50Z".parse().expect("time");
        assert_eq!(events(&[], now), "Events:  <none>\n");
        let event = json!({"type": "Normal", "reason": "Scheduled", "lastTimestamp": "2026-11-23T02:48:40Z",
            "source": {"component": "scheduler"}, "message": "Successfully assigned"});
        assert!(events(&[event], now).contains("  Normal  Scheduled  10s   scheduler  Successfully assigned"));
    }
}
