//! What can go wrong with a cluster inside a program.

use std::time::Duration;

use crate::api::Status;
use crate::api::yaml::YamlError;

/// Why a cluster in this process did not do what it was asked: one line for people.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// What the builder was told cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The cluster's directory cannot be used.
    #[error("{0}")]
    Directory(String),
    /// A node did not start.
    #[error("node {node} did not start: {why}")]
    Start {
        /// Which node.
        node: String,
        /// What stood in the way.
        why: String,
    },
    /// The cluster has no node of this name.
    #[error("there is no node {name} in this cluster; its nodes are {nodes}")]
    NoNode {
        /// The name.
        name: String,
        /// The names that there are.
        nodes: String,
    },
    /// A node that runs already was to be started.
    #[error("node {0} is running already")]
    Running(String),
    /// A node that does not run was to be killed, stopped or cut off.
    #[error("node {0} is not running; start it with start_node")]
    NotRunning(String),
    /// What Kubernetes answers to a bad request, in its words.
    #[error(transparent)]
    Api(#[from] Status),
    /// A manifest that cannot be applied. Documents before it have been.
    #[error("document {document} (line {line}): {why}")]
    Manifest {
        /// From 1.
        document: usize,
        /// The line on which it begins, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A text that is no YAML. Nothing of it was applied.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// Every server is stopped.
    #[error("no server of the cluster runs; start one with start_node")]
    NoServer,
    /// The servers did not do it, whichever was asked: most likely there is no majority of them.
    #[error("the cluster did not do it within {} s: {why}", .after.as_secs())]
    Unavailable {
        /// How long it was tried.
        after: Duration,
        /// What the server asked last said.
        why: String,
    },
    /// An object did not become what was waited for.
    #[error("{what} is not as awaited after {} ms: {last}", .after.as_millis())]
    TimedOut {
        /// `Kind namespace/name`.
        what: String,
        /// How long was waited.
        after: Duration,
        /// How it stood at the end.
        last: String,
    },
    /// The cluster has been shut down.
    #[error("the cluster has been shut down")]
    ShutDown,
}
