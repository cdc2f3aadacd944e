//! The store's requests over phalanx-transport: asks to the path `store`, snapshots as streams to `store/snapshot`.
//!
//! It knows names of nodes and nothing of Raft. Who may take part is not decided here but by `allow` and by Raft's own list of its
//! members, whichever knows a newcomer first: every node of a cluster has a certificate, and an agent's must not be enough to write
//! the log of a server.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use phalanx_transport::{AskError, RecvStream, Remote, SendStream, Transport};
use serde::{Deserialize, Serialize};

use super::network::{RaftService, RaftTransport, SnapshotBody, TransportError};
use super::types::Peer;

const PATH: &str = "store";
const SNAPSHOT_PATH: &str = "store/snapshot";
/// The answer to a snapshot is a vote or a line of text.
const SNAPSHOT_ANSWER_BYTES_MAX: usize = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct StoreRequest(Bytes);

impl Remote for StoreRequest {
    const NAME: &'static str = "StoreRequest";
    type Reply = Bytes;
}

/// [`RaftTransport`] over the node's [`Transport`], on which it serves the paths `store` and `store/snapshot`.
pub struct QuicTransport {
    transport: Transport,
    allow: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Where peers were last said to be, so that the transport is told only of changes.
    addresses: Mutex<HashMap<String, SocketAddr>>,
}

impl QuicTransport {
    /// Only nodes of which `allow` says that they are servers, or that Raft knows as its members, are answered.
    pub fn new(transport: Transport, allow: impl Fn(&str) -> bool + Send + Sync + 'static) -> Arc<QuicTransport> {
        Arc::new(QuicTransport { transport, allow: Arc::new(allow), addresses: Mutex::default() })
    }

    /// Tell the transport where the peer is, and refuse at once when there is no connection: Raft asks again soon, and an
    /// ask that waits for a dead server delays the election.
    fn connected(&self, peer: &Peer) -> Result<(), TransportError> {
        if let Ok(addr) = peer.addr.parse::<SocketAddr>()
            && self.addresses.lock().insert(peer.name.clone(), addr) != Some(addr)
        {
            self.transport.set_peer(&peer.name, addr);
        }
        match self.transport.is_connected(&peer.name) {
            true => Ok(()),
            false => Err(TransportError::Unreachable {
                peer: peer.name.clone(),
                reason: "there is no connection".to_owned(),
            }),
        }
    }
}

fn failed(peer: &Peer, error: &AskError) -> TransportError {
    let (peer, reason) = (peer.name.clone(), error.to_string());
    match error {
        AskError::NoProc { .. } | AskError::Refused { .. } | AskError::Closed | AskError::TooLarge { .. } => {
            TransportError::Unreachable { peer, reason }
        }
        _ => TransportError::Lost { peer, reason },
    }
}

#[async_trait]
impl RaftTransport for QuicTransport {
    fn serve(&self, service: Arc<dyn RaftService>) {
        let (answering, allow) = (service.clone(), self.allow.clone());
        self.transport.serve(PATH, move |peer, request: StoreRequest| {
            let (service, allowed) = (answering.clone(), allow(&peer.node) || answering.is_member(&peer.node));
            async move {
                if !allowed {
                    return Err(format!("{} is no server of this cluster", peer.node));
                }
                // The transport drops an ask whose asker is gone; what Raft has begun is to end.
                let answer = tokio::spawn(async move { service.call(request.0).await }).await;
                answer.map_err(|error| format!("the store failed: {error}"))?
            }
        });
        let allow = self.allow.clone();
        self.transport.serve_stream(SNAPSHOT_PATH, move |peer, header, send, recv| {
            let (service, allowed) = (service.clone(), allow(&peer.node) || service.is_member(&peer.node));
            async move {
                // Dropped without an end, the stream is an error for whoever sent it.
                if allowed {
                    receive(&*service, header, send, recv).await;
                }
            }
        });
    }

    fn stop(&self) {
        self.transport.unserve(PATH);
        self.transport.unserve(SNAPSHOT_PATH);
    }

    async fn call(&self, peer: &Peer, request: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        self.connected(peer)?;
        let answer = self.transport.ask(&peer.name, PATH, &StoreRequest(request), deadline).await;
        answer.map_err(|error| failed(peer, &error))
    }

    async fn send_snapshot(
        &self,
        peer: &Peer,
        header: Bytes,
        mut body: SnapshotBody,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        self.connected(peer)?;
        let lost = |reason: String| TransportError::Lost { peer: peer.name.clone(), reason };
        let exchange = async {
            let opened = self.transport.open_stream(&peer.name, SNAPSHOT_PATH, header).await;
            let (mut send, mut recv) = opened.map_err(|error| failed(peer, &error))?;
            let sent = async {
                tokio::io::copy(&mut body, &mut send).await?;
                send.finish().await?;
                recv.read_to_end(SNAPSHOT_ANSWER_BYTES_MAX).await
            };
            sent.await.map_err(|error| lost(format!("sending a snapshot failed: {error}")))
        };
        let answer = tokio::time::timeout(deadline, exchange).await;
        let answer = answer.map_err(|_| lost(format!("no answer within {} ms", deadline.as_millis())))??;
        Ok(Bytes::from(answer))
    }
}

async fn receive(service: &dyn RaftService, header: Bytes, mut send: SendStream, recv: RecvStream) {
    match service.snapshot(header, Box::new(recv)).await {
        Ok(answer) => {
            let answered = async {
                tokio::io::AsyncWriteExt::write_all(&mut send, &answer).await?;
                send.finish().await
            };
            if let Err(error) = answered.await {
                tracing::debug!(%error, "the sender of a snapshot is gone");
            }
        }
        Err(reason) => tracing::warn!(reason, "a snapshot was not installed"),
    }
}

#[cfg(test)]
#[path = "transport_test.rs"]
mod tests;
