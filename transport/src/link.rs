//! One authenticated connection to one incarnation of a peer: its lanes, written and read by tasks on the transport's
//! runtime. Decides nothing about peers; a protocol error here ends this connection and nothing else.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use parking_lot::Mutex;
use phalanx_actors::Exit;
use quinn::{Connection, ConnectionError, ReadError, VarInt};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
};

use crate::{
    ask::{Asking, run_asks},
    config::Limits,
    endpoint::{Node, presented},
    event::{LossReason, Peer},
    flow::{FLOW_PATH, Signal, Taken, Window},
    frame::{
        Frame, FrameError, HEADER_BYTES, Header, Kind, MonitorPath, NAME_BYTES_MAX, ROUTES_SINCE, Reply, Tell, View,
        check_names, encode,
    },
    groups::Groups,
    hello::Origin,
    inbox::Lane,
    lane::{read_lane, read_tells, write_lane, write_tells},
    monitor::Watcher,
    outbox::{Dialect, Outbox, PushError},
    peer::{Counters, PeerSlot},
    requests::accept_streams,
    standing::Standing,
    ties::{self, Ties},
};

/// Stream priorities: exits and leases before messages, messages before bodies.
pub(crate) const CONTROL_PRIORITY: i32 = 2;
pub(crate) const MESSAGE_PRIORITY: i32 = 1;
pub(crate) const BODY_PRIORITY: i32 = 0;

/// How long the lanes of a closed connection are read on, for what had arrived before the close.
const DRAIN_MS: u64 = 100;

/// Granularity of the request byte budget.
const BUDGET_UNIT_BYTES: usize = 1 << 10;

/// Most units that a budget has.
const MAX_UNITS: usize =
    if Semaphore::MAX_PERMITS < u32::MAX as usize { Semaphore::MAX_PERMITS } else { u32::MAX as usize };

/// Application error codes of a closed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum CloseCode {
    Closing = 0,
    Protocol = 1,
    Refused = 2,
    Duplicate = 3,
    Replaced = 4,
    Removed = 5,
}

impl CloseCode {
    pub(crate) fn is(self, code: VarInt) -> bool {
        VarInt::from_u32(self as u32) == code
    }
}

/// Monitors that we hold on the peer, by the id that we gave them; `None` once the link is lost.
type Monitors = Option<HashMap<u64, oneshot::Sender<Exit>>>;

pub(crate) struct Link {
    pub(crate) peer: Peer,
    pub(crate) origin: Origin,
    /// The protocol version that both sides speak.
    pub(crate) protocol: u8,
    pub(crate) conn: Connection,
    /// Of the peer, over all of its links.
    pub(crate) counters: Arc<Counters>,
    pub(crate) control: Outbox,
    pub(crate) tells: Outbox,
    pub(crate) asks: Semaphore,
    /// To the task that asks for others.
    pub(crate) asking: mpsc::UnboundedSender<Asking>,
    /// Taken by that task.
    asked: Mutex<Option<mpsc::UnboundedReceiver<Asking>>>,
    pub(crate) streams: Arc<Semaphore>,
    /// One permit from each lane's writer when all that it was given has been acknowledged.
    pub(crate) written: Semaphore,
    /// Asks of the peer that are being handled.
    pub(crate) handling: AtomicUsize,
    pub(crate) ask_budget: Arc<Semaphore>,
    /// Bytes of replies to the peer.
    pub(crate) reply_budget: Arc<Semaphore>,
    /// Bytes of replies of the peer.
    answer_budget: Arc<Semaphore>,
    /// What an inbox here holds of one path, and what of it is due to the peer.
    window: Window,
    taken: Mutex<Taken>,
    monitors: Mutex<Monitors>,
    monitors_max: usize,
    next_monitor: AtomicU64,
    /// The peer's monitors on paths of ours: its id, the path, our registry's id.
    watched: Mutex<HashMap<u64, (Arc<str>, u64)>>,
    pub(crate) ties: Ties,
    pub(crate) groups: Arc<Groups>,
    /// Those who read the lanes; `None` once the link is lost.
    readers: Mutex<Option<Vec<AbortHandle>>>,
    /// Why we closed it.
    cause: Mutex<Option<LossReason>>,
    /// What the peer has proven to be.
    pub(crate) standing: Standing,
    pub(crate) frame_bytes: usize,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({:?})", self.peer)
    }
}

impl Link {
    /// A link to the peer of a slot.
    pub(crate) fn new(
        node: &Node,
        slot: &PeerSlot,
        peer: Peer,
        origin: Origin,
        protocol: u8,
        conn: Connection,
    ) -> Self {
        let limits = &node.limits;
        let standing = Standing::new(presented(&conn), node.credentials.now_secs());
        let window = Window::new(limits.inbox_messages, limits.inbox_bytes);
        let budget = |bytes: usize| Arc::new(Semaphore::new((bytes / BUDGET_UNIT_BYTES).clamp(1, MAX_UNITS)));
        let (asking, asked) = mpsc::unbounded_channel();
        Self {
            peer,
            origin,
            protocol,
            conn,
            counters: slot.counters.clone(),
            control: Outbox::new(limits.control_outbox_messages, limits.outbox_bytes),
            tells: Outbox::new(limits.outbox_messages, limits.outbox_bytes),
            asks: Semaphore::new(limits.asks_in_flight as usize),
            asking,
            asked: Mutex::new(Some(asked)),
            streams: Arc::new(Semaphore::new(limits.streams_open as usize)),
            written: Semaphore::new(0),
            handling: AtomicUsize::new(0),
            ask_budget: budget(limits.ask_bytes),
            reply_budget: budget(limits.reply_bytes),
            answer_budget: budget(limits.reply_bytes),
            window,
            taken: Mutex::new(Taken::new(window)),
            monitors: Mutex::new(Some(HashMap::new())),
            monitors_max: limits.monitors,
            next_monitor: AtomicU64::new(0),
            watched: Mutex::default(),
            ties: Ties::new(limits.monitors),
            groups: node.groups.clone(),
            readers: Mutex::new(Some(vec![])),
            cause: Mutex::default(),
            standing,
            frame_bytes: limits.frame_bytes,
        }
    }

    /// What its peer reads.
    pub(crate) fn dialect(&self) -> Dialect {
        Dialect {
            references: self.has_references(),
            routes: self.protocol >= ROUTES_SINCE,
            frame_bytes: self.frame_bytes,
        }
    }

    /// Closes the connection; `cause` is what our side reports. The first cause counts.
    pub(crate) fn close(&self, code: CloseCode, cause: LossReason, text: &str) {
        self.cause.lock().get_or_insert(cause);
        self.conn.close(VarInt::from_u32(code as u32), text.as_bytes());
    }

    pub(crate) fn bytes(&self) -> (u64, u64) {
        let stats = self.conn.stats();
        (stats.udp_tx.bytes, stats.udp_rx.bytes)
    }

    /// Sets a monitor; the receiver gets its one reason. Gives the id to cancel it by.
    pub(crate) fn monitor(&self, path: &str) -> (u64, oneshot::Receiver<Exit>) {
        let (sender, receiver) = oneshot::channel();
        let id = self.next_monitor_id();
        let frame = encode(Kind::Monitor, &MonitorPath { id, path, pid: None }, self.frame_bytes);
        // The frame goes out under the lock, so that a Demonitor cannot overtake it. A sender that is dropped here reads as
        // NoConnection: no link, no room, or a path too long to be one.
        let mut monitors = self.monitors.lock();
        if let (Some(held), Ok(frame)) = (monitors.as_mut(), frame)
            && held.len() < self.monitors_max
            && path.len() <= NAME_BYTES_MAX
            && self.control.push_unbounded(&frame).is_ok()
        {
            held.insert(id, sender);
        }
        (id, receiver)
    }

    /// Numbers all watches that we set on the peer.
    pub(crate) fn next_monitor_id(&self) -> u64 {
        self.next_monitor.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn demonitor(&self, id: u64) {
        let mut monitors = self.monitors.lock();
        if monitors.as_mut().is_some_and(|held| held.remove(&id).is_some())
            && let Ok(frame) = encode(Kind::Demonitor, &(id,), self.frame_bytes)
        {
            // A closed outbox means that the peer forgets the monitor anyway.
            let _ = self.control.push_unbounded(&frame);
        }
    }

    /// Tells the peer that what it watches is down.
    pub(crate) fn report_down(&self, id: u64, reason: &Exit) {
        self.watched.lock().remove(&id);
        self.ties.end_far_watch(id);
        let frame = encode(Kind::Down, &(id, reason), self.frame_bytes).or_else(|_| {
            // Only a reason with a text of megabytes does not fit.
            encode(Kind::Down, &(id, Exit::Error("exit reason too long to send".into())), self.frame_bytes)
        });
        if let Ok(frame) = frame
            && self.control.push_unbounded(&frame) == Err(PushError::Full)
        {
            // A Down that is not told would be a promise broken; the end of the connection is one that is kept.
            let text = "reads nothing of what it watches";
            self.close(CloseCode::Protocol, LossReason::Protocol(text.into()), text);
        }
    }

    /// Tells of the peer have left their inbox, or were dropped.
    pub(crate) fn take_off(&self, path: &str, messages: usize, body_bytes: usize) {
        let due = self.taken.lock().take(path, messages, body_bytes);
        if let Some((messages, bytes)) = due {
            self.signal(&Signal::Credit { path: path.into(), messages, bytes });
        }
    }

    fn signal(&self, signal: &Signal) {
        let Ok(body) = rmp_serde::to_vec(signal) else {
            return;
        };
        let tell = Tell { path: FLOW_PATH, name: "flow/Signal", version: 1, body: &body, more: None };
        if let Ok(frame) = encode(Kind::Tell, &tell, self.frame_bytes) {
            // Fewer than the tells that they answer. A closed outbox means that the link is lost.
            let _ = self.control.push_unbounded(&frame);
        }
    }

    /// Keeps the reader of a lane until the link is lost. Lost already, it reads nothing.
    fn keep_reader(&self, reader: AbortHandle) {
        match self.readers.lock().as_mut() {
            Some(readers) => readers.push(reader),
            None => reader.abort(),
        }
    }

    /// The link is lost: its lanes are read no more, our monitors fire, the peer's are forgotten, its members leave our groups.
    pub(crate) fn end(self: &Arc<Self>, registry: &crate::registry::Registry) {
        // What it still holds must not come between what comes on the next link.
        for reader in self.readers.lock().take().into_iter().flatten() {
            reader.abort();
        }
        self.control.close();
        self.tells.close();
        let mut held: Vec<_> = self.monitors.lock().take().into_iter().flatten().collect();
        // In the order in which they were set.
        held.sort_unstable_by_key(|(id, _)| *id);
        for (_, sender) in held {
            let _ = sender.send(Exit::NoConnection);
        }
        self.ties.end();
        self.groups.lost(self);
        let mut watched: Vec<_> = std::mem::take(&mut *self.watched.lock()).into_values().collect();
        watched.sort_unstable_by_key(|(_, watch)| *watch);
        for (path, watch) in watched {
            registry.unwatch(&path, watch);
        }
    }

    pub(crate) fn violation(&self, error: &FrameError) {
        tracing::warn!(
            node = %self.peer.node,
            addr = %self.conn.remote_address(),
            "closing the connection to {}: {error}",
            self.peer.node
        );
        let text = error.to_string();
        self.close(CloseCode::Protocol, LossReason::Protocol(text.clone()), &text);
    }

    fn loss(&self, error: ConnectionError) -> LossReason {
        if let Some(cause) = self.cause.lock().take() {
            return cause;
        }
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let text = String::from_utf8_lossy(&close.reason).into_owned();
                if CloseCode::Protocol.is(close.error_code) {
                    LossReason::Protocol(format!("the peer says: {text}"))
                } else if CloseCode::Replaced.is(close.error_code) {
                    LossReason::Replaced
                } else {
                    LossReason::ClosedByPeer(text)
                }
            }
            ConnectionError::TimedOut => LossReason::IdleTimeout,
            ConnectionError::LocallyClosed => LossReason::Closing,
            ConnectionError::Reset => LossReason::ClosedByPeer("restarted".into()),
            other => LossReason::Protocol(other.to_string()),
        }
    }
}

/// Everything a lane's task needs.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) node: Arc<Node>,
    pub(crate) slot: Arc<PeerSlot>,
    pub(crate) link: Arc<Link>,
}

/// Runs a link from the end of its hello to its loss.
pub(crate) async fn run(
    node: Arc<Node>,
    slot: Arc<PeerSlot>,
    link: Arc<Link>,
    control_send: quinn::SendStream,
    control_recv: quinn::RecvStream,
) {
    let context = Context { node, slot, link };
    context.link.signal(&Signal::Window(context.link.window));
    let mut readers = JoinSet::new();
    let mut others = JoinSet::new();
    let c = &context;
    // Fails only when the stream is over anyway.
    let _ = control_send.set_priority(CONTROL_PRIORITY);
    others.spawn(write_lane(c.clone(), Lane::Control, control_send));
    others.spawn(write_tells(c.clone()));
    others.spawn(accept_streams(c.clone()));
    if let Some(asked) = c.link.asked.lock().take() {
        others.spawn(run_asks(c.clone(), asked));
    }
    others.spawn(read_datagrams(c.clone()));
    c.link.keep_reader(readers.spawn(read_lane(c.clone(), Lane::Control, control_recv)));
    c.link.keep_reader(readers.spawn(read_tells(c.clone())));

    let error = c.link.conn.closed().await;
    // What arrived before the close is still handled, before anyone hears of the loss.
    let drained = async { while readers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_millis(DRAIN_MS), drained).await;
    let reason = c.link.loss(error);
    tracing::info!(node = %c.link.peer.node, "connection to {} lost: {reason}", c.link.peer.node);
    c.slot.lose(&mut c.slot.lock(), &c.link, &reason, &c.node.registry, &c.node.events);
}

pub(crate) fn take_control(c: &Context, frame: &View<'_>) -> Result<(), FrameError> {
    match frame.kind() {
        Kind::Monitor => take_monitor(c, &frame.read()?),
        Kind::Demonitor => {
            let (id,): (u64,) = frame.read()?;
            let watched = c.link.watched.lock().remove(&id);
            match watched {
                Some((path, watch)) => c.node.registry.unwatch(&path, watch),
                None => c.link.ties.end_far_watch(id),
            }
            Ok(())
        }
        Kind::Identity => c.link.take_identity(&c.node, &c.slot, &frame.read()?),
        Kind::Down => {
            let (id, reason) = read_down(frame)?;
            let sender = c.link.monitors.lock().as_mut().and_then(|m| m.remove(&id));
            match sender {
                // The monitor may be gone already.
                Some(sender) => drop(sender.send(reason)),
                None => c.link.ties.down(id, &reason),
            }
            Ok(())
        }
        Kind::Signal => c.link.take_signal(&c.node, &frame.read()?),
        kind => Err(FrameError::Unexpected(kind)),
    }
}

/// The exit that a peer reports; one that only a newer version knows is not worth a connection.
fn read_down(frame: &View<'_>) -> Result<(u64, Exit), FrameError> {
    frame.read().map(|(id, exit)| (id, ties::bounded(exit))).or_else(|_| {
        let (id, _): (u64, serde::de::IgnoredAny) = frame.read()?;
        Ok((id, ties::unreadable()))
    })
}

fn take_monitor(c: &Context, monitor: &MonitorPath<'_>) -> Result<(), FrameError> {
    check_names([monitor.path])?;
    {
        let (watched, ties) = (c.link.watched.lock(), &c.link.ties);
        let full = watched.len() + ties.far_watches() >= c.node.limits.monitors;
        if full || watched.contains_key(&monitor.id) || ties.has_far_watch(monitor.id) {
            return Err(FrameError::Unexpected(Kind::Monitor));
        }
    }
    if monitor.pid.is_some() || !c.node.registry.serves(monitor.path) {
        match c.node.shared.find(monitor.path, monitor.pid) {
            Some(actor) => c.link.watch_for_peer(monitor.id, actor.pid()),
            None => c.link.report_down(monitor.id, &Exit::NoProc),
        }
        return Ok(());
    }
    let watcher = Arc::new(Watcher::remote(Arc::downgrade(&c.link), monitor.id));
    // Noted before it is watched, so that a Down that fires at once finds it; the id follows.
    let path: Arc<str> = monitor.path.into();
    c.link.watched.lock().insert(monitor.id, (path.clone(), u64::MAX));
    let watch = c.node.registry.watch(monitor.path, watcher, &c.node.driver);
    if let Some(watch) = watch {
        let stale = {
            let mut watched = c.link.watched.lock();
            match watched.get_mut(&monitor.id) {
                Some(entry) => {
                    entry.1 = watch;
                    false
                }
                None => true,
            }
        };
        if stale {
            c.node.registry.unwatch(&path, watch);
        }
    }
    Ok(())
}

async fn read_datagrams(c: Context) {
    while let Ok(datagram) = c.link.conn.read_datagram().await {
        if c.link.is_cast_out() {
            return;
        }
        Counters::add(&c.link.counters.received);
        if !c.node.take_datagram(&c.link.peer, datagram) {
            Counters::add(&c.link.counters.dropped);
        }
    }
}

/// Why no frame could be read.
#[derive(Debug)]
pub(crate) enum ReadFrameError {
    /// The peer broke the protocol.
    Frame(FrameError),
    /// The stream was reset, or the connection is lost.
    Gone,
}

impl From<FrameError> for ReadFrameError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<ReadError> for ReadFrameError {
    fn from(_: ReadError) -> Self {
        Self::Gone
    }
}

/// Reads exactly one frame and not a byte more.
pub(crate) async fn read_frame(recv: &mut quinn::RecvStream, limit: usize) -> Result<Frame, ReadFrameError> {
    let header = read_header(recv, limit).await?;
    let payload = read_payload(recv, header.payload_bytes).await?;
    Ok(Frame { kind: header.kind, payload })
}

pub(crate) async fn read_header(recv: &mut quinn::RecvStream, limit: usize) -> Result<Header, ReadFrameError> {
    let mut header = [0; HEADER_BYTES];
    recv.read_exact(&mut header).await.map_err(|e| match e {
        quinn::ReadExactError::FinishedEarly(_) => FrameError::Truncated.into(),
        quinn::ReadExactError::ReadError(_) => ReadFrameError::Gone,
    })?;
    Ok(Header::parse(header, limit)?)
}

/// Memory grows with what has arrived, not with what was announced.
pub(crate) async fn read_payload(recv: &mut quinn::RecvStream, payload_bytes: usize) -> Result<Bytes, ReadFrameError> {
    let mut payload = BytesMut::new();
    while payload.len() < payload_bytes {
        match recv.read_chunk(payload_bytes - payload.len(), true).await? {
            Some(chunk) if payload.is_empty() && chunk.bytes.len() == payload_bytes => {
                return Ok(chunk.bytes);
            }
            Some(chunk) => payload.extend_from_slice(&chunk.bytes),
            None => return Err(FrameError::Truncated.into()),
        }
    }
    Ok(payload.freeze())
}

/// Takes note of the end of a stream that has come with its last bytes, without which QUIC would tell the sender to stop. Only where
/// nothing may follow.
pub(crate) fn take_end(recv: &mut quinn::RecvStream) {
    let _ = recv.read_chunk(1, true).now_or_never();
}

/// What so many bytes take of a budget; never more than all of it.
pub(crate) fn units(bytes: usize, budget_bytes: usize) -> u32 {
    let most = (budget_bytes / BUDGET_UNIT_BYTES).clamp(1, MAX_UNITS);
    u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES).clamp(1, most)).unwrap_or(u32::MAX)
}

/// Reads the reply of an ask or open. Replies from one peer that are being read have a budget: one that asks for a thousand
/// things at once must not get a thousand of the largest answers at once.
pub(crate) async fn read_reply(
    link: &Link,
    recv: &mut quinn::RecvStream,
    limits: &Limits,
) -> Result<(u8, Bytes), ReadFrameError> {
    let header = read_header(recv, limits.frame_bytes).await?;
    if header.kind != Kind::Reply {
        return Err(FrameError::Unexpected(header.kind).into());
    }
    // Never closed: an error would only mean that there is no bound.
    let _budget = link.answer_budget.acquire_many(units(header.payload_bytes, limits.reply_bytes)).await;
    let payload = read_payload(recv, header.payload_bytes).await?;
    let frame = Frame { kind: header.kind, payload };
    let reply: Reply<'_> = frame.read()?;
    Ok((reply.status, frame.payload.slice_ref(reply.body)))
}
