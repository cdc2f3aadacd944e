//! A network within one process: several servers of a store without sockets, for embedding and for tests. Requests are encoded and
//! decoded as on a real one, and can be cut off per server, one way or both.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::ServerId;
use super::network::{RaftService, RaftTransport, SnapshotBody, TransportError};
use super::types::Peer;

/// Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<Links>>,
}

#[derive(Default)]
struct Links {
    services: HashMap<ServerId, Arc<dyn RaftService>>,
    /// Requests from the first to the second get lost, silently, as in a network that drops packets.
    cut: HashSet<(ServerId, ServerId)>,
}

impl MemoryNetwork {
    pub fn new() -> MemoryNetwork {
        MemoryNetwork::default()
    }

    /// What the server `id` is started with.
    pub fn transport(&self, id: ServerId) -> Arc<dyn RaftTransport> {
        Arc::new(MemoryTransport { id, network: Arc::downgrade(&self.state) })
    }

    /// Lose everything between `id` and `others`, both ways, until [`MemoryNetwork::heal`].
    pub fn cut(&self, id: ServerId, others: impl IntoIterator<Item = ServerId>) {
        let mut links = self.state.lock();
        for other in others {
            links.cut.extend([(id, other), (other, id)]);
        }
    }

    /// Lose only what `from` sends to `to`, answers to `to` included.
    pub fn cut_one_way(&self, from: ServerId, to: ServerId) {
        self.state.lock().cut.insert((from, to));
    }

    pub fn heal(&self) {
        self.state.lock().cut.clear();
    }
}

struct MemoryTransport {
    id: ServerId,
    network: Weak<Mutex<Links>>,
}

impl MemoryTransport {
    fn passes(&self, from: ServerId, to: ServerId) -> bool {
        self.network.upgrade().is_some_and(|network| !network.lock().cut.contains(&(from, to)))
    }

    fn service(&self, peer: &Peer) -> Result<Arc<dyn RaftService>, TransportError> {
        let network = self.network.upgrade();
        let service = network.and_then(|network| network.lock().services.get(&peer.id).cloned());
        let unreachable =
            || TransportError::Unreachable { peer: peer.name.clone(), reason: "it is not running".to_owned() };
        service.ok_or_else(unreachable)
    }

    async fn exchange(
        &self,
        peer: &Peer,
        deadline: Duration,
        exchange: impl Future<Output = Result<Bytes, String>>,
    ) -> Result<Bytes, TransportError> {
        let lost = |reason| TransportError::Lost { peer: peer.name.clone(), reason };
        let limited = async {
            if !self.passes(self.id, peer.id) {
                return std::future::pending().await;
            }
            let answer = exchange.await;
            if !self.passes(peer.id, self.id) {
                return std::future::pending().await;
            }
            answer
        };
        match tokio::time::timeout(deadline, limited).await {
            Ok(answer) => answer.map_err(lost),
            Err(_) => Err(lost(format!("no answer within {} ms", deadline.as_millis()))),
        }
    }
}

#[async_trait]
impl RaftTransport for MemoryTransport {
    fn serve(&self, service: Arc<dyn RaftService>) {
        if let Some(network) = self.network.upgrade() {
            network.lock().services.insert(self.id, service);
        }
    }

    fn stop(&self) {
        if let Some(network) = self.network.upgrade() {
            network.lock().services.remove(&self.id);
        }
    }

    async fn call(&self, peer: &Peer, request: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        let service = self.service(peer)?;
        self.exchange(peer, deadline, service.call(request)).await
    }

    async fn send_snapshot(
        &self,
        peer: &Peer,
        header: Bytes,
        body: SnapshotBody,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let service = self.service(peer)?;
        self.exchange(peer, deadline, service.snapshot(header, body)).await
    }
}
