//! The forms of names, keys and values, with the sentences in which Kubernetes explains them.

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

const LABEL_LEN_MAX: usize = 63;
const SUBDOMAIN_LEN_MAX: usize = 253;

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|&b| is_alphanumeric(b));
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|&b| is_alphanumeric(b) || b == b'-')
}

/// A DNS-1123 label, such as a namespace's name.
///
/// # Errors
/// What is wrong, in Kubernetes' words.
pub fn dns_label(text: &str) -> Result<(), String> {
    if text.len() > LABEL_LEN_MAX {
        return Err(too_long(LABEL_LEN_MAX));
    }
    if is_label(text) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')".to_owned())
}

/// A DNS-1123 subdomain, such as most objects' name.
///
/// # Errors
/// What is wrong, in Kubernetes' words.
pub fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() > SUBDOMAIN_LEN_MAX {
        return Err(too_long(SUBDOMAIN_LEN_MAX));
    }
    if !text.is_empty() && text.split('.').all(is_label) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned())
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `name` or `prefix.example.com/name`: a label's key, a finalizer, a resource.
///
/// # Errors
/// What is wrong, in Kubernetes' words.
pub fn qualified_name(text: &str) -> Result<(), String> {
    let form = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let (prefix, name) = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => (None, name),
        [prefix, name] => (Some(prefix), name),
        _ => {
            return Err(format!(
                "a qualified name {form} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
        }
    };
    match prefix {
        Some("") => return Err("prefix part must be non-empty".to_owned()),
        Some(prefix) => dns_subdomain(prefix).map_err(|why| format!("prefix part {why}"))?,
        None => {}
    }
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    if name.len() > LABEL_LEN_MAX {
        return Err(format!("name part {}", too_long(LABEL_LEN_MAX)));
    }
    if is_name_part(name) { Ok(()) } else { Err(format!("name part {form}")) }
}

/// The key of a label.
///
/// # Errors
/// As [`qualified_name`].
pub fn label_key(text: &str) -> Result<(), String> {
    qualified_name(text)
}

/// The value of a label; it may be empty.
///
/// # Errors
/// What is wrong, in Kubernetes' words.
pub fn label_value(text: &str) -> Result<(), String> {
    if text.len() > LABEL_LEN_MAX {
        return Err(too_long(LABEL_LEN_MAX));
    }
    if text.is_empty() || is_name_part(text) {
        return Ok(());
    }
    Err("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".to_owned())
}

/// The key of a ConfigMap's or Secret's value.
pub(super) fn config_key(text: &str) -> Result<(), String> {
    if text.len() > SUBDOMAIN_LEN_MAX {
        return Err(too_long(SUBDOMAIN_LEN_MAX));
    }
    if text == "." || text == ".." {
        return Err(format!("must not be '{text}'"));
    }
    if text.starts_with("..") {
        return Err("must not start with '..'".to_owned());
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Ok(());
    }
    Err("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned())
}

/// The name of an environment variable: anything printable without `=`.
pub(super) fn env_name(text: &str) -> Result<(), String> {
    if !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Ok(());
    }
    Err("a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned())
}

/// The name of a port.
pub(super) fn port_name(text: &str) -> Result<(), String> {
    const PORT_NAME_LEN_MAX: usize = 15;
    if text.len() > PORT_NAME_LEN_MAX {
        return Err(format!("must be no more than {PORT_NAME_LEN_MAX} bytes"));
    }
    if !text.bytes().all(|b| is_alphanumeric(b) || b == b'-') || text.is_empty() {
        return Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        return Err("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("must not begin or end with a hyphen".to_owned());
    }
    Ok(())
}
