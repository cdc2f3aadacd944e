//! `pods/NAME/log`: a container's output, straight from its node.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::request::{Query, ResourceRequest};
use super::respond;
use super::routes::Gate;
use super::{ByteStream, LogRequest};
use crate::api::{Object, Status, meta};

pub async fn serve(
    gate: Arc<Gate>,
    wanted: ResourceRequest,
    query: &Query,
    permit: OwnedSemaphorePermit,
) -> Result<Response, Status> {
    let pod = gate.registry.get(&wanted.kind, wanted.namespace.as_deref(), &wanted.name).await?;
    let container = container(&pod, query.text("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", wanted.name)));
    }
    let request = LogRequest {
        namespace: wanted.namespace.clone().unwrap_or_default(),
        pod: wanted.name.clone(),
        uid: meta::uid(&pod).to_owned(),
        container,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        tail_lines: query.number("tailLines")?,
        since_seconds: query.number("sinceSeconds")?,
        since_time: Some(query.text("sinceTime").to_owned()).filter(|text| !text.is_empty()),
        timestamps: query.flag("timestamps"),
        limit_bytes: query.number("limitBytes")?,
    };
    let output = gate.node_access.logs(node, request).await?;
    let state = (output, permit, gate.stopping.clone(), false);
    let bytes =
        futures::stream::unfold(state, |(mut output, permit, stopping, ended): (ByteStream, _, _, _)| async move {
            if ended {
                return None;
            }
            let piece = tokio::select! {
                piece = output.next() => piece?,
                () = tokio_util::sync::CancellationToken::cancelled(&stopping) => return None,
            };
            let (piece, ended) = match piece {
                Ok(piece) => (piece, false),
                // The answer has begun, so what went wrong can only be told in its text, as Kubernetes does it.
                Err(error) => (format!("{error}\n").into(), true),
            };
            Some((Ok::<_, std::convert::Infallible>(piece), (output, permit, stopping, ended)))
        });
    Ok(respond::of(200, "text/plain", Body::from_stream(bytes)))
}

/// The container meant: the one named, or the only one there is.
fn container(pod: &Object, named: &str) -> Result<String, Status> {
    let names = |field: &str| -> Vec<String> {
        let containers = pod["spec"][field].as_array().into_iter().flatten();
        containers.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let name = meta::name(pod);
    if named.is_empty() {
        return match containers.as_slice() {
            [only] if init.is_empty() => Ok(only.clone()),
            several => {
                let mut message = format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    several.join(" ")
                );
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(Status::bad_request(message))
            }
        };
    }
    let ephemeral = pod["spec"]["ephemeralContainers"].as_array().into_iter().flatten();
    let known = containers.iter().chain(&init).any(|container| container == named)
        || ephemeral.map(|c| &c["name"]).any(|c: &Value| c == named);
    match known {
        true => Ok(named.to_owned()),
        false => Err(Status::bad_request(format!("container {named} is not valid for pod {name}"))),
    }
}
