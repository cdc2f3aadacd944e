//! The README names the tests that hold what it says: each of them exists, and so does each file. Must not judge what they test.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// So many words joined make a name that only a function has; options have fewer.
const WORDS_MIN: usize = 4;

struct Source {
    /// `refs` for `tests/refs.rs`, `contract` and `promises` for `tests/contract/promises.rs`.
    modules: Vec<String>,
    text: String,
}

impl Source {
    fn has(&self, name: &str) -> bool {
        self.text.contains(&format!("fn {name}(")) || self.text.contains(&format!("mod {name} {{"))
    }

    /// Tests that lie in a file of their own beside it.
    fn has_beside(&self, module: &str, name: &str) -> bool {
        self.modules == [module] && self.text.contains(&format!("mod {name};"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let (mut folders, mut found): (Vec<PathBuf>, _) = (vec![root().join("src"), root().join("tests")], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("is there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(root()).expect("below it").with_extension("");
                let modules = below.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
                found.push(Source { modules, text: fs::read_to_string(&path).expect("readable") });
            }
        }
    }
    found
}

/// What stands in backticks, outside of blocks of code.
fn quoted(readme: &str) -> Vec<&str> {
    let prose = readme.split("```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Whether this names a test or a file; `None` for whatever else there is to quote.
fn exists(quote: &str, sources: &[Source]) -> Option<bool> {
    let is_file = [".rs", ".md"].iter().any(|end| quote.ends_with(end));
    if is_file {
        let module = quote.strip_suffix(".rs");
        let is_source = sources.iter().any(|source| source.modules.last().map(String::as_str) == module);
        return Some(is_source || root().join(quote).is_file());
    }
    match quote.split_once("::") {
        Some((module, name)) if is_name(module) && is_name(name) => Some(sources.iter().any(|source| {
            source.has_beside(module, name) || (source.modules.iter().any(|part| part == module) && source.has(name))
        })),
        None if is_name(quote) && quote.split('_').count() >= WORDS_MIN => {
            Some(sources.iter().any(|source| source.has(quote)))
        }
        _ => None,
    }
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let readme = fs::read_to_string(root().join("README.md")).expect("is there");
    let sources = sources();
    let named: Vec<(&str, bool)> =
        quoted(&readme).into_iter().filter_map(|quote| Some((quote, exists(quote, &sources)?))).collect();
    let missing: Vec<&str> = named.iter().filter(|(_, exists)| !exists).map(|(quote, _)| *quote).collect();
    assert!(missing.is_empty(), "named in the README, and nowhere to be found: {missing:#?}");
    assert!(named.len() > 90, "only {} names were found in it", named.len());
}

#[test]
fn a_name_of_nothing_is_found_out() {
    let sources = sources();
    for nothing in ["a_test_that_nobody_wrote", "refs::a_test_that_nobody_wrote", "peers::tests", "nothing.rs"] {
        assert_eq!(exists(nothing, &sources), Some(false), "{nothing}");
    }
    for other in ["set_identity", "connect_timeout_ms", "handshakes_per_address", "LossReason::Revoked", "sim/"] {
        assert_eq!(exists(other, &sources), None, "{other}");
    }
}
