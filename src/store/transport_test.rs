//! Three servers over real QUIC on one machine.

use std::path::Path;

use phalanx_transport::{Identity, TransportConfig, server_name};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::store::{
    Consistency, ElectionTimings, RangeRequest, ReplicatedStore, ServerId, Store, StoreConfig, StoreError, Txn,
};

const CLUSTER: &str = "test";
/// Longest wait for anything; only a failing test waits so long.
const SOON: Duration = Duration::from_secs(120);

struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Authority { root, issuer: Issuer::new(params, key) }
    }

    fn start(&self, node: &str, incarnation: u64, bind: SocketAddr) -> Transport {
        let mut params = CertificateParams::new(vec![server_name(CLUSTER, node)]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert_chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        let identity = Identity { cert_chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() };
        let trust = vec![self.root.clone()];
        Transport::start(TransportConfig::new(CLUSTER, node, incarnation, bind, identity, trust)).unwrap()
    }
}

async fn start(id: ServerId, dir: &Path, transport: &Transport) -> ReplicatedStore {
    let raft = QuicTransport::new(transport.clone(), |node| node.starts_with('s'));
    let addr = transport.local_addr().to_string();
    let mut config = StoreConfig::new(CLUSTER, id, format!("s{id}"), addr, dir.join(id.to_string()), raft);
    // No leader dies here: a machine under load shall not elect others meanwhile, nor give a write up.
    config.timings = ElectionTimings { heartbeat_ms: 100, min_ms: 2_000, max_ms: 4_000 };
    config.request_deadline = SOON;
    config.snapshot_entries = 50;
    ReplicatedStore::start(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_replicate_and_one_catches_up_by_snapshot_over_quic() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut transports = Vec::new();
    let mut stores = Vec::new();
    for id in 1..=3 {
        let transport = authority.start(&format!("s{id}"), 1, any);
        stores.push(start(id, dir.path(), &transport).await);
        transports.push(transport);
        if id == 1 {
            stores[0].bootstrap().await.unwrap();
            stores[0].wait_for_leader(SOON).await.unwrap();
        } else {
            let addr = transports[id as usize - 1].local_addr().to_string();
            stores[0].add_server(id, &format!("s{id}"), &addr).await.unwrap();
        }
    }
    // As large as a transaction may be, over a follower, there and back.
    let large = vec![7; crate::store::TXN_BYTES_MAX - 1_000];
    for _ in 0..2 {
        let done = stores[1].txn(Txn::put("large", large.clone())).await.unwrap();
        assert_eq!(done.first().unwrap().value.len(), large.len());
    }

    stores.pop().unwrap().abort().await;
    let gone = transports.pop().unwrap();
    gone.abort();
    for n in 0..300 {
        stores[1].txn(Txn::put(format!("k/{n}"), "v")).await.unwrap();
    }
    // It comes back at another port, and the others are told.
    transports.push(authority.start("s3", 2, any));
    stores[1].add_server(3, "s3", &transports[2].local_addr().to_string()).await.unwrap();
    assert!(matches!(stores[1].add_server(3, "else", "memory").await, Err(StoreError::Invalid { .. })));
    stores.push(start(3, dir.path(), &transports[2]).await);
    let revision = stores[0].revision();
    let deadline = tokio::time::Instant::now() + SOON;
    while stores[2].revision() < revision {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", stores[2].status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let found = stores[2].range(RangeRequest::prefix("k/"), Consistency::Linearizable).await.unwrap();
    assert_eq!(found.count, 300);

    // A node with a certificate of the cluster that is no server gets no answer.
    let agent = authority.start("agent", 1, any);
    agent.set_peer("s1", transports[0].local_addr());
    let refused = agent.ask("s1", PATH, &StoreRequest(Bytes::from_static(&[0])), SOON).await;
    assert!(matches!(&refused, Err(AskError::Remote(reason)) if reason.contains("no server")), "{refused:?}");
    let refused = transports[1].ask("s1", PATH, &StoreRequest(Bytes::from_static(&[0xff])), SOON).await;
    assert!(matches!(&refused, Err(AskError::Remote(reason)) if reason.contains("decode")), "{refused:?}");

    for store in &stores {
        store.shutdown().await;
    }
    assert_eq!(stores[0].txn(Txn::put("a", "1")).await, Err(StoreError::Closed));
    for transport in transports.iter().chain([&agent]) {
        transport.close().await;
    }
}
