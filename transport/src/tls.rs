//! Names in certificates, and the TLS configurations of both directions. TLS 1.3 only, ring only, no session resumption
//! (a resumed session would skip the certificate check, and so outlive a rotated CA).

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    time_provider::TimeProvider,
};
use x509_parser::{extensions::GeneralName, time::ASN1Time};

use crate::{
    config::Identity,
    error::{IdentityError, StartError},
    event::Refusal,
    renewal::Window,
};

/// Application protocol of the connections.
pub const ALPN: &[u8] = b"phalanx-transport/1";

/// Longest DNS label (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;

/// Longest DNS name.
const MAX_NAME_BYTES: usize = 253;

/// The DNS name that the certificate of `node` must carry: `<node>.node.<cluster>.phalanx`.
pub fn server_name(cluster: &str, node: &str) -> String {
    format!("{node}.node.{cluster}.phalanx")
}

/// Both directions' configurations, made from one identity and one set of roots, and the checks that a handshake makes,
/// for making them again.
pub(crate) struct Tls {
    pub(crate) client: Arc<QuicClientConfig>,
    pub(crate) server: Arc<QuicServerConfig>,
    pub(crate) identity: Identity,
    pub(crate) trust: Vec<CertificateDer<'static>>,
    of_dialers: Arc<dyn ClientCertVerifier>,
    of_acceptors: Arc<WebPkiServerVerifier>,
    clock: Clock,
}

/// Tells the wall clock's time.
pub(crate) type Clock = Arc<dyn TimeProvider>;

/// Which side of a connection presented a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Acceptor,
    Dialer,
}

impl Tls {
    /// # Errors
    /// The key does not fit the certificate, or something cannot be read.
    pub(crate) fn new(
        identity: Identity,
        trust: Vec<CertificateDer<'static>>,
        clock: Clock,
    ) -> Result<Self, IdentityError> {
        let unusable =
            |what: &str, e: &dyn std::fmt::Display| IdentityError::Unusable { reason: format!("{what}: {e}") };
        let mut roots = RootCertStore::empty();
        for root in &trust {
            roots.add(root.clone()).map_err(|e| unusable("trust root", &e))?;
        }
        let roots = Arc::new(roots);
        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());

        let of_dialers = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| unusable("trust roots", &e))?;
        let of_acceptors = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| unusable("trust roots", &e))?;
        let mut server = rustls::ServerConfig::builder_with_details(provider.clone(), clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unusable("TLS 1.3", &e))?
            .with_client_cert_verifier(of_dialers.clone())
            .with_single_cert(identity.cert_chain.clone(), identity.key.clone_key())
            .map_err(|e| unusable("certificate", &e))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut client = rustls::ClientConfig::builder_with_details(provider, clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unusable("TLS 1.3", &e))?
            .with_webpki_verifier(of_acceptors.clone())
            .with_client_auth_cert(identity.cert_chain.clone(), identity.key.clone_key())
            .map_err(|e| unusable("certificate", &e))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();

        Ok(Self {
            client: Arc::new(QuicClientConfig::try_from(client).map_err(|e| unusable("QUIC client", &e))?),
            server: Arc::new(QuicServerConfig::try_from(server).map_err(|e| unusable("QUIC server", &e))?),
            identity,
            trust,
            of_dialers,
            of_acceptors,
            clock,
        })
    }

    /// Whether peers that trust what we trust would take the identity as that of `node`, whichever side dials.
    pub(crate) fn check_own(&self, cluster: &str, node: &str) -> Result<(), IdentityError> {
        let leaf = self.identity.cert_chain.first().ok_or_else(|| IdentityError::Unusable {
            // Caught before by rustls.
            reason: "certificate: there is none".into(),
        })?;
        match node_of(leaf, cluster) {
            Ok(name) if name == node => {}
            Ok(name) => return Err(IdentityError::Name { expected: node.into(), presented: name }),
            Err(refusal) => return Err(IdentityError::Name { expected: node.into(), presented: refusal.to_string() }),
        }
        for side in [Side::Acceptor, Side::Dialer] {
            self.verify(&self.identity.cert_chain, side, &server_name(cluster, node))
                .map_err(|e| IdentityError::Untrusted { reason: e.to_string() })?;
        }
        Ok(())
    }

    /// What the handshake checks of a peer's certificate: signed by a root that is trusted, in force now, for this side.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        server_name: &str,
    ) -> Result<(), rustls::Error> {
        let (leaf, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = self.clock.current_time().ok_or(rustls::Error::FailedToGetCurrentTime)?;
        match side {
            Side::Acceptor => {
                let name = ServerName::try_from(server_name)
                    .map_err(|_| rustls::Error::General(format!("{server_name} is no DNS name")))?;
                self.of_acceptors.verify_server_cert(leaf, rest, &name, &[], now).map(drop)
            }
            Side::Dialer => self.of_dialers.verify_client_cert(leaf, rest, now).map(drop),
        }
    }

    /// From when until when our own certificate counts.
    pub(crate) fn window(&self) -> Window {
        self.identity
            .cert_chain
            .first()
            .and_then(window_of)
            .unwrap_or(Window { not_before_secs: 0, not_after_secs: u64::MAX })
    }
}

/// From when until when a certificate counts; `None` if it cannot be read.
pub(crate) fn window_of(certificate: &CertificateDer<'_>) -> Option<Window> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let secs = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = parsed.validity();
    Some(Window { not_before_secs: secs(validity.not_before), not_after_secs: secs(validity.not_after) })
}

/// The node that a verified certificate belongs to.
pub(crate) fn node_of(certificate: &CertificateDer<'_>, cluster: &str) -> Result<String, Refusal> {
    let refuse = |presented: String| Refusal::CertificateName { cluster: cluster.into(), presented };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|e| refuse(format!("unreadable certificate ({e})")))?;
    let names: Vec<&str> = match parsed.subject_alternative_name() {
        Ok(Some(extension)) => extension
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(*name),
                _ => None,
            })
            .collect(),
        Ok(None) => vec![],
        Err(e) => return Err(refuse(format!("unreadable names ({e})"))),
    };
    let suffix = server_name(cluster, "");
    let mut nodes = names
        .iter()
        .filter(|name| name.len() <= MAX_NAME_BYTES)
        .filter_map(|name| name.strip_suffix(&suffix))
        .filter(|node| is_node_name(node));
    match (nodes.next(), nodes.next()) {
        (Some(node), None) => Ok(node.into()),
        // A certificate for two nodes could be either of them.
        (Some(_), Some(_)) => Err(refuse(format!("several nodes: {}", names.join(", ")))),
        (None, _) if names.is_empty() => Err(refuse("no DNS names".into())),
        (None, _) => Err(refuse(names.join(", "))),
    }
}

/// Checks that both names can stand in a certificate's DNS name.
pub(crate) fn check_names(cluster: &str, node: &str) -> Result<(), StartError> {
    let invalid = |what, name: &str| StartError::InvalidName { what, name: name.into() };
    if !is_label(cluster) {
        return Err(invalid("cluster", cluster));
    }
    if !is_node_name(node) || server_name(cluster, node).len() > MAX_NAME_BYTES {
        return Err(invalid("node", node));
    }
    Ok(())
}

fn is_node_name(name: &str) -> bool {
    name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= MAX_LABEL_BYTES
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        rcgen::generate_simple_self_signed(names).expect("valid names").cert.der().clone()
    }

    #[test]
    fn the_node_is_read_from_the_certificate() {
        let own = certificate(&["localhost", &server_name("c1", "n1.rack2")]);
        assert_eq!(node_of(&own, "c1"), Ok("n1.rack2".into()));
    }

    #[test]
    fn a_certificate_of_another_cluster_of_no_node_or_of_two_is_refused() {
        for names in [
            vec![server_name("c2", "n1")],
            vec!["localhost".into()],
            vec![server_name("c1", "n1"), server_name("c1", "n2")],
            vec!["node.c1.phalanx".into()],
            // Longer than a DNS name can be: nobody could dial it.
            vec![server_name("c1", &["abcdefghi"; 25].join("."))],
        ] {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            assert!(matches!(node_of(&certificate(&names), "c1"), Err(Refusal::CertificateName { .. })));
        }
        assert!(node_of(&CertificateDer::from(vec![1, 2, 3]), "c1").is_err());
    }

    #[test]
    fn names_are_checked_at_the_start() {
        assert!(check_names("c1", "node-1.rack.example").is_ok());
        for (cluster, node) in
            [("", "n"), ("a.b", "n"), ("c", ""), ("c", "N"), ("c", "a..b"), ("c", "-a"), ("c", "a b")]
        {
            assert!(check_names(cluster, node).is_err(), "{cluster:?} {node:?}");
        }
        assert!(check_names("c", &["abcdefghi"; 26].join(".")).is_err());
    }
}
