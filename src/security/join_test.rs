//! Joining against a real TLS server on loopback.

use super::*;
use crate::security::{Authority, ClientIdentity, NodeRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn server_identity(ca: &Authority) -> ClientIdentity {
    let request = NodeRequest::generate().expect("key");
    let csr = request.csr_pem().expect("csr");
    let issued = ca.sign_node(&csr, "n1", &[], &["127.0.0.1".parse().expect("ip")]).expect("signed");
    request.accept(issued)
}

fn root_fingerprint(ca: &Authority) -> String {
    let id = ca.issue_client("x", &[]).expect("client");
    fingerprint(&id.chain().expect("chain")[1])
}

/// Serves one connection: answers `response` to whatever is asked. Returns the address and what was asked.
async fn serve_once(ca: &Authority, response: String) -> (String, tokio::task::JoinHandle<String>) {
    let id = server_identity(ca);
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(id.chain().expect("chain"), id.key().expect("key"))
        .expect("config");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("addr").to_string();
    let task = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("accept");
        let Ok(mut tls) = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await else {
            return String::new();
        };
        let mut asked = Vec::new();
        let mut buffer = [0u8; 4096];
        while !asked.ends_with(b"}") {
            let n = tls.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                break;
            }
            asked.extend_from_slice(&buffer[..n]);
        }
        tls.write_all(response.as_bytes()).await.expect("write");
        let _ = tls.shutdown().await;
        String::from_utf8_lossy(&asked).into_owned()
    });
    (address, task)
}

fn request(token: &JoinToken) -> JoinRequest {
    JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        node: "n2".into(),
        role: TokenRole::Agent,
        csr_pem: NodeRequest::generate().and_then(|r| r.csr_pem()).expect("csr"),
        addresses: vec![],
        clock_s: 0,
    }
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_server_of_another_cluster_never_sees_the_secret() {
    let (ours, theirs) = (Authority::create("a").expect("ca"), Authority::create("b").expect("ca"));
    let (address, server) = serve_once(&theirs, http("200 OK", "{}")).await;
    let (token, _) = JoinToken::create(&address, &root_fingerprint(&ours), TokenRole::Agent, 0);
    let error = join(&token, &request(&token)).await.err().expect("refused");
    assert!(matches!(error, JoinError::OtherCluster { .. }), "{error}");
    assert_eq!(server.await.expect("server"), "", "no byte of the request went out");
}

#[tokio::test]
async fn the_clusters_refusal_reaches_the_person_in_its_own_words() {
    let ca = Authority::create("a").expect("ca");
    let body = r#"{"kind":"Status","message":"the join token expired 5 s ago"}"#;
    let (address, server) = serve_once(&ca, http("401 Unauthorized", body)).await;
    let (token, _) = JoinToken::create(&address, &root_fingerprint(&ca), TokenRole::Agent, 0);
    let error = join(&token, &request(&token)).await.err().expect("refused");
    assert_eq!(error.to_string(), format!("the cluster at {address} refuses: the join token expired 5 s ago"));
    assert!(server.await.expect("server").contains(&token.secret), "the pinned server was asked");
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("addr").to_string();
    drop(listener);
    let (token, _) = JoinToken::create(&address, "ab", TokenRole::Agent, 0);
    let error = join(&token, &request(&token)).await.err().expect("refused").to_string();
    assert!(error.starts_with(&format!("cannot reach the cluster at {address}: ")), "{error}");
}

#[test]
fn a_clock_outside_the_certificates_life_is_told_by_how_much() {
    let ca = Authority::create("a").expect("ca");
    let id = server_identity(&ca);
    let chain = id.chain().expect("chain");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = PinnedRoot { ca_sha256: root_fingerprint(&ca), provider };
    let name = ServerName::try_from("127.0.0.1").expect("name");
    let day = Duration::from_secs(86_400);
    let at = |now: Duration| {
        let result = pinned.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::since_unix_epoch(now));
        result.map_err(|e| tls_error("h:1", &std::io::Error::new(std::io::ErrorKind::InvalidData, e)).to_string())
    };
    let now = Duration::from_secs(UnixTime::now().as_secs());
    assert!(at(now).is_ok());
    let allowed = Duration::from_secs(CLOCK_SKEW_MAX_S.unsigned_abs());
    assert!(at(now - allowed).is_ok(), "a clock that may join finds the certificate valid");
    let early = at(now - day).expect_err("too early");
    assert!(early.contains("s before the certificate begins; set the clock and join again"), "{early}");
    let late = at(now + 400 * day).expect_err("too late");
    assert!(late.contains("s after the certificate ended; set the clock"), "{late}");
}

#[test]
fn a_clock_that_is_off_is_told_by_how_much() {
    assert_eq!(check_clock(1_000, 1_000 + CLOCK_SKEW_MAX_S), Ok(()));
    let error = check_clock(8_200, 1_000).expect_err("off");
    assert!(error.contains("7200 s ahead of the cluster's"), "{error}");
    assert!(check_clock(1_000, 8_200).expect_err("off").contains("behind"));
}
