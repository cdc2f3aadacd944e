//! quinn and nothing else: frames of a length and bytes, written as our transport does, all that waits at once; a stream for each question and
//! each body. The endpoint has a thread of its own, as ours.

use super::{CALLERS, FULL_PAUSE, MIB, OUTBOX_BYTES, PIECE_BYTES, ask_all, end_with_input, identity, number, round};
use crate::contestant::{Outcome, Round, say, serve};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use phalanx_transport::server_name;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Notify;

/// What one read takes from a stream at most, as our transport.
const READ_BYTES: usize = 32 << 10;
/// Longest request but a body, in bytes.
const REQUEST_BYTES: usize = 2_048;
/// Questions at once, and a few that are just closing.
const STREAMS: u32 = 1_024;

/// First byte of a stream: what follows.
const ECHO: u8 = 0;
const UNTIL: u8 = 1;
const BODY: u8 = 2;

const ALPN: &[u8] = b"phalanx-bench";

fn own_thread() -> Handle {
    let runtime = runtime();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(STREAMS.into());
    Arc::new(transport)
}

// ---- server ------------------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Counted {
    handled: AtomicU64,
    /// Something was handled while someone waited.
    more: Notify,
    wanted: AtomicU64,
}

pub fn server(folder: &Path) {
    end_with_input();
    let (identity, _) = identity::read(folder, "server");
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(identity.cert_chain, identity.key)
        .expect("an identity");
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("for QUIC")));
    config.transport_config(transport());
    runtime().block_on(async {
        let endpoint = Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("bound");
        say(&format!("listening {}", endpoint.local_addr().expect("bound")));
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move { accept(incoming.await.expect("shaken hands")).await });
        }
    });
}

async fn accept(connection: Connection) {
    let counted = Arc::<Counted>::default();
    loop {
        tokio::select! {
            tells = connection.accept_uni() => match tells {
                Ok(tells) => drop(tokio::spawn(count(tells, counted.clone()))),
                Err(_) => return,
            },
            request = connection.accept_bi() => match request {
                Ok((send, recv)) => drop(tokio::spawn(answer(send, recv, counted.clone()))),
                Err(_) => return,
            },
        }
    }
}

async fn count(mut tells: RecvStream, counted: Arc<Counted>) {
    let mut buffer = BytesMut::new();
    while let Ok(Some(chunk)) = tells.read_chunk(READ_BYTES, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        let mut frames = 0;
        while let Some(length) = buffer.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize) {
            if buffer.len() < 4 + length {
                break;
            }
            buffer.advance(4);
            std::hint::black_box(buffer.split_to(length).freeze());
            frames += 1;
        }
        let handled = counted.handled.fetch_add(frames, SeqCst) + frames;
        if handled >= counted.wanted.load(SeqCst) {
            counted.more.notify_one();
        }
    }
}

async fn answer(mut send: SendStream, mut recv: RecvStream, counted: Arc<Counted>) {
    let mut kind = [0];
    recv.read_exact(&mut kind).await.expect("a request");
    let answer = match kind[0] {
        ECHO => recv.read_to_end(REQUEST_BYTES).await.expect("whole"),
        UNTIL => {
            let wanted = recv.read_to_end(REQUEST_BYTES).await.expect("whole");
            let wanted = u64::from_be_bytes(wanted.try_into().expect("a number"));
            counted.wanted.store(wanted, SeqCst);
            while counted.handled.load(SeqCst) < wanted {
                counted.more.notified().await;
            }
            counted.wanted.store(u64::MAX, SeqCst);
            counted.handled.store(0, SeqCst);
            vec![]
        }
        BODY => {
            let mut bytes = 0;
            let mut piece = vec![0; PIECE_BYTES];
            while let Some(read) = recv.read(&mut piece).await.expect("whole") {
                bytes += read as u64;
            }
            bytes.to_be_bytes().to_vec()
        }
        _ => return,
    };
    send.write_chunk(answer.into()).await.expect("read by the client");
    send.finish().expect("read by the client");
}

// ---- client ------------------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Outbox {
    buffer: Mutex<Vec<u8>>,
    filled: Notify,
}

impl Outbox {
    fn push(&self, message: &[u8]) -> bool {
        {
            let mut buffer = self.buffer.lock();
            if buffer.len() + message.len() > OUTBOX_BYTES {
                return false;
            }
            buffer.extend_from_slice(&(message.len() as u32).to_be_bytes());
            buffer.extend_from_slice(message);
        }
        self.filled.notify_one();
        true
    }

    async fn write(&self, mut stream: SendStream) {
        loop {
            let batch = std::mem::take(&mut *self.buffer.lock());
            if batch.is_empty() {
                self.filled.notified().await;
            } else if stream.write_chunk(batch.into()).await.is_err() {
                return;
            }
        }
    }
}

pub fn client(folder: &Path, addr: &str) {
    let (_, ca) = identity::read(folder, "client");
    let mut roots = RootCertStore::empty();
    roots.add(ca).expect("a certificate");
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("for QUIC")));
    config.transport_config(transport());
    let runtime = Rc::new(runtime());
    let addr: SocketAddr = addr.parse().expect("an address");
    let outbox = Arc::<Outbox>::default();
    let writing = outbox.clone();
    let connected = own_thread().spawn(async move {
        let mut endpoint = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("bound");
        endpoint.set_default_client_config(config);
        let name = server_name(identity::CLUSTER, "server");
        let connection = endpoint.connect(addr, &name).expect("a name").await.expect("connected");
        let tells = connection.open_uni().await.expect("opened");
        tokio::spawn(async move { writing.write(tells).await });
        (endpoint, connection)
    });
    let (_endpoint, connection) = runtime.block_on(connected).expect("connected");
    serve(|operation, size| prepare(&runtime, &connection, &outbox, operation, size));
}

async fn ask(connection: &Connection, request: Bytes) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.expect("opened");
    send.write_chunk(request).await.expect("taken");
    send.finish().expect("taken");
    recv.read_to_end(REQUEST_BYTES).await.expect("answered")
}

fn prepare(
    runtime: &Rc<Runtime>,
    connection: &Connection,
    outbox: &Arc<Outbox>,
    operation: &str,
    size: u64,
) -> Option<Round> {
    let (runtime, connection, outbox) = (runtime.clone(), connection.clone(), outbox.clone());
    match operation {
        "tell-64" | "tell-1024" => {
            let blob = vec![7; number(operation)? as usize];
            round(move || {
                runtime.block_on(async {
                    for _ in 0..size {
                        while !outbox.push(&blob) {
                            tokio::time::sleep(FULL_PAUSE).await;
                        }
                    }
                    ask(&connection, [&[UNTIL][..], &size.to_be_bytes()].concat().into()).await;
                });
                Outcome::new(size, ())
            })
        }
        "ask-1" | "ask-64" => {
            let callers = number(operation)?.min(CALLERS);
            round(move || {
                let request = Bytes::from([&[ECHO][..], &[7; 64]].concat());
                let ask = move || {
                    let (connection, request) = (connection.clone(), request.clone());
                    async move { assert_eq!(ask(&connection, request).await.len(), 64) }
                };
                runtime.block_on(ask_all(callers, size, ask))
            })
        }
        "body" => round(move || {
            runtime.block_on(async {
                let (mut send, mut recv) = connection.open_bi().await.expect("opened");
                send.write_all(&[BODY]).await.expect("taken");
                let piece = vec![7; PIECE_BYTES];
                for _ in 0..size as usize * (MIB / PIECE_BYTES) {
                    send.write_all(&piece).await.expect("taken");
                }
                send.finish().expect("taken");
                let taken = recv.read_to_end(8).await.expect("answered");
                assert_eq!(taken, (size * MIB as u64).to_be_bytes());
            });
            Outcome::new(size, ())
        }),
        _ => None,
    }
}
