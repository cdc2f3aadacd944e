//! The types that openraft is instantiated with, and their short names within this folder.

use std::fmt;

use openraft::RaftTypeConfig;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};

use super::ServerId;
use super::state::{Command, Response};

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Command,
        R = Response,
        NodeId = ServerId,
        Node = Peer,
);

type LeaderId = <TypeConfig as RaftTypeConfig>::LeaderId;
/// The leader of a committed entry: term and server. Two leaders may share a term number, never a term number and an id.
pub type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub type LogId = openraft::LogId<CommittedLeaderId>;
pub type Vote = <TypeConfig as RaftTypeConfig>::Vote;
pub type Entry = <TypeConfig as RaftTypeConfig>::Entry;
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, ServerId, Peer>;
pub type SnapshotMeta = openraft::storage::SnapshotMeta<CommittedLeaderId, ServerId, Peer>;

/// Where a server is: what Raft's membership holds of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub id: ServerId,
    pub name: String,
    pub addr: String,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Txns { request, txns } => {
                write!(f, "{} transactions of request {:x}/{}", txns.len(), request.session, request.seq)
            }
            Command::Compact { upto } => write!(f, "compact up to {upto}"),
        }
    }
}

pub fn log_index(id: Option<LogId>) -> Option<u64> {
    id.map(|id| id.index)
}
