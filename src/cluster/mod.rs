//! A cluster as its user sees it: the directory it lives in, the processes it consists of, their assembly.
//!
//! The topmost layer but for the CLI: it may use everything, and nothing but the CLI may use it.

pub mod admin;
pub mod embedded;
mod enrol;
pub mod front;
pub mod layout;
pub mod local;
pub mod logs;
pub mod member;
pub mod membership;
pub mod processes;
pub mod roles;
pub mod status;
