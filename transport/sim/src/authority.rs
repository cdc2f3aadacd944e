//! A certificate authority for simulations. Its keys are Ed25519 and its certificates have fixed serials, so that all of
//! them, and every signature, have the same length each time: the length of a handshake must not depend on chance.

use std::sync::Arc;

use phalanx_transport::{Identity, server_name};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// One cluster's certificate authority.
#[derive(Clone)]
pub struct Authority(Arc<Made>);

struct Made {
    cluster: String,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with a new key.
    ///
    /// # Panics
    /// When there is no randomness to make a key from.
    pub fn new(cluster: &str) -> Self {
        let mut params = params(vec![], 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = key();
        let root = params.self_signed(&key).expect("a certificate signs itself").der().clone();
        Self(Arc::new(Made { cluster: cluster.into(), root, issuer: Issuer::new(params, key) }))
    }

    /// Name of the cluster that it speaks for.
    pub fn cluster(&self) -> &str {
        &self.0.cluster
    }

    /// What nodes trust.
    pub fn root(&self) -> CertificateDer<'static> {
        self.0.root.clone()
    }

    /// A new key and certificate for a node.
    ///
    /// # Panics
    /// When the name cannot stand in a certificate.
    pub fn identity(&self, node: &str) -> Identity {
        let mut params = params(vec![server_name(&self.0.cluster, node)], 2);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = key();
        let cert = params.signed_by(&key, &self.0.issuer).expect("the authority signs");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key in PKCS#8");
        Identity { cert_chain: vec![cert.der().clone()], key }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.0.cluster)
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).expect("the system has randomness")
}

fn params(dns_names: Vec<String>, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::new(dns_names).expect("node names are DNS names");
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_have_the_same_length_each_time() {
        let lengths = || {
            let authority = Authority::new("test");
            let identity = authority.identity("n1");
            (authority.root().len(), identity.cert_chain[0].len())
        };
        let first = lengths();
        assert!((0..50).all(|_| lengths() == first));
    }
}
