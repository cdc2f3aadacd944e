//! Test clusters in one process: certificates of a CA made for the test, nodes on 127.0.0.1:0.
#![allow(dead_code)] // Each test file uses a part of it.

pub mod evil;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use phalanx_transport::{
    Identity, Peer, PeerEvent, PeerState, Remote, TimeProvider, Timings, Transport, TransportConfig, server_name,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Longest wait for anything; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const CLUSTER: &str = "test";

pub struct Ca {
    pub root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("key");
        let root = params.self_signed(&key).expect("self-signed").der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, dns_names: &[String]) -> Identity {
        let mut params = CertificateParams::new(dns_names.to_vec()).expect("valid names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Identity {
            cert_chain: vec![cert.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8"),
        }
    }

    /// As `node`, but only in force on these days (year, month, day), each from midnight UTC.
    pub fn node_within(&self, node: &str, from: (i32, u8, u8), to: (i32, u8, u8)) -> Identity {
        let mut params = CertificateParams::new(vec![server_name(CLUSTER, node)]).expect("valid names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Identity {
            cert_chain: vec![cert.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8"),
        }
    }

    pub fn node(&self, node: &str) -> Identity {
        self.issue(&[server_name(CLUSTER, node)])
    }

    pub fn config(&self, node: &str, incarnation: u64) -> TransportConfig {
        let mut config = TransportConfig::new(
            CLUSTER,
            node,
            incarnation,
            SocketAddr::from(([127, 0, 0, 1], 0)),
            self.node(node),
            vec![self.root.clone()],
        );
        // The machine that runs tests may stall for a second; nothing here waits for this but what says so.
        config.timings = Timings { idle_timeout_ms: 5_000, connect_timeout_ms: 10_000, ..Timings::default() };
        config
    }

    pub fn start(&self, node: &str, incarnation: u64) -> Transport {
        Transport::start(self.config(node, incarnation)).expect("starts")
    }
}

/// Two connected nodes, `a` dialing `b`.
pub async fn pair() -> (Ca, Transport, Transport) {
    let ca = Ca::new();
    let (a, b) = (ca.start("a", 1), ca.start("b", 1));
    connect(&a, &b).await;
    (ca, a, b)
}

/// `from` keeps `to` connected; both are up.
pub async fn connect(from: &Transport, to: &Transport) {
    from.set_peer(to.node(), to.local_addr());
    until(|| from.is_connected(to.node()) && to.is_connected(from.node())).await;
}

pub async fn close(transports: &[&Transport]) {
    for transport in transports {
        within(transport.close()).await;
    }
}

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Waits for a condition that has no event of its own.
pub async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The next event that matches.
pub async fn event(
    events: &mut broadcast::Receiver<PeerEvent>,
    mut wanted: impl FnMut(&PeerEvent) -> bool,
) -> PeerEvent {
    within(async {
        loop {
            let event = events.recv().await.expect("no event missed");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}

/// Every event there is by now.
pub fn events_so_far(events: &mut broadcast::Receiver<PeerEvent>) -> Vec<PeerEvent> {
    let mut all = vec![];
    while let Ok(event) = events.try_recv() {
        all.push(event);
    }
    all
}

pub fn state(of: &Transport, peer: &str) -> Option<PeerState> {
    of.peers().into_iter().find(|info| &*info.node == peer).map(|info| info.state)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Echo(pub String);

impl Remote for Echo {
    const NAME: &'static str = "test/Echo";
    type Reply = String;
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Number(pub u64);

impl Remote for Number {
    const NAME: &'static str = "test/Number";
    type Reply = ();
}

/// Serves `Echo` at `path`: answers with the sender's name and the text.
pub fn serve_echo(transport: &Transport, path: &str) {
    transport.serve::<Echo, _, _>(path, |peer: Peer, Echo(text)| async move { Ok(format!("{}: {text}", peer.node)) });
}

pub async fn echo(from: &Transport, to: &str, path: &str) -> Result<String, phalanx_transport::AskError> {
    from.ask(to, path, &Echo("hello".into()), PATIENCE).await
}

/// A wall clock that only the test moves.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn at(secs: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(secs)))
    }

    pub fn set(&self, secs: u64) {
        self.0.store(secs, Ordering::SeqCst);
    }
}

impl TimeProvider for ManualClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::SeqCst))))
    }
}
