//! A QUIC client that speaks the wire format by hand: with a certificate of the cluster or without, and no manners.

use std::{net::SocketAddr, sync::Arc};

use phalanx_transport::{ALPN, Exit, Identity, PeerInfo, Transport, server_name};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use serde_bytes::Bytes;

use super::*;

/// A client with a valid certificate of node `evil`.
pub struct Evil {
    pub endpoint: Endpoint,
    pub conn: Connection,
}

/// What a node knows of the client.
pub fn of_evil(node: &Transport) -> PeerInfo {
    node.peers().into_iter().find(|peer| &*peer.node == "evil").expect("known")
}

/// How a client dials.
pub struct Dial {
    /// Shown to the node; a stranger has none.
    pub identity: Option<Identity>,
    /// The client's own address.
    pub from: SocketAddr,
    /// The client's windows and timeouts.
    pub quic: quinn::TransportConfig,
    /// Keeps tickets for 0-RTT.
    pub resumes: bool,
}

impl Dial {
    pub fn new(ca: &Ca) -> Self {
        Self {
            identity: Some(ca.node("evil")),
            from: ([127, 0, 0, 1], 0).into(),
            quic: quinn::TransportConfig::default(),
            resumes: false,
        }
    }

    pub fn config(self, ca: &Ca) -> ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.root.clone()).expect("valid");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("supported")
            .with_root_certificates(roots);
        let mut tls = match self.identity {
            Some(identity) => tls.with_client_auth_cert(identity.cert_chain, identity.key).expect("valid"),
            None => tls.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.enable_early_data = self.resumes;
        if !self.resumes {
            tls.resumption = rustls::client::Resumption::disabled();
        }
        let tls = QuicClientConfig::try_from(tls).expect("usable");
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(self.quic));
        config
    }

    /// Dials; what comes of it.
    pub async fn dial(self, ca: &Ca, to: &Transport) -> Result<Evil, ConnectionError> {
        let endpoint = Endpoint::client(self.from).expect("binds");
        let name = server_name(CLUSTER, to.node());
        let connecting = endpoint.connect_with(self.config(ca), to.local_addr(), &name).expect("valid");
        let conn = within(connecting).await?;
        Ok(Evil { endpoint, conn })
    }
}

impl Evil {
    pub async fn connect(ca: &Ca, to: &Transport) -> Self {
        Dial::new(ca).dial(ca, to).await.expect("the certificate is valid")
    }

    /// Connects and says a proper hello.
    pub async fn welcomed(ca: &Ca, to: &Transport) -> (Self, SendStream, RecvStream) {
        Self::connect(ca, to).await.welcome(&hello(1, 1, CLUSTER, "evil")).await
    }

    /// Says this hello and is welcomed.
    pub async fn welcome(self, hello: &[u8]) -> (Self, SendStream, RecvStream) {
        let (send, mut recv) = self.say(hello).await;
        let mut welcome = [0; 6];
        within(recv.read_exact(&mut welcome)).await.expect("welcomed");
        (self, send, recv)
    }

    /// Writes these bytes first on a new stream.
    pub async fn say(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.conn.open_bi().await.expect("open");
        send.write_all(bytes).await.expect("open");
        (send, recv)
    }

    /// The reason with which the node closed the connection.
    pub async fn thrown_out(self) -> String {
        let error = within(self.conn.closed()).await;
        self.endpoint.close(0u32.into(), b"");
        match error {
            ConnectionError::ApplicationClosed(close) => String::from_utf8(close.reason.to_vec()).expect("text"),
            other => panic!("{other}"),
        }
    }
}

/// A server without manners, dialed as `evil`; says hello and leaves the rest to the test.
pub struct EvilServer {
    pub endpoint: Endpoint,
    pub conn: Connection,
    _hello: (SendStream, RecvStream),
}

impl EvilServer {
    /// Binds, has `node` dial it, and welcomes it.
    pub async fn dialed_by(ca: &Ca, node: &Transport) -> Self {
        let identity = ca.node("evil");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("supported")
            .with_no_client_auth()
            .with_single_cert(identity.cert_chain, identity.key)
            .expect("valid");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = QuicServerConfig::try_from(tls).expect("usable");
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = Endpoint::server(config, ([127, 0, 0, 1], 0).into()).expect("binds");
        node.set_peer("evil", endpoint.local_addr().expect("bound"));
        let incoming = within(endpoint.accept()).await.expect("open");
        let conn = within(incoming.accept().expect("open")).await.expect("the certificate is valid");
        let (mut send, mut recv) = within(conn.accept_bi()).await.expect("says hello");
        within(recv.read_exact(&mut [0; 6])).await.expect("says hello");
        send.write_all(&packed(2, &(1u8, CLUSTER, "evil", 1u64))).await.expect("open");
        until(|| node.is_connected("evil")).await;
        Self { endpoint, conn, _hello: (send, recv) }
    }
}

/// The answer to an ask.
pub fn reply<R: Serialize>(reply: &R) -> Vec<u8> {
    let body = rmp_serde::to_vec(reply).expect("encodes");
    packed(8, &(0u8, Bytes::new(&body)))
}

pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ((payload.len() + 2) as u32).to_be_bytes().to_vec();
    frame.extend([1, kind]);
    frame.extend(payload);
    frame
}

pub fn hello(version_min: u8, version_max: u8, cluster: &str, node: &str) -> Vec<u8> {
    packed(1, &(version_min, version_max, cluster, node, 1u64, 1u64, (0u64, 0u64)))
}

/// The hello of a later boot.
pub fn hello_of_boot(incarnation: u64) -> Vec<u8> {
    packed(1, &(1u8, 1u8, CLUSTER, "evil", incarnation, 1u64, (0u64, 0u64)))
}

fn packed(kind: u8, payload: &impl Serialize) -> Vec<u8> {
    frame(kind, &rmp_serde::to_vec(payload).expect("encodes"))
}

pub fn monitor(id: u64, path: &str) -> Vec<u8> {
    packed(3, &(id, path))
}

/// What a receiver says about the room in its inboxes, as it is on the wire.
#[derive(Serialize, Deserialize)]
pub enum Flow {
    Window((u32, u64)),
    Credit(String, u32, u64),
}

impl Remote for Flow {
    const NAME: &'static str = "flow/Signal";
    type Reply = ();
}

/// The first and only window that counts.
pub fn window(messages: u32, bytes: u64) -> Vec<u8> {
    tell(FLOW_PATH, &Flow::Window((messages, bytes)))
}

pub fn credit(path: &str, messages: u32, bytes: u64) -> Vec<u8> {
    tell(FLOW_PATH, &Flow::Credit(path.into(), messages, bytes))
}

/// Where both are told, on the control lane.
const FLOW_PATH: &str = "\0flow";

/// Values of a signal, between an actor of the node and one of the client's.
pub const LINK: u8 = 2;
pub const UNLINK: u8 = 3;
pub const EXIT: u8 = 4;

/// A signal to an actor of the node.
pub fn signal(what: u8, to: (&str, u64), from: (&str, u64)) -> Vec<u8> {
    let reason = rmp_serde::to_vec(&Exit::Shutdown).expect("encodes");
    let reason = if what == EXIT { &reason[..] } else { &[] };
    packed(11, &(to.0, Some(to.1), Some(from), what, Bytes::new(reason)))
}

/// A message `M` to this path, its body as it is on the wire.
pub fn tell<M: Remote>(path: &str, msg: &M) -> Vec<u8> {
    let body = rmp_serde::to_vec(msg).expect("encodes");
    packed(6, &(path, M::NAME, M::VERSION, Bytes::new(&body)))
}

/// A number for a route to this path.
pub fn route(number: u32, path: &str) -> Vec<u8> {
    packed(12, &(number, path, Echo::NAME, Echo::VERSION, Echo::VERSION, None::<u64>))
}

/// A message by the number of its route.
pub fn routed<M: Remote>(number: u32, msg: &M) -> Vec<u8> {
    frame(13, &[&number.to_be_bytes()[..], &rmp_serde::to_vec(msg).expect("encodes")].concat())
}

pub fn ask<M: Remote>(path: &str, msg: &M) -> Vec<u8> {
    let body = rmp_serde::to_vec(msg).expect("encodes");
    let deadline_ms = 600_000u64;
    packed(7, &(path, M::NAME, M::VERSION, deadline_ms, Bytes::new(&body)))
}

/// A datagram to this path.
pub fn datagram(path: &str, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(path.len()).expect("short");
    [&[1], &length.to_be_bytes()[..], path.as_bytes(), body].concat()
}

pub fn open(path: &str, header: &[u8]) -> Vec<u8> {
    packed(9, &(path, Bytes::new(header)))
}

/// What a node announces of a group, as it is on the wire.
#[derive(Serialize)]
pub enum News<'a> {
    Spread {
        group: &'a str,
        message: &'a str,
        version: u16,
        version_min: u16,
    },
    Members {
        group: &'a str,
        message: &'a str,
        version: u16,
        version_min: u16,
        ids: Vec<u64>,
    },
    Joined {
        group: &'a str,
        message: &'a str,
        ids: Vec<u64>,
    },
    Left {
        group: &'a str,
        message: &'a str,
        ids: Vec<u64>,
    },
    Gone {
        group: &'a str,
        message: &'a str,
    },
    /// Of a kind that nobody knows.
    Rumour(u64),
}

/// An announcement, whatever it says.
pub fn announcement(body: &[u8]) -> Vec<u8> {
    let tell = ("@groups", "groups/News", 1u16, Bytes::new(body));
    packed(6, &tell)
}

pub fn news(news: &News<'_>) -> Vec<u8> {
    announcement(&rmp_serde::to_vec(news).expect("encodes"))
}

pub const FOUR_GIGABYTES: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 1, 6];

/// A node with a decent peer beside the hostile one.
pub async fn scene() -> (Ca, Transport, Transport) {
    scene_with(|_| ()).await
}

/// The same, the node with other limits.
pub async fn scene_with(change: impl FnOnce(&mut TransportConfig)) -> (Ca, Transport, Transport) {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    change(&mut config);
    let (node, decent) = (Transport::start(config).expect("starts"), ca.start("b", 1));
    connect(&node, &decent).await;
    serve_echo(&node, "echo");
    (ca, node, decent)
}

/// Whatever has been done to the node: its other peer is served, and a new one too.
pub async fn serves(ca: &Ca, node: &Transport, decent: &Transport) {
    assert_eq!(echo(decent, "a", "echo").await, Ok("b: hello".into()));
    assert!(node.is_connected("b"));
    let newcomer = ca.start("newcomer", 1);
    connect(&newcomer, node).await;
    assert_eq!(echo(&newcomer, "a", "echo").await, Ok("newcomer: hello".into()));
    close(&[&newcomer]).await;
}

pub async fn lives_on(node: &Transport, decent: &Transport) {
    assert_eq!(echo(decent, "a", "echo").await, Ok("b: hello".into()));
    assert!(node.is_connected("b"));
    close(&[node, decent]).await;
}
