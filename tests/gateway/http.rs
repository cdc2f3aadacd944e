//! Requests as raw HTTP: what Kubernetes promises to every client.

use phalanx::gateway::Listen;
use phalanx::security::Authority;
use serde_json::{Value, json};

use crate::fixture::{Server, WAIT};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_unknown_gets_more_than_health_and_the_door() {
    let server = Server::start().await;
    let mut nobody = server.connect(None, "http/1.1").await.unwrap();
    for path in ["/api/v1/pods", "/version", "/api", "/phalanx/v1/status", "/phalanx/v1/tree", "/nope"] {
        let answer = nobody.get(path).await;
        assert_eq!((answer.code, answer.json()["message"].as_str()), (401, Some("Unauthorized")), "{path}");
    }
    assert_eq!(nobody.get("/livez").await.text, "ok");
    assert_eq!(nobody.get("/readyz").await.text, "ok");
    assert_eq!(nobody.send("POST", "/phalanx/v1/join", &[], "please").await.json()["welcome"], true);
    assert_eq!(nobody.send("POST", "/phalanx/v1/join", &[], "now").await.code, 401);

    let user = server.authority.issue_client("eve", &["devs".to_owned()]).unwrap();
    let mut user = server.connect(Some(&user), "http/1.1").await.unwrap();
    assert_eq!(user.get("/version").await.code, 200);
    let refused = user.get("/api/v1/namespaces/default/pods").await;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.json()["message"],
        "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(user.get("/phalanx/v1/status").await.code, 403);

    let stranger = Authority::create("other").unwrap().issue_client("admin", &["system:masters".to_owned()]).unwrap();
    let stranger = server.connect(Some(&stranger), "http/1.1").await;
    let refused = match stranger {
        // With TLS 1.3 the client learns of the refusal with its first answer.
        Ok(mut client) => client.try_send("GET", "/version", &[], "").await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "another authority's certificate");

    let mut admin = server.client().await;
    assert_eq!(admin.get("/phalanx/v1/status").await.json()["cluster"], "test");
    assert_eq!(admin.get("/phalanx/v1/tree?path=a%2Fb").await.json()["path"], "a/b");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_goes_through_its_life_over_both_versions_of_http() {
    let server = Server::start().await;
    for alpn in ["http/1.1", "h2"] {
        let mut client = server.connect(Some(&server.admin()), alpn).await.unwrap();
        let created = client.post(CONFIG_MAPS, &config_map("a", json!({"x": "1"}))).await;
        assert_eq!(created.code, 201, "{}", created.text);
        let path = format!("{CONFIG_MAPS}/a");
        assert_eq!(client.get(&path).await.json(), created.json());
        // A missing Content-Type is JSON.
        let mut changed = created.json();
        changed["data"]["x"] = "2".into();
        let updated = client.send("PUT", &path, &[], changed.to_string()).await;
        assert_eq!((updated.code, &updated.json()["data"]["x"]), (200, &json!("2")));
        assert_eq!(client.send("PUT", &path, &[], changed.to_string()).await.code, 409);
        let patched = client.patch(&path, &json!({"data": {"y": "3"}})).await;
        assert_eq!(patched.json()["data"], json!({"x": "2", "y": "3"}));
        let list = client.get(CONFIG_MAPS).await.json();
        assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("ConfigMapList"), 1));
        let wrong = client.send("DELETE", &path, &[], json!({"preconditions": {"uid": "x"}}).to_string()).await;
        assert_eq!(wrong.code, 409);
        let gone = client.send("DELETE", &path, &[], "").await.json();
        assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &created.json()["metadata"]["uid"]));
        assert_eq!(client.get(&path).await.code, 404);
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_kubernetes_own() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.post(CONFIG_MAPS, &config_map("a", json!({}))).await;
    let cases = [
        ("GET", "/api/v1/namespaces/default/pods/nope", "", 404, "pods \"nope\" not found"),
        ("GET", "/apis/apps/v1/namespaces/default/deployments/nope", "", 404, "deployments.apps \"nope\" not found"),
        ("GET", "/api/v1/namespaces/default/nopes", "", 404, "the server could not find the requested resource"),
        ("GET", "/api/v1/pods?limit=x", "", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("GET", "/api/v1/pods?fieldSelector=spec.nope%3Dx", "", 400, "field label not supported: spec.nope"),
        (
            "GET",
            "/api/v1/pods?labelSelector=a+in+(b",
            "",
            400,
            "unable to parse requirement: found '', expected: ',' or ')'",
        ),
        (
            "GET",
            "/api/v1/pods?resourceVersionMatch=Exact",
            "",
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "GET",
            "/api/v1/pods?watch=1&sendInitialEvents=true",
            "",
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "GET",
            "/api/v1/pods?resourceVersion=abc",
            "",
            400,
            "invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax",
        ),
        (
            "GET",
            "/api/v1/pods?continue=xx",
            "",
            400,
            "invalid continue token: continue key is not valid: invalid character 'Ç' looking for beginning of value",
        ),
        (
            "POST",
            CONFIG_MAPS,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}"#,
            409,
            "configmaps \"a\" already exists",
        ),
        (
            "POST",
            CONFIG_MAPS,
            r#"{"metadata":{"name":"b","namespace":"other"}}"#,
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?fieldValidation=Strict",
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"dataa":{}}"#,
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dataa\"",
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/a",
            r#"{"metadata":{"name":"other"}}"#,
            400,
            "the name of the object (other) does not match the name on the URL (a)",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default/configmaps/a",
            r#"{"propagationPolicy":"Sideways"}"#,
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Sideways\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/pods/x",
            "{}",
            405,
            "the server does not allow this method on the requested resource",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default",
            "",
            403,
            "namespaces \"default\" is forbidden: this namespace may not be deleted",
        ),
    ];
    for (method, path, body, code, message) in cases {
        let answer = client.send(method, path, &["content-type: application/json"], body).await;
        let json = answer.json();
        assert_eq!((answer.code, json["message"].as_str().unwrap()), (code, message), "{method} {path}");
        assert_eq!((&json["kind"], &json["code"]), (&json!("Status"), &json!(code)));
    }
    let unknown = client.get("/apis/nope.io/v1/things").await;
    assert_eq!((unknown.code, unknown.text.as_str()), (404, "404 page not found\n"));
    let warned = client
        .post("/api/v1/namespaces/default/configmaps?dryRun=All", &json!({"metadata": {"name": "w"}, "nope": 1}))
        .await;
    assert_eq!((warned.code, warned.header("warning")), (201, "299 - \"unknown field \\\"nope\\\"\""));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_in_the_form_that_was_asked_for() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.post(CONFIG_MAPS, &config_map("a", json!({"x": "1"}))).await;
    let table = "accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let rows = client.send("GET", CONFIG_MAPS, &[table], "").await.json();
    assert_eq!((&rows["kind"], &rows["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert_eq!(rows["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let row = client.send("GET", &format!("{CONFIG_MAPS}/a?includeObject=Object"), &[table], "").await.json();
    assert_eq!(row["rows"][0]["object"]["data"]["x"], "1");
    let partial = "accept: application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let metadata = client.send("GET", CONFIG_MAPS, &[partial], "").await.json();
    assert_eq!(metadata["kind"], "PartialObjectMetadataList");
    assert_eq!(metadata["items"][0]["data"], Value::Null);
    let protobuf = "accept: application/vnd.kubernetes.protobuf,application/json";
    assert_eq!(client.send("GET", CONFIG_MAPS, &[protobuf], "").await.json()["kind"], "ConfigMapList");
    let yaml = client.send("GET", CONFIG_MAPS, &["accept: application/yaml"], "").await;
    assert!(yaml.text.contains("kind: ConfigMapList"), "{}", yaml.text);
    assert_eq!(client.send("GET", CONFIG_MAPS, &["accept: application/x-nope"], "").await.code, 406);
    // Bodies come as YAML too.
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fromyaml}\ndata: {a: \"1\"}\n";
    let made = client.send("POST", CONFIG_MAPS, &["content-type: application/yaml"], body).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let nope = client.send("PATCH", &format!("{CONFIG_MAPS}/a"), &["content-type: application/nope"], "{}").await;
    assert_eq!((nope.code, &nope.json()["message"]), (415, &json!("415: Unsupported Media Type")));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sends_each_event_at_once_and_ends_when_it_was_asked_to() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let version = client.get(CONFIG_MAPS).await.json()["metadata"]["resourceVersion"].clone();
    let url = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", version.as_str().unwrap());
    let mut watch = server.client().await.lines(&url, &[]).await;
    let table = "accept: application/json;as=Table;v=v1;g=meta.k8s.io";
    let mut tables = server.client().await.lines(&url, &[table]).await;
    let created = client.post(CONFIG_MAPS, &config_map("a", json!({}))).await.json();
    assert_eq!(watch.next().await.unwrap(), json!({"type": "ADDED", "object": created}));
    let row = tables.next().await.unwrap();
    assert_eq!((&row["type"], &row["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert_eq!(row["object"]["rows"][0]["cells"][0], "a");
    client.patch(&format!("{CONFIG_MAPS}/a"), &json!({"data": {"x": "1"}})).await;
    assert_eq!(watch.next().await.unwrap()["type"], "MODIFIED");
    client.send("DELETE", &format!("{CONFIG_MAPS}/a"), &[], "").await;
    let deleted = watch.next().await.unwrap();
    assert_eq!((&deleted["type"], &deleted["object"]["data"]["x"]), (&json!("DELETED"), &json!("1")));

    client.post(CONFIG_MAPS, &config_map("b", json!({}))).await;
    let list = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut watch = server.client().await.lines(&format!("{CONFIG_MAPS}?watch=1{list}"), &[]).await;
    assert_eq!(watch.next().await.unwrap()["object"]["metadata"]["name"], "b");
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let last = watch.next().await.unwrap();
    assert_eq!((&last["type"], &last["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(watch.next().await, None, "a clean end after timeoutSeconds");

    let store = server.registry.store().clone();
    store.compact(store.revision()).await.unwrap();
    let mut old = server.client().await.lines(&url, &[]).await;
    let gone = old.next().await.unwrap();
    assert_eq!((&gone["type"], &gone["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(old.next().await, None);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_watches_and_followed_logs() {
    let server = Server::start().await;
    server.node_and_pod().await;
    let mut watch = server.client().await.lines("/api/v1/namespaces?watch=1", &[]).await;
    assert_eq!(watch.next().await.unwrap()["type"], "ADDED");
    let follow = "/api/v1/namespaces/default/pods/p1/log?follow=true&tailLines=5";
    let mut logs = server.client().await.lines(follow, &[]).await;
    assert_eq!(logs.next_text().await.unwrap(), "n1 p1 c Some(5)");
    tokio::time::timeout(WAIT, server.end()).await.unwrap();
    while watch.next().await.is_some() {}
    assert_eq!(logs.next_text().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_the_node_of_the_pod() {
    let server = Server::start().await;
    server.node_and_pod().await;
    let mut client = server.client().await;
    let log = "/api/v1/namespaces/default/pods/p1/log";
    let text = client.get(log).await;
    assert_eq!((text.code, text.text.as_str()), (200, "n1 p1 c None\n"));
    assert_eq!(text.header("content-type"), "text/plain");
    let broken = client.get(&format!("{log}?previous=true")).await;
    assert_eq!(broken.text, "n1 p1 c None\nthe node is gone\n");
    let wrong = client.get(&format!("{log}?container=nope")).await;
    assert_eq!((wrong.code, &wrong.json()["message"]), (400, &json!("container nope is not valid for pod p1")));
    assert_eq!(client.get("/api/v1/namespaces/default/pods/none/log").await.code, 404);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_giants_are_refused_and_the_server_lives_on() {
    let server = Server::start().await;
    let mut client = server.client().await;
    // Also one that is still being sent when it is known to be too large: a broken pipe would tell nobody why.
    for bytes in [3 * 1024 * 1024 + 1, 10 * 1024 * 1024] {
        let answer = client.send("POST", CONFIG_MAPS, &[], vec![b' '; bytes]).await;
        assert_eq!((answer.code, &answer.json()["reason"]), (413, &json!("RequestEntityTooLarge")));
    }
    // Not for ever: this one is cut off, with or without an answer.
    if let Ok(answer) = client.try_send("POST", CONFIG_MAPS, &[], vec![b' '; 64 * 1024 * 1024]).await {
        assert_eq!(answer.code, 413);
    }
    let mut client = server.client().await;
    for (media_type, body) in [
        ("application/json", "{"),
        ("application/json", "[1]"),
        ("application/json", ""),
        ("application/yaml", "a: [1"),
        ("application/vnd.kubernetes.protobuf", "k8s\0\u{1}\u{7f}\u{7f}"),
    ] {
        let answer = client.send("POST", CONFIG_MAPS, &[&format!("content-type: {media_type}")], body).await;
        assert_eq!(answer.code, 400, "{media_type} {body:?}: {}", answer.text);
    }
    assert_eq!(client.send("POST", CONFIG_MAPS, &["content-type: text/html"], "<p>").await.code, 415);
    // Not TLS at all.
    let mut raw = tokio::net::TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut raw, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut raw, &mut rest).await;
    assert_eq!(client.get("/readyz").await.text, "ok");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_told_in_one_line() {
    let server = Server::start().await;
    let taken = server.address;
    let identity = server.admin();
    let refused = phalanx::gateway::Gateway::start(server.config(Listen::Address(taken), &identity)).await;
    let error = refused.err().expect("the port is taken");
    let text = error.to_string();
    assert!(text.contains(&format!("port {}", taken.port())) && text.contains("in use"), "{text}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_is_served_whole_and_in_pieces() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let v2 = "accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let whole = client.send("GET", "/apis", &[v2], "").await;
    assert_eq!(whole.json()["kind"], "APIGroupDiscoveryList");
    assert!(whole.header("content-type").contains("as=APIGroupDiscoveryList"));
    assert_eq!(whole.header("vary"), "Accept");
    let etag = format!("if-none-match: {}", whole.header("etag"));
    assert_eq!(client.send("GET", "/apis", &[v2, &etag], "").await.code, 304);
    assert_eq!(client.get("/apis").await.json()["kind"], "APIGroupList");
    assert_eq!(client.get("/api/v1").await.json()["kind"], "APIResourceList");
    assert_eq!(client.get("/apis/apps/v1").await.json()["groupVersion"], "apps/v1");
    assert_eq!(client.get("/openapi/v2").await.code, 406);
    let index = client.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert!(client.get(&url).await.json()["paths"].is_object());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_a_client_is_told_to_come_back() {
    let server = Server::start().await;
    let mut client = server.client().await;
    server.stop_store().await;
    for answer in
        [client.post(CONFIG_MAPS, &config_map("a", json!({}))).await, client.get("/api/v1/namespaces/default").await]
    {
        assert_eq!((answer.code, answer.header("retry-after")), (503, "1"), "{}", answer.text);
        assert_eq!(answer.json()["reason"], "ServiceUnavailable");
    }
    server.end().await;
}
