//! The controllers: each watches one kind and brings the cluster to what its objects ask for.

pub mod deployment;
pub mod garbage;
pub mod namespace;
pub mod nodes;
pub mod ownership;
pub mod pods;
pub mod reconcile;
pub mod replicaset;
