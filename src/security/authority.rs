//! The cluster's certificate authority: one self-signed root for nodes (QUIC), servers (HTTPS) and clients (kubeconfig).

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::files::{self, FileError};

/// Life of a node's or client's certificate, in days.
pub const NODE_CERT_DAYS: i64 = 365;
/// Life of the authority, in days.
const CA_DAYS: i64 = 3650;
/// Certificates start this much before they are issued, in minutes, so that small clock differences do no harm.
const BACKDATE_MINUTES: i64 = 60;

const CA_CERT_FILE: &str = "ca.crt";
const CA_KEY_FILE: &str = "ca.key";

/// Why the authority could not be made, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file is missing or unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key or certificate on disk is not one.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// Which part.
        what: String,
        /// What the parser said.
        why: String,
    },
    /// The request of a node is not a valid signing request.
    #[error("the certificate signing request is not valid: {0}")]
    Request(String),
    /// Signing failed.
    #[error("cannot sign a certificate: {0}")]
    Sign(String),
}

/// A certificate with the chain up to the root, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// Leaf first, then the authority.
    pub chain_pem: String,
}

/// A key with its certificate chain, as PEM.
#[derive(Clone)]
pub struct ClientIdentity {
    /// Leaf first, then the authority.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl ClientIdentity {
    /// The chain in the form that rustls and the transport take.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        CertificateDer::pem_slice_iter(self.chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| AuthorityError::Damaged { what: "the certificate".into(), why: e.to_string() })
    }

    /// The private key in the form that rustls takes.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, AuthorityError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|e| AuthorityError::Damaged { what: "the private key".into(), why: e.to_string() })
    }
}

/// What a node asks for when it joins. The key stays on the node.
pub struct NodeRequest {
    key: KeyPair,
}

impl NodeRequest {
    /// A fresh key (ECDSA P-256).
    pub fn generate() -> Result<Self, AuthorityError> {
        Ok(Self { key: KeyPair::generate().map_err(sign)? })
    }

    /// The signing request, PEM. It carries the public key alone: names are the authority's to give.
    pub fn csr_pem(&self) -> Result<String, AuthorityError> {
        let params = CertificateParams::default();
        params.serialize_request(&self.key).and_then(|csr| csr.pem()).map_err(sign)
    }

    /// Joins the key with the certificate that came back.
    pub fn accept(self, issued: IssuedCertificate) -> ClientIdentity {
        ClientIdentity { chain_pem: issued.chain_pem, key_pem: self.key.serialize_pem() }
    }
}

/// The root of trust of one cluster.
pub struct Authority {
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new root, named after the cluster.
    pub fn create(cluster: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("phalanx-ca {cluster}"));
        params.distinguished_name.push(DnType::OrganizationName, "phalanx");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        validity(&mut params, CA_DAYS);
        let cert_pem = params.self_signed(&key).map_err(sign)?.pem();
        Self::from_pem(&cert_pem, &key.serialize_pem())
    }

    /// From the PEM of its certificate and key.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key_pem)
            .map_err(|e| AuthorityError::Damaged { what: "the authority's key".into(), why: e.to_string() })?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key)
            .map_err(|e| AuthorityError::Damaged { what: "the authority's certificate".into(), why: e.to_string() })?;
        Ok(Self { cert_pem: cert_pem.into(), key_pem: key_pem.into(), issuer })
    }

    /// Reads `ca.crt` and `ca.key` of a directory.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let cert = files::read_to_string(&dir.join(CA_CERT_FILE))?;
        let key = files::read_to_string(&dir.join(CA_KEY_FILE))?;
        Self::from_pem(&cert, &key)
    }

    /// Writes `ca.crt` and `ca.key` into a directory; the key is readable by its owner only.
    pub fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        files::write_secret(&dir.join(CA_KEY_FILE), self.key_pem.as_bytes())?;
        files::write_atomic(&dir.join(CA_CERT_FILE), self.cert_pem.as_bytes())?;
        Ok(())
    }

    /// The root certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The root's private key, PEM: for handing over to another server that joins, over an authenticated channel.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs the public key of a node's request under the names that *we* give it: `dns` and `ips` as subject
    /// alternative names, user `system:node:<node>` in group `system:nodes` (Kubernetes' node identity). Usable as
    /// server and as client, since each side of a QUIC connection presents it.
    pub fn sign_node(
        &self,
        csr_pem: &str,
        node: &str,
        dns: &[String],
        ips: &[IpAddr],
    ) -> Result<IssuedCertificate, AuthorityError> {
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| AuthorityError::Request(e.to_string()))?;
        request.params = leaf(&node_user(node), &["system:nodes".into()], dns, ips)?;
        let cert = request.signed_by(&self.issuer).map_err(sign)?;
        Ok(IssuedCertificate { chain_pem: format!("{}{}", cert.pem(), self.cert_pem) })
    }

    /// A key and certificate for an HTTPS client: `user` is its common name, `groups` its organisations.
    pub fn issue_client(&self, user: &str, groups: &[String]) -> Result<ClientIdentity, AuthorityError> {
        let key = KeyPair::generate().map_err(sign)?;
        let cert = leaf(user, groups, &[], &[])?.signed_by(&key, &self.issuer).map_err(sign)?;
        Ok(ClientIdentity { chain_pem: format!("{}{}", cert.pem(), self.cert_pem), key_pem: key.serialize_pem() })
    }
}

/// The user name of a node: `system:node:<name>`.
pub fn node_user(node: &str) -> String {
    format!("system:node:{node}")
}

/// SHA-256 of a certificate's DER, hexadecimal: what a join token pins.
pub fn fingerprint(der: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, der).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// From when until when a certificate counts, in seconds since the epoch.
pub fn certificate_window(der: &[u8]) -> Result<(i64, i64), AuthorityError> {
    let (_, cert) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| AuthorityError::Damaged { what: "a certificate".into(), why: e.to_string() })?;
    Ok((cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp()))
}

fn leaf(user: &str, groups: &[String], dns: &[String], ips: &[IpAddr]) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(dns.to_vec()).map_err(sign)?;
    params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    // One organisation only: rcgen keeps one value a type. Groups beyond the first would be lost silently.
    if let [group] = groups {
        params.distinguished_name.push(DnType::OrganizationName, group.as_str());
    } else if !groups.is_empty() {
        return Err(AuthorityError::Sign("a certificate carries one group".into()));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !dns.is_empty() || !ips.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    validity(&mut params, NODE_CERT_DAYS);
    Ok(params)
}

fn validity(params: &mut CertificateParams, days: i64) {
    // rcgen takes a `time::OffsetDateTime` but does not re-export the crate; its own default value gives us one to
    // move by std durations.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let minute = std::time::Duration::from_secs(60);
    params.not_before = epoch + now.saturating_sub(minute * BACKDATE_MINUTES as u32);
    params.not_after = epoch + now + minute * (days * 24 * 60) as u32;
}

fn sign(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Sign(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(der: &[u8]) -> (String, String) {
        let (_, cert) = x509_parser::parse_x509_certificate(der).expect("a certificate");
        let text = |mut it: Box<dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>>| {
            it.next().and_then(|a| a.as_str().ok()).unwrap_or_default().to_string()
        };
        (text(Box::new(cert.subject().iter_common_name())), text(Box::new(cert.subject().iter_organization())))
    }

    #[test]
    fn a_client_certificate_carries_user_and_group() {
        let ca = Authority::create("t").expect("authority");
        let id = ca.issue_client("kubernetes-admin", &["system:masters".into()]).expect("client");
        let chain = id.chain().expect("chain");
        assert_eq!(chain.len(), 2, "leaf and root");
        assert_eq!(subject(&chain[0]), ("kubernetes-admin".into(), "system:masters".into()));
        assert!(id.key().is_ok());
    }

    #[test]
    fn a_node_cannot_choose_its_own_name() {
        let ca = Authority::create("t").expect("authority");
        let request = NodeRequest::generate().expect("request");
        let mut params = CertificateParams::new(vec!["evil.example".to_string()]).expect("params");
        params.distinguished_name.push(DnType::CommonName, "system:node:other");
        let csr = params.serialize_request(&request.key).and_then(|c| c.pem()).expect("csr");
        let issued = ca.sign_node(&csr, "n1", &["n1.node.t.phalanx".into()], &[]).expect("signed");
        let chain = request.accept(issued).chain().expect("chain");
        assert_eq!(subject(&chain[0]), ("system:node:n1".into(), "system:nodes".into()));
        let (_, cert) = x509_parser::parse_x509_certificate(&chain[0]).expect("leaf");
        let san = cert.subject_alternative_name().expect("parsed").expect("present");
        assert_eq!(format!("{:?}", san.value.general_names), "[DNSName(\"n1.node.t.phalanx\")]");
    }

    #[test]
    fn a_saved_authority_signs_again_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("tempdir");
        let ca = Authority::create("t").expect("authority");
        ca.save(dir.path()).expect("saved");
        let again = Authority::load(dir.path()).expect("loaded");
        assert_eq!(again.cert_pem(), ca.cert_pem());
        assert!(again.issue_client("u", &[]).is_ok());
        let mode = std::fs::metadata(dir.path().join("ca.key")).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn certificates_are_valid_now_and_end() {
        let ca = Authority::create("t").expect("authority");
        let id = ca.issue_client("u", &[]).expect("client");
        let (from, to) = certificate_window(&id.chain().expect("chain")[0]).expect("window");
        let now = jiff::Timestamp::now().as_second();
        assert!(from < now && now < to);
        assert_eq!((to - from) / 86_400, NODE_CERT_DAYS);
    }
}
