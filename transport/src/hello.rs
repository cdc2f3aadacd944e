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
//! own hello is on its way, refuses with `DUPLICATE`. A hello for a peer that is already up means that the dialer had
//! lost that connection (nobody says hello while it has one), so it replaces it.

use serde::{Deserialize, Serialize};

use crate::{
    event::Refusal,
    frame::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN},
};

/// First frame of the dialer. Fields are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version_min: u8,
    pub(crate) version_max: u8,
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) incarnation: u64,
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
}

/// What we know of the peer at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    /// Newest incarnation seen.
    pub(crate) newest: Option<u64>,
    /// Our own hello to it is on its way.
    pub(crate) hello_sent: bool,
}

/// What to do with a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Up; an older connection, if there is one, is replaced.
    Accept(Welcome),
    /// Our own dial to the same node wins; nothing is wrong.
    Duplicate,
    Refuse(Refusal),
}

impl Me {
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            node: self.node.to_string(),
            incarnation: self.incarnation,
        }
    }

    /// The acceptor's decision; `certified` is the name in the dialer's verified certificate.
    pub(crate) fn judge_hello(&self, certified: &str, hello: &Hello, view: View) -> Verdict {
        if let Err(refusal) = self.check(certified, &hello.cluster, &hello.node) {
            return Verdict::Refuse(refusal);
        }
        let version = hello.version_max.min(PROTOCOL_VERSION);
        if version < hello.version_min.max(PROTOCOL_VERSION_MIN) {
            return Verdict::Refuse(Refusal::Version {
                our_min: PROTOCOL_VERSION_MIN,
                our_max: PROTOCOL_VERSION,
                their_min: hello.version_min,
                their_max: hello.version_max,
            });
        }
        if let Err(refusal) = check_incarnation(hello.incarnation, view.newest) {
            return Verdict::Refuse(refusal);
        }
        if view.hello_sent && *self.node < *hello.node {
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
        if !(PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&welcome.version) {
            return Err(Refusal::Version {
                our_min: PROTOCOL_VERSION_MIN,
                our_max: PROTOCOL_VERSION,
                their_min: welcome.version,
                their_max: welcome.version,
            });
        }
        check_incarnation(welcome.incarnation, view.newest)
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
mod tests {
    use super::*;

    fn me(node: &str) -> Me {
        Me { cluster: "c1".into(), node: node.into(), incarnation: 5 }
    }

    fn judge(me: &Me, hello: &Hello, view: View) -> Verdict {
        me.judge_hello(&hello.node, hello, view)
    }

    #[test]
    fn of_two_dials_at_once_exactly_one_survives() {
        let (a, b) = (me("a"), me("b"));
        let both_sent = View { hello_sent: true, ..View::default() };
        assert_eq!(judge(&a, &b.hello(), both_sent), Verdict::Duplicate);
        assert!(matches!(judge(&b, &a.hello(), both_sent), Verdict::Accept(_)));
    }

    #[test]
    fn without_a_hello_of_our_own_every_dial_is_accepted() {
        let (a, b) = (me("a"), me("b"));
        assert!(matches!(judge(&a, &b.hello(), View::default()), Verdict::Accept(_)));
    }

    #[test]
    fn an_older_incarnation_is_stale_and_an_equal_or_newer_one_is_not() {
        let (a, b) = (me("a"), me("b"));
        let seen = |newest| View { newest: Some(newest), ..View::default() };
        assert_eq!(judge(&a, &b.hello(), seen(6)), Verdict::Refuse(Refusal::StaleIncarnation { theirs: 5, newest: 6 }));
        assert!(matches!(judge(&a, &b.hello(), seen(5)), Verdict::Accept(_)));
        assert!(matches!(judge(&a, &b.hello(), seen(4)), Verdict::Accept(_)));
    }

    #[test]
    fn a_name_that_is_not_in_the_certificate_is_refused() {
        let verdict = me("a").judge_hello("b", &me("c").hello(), View::default());
        assert!(matches!(verdict, Verdict::Refuse(Refusal::Name { .. })));
    }

    #[test]
    fn our_own_name_is_refused() {
        let verdict = judge(&me("a"), &me("a").hello(), View::default());
        assert!(matches!(verdict, Verdict::Refuse(Refusal::Name { .. })));
    }

    #[test]
    fn another_cluster_is_refused() {
        let hello = Hello { cluster: "c2".into(), ..me("b").hello() };
        let verdict = judge(&me("a"), &hello, View::default());
        assert!(matches!(verdict, Verdict::Refuse(Refusal::Cluster { .. })));
    }

    #[test]
    fn versions_must_overlap() {
        let hello = |min, max| Hello { version_min: min, version_max: max, ..me("b").hello() };
        let newer_only = judge(&me("a"), &hello(2, 3), View::default());
        assert!(matches!(newer_only, Verdict::Refuse(Refusal::Version { .. })));
        assert!(matches!(judge(&me("a"), &hello(1, 9), View::default()), Verdict::Accept(Welcome { version: 1, .. })));
        let welcome = Welcome { version: 2, cluster: "c1".into(), node: "b".into(), incarnation: 5 };
        assert!(matches!(me("a").judge_welcome("b", &welcome, View::default()), Err(Refusal::Version { .. })));
    }
}
