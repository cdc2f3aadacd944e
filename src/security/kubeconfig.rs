//! The kubeconfig file: server, authority, client certificate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::ClientIdentity;

/// What goes into the file.
pub struct Kubeconfig<'a> {
    /// Names the cluster, the user and the context.
    pub cluster: &'a str,
    /// `https://host:port`.
    pub server: &'a str,
    /// The root certificate, PEM.
    pub ca_pem: &'a str,
    /// Who the client is.
    pub identity: &'a ClientIdentity,
}

/// The file's text. It is JSON, which is YAML: kubectl, kube-rs and client-go read it, and no quoting rule can bite.
pub fn render(config: &Kubeconfig<'_>) -> String {
    let name = config.cluster;
    let user = format!("{name}-admin");
    let value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {
            "server": config.server,
            "certificate-authority-data": STANDARD.encode(config.ca_pem),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": STANDARD.encode(&config.identity.chain_pem),
            "client-key-data": STANDARD.encode(&config.identity.key_pem),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user, "namespace": "default"}}],
        "current-context": name,
    });
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}
