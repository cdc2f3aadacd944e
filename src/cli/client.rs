//! The verbs' way to the API server: raw requests on a `kube::Client`, answers as JSON values.
//!
//! The verbs work on any kind, so they speak in paths and values; typed clients are for those who know their kinds (the
//! demo, the benchmark). Must never retry a write by itself. A kubeconfig that names several servers of the same
//! authority is used as a list: when the current one cannot be reached, the next is tried. So are the servers of a local
//! cluster, whose kubeconfig lies in its directory.

use std::net::ToSocketAddrs;
use std::time::Duration;

use axum::http::{Request, Uri, header};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::{CliError, Global, error};
use crate::cluster::local::LocalCluster;

/// A server that does not accept a connection for this long is taken as gone.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long one of several servers may take to accept a connection before the next is tried.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);
/// Longest line of a watch, in bytes. The server's limit for an object is far below.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Answers in tables, where the server can.
pub const ACCEPT_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// Plain JSON.
pub const JSON: &str = "application/json";
/// RFC 7386.
pub const MERGE_PATCH: &str = "application/merge-patch+json";
/// Kubernetes' own: lists are merged by key.
pub const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
/// RFC 6902.
pub const JSON_PATCH: &str = "application/json-patch+json";
/// Server-side apply.
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// A connection to a cluster.
#[derive(Clone)]
pub struct ApiClient {
    client: kube::Client,
    /// URL of the server, for messages.
    pub server: String,
    /// Namespace of what names none.
    pub namespace: String,
}

/// What a request carries.
#[derive(Default)]
pub struct Payload<'a> {
    /// `Content-Type`.
    pub media_type: &'a str,
    /// The bytes.
    pub body: Vec<u8>,
}

impl ApiClient {
    /// As the flags, the environment and the kubeconfig say.
    pub async fn connect(global: &Global) -> Result<Self, CliError> {
        let path = global.kubeconfig();
        if !path.exists() {
            return Err(CliError::new(format!(
                "there is no kubeconfig at {}; `phalanx up` starts a cluster and writes one, --kubeconfig and --dir say where it is",
                path.display()
            )));
        }
        let shown = path.display();
        let unusable = |e: &(dyn std::error::Error + 'static)| {
            // What the parser draws below its first line is no help in one line.
            let why = root_cause(e);
            let why = why.lines().next().unwrap_or_default().trim_end_matches([':', ' ']);
            CliError::new(format!(
                "{shown} cannot be used as a kubeconfig: {why}; --kubeconfig and --dir choose another"
            ))
        };
        let kubeconfig = Kubeconfig::read_from(&path).map_err(|e| unusable(&e))?;
        let mut servers = servers(&kubeconfig);
        servers.extend(neighbours(&path, &servers));
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|e| unusable(&e))?;
        if let Some(reachable) = first_reachable(servers).await {
            config.cluster_url = reachable;
        }
        let namespace = global.namespace.clone();
        let mut client = Self::from_config(config)?;
        if let Some(namespace) = namespace {
            client.namespace = namespace;
        }
        Ok(client)
    }

    /// From a loaded configuration.
    pub fn from_config(mut config: kube::Config) -> Result<Self, CliError> {
        config.connect_timeout = Some(CONNECT_DEADLINE);
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = config.default_namespace.clone();
        let client = kube::Client::try_from(config).map_err(|e| CliError::new(root_cause(&e)))?;
        Ok(Self { client, server, namespace })
    }

    /// The client below, for typed use.
    pub fn kube(&self) -> kube::Client {
        self.client.clone()
    }

    /// Sends a request; an answer that is not a success is an error.
    async fn send(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        payload: Payload<'_>,
    ) -> Result<axum::http::Response<Body>, CliError> {
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        if !payload.media_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, payload.media_type);
        }
        let request = request.body(Body::from(payload.body)).map_err(|e| CliError::new(format!("{path}: {e}")))?;
        let response = self.client.send(request).await.map_err(|e| self.unreachable(&e))?;
        for warning in response.headers().get_all(header::WARNING) {
            if let Some(text) = warning.to_str().ok().and_then(warning_text) {
                error::warn(&format!("Warning: {text}"));
            }
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(|e| self.unreachable(&e))?.to_bytes();
        Err(CliError::from_answer(status.as_u16(), &body))
    }

    /// A request whose answer is JSON.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        payload: Payload<'_>,
    ) -> Result<Value, CliError> {
        let response = self.send(method, path, accept, payload).await?;
        let body = response.into_body().collect().await.map_err(|e| self.unreachable(&e))?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.request("GET", path, JSON, Payload::default()).await
    }

    /// GET; `None` when the object does not exist.
    pub async fn find(&self, path: &str) -> Result<Option<Value>, CliError> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// POST.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value, CliError> {
        self.request("POST", path, JSON, Payload { media_type: JSON, body: serde_json::to_vec(object)? }).await
    }

    /// PATCH.
    pub async fn patch(&self, path: &str, media_type: &str, patch: &Value) -> Result<Value, CliError> {
        self.request("PATCH", path, JSON, Payload { media_type, body: serde_json::to_vec(patch)? }).await
    }

    /// DELETE with `DeleteOptions`.
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value, CliError> {
        self.request("DELETE", path, JSON, Payload { media_type: JSON, body: serde_json::to_vec(options)? }).await
    }

    /// The answer's bytes as they come.
    pub async fn stream(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, CliError>> + Unpin + use<>, CliError> {
        let response = self.send("GET", path, accept, Payload::default()).await?;
        let server = self.server.clone();
        Ok(response
            .into_body()
            .into_data_stream()
            .map(move |chunk| chunk.map_err(|e| CliError::Unreachable { server: server.clone(), why: root_cause(&e) })))
    }

    /// The events of a watch as they come, until the server ends it. `path` must hold `watch=1`.
    pub async fn watch(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<Watch<impl Stream<Item = Result<Bytes, CliError>> + Unpin + use<>>, CliError> {
        Ok(Watch { stream: self.stream(path, accept).await?, buffer: Vec::new(), scanned: 0 })
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> CliError {
        CliError::Unreachable { server: self.server.clone(), why: root_cause(error) }
    }
}

/// A watch in progress.
pub struct Watch<S> {
    stream: S,
    buffer: Vec<u8>,
    scanned: usize,
}

impl<S: Stream<Item = Result<Bytes, CliError>> + Unpin> Watch<S> {
    /// The next event: its type (`ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`) and object. `None` at the end. An `ERROR`
    /// event is an error: 410 Gone when the version is too old to start from.
    pub async fn next(&mut self) -> Option<Result<(String, Value), CliError>> {
        loop {
            if let Some(end) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.scanned + end).collect();
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Some(parse_event(&line));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Some(Err(CliError::new("the server sent an event that is too long")));
            }
            match self.stream.next().await? {
                Ok(chunk) => self.buffer.extend_from_slice(&chunk),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn parse_event(line: &[u8]) -> Result<(String, Value), CliError> {
    let mut event: Value = serde_json::from_slice(line)?;
    let object = event["object"].take();
    match event["type"].as_str() {
        Some("ERROR") => {
            let body = serde_json::to_vec(&object)?;
            Err(CliError::from_answer(500, &body))
        }
        Some(kind) => Ok((kind.to_owned(), object)),
        None => Err(CliError::new("the server sent an event without a type")),
    }
}

/// What really went wrong, below all that wraps it.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    // A chain that goes in circles must not hold us.
    const DEPTH_MAX: usize = 16;
    let mut cause = error;
    for _ in 0..DEPTH_MAX {
        match cause.source() {
            Some(source) => cause = source,
            None => break,
        }
    }
    cause.to_string()
}

/// The text of a `Warning: 299 - "text"` header (RFC 7234, section 5.5).
fn warning_text(header: &str) -> Option<String> {
    let quoted = header.splitn(3, ' ').nth(2)?;
    let inner = quoted.trim().strip_prefix('"')?.strip_suffix('"')?;
    Some(inner.replace("\\\"", "\"").replace("\\\\", "\\"))
}

/// The servers of a kubeconfig in the order to try them: the current context's, then others of the same authority.
fn servers(kubeconfig: &Kubeconfig) -> Vec<Uri> {
    let current = kubeconfig.current_context.as_ref().and_then(|name| {
        let context = kubeconfig.contexts.iter().find(|c| &c.name == name)?.context.as_ref()?;
        kubeconfig.clusters.iter().find(|c| c.name == context.cluster)?.cluster.as_ref()
    });
    let Some(current) = current else { return Vec::new() };
    let Some(authority) = current.certificate_authority_data.as_ref() else { return Vec::new() };
    let mut urls: Vec<&String> = current.server.iter().collect();
    for other in kubeconfig.clusters.iter().filter_map(|c| c.cluster.as_ref()) {
        if other.certificate_authority_data.as_ref() == Some(authority)
            && let Some(url) = &other.server
            && !urls.contains(&url)
        {
            urls.push(url);
        }
    }
    urls.into_iter().filter_map(|u| u.parse().ok()).collect()
}

/// The other servers of the local cluster whose directory holds the kubeconfig, if that is what it names.
fn neighbours(kubeconfig: &std::path::Path, known: &[Uri]) -> Vec<Uri> {
    let Some(Ok(cluster)) = kubeconfig.parent().map(LocalCluster::open) else { return Vec::new() };
    let urls: Vec<Uri> = cluster.nodes().iter().filter_map(|n| n.api_url.as_ref()?.parse().ok()).collect();
    let ours = known.iter().any(|k| urls.iter().any(|u| u.authority() == k.authority()));
    urls.into_iter().filter(|u| ours && known.iter().all(|k| k.authority() != u.authority())).collect()
}

/// The first that accepts a connection; `None` when there is nothing to choose.
async fn first_reachable(servers: Vec<Uri>) -> Option<Uri> {
    if servers.len() < 2 {
        return None;
    }
    for uri in servers {
        let Some(host) = uri.host() else { continue };
        let authority = (host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443));
        let connect = async {
            let addresses: Vec<_> =
                tokio::task::spawn_blocking(move || authority.to_socket_addrs().map(Iterator::collect))
                    .await
                    .ok()?
                    .ok()?;
            tokio::net::TcpStream::connect(&addresses[..]).await.ok()
        };
        if let Ok(Some(_)) = tokio::time::timeout(PROBE_DEADLINE, connect).await {
            return Some(uri);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static str]) -> Watch<impl Stream<Item = Result<Bytes, CliError>> + Unpin + use<>> {
        let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
        Watch { stream: futures::stream::iter(parts), buffer: Vec::new(), scanned: 0 }
    }

    #[tokio::test]
    async fn a_watch_is_cut_at_line_feeds_wherever_the_chunks_end() {
        let mut watch =
            chunks(&["{\"type\":\"ADDED\",", "\"object\":{\"a\":1}}\n{\"type\":\"DELETED\",\"object\":", "{}}\n\n"]);
        assert_eq!(watch.next().await.expect("one").expect("ok").0, "ADDED");
        assert_eq!(watch.next().await.expect("two").expect("ok").0, "DELETED");
        assert!(watch.next().await.is_none());
    }

    #[tokio::test]
    async fn an_error_event_is_an_error() {
        let mut watch = chunks(&[
            "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\",\"message\":\"too old\"}}\n",
        ]);
        let error = watch.next().await.expect("one").expect_err("error");
        assert_eq!(error.to_string(), "too old (Expired)");
    }

    #[test]
    fn the_text_of_a_warning_header_is_unquoted() {
        assert_eq!(warning_text("299 - \"unknown field \\\"spec.x\\\"\"").as_deref(), Some("unknown field \"spec.x\""));
        assert_eq!(warning_text("garbage"), None);
    }

    #[test]
    fn other_servers_of_the_same_authority_are_tried_after_the_current_one() {
        let text = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"b","user":"u"}}],"clusters":[
            {"name":"a","cluster":{"server":"https://h:1","certificate-authority-data":"QQ=="}},
            {"name":"b","cluster":{"server":"https://h:2","certificate-authority-data":"QQ=="}},
            {"name":"x","cluster":{"server":"https://h:3","certificate-authority-data":"WA=="}}]}"#;
        let kubeconfig = Kubeconfig::from_yaml(text).expect("kubeconfig");
        let ports: Vec<_> = servers(&kubeconfig).iter().filter_map(Uri::port_u16).collect();
        assert_eq!(ports, [2, 1]);
    }
}
