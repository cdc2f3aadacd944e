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
