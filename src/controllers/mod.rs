//! The controllers: each watches one kind and brings the cluster to what its objects ask for.

pub mod ownership;
pub mod pods;
pub mod replicaset;
