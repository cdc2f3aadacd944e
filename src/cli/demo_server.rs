//! `phalanx demo-server`: a small HTTP service, for the demo, the benchmark, and first steps.
//!
//! `GET /` says who answers (text, or JSON where `Accept` or `/json` asks for it); `GET /healthz` is 200. One thread,
//! one line of log a request. It ends at once on SIGTERM. Who it is comes from the environment, which a manifest fills
//! from the downward API: `POD_NAME`, `NODE_NAME`, `POD_IP`.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use super::CliError;
use super::error::println;

/// Connections served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// A client that does not send its request's head within this time is cut off.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Serves HTTP: the small service of the demo.
#[derive(Args, Clone, Debug)]
pub struct DemoServerArgs {
    /// Address to listen on
    #[arg(long, env = "POD_IP", value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub ip: IpAddr,

    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "PORT", value_name = "PORT", default_value_t = 8080)]
    pub port: u16,

    /// Name of the pod, for the answers
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "")]
    pub pod: String,

    /// Name of the node, for the answers
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value = "")]
    pub node: String,
}

struct Service {
    pod: String,
    node: String,
    started: Instant,
    requests: AtomicU64,
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(args: DemoServerArgs) -> Result<(), CliError> {
    let address = SocketAddr::new(args.ip, args.port);
    let listener =
        TcpListener::bind(address).await.map_err(|e| CliError::new(format!("cannot listen on {address}: {e}")))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    println(&format!("listening on http://{}", listener.local_addr()?))?;
    tokio::select! {
        result = serve(listener, args) => result,
        _ = terminate.recv() => println("SIGTERM: bye"),
        _ = interrupt.recv() => println("SIGINT: bye"),
    }
}

async fn serve(listener: TcpListener, args: DemoServerArgs) -> Result<(), CliError> {
    let service =
        Arc::new(Service { pod: args.pod, node: args.node, started: Instant::now(), requests: AtomicU64::new(0) });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors: it passes.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = service.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let answer = service_fn(|request| {
                let response = service.answer(&request, peer);
                async move { Ok::<_, Infallible>(response) }
            });
            // A client that breaks off is its own business.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

impl Service {
    fn answer(&self, request: &Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (status, media_type, body) = match (request.method(), path) {
            (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/" | "/json") => {
                let n = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
                if path == "/json" || accept.contains("application/json") {
                    let body = json!({"pod": self.pod, "node": self.node, "requests": n, "pid": std::process::id(),
                        "uptimeMs": u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)});
                    (StatusCode::OK, "application/json", format!("{body}\n"))
                } else {
                    let (pod, node) = (or_unnamed(&self.pod), or_unnamed(&self.node));
                    (
                        StatusCode::OK,
                        "text/plain; charset=utf-8",
                        format!("Hello from pod {pod} on node {node}: request {n}\n"),
                    )
                }
            }
            (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
            _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
        };
        // Probes come every second: a log full of them would hide the rest.
        if path != "/healthz" {
            let _ = println(&format!("{peer} {} {path} {}", request.method(), status.as_u16()));
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
        response
    }
}

fn or_unnamed(name: &str) -> &str {
    if name.is_empty() { "(unnamed)" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    }

    #[tokio::test]
    async fn it_says_who_answers_and_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let args = DemoServerArgs { ip: address.ip(), port: 0, pod: "web-1".into(), node: "n1".into() };
        let server = tokio::spawn(serve(listener, args));
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let text = ask(address, &get("/")).await;
        assert!(text.ends_with("Hello from pod web-1 on node n1: request 1\n"), "{text}");
        let json = ask(address, &get("/json")).await;
        assert!(json.contains("\"requests\":2") && json.contains(&format!("\"pid\":{}", std::process::id())), "{json}");
        assert!(ask(address, &get("/healthz")).await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, &get("/nope")).await.starts_with("HTTP/1.1 404"));
        server.abort();
    }
}
