//! Manifests: files, directories, standard input; many documents in one, each an object.
//!
//! A document that cannot be read is an error of that document alone, with file, document, line and column: those before
//! and after it are still objects.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::CliError;
use super::discovery::{Resource, Resources};
use super::text::{name, str_at};
use crate::api::yaml::{self, YamlError};

/// Files that a directory is searched for.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];
/// Larger inputs are refused. The server takes no object near this size.
const INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Where the objects come from.
#[derive(Args, Clone, Debug, Default)]
pub struct Filename {
    /// Manifest: a file, a directory, or - for standard input; may be given several times
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    pub filename: Vec<String>,

    /// Search directories below directories, too
    #[arg(short = 'R', long, requires = "filename")]
    pub recursive: bool,
}

/// One document of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub object: Value,
}

/// Where a document stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as the user named it.
    pub file: String,
    /// 1-based; documents that hold nothing count.
    pub document: usize,
    /// Line of the file at which the document begins, 1-based.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: document {} (line {})", self.file, self.document, self.line)
    }
}

/// A document that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: document {document}, line {line}, column {column}: {message}")]
pub struct ManifestError {
    pub file: String,
    /// 1-based.
    pub document: usize,
    /// 1-based, in the file.
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl Filename {
    /// All documents, in order. An unreadable file is an error of the whole; a bad document only of itself.
    pub fn documents(&self) -> Result<Vec<Result<Document, ManifestError>>, CliError> {
        let mut documents = Vec::new();
        for source in &self.filename {
            if source == "-" {
                documents.extend(split(source, &limited(std::io::stdin().lock(), source)?));
                continue;
            }
            let path = Path::new(source);
            let files = if path.is_dir() { files_below(path, self.recursive)? } else { vec![path.to_owned()] };
            if files.is_empty() {
                return Err(CliError::new(format!(
                    "{source}: there is no .yaml, .yml or .json file in this directory"
                )));
            }
            for file in files {
                let shown = file.display().to_string();
                let reader = std::fs::File::open(&file).map_err(|e| match source.contains("://") {
                    true => CliError::new(format!("{source}: manifests are not fetched; save it and give the file")),
                    false => CliError::new(format!("{shown}: {e}")),
                })?;
                documents.extend(split(&shown, &limited(reader, &shown)?));
            }
        }
        Ok(documents)
    }

    /// The error of a command whose manifests hold nothing.
    pub fn empty(&self, verb: &str) -> CliError {
        CliError::new(format!("{}: there is no object in it to {verb}", self.filename.join(", ")))
    }
}

fn limited(reader: impl Read, shown: &str) -> Result<String, CliError> {
    let mut text = String::new();
    reader.take(INPUT_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => CliError::new(format!("{shown}: not text (UTF-8), so not a manifest")),
        _ => CliError::new(format!("{shown}: {e}")),
    })?;
    if text.len() as u64 > INPUT_BYTES_MAX {
        return Err(CliError::new(format!("{shown}: more than {} MiB", INPUT_BYTES_MAX >> 20)));
    }
    Ok(text)
}

fn files_below(dir: &Path, recursive: bool) -> Result<Vec<PathBuf>, CliError> {
    let failed = |e: std::io::Error| CliError::new(format!("{}: {e}", dir.display()));
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(failed)?
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            // A link to a directory could lead in circles.
            if recursive && !entry.is_symlink() {
                files.extend(files_below(&entry, true)?);
            }
        } else if entry.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e)) {
            files.push(entry);
        }
    }
    Ok(files)
}

/// The documents of a text; one that is broken does not hide the others.
fn split(file: &str, text: &str) -> Vec<Result<Document, ManifestError>> {
    let mut documents = Vec::new();
    for (i, result) in yaml::documents_each(text).into_iter().enumerate() {
        match result {
            Ok((object, line)) => {
                documents.extend(parse(object, &Place { file: file.to_owned(), document: i + 1, line }))
            }
            Err(YamlError { line, column, document, message }) => {
                documents.push(Err(ManifestError { file: file.to_owned(), document, line, column, message }));
            }
        }
    }
    documents
}

/// One document; the items of a `List` are documents of their own.
fn parse(object: Value, place: &Place) -> Vec<Result<Document, ManifestError>> {
    let failed = |message: &str| {
        let Place { file, document, line } = place.clone();
        vec![Err(ManifestError { file, document, line, column: 1, message: message.to_owned() })]
    };
    if !object.is_object() {
        return failed("not an object: expected fields such as apiVersion, kind and metadata");
    }
    for field in ["apiVersion", "kind"] {
        if str_at(&object, &format!("/{field}")).is_empty() {
            return failed(&format!("{field} not set"));
        }
    }
    if object["kind"].as_str().is_some_and(|k| k.ends_with("List"))
        && let Some(items) = object.get("items").and_then(Value::as_array)
    {
        return items.iter().map(|item| Ok(Document { place: place.clone(), object: item.clone() })).collect();
    }
    vec![Ok(Document { place: place.clone(), object })]
}

/// What a document means to this server: its resource, namespace and name.
pub struct Intent {
    pub resource: Resource,
    pub namespace: String,
    /// Empty when the server is to generate it.
    pub name: String,
    /// The object, with its namespace.
    pub object: Value,
}

impl Intent {
    /// Of a document. `flag` is what `-n` says; a document that says otherwise is an error.
    pub fn of(document: &Document, resources: &Resources, flag: Option<&str>, default: &str) -> Result<Self, CliError> {
        let object = &document.object;
        let place = &document.place;
        let (api_version, kind) = (str_at(object, "/apiVersion"), str_at(object, "/kind"));
        let Some(resource) = resources.of_manifest(api_version, kind) else {
            return Err(CliError::new(format!(
                "{place}: no matches for kind \"{kind}\" in version \"{api_version}\"; `phalanx api-resources` lists what the server has"
            )));
        };
        let mut object = object.clone();
        let own = str_at(&object, "/metadata/namespace").to_owned();
        let namespace = match (resource.namespaced, flag) {
            (false, _) => String::new(),
            (true, Some(flag)) if !own.is_empty() && own != flag => {
                return Err(CliError::new(format!(
                    "{place}: the namespace from the provided object \"{own}\" does not match the namespace \"{flag}\"; pass --namespace={own} or none"
                )));
            }
            (true, Some(flag)) => flag.to_owned(),
            (true, None) if own.is_empty() => default.to_owned(),
            (true, None) => own,
        };
        if !object["metadata"].is_object() {
            return Err(CliError::new(format!("{place}: {kind} has no metadata: a name is needed")));
        }
        if resource.namespaced {
            object["metadata"]["namespace"] = namespace.clone().into();
        }
        let name = name(&object).to_owned();
        if name.is_empty() && str_at(&object, "/metadata/generateName").is_empty() {
            return Err(CliError::new(format!("{place}: {kind} has no metadata.name")));
        }
        Ok(Self { resource: resource.clone(), namespace, name, object })
    }

    /// Path of the object.
    pub fn path(&self) -> String {
        self.resource.path(&self.namespace, &self.name)
    }

    /// Path to create it at.
    pub fn list_path(&self) -> String {
        self.resource.list_path(Some(&self.namespace))
    }
}

/// A failure of one document, with its place and object.
pub fn at(place: &Place, what: &str, error: CliError) -> CliError {
    match error {
        CliError::Server { code, reason, message } => {
            CliError::Server { code, reason, message: format!("{place}: {what}: {message}") }
        }
        CliError::Message(message) => CliError::Message(format!("{place}: {what}: {message}")),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::discovery::tests::some;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";

    #[test]
    fn documents_carry_their_number_and_line() {
        let text = format!("# a comment\n---\n{POD}---\n\n# nothing\n---\n{POD}");
        let documents = split("f.yaml", &text);
        let places: Vec<_> =
            documents.iter().map(|d| d.as_ref().expect("good")).map(|d| (d.place.document, d.place.line)).collect();
        assert_eq!(places, [(1, 3), (2, 10)]);
    }

    #[test]
    fn a_broken_document_is_named_with_line_and_column_and_hides_no_other() {
        let text = format!("{POD}---\napiVersion: v1\nkind: [Pod\nmetadata: x\n---\n{POD}");
        let documents = split("f.yaml", &text);
        assert_eq!(documents.len(), 3);
        assert!(documents[0].is_ok() && documents[2].is_ok());
        let error = documents[1].as_ref().expect_err("broken");
        assert_eq!((error.document, error.file.as_str()), (2, "f.yaml"));
        assert!((5..=8).contains(&error.line) && error.column >= 1, "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }

    #[test]
    fn a_document_without_kind_says_so() {
        let documents = split("f.yaml", "apiVersion: v1\nmetadata: {name: a}\n");
        let error = documents[0].as_ref().expect_err("no kind").to_string();
        assert_eq!(error, "f.yaml: document 1, line 1, column 1: kind not set");
    }

    #[test]
    fn json_and_lists_are_documents() {
        let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}, {"apiVersion": "v1", "kind": "Pod"}]}"#;
        assert_eq!(split("f.json", text).len(), 2);
    }

    #[test]
    fn the_namespace_flag_may_not_contradict_the_document() {
        let resources = some();
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n";
        let document = split("f.yaml", text).remove(0).expect("good");
        let intent = Intent::of(&document, &resources, None, "default").expect("its own");
        assert_eq!(intent.path(), "/api/v1/namespaces/x/pods/a");
        assert!(Intent::of(&document, &resources, Some("y"), "default").is_err());
        let plain = split("f.yaml", POD).remove(0).expect("good");
        assert_eq!(Intent::of(&plain, &resources, Some("y"), "default").expect("flag").namespace, "y");
    }

    #[test]
    fn an_unknown_kind_is_named_with_its_document() {
        let document = split("f.yaml", "apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n").remove(0).expect("good");
        let error = Intent::of(&document, &some(), None, "default").err().expect("unknown").to_string();
        assert!(
            error.starts_with("f.yaml: document 1 (line 1): no matches for kind \"Pot\" in version \"v1\""),
            "{error}"
        );
    }
}
