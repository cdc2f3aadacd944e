//! Who belongs to the cluster: member records, join tokens and the admission of a new machine, over the store.
//!
//! ```text
//! /phalanx/cluster           {id, name, nextIndex}
//! /phalanx/members/<name>    MemberRecord
//! /phalanx/tokens/<id>       TokenRecord
//! /phalanx/lost/<name>       nodes that the leader has declared lost, with their boot
//! ```
//! Must never give two members one index, or let a machine take a name that is another's. Called by the servers' side of
//! `member`.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use phalanx_transport::server_name;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::security::join::{JoinRequest, JoinResponse, MemberRecord, check_clock};
use crate::security::{Authority, JoinToken, TokenError, TokenRecord, TokenRole};
use crate::store::{Compare, Consistency, Op, RangeRequest, Store, StoreError, Txn};

const CLUSTER_KEY: &str = "/phalanx/cluster";
/// Prefix of the member records.
pub const MEMBERS_PREFIX: &str = "/phalanx/members/";
const TOKENS_PREFIX: &str = "/phalanx/tokens/";
const LOST_PREFIX: &str = "/phalanx/lost/";
/// How often a write that met another is tried again.
const CONFLICT_RETRIES_MAX: usize = 32;
/// A label of DNS, since the name is one in certificates (RFC 1123).
const NODE_NAME_CHARS_MAX: usize = 63;

/// `/phalanx/cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRecord {
    /// Unique id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The index of the next member.
    pub next_index: u32,
}

/// Why something about members failed. The text is for the person at the machine.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token is no good.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The request cannot be granted.
    #[error("{0}")]
    Refused(String),
    /// What the store holds is not what it should be.
    #[error("the record {key} in the store is damaged: {why}")]
    Damaged {
        /// Which.
        key: String,
        /// What the parser said.
        why: String,
    },
}

/// The members of one cluster.
#[derive(Clone)]
pub struct Membership {
    store: Arc<dyn Store>,
}

impl Membership {
    /// Over a server's store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Writes the first records of a new cluster. Harmless when they are there.
    pub async fn found(&self, cluster: &ClusterRecord, first: &MemberRecord) -> Result<(), MembershipError> {
        let txn = Txn {
            compares: vec![Compare::Exists { key: CLUSTER_KEY.into() }],
            success: vec![],
            failure: vec![
                Op::Put { key: CLUSTER_KEY.into(), value: json(cluster) },
                Op::Put { key: member_key(&first.name), value: json(first) },
            ],
        };
        self.store.txn(txn).await?;
        Ok(())
    }

    /// All members, by name.
    pub async fn members(&self, consistency: Consistency) -> Result<Vec<MemberRecord>, MembershipError> {
        let range = self.store.range(RangeRequest::prefix(MEMBERS_PREFIX), consistency).await?;
        range.kvs.iter().map(|kv| parse(&kv.key, &kv.value)).collect()
    }

    /// Makes a token and remembers it.
    pub async fn create_token(
        &self,
        api: &str,
        ca_sha256: &str,
        role: TokenRole,
        expires_s: i64,
    ) -> Result<JoinToken, MembershipError> {
        let (token, record) = JoinToken::create(api, ca_sha256, role, expires_s);
        self.store.txn(Txn::create(format!("{TOKENS_PREFIX}{}", record.id), json(&record))).await?;
        Ok(token)
    }

    /// Lets a machine in: checks its clock, token and name, gives it an index and a certificate.
    pub async fn admit(
        &self,
        authority: &Authority,
        request: &JoinRequest,
        now_s: i64,
    ) -> Result<JoinResponse, MembershipError> {
        check_clock(request.clock_s, now_s).map_err(MembershipError::Refused)?;
        let token = self.read::<TokenRecord>(&format!("{TOKENS_PREFIX}{}", key_part(&request.token_id)?)).await?;
        token.ok_or(TokenError::Unknown)?.0.admit(&request.token_secret, request.role, now_s)?;
        check_name(&request.node)?;
        let mut ips: Vec<IpAddr> = vec![[127, 0, 0, 1].into()];
        ips.extend(request.addresses.iter().filter(|ip| !ip.is_loopback()));
        let (cluster, _) = self.cluster().await?;
        let names = [server_name(&cluster.name, &request.node), "localhost".into()];
        // Before the machine is recorded: one that cannot be given a certificate must not take a name.
        let issued = authority
            .sign_node(&request.csr_pem, &request.node, &names, &ips)
            .map_err(|e| MembershipError::Refused(e.to_string()))?;
        let (cluster, member) = self.enrol(request).await?;
        Ok(JoinResponse {
            cluster_id: cluster.id,
            cluster: cluster.name,
            member,
            chain_pem: issued.chain_pem,
            ca_pem: authority.cert_pem().into(),
            ca_key_pem: (request.role == TokenRole::Server).then(|| authority.key_pem().into()),
            members: self.members(Consistency::Local).await?,
        })
    }

    /// One transaction takes the next index and writes the member, so that an index is never given twice.
    async fn enrol(&self, request: &JoinRequest) -> Result<(ClusterRecord, MemberRecord), MembershipError> {
        for _ in 0..CONFLICT_RETRIES_MAX {
            let (mut cluster, revision) = self.cluster().await?;
            let index = cluster.next_index;
            cluster.next_index += 1;
            let member = MemberRecord {
                name: request.node.clone(),
                index,
                server_id: (request.role == TokenRole::Server).then_some(u64::from(index)),
                agent: true,
                transport: String::new(),
                api: None,
            };
            let key = member_key(&member.name);
            let txn = Txn {
                compares: vec![
                    Compare::ModRevision { key: CLUSTER_KEY.into(), equals: revision },
                    Compare::Absent { key: key.clone() },
                ],
                success: vec![
                    Op::Put { key: CLUSTER_KEY.into(), value: json(&cluster) },
                    Op::Put { key: key.clone(), value: json(&member) },
                ],
                failure: vec![Op::Get { key }],
            };
            let result = self.store.txn(txn).await?;
            if result.succeeded {
                return Ok((cluster, member));
            }
            if result.first().is_some() {
                return Err(MembershipError::Refused(format!(
                    "a node named {} is a member already; choose another name, or start that node from its own directory",
                    request.node
                )));
            }
        }
        Err(MembershipError::Refused("too many machines join at once; try again".into()))
    }

    /// A member says where it is now. Only its addresses can change.
    pub async fn update_addresses(
        &self,
        name: &str,
        transport: &str,
        api: Option<&str>,
    ) -> Result<MemberRecord, MembershipError> {
        let key = member_key(name);
        for _ in 0..CONFLICT_RETRIES_MAX {
            let Some((mut member, revision)) = self.read::<MemberRecord>(&key).await? else {
                return Err(MembershipError::Refused(format!("{name} is not a member of this cluster")));
            };
            let api = api.map(str::to_owned);
            if member.transport == transport && member.api == api {
                return Ok(member);
            }
            member.transport = transport.to_owned();
            member.api = api;
            if self.store.txn(Txn::replace(key.clone(), json(&member), revision)).await?.succeeded {
                return Ok(member);
            }
        }
        Err(MembershipError::Refused(format!("the record of {name} keeps changing; try again")))
    }

    /// Remembers that the leader has declared a node lost.
    pub async fn mark_lost(&self, node: &str, incarnation: u64) -> Result<(), MembershipError> {
        self.store.txn(Txn::put(format!("{LOST_PREFIX}{node}"), incarnation.to_string())).await?;
        Ok(())
    }

    /// The node is back.
    pub async fn mark_back(&self, node: &str) -> Result<(), MembershipError> {
        self.store.txn(Txn::delete(format!("{LOST_PREFIX}{node}"))).await?;
        Ok(())
    }

    /// The nodes that are lost.
    pub async fn lost(&self) -> Result<Vec<String>, MembershipError> {
        let range = self.store.range(RangeRequest::prefix(LOST_PREFIX), Consistency::Local).await?;
        Ok(range.kvs.iter().filter_map(|kv| kv.key.strip_prefix(LOST_PREFIX).map(str::to_owned)).collect())
    }

    async fn cluster(&self) -> Result<(ClusterRecord, u64), MembershipError> {
        let damaged = || MembershipError::Damaged { key: CLUSTER_KEY.into(), why: "it is missing".into() };
        self.read(CLUSTER_KEY).await?.ok_or_else(damaged)
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, MembershipError> {
        let (found, _) = self.store.get(key, Consistency::Linearizable).await?;
        found.map(|kv| Ok((parse(key, &kv.value)?, kv.mod_revision))).transpose()
    }
}

/// Whether `name` can be a node's.
pub fn check_name(name: &str) -> Result<(), MembershipError> {
    let good = !name.is_empty()
        && name.len() <= NODE_NAME_CHARS_MAX
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(MembershipError::Refused(format!(
        "{name:?} cannot be the name of a node: use 1 to {NODE_NAME_CHARS_MAX} of a-z, 0-9 and -, not - at either end"
    )))
}

/// A part of a key that comes from outside must not reach another key.
fn key_part(text: &str) -> Result<&str, MembershipError> {
    if text.bytes().all(|b| b.is_ascii_alphanumeric()) && text.len() <= NODE_NAME_CHARS_MAX {
        Ok(text)
    } else {
        Err(TokenError::Unknown.into())
    }
}

fn member_key(name: &str) -> String {
    format!("{MEMBERS_PREFIX}{name}")
}

fn json(value: &impl Serialize) -> Bytes {
    // Records of strings and numbers always encode.
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn parse<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, MembershipError> {
    serde_json::from_slice(bytes).map_err(|e| MembershipError::Damaged { key: key.into(), why: e.to_string() })
}
