//! Certificates for the two ends, made for one run and written to its temporary folder.

use phalanx_transport::{Identity, server_name};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;

/// Both ends' cluster.
pub const CLUSTER: &str = "bench";

/// Writes a CA's certificate, and certificate and key of each end.
pub fn write(folder: &Path) -> Result<(), String> {
    let made = || -> Result<(), Box<dyn std::error::Error>> {
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        std::fs::write(folder.join("ca.der"), params.self_signed(&key)?.der())?;
        let issuer = Issuer::new(params, key);
        for node in ["client", "server"] {
            let mut params = CertificateParams::new(vec![server_name(CLUSTER, node)])?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            std::fs::write(folder.join(format!("{node}.der")), params.signed_by(&key, &issuer)?.der())?;
            std::fs::write(folder.join(format!("{node}.key")), key.serialize_der())?;
        }
        Ok(())
    };
    made().map_err(|e| format!("cannot make certificates: {e}"))
}

/// One end's certificate and key, and the CA that both trust.
pub fn read(folder: &Path, node: &str) -> (Identity, CertificateDer<'static>) {
    let file = |name: String| std::fs::read(folder.join(name)).expect("written by the benchmark");
    let identity = Identity {
        cert_chain: vec![CertificateDer::from(file(format!("{node}.der")))],
        key: PrivateKeyDer::try_from(file(format!("{node}.key"))).expect("written by the benchmark"),
    };
    (identity, CertificateDer::from(file("ca.der".into())))
}
