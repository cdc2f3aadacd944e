//! Generates `src/api/schema/table.txt`: every type of Kubernetes' stable API groups, with its fields.
//!
//! Run in this folder: `cargo run > ../../src/api/schema/table.txt`. It reads the sources of two crates of the registry
//! (found through `cargo metadata`), and `overlay.txt`, which holds what neither of them says.
#![forbid(unsafe_code)]

mod openapi;
mod protobuf;
mod table;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// The version of Kubernetes whose types are read.
const KUBERNETES: &str = "v1_36";

fn main() -> ExitCode {
    match generate() {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("schema: {error}");
            ExitCode::FAILURE
        }
    }
}

fn generate() -> Result<String, String> {
    let types = openapi::read(&source_of("k8s-openapi")?.join("src").join(KUBERNETES))?;
    let messages = protobuf::read(&source_of("k8s-pb")?.join("src"))?;
    table::write(&types, &messages, include_str!("../overlay.txt"))
}

/// The folder of a dependency's source.
fn source_of(package: &str) -> Result<PathBuf, String> {
    let output = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == package)
        .and_then(|p| p["manifest_path"].as_str())
        .and_then(|path| PathBuf::from(path).parent().map(PathBuf::from))
        .ok_or(format!("cargo metadata does not know {package}"))
}
