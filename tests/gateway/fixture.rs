//! One server with everything real but the machines that run pods.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx::api::{Kinds, Status};
use phalanx::gateway::{
    ByteStream, ClusterView, Gateway, GatewayConfig, GatewayHandle, JoinHandler, Listen, LogRequest, NodeAccess,
};
use phalanx::registry::{Recorder, Registry};
use phalanx::security::{Authority, ClientIdentity, Kubeconfig, NodeRequest, render_kubeconfig};
use phalanx::store::{MemoryNetwork, ReplicatedStore, StoreConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

pub const WAIT: Duration = Duration::from_secs(30);

pub struct Server {
    pub registry: Registry,
    pub recorder: Recorder,
    pub address: SocketAddr,
    pub authority: Authority,
    pub dir: tempfile::TempDir,
    gateway: GatewayHandle,
    store: ReplicatedStore,
}

/// A machine whose containers say what they were asked.
struct Nodes;

#[async_trait]
impl NodeAccess for Nodes {
    async fn logs(&self, node: &str, request: LogRequest) -> Result<ByteStream, Status> {
        let first = format!("{node} {} {} {:?}\n", request.pod, request.container, request.tail_lines);
        let mut pieces = vec![Ok(Bytes::from(first))];
        if request.previous {
            pieces.push(Err(std::io::Error::other("the node is gone")));
        }
        let stream = futures::stream::iter(pieces);
        if request.follow {
            return Ok(stream.chain(futures::stream::pending()).boxed());
        }
        Ok(stream.boxed())
    }

    async fn tree(&self, node: &str, path: &str) -> Result<Value, Status> {
        Ok(json!({ "node": node, "path": path }))
    }
}

struct View;

#[async_trait]
impl ClusterView for View {
    async fn status(&self) -> Result<Value, Status> {
        Ok(json!({"cluster": "test"}))
    }

    async fn tree(&self, path: &str) -> Result<Value, Status> {
        Ok(json!({ "path": path }))
    }
}

struct Door;

#[async_trait]
impl JoinHandler for Door {
    async fn join(&self, body: Bytes, _peer: SocketAddr) -> Result<Value, Status> {
        match body.as_ref() {
            b"please" => Ok(json!({"welcome": true})),
            _ => Err(Status::unauthorized()),
        }
    }
}

impl Server {
    pub async fn start() -> Server {
        Server::listen("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn listen(listen: SocketAddr) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let transport = MemoryNetwork::new().transport(1);
        let store =
            ReplicatedStore::start(StoreConfig::new("test", 1, "s1", "s1:1", dir.path().join("store"), transport))
                .await
                .unwrap();
        store.bootstrap().await.unwrap();
        store.wait_for_leader(WAIT).await.unwrap();
        let registry = Registry::new(Kinds::builtin(), Arc::new(store.clone()));
        registry.ensure_bootstrap().await.unwrap();
        let authority = Authority::create("test").unwrap();
        let request = NodeRequest::generate().unwrap();
        let csr = request.csr_pem().unwrap();
        let names = ["localhost".to_owned()];
        let issued = authority.sign_node(&csr, "s1", &names, &["127.0.0.1".parse().unwrap()]).unwrap();
        let identity = request.accept(issued);
        let config = config(Listen::Address(listen), &identity, authority.cert_pem(), &registry);
        let gateway = Gateway::start(config).await.unwrap();
        let recorder = Recorder::start(registry.clone());
        Server { address: gateway.local_addr(), registry, recorder, authority, dir, gateway, store }
    }

    /// What another gateway of this cluster would be started with.
    pub fn config(&self, listen: Listen, identity: &ClientIdentity) -> GatewayConfig {
        config(listen, identity, self.authority.cert_pem(), &self.registry)
    }

    pub fn admin(&self) -> ClientIdentity {
        self.authority.issue_client("admin", &["system:masters".to_owned()]).unwrap()
    }

    /// Writes a kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let text = render_kubeconfig(&Kubeconfig {
            cluster: "test",
            server: &format!("https://{}", self.address),
            ca_pem: self.authority.cert_pem(),
            identity: &self.admin(),
        });
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Fills in what the machines would: a node, and a pod that runs on it.
    pub async fn node_and_pod(&self) {
        for object in [
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p1", "namespace": "default"},
                   "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "nginx"}]}}),
        ] {
            let kind = self.registry.kind_of(&object).unwrap();
            let namespace = kind.namespaced.then_some("default");
            self.registry.create(&kind, namespace, object, &Default::default()).await.unwrap();
        }
    }

    pub async fn connect(&self, identity: Option<&ClientIdentity>, alpn: &str) -> std::io::Result<Client> {
        Client::connect(self.address, self.authority.cert_pem(), identity, alpn).await
    }

    pub async fn client(&self) -> Client {
        self.connect(Some(&self.admin()), "http/1.1").await.unwrap()
    }

    /// Takes the store away from under the gateway.
    pub async fn stop_store(&self) {
        self.store.shutdown().await;
    }

    pub async fn end(self) {
        self.gateway.shutdown().await;
        self.store.shutdown().await;
    }
}

fn config(listen: Listen, identity: &ClientIdentity, root: &str, registry: &Registry) -> GatewayConfig {
    GatewayConfig {
        shared: None,
        listen,
        server_cert_chain: identity.chain().unwrap(),
        server_key: identity.key().unwrap(),
        client_ca: vec![CertificateDer::from_pem_slice(root.as_bytes()).unwrap()],
        advertise: String::new(),
        registry: registry.clone(),
        node_access: Arc::new(Nodes),
        cluster_view: Arc::new(View),
        join: Arc::new(Door),
    }
}

enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

/// One connection.
pub struct Client {
    sender: Sender,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: hyper::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e} in {:?}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    pub async fn connect(
        address: SocketAddr,
        root: &str,
        identity: Option<&ClientIdentity>,
        alpn: &str,
    ) -> std::io::Result<Client> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some(identity) => config.with_client_auth_cert(identity.chain().unwrap(), identity.key().unwrap()).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let tcp = tokio::net::TcpStream::connect(address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let io = TokioIo::new(stream);
        let sender = match alpn {
            "h2" => {
                let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
                let (sender, connection) = handshake.map_err(std::io::Error::other)?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
            _ => {
                let handshake = hyper::client::conn::http1::handshake(io).await;
                let (sender, connection) = handshake.map_err(std::io::Error::other)?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
        };
        Ok(Client { sender })
    }

    pub async fn open(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Headers are `name: value`.
    pub async fn send(&mut self, method: &str, path: &str, headers: &[&str], body: impl Into<Bytes>) -> Answer {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    pub async fn try_send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: impl Into<Bytes>,
    ) -> hyper::Result<Answer> {
        let uri = match self.sender {
            Sender::Http1(_) => path.to_owned(),
            Sender::Http2(_) => format!("https://localhost{path}"),
        };
        let mut request = Request::builder().method(method).uri(uri).header("host", "localhost");
        for header in headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let response = self.open(request.body(Full::new(body.into())).unwrap()).await?;
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await?.to_bytes().to_vec()).unwrap();
        Ok(Answer { code: head.status.as_u16(), headers: head.headers, text })
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &["content-type: application/json"], body.to_string()).await
    }

    pub async fn patch(&mut self, path: &str, body: &Value) -> Answer {
        self.send("PATCH", path, &["content-type: application/merge-patch+json"], body.to_string()).await
    }

    /// Opens a stream of JSON lines.
    pub async fn lines(mut self, path: &str, headers: &[&str]) -> Lines {
        let mut request = Request::builder().uri(path).header("host", "localhost");
        for header in headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let response = self.open(request.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        Lines { body: response.into_body(), text: Vec::new(), _client: self }
    }
}

pub struct Lines {
    body: Incoming,
    text: Vec<u8>,
    _client: Client,
}

impl Lines {
    /// The next line; `None` when the answer ended cleanly.
    pub async fn next_text(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
            }
            let frame = tokio::time::timeout(WAIT, self.body.frame()).await.expect("a line in time");
            self.text.extend_from_slice(&frame?.unwrap().into_data().unwrap());
        }
    }

    pub async fn next(&mut self) -> Option<Value> {
        let line = self.next_text().await?;
        Some(serde_json::from_str(&line).unwrap())
    }
}
