//! YAML, as kubectl and Kubernetes read it: `yes`, `no`, `on`, `off` are booleans, `010` is eight, duplicate keys are refused.
//!
//! That is YAML 1.1. A text such as `no` must be quoted where a text is wanted; [`super::conform`] then says which field it
//! is. Used by the command line for manifests, and by the server for `application/yaml` bodies.

use serde_json::Value;

use super::{Object, json};

/// A document that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}, column {column}: {message}")]
pub struct YamlError {
    /// In the whole text, from 1; 0 if it is not known.
    pub line: usize,
    /// From 1; 0 if it is not known.
    pub column: usize,
    /// From 1, counting documents that are not empty.
    pub document: usize,
    pub message: String,
}

/// One document of a manifest.
struct Chunk<'a> {
    text: &'a str,
    /// Lines of the whole text before it.
    lines_before: usize,
}

/// The documents of a manifest, each with the line on which it begins (from 1). JSON is read too. Documents that are
/// empty, or hold only comments, are left out.
///
/// # Errors
/// The first document that cannot be read. To apply those before it, see [`documents_each`].
pub fn documents(text: &str) -> Result<Vec<(Object, usize)>, YamlError> {
    documents_each(text).into_iter().collect()
}

/// As [`documents`], but one result for each document: a bad one does not hide the others.
pub fn documents_each(text: &str) -> Vec<Result<(Object, usize), YamlError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut results = Vec::new();
    for chunk in chunks(text) {
        let Some(first) = first_content_line(chunk.text) else {
            continue;
        };
        let document = results.len() + 1;
        if chunk.text.trim_start().starts_with('{')
            && let Some(values) = json_stream(chunk.text)
        {
            results.extend(values.into_iter().map(|value| Ok((value, chunk.lines_before + first))));
            continue;
        }
        let result = value(chunk.text).map(|value| (value, chunk.lines_before + first)).map_err(|error| YamlError {
            line: if error.line == 0 { 0 } else { error.line + chunk.lines_before },
            document,
            ..error
        });
        // An explicit `null` is an empty document too.
        if !matches!(result, Ok((Value::Null, _))) {
            results.push(result);
        }
    }
    results
}

/// The value of a text that holds one document.
///
/// # Errors
/// Line and column in this text.
pub fn value(text: &str) -> Result<Object, YamlError> {
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| {
        let location = error.location();
        YamlError {
            line: location.map_or(0, |at| at.line() as usize),
            column: location.map_or(0, |at| at.column() as usize),
            document: 1,
            message: one_line(&error.without_snippet().to_string()),
        }
    })
}

/// The values of a text that is nothing but JSON objects, or none.
fn json_stream(text: &str) -> Option<Vec<Value>> {
    if let Ok((value, duplicates)) = json::parse(text.as_bytes()) {
        return duplicates.is_empty().then(|| vec![value]);
    }
    serde_json::Deserializer::from_str(text).into_iter::<Value>().collect::<Result<_, _>>().ok()
}

/// Splits at the lines that begin with `---` (in YAML nothing else can stand there). The marker stays with what follows it.
fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut at = 0;
    let mut directive = false;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker && !directive {
            chunks.push(Chunk { text: &text[start..at], lines_before: start_line });
            (start, start_line) = (at, number);
        }
        // A directive belongs to the document whose marker follows it.
        directive = line.starts_with('%') || (directive && !is_marker);
        at += line.len();
    }
    chunks.push(Chunk { text: &text[start..], lines_before: start_line });
    chunks
}

/// The line (from 1) of the first content, if there is any.
fn first_content_line(text: &str) -> Option<usize> {
    text.lines()
        .position(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            !line.is_empty() && !line.starts_with(['#', '%']) && line != "..."
        })
        .map(|at| at + 1)
}

/// The parser's text without its position (which is told apart) and without line breaks.
fn one_line(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut = message.find(" at line ").filter(|at| message[*at..].contains("column"));
    cut.map_or(message.as_str(), |at| &message[..at]).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_split_and_know_their_lines() {
        let text = "# first\n\napiVersion: v1\nkind: A\n---\n# nothing\n---\n\nkind: B\ntext: |\n  ---\n  x\n--- \n{\"kind\": \"C\"}\n";
        let documents = documents(text).expect("good YAML");
        let kinds: Vec<_> = documents.iter().map(|(doc, line)| (doc["kind"].clone(), *line)).collect();
        assert_eq!(kinds, [(json!("A"), 3), (json!("B"), 9), (json!("C"), 14)]);
        assert_eq!(documents[1].0["text"], "---\nx\n");
    }

    #[test]
    fn errors_have_the_line_of_the_whole_text_and_the_document() {
        let error =
            documents("kind: A\n---\nkind: B\nmetadata:\n  name: x\n   labels: {}\n").expect_err("bad indentation");
        assert_eq!(error.document, 2);
        assert!((5..=6).contains(&error.line), "{error:?}");
        assert!(error.column > 0 && !error.message.contains('\n'), "{error:?}");
        let each = documents_each("kind: A\n---\nkind: [\n---\nkind: C\n");
        assert!(each[0].is_ok() && each[1].is_err() && each[2].is_ok());
    }

    #[test]
    fn duplicate_keys_are_refused() {
        let error = documents("metadata:\n  name: a\n  name: b\n").expect_err("a duplicate");
        assert!(error.message.contains("name"), "{error}");
        assert_eq!(error.line, 3);
    }

    #[test]
    fn scalars_are_those_of_yaml_1_1_as_kubectl_reads_them() {
        let value =
            value("a: yes\nb: no\nc: on\nd: 010\ne: 0x10\nf: \"no\"\ng: 1.5\nh: ~\ni: 10\nj: 2001-01-01\nk: 1e3\n")
                .expect("good YAML");
        assert_eq!(value["a"], true);
        assert_eq!(value["b"], false);
        assert_eq!(value["c"], true);
        assert_eq!(value["d"], 8);
        assert_eq!(value["e"], 16);
        assert_eq!(value["f"], "no");
        assert_eq!(value["g"], 1.5);
        assert_eq!(value["h"], Value::Null);
        assert_eq!(value["i"], 10);
        assert_eq!(value["j"], "2001-01-01");
    }

    #[test]
    fn json_manifests_are_read_too() {
        let documents = documents("{\"kind\": \"A\",\n\t\"x\": [1]}\n{\"kind\": \"B\"}\n").expect("JSON");
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].0["x"], json!([1]));
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let value = value("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n").expect("good YAML");
        assert_eq!(value["use"], json!({"x": 1, "y": 2}));
    }
}
