//! What is kept of one peer across its connections: address, newest incarnation, the link that is up, inboxes, counters.
//! All changes of the link go through here, under one lock, so that `Up` and `Down` alternate and monitors fire once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, broadcast};

use crate::{
    event::{LossReason, NodeName, PeerEvent, PeerInfo, PeerState},
    hello::View,
    inbox::Inboxes,
    link::{CloseCode, Link},
    registry::Registry,
    watch,
};

#[derive(Debug)]
pub(crate) struct PeerSlot {
    pub(crate) name: NodeName,
    pub(crate) inboxes: Arc<Inboxes>,
    pub(crate) counters: Arc<Counters>,
    /// Wakes the dial loop: address set, link lost, nudged.
    pub(crate) wake: Notify,
    link: watch::Sender<Option<Arc<Link>>>,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
pub(crate) struct SlotState {
    /// Where to dial; `None` for peers that only come to us.
    pub(crate) addr: Option<SocketAddr>,
    /// A dial loop runs.
    pub(crate) dialing: bool,
    /// Dial now, and start the backoff anew.
    pub(crate) nudged: bool,
    /// The dial whose hello is on its way.
    pub(crate) hello_sent: Option<u64>,
    /// Newest incarnation seen.
    pub(crate) newest: Option<u64>,
    /// The last dial of the peer that we have accepted: incarnation and number.
    accepted: (u64, u64),
    /// Why there is no link.
    pub(crate) trouble: Option<Trouble>,
    /// Where it last was.
    seen: Option<SocketAddr>,
    /// Bytes of links that are gone.
    past_bytes: (u64, u64),
}

/// Why there is no link.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) refused: bool,
    pub(crate) reason: String,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl PeerSlot {
    pub(crate) fn new(name: NodeName, inboxes: Arc<Inboxes>) -> Self {
        Self {
            name,
            inboxes,
            counters: Arc::default(),
            wake: Notify::new(),
            link: watch::Sender::new(None),
            state: Mutex::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock()
    }

    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone()
    }

    pub(crate) fn with_link<R>(&self, f: impl FnOnce(&Link) -> R) -> Option<R> {
        self.link.borrow().as_deref().map(f)
    }

    pub(crate) fn links(&self) -> watch::Receiver<Option<Arc<Link>>> {
        self.link.subscribe()
    }

    pub(crate) fn view(&self, state: &SlotState) -> View {
        View {
            newest: state.newest,
            hello_sent: state.hello_sent.is_some(),
            up: self.link().map(|link| link.origin),
            accepted: state.accepted,
        }
    }

    /// The link is up, and takes the place of the one before it.
    pub(crate) fn install(
        &self,
        state: &mut SlotState,
        link: Arc<Link>,
        registry: &Registry,
        events: &broadcast::Sender<PeerEvent>,
    ) {
        if let Some(old) = self.link() {
            old.close(CloseCode::Replaced, LossReason::Replaced, "replaced by a newer connection");
            self.lose(state, &old, &LossReason::Replaced, registry, events);
        }
        state.newest = Some(link.peer.incarnation);
        if !link.origin.dialed_by_us {
            state.accepted = (link.peer.incarnation, link.origin.dial);
        }
        // A dial of ours that is still under way has lost.
        state.hello_sent = None;
        state.trouble = None;
        state.seen = Some(link.conn.remote_address());
        link.groups.greet(&link);
        let up = PeerEvent::Up { node: self.name.clone(), incarnation: link.peer.incarnation };
        self.link.send_replace(Some(link));
        // Nobody may be listening.
        let _ = events.send(up);
    }

    /// The link is gone. Does nothing if it is not the one that is up, so each link is lost once.
    pub(crate) fn lose(
        &self,
        state: &mut SlotState,
        link: &Arc<Link>,
        reason: &LossReason,
        registry: &Registry,
        events: &broadcast::Sender<PeerEvent>,
    ) {
        if !self.link().is_some_and(|up| Arc::ptr_eq(&up, link)) {
            return;
        }
        self.link.send_replace(None);
        let (sent, received) = link.bytes();
        state.past_bytes.0 += sent;
        state.past_bytes.1 += received;
        state.trouble = Some(Trouble { refused: false, reason: reason.to_string() });
        link.end(registry);
        let _ = events.send(PeerEvent::Down {
            node: self.name.clone(),
            incarnation: link.peer.incarnation,
            reason: reason.clone(),
        });
        self.wake.notify_one();
    }

    pub(crate) fn info(&self) -> PeerInfo {
        let state = self.state.lock();
        let link = self.link();
        let live = link.as_ref().map(|l| l.bytes()).unwrap_or_default();
        PeerInfo {
            node: self.name.clone(),
            addr: state.addr.or(state.seen),
            state: match (&link, &state.trouble) {
                (Some(_), _) => PeerState::Connected,
                (None, Some(trouble)) => PeerState::Down { reason: trouble.reason.clone() },
                (None, None) => PeerState::Connecting,
            },
            incarnation: state.newest,
            rtt_ms: link.map(|l| l.conn.rtt().as_secs_f64() * 1_000.0),
            sent_messages: self.counters.sent.load(Ordering::Relaxed),
            received_messages: self.counters.received.load(Ordering::Relaxed),
            sent_bytes: state.past_bytes.0 + live.0,
            received_bytes: state.past_bytes.1 + live.1,
            dropped_messages: self.counters.dropped.load(Ordering::Relaxed),
        }
    }
}
