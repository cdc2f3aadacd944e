//! Observers: one a server and kind, each listing and watching, for as long as they are kept.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::board::{Change, PodSeen, condition, version};
use super::{APP, NAMESPACE};
use crate::cli::CliError;
use crate::cli::client::{ApiClient, JSON};
use crate::cli::text::{self, query};

/// Changes that wait to be taken in; observers wait when it is full.
pub const CHANGES_QUEUE: usize = 4096;
/// A server that is down is tried again after this time.
const RETRY: Duration = Duration::from_millis(20);

/// Watches the workload's pods and the nodes through every server at once. Ends when the set is dropped.
pub fn observe(clients: &[(String, ApiClient)], sender: mpsc::Sender<Change>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (_, client) in clients {
        let (pods, nodes) = (client.clone(), client.clone());
        let (pod_sender, node_sender) = (sender.clone(), sender.clone());
        tasks.spawn(async move {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
            forever(&pods, &path, &format!("app={APP}"), &pod_sender, true).await;
        });
        tasks.spawn(async move { forever(&nodes, "/api/v1/nodes", "", &node_sender, false).await });
    }
    tasks
}

async fn forever(client: &ApiClient, path: &str, selector: &str, sender: &mpsc::Sender<Change>, pods: bool) {
    while !sender.is_closed() {
        if let Err(error) = once(client, path, selector, sender, pods).await {
            tracing::debug!(server = %client.server, %error, "observing again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn once(
    client: &ApiClient,
    path: &str,
    selector: &str,
    sender: &mpsc::Sender<Change>,
    pods: bool,
) -> Result<(), CliError> {
    let list = client.get(&format!("{path}{}", query(&[("labelSelector", selector)]))).await?;
    let items = text::list_at(&list, "/items");
    let at = text::str_at(&list, "/metadata/resourceVersion");
    let mut changes: Vec<Change> = Vec::new();
    if pods {
        changes.push(Change::Pods { version: version(&list), pods: items.iter().map(PodSeen::of).collect() });
    } else {
        changes.extend(items.iter().map(node));
    }
    for change in changes {
        if sender.send(change).await.is_err() {
            return Ok(());
        }
    }
    let parameters = query(&[("watch", "1"), ("resourceVersion", at), ("labelSelector", selector)]);
    let mut events = client.watch(&format!("{path}{parameters}"), JSON).await?;
    while let Some(event) = events.next().await {
        let (kind, object) = event?;
        let change = match (pods, kind.as_str()) {
            (true, "DELETED") => {
                Change::PodGone { uid: text::str_at(&object, "/metadata/uid").to_owned(), version: version(&object) }
            }
            (true, "ADDED" | "MODIFIED") => Change::Pod(PodSeen::of(&object)),
            (false, "ADDED" | "MODIFIED") => node(&object),
            _ => continue,
        };
        if sender.send(change).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn node(object: &Value) -> Change {
    Change::Node { name: text::name(object).to_owned(), ready: condition(object, "Ready"), version: version(object) }
}
