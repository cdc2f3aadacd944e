//! Namespaces that are being deleted: empties them, then lets them go.

pub mod core;
mod reconciler;

pub use reconciler::Namespaces;
