//! What every cluster has from its first moment.

use serde_json::json;

use super::{Registry, WriteOptions};
use crate::api::Status;

/// The namespaces that Kubernetes creates.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

impl Registry {
    /// Creates the namespaces that every cluster has. Repeating it changes nothing.
    pub async fn ensure_bootstrap(&self) -> Result<(), Status> {
        let kind = self.kinds().by_kind("", "v1", "Namespace").cloned().ok_or_else(Status::unknown_resource)?;
        for name in NAMESPACES {
            if self.get_local(&kind, None, name).await.is_ok() {
                continue;
            }
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            match self.create(&kind, None, namespace, &WriteOptions::default()).await {
                Err(status) if status.http_code() == 409 => {}
                result => drop(result?),
            }
        }
        Ok(())
    }
}
