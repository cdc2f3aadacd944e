//! A new certificate on a connection that is up: its owner shows it and proves that it has the key, so that a connection
//! outlives the certificate that it was made with, and a CA is rotated without losing a message. The idea is that of
//! exported authenticators (RFC 9261): what is signed contains key material of this TLS connection and the side of it, so
//! a proof counts nowhere else. Pure but for the signature; called by the link.

use std::sync::Arc;

use rustls::{
    SignatureScheme,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};

use crate::{credentials::Fingerprint, tls::Side};

/// Label of the exported key material (RFC 5705).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-phalanx-transport-identity";

/// Bytes of exported key material.
pub(crate) const BINDING_BYTES: usize = 32;

/// What is signed begins with this, so that the signature counts for nothing else.
const CONTEXT: &[u8] = b"phalanx-transport identity, version 1\0";

/// Longest chain that is looked at, leaf included.
pub(crate) const CHAIN_MAX: usize = 8;

/// What a key may sign with, most wanted first: what TLS 1.3 allows.
const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// The context of the exported key material: which side proves.
pub(crate) fn exporter_context(prover: Side) -> &'static [u8] {
    match prover {
        Side::Acceptor => b"acceptor",
        Side::Dialer => b"dialer",
    }
}

/// A certificate chain, leaf first, and a signature of the leaf's key over this connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Proof<'a> {
    #[serde(borrow)]
    pub(crate) chain: Vec<&'a Bytes>,
    /// TLS signature scheme.
    pub(crate) scheme: u16,
    #[serde(borrow)]
    pub(crate) signature: &'a Bytes,
}

/// As [`Proof`], on the way out.
#[derive(Debug, Serialize)]
pub(crate) struct OwnProof {
    chain: Vec<ByteBuf>,
    scheme: u16,
    signature: ByteBuf,
}

/// Signs for one connection; `binding` is its exported key material.
pub(crate) fn prove(
    chain: &[CertificateDer<'_>],
    key: &PrivateKeyDer<'static>,
    binding: &[u8; BINDING_BYTES],
) -> Result<OwnProof, rustls::Error> {
    let leaf = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let key = provider().key_provider.load_private_key(key.clone_key())?;
    let signer = key.choose_scheme(SCHEMES).ok_or_else(|| rustls::Error::General("no scheme for this key".into()))?;
    let signature = signer.sign(&signed(leaf, binding))?;
    Ok(OwnProof {
        chain: chain.iter().map(|der| ByteBuf::from(der.to_vec())).collect(),
        scheme: signer.scheme().into(),
        signature: ByteBuf::from(signature),
    })
}

/// Checks that whoever made this proof has the key of the leaf and made it for this connection. Whether the chain is trusted
/// is another question. Gives the chain, or what is wrong.
pub(crate) fn check(proof: &Proof<'_>, binding: &[u8; BINDING_BYTES]) -> Result<Vec<CertificateDer<'static>>, String> {
    if proof.chain.len() > CHAIN_MAX {
        return Err(format!("a chain of {} certificates", proof.chain.len()));
    }
    let chain: Vec<CertificateDer<'static>> =
        proof.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let leaf = chain.first().ok_or("no certificate")?;
    let scheme = SignatureScheme::from(proof.scheme);
    let provider = provider();
    // TLS 1.3's rule: the first algorithm of the scheme alone.
    let algorithm = SCHEMES
        .contains(&scheme)
        .then(|| provider.signature_verification_algorithms.mapping.iter().find(|(known, _)| *known == scheme))
        .flatten()
        .and_then(|(_, algorithms)| algorithms.first())
        .ok_or_else(|| format!("signature scheme {scheme:?}"))?;
    webpki::EndEntityCert::try_from(leaf)
        .and_then(|leaf_key| leaf_key.verify_signature(*algorithm, &signed(leaf, binding), proof.signature))
        .map_err(|e| e.to_string())?;
    Ok(chain)
}

fn signed(leaf: &CertificateDer<'_>, binding: &[u8; BINDING_BYTES]) -> Vec<u8> {
    [CONTEXT, &binding[..], &Fingerprint::of(leaf).0].concat()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::*;

    fn identity(key: &KeyPair, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let params = rcgen::CertificateParams::new(vec![name.into()]).expect("valid");
        let cert = params.self_signed(key).expect("signed");
        (vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8"))
    }

    fn sent(proof: &OwnProof) -> Vec<u8> {
        rmp_serde::to_vec(proof).expect("encodes")
    }

    #[test]
    fn a_proof_counts_for_its_connection_and_its_certificate_alone() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).expect("key");
            let (chain, der) = identity(&key, "n1");
            let bytes = sent(&prove(&chain, &der, &[1; BINDING_BYTES]).expect("signs"));
            let proof: Proof<'_> = rmp_serde::from_slice(&bytes).expect("readable");
            assert_eq!(check(&proof, &[1; BINDING_BYTES]), Ok(chain));
            assert!(check(&proof, &[2; BINDING_BYTES]).is_err(), "another connection");
            // Another certificate of the same key.
            let (other, _) = identity(&key, "n2");
            let leaf = Bytes::new(&other[0]);
            let swapped = Proof { chain: vec![leaf], scheme: proof.scheme, signature: proof.signature };
            assert!(check(&swapped, &[1; BINDING_BYTES]).is_err(), "another certificate");
        }
    }

    #[test]
    fn a_proof_without_the_key_is_none() {
        let key = KeyPair::generate().expect("key");
        let (chain, _) = identity(&key, "n1");
        let (_, other) = identity(&KeyPair::generate().expect("key"), "n1");
        let bytes = sent(&prove(&chain, &other, &[1; BINDING_BYTES]).expect("signs"));
        let proof: Proof<'_> = rmp_serde::from_slice(&bytes).expect("readable");
        assert!(check(&proof, &[1; BINDING_BYTES]).is_err());
        for (chain, scheme) in [(vec![], proof.scheme), (vec![proof.chain[0]; CHAIN_MAX + 1], proof.scheme)] {
            assert!(check(&Proof { chain, scheme, signature: proof.signature }, &[1; BINDING_BYTES]).is_err());
        }
        // PKCS#1 is no scheme of TLS 1.3.
        let scheme = SignatureScheme::RSA_PKCS1_SHA1.into();
        let chain = proof.chain.clone();
        assert!(check(&Proof { chain, scheme, signature: proof.signature }, &[1; BINDING_BYTES]).is_err());
    }
}
