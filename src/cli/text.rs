//! Values as people read them, worded as kubectl words them: ages, times, label maps, JSON and YAML.
//!
//! Pure: the time is handed in.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::CliError;

/// What kubectl prints for what is not set.
pub const NONE: &str = "<none>";
/// What kubectl prints for what is not known.
pub const UNKNOWN: &str = "<unknown>";

/// A span as kubectl prints ages: at most two units, the second only while the first is small
/// (k8s.io/apimachinery/pkg/util/duration, `HumanDuration`).
pub fn human_duration(seconds: i64) -> String {
    let s = seconds;
    if s < -1 {
        return "<invalid>".into();
    }
    let s = s.max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => two(m, "m", s % 60, "s"),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => two(h, "h", m % 60, "m"),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => two(d, "d", h % 24, "h"),
        691_200..63_072_000 => format!("{d}d"),
        63_072_000..252_288_000 => two(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

/// The age of an RFC 3339 time.
pub fn age(time: &Value, now: Timestamp) -> String {
    match parse_time(time) {
        Some(t) => human_duration(now.as_second() - t.as_second()),
        None => UNKNOWN.into(),
    }
}

/// An RFC 3339 time.
pub fn parse_time(time: &Value) -> Option<Timestamp> {
    time.as_str()?.parse().ok()
}

/// A time as `describe` prints it (RFC 1123 with a numeric zone), in UTC.
pub fn long_time(time: &Value) -> String {
    match parse_time(time) {
        Some(t) => jiff::tz::TimeZone::UTC.to_datetime(t).strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
        None => "<unset>".into(),
    }
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(map: &Value) -> String {
    let pairs = pairs(map, "=");
    if pairs.is_empty() { NONE.into() } else { pairs.join(",") }
}

/// Each entry of a map of texts, sorted.
pub fn pairs(map: &Value, between: &str) -> Vec<String> {
    let Some(map) = map.as_object() else { return Vec::new() };
    let mut pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}{between}{}", scalar(v))).collect();
    pairs.sort();
    pairs
}

/// A scalar without quotes; anything else as JSON.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::Null => NONE.into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A text field, or `""`.
pub fn str_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number field, or 0.
pub fn int_at(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The elements of a list field; none if it is not there.
pub fn list_at<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    str_at(object, "/metadata/name")
}

/// The namespace of an object, or `""`.
pub fn namespace(object: &Value) -> &str {
    str_at(object, "/metadata/namespace")
}

/// Drops what only field managers read, as kubectl does.
pub fn without_managed_fields(mut object: Value) -> Value {
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        for item in items {
            *item = without_managed_fields(item.take());
        }
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// As JSON with four spaces and sorted keys, as kubectl prints it, with a line feed.
pub fn json(value: &Value) -> Result<String, CliError> {
    use serde::Serialize;
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    sorted(value).serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    out.push(b'\n');
    String::from_utf8(out).map_err(CliError::new)
}

/// As YAML with sorted keys, as kubectl prints it.
pub fn yaml(value: &Value) -> Result<String, CliError> {
    let mut options = serde_saphyr::SerializerOptions::default();
    options.compact_list_indent = true;
    options.prefer_block_scalars = true;
    options.folded_wrap_chars = usize::MAX;
    options.min_fold_chars = usize::MAX;
    let mut text = serde_saphyr::to_string_with_options(&sorted(value), options).map_err(CliError::new)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// `%XX` for what a path or a query may not hold as it is.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A query string with its question mark; empty values are left out.
pub fn query(parameters: &[(&str, &str)]) -> String {
    let set: Vec<String> =
        parameters.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}={}", escape(v))).collect();
    if set.is_empty() { String::new() } else { format!("?{}", set.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ages_are_worded_as_kubectl_words_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn times_are_worded_as_describe_words_them() {
        assert_eq!(long_time(&json!("2026-11-23T02:48:39Z")), "Mon, 23 Nov 2026 02:48:39 +0000");
        assert_eq!(long_time(&Value::Null), "<unset>");
    }

    #[test]
    fn json_has_four_spaces_and_sorted_keys() {
        let text = json(&json!({"b": [1], "a": {}})).expect("json");
        assert_eq!(text, "{\n    \"a\": {},\n    \"b\": [\n        1\n    ]\n}\n");
    }

    #[test]
    fn yaml_looks_like_kubectls_and_reads_back_as_the_same_value() {
        let value = json!({
            "kind": "ConfigMap",
            "data": {"port": "1", "t": "true", "lines": "a\nb\n", "empty": "", "long": "word ".repeat(60)},
            "items": [{"name": "x", "ports": [1, 2]}], "none": {}, "no": null, "date": "2026-11-23T02:48:39Z",
        });
        let text = yaml(&value).expect("yaml");
        assert!(text.contains("\nitems:\n- name: x\n  ports:\n  - 1\n  - 2\n"), "{text}");
        assert!(text.contains("  port: \"1\"\n"), "{text}");
        assert!(text.contains("lines: |\n    a\n    b\n"), "{text}");
        let back: Value = serde_saphyr::from_str(&text).expect("reads back");
        assert_eq!(back, value);
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(query(&[("a", ""), ("l", "x=y,z"), ("w", "1")]), "?l=x%3Dy%2Cz&w=1");
        assert_eq!(query(&[("a", "")]), "");
    }
}
