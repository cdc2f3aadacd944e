//! The hello: who may be connected, decided from what both sides say and what is already known. Pure; called by the
//! endpoint under the peer's lock.
//!
//! ```text
//!  dialer                                   acceptor
//!    ├── TLS, both certificates ───────────────┤   the dialer has checked the acceptor's name,
//!    ├── Hello(versions, cluster, node, boot) ►│   the acceptor reads the dialer's name from its certificate
//!    │◄──────────── Welcome(version, .., boot) ┤   up here when sent, there when read
//!    │          or close(code, one clear line) ┤
//! ```
//!
//! When two nodes dial each other at once, the dial of the node with the smaller name wins: the other acceptor, whose
//! own hello is on its way, refuses with `DUPLICATE`. A hello for a peer that is already up replaces that link only if its
//! sender had the link and lost it, for the hello may just as well have been on its way while the link came up. To tell
//! the two apart dials are numbered, and a hello names the last dial of the other side that its sender has accepted.

use serde::{Deserialize, Serialize};

use crate::{event::Refusal, frame::PROTOCOL_VERSION_MIN};

/// First frame of the dialer. Fields are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version_min: u8,
    pub(crate) version_max: u8,
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) incarnation: u64,
    /// Number of this dial, growing within the incarnation; from 1.
    pub(crate) dial: u64,
    /// The last dial of the acceptor that this node has accepted: incarnation and number.
    pub(crate) accepted: (u64, u64),
}

/// First frame of the acceptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) version: u8,
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) incarnation: u64,
}

/// Who we are.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    pub(crate) cluster: String,
    pub(crate) node: crate::NodeName,
    pub(crate) incarnation: u64,
    /// Newest protocol version that we offer.
    pub(crate) protocol_max: u8,
}

/// What we know of the peer at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    /// Newest incarnation seen.
    pub(crate) newest: Option<u64>,
    /// Our own hello to it is on its way.
    pub(crate) hello_sent: bool,
    /// The link that is up.
    pub(crate) up: Option<Origin>,
    /// The last dial of the peer that we have accepted: incarnation and number.
    pub(crate) accepted: (u64, u64),
}

/// How a link came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) dialed_by_us: bool,
    /// The dialer's number of the dial.
    pub(crate) dial: u64,
}

/// What to do with a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Up; an older connection, if there is one, is replaced.
    Accept(Welcome),
    /// There is a better link, or our own dial to the same node wins; nothing is wrong.
    Duplicate,
    Refuse(Refusal),
}

impl Me {
    /// Our hello on our dial of this number.
    pub(crate) fn hello(&self, dial: u64, view: View) -> Hello {
        Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: self.protocol_max,
            cluster: self.cluster.clone(),
            node: self.node.to_string(),
            incarnation: self.incarnation,
            dial,
            accepted: view.accepted,
        }
    }

    /// The acceptor's decision; `certified` is the name in the dialer's verified certificate.
    pub(crate) fn judge_hello(&self, certified: &str, hello: &Hello, view: View) -> Verdict {
        if let Err(refusal) = self.check(certified, &hello.cluster, &hello.node) {
            return Verdict::Refuse(refusal);
        }
        let version = hello.version_max.min(self.protocol_max);
        if version < hello.version_min.max(PROTOCOL_VERSION_MIN) {
            return Verdict::Refuse(Refusal::Version {
                our_min: PROTOCOL_VERSION_MIN,
                our_max: self.protocol_max,
                their_min: hello.version_min,
                their_max: hello.version_max,
            });
        }
        if let Err(refusal) = check_incarnation(hello.incarnation, view.newest) {
            return Verdict::Refuse(refusal);
        }
        let ours_wins = view.hello_sent && *self.node < *hello.node;
        if ours_wins || self.is_late(hello, view) {
            return Verdict::Duplicate;
        }
        Verdict::Accept(Welcome {
            version,
            cluster: self.cluster.clone(),
            node: self.node.to_string(),
            incarnation: self.incarnation,
        })
    }

    /// The dialer's decision; `dialed` is whom it dialed, and TLS has checked that name.
    pub(crate) fn judge_welcome(&self, dialed: &str, welcome: &Welcome, view: View) -> Result<(), Refusal> {
        self.check(dialed, &welcome.cluster, &welcome.node)?;
        if !(PROTOCOL_VERSION_MIN..=self.protocol_max).contains(&welcome.version) {
            return Err(Refusal::Version {
                our_min: PROTOCOL_VERSION_MIN,
                our_max: self.protocol_max,
                their_min: welcome.version,
                their_max: welcome.version,
            });
        }
        check_incarnation(welcome.incarnation, view.newest)
    }

    /// Whether the hello was sent before the link that is up was known to its sender.
    fn is_late(&self, hello: &Hello, view: View) -> bool {
        match view.up {
            // Another boot knows nothing of this link, whatever it says.
            _ if view.newest != Some(hello.incarnation) => false,
            None => false,
            Some(up) if up.dialed_by_us => hello.accepted < (self.incarnation, up.dial),
            // Of two dials of the same node the later one holds.
            Some(up) => hello.dial <= up.dial,
        }
    }

    fn check(&self, expected: &str, cluster: &str, node: &str) -> Result<(), Refusal> {
        if cluster != self.cluster {
            return Err(Refusal::Cluster { ours: self.cluster.clone(), theirs: cluster.into() });
        }
        if node != expected || node == &*self.node {
            return Err(Refusal::Name {
                expected: if node == &*self.node {
                    format!("another node than {}", self.node)
                } else {
                    expected.into()
                },
                claimed: node.into(),
            });
        }
        Ok(())
    }
}

fn check_incarnation(theirs: u64, newest: Option<u64>) -> Result<(), Refusal> {
    match newest {
        Some(newest) if theirs < newest => Err(Refusal::StaleIncarnation { theirs, newest }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "hello_test.rs"]
mod tests;
