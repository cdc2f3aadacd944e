//! A three-node cluster inside this program: apply, watch, wait, lose a node, look again.
//!
//!     cargo run --example embedded

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx::k8s_openapi::api::core::v1::ConfigMap;
use phalanx::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use phalanx::{Cluster, WatchEvent};

fn settings(colour: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some("settings".into()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([("colour".into(), colour.into())])),
        ..ConfigMap::default()
    }
}

fn colour(map: &ConfigMap) -> Option<&str> {
    map.data.as_ref()?.get("colour").map(String::as_str)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = Cluster::builder().nodes(3).start().await?;
    for node in cluster.nodes() {
        println!("{} serves {}", node.name, node.api_url.unwrap_or_default());
    }
    let mut changes = cluster.watch::<ConfigMap>("default").await?;
    cluster.apply(&settings("red")).await?;
    if let Some(WatchEvent::Added(map)) = changes.next().await.transpose()? {
        println!("seen: {:?}", colour(&map));
    }
    let leader = cluster.leader().await?;
    cluster.kill_node(&leader).await?;
    println!("{leader} was killed");

    // The other two elect a leader meanwhile; watch and calls go on there.
    cluster.apply(&settings("green")).await?;
    println!("{} leads now", cluster.leader().await?);
    if let Some(WatchEvent::Modified(map)) = changes.next().await.transpose()? {
        println!("seen: {:?}", colour(&map));
    }
    cluster.start_node(&leader).await?;
    let is_green = |map: &ConfigMap| colour(map) == Some("green");
    let map = cluster.wait_for("default", "settings", is_green, Duration::from_secs(10)).await?;
    println!("stored: {:?}", map.data.unwrap_or_default());
    cluster.shutdown().await?;
    Ok(())
}
