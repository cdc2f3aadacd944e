//! Join tokens: what a machine needs to find a cluster, to know that it is the right one, and to be let in.
//!
//! A token is `phx1.` and base64url of JSON: the server's API address, the SHA-256 of the cluster's root certificate,
//! and an id with a secret. The cluster keeps only a hash of the secret (in a [`TokenRecord`]), and when it ends.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// How long a token counts unless told otherwise, in hours (kubeadm's default).
pub const TOKEN_TTL_HOURS_DEFAULT: u64 = 24;
const PREFIX: &str = "phx1.";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 24;
/// A token longer than this is not one of ours.
const TOKEN_CHARS_MAX: usize = 2048;

/// What a token lets its holder become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// A machine that runs pods.
    Agent,
    /// A machine that is also part of the control plane. It receives the authority's key.
    Server,
}

/// Why a token is refused. Each is one line for the person who typed it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token at all.
    #[error("the join token is not valid ({0}); make one with `phalanx token create` on a server")]
    Malformed(&'static str),
    /// The cluster does not know it, or the secret is another.
    #[error("the cluster does not know this join token; make one with `phalanx token create` on a server")]
    Unknown,
    /// It has ended.
    #[error("the join token expired {ago_s} s ago; make a new one with `phalanx token create` on a server")]
    Expired {
        /// For how long, in seconds.
        ago_s: i64,
    },
    /// An agent's token cannot make a server.
    #[error("this join token is for an agent; a server needs one from `phalanx token create --role server`")]
    Role,
}

/// A token as its holder sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// `host:port` of a server's HTTPS face.
    #[serde(rename = "a")]
    pub address: String,
    /// SHA-256 of the root certificate, hexadecimal.
    #[serde(rename = "c")]
    pub ca_sha256: String,
    /// Public part.
    #[serde(rename = "i")]
    pub id: String,
    /// Secret part.
    #[serde(rename = "s")]
    pub secret: String,
}

/// A token as the cluster keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The public part.
    pub id: String,
    /// SHA-256 of the secret, hexadecimal.
    pub secret_sha256: String,
    /// What it lets its holder become.
    pub role: TokenRole,
    /// When it ends, in seconds since the epoch.
    pub expires_s: i64,
}

impl JoinToken {
    /// A fresh token and what the cluster keeps of it.
    pub fn create(address: &str, ca_sha256: &str, role: TokenRole, expires_s: i64) -> (Self, TokenRecord) {
        let token = Self {
            address: address.into(),
            ca_sha256: ca_sha256.into(),
            id: random(ID_BYTES),
            secret: random(SECRET_BYTES),
        };
        let record = TokenRecord { id: token.id.clone(), secret_sha256: hash(&token.secret), role, expires_s };
        (token, record)
    }

    /// As a person copies it.
    pub fn render(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// From what a person pasted; white space around it is no error.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_CHARS_MAX {
            return Err(TokenError::Malformed("too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Malformed("it must begin with phx1."))?;
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Malformed("cut off or mistyped"))?;
        serde_json::from_slice(&json).map_err(|_| TokenError::Malformed("cut off or mistyped"))
    }
}

// The secret must not reach a log by `{:?}`.
impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("address", &self.address).field("id", &self.id).finish_non_exhaustive()
    }
}

impl TokenRecord {
    /// Whether `secret` opens this record for `role` at `now_s` (seconds since the epoch). A server's token also makes
    /// an agent.
    pub fn admit(&self, secret: &str, role: TokenRole, now_s: i64) -> Result<(), TokenError> {
        // Both sides are hashes of the same length, and what differs tells nothing about the secret.
        if hash(secret) != self.secret_sha256 {
            return Err(TokenError::Unknown);
        }
        if now_s >= self.expires_s {
            return Err(TokenError::Expired { ago_s: now_s - self.expires_s });
        }
        if role == TokenRole::Server && self.role != TokenRole::Server {
            return Err(TokenError::Role);
        }
        Ok(())
    }
}

fn random(bytes: usize) -> String {
    let mut raw = vec![0u8; bytes];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut raw);
    raw.iter().map(|b| format!("{b:02x}")).collect()
}

fn hash(secret: &str) -> String {
    super::authority::fingerprint(secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_copied() {
        let (token, _) = JoinToken::create("127.0.0.1:6443", &"ab".repeat(32), TokenRole::Agent, 100);
        assert_eq!(JoinToken::parse(&format!("  {}\n", token.render())), Ok(token));
    }

    #[test]
    fn a_cut_or_foreign_token_is_named_as_such() {
        let (token, _) = JoinToken::create("127.0.0.1:6443", "ab", TokenRole::Agent, 100);
        let text = token.render();
        assert_eq!(JoinToken::parse(&text[..text.len() - 3]), Err(TokenError::Malformed("cut off or mistyped")));
        assert!(matches!(JoinToken::parse("K10abc::server:x"), Err(TokenError::Malformed(_))));
        assert!(matches!(JoinToken::parse(&"x".repeat(1 << 20)), Err(TokenError::Malformed("too long"))));
    }

    #[test]
    fn a_false_expired_or_weaker_token_is_refused() {
        let (token, record) = JoinToken::create("h:1", "ab", TokenRole::Agent, 100);
        assert_eq!(record.admit(&token.secret, TokenRole::Agent, 99), Ok(()));
        assert_eq!(record.admit("guess", TokenRole::Agent, 99), Err(TokenError::Unknown));
        assert_eq!(record.admit(&token.secret, TokenRole::Agent, 130), Err(TokenError::Expired { ago_s: 30 }));
        assert_eq!(record.admit(&token.secret, TokenRole::Server, 99), Err(TokenError::Role));
        assert!(!format!("{token:?}{record:?}").contains(&token.secret), "the secret stays out of logs");
    }
}
