//! What nodes say to each other about leases: datagrams, so that nothing queues behind a lost one.
//!
//! Plain data. Sent and taken by `control::endpoint` only.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The transport's path of these datagrams.
pub const LEASE_PATH: &str = "lease";

/// One datagram. Variants are told apart by name, so that a neighbouring version may add some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseDatagram {
    /// A node asks for its lease.
    Renew {
        /// To be repeated in the grant.
        seq: u64,
    },
    /// The leader grants it.
    Grant {
        /// The leader's Raft term.
        term: u64,
        /// Of the renewal.
        seq: u64,
    },
    /// Who leads, from a server.
    Leader {
        /// Its node.
        leader: String,
        /// Its Raft term.
        term: u64,
    },
    /// The leader asks a peer to try a node.
    Probe {
        /// The suspect.
        node: String,
    },
    /// What came of it.
    Probed {
        /// The suspect.
        node: String,
        /// Whether it answered.
        reached: bool,
    },
    /// Are you there?
    Ping {
        /// To be repeated in the answer.
        id: u64,
    },
    /// Yes.
    Pong {
        /// Of the ping.
        id: u64,
    },
    /// A leader that doubts itself asks another server: do you follow me?
    Confirm {
        /// The leader's Raft term.
        term: u64,
    },
    /// The answer.
    Confirmed {
        /// Of the question.
        term: u64,
        /// Whether it does.
        follows: bool,
    },
}

impl LeaseDatagram {
    /// As bytes. A few dozen.
    pub fn encode(&self) -> Bytes {
        // Strings and integers always encode.
        rmp_serde::to_vec(self).map(Bytes::from).unwrap_or_default()
    }

    /// From a peer's bytes; `None` for what is not one of ours.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_datagram_survives_the_wire() {
        for datagram in [
            LeaseDatagram::Grant { term: 7, seq: u64::MAX },
            LeaseDatagram::Probed { node: "n1".into(), reached: false },
        ] {
            assert_eq!(LeaseDatagram::decode(&datagram.encode()), Some(datagram));
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_datagram_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = LeaseDatagram::decode(&bytes);
        }
    }
}
