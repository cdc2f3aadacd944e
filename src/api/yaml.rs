//! YAML.
use super::Object;

/// A document that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}, column {column}: {message}")]
pub struct YamlError {
    /// 1-based.
    pub line: usize,
    pub column: usize,
    /// 1-based.
    pub document: usize,
    pub message: String,
}

/// The documents of a manifest with the line each begins at (1-based); JSON is YAML. Empty documents are left out.
pub fn documents(_text: &str) -> Result<Vec<(Object, usize)>, YamlError> {
    Ok(Vec::new())
}
