//! Label selectors and field selectors: what a list or a watch is narrowed by, and what a controller owns.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Kind, Object, Status, validate};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

/// `a=b,c!=d,e in (f,g),!h`, or a `metav1.LabelSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Parses the `labelSelector` parameter. An empty text matches everything.
    ///
    /// # Errors
    /// 400, with Kubernetes' text for what is missing where.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let requirements =
            parser.requirements().map_err(|why| Status::bad_request(format!("unable to parse requirement: {why}")))?;
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a `metav1.LabelSelector`. A null one matches nothing, an empty one everything.
    ///
    /// # Errors
    /// 400 for an operator that does not exist.
    pub fn from_object(selector: &Value) -> Result<Self, Status> {
        let Some(selector) = selector.as_object() else {
            return Ok(LabelSelector { requirements: Vec::new(), nothing: true });
        };
        let mut requirements: Vec<Requirement> = selector
            .get("matchLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.as_str().unwrap_or_default().to_owned()]),
            })
            .collect();
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let values = || {
                let list = expression["values"].as_array().into_iter().flatten();
                list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
            };
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(Status::bad_request(format!("{other:?} is not a valid label selector operator"))),
            };
            requirements.push(Requirement { key: expression["key"].as_str().unwrap_or_default().to_owned(), operator });
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        let value = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        !self.nothing && self.requirements.iter().all(|requirement| requirement.holds(value(&requirement.key)))
    }

    /// As [`LabelSelector::matches`], for labels that are not JSON.
    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = |key: &str| labels.get(key).map(String::as_str);
        !self.nothing && self.requirements.iter().all(|requirement| requirement.holds(value(&requirement.key)))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }
}

/// The selector in the form that [`LabelSelector::parse`] reads and that Scale's `status.selector` has.
impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut requirements: Vec<&Requirement> = self.requirements.iter().collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        for (at, Requirement { key, operator }) in requirements.into_iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Operator::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(n) => number().is_some_and(|v| v > *n),
            Operator::LessThan(n) => number().is_some_and(|v| v < *n),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Symbol(symbol) => symbol,
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["!=", "==", "=", "!", "(", ")", ",", ">", "<"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "!=(),><".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", Token::text)
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        if self.tokens.is_empty() {
            return Ok(requirements);
        }
        loop {
            requirements.push(self.requirement()?);
            match self.next() {
                None => return Ok(requirements),
                Some(Token::Symbol(",")) => {
                    if !matches!(self.tokens.get(self.at), Some(Token::Word(_) | Token::Symbol("!"))) {
                        return Err(format!("found '{}', expected: identifier after ','", self.peek()));
                    }
                }
                Some(other) => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = matches!(self.tokens.get(self.at), Some(Token::Symbol("!")));
        if negated {
            self.at += 1;
        }
        let key = match self.next() {
            Some(Token::Word(word)) => word,
            other => return Err(format!("found '{}', expected: identifier", other.as_ref().map_or("", Token::text))),
        };
        if let Err(why) = validate::label_key(&key) {
            return Err(format!("<nil>: Invalid value: {key:?}: {why}"));
        }
        if negated {
            return Ok(Requirement { key, operator: Operator::DoesNotExist });
        }
        let operator = match self.tokens.get(self.at) {
            None | Some(Token::Symbol(",")) => return Ok(Requirement { key, operator: Operator::Exists }),
            Some(token) => token.text().to_owned(),
        };
        self.at += 1;
        let operator = match operator.as_str() {
            "=" | "==" => Operator::In(vec![self.value()?]),
            "!=" => Operator::NotIn(vec![self.value()?]),
            "in" => Operator::In(self.set()?),
            "notin" => Operator::NotIn(self.set()?),
            ">" => Operator::GreaterThan(self.number()?),
            "<" => Operator::LessThan(self.number()?),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        Ok(Requirement { key, operator })
    }

    /// A value after `=`; it may be empty.
    fn value(&mut self) -> Result<String, String> {
        match self.tokens.get(self.at).cloned() {
            Some(Token::Word(word)) => {
                self.at += 1;
                check_value(&word)?;
                Ok(word)
            }
            None | Some(Token::Symbol(",")) => Ok(String::new()),
            Some(other) => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.value()?;
        word.parse().map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer: {word:?}"))
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Some(Token::Symbol("(")) => {}
            other => return Err(format!("found '{}' expected: '('", other.as_ref().map_or("", Token::text))),
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Some(Token::Word(word)) => {
                    check_value(&word)?;
                    values.push(word);
                    match self.next() {
                        Some(Token::Symbol(",")) => {}
                        Some(Token::Symbol(")")) => break,
                        other => {
                            return Err(format!(
                                "found '{}', expected: ',' or ')'",
                                other.as_ref().map_or("", Token::text)
                            ));
                        }
                    }
                }
                Some(Token::Symbol(",")) => values.push(String::new()),
                Some(Token::Symbol(")")) => {
                    values.push(String::new());
                    break;
                }
                other => {
                    return Err(format!(
                        "found '{}', expected: ',', ')' or identifier",
                        other.as_ref().map_or("", Token::text)
                    ));
                }
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

fn check_value(value: &str) -> Result<(), String> {
    validate::label_value(value).map_err(|why| format!("values[0][...]: Invalid value: {value:?}: {why}"))
}

/// `spec.nodeName=n1,status.phase!=Failed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Parses the `fieldSelector` parameter. An empty text matches everything.
    ///
    /// # Errors
    /// 400 for a field that this kind cannot be selected by, or a term without an operator.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==") {
                (field, value, true)
            } else if let Some((field, value)) = part.split_once('=') {
                (field, value, true)
            } else {
                return Err(Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            let known = field == "metadata.name"
                || (field == "metadata.namespace" && kind.namespaced)
                || kind.selectable_fields.iter().any(|known| known == field);
            if !known {
                return Err(Status::bad_request(format!("field label not supported: {field}")));
            }
            terms.push(Term { field: field.to_owned(), value: unescape(value), equal });
        }
        Ok(FieldSelector { terms, kind: kind.kind.clone() })
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.terms.iter().all(|term| (field_value(&self.kind, object, &term.field) == term.value) == term.equal)
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that this field must have, if the selector demands exactly one (such as a watch on one name).
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

/// The text of a field that can be selected by. A field that is not set is empty, or what it means when it is not set.
fn field_value(kind: &str, object: &Object, field: &str) -> String {
    if kind == "Event" && field == "source" {
        let source = &object["source"]["component"];
        let value = source.as_str().filter(|s| !s.is_empty()).or(object["reportingComponent"].as_str());
        return value.unwrap_or_default().to_owned();
    }
    if field == "status.podIPs" {
        let ips = object["status"]["podIPs"].as_array().into_iter().flatten();
        return ips.filter_map(|ip| ip["ip"].as_str()).collect::<Vec<_>>().join(",");
    }
    let value = field.split('.').fold(object, |value, part| &value[part]);
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Object(_) | Value::Array(_) => match field {
            "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
            "status.replicas" => "0".to_owned(),
            _ => String::new(),
        },
        other => other.to_string(),
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            plain.push(c);
            escaped = false;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::api::Kinds;

    fn matches(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).expect("a selector").matches(labels.as_object())
    }

    #[test]
    fn label_selectors_match_as_in_kubernetes() {
        for (selector, want) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier", true),
            ("app!=web", false),
            ("none!=x", true),
            ("app in (web,db)", true),
            ("app notin (web,db)", false),
            ("app in (db)", false),
            ("!none", true),
            ("!app", false),
            ("tier", true),
            ("none", false),
            ("n>4", true),
            ("n<5", false),
            ("empty=", true),
            ("app=web,n in (1,5),!x,tier!=back", true),
            ("app.kubernetes.io/name", false),
        ] {
            let labels = json!({"app": "web", "tier": "front", "n": "5", "empty": ""});
            assert_eq!(matches(selector, labels), want, "{selector}");
        }
    }

    #[test]
    fn a_broken_label_selector_says_what_is_missing() {
        let message = |text: &str| LabelSelector::parse(text).expect_err("broken").message;
        assert_eq!(message("a in (b"), "unable to parse requirement: found '', expected: ',' or ')'");
        assert_eq!(message("a b"), "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        assert_eq!(message("a,"), "unable to parse requirement: found '', expected: identifier after ','");
        assert!(message("-a=b").contains("Invalid value: \"-a\""));
    }

    #[test]
    fn object_selectors_match_and_print() {
        let selector = LabelSelector::from_object(&json!({
            "matchLabels": {"b": "2"},
            "matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "DoesNotExist"}],
        }))
        .expect("a selector");
        assert_eq!(selector.to_string(), "a in (x,y),b=2,!c");
        assert!(selector.matches(json!({"a": "x", "b": "2"}).as_object()));
        assert!(!selector.matches(json!({"a": "x", "b": "2", "c": ""}).as_object()));
        assert!(!LabelSelector::from_object(&Value::Null).expect("null").matches(None));
        assert!(LabelSelector::from_object(&json!({})).expect("empty").matches(None));
    }

    #[test]
    fn field_selectors_know_the_fields_of_their_kind() {
        let kinds = Kinds::builtin();
        let pods = kinds.by_resource("", "v1", "pods").expect("pods");
        let selector =
            FieldSelector::parse(pods, "spec.nodeName=n1,status.phase!=Failed,metadata.name=a").expect("good");
        assert!(selector.matches(&json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}})));
        assert!(
            !selector.matches(
                &json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Failed"}})
            )
        );
        assert_eq!(selector.required("metadata.name"), Some("a"));
        let error = FieldSelector::parse(pods, "spec.nope=x").expect_err("unknown");
        assert_eq!((error.code, error.message.as_str()), (400, "field label not supported: spec.nope"));
        let nodes = kinds.by_resource("", "v1", "nodes").expect("nodes");
        assert!(FieldSelector::parse(nodes, "spec.unschedulable=false").expect("good").matches(&json!({})));
    }

    proptest! {
        #[test]
        fn selectors_never_panic_and_print_what_they_parse(text in "[a-c!=(),<> inot1]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let printed = selector.to_string();
                let again = LabelSelector::parse(&printed);
                prop_assert!(again.is_ok(), "{} -> {}", text, printed);
            }
        }
    }
}
