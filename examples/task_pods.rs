//! Pods whose containers are functions of this program. One of them panics; its supervisor starts it anew.
//!
//!     cargo run --example task_pods

use std::time::Duration;

use phalanx::k8s_openapi::api::apps::v1::Deployment;
use phalanx::k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use phalanx::{Cluster, LogOptions, TaskContext};

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: greeter}
spec:
  replicas: 4
  selector: {matchLabels: {app: greeter}}
  template:
    metadata: {labels: {app: greeter}}
    spec:
      containers:
      - {name: greeter, image: task/greeter, env: [{name: WORD, value: hello}]}
---
apiVersion: v1
kind: Pod
metadata: {name: fragile}
spec:
  containers:
  - {name: fragile, image: task/fragile}
"#;

async fn greeter(context: TaskContext) -> Result<(), String> {
    let word = context.env("WORD").ok_or("WORD is not set")?;
    context.log(format!("{word} from {}", context.pod()));
    context.stopped().await;
    Ok(())
}

async fn fragile(context: TaskContext) -> Result<(), String> {
    context.log(format!("run {}", context.restarts() + 1));
    if context.restarts() == 0 {
        panic!("the first run is doomed");
    }
    context.stopped().await;
    Ok(())
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let within = Duration::from_secs(30);
    let cluster = Cluster::builder().nodes(3).task("greeter", greeter).task("fragile", fragile).start().await?;
    cluster.apply_yaml(MANIFEST).await?;

    let ready = |d: &Deployment| d.status.as_ref().and_then(|s| s.ready_replicas) == Some(4);
    cluster.wait_for("default", "greeter", ready, within).await?;
    for pod in cluster.select::<Pod>("default", "app=greeter").await? {
        let name = pod.metadata.name.unwrap_or_default();
        let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        print!("{node}: {}", cluster.logs("default", &name, &LogOptions::default()).await?);
    }

    let restarted = |pod: &Pod| container(pod).is_some_and(|c| c.ready && c.restart_count == 1);
    let pod = cluster.wait_for("default", "fragile", restarted, within).await?;
    let status = container(&pod).ok_or("no status")?;
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref()).ok_or("no last state")?;
    println!("fragile: restartCount {}, last exit {}: {:?}", status.restart_count, last.exit_code, last.message);
    let previous = LogOptions { previous: true, ..LogOptions::default() };
    print!("before: {}", cluster.logs("default", "fragile", &previous).await?);
    print!("now: {}", cluster.logs("default", "fragile", &LogOptions::default()).await?);

    cluster.shutdown().await?;
    Ok(())
}
