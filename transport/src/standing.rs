//! What the peer of a link has proven to be, for as long as the link is up: the certificate of the handshake, the one that
//! it has shown since, and whether they still count. Our own new certificate goes out here too. Who is trusted is decided in
//! `credentials`, what a proof is in `reauth`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use crate::{
    config::Identity,
    credentials::Credentials,
    endpoint::Node,
    event::{LossReason, Refusal},
    frame::{FrameError, Kind, encode},
    link::{CloseCode, Link},
    peer::PeerSlot,
    reauth::{self, Proof},
    tls::{Side, node_of, window_of},
};

/// Certificates that a peer may show in one connection; one more costs the connection. Each costs a signature's check.
const IDENTITIES_SHOWN_MAX: u32 = 1_000;

/// A certificate and those that lead from it to the root, leaf first.
type Chain = Arc<[CertificateDer<'static>]>;

#[derive(Debug)]
pub(crate) struct Standing {
    proven: Mutex<Proven>,
    /// Certificates that the peer has shown after the handshake.
    shown: AtomicU32,
    /// When the clock alone may have made its certificate worthless, in seconds since 1970.
    check_again_secs: AtomicU64,
    /// The peer is not let in any more: nothing that it sent is begun to be handled.
    cast_out: AtomicBool,
}

#[derive(Clone, Debug)]
struct Proven {
    /// Was good when last looked at.
    good: Chain,
    /// Not trusted here, or not yet, or not looked at.
    newest: Option<Chain>,
}

impl Standing {
    pub(crate) fn new(presented: Vec<CertificateDer<'static>>, now_secs: u64) -> Self {
        Self {
            check_again_secs: AtomicU64::new(check_again_secs(&presented, now_secs)),
            proven: Mutex::new(Proven { good: presented.into(), newest: None }),
            shown: AtomicU32::new(0),
            cast_out: AtomicBool::new(false),
        }
    }

    pub(crate) fn check_again_secs(&self) -> u64 {
        self.check_again_secs.load(Ordering::Relaxed)
    }
}

/// When a certificate chain that is good now has to be looked at again: when the first part of it has expired.
fn check_again_secs(chain: &[CertificateDer<'_>], now_secs: u64) -> u64 {
    chain
        .iter()
        .filter_map(window_of)
        .map(|window| window.not_after_secs.saturating_add(1))
        .filter(|expired| *expired > now_secs)
        .min()
        .unwrap_or(u64::MAX)
}

impl Link {
    /// Closes the connection to a peer that is not let in any more; nothing more of it is handled.
    pub(crate) fn cast_out(&self, code: CloseCode, cause: LossReason, text: &str) {
        self.standing.cast_out.store(true, Ordering::Release);
        self.close(code, cause, text);
    }

    pub(crate) fn is_cast_out(&self) -> bool {
        self.standing.cast_out.load(Ordering::Acquire)
    }

    /// Whether the link may be, now: one of the two certificates that its peer has proven must be good, the newest first.
    /// Notes when to look again.
    pub(crate) fn admit(&self, credentials: &Credentials, cluster: &str, now_secs: u64) -> Result<(), Refusal> {
        let Proven { good, newest } = self.standing.proven.lock().clone();
        let admit = |chain: &Chain| credentials.admit(cluster, &self.peer.node, chain, self.side());
        let good = match newest {
            Some(newest) if admit(&newest).is_ok() => {
                let mut proven = self.standing.proven.lock();
                proven.good = newest.clone();
                // Another may have been shown meanwhile.
                proven.newest.take_if(|now| Arc::ptr_eq(now, &newest));
                newest
            }
            _ => {
                admit(&good)?;
                good
            }
        };
        self.standing.check_again_secs.store(check_again_secs(&good, now_secs), Ordering::Relaxed);
        Ok(())
    }

    /// Proves our own certificate to the peer, on this connection.
    pub(crate) fn show_identity(&self, identity: &Identity) {
        let own = if self.origin.dialed_by_us { Side::Dialer } else { Side::Acceptor };
        let Some(binding) = self.binding(own) else {
            // Closed meanwhile.
            return;
        };
        let shown = reauth::prove(&identity.cert_chain, &identity.key, &binding)
            .map_err(|e| e.to_string())
            .and_then(|proof| encode(Kind::Identity, &proof, self.frame_bytes).map_err(|e| format!("{e:?}")));
        match shown {
            Ok(frame) => {
                let _ = self.control.push_unbounded(&frame);
            }
            Err(error) => tracing::warn!(
                node = %self.peer.node,
                "{} cannot be shown the new certificate, its connection ends with the old one: {error}",
                self.peer.node
            ),
        }
    }

    /// The peer has another certificate.
    pub(crate) fn take_identity(&self, node: &Node, slot: &Arc<PeerSlot>, proof: &Proof<'_>) -> Result<(), FrameError> {
        if self.standing.shown.fetch_add(1, Ordering::Relaxed) >= IDENTITIES_SHOWN_MAX {
            return Err(FrameError::Identity(format!("more than {IDENTITIES_SHOWN_MAX} in one connection")));
        }
        let Some(binding) = self.binding(self.side()) else {
            return Ok(());
        };
        let chain = reauth::check(proof, &binding).map_err(FrameError::Identity)?;
        match node_of(&chain[0], &node.me.cluster) {
            Ok(name) if name == *self.peer.node => {}
            Ok(name) => return Err(FrameError::Identity(format!("it is of node {name}"))),
            Err(refusal) => return Err(FrameError::Identity(refusal.to_string())),
        }
        // Taken even if it is not trusted here yet: the roots may come after it.
        self.standing.proven.lock().newest = Some(chain.into());
        node.recheck_peer(slot);
        Ok(())
    }

    /// Which side of the connection the peer is.
    fn side(&self) -> Side {
        if self.origin.dialed_by_us { Side::Acceptor } else { Side::Dialer }
    }

    fn binding(&self, prover: Side) -> Option<[u8; reauth::BINDING_BYTES]> {
        let mut binding = [0; reauth::BINDING_BYTES];
        let context = reauth::exporter_context(prover);
        self.conn.export_keying_material(&mut binding, reauth::EXPORTER_LABEL, context).ok()?;
        Some(binding)
    }
}
