//! One ask or open under way, from the asker's side: waits for the link, writes the request on a stream of its own, reads
//! the reply. Dropped, it cancels: the stream is reset and the handler on the other side stops.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use phalanx_actors::Trace;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{
    driven::sending_at_once,
    endpoint::{Node, Phase},
    error::{AskError, SendError},
    frame::{Ask, EncodeError, Kind, More, Open, check_sent, encode, status},
    guard::guarded,
    link::{BODY_PRIORITY, Context, Link, MESSAGE_PRIORITY, ReadFrameError, read_reply, take_end},
    peer::Counters,
    remote::Envelope,
    stream::{self, RecvStream, Resetting, SendStream},
    ties::read_exit,
};

/// Longest deadline: what is longer is cut to it, so that arithmetic on instants holds.
pub(crate) const DEADLINE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The instant at which so much time has passed, which may come from a peer.
pub(crate) fn deadline_in(within: Duration) -> Instant {
    Instant::now() + within.min(DEADLINE_MAX)
}

/// One ask or open under way.
pub(crate) struct Request {
    own: Arc<Node>,
    node: String,
    path: String,
    message: Envelope<'static>,
    deadline: Instant,
    /// The span that it is asked in.
    trace: Option<Trace>,
    /// Whether it waits for a connection.
    waits: bool,
    /// The boot of the node and the pid there, when one incarnation is meant.
    target: Option<(u64, u64)>,
}

impl Request {
    /// A request that ends in `within` from now. An open has no message's name.
    pub(crate) fn new(own: &Arc<Node>, node: &str, path: &str, message: Envelope<'static>, within: Duration) -> Self {
        Self {
            own: own.clone(),
            node: node.into(),
            path: path.into(),
            message,
            deadline: deadline_in(within),
            trace: Trace::current(),
            waits: true,
            target: None,
        }
    }

    /// As `new`, until a deadline; `None` is as far as there is one.
    pub(crate) fn until(
        own: &Arc<Node>,
        node: &str,
        path: &str,
        message: Envelope<'static>,
        deadline: Option<Instant>,
    ) -> Self {
        let within = deadline.map_or(DEADLINE_MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        Self::new(own, node, path, message, within)
    }

    /// Does not wait for a connection.
    pub(crate) fn at_once(mut self) -> Self {
        self.waits = false;
        self
    }

    /// To one incarnation; does not wait for a connection.
    pub(crate) fn of_incarnation(mut self, node: u64, pid: u64) -> Self {
        self.target = Some((node, pid));
        self.at_once()
    }

    /// Sends the encoded message and gives the encoded reply.
    pub(crate) async fn run(self, body: Bytes) -> Result<Bytes, AskError> {
        let node = self.own.clone();
        if !node.is_running() {
            return Err(AskError::Closed);
        }
        if self.deadline <= Instant::now() {
            return Err(self.timed_out());
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
        // For the limits' sake alone: what is too large for a peer is too large here.
        check_sent(&self.path, self.message.name)?;
        encode(Kind::Ask, &self.frame(&body, None), node.limits.frame_bytes)?;
        let (version_min, pid) = (self.message.version_min, self.pid());
        let trace = self.trace.map(|trace| trace.to_string());
        let (path, Envelope { name, version, .. }) = (self.path.clone(), self.message);
        let deadline_ms = self.remaining_ms();
        let runtime = node.handlers.clone();
        // On the handlers' runtime, as a peer's would be; cancelled with this future.
        let mut handling = Cancelling(runtime.spawn(async move {
            let more = Some(More { version_min, pid, trace: trace.as_deref() });
            let ask = Ask { path: &path, name, version, deadline_ms, body: &body, more };
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
            let trace = self.trace.map(|trace| trace.to_string());
            let more = link.more(&self.message, self.pid(), trace.as_deref());
            let more = more.ok_or_else(|| AskError::Unsupported { node: self.node.clone() })?;
            check_sent(&self.path, self.message.name)?;
            let frame = encode(Kind::Ask, &self.frame(body, more), limits.frame_bytes)?;
            // One of many goes with the next packets of the transport's thread.
            let alone = link.asks.available_permits() + 1 == limits.asks_in_flight as usize;
            let reply = if alone {
                exchange(&self.own, link, frame.into(), true).await
            } else {
                let (answer, answered) = oneshot::channel();
                // Fails only when the link is lost.
                let _ = link.asking.send((frame.into(), answer));
                answered.await.unwrap_or(Err(ReadFrameError::Gone))
            };
            reply.map_err(|error| self.unread(link, error))
        };
        timeout_at(self.deadline, asking).await.unwrap_or_else(|_| Err(self.timed_out()))
    }

    /// Opens a stream.
    pub(crate) async fn open(self, header: Bytes) -> Result<(SendStream, RecvStream), AskError> {
        let node = self.own.clone();
        if !node.is_running() {
            return Err(AskError::Closed);
        }
        check_sent(&self.path, "")?;
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
                        Ok(())
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
            Counters::add(&link.counters.sent);
            send.write(frame.into()).await.map_err(|_| self.no_connection())?;
            let (status, reply) = self.reply(&link, &mut recv).await?;
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
        if !self.waits {
            let link = node.peer(&self.node).and_then(|slot| slot.link()).ok_or_else(|| self.no_connection())?;
            return match self.target {
                Some((incarnation, _)) if incarnation < link.peer.incarnation => Err(self.no_proc()),
                Some((incarnation, _)) if incarnation > link.peer.incarnation => Err(self.no_connection()),
                _ => Ok(link),
            };
        }
        if let Some(link) = node.peer(&self.node).and_then(|slot| slot.link()) {
            return Ok(link);
        }
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

    async fn reply(&self, link: &Link, recv: &mut quinn::RecvStream) -> Result<(u8, Bytes), AskError> {
        let reply = read_reply(link, recv, &self.own.limits).await.map_err(|error| self.unread(link, error))?;
        Counters::add(&link.counters.received);
        Ok(reply)
    }

    /// Why there is no reply.
    fn unread(&self, link: &Link, error: ReadFrameError) -> AskError {
        match error {
            ReadFrameError::Frame(error) => AskError::BadReply { path: self.path.clone(), reason: error.to_string() },
            // Whoever handles it ends it a little later.
            ReadFrameError::Gone if self.deadline <= Instant::now() => self.timed_out(),
            ReadFrameError::Gone if link.conn.close_reason().is_none() => {
                AskError::BadReply { path: self.path.clone(), reason: "the stream was broken off".into() }
            }
            ReadFrameError::Gone => self.no_connection(),
        }
    }

    fn outcome(&self, status: u8, body: Bytes) -> Result<Bytes, AskError> {
        let text = || String::from_utf8_lossy(&body).into_owned();
        let path = self.path.clone();
        match status {
            status::OK => Ok(body),
            status::NO_PROC => Err(self.no_proc()),
            status::UNKNOWN_MESSAGE => {
                Err(AskError::UnknownMessage { path, name: self.message.name.into(), version: self.message.version })
            }
            status::BAD_MESSAGE => Err(AskError::BadMessage { path, reason: text() }),
            status::FAILED => Err(AskError::Remote(text())),
            status::TIMEOUT => Err(self.timed_out()),
            status::EXITED => Err(AskError::Exited { node: self.node.clone(), path, exit: read_exit(&body) }),
            status::NO_REPLY => Err(AskError::NoReply { node: self.node.clone(), path }),
            other => Err(AskError::BadReply { path, reason: format!("unknown status {other}") }),
        }
    }

    fn pid(&self) -> Option<u64> {
        self.target.map(|(_, pid)| pid)
    }

    fn frame<'a>(&'a self, body: &'a [u8], more: Option<More<'a>>) -> Ask<'a> {
        let Envelope { name, version, .. } = self.message;
        Ask { path: &self.path, name, version, deadline_ms: self.remaining_ms(), body, more }
    }

    fn remaining_ms(&self) -> u64 {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        // Rounded up: the asker's own clock ends the ask, the other side's only frees what is left of it.
        u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
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

/// Writes an ask on a stream of its own and reads the reply. Dropped, it resets the stream.
async fn exchange(own: &Node, link: &Link, ask: Bytes, at_once: bool) -> Result<(u8, Bytes), ReadFrameError> {
    let writing = async {
        let (send, recv) = link.conn.open_bi().await.map_err(|_| ReadFrameError::Gone)?;
        let _ = send.set_priority(MESSAGE_PRIORITY);
        let mut send = Resetting::new(send);
        Counters::add(&link.counters.sent);
        if send.write(ask).await.is_ok() {
            send.finish();
        }
        Ok::<_, ReadFrameError>((send, recv))
    };
    let (_send, mut recv) = if at_once { sending_at_once(writing).await? } else { writing.await? };
    let reply = read_reply(link, &mut recv, &own.limits).await?;
    Counters::add(&link.counters.received);
    take_end(&mut recv);
    Ok(reply)
}

/// An encoded ask, and who waits for its reply.
pub(crate) type Asking = (Bytes, oneshot::Sender<Result<(u8, Bytes), ReadFrameError>>);

/// Asks for others, on the transport's own thread: so many askers do not fight with it for the connection, and what they ask goes out in
/// the same packets. Bounded by the asks in flight.
pub(crate) async fn run_asks(c: Context, mut asking: mpsc::UnboundedReceiver<Asking>) {
    while let Some((ask, mut answer)) = asking.recv().await {
        let c = c.clone();
        tokio::spawn(async move {
            let reply = tokio::select! {
                biased;
                // Nobody waits for it any more.
                () = answer.closed() => return,
                reply = exchange(&c.node, &c.link, ask, false) => reply,
            };
            let _ = answer.send(reply);
        });
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
