use hyper::Method;

use super::request::{Query, Target, Verb, percent_decode, target};
use crate::api::{Kinds, Status};

fn resource(method: Method, url: &str) -> Result<(Verb, String, Option<String>, String, String), Status> {
    let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
    match target(&Kinds::builtin(), &method, path, &Query::parse(query))? {
        Target::Resource(r) => Ok((r.verb, r.kind.plural.clone(), r.namespace, r.name, r.subresource)),
        Target::UnknownPath => panic!("{url} is no resource"),
    }
}

#[test]
fn paths_are_taken_apart_as_kubernetes_does() {
    let ns = |text: &str| Some(text.to_owned());
    let cases = [
        (Method::GET, "/api/v1/pods", (Verb::List, "pods", None, "", "")),
        (Method::GET, "/api/v1/pods?watch=1", (Verb::Watch, "pods", None, "", "")),
        (Method::GET, "/api/v1/pods?watch=false", (Verb::List, "pods", None, "", "")),
        (Method::GET, "/api/v1/namespaces", (Verb::List, "namespaces", None, "", "")),
        (Method::GET, "/api/v1/namespaces/a", (Verb::Get, "namespaces", None, "a", "")),
        (Method::PUT, "/api/v1/namespaces/a/finalize", (Verb::Update, "namespaces", None, "a", "finalize")),
        (Method::GET, "/api/v1/namespaces/a/pods/", (Verb::List, "pods", ns("a"), "", "")),
        (Method::GET, "/api/v1/namespaces/a/pods/p%2Dq/log", (Verb::Get, "pods", ns("a"), "p-q", "log")),
        (Method::POST, "/api/v1/namespaces/a/pods/p/binding", (Verb::Create, "pods", ns("a"), "p", "binding")),
        (
            Method::PATCH,
            "/apis/apps/v1/namespaces/a/deployments/d/scale",
            (Verb::Patch, "deployments", ns("a"), "d", "scale"),
        ),
        (
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            (Verb::DeleteCollection, "deployments", ns("a"), "", ""),
        ),
    ];
    for (method, url, (verb, plural, namespace, name, sub)) in cases {
        let expected = (verb, plural.to_owned(), namespace, name.to_owned(), sub.to_owned());
        assert_eq!(resource(method.clone(), url).unwrap(), expected, "{method} {url}");
    }
}

#[test]
fn what_is_not_served_is_told_apart_from_what_is_not_allowed() {
    let cases = [
        (Method::GET, "/api/v1/namespaces/a/nopes", 404),
        (Method::GET, "/api/v1/pods/p", 404),
        (Method::GET, "/api/v1/namespaces/a/nodes", 404),
        (Method::GET, "/api/v1/namespaces/a/pods/p/nope", 404),
        (Method::GET, "/api/v1/namespaces/a/pods/p/log/more", 404),
        (Method::GET, "/api/v1/namespaces/a/pods/p/exec", 404),
        (Method::POST, "/api/v1/namespaces/a/pods/p", 405),
        (Method::POST, "/api/v1/pods", 405),
        (Method::PUT, "/api/v1/namespaces/a/pods", 405),
        (Method::DELETE, "/api/v1/namespaces", 405),
        (Method::OPTIONS, "/api/v1/pods", 405),
    ];
    for (method, url, code) in cases {
        assert_eq!(resource(method.clone(), url).unwrap_err().http_code(), code, "{method} {url}");
    }
    let said = resource(Method::POST, "/api/v1/namespaces/a/pods/p/portforward").unwrap_err().message;
    assert_eq!(said, "this server does not serve forwarding ports: pods/portforward is not implemented");
    for path in ["/", "/nope", "/apis/nope.io/v1/things", "/api/v2/pods"] {
        let found = target(&Kinds::builtin(), &Method::GET, path, &Query::default()).unwrap();
        assert!(matches!(found, Target::UnknownPath), "{path}");
    }
}

#[test]
fn parameters_are_decoded_and_broken_ones_survive() {
    let query = Query::parse(Some("labelSelector=a+in+%28b%29&watch&limit=x&=&a=%zz%2"));
    assert_eq!(query.text("labelSelector"), "a in (b)");
    assert!(query.flag("watch") && !query.flag("follow"));
    assert_eq!(query.number("limit").unwrap_err().message, "strconv.ParseInt: parsing \"x\": invalid syntax");
    assert_eq!(query.text("a"), "%zz%2");
    assert_eq!(percent_decode("%ff", false), "\u{fffd}");
    assert_eq!(percent_decode("+", false), "+");
}
