//! Our own: an actor on another node, told and asked through the transport.

use super::{CALLERS, FULL_PAUSE, MIB, PATIENCE, PIECE_BYTES, ask_all, end_with_input, identity, number, round};
use crate::contestant::{Outcome, Round, say, serve};
use bytes::Bytes;
use phalanx_actors::{Actor, ChildSpec, Ctx, Handler, Message, Replier, Reply, Strategy, SupervisorSpec, System};
use phalanx_transport::{PeerEvent, Remote, SendError, Transport, TransportConfig};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

#[derive(Serialize, Deserialize)]
struct Blob(#[serde(with = "serde_bytes")] Vec<u8>);

/// Answered with its own bytes.
#[derive(Serialize, Deserialize)]
struct Echo(#[serde(with = "serde_bytes")] Vec<u8>);

/// Answered once so many blobs were handled since the last answer.
#[derive(Serialize, Deserialize)]
struct Until(u64);

#[derive(Default)]
struct Counter {
    handled: u64,
    waiting: Option<(u64, Replier<()>)>,
}

impl Counter {
    fn look(&mut self) {
        if let Some((_, asker)) = self.waiting.take_if(|(until, _)| *until <= self.handled) {
            self.handled = 0;
            asker.reply(());
        }
    }
}

impl Actor for Counter {}
impl Remote for Blob {
    const NAME: &'static str = "bench/Blob";
    type Reply = ();
}
impl Message for Blob {
    type Reply = ();
}
impl Handler<Blob> for Counter {
    fn handle(&mut self, blob: Blob, _: &mut Ctx<Self>) -> Reply<()> {
        std::hint::black_box(blob);
        self.handled += 1;
        self.look();
        ().into()
    }
}
impl Remote for Until {
    const NAME: &'static str = "bench/Until";
    type Reply = ();
}
impl Message for Until {
    type Reply = ();
}
impl Handler<Until> for Counter {
    fn handle(&mut self, until: Until, ctx: &mut Ctx<Self>) -> Reply<()> {
        let (reply, replier) = ctx.defer();
        self.waiting = Some((until.0, replier));
        self.look();
        reply
    }
}
impl Remote for Echo {
    const NAME: &'static str = "bench/Echo";
    type Reply = serde_bytes::ByteBuf;
}
impl Message for Echo {
    type Reply = serde_bytes::ByteBuf;
}
impl Handler<Echo> for Counter {
    fn handle(&mut self, echo: Echo, _: &mut Ctx<Self>) -> Reply<serde_bytes::ByteBuf> {
        serde_bytes::ByteBuf::from(echo.0).into()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn start(folder: &Path, node: &str) -> Transport {
    let (identity, ca) = identity::read(folder, node);
    let bind = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = TransportConfig::new(identity::CLUSTER, node, 1, bind, identity, vec![ca]);
    Transport::start(config).expect("starts")
}

/// Actors and handlers on this thread, the transport on its own, as in each member of a cluster.
pub fn server(folder: &Path) {
    end_with_input();
    let runtime = runtime();
    LocalSet::new().block_on(&runtime, async {
        let transport = start(folder, "server");
        let system = System::builder("server").local().build().expect("a system");
        let counter = ChildSpec::actor("counter", Counter::default);
        system.start(SupervisorSpec::new("top", Strategy::OneForOne).child(counter)).await.expect("started");
        let counter = system.named::<Counter>("top/counter");
        transport.expose::<_, Blob>("counter", counter.clone());
        transport.expose::<_, Echo>("counter", counter.clone());
        transport.expose::<_, Until>("counter", counter);
        transport.serve_stream("body", |_, _, mut send, mut recv| async move {
            let mut piece = vec![0; PIECE_BYTES];
            let mut bytes = 0;
            loop {
                match recv.read(&mut piece).await.expect("whole") {
                    0 => break,
                    n => bytes += n as u64,
                }
            }
            send.write_all(&bytes.to_be_bytes()).await.expect("read by the client");
            send.finish().await.expect("read by the client");
        });
        say(&format!("listening {}", transport.local_addr()));
        std::future::pending::<()>().await;
    });
}

pub fn client(folder: &Path, addr: &str) {
    let runtime = Rc::new(runtime());
    let transport = runtime.block_on(async {
        let transport = start(folder, "client");
        let mut events = transport.events();
        transport.set_peer("server", addr.parse().expect("an address"));
        while !matches!(events.recv().await.expect("no event missed"), PeerEvent::Up { .. }) {}
        transport
    });
    serve(|operation, size| prepare(&runtime, &transport, operation, size));
}

fn prepare(runtime: &Rc<Runtime>, transport: &Transport, operation: &str, size: u64) -> Option<Round> {
    let (runtime, transport) = (runtime.clone(), transport.clone());
    match operation {
        "tell-64" | "tell-1024" => {
            let blob = Blob(vec![7; number(operation)? as usize]);
            round(move || {
                runtime.block_on(async {
                    for _ in 0..size {
                        loop {
                            match transport.tell("server", "counter", &blob) {
                                Ok(()) => break,
                                Err(SendError::Full { .. }) => tokio::time::sleep(FULL_PAUSE).await,
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                    transport.ask("server", "counter", &Until(size), PATIENCE).await.expect("all arrive");
                });
                Outcome::new(size, ())
            })
        }
        "ask-1" | "ask-64" => {
            let callers = number(operation)?.min(CALLERS);
            round(move || {
                let ask = move || {
                    let asking = transport.ask("server", "counter", &Echo(vec![7; 64]), PATIENCE);
                    async move { assert_eq!(asking.await.expect("answered").len(), 64) }
                };
                runtime.block_on(ask_all(callers, size, ask))
            })
        }
        "body" => round(move || {
            runtime.block_on(async {
                let (mut send, mut recv) = transport.open_stream("server", "body", Bytes::new()).await.expect("opened");
                let piece = vec![7; PIECE_BYTES];
                for _ in 0..size as usize * (MIB / PIECE_BYTES) {
                    send.write_all(&piece).await.expect("taken");
                }
                send.finish().await.expect("taken");
                let taken = recv.read_to_end(8).await.expect("answered");
                assert_eq!(taken, (size * MIB as u64).to_be_bytes());
            });
            Outcome::new(size, ())
        }),
        _ => None,
    }
}
