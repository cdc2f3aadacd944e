//! How a machine becomes a member: it founds a cluster, or joins one with a token, and keeps who it is in its directory.
//!
//! Must never overwrite an identity: a directory that has one is another start of the same member. Called by `member`.

use super::layout::{FORMAT, LayoutError, NodeDir, NodeFile};
use super::member::{MemberConfig, MemberError};
use crate::security::join::{JoinRequest, MemberRecord, join};
use crate::security::{Authority, ClientIdentity, JoinToken, NodeRequest, fingerprint, write_secret};

/// A directory of one cluster and a token of another: one of them was not meant.
pub(super) fn refuse_other_cluster(
    config: &MemberConfig,
    node: &NodeFile,
    token: &JoinToken,
) -> Result<(), MemberError> {
    let chain = read_identity(&config.dir)?.chain()?;
    if chain.last().is_some_and(|root| fingerprint(root) == token.ca_sha256) {
        return Ok(());
    }
    Err(MemberError::Layout(LayoutError::Other {
        path: config.dir.0.clone(),
        found: format!("node {} of cluster {}", node.member.name, node.cluster),
        wanted: "the cluster of the join token".into(),
    }))
}

/// The first server of a new cluster.
pub(super) fn found(config: &MemberConfig) -> Result<NodeFile, MemberError> {
    let authority = Authority::create(&config.cluster)?;
    let pki = config.dir.pki();
    authority.save(&pki)?;
    let request = NodeRequest::generate()?;
    let names = [phalanx_transport::server_name(&config.cluster, &config.name), "localhost".into()];
    let mut ips = vec![[127, 0, 0, 1].into()];
    ips.extend(
        [config.api.ip(), config.transport.ip()].into_iter().filter(|ip| !ip.is_loopback() && !ip.is_unspecified()),
    );
    let issued = authority.sign_node(&request.csr_pem()?, &config.name, &names, &ips)?;
    write_identity(&config.dir, &request.accept(issued))?;
    let member = MemberRecord {
        name: config.name.clone(),
        index: 1,
        server_id: Some(1),
        agent: true,
        transport: config.transport.to_string(),
        api: None,
    };
    let cluster_id = uuid::Uuid::new_v4().to_string();
    Ok(NodeFile { format: FORMAT, cluster_id, cluster: config.cluster.clone(), member })
}

/// A machine that joins.
pub(super) async fn enlist(config: &MemberConfig, token: &JoinToken) -> Result<NodeFile, MemberError> {
    // Before the cluster gives the name away: a directory that cannot be written must not cost one.
    config.dir.save_members(&[])?;
    let key = NodeRequest::generate()?;
    let request = JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        node: config.name.clone(),
        role: config.role,
        csr_pem: key.csr_pem()?,
        addresses: [config.transport.ip(), config.api.ip()].into_iter().filter(|ip| !ip.is_unspecified()).collect(),
        clock_s: jiff::Timestamp::now().as_second(),
    };
    let response = join(token, &request).await?;
    let identity = key.accept(crate::security::IssuedCertificate { chain_pem: response.chain_pem });
    write_identity(&config.dir, &identity)?;
    if let Some(ca_key) = response.ca_key_pem {
        Authority::from_pem(&response.ca_pem, &ca_key)?.save(&config.dir.pki())?;
    }
    config.dir.save_members(&response.members)?;
    let mut member = response.member;
    member.transport = config.transport.to_string();
    Ok(NodeFile { format: FORMAT, cluster_id: response.cluster_id, cluster: response.cluster, member })
}

fn write_identity(dir: &NodeDir, identity: &ClientIdentity) -> Result<(), MemberError> {
    write_secret(&dir.pki().join("node.key"), identity.key_pem.as_bytes()).map_err(LayoutError::from)?;
    crate::security::write_atomic(&dir.pki().join("node.crt"), identity.chain_pem.as_bytes())
        .map_err(LayoutError::from)?;
    Ok(())
}

pub(super) fn read_identity(dir: &NodeDir) -> Result<ClientIdentity, MemberError> {
    let read = |name| crate::security::read_to_string(&dir.pki().join(name)).map_err(LayoutError::from);
    Ok(ClientIdentity { chain_pem: read("node.crt")?, key_pem: read("node.key")? })
}
