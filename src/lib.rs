//! Phalanx: an actor-based container orchestrator. Kubernetes on the outside, Erlang/OTP on the inside, one binary.
//!
//! `ARCHITECTURE.md` is the map. A module uses those that the map lists above it, never those below.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod controllers;
pub mod gateway;
#[cfg(target_os = "linux")]
pub mod image;
pub mod node;
pub mod registry;
pub mod runtime;
pub mod scheduler;
pub mod security;
pub mod store;

pub use k8s_openapi;
pub use kube;

pub use cluster::embedded::{Cluster, ClusterBuilder, ClusterError, LogOptions, NodeInfo, Watch, WatchEvent};
pub use runtime::task::{TaskContext, TaskRegistry};
