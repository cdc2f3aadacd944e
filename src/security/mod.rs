//! Identity of the cluster and of everything in it: the certificate authority, node, server and client certificates,
//! join tokens, kubeconfig files.
//!
//! Must never: send or log a private key, or accept a certificate or token that it cannot verify. Whatever it writes
//! that is secret is readable by its owner only. Called by `cluster` (assembly, joining), `gateway` (TLS) and the CLI.

mod authority;
mod files;
pub mod join;
mod kubeconfig;
mod token;

pub use authority::{
    Authority, AuthorityError, ClientIdentity, IssuedCertificate, NODE_CERT_DAYS, NodeRequest, certificate_window,
    fingerprint, node_user,
};
pub use files::{FileError, read_to_string, write_atomic, write_secret};
pub use kubeconfig::{Kubeconfig, render as render_kubeconfig};
pub use token::{JoinToken, TOKEN_TTL_HOURS_DEFAULT, TokenError, TokenRecord, TokenRole};
