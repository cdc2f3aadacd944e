//! Who is asking, and whether that is allowed.
//!
//! A client's certificate names it, as in Kubernetes: the common name is the user, organisations are its groups. Until there
//! are roles, administrators and the cluster's own machines may do everything and everybody else may only look at what
//! is served.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::request::ResourceRequest;
use crate::api::{Reason, Status};

/// May do everything, in any cluster.
const MASTERS: &str = "system:masters";
/// The cluster's own machines.
const NODES: &str = "system:nodes";

/// A client whose certificate the cluster's authority signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    /// From the leaf of a verified chain; `None` when it names nobody.
    pub fn of_certificate(leaf: &CertificateDer<'_>) -> Option<Identity> {
        let (_, certificate) = X509Certificate::from_der(leaf.as_ref()).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        (!user.is_empty()).then_some(Identity { user, groups })
    }

    /// Whether everything is allowed.
    pub fn is_trusted(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS || group == NODES)
    }

    /// # Errors
    /// 403 with Kubernetes' words.
    pub fn authorize(&self, request: &ResourceRequest) -> Result<(), Status> {
        if self.is_trusted() {
            return Ok(());
        }
        let kind = &request.kind;
        let resource = match request.subresource.as_str() {
            "" => kind.plural.clone(),
            sub => format!("{}/{sub}", kind.plural),
        };
        let place = match &request.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let why = format!(
            "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
            self.user,
            request.verb.as_str(),
            kind.group
        );
        Err(Status::forbidden(kind, &request.name, &why))
    }

    /// For paths that are no resource.
    ///
    /// # Errors
    /// 403 with Kubernetes' words.
    pub fn authorize_path(&self, verb: &str, path: &str) -> Result<(), Status> {
        if self.is_trusted() {
            return Ok(());
        }
        Err(Status {
            success: false,
            message: format!("forbidden: User {:?} cannot {verb} path {path:?}", self.user),
            reason: Some(Reason::Forbidden),
            details: Some(Box::default()),
            code: 403,
        })
    }
}
