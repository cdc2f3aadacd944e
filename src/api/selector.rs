//! Label and field selectors.
use super::{Kind, Object, Status};
use serde_json::{Map, Value};

/// `a=b,c!=d,e in (f,g),!h`, or a `metav1.LabelSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {}

impl LabelSelector {
    /// Parses the `labelSelector` parameter. An empty text matches everything.
    pub fn parse(_text: &str) -> Result<Self, Status> {
        Ok(Self::default())
    }
    /// From a `metav1.LabelSelector`. Null matches nothing, an empty one everything.
    pub fn from_object(_selector: &Value) -> Result<Self, Status> {
        Ok(Self::default())
    }
    pub fn matches(&self, _labels: Option<&Map<String, Value>>) -> bool {
        true
    }
    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        true
    }
}

/// `spec.nodeName=n1,status.phase!=Failed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {}

impl FieldSelector {
    /// Parses the `fieldSelector` parameter; 400 for a field that this kind cannot select by.
    pub fn parse(_kind: &Kind, _text: &str) -> Result<Self, Status> {
        Ok(Self::default())
    }
    pub fn matches(&self, _object: &Object) -> bool {
        true
    }
    pub fn is_empty(&self) -> bool {
        true
    }
    /// The value that this field must have, if the selector demands exactly one (such as a watch on one name).
    pub fn required(&self, _field: &str) -> Option<&str> {
        None
    }
}
