//! Joining: how a machine with a token gets its certificate.
//!
//! ```text
//!   machine                                              server (HTTPS)
//!     │  TLS: the chain must hold the root whose SHA-256 the token pins ◀─┤
//!     ├─ POST /phalanx/v1/join {token id, secret, node, role, CSR, clock} ▶│ admits, signs
//!     │◀─ {certificate, root, cluster, index, members, (root key)} ────────┤
//! ```
//! Must never: send the secret before the server has proven that it holds the pinned root, or let the machine choose
//! its own certificate's names. Called by `cluster` when a member starts for the first time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use super::{JoinToken, TokenRole, fingerprint};

/// The path of the endpoint.
pub const JOIN_PATH: &str = "/phalanx/v1/join";
/// Clocks of a machine and the cluster may differ by this much, in seconds. Certificates are backdated by more.
pub const CLOCK_SKEW_MAX_S: i64 = 300;
/// The whole exchange must end within this time.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);
const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the machine sends.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest {
    /// Public part of the token.
    pub token_id: String,
    /// Secret part of the token.
    pub token_secret: String,
    /// The name it wants.
    pub node: String,
    /// What it wants to be.
    pub role: TokenRole,
    /// Signing request for its key, PEM.
    pub csr_pem: String,
    /// Addresses under which others will reach it.
    pub addresses: Vec<std::net::IpAddr>,
    /// Its clock, in seconds since the epoch.
    pub clock_s: i64,
}

/// One member of the cluster, as every member knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// Unique; its name in certificates and in Kubernetes.
    pub name: String,
    /// Small number, never reused: pod address ranges are derived from it.
    pub index: u32,
    /// Part of the control plane; by this number in Raft.
    pub server_id: Option<u64>,
    /// Runs pods.
    pub agent: bool,
    /// `host:port` of its transport; empty until it has said it for the first time.
    pub transport: String,
    /// `host:port` of its HTTPS face, servers only.
    pub api: Option<String>,
}

/// What the cluster answers.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinResponse {
    /// Unique id of the cluster.
    pub cluster_id: String,
    /// Its name.
    pub cluster: String,
    /// The new member.
    pub member: MemberRecord,
    /// Its certificate and the root, PEM.
    pub chain_pem: String,
    /// The root, PEM.
    pub ca_pem: String,
    /// The root's key: to servers only.
    pub ca_key_pem: Option<String>,
    /// Everybody, the new member included.
    pub members: Vec<MemberRecord>,
}

/// Why a machine could not join. One line each, for the person at the machine.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answers there.
    #[error("cannot reach the cluster at {address}: {why}; is a server running there?")]
    Unreachable {
        /// Where the token points.
        address: String,
        /// What the network said.
        why: String,
    },
    /// Another cluster answers there.
    #[error("the server at {address} belongs to another cluster than the join token (its root certificate differs)")]
    OtherCluster {
        /// Where the token points.
        address: String,
    },
    /// TLS failed because of time.
    #[error(
        "the certificate of the server at {address} is not valid by this machine's clock: {why}; set the clock and join again"
    )]
    Clock {
        /// Where the token points.
        address: String,
        /// What this machine takes for now, and by how much that is outside.
        why: String,
    },
    /// The cluster said no, and why.
    #[error("the cluster at {address} refuses: {message}")]
    Refused {
        /// Where the token points.
        address: String,
        /// Its words.
        message: String,
    },
    /// The answer makes no sense.
    #[error("the server at {address} gave an answer that is none: {why}")]
    Nonsense {
        /// Where the token points.
        address: String,
        /// What was wrong.
        why: String,
    },
}

/// Says whether two clocks are near enough; the text is for the one who joins.
pub fn check_clock(theirs_s: i64, ours_s: i64) -> Result<(), String> {
    let ahead = theirs_s - ours_s;
    if ahead.abs() <= CLOCK_SKEW_MAX_S {
        return Ok(());
    }
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    Err(format!(
        "the clock of the joining machine is {} s {direction} the cluster's (allowed: {CLOCK_SKEW_MAX_S} s); set it and join again",
        ahead.abs()
    ))
}

/// Carries the request to the cluster that the token names.
pub async fn join(token: &JoinToken, request: &JoinRequest) -> Result<JoinResponse, JoinError> {
    match tokio::time::timeout(JOIN_DEADLINE, exchange(token, request)).await {
        Ok(result) => result,
        Err(_) => Err(JoinError::Unreachable {
            address: token.address.clone(),
            why: format!("no answer within {} s", JOIN_DEADLINE.as_secs()),
        }),
    }
}

async fn exchange(token: &JoinToken, request: &JoinRequest) -> Result<JoinResponse, JoinError> {
    let address = token.address.clone();
    let unreachable = |why: String| JoinError::Unreachable { address: token.address.clone(), why };
    let nonsense = |why: String| JoinError::Nonsense { address: token.address.clone(), why };
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).trim_matches(['[', ']']).to_string();
    let name = ServerName::try_from(host).map_err(|e| unreachable(e.to_string()))?;

    let tcp = tokio::net::TcpStream::connect(&address).await.map_err(|e| unreachable(e.to_string()))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(pinned_config(&token.ca_sha256).map_err(&nonsense)?));
    let tls = connector.connect(name, tcp).await.map_err(|e| tls_error(&address, &e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(tls))
        .await
        .map_err(|e| unreachable(e.to_string()))?;
    let driver = tokio::spawn(connection);
    let body = serde_json::to_vec(request).map_err(|e| nonsense(e.to_string()))?;
    let http = hyper::Request::post(JOIN_PATH)
        .header("host", &address)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| nonsense(e.to_string()))?;
    let response = sender.send_request(http).await.map_err(|e| unreachable(e.to_string()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), RESPONSE_BYTES_MAX)
        .collect()
        .await
        .map_err(|e| nonsense(e.to_string()))?
        .to_bytes();
    driver.abort();
    if !status.is_success() {
        let message = serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|v| v.get("message")?.as_str().map(str::to_string))
            .unwrap_or_else(|| format!("HTTP {status}"));
        return Err(JoinError::Refused { address, message });
    }
    serde_json::from_slice(&body).map_err(|e| nonsense(e.to_string()))
}

fn tls_error(address: &str, error: &std::io::Error) -> JoinError {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            JoinError::OtherCluster { address: address.into() }
        }
        Some(rustls::Error::InvalidCertificate(error)) if let Some(why) = clock_fault(error) => {
            JoinError::Clock { address: address.into(), why }
        }
        _ => JoinError::Unreachable { address: address.into(), why: error.to_string() },
    }
}

/// What a certificate that is not valid now says of the clock.
fn clock_fault(error: &CertificateError) -> Option<String> {
    let date = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |t| t.to_string())
    };
    Some(match error {
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "it is {} here, {} s before the certificate begins",
            date(time),
            not_before.as_secs().saturating_sub(time.as_secs())
        ),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "it is {} here, {} s after the certificate ended",
            date(time),
            time.as_secs().saturating_sub(not_after.as_secs())
        ),
        CertificateError::NotValidYet | CertificateError::Expired => format!("it is {} here", date(&UnixTime::now())),
        _ => return None,
    })
}

fn pinned_config(ca_sha256: &str) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedRoot { ca_sha256: ca_sha256.into(), provider: provider.clone() });
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Trusts one root, known by its hash only; then verifies as usual against it.
#[derive(Debug)]
struct PinnedRoot {
    ca_sha256: String,
    provider: Arc<CryptoProvider>,
}

impl PinnedRoot {
    fn schemes(&self) -> &rustls::crypto::WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = || rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let root = chain.iter().find(|cert| fingerprint(cert) == self.ca_sha256).ok_or_else(other)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned()).map_err(|_| other())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| other())?;
        verifier.verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, self.schemes())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, self.schemes())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes().supported_schemes()
    }
}

#[cfg(test)]
#[path = "join_test.rs"]
mod tests;
