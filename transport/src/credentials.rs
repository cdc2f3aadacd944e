//! Who this node is and whom it lets in, while it runs: another certificate, other roots, revoked nodes, and what has
//! expired, each with its effect on the connections that are up. Must never let a connection live on that would be refused
//! if it were made now. Issues nothing: whoever embeds the transport has the CA.
//!
//! ```text
//!  set_trust, set_revoked, the clock ──► every link: would its certificate be taken now? ──no──► closed, Down
//!  set_identity ──► checked ──► handshakes from now on, and each link gets the new certificate (see `standing`)
//!  renewal (pure) ──due──► the hook of renew_with ──► set_identity, or again after a pause
//! ```

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::{Mutex, RwLock};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, broadcast};

use crate::{
    config::Identity,
    endpoint::{Node, Phase},
    error::IdentityError,
    event::{IdentityEvent, LossReason, NodeName, Refusal},
    link::CloseCode,
    peer::PeerSlot,
    reauth::CHAIN_MAX,
    renewal::{Renewal, Step},
    tls::{Clock, Side, Tls, server_name},
    transport::Transport,
};

/// Identity events that a slow subscriber may lag behind before it misses some.
const EVENTS_MAX: usize = 64;

/// The hook of `renew_with` must answer within this.
const RENEW_TIMEOUT: Duration = Duration::from_secs(60);

/// SHA-256 of a certificate's DER. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// That of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Text that is no fingerprint.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no fingerprint: 64 hexadecimal digits are wanted")]
pub struct NoFingerprint(String);

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let none = || NoFingerprint(text.into());
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(none());
        }
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| none())?;
        }
        Ok(Self(bytes))
    }
}

/// Who is not let in, whatever CA has signed the certificate. A whole set, so that whoever embeds the transport can hand
/// over what the cluster's record says, at the start and whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Nodes by name, with every certificate that they have or get.
    pub nodes: BTreeSet<NodeName>,
    /// Single certificates (a node's, or an intermediate CA's), for instance because the key was lost. The node comes back
    /// with another one.
    pub certificates: BTreeSet<Fingerprint>,
}

type Renew = Arc<dyn Fn() -> BoxFuture<'static, Result<Identity, String>> + Send + Sync>;

pub(crate) struct Credentials {
    /// Held while something changes, so that two changes do not undo each other.
    changing: Mutex<()>,
    tls: RwLock<Arc<Tls>>,
    revoked: RwLock<Revoked>,
    renewal: Mutex<Renewal>,
    renew: Mutex<Option<Renew>>,
    /// Wakes the loop: there is a hook now.
    wake: Notify,
    events: broadcast::Sender<IdentityEvent>,
    /// Identities that there have been.
    identities: AtomicU64,
    clock: Clock,
}

impl Credentials {
    /// `dice` is from 0 to 1, for when the certificate is renewed.
    pub(crate) fn new(tls: Tls, revoked: Revoked, clock: Clock, dice: f64) -> Self {
        let renewal = Renewal::new(tls.window(), now_secs(&clock), dice);
        Self {
            changing: Mutex::default(),
            tls: RwLock::new(Arc::new(tls)),
            revoked: RwLock::new(revoked),
            renewal: Mutex::new(renewal),
            renew: Mutex::default(),
            wake: Notify::new(),
            events: broadcast::Sender::new(EVENTS_MAX),
            identities: AtomicU64::new(0),
            clock,
        }
    }

    /// Which identity handshakes use that begin now.
    pub(crate) fn identity_number(&self) -> u64 {
        self.identities.load(Ordering::SeqCst)
    }

    pub(crate) fn tls(&self) -> Arc<Tls> {
        self.tls.read().clone()
    }

    pub(crate) fn now_secs(&self) -> u64 {
        now_secs(&self.clock)
    }

    /// Whether the node is revoked by name.
    pub(crate) fn check_name(&self, node: &str) -> Result<(), Refusal> {
        if self.revoked.read().nodes.contains(node) {
            return Err(Refusal::Revoked(node.into()));
        }
        Ok(())
    }

    /// Whether a connection with `node`, which presented this certificate, may be, now. Asked under the peer's lock before
    /// a link is put in place, so that no change of trust falls between the handshake and the link.
    pub(crate) fn admit(
        &self,
        cluster: &str,
        node: &str,
        chain: &[CertificateDer<'_>],
        side: Side,
    ) -> Result<(), Refusal> {
        self.check_name(node)?;
        if chain.len() > CHAIN_MAX {
            return Err(Refusal::Tls(format!("a chain of {} certificates, at most {CHAIN_MAX}", chain.len())));
        }
        {
            let revoked = self.revoked.read();
            let is_revoked = |der: &CertificateDer<'_>| revoked.certificates.contains(&Fingerprint::of(der));
            if !revoked.certificates.is_empty() && chain.iter().any(is_revoked) {
                return Err(Refusal::Revoked(format!("{node} (this certificate)")));
            }
        }
        let tls = self.tls();
        tls.verify(chain, side, &server_name(cluster, node)).map_err(|e| Refusal::Tls(e.to_string()))
    }

    /// Lets go of the hook, which may hold the transport that holds it.
    pub(crate) fn clear(&self) {
        let renew = self.renew.lock().take();
        // Dropped outside of the lock, with whatever it owns.
        drop(renew);
    }

    fn say(&self, event: IdentityEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

fn now_secs(clock: &Clock) -> u64 {
    clock.current_time().map_or(0, |now| now.as_secs())
}

impl Node {
    fn change(
        &self,
        make: impl FnOnce(&Tls) -> (Identity, Vec<CertificateDer<'static>>),
    ) -> Result<Arc<Tls>, IdentityError> {
        let _changing = self.credentials.changing.lock();
        let old = self.credentials.tls();
        let (identity, trust) = make(&old);
        let tls = Tls::new(identity, trust, self.credentials.clock.clone())?;
        tls.check_own(&self.me.cluster, &self.me.node)?;
        let tls = Arc::new(tls);
        *self.credentials.tls.write() = tls.clone();
        self.endpoint.set_server_config(Some(self.server_config(&tls)));
        Ok(tls)
    }

    fn set_identity(&self, identity: Identity) -> Result<(), IdentityError> {
        let tls = self.change(|old| (identity, old.trust.clone()))?;
        let expires_secs = tls.window().not_after_secs;
        *self.credentials.renewal.lock() =
            Renewal::new(tls.window(), self.credentials.now_secs(), self.random.fraction());
        tracing::info!(expires_secs, "this node has another certificate");
        // After this every handshake that begins uses the new one.
        self.credentials.identities.fetch_add(1, Ordering::SeqCst);
        for slot in self.peers() {
            // Under the peer's lock: a link is either in place by now, or sees that there is a new one when it is put there.
            let _state = slot.lock();
            if let Some(link) = slot.link() {
                link.show_identity(&tls.identity);
            }
        }
        self.credentials.say(IdentityEvent::Changed { expires_secs });
        Ok(())
    }

    /// Looks at every link again, or only at those where something has expired.
    fn recheck(&self, expired_only: bool) {
        let now_secs = self.credentials.now_secs();
        for slot in self.peers() {
            // Without the lock first: nothing is to be done for nearly all.
            let Some(link) = slot.link() else {
                continue;
            };
            if !expired_only || link.standing.check_again_secs() <= now_secs {
                self.recheck_peer(&slot);
            }
        }
    }

    /// Ends the link to this peer if it may not be any more.
    pub(crate) fn recheck_peer(&self, slot: &Arc<PeerSlot>) {
        let now_secs = self.credentials.now_secs();
        let mut state = slot.lock();
        let Some(link) = slot.link() else {
            return;
        };
        let Err(refusal) = link.admit(&self.credentials, &self.me.cluster, now_secs) else {
            return;
        };
        let (reason, text) = match refusal {
            Refusal::Revoked(_) => (LossReason::Revoked, refusal.to_string()),
            other => {
                let text = other.to_string();
                (LossReason::Untrusted(text.clone()), format!("certificate not trusted any more: {text}"))
            }
        };
        tracing::warn!(node = %slot.name, "closing the connection to {}: {reason}", slot.name);
        link.cast_out(CloseCode::Refused, reason.clone(), &text);
        // Here and now, not when the connection's task comes round to it: once the call that caused it returns, monitors
        // have fired and nothing of the peer's is handled any more.
        slot.lose(&mut state, &link, &reason, &self.registry, &self.events);
    }

    fn set_revoked(&self, change: impl FnOnce(&mut Revoked)) {
        {
            let _changing = self.credentials.changing.lock();
            let mut revoked = self.credentials.revoked.read().clone();
            change(&mut revoked);
            // One's own name is not a peer's: a node does not lock itself out.
            revoked.nodes.remove(&self.me.node);
            *self.credentials.revoked.write() = revoked;
        }
        self.recheck(false);
        for slot in self.peers() {
            // Whoever has been let in again is dialed now.
            let mut state = slot.lock();
            if slot.link().is_none() && state.addr.is_some() && self.credentials.check_name(&slot.name).is_ok() {
                state.nudged = true;
                slot.wake.notify_one();
            }
        }
    }
}

/// Holds certificates against the clock, and has our own renewed, until the transport ends.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut phase = node.phase.subscribe();
    let every = Duration::from_millis(node.timings.certificate_check_ms.max(1));
    loop {
        let step = {
            let now_secs = node.credentials.now_secs();
            node.recheck(true);
            node.credentials.renewal.lock().poll(now_secs)
        };
        match step {
            Some(Step::Renew { first }) => begin_renewal(&node, first),
            Some(Step::Expired) => {
                tracing::error!("this node's certificate has expired: peers refuse it until it gets another one");
                node.credentials.say(IdentityEvent::Expired);
            }
            None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = node.credentials.wake.notified() => {}
            _ = phase.wait_for(|p| *p != Phase::Running) => return,
        }
    }
}

fn begin_renewal(node: &Arc<Node>, first: bool) {
    let credentials = &node.credentials;
    let expires_secs = credentials.renewal.lock().window().not_after_secs;
    if first {
        tracing::info!(expires_secs, "this node's certificate is due for renewal");
        credentials.say(IdentityEvent::Due { expires_secs });
    }
    let Some(renew) = credentials.renew.lock().clone() else {
        // Whoever listens to the events renews it; the attempt stays open until there is a hook or an identity.
        return;
    };
    let node = node.clone();
    let handlers = node.handlers.clone();
    node.driver.clone().spawn(async move {
        // The embedder's code runs where its handlers run; its panic is a failure of this attempt.
        let asked = handlers.spawn(async move { std::panic::AssertUnwindSafe(renew()).catch_unwind().await });
        let aborted = asked.abort_handle();
        let answer = match tokio::time::timeout(RENEW_TIMEOUT, asked).await {
            Ok(Ok(Ok(answer))) => answer,
            Ok(_) => Err("the renewal panicked or was dropped".into()),
            Err(_) => {
                aborted.abort();
                Err(format!("no answer in {} s", RENEW_TIMEOUT.as_secs()))
            }
        };
        let taken = answer.and_then(|identity| node.set_identity(identity).map_err(|e| e.to_string()));
        if let Err(reason) = taken {
            let credentials = &node.credentials;
            let retry_in_secs = credentials.renewal.lock().failed(credentials.now_secs(), node.random.fraction());
            tracing::warn!("this node's certificate was not renewed, next attempt in {retry_in_secs} s: {reason}");
            credentials.say(IdentityEvent::RenewalFailed { reason, retry_in_secs, expires_secs });
        }
    });
}

/// Certificates, trust and revocation, while the transport runs.
impl Transport {
    /// Uses another certificate and key for handshakes from now on. Connections that are up live on, and no
    /// message is lost: on each of them the new certificate is shown and proven to the peer, and takes the place of the
    /// one that the connection was made with.
    ///
    /// # Errors
    /// It is not for this node, has expired, is not signed by a root that is trusted here, or its key does not fit. Then
    /// nothing changes.
    pub fn set_identity(&self, identity: Identity) -> Result<(), IdentityError> {
        self.node.set_identity(identity)
    }

    /// Trusts these roots from now on, and no others. A connection whose peer has shown no certificate that leads to one of
    /// them is closed (`LossReason::Untrusted`) before this returns.
    ///
    /// The CA is rotated in three steps, each on every node before the next begins: `set_trust` with the old CA and the
    /// new one, `set_identity` with a certificate of the new CA, `set_trust` with the new CA alone.
    ///
    /// # Errors
    /// A root cannot be read, there is none, or this node's own certificate does not lead to one of them. Then nothing
    /// changes.
    pub fn set_trust(&self, trust: Vec<CertificateDer<'static>>) -> Result<(), IdentityError> {
        self.node.change(|old| (old.identity.clone(), trust))?;
        self.node.recheck(false);
        Ok(())
    }

    /// Lets in neither these nodes nor these certificates from now on, and whoever is not in the set again. Connections
    /// with them are closed before this returns (`LossReason::Revoked`): monitors on them have fired, and nothing that they
    /// sent and that has not begun is handled. The other side learns the reason. A revoked node is not dialed either.
    pub fn set_revoked(&self, revoked: Revoked) {
        self.node.set_revoked(|now| *now = revoked);
    }

    /// Adds one node to the revoked ones.
    pub fn revoke(&self, node: &str) {
        self.node.set_revoked(|now| {
            now.nodes.insert(node.into());
        });
    }

    /// Lets one node in again.
    pub fn reinstate(&self, node: &str) {
        self.node.set_revoked(|now| {
            now.nodes.remove(node);
        });
    }

    /// Who is revoked now.
    pub fn revoked(&self) -> Revoked {
        self.node.credentials.revoked.read().clone()
    }

    /// The last second in which this node's certificate counts, since 1970 by the wall clock.
    pub fn identity_expires_secs(&self) -> u64 {
        self.node.credentials.tls().window().not_after_secs
    }

    /// Changes of this node's certificate, and the need of one, from now on.
    pub fn identity_events(&self) -> broadcast::Receiver<IdentityEvent> {
        self.node.credentials.events.subscribe()
    }

    /// Has the certificate renewed by itself from now on: at two thirds of its life (give or take a fifteenth of it, so
    /// that nodes do not all come at once) `renew` is asked for a new identity, which is then set as by
    /// [`set_identity`](Self::set_identity). What fails, or takes more than a minute, is tried again: after a second, then
    /// with pauses that double up to ten minutes, and that get shorter again as the end comes near. `renew` runs on the
    /// handlers' runtime.
    pub fn renew_with<F, Fut>(&self, renew: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Identity, String>> + Send + 'static,
    {
        let credentials = &self.node.credentials;
        *credentials.renew.lock() = Some(Arc::new(move || Box::pin(renew())));
        {
            // An attempt that was due without a hook begins now.
            let mut renewal = credentials.renewal.lock();
            *renewal = Renewal::new(renewal.window(), credentials.now_secs(), self.node.random.fraction());
        }
        credentials.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert!(fingerprint.to_string().starts_with("039058c6f2c0cb49"));
        for text in ["", "ab", &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
