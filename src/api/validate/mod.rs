//! Validation.
use super::{Cause, Kind, Object};

/// Why this object may not be created; empty if it may. Run on a defaulted object.
pub fn validate_create(_kind: &Kind, _obj: &Object) -> Vec<Cause> {
    Vec::new()
}

/// Why this update is not allowed; empty if it is. Run on defaulted objects.
pub fn validate_update(_kind: &Kind, _old: &Object, _new: &Object) -> Vec<Cause> {
    Vec::new()
}

/// A value that is none of those allowed.
pub fn not_supported(field: &str, value: &str, supported: &[&str]) -> Cause {
    let list: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
    Cause {
        reason: "FieldValueNotSupported".to_owned(),
        message: format!("Unsupported value: {value:?}: supported values: {}", list.join(", ")),
        field: field.to_owned(),
    }
}
