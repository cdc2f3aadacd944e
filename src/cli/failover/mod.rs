//! What the demo and the failover benchmark share: the workload, its observers, and the probe that writes.
//!
//! ```text
//!   one observer a server ── list, watch ──▶ Change ──▶ Board (pure: newest version wins) ──▶ how many are Ready where
//!   one prober a server ── create ConfigMap, every WRITE_PERIOD ──▶ the first that is acknowledged
//! ```
//! Every server is watched at once: what counts is when a client can first see the recovery, not when one server's
//! watch has been opened anew. Times are wall clock of this process, from just before the SIGKILL.

pub mod board;
pub mod observe;
pub mod write;

use std::time::Duration;

use serde_json::{Value, json};

use super::CliError;
use super::client::{ApiClient, root_cause};
use crate::cluster::local::{LocalCluster, LocalNode};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Namespace of the workload.
pub const NAMESPACE: &str = "default";
/// Label value of the workload's pods.
pub const APP: &str = "phalanx-demo";
/// Port of the workload, on each pod's own address.
pub const PORT: u16 = 8080;
/// The API may take this long to answer when all is well.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A Deployment of this program's small HTTP service.
pub fn workload(replicas: usize) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": APP, "namespace": NAMESPACE, "labels": {"app": APP}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": APP}},
            "template": {
                "metadata": {"labels": {"app": APP}},
                "spec": {
                    "runtimeClassName": "process",
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "web", "image": "phalanx", "command": ["phalanx", "demo-server"],
                        "ports": [{"containerPort": PORT}],
                        "env": [
                            field("POD_NAME", "metadata.name"),
                            field("NODE_NAME", "spec.nodeName"),
                            field("POD_IP", "status.podIP"),
                            {"name": "PORT", "value": PORT.to_string()},
                        ],
                        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
                        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
                    }],
                },
            },
        },
    })
}

/// A client of every server, by its node's name.
pub async fn clients(cluster: &LocalCluster) -> Result<Vec<(String, ApiClient)>, CliError> {
    let path = cluster.kubeconfig_path();
    let failed = |why: String| CliError::new(format!("{}: {why}", path.display()));
    let kubeconfig = Kubeconfig::read_from(&path).map_err(|e| failed(root_cause(&e)))?;
    let mut clients = Vec::new();
    for (name, url) in servers(&cluster.nodes()) {
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default())
            .await
            .map_err(|e| failed(root_cause(&e)))?;
        config.cluster_url = url.parse().map_err(|e| failed(format!("{url}: {e}")))?;
        let mut client = ApiClient::from_config(config)?;
        client.namespace = NAMESPACE.into();
        clients.push((name, client));
    }
    if clients.is_empty() {
        return Err(CliError::new("the cluster has no server that can be asked"));
    }
    Ok(clients)
}

fn servers(nodes: &[LocalNode]) -> Vec<(String, String)> {
    nodes.iter().filter_map(|n| Some((n.name.clone(), n.api_url.clone()?))).collect()
}

/// Asks the servers in turn until one answers; for what must be done once all is well or nearly so.
pub async fn any<T>(
    clients: &[(String, ApiClient)],
    ask: impl AsyncFn(&ApiClient) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let deadline = tokio::time::Instant::now() + ANSWER_DEADLINE;
    let mut last = CliError::new("no server answered");
    while tokio::time::Instant::now() < deadline {
        for (_, client) in clients {
            match tokio::time::timeout(Duration::from_secs(2), ask(client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                // A refusal is an answer; what says "try again later" is none.
                Ok(Err(error @ CliError::Server { code: 400..=428, .. })) => return Err(error),
                Ok(Err(error)) => last = error,
                Err(_) => last = CliError::new(format!("{} did not answer within 2 s", client.server)),
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(last)
}

/// The leader's name, once there is one that is not `not`.
pub async fn leader(cluster: &LocalCluster, not: Option<&str>) -> Result<String, CliError> {
    let deadline = tokio::time::Instant::now() + ANSWER_DEADLINE;
    loop {
        let status = cluster.status().await;
        if let Some(leader) = status["leader"].as_str().filter(|l| !l.is_empty() && Some(*l) != not) {
            return Ok(leader.to_owned());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(CliError::new(format!("the cluster had no leader for {} s", ANSWER_DEADLINE.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
