//! Defaulting.
use super::{Kind, Object};

/// Fills in what Kubernetes fills in. Idempotent.
pub fn set_defaults(_kind: &Kind, _obj: &mut Object) {}
