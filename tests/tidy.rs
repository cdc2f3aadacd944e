//! The rules of the house that a machine can check, over all sources of the repository: length, headers, layers, hidden dependencies, unsafe
//! code, unfinished code, paths of someone's machine in documents.
//!
//! Must never depend on anything: it is read by whoever breaks a rule. Each rule is tried on a planted violation, too. What a layer may
//! use is read from the map in `ARCHITECTURE.md`; there is no second list.

use std::path::{Path, PathBuf};

/// Longest source file in lines, unless its first lines say why it is longer.
const LINES_MAX: usize = 800;
/// Where a long file says why, in lines from its start.
const EXCUSE_LINES: usize = 10;
/// How a long file says why.
const EXCUSE: &str = "//! Long because";
/// What only some folders may name, and which files those are by the start of their paths.
const HIDDEN: [(&str, &[&str]); 2] =
    [("actix", &["actors/", "benches/actors", "benches/peers/"]), ("openraft", &["src/store/"])];
/// What no code may contain.
const FORBIDDEN: [&str; 4] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"];
/// What no document may contain: the reader has another machine.
const MACHINE_PATHS: [&str; 2] = ["/tmp/", "/root/"];

/// A file of the repository, by its path from the root with `/` between the parts.
struct Source {
    path: String,
    text: String,
}

#[test]
fn the_repository_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    walk(root, root, &mut sources);
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "no sources found under {}", root.display());
    let violations = check(&sources);
    assert!(violations.is_empty(), "{} violations\n{}", violations.len(), violations.join("\n"));
}

fn walk(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a readable folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // What git or cargo made, or someone's editor.
        if name.starts_with('.') || name.starts_with("target") || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, sources);
        } else if name.ends_with(".rs") || name.ends_with(".md") {
            let relative = path.strip_prefix(root).expect("invariant: found below the root");
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            let text = std::fs::read_to_string(&path).expect("a readable file of UTF-8");
            sources.push(Source { path: parts.join("/"), text });
        }
    }
}

// ---- the rules ---------------------------------------------------------------------------------------------------------------

/// One line for each violation: `file:line: what is wrong`.
fn check(sources: &[Source]) -> Vec<String> {
    let layers = layers(sources);
    let mut found = Vec::new();
    for source in sources {
        if source.path.ends_with(".md") {
            documents(source, &mut found);
            continue;
        }
        let code = code(&source.text);
        length(source, &mut found);
        header(source, &mut found);
        words(source, &code, &mut found);
        unsafe_code(source, &code, &mut found);
        layering(source, &without_tests(&code), &layers, &mut found);
    }
    found
}

fn report(found: &mut Vec<String>, path: &str, line: usize, what: impl std::fmt::Display) {
    found.push(format!("{path}:{line}: {what}"));
}

fn documents(source: &Source, found: &mut Vec<String>) {
    for (n, line) in source.text.lines().enumerate() {
        for path in MACHINE_PATHS.iter().filter(|path| line.contains(**path)) {
            report(found, &source.path, n + 1, format_args!("`{path}` is a path of someone's machine"));
        }
    }
}

fn length(source: &Source, found: &mut Vec<String>) {
    let lines = source.text.lines().count();
    let excused = source.text.lines().take(EXCUSE_LINES).any(|line| line.starts_with(EXCUSE));
    if lines > LINES_MAX && !excused {
        let what =
            format!("{lines} lines, more than {LINES_MAX}: split it, or begin a line of its header with `{EXCUSE}`");
        report(found, &source.path, lines, what);
    }
}

fn header(source: &Source, found: &mut Vec<String>) {
    let module = ["src/", "actors/src/", "transport/src/"].iter().any(|folder| source.path.starts_with(folder));
    let test =
        source.path.ends_with("_test.rs") || source.path.ends_with("/tests.rs") || source.path.contains("/tests/");
    if module && !test && !source.text.starts_with("//!") {
        report(found, &source.path, 1, "no `//!` header: say what it is, what it must never do, who calls it");
    }
}

fn words(source: &Source, code: &str, found: &mut Vec<String>) {
    for (n, line) in code.lines().enumerate() {
        for word in FORBIDDEN.iter().filter(|word| line.contains(**word)) {
            report(found, &source.path, n + 1, format_args!("`{word}` marks what is not finished"));
        }
        for (name, homes) in HIDDEN {
            if idents(line).any(|(_, ident)| ident == name) && !homes.iter().any(|home| source.path.starts_with(home)) {
                report(found, &source.path, n + 1, format_args!("`{name}` is named outside {}", homes.join(", ")));
            }
        }
    }
}

fn unsafe_code(source: &Source, code: &str, found: &mut Vec<String>) {
    let root = ["src/lib.rs", "src/main.rs"]
        .iter()
        .any(|root| source.path.strip_suffix(root).is_some_and(|folder| folder.is_empty() || folder.ends_with('/')));
    if root && !code.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
        report(found, &source.path, 1, "a crate's root without `#![forbid(unsafe_code)]`");
    }
}

fn layering(source: &Source, code: &str, layers: &[String], found: &mut Vec<String>) {
    // The roots assemble all layers.
    let Some((own, _)) = source.path.strip_prefix("src/").and_then(|path| path.split_once('/')) else { return };
    let place = |module: &str| layers.iter().position(|layer| layer == module);
    let Some(own_place) = place(own) else {
        return report(found, &source.path, 1, format_args!("`src/{own}/` is not in the map of ARCHITECTURE.md"));
    };
    for (line, module) in uses(code) {
        if place(&module).is_some_and(|place| place > own_place) {
            let what = format!("`{own}` uses `{module}`, which lies below it in the map of ARCHITECTURE.md");
            report(found, &source.path, line, what);
        }
    }
}

/// The folders of `src/` from the top layer to the lowest, as the table in `ARCHITECTURE.md` lists them.
fn layers(sources: &[Source]) -> Vec<String> {
    let map = sources.iter().find(|source| source.path == "ARCHITECTURE.md").map_or("", |source| &source.text);
    map.lines()
        .filter_map(|line| Some(line.strip_prefix("| `src/")?.split_once("/`")?.0.to_owned()))
        .filter(|folder| !folder.contains('/'))
        .collect()
}

// ---- reading Rust as far as the rules need -------------------------------------------------------------------------------------

/// The modules of this crate that `code` names as `crate::module` or within `crate::{..}`, with their lines.
fn uses(code: &str) -> Vec<(usize, String)> {
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate` is another matter, and so is a name that merely ends so.
        if code[..at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric()) {
            continue;
        }
        let rest = at + "crate::".len();
        if !code[rest..].starts_with('{') {
            found.extend(
                idents(&code[rest..]).next().filter(|(i, _)| *i == 0).map(|(_, name)| (line_of(at), name.to_owned())),
            );
            continue;
        }
        // In a group: what stands first in it or after a comma, not deeper in.
        let (mut depth, mut first) = (0, false);
        for (i, c) in code[rest..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if c == ',' || c == '{' {
                first = depth == 1;
            } else if first && !c.is_whitespace() {
                first = false;
                let name = idents(&code[rest + i..]).next().filter(|(at, _)| *at == 0);
                found.extend(name.map(|(_, name)| (line_of(rest + i), name.to_owned())));
            }
        }
    }
    found
}

/// Names and keywords, each with where it begins.
fn idents(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter_map(move |word| {
        // Every separator within code is one byte, or the name after it is of no interest.
        let begin = at;
        at = begin + word.len() + text[begin + word.len()..].chars().next().map_or(0, char::len_utf8);
        (!word.is_empty()).then_some((begin, word))
    })
}

/// `code` without its modules of tests, which may use any layer. Lines stay where they are.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some((begin, end)) = test_module(&out) {
        let blank: String = out[begin..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(begin..end, &blank);
    }
    out
}

fn test_module(code: &str) -> Option<(usize, usize)> {
    for (begin, attribute) in code.match_indices("#[cfg(test)]") {
        let rest = code[begin + attribute.len()..].trim_start();
        let Some(open) = rest.find(['{', ';']).filter(|at| rest.starts_with("mod ") && rest[*at..].starts_with('{'))
        else {
            continue;
        };
        let open = code.len() - rest.len() + open;
        let mut depth = 0;
        for (i, c) in code[open..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some((begin, open + i + 1));
            }
        }
        return Some((begin, code.len()));
    }
    None
}

/// `text` with blanks for comments and for what stands within quotes. Lines stay where they are.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let before = out.chars().next_back();
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if c == '"' {
            quoted(rest)
        } else if c == 'r' && before.is_none_or(|c| c != '_' && (c == 'b' || !c.is_alphanumeric())) {
            raw_string(rest)
        } else if c == '\'' {
            character(rest)
        } else {
            0
        };
        if length == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a raw string; 0 when there is none.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[2 + hashes..].find(&end).map_or(text.len(), |at| 2 + hashes + at + end.len())
}

/// The length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => text[3..].find('\'').map_or(0, |at| at + 4),
        (Some(_), Some((i, '\''))) => i + 1,
        _ => 0,
    }
}

// ---- the rules find what they are for --------------------------------------------------------------------------------------------

/// What is found when `path` holds `text`, in a repository with a map of two layers.
fn planted(path: &str, text: &str) -> Vec<String> {
    let map = "| folder | is |\n|---|---|\n| `actors/` | x |\n| `src/api/` | x |\n| `src/store/` | x |\n";
    check(&[
        Source { path: "ARCHITECTURE.md".into(), text: map.into() },
        Source { path: path.into(), text: text.into() },
    ])
}

#[track_caller]
fn finds(path: &str, text: &str, line: usize, what: &str) {
    let found = planted(path, text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(&format!("{path}:{line}: ")) && found[0].contains(what), "{found:?}");
}

#[track_caller]
fn passes(path: &str, text: &str) {
    assert_eq!(planted(path, text), Vec::<String>::new());
}

#[test]
fn a_long_file_without_an_excuse_is_found() {
    let long = |header: &str| format!("{header}\n{}", "fn f() {}\n".repeat(LINES_MAX));
    finds("src/api/x.rs", &long("//! X."), LINES_MAX + 1, "801 lines");
    finds("tests/x.rs", &long("//! X."), LINES_MAX + 1, "801 lines");
    passes("src/api/x.rs", &long("//! Long because it is a table."));
    passes("src/api/x.rs", &format!("//! X.\n{}", "fn f() {}\n".repeat(LINES_MAX - 1)));
}

#[test]
fn a_module_without_a_header_is_found() {
    finds("src/api/x.rs", "use std::fmt;\n", 1, "header");
    finds("actors/src/core/x.rs", "// A comment is none.\n", 1, "header");
    passes("src/api/x_test.rs", "use std::fmt;\n");
    passes("transport/tests/x.rs", "use std::fmt;\n");
}

#[test]
fn a_layer_that_uses_one_below_it_is_found() {
    finds("src/api/x.rs", "//! X.\nuse crate::store::Store;\n", 2, "`api` uses `store`");
    finds("src/api/x.rs", "//! X.\nfn f() {\n    crate::store::f()\n}\n", 3, "`api` uses `store`");
    finds(
        "src/api/x.rs",
        "//! X.\nuse crate::{\n    api::{store, y},\n    store::Store,\n};\n",
        4,
        "`api` uses `store`",
    );
    finds("src/other/x.rs", "//! X.\n", 1, "not in the map");
    passes("src/store/x.rs", "//! X.\nuse crate::api::Kind;\nuse crate::store::Store;\n");
    passes("src/api/x.rs", "//! X. See [`crate::store`].\n/* crate::store */\nconst X: &str = \"crate::store\";\n");
    passes(
        "src/api/x.rs",
        "//! X.\nfn f<'a>(_: &'a str) -> char {\n    '\"'\n}\n#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}\n",
    );
    finds("src/api/x.rs", "//! X.\n#[cfg(test)]\nmod tests {}\nuse crate::store::Store;\n", 4, "`api` uses `store`");
    finds("src/api/x.rs", "//! X.\n#[cfg(test)]\nmod x_test;\nuse crate::store::Store;\n", 4, "`api` uses `store`");
}

#[test]
fn a_hidden_dependency_that_shows_is_found() {
    finds("src/api/x.rs", "//! X.\nuse actix::Addr;\n", 2, "`actix` is named outside");
    finds("transport/src/x.rs", "//! X.\nfn f(_: openraft::Raft) {}\n", 2, "`openraft` is named outside");
    passes("actors/src/x.rs", "//! X.\nuse actix::Addr;\n");
    passes("src/store/x.rs", "//! X.\nuse openraft::Raft;\n");
    passes("src/api/x.rs", "//! X, not actix.\nconst FILTER: &str = r#\"openraft=\"warn\"\"#;\n");
}

#[test]
fn a_crate_that_allows_unsafe_code_is_found() {
    finds("tools/x/src/main.rs", "//! X.\nfn main() {}\n", 1, "forbid(unsafe_code)");
    finds("src/lib.rs", "//! X.\n// #![forbid(unsafe_code)]\n", 1, "forbid(unsafe_code)");
    passes("actors/src/lib.rs", "//! X.\n#![forbid(unsafe_code)]\n");
}

#[test]
fn what_is_not_finished_is_found() {
    for word in FORBIDDEN {
        finds("src/api/x.rs", &format!("//! X.\nfn f() {{ {word}) }}\n"), 2, word);
        passes("src/api/x.rs", &format!("//! X. No {word}.\nconst X: &str = \"\\\"{word}\"; // {word}\n"));
    }
}

#[test]
fn a_path_of_a_machine_in_a_document_is_found() {
    finds("docs/x.md", "# X\nSee `/tmp/x`.\n", 2, "/tmp/");
    passes("docs/x.md", "# X\nSee `~/.kube/config`.\n");
}
