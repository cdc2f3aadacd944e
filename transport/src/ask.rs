//! One ask or open under way, from the asker's side: waits for the link, writes the request on a stream of its own, reads
//! the reply. Dropped, it cancels: the stream is reset and the handler on the other side stops.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{
    endpoint::{Node, Phase, guarded},
    error::{AskError, SendError},
    frame::{Ask, EncodeError, Kind, Open, encode, status},
    link::{BODY_PRIORITY, Link, MESSAGE_PRIORITY, ReadFrameError, read_reply},
    peer::Counters,
    stream::{self, RecvStream, Resetting, SendStream},
};

/// Longest deadline: what is longer is cut to it, so that arithmetic on instants holds.
const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// One ask or open under way.
pub(crate) struct Request {
    own: Arc<Node>,
    node: String,
    path: String,
    name: &'static str,
    version: u16,
    deadline: Instant,
}

impl Request {
    /// A request that ends in `within` from now. An open has no message's name.
    pub(crate) fn new(
        own: &Arc<Node>,
        node: &str,
        path: &str,
        (name, version): (&'static str, u16),
        within: Duration,
    ) -> Self {
        Self {
            own: own.clone(),
            node: node.into(),
            path: path.into(),
            name,
            version,
            deadline: Instant::now() + within.min(DEADLINE_MAX),
        }
    }

    /// Sends the encoded message and gives the encoded reply.
    pub(crate) async fn run(self, body: Bytes) -> Result<Bytes, AskError> {
        let node = self.own.clone();
        if !node.is_running() {
            return Err(AskError::Closed);
        }
        let (status, reply) = if self.is_own() {
            self.ask_own(body).await?
        } else {
            let link = self.link().await?;
            self.ask_link(&link, &body).await?
        };
        self.outcome(status, reply)
    }

    /// The way of a peer's ask, without the network.
    async fn ask_own(&self, body: Bytes) -> Result<(u8, Bytes), AskError> {
        let node = self.own.clone();
        // For the limit's sake alone: what is too large for a peer is too large here.
        encode(Kind::Ask, &self.frame(&body), node.limits.frame_bytes)?;
        let (path, name, version) = (self.path.clone(), self.name, self.version);
        let deadline_ms = self.remaining_ms();
        let runtime = node.handlers.clone();
        // On the handlers' runtime, as a peer's would be; cancelled with this future.
        let mut handling = Cancelling(runtime.spawn(async move {
            let ask = Ask { path: &path, name, version, deadline_ms, body: &body };
            let mut phase = node.phase.subscribe();
            tokio::select! {
                biased;
                answer = node.answer(node.own_peer(), &ask, body.clone()) => Some(answer),
                _ = phase.wait_for(|p| *p == Phase::Dead) => None,
            }
        }));
        match timeout_at(self.deadline, &mut handling.0).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(_) => Err(AskError::Closed),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn is_own(&self) -> bool {
        self.node == *self.own.me.node
    }

    async fn ask_link(&self, link: &Arc<Link>, body: &[u8]) -> Result<(u8, Bytes), AskError> {
        let limits = &self.own.limits;
        let asking = async {
            let Ok(_permit) = link.asks.acquire().await else {
                return Err(self.no_connection());
            };
            let frame = encode(Kind::Ask, &self.frame(body), limits.frame_bytes)?;
            let (send, mut recv) = link.conn.open_bi().await.map_err(|_| self.no_connection())?;
            let _ = send.set_priority(MESSAGE_PRIORITY);
            let mut send = Resetting::new(send);
            self.count_sent();
            if send.write(frame.into()).await.is_ok() {
                send.finish();
            }
            self.reply(link, &mut recv, limits.frame_bytes).await
        };
        timeout_at(self.deadline, asking).await.unwrap_or_else(|_| Err(self.timed_out()))
    }

    /// Opens a stream.
    pub(crate) async fn open(self, header: Bytes) -> Result<(SendStream, RecvStream), AskError> {
        let node = self.own.clone();
        if !node.is_running() {
            return Err(AskError::Closed);
        }
        let open = Open { path: &self.path, header: &header };
        let frame = encode(Kind::Open, &open, node.limits.frame_bytes)?;
        if self.is_own() {
            let handler = node.registry.stream(&self.path).ok_or_else(|| self.no_proc())?;
            let (near, far) = stream::local();
            let peer = node.own_peer();
            node.handlers.spawn(async move {
                let handled = guarded(|| {
                    let handling = handler(peer, header, far.0, far.1);
                    async move {
                        handling.await;
                        Ok(vec![])
                    }
                });
                // Logged there already.
                let _ = handled.await;
            });
            return Ok(near);
        }
        let link = self.link().await?;
        let opening = async {
            let permit = link.streams.clone().acquire_owned().await.map_err(|_| self.no_connection())?;
            let (send, mut recv) = link.conn.open_bi().await.map_err(|_| self.no_connection())?;
            let mut send = Resetting::new(send);
            self.count_sent();
            send.write(frame.into()).await.map_err(|_| self.no_connection())?;
            let (status, reply) = self.reply(&link, &mut recv, node.limits.frame_bytes).await?;
            self.outcome(status, reply)?;
            let send = send.release().ok_or_else(|| self.no_connection())?;
            let _ = send.set_priority(BODY_PRIORITY);
            Ok(stream::quic(send, recv, Some(permit)))
        };
        timeout_at(self.deadline, opening).await.unwrap_or_else(|_| Err(self.timed_out()))
    }

    /// The link to the node, waited for until the deadline.
    async fn link(&self) -> Result<Arc<Link>, AskError> {
        let node = &self.own;
        let mut known = node.peers_known.subscribe();
        let mut phase = node.phase.subscribe();
        let waiting = async {
            loop {
                known.mark_unchanged();
                if let Some(slot) = node.peer(&self.node) {
                    let mut links = slot.links();
                    if let Some(link) = links.wait_for(Option::is_some).await {
                        return link;
                    }
                }
                known.changed().await;
            }
        };
        let found = tokio::select! {
            biased;
            found = timeout_at(self.deadline, waiting) => found,
            _ = phase.wait_for(|p| *p != Phase::Running) => return Err(AskError::Closed),
        };
        if let Ok(link) = found {
            return Ok(link);
        }
        let trouble = node.peer(&self.node).and_then(|slot| slot.lock().trouble.clone());
        match trouble {
            Some(trouble) if trouble.refused => {
                Err(AskError::Refused { node: self.node.clone(), reason: trouble.reason })
            }
            _ => Err(self.no_connection()),
        }
    }

    async fn reply(&self, link: &Link, recv: &mut quinn::RecvStream, limit: usize) -> Result<(u8, Bytes), AskError> {
        let reply = read_reply(recv, limit).await.map_err(|error| match error {
            ReadFrameError::Frame(error) => AskError::BadReply { path: self.path.clone(), reason: error.to_string() },
            // Reset by a handler that is past the deadline, or lost with the connection.
            ReadFrameError::Gone if link.conn.close_reason().is_none() => {
                AskError::BadReply { path: self.path.clone(), reason: "the stream was broken off".into() }
            }
            ReadFrameError::Gone => self.no_connection(),
        })?;
        if let Some(slot) = self.own.peer(&self.node) {
            Counters::add(&slot.counters.received);
        }
        Ok(reply)
    }

    fn outcome(&self, status: u8, body: Bytes) -> Result<Bytes, AskError> {
        let text = || String::from_utf8_lossy(&body).into_owned();
        let path = self.path.clone();
        match status {
            status::OK => Ok(body),
            status::NO_PROC => Err(self.no_proc()),
            status::UNKNOWN_MESSAGE => {
                Err(AskError::UnknownMessage { path, name: self.name.into(), version: self.version })
            }
            status::BAD_MESSAGE => Err(AskError::BadMessage { path, reason: text() }),
            status::FAILED => Err(AskError::Remote(text())),
            status::TIMEOUT => Err(self.timed_out()),
            other => Err(AskError::BadReply { path, reason: format!("unknown status {other}") }),
        }
    }

    fn frame<'a>(&'a self, body: &'a [u8]) -> Ask<'a> {
        Ask { path: &self.path, name: self.name, version: self.version, deadline_ms: self.remaining_ms(), body }
    }

    fn remaining_ms(&self) -> u64 {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        // Rounded up: the asker's own clock ends the ask, the other side's only frees what is left of it.
        u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn count_sent(&self) {
        if let Some(slot) = self.own.peer(&self.node) {
            Counters::add(&slot.counters.sent);
        }
    }

    fn no_connection(&self) -> AskError {
        AskError::NoConnection { node: self.node.clone() }
    }

    fn no_proc(&self) -> AskError {
        AskError::NoProc { node: self.node.clone(), path: self.path.clone() }
    }

    fn timed_out(&self) -> AskError {
        AskError::Timeout { node: self.node.clone(), path: self.path.clone() }
    }
}

/// A task that is aborted when nobody waits for it any more.
struct Cancelling<T>(JoinHandle<T>);

impl<T> Drop for Cancelling<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<EncodeError> for SendError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::TooLarge { bytes, limit } => Self::TooLarge { bytes, limit },
            EncodeError::Unencodable(reason) => Self::Unencodable(reason),
        }
    }
}

impl From<EncodeError> for AskError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::TooLarge { bytes, limit } => Self::TooLarge { bytes, limit },
            EncodeError::Unencodable(reason) => Self::Unencodable(reason),
        }
    }
}
