//! A server over TCP whose connections are actors, each of its own: one that crashes loses its client, and nobody else notices.
//!
//! The protocol: a client sends numbers, one a line, and gets their sum so far.
//!
//! `cargo run -p phalanx-actors --example connections`

use phalanx_actors::*;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How many clients are served at once; more are turned away.
const CONNECTIONS_MAX: usize = 1_000;
/// How long a line may be.
const LINE_MAX_BYTES: u64 = 100;

/// Accepts, and has each connection run under the supervisor beside it.
struct Listener(std::net::TcpListener);

impl Actor for Listener {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        // A clone: a restarted listener goes on with the same socket.
        let listener = self.0.try_clone().and_then(TcpListener::from_std).map_err(failed)?;
        let connections = ctx.system().supervisor("server/connections").ok_or(Exit::NoProc)?;
        ctx.pipe(accept(listener, connections), |_, error, ctx| ctx.stop(error));
        Ok(())
    }
}

/// Until it cannot go on.
async fn accept(listener: TcpListener, connections: SupervisorRef) -> Exit {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return failed(error),
        };
        let connection = ChildSpec::once(client.to_string(), || Connection { stream: Some(stream), sum: 0 });
        match connections.count_children().await {
            Ok(count) if count.active >= CONNECTIONS_MAX => {}
            Ok(_) => drop(connections.start_child(connection).await),
            Err(_) => return Exit::Shutdown,
        }
    }
}

fn failed(error: io::Error) -> Exit {
    Exit::Error(error.to_string())
}

struct Connection {
    stream: Option<TcpStream>,
    sum: u64,
}

impl Actor for Connection {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        if let Some(stream) = self.stream.take() {
            Self::read(BufReader::new(stream), ctx);
        }
        Ok(())
    }
}

impl Connection {
    fn read(mut stream: BufReader<TcpStream>, ctx: &mut Ctx<Self>) {
        let line = async move {
            let mut line = String::new();
            (&mut stream).take(LINE_MAX_BYTES).read_line(&mut line).await.map(|_| (line, stream))
        };
        ctx.pipe(line, |connection, read, ctx| match read {
            Ok((line, _)) if line.is_empty() => ctx.stop(Exit::Normal),
            Ok((line, stream)) => connection.answer(&line, stream, ctx),
            Err(error) => ctx.stop(failed(error)),
        });
    }

    fn answer(&mut self, line: &str, mut stream: BufReader<TcpStream>, ctx: &mut Ctx<Self>) {
        // No number, no sum: it crashes, and its client is cut off. Nothing is left that one would have to clean up.
        self.sum += line.trim().parse::<u64>().expect("a number");
        let answer = format!("{}\n", self.sum);
        let written = async move { stream.write_all(answer.as_bytes()).await.map(|()| stream) };
        ctx.pipe(written, |_, written, ctx| match written {
            Ok(stream) => Self::read(stream, ctx),
            Err(error) => ctx.stop(failed(error)),
        });
    }
}

/// What a client gets for a line; nothing when it was cut off.
async fn ask(client: &mut BufReader<TcpStream>, line: &str) -> Option<String> {
    client.write_all(format!("{line}\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    client.read_line(&mut answer).await.ok().filter(|bytes| *bytes > 0)?;
    Some(answer.trim().to_owned())
}

/// Serves three clients, of whom one misbehaves, and tells what each got.
pub async fn run() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let socket = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    let system = System::builder("node").build()?;
    // The listener starts last, and stops first.
    let server = SupervisorSpec::new("server", Strategy::RestForOne)
        .child(ChildSpec::supervisor("connections", || SupervisorSpec::new("connections", Strategy::Dynamic)))
        .child(ChildSpec::actor("listener", move || Listener(socket.try_clone().expect("a socket can be shared"))));
    system.start(server).await?;
    let mut events = system.subscribe();

    let mut lines = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(BufReader::new(TcpStream::connect(address).await?));
    }
    for line in ["20", "twenty", "22"] {
        for (n, client) in clients.iter_mut().enumerate() {
            // Only the second one sends words.
            let line = if line == "twenty" && n != 1 { "0" } else { line };
            let answer = ask(client, line).await.unwrap_or_else(|| "(cut off)".into());
            lines.push(format!("client {n} sends {line}, gets {answer}"));
        }
    }
    loop {
        if let TreeEvent::Exited { exit: exit @ Exit::Panic { .. }, .. } = events.recv().await? {
            lines.push(format!("one connection crashed: {exit}"));
            break;
        }
    }
    let open = |info: &ActorInfo| info.state == State::Running && info.type_name.ends_with("Connection");
    let running = system.tree().iter().filter(|info| open(info)).count();
    lines.push(format!("{running} connections go on"));
    system.shutdown().await;
    Ok(lines)
}

#[allow(dead_code)] // the tests run it as a function
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    run().await?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
