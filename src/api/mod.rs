//! The resource model of Kubernetes, as pure functions over [`Object`]s: no I/O, no clock, no runtime.
//!
//! ```text
//!             schema (types and fields)        kinds (what is served)
//!                  |                               |
//!   bytes --decode--> Object --set_defaults--> --prepare_create/update--> --validate--> Vec<Cause>
//!                        ^  \__ apply_patch        selectors, table, discovery, openapi
//! ```
//!
//! One table of fields, generated from Kubernetes' own definitions, serves strict decoding, protobuf, strategic merge
//! and OpenAPI. Callers are the registry, the gateway, the controllers and the command line. Nothing here may read a
//! clock, draw a random number that was not handed in, or know where objects are stored.

mod conform;
pub mod decode;
pub mod defaults;
pub mod discovery;
mod json;
pub mod kinds;
pub mod lifecycle;
pub mod meta;
pub mod openapi;
pub mod patch;
mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod validate;
pub mod yaml;

pub use decode::{Decoded, FieldValidation, conform_object, decode, decode_as, decode_delete_options};
pub use defaults::set_defaults;
pub use kinds::{Kind, Kinds, Subresource};
pub use lifecycle::{NewObject, generate_name, prepare_create, prepare_update};
pub use patch::{Patch, apply_patch, parse_patch};
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, Reason, Status};
pub use table::{IncludeObject, table};
pub use validate::{validate_create, validate_update};

/// An object of any kind, as its canonical JSON: maps are sorted by key.
pub type Object = serde_json::Value;

#[cfg(test)]
mod oracle_test;
