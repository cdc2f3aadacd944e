//! Carries out one probe: a command, an HTTP request, a TCP connection.
//!
//! It decides nothing (`probe` does) and keeps nothing. Also runs lifecycle hooks, which are the same actions.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container as ContainerV1, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::runtime::{Container, RuntimeError};

/// At most this much of an answer is told.
const ANSWER_BYTES_MAX: usize = 256;

/// What to do, with names resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    Exec {
        command: Vec<String>,
    },
    Http {
        host: String,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        host: String,
        port: u16,
    },
    Sleep(Duration),
    /// Cannot be done; says why. Always fails.
    Impossible(String),
}

impl ProbeAction {
    pub fn of_probe(probe: &Probe, container: &ContainerV1, pod_ip: Option<IpAddr>) -> Self {
        if let Some(exec) = &probe.exec {
            Self::Exec { command: exec.command.clone().unwrap_or_default() }
        } else if let Some(http) = &probe.http_get {
            Self::http(http, container, pod_ip)
        } else if let Some(tcp) = &probe.tcp_socket {
            Self::tcp(tcp, container, pod_ip)
        } else if probe.grpc.is_some() {
            Self::Impossible("gRPC probes are not supported by this node".to_owned())
        } else {
            Self::Impossible("missing probe handler".to_owned())
        }
    }

    pub fn of_hook(hook: &LifecycleHandler, container: &ContainerV1, pod_ip: Option<IpAddr>) -> Self {
        if let Some(exec) = &hook.exec {
            Self::Exec { command: exec.command.clone().unwrap_or_default() }
        } else if let Some(http) = &hook.http_get {
            Self::http(http, container, pod_ip)
        } else if let Some(sleep) = &hook.sleep {
            Self::Sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs()))
        } else {
            Self::Impossible("invalid handler".to_owned())
        }
    }

    fn http(http: &HTTPGetAction, container: &ContainerV1, pod_ip: Option<IpAddr>) -> Self {
        if http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            return Self::Impossible("HTTPS probes are not supported by this node".to_owned());
        }
        let Some(port) = port(&http.port, container) else {
            return Self::Impossible(format!("couldn't find port {:?} of container {}", http.port, container.name));
        };
        let path = http.path.clone().unwrap_or_default();
        Self::Http {
            host: host(http.host.as_ref(), pod_ip),
            port,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: http.http_headers.iter().flatten().map(|of| (of.name.clone(), of.value.clone())).collect(),
        }
    }

    fn tcp(tcp: &TCPSocketAction, container: &ContainerV1, pod_ip: Option<IpAddr>) -> Self {
        match port(&tcp.port, container) {
            Some(port) => Self::Tcp { host: host(tcp.host.as_ref(), pod_ip), port },
            None => Self::Impossible(format!("couldn't find port {:?} of container {}", tcp.port, container.name)),
        }
    }

    /// Does it. The error says what went wrong, in the kubelet's words where it has some.
    pub async fn run(&self, container: &Arc<dyn Container>, timeout: Duration) -> Result<(), String> {
        match self {
            Self::Exec { command } => match container.exec(command, timeout).await {
                Ok(result) if result.code == 0 => Ok(()),
                Ok(result) => Err(told(&result.output)),
                Err(RuntimeError::Timeout { .. }) => {
                    Err(format!("command timed out: {:?} timed out after {timeout:?}", command.join(" ")))
                }
                Err(error) => Err(error.to_string()),
            },
            Self::Http { host, port, path, headers } => {
                within(timeout, http_get(host, *port, path, headers), || {
                    format!("Get \"http://{host}:{port}{path}\": context deadline exceeded")
                })
                .await
            }
            Self::Tcp { host, port } => {
                let connect = async {
                    let stream = TcpStream::connect((&**host, *port)).await;
                    stream.map(drop).map_err(|error| format!("dial tcp {host}:{port}: {error}"))
                };
                within(timeout, connect, || format!("dial tcp {host}:{port}: i/o timeout")).await
            }
            Self::Sleep(duration) => {
                tokio::time::sleep((*duration).min(timeout)).await;
                Ok(())
            }
            Self::Impossible(why) => Err(why.clone()),
        }
    }
}

fn port(port: &IntOrString, container: &ContainerV1) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let named = |port: &&k8s_openapi::api::core::v1::ContainerPort| port.name.as_ref() == Some(name);
                container.ports.as_ref()?.iter().find(named)?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

fn host(asked: Option<&String>, pod_ip: Option<IpAddr>) -> String {
    match (asked.filter(|host| !host.is_empty()), pod_ip) {
        (Some(host), _) => host.clone(),
        (None, Some(ip)) => ip.to_string(),
        (None, None) => "127.0.0.1".to_owned(),
    }
}

async fn within(
    timeout: Duration,
    action: impl Future<Output = Result<(), String>>,
    late: impl FnOnce() -> String,
) -> Result<(), String> {
    tokio::time::timeout(timeout, action).await.unwrap_or_else(|_| Err(late()))
}

/// 200 to 399 is success. Redirects are not followed: that they are answered is what is asked.
async fn http_get(host: &str, port: u16, path: &str, headers: &[(String, String)]) -> Result<(), String> {
    let url = format!("http://{host}:{port}{path}");
    let failed = |error: &dyn std::fmt::Display| format!("Get {url:?}: {error}");
    let stream =
        TcpStream::connect((host, port)).await.map_err(|error| failed(&format!("dial tcp {host}:{port}: {error}")))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let mut request = hyper::Request::get(path);
    let has = |name: &str| headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    for (name, value) in
        [("host", format!("{host}:{port}")), ("user-agent", "kube-probe/1.36".to_owned()), ("accept", "*/*".to_owned())]
    {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    let request =
        request.header("connection", "close").body(Empty::<bytes::Bytes>::new()).map_err(|error| failed(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        if (200..400).contains(&status.as_u16()) {
            return Ok(());
        }
        // Only the beginning of the body is of interest, and only its first frame is waited for.
        let mut body = response.into_body();
        let frame = body.frame().await.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
        let text = frame.map(|data| told(&data)).unwrap_or_default();
        tracing::debug!(%url, %status, %text, "probe failed");
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    };
    tokio::select! {
        result = exchange => result,
        // The connection drives the exchange; its own end comes first only when it broke.
        Err(error) = connection => Err(failed(&error)),
    }
}

fn told(output: &[u8]) -> String {
    String::from_utf8_lossy(&output[..output.len().min(ANSWER_BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sim::SimRuntime;
    use crate::runtime::{ContainerSpec, Runtime};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn any_container() -> Arc<dyn Container> {
        let spec = json!({"id": "x", "namespace": "d", "pod": "p", "pod_uid": "u", "container": "c", "attempt": 0,
            "command": [], "args": [], "env": [], "working_dir": null, "dir": "/nowhere", "log_path": "/nowhere/log",
            "image": "", "pod_ip": null, "port": null});
        SimRuntime::default().start(serde_json::from_value::<ContainerSpec>(spec).unwrap()).await.unwrap()
    }

    fn action(probe: serde_json::Value) -> ProbeAction {
        let container: ContainerV1 =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        ProbeAction::of_probe(&serde_json::from_value(probe).unwrap(), &container, Some("127.1.0.9".parse().unwrap()))
    }

    #[test]
    fn ports_and_hosts_are_resolved() {
        let http = |port: u16, path: &str| ProbeAction::Http {
            host: "127.1.0.9".into(),
            port,
            path: path.into(),
            headers: vec![],
        };
        assert_eq!(action(json!({"httpGet": {"port": "web", "path": "healthz"}})), http(8080, "/healthz"));
        assert_eq!(action(json!({"httpGet": {"port": 9}})), http(9, "/"));
        assert_eq!(
            action(json!({"tcpSocket": {"port": "7", "host": "h"}})),
            ProbeAction::Tcp { host: "h".into(), port: 7 }
        );
        for wrong in [
            json!({"httpGet": {"port": "nope"}}),
            json!({"httpGet": {"port": 70000}}),
            json!({"httpGet": {"port": 1, "scheme": "HTTPS"}}),
            json!({"grpc": {"port": 1}}),
            json!({}),
        ] {
            assert!(matches!(action(wrong.clone()), ProbeAction::Impossible(_)), "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_http_probe_judges_by_the_status_and_sends_its_headers() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let mut requests = Vec::new();
            for status in ["200 OK", "302 Found", "503 Busy", ""] {
                let (mut stream, _) = server.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).await.unwrap();
                requests.push(String::from_utf8_lossy(&request[..count]).to_lowercase());
                if !status.is_empty() {
                    let answer = format!("HTTP/1.1 {status}\r\nlocation: /\r\ncontent-length: 4\r\n\r\nbusy");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                } else {
                    let _ = stream.read(&mut request).await;
                }
            }
            requests
        });
        let probe = ProbeAction::Http {
            host: "127.0.0.1".into(),
            port,
            path: "/x".into(),
            headers: vec![("Host".into(), "me".into()), ("X-A".into(), "b".into())],
        };
        let container = any_container().await;
        let run = |ms| probe.run(&container, Duration::from_millis(ms));
        assert_eq!(run(30_000).await, Ok(()));
        assert_eq!(run(30_000).await, Ok(()));
        assert_eq!(run(30_000).await, Err("HTTP probe failed with statuscode: 503".into()));
        assert!(run(200).await.unwrap_err().contains("context deadline exceeded"));
        let requests = serving.await.unwrap();
        assert!(requests[0].starts_with("get /x http/1.1\r\n"), "{}", requests[0]);
        assert!(requests[0].contains("host: me\r\n") && requests[0].contains("x-a: b\r\n"), "{}", requests[0]);
        // A port that is held and not listened on: one that was merely closed may be somebody else's by now.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let nobody = ProbeAction::Tcp { host: "127.0.0.1".into(), port: held.local_addr().unwrap().port() };
        let refused = nobody.run(&container, Duration::from_secs(30)).await.unwrap_err();
        assert!(refused.contains("connection refused"), "{refused}");
    }
}
