//! `phalanx version`: of this program and of the server.

use clap::Args;
use serde_json::json;

use super::client::ApiClient;
use super::error::{complain, print};
use super::progress::Progress;
use super::text;
use super::{CliError, Global, Output};

/// Prints the versions of this program and of the server.
#[derive(Args, Clone, Debug)]
pub struct VersionArgs {
    /// Only that of this program; needs no server
    #[arg(long)]
    pub client: bool,
}

/// Runs the command.
pub async fn run(args: VersionArgs, global: &Global) -> Result<(), CliError> {
    let own = env!("CARGO_PKG_VERSION");
    let server = if args.client {
        None
    } else {
        let _progress = Progress::start("Asking the server");
        let ask = async { ApiClient::connect(global).await?.get("/version").await };
        Some(ask.await)
    };
    let mut document = json!({"clientVersion": {"version": own}});
    let mut lines = format!("Phalanx: v{own}\n");
    let mut failed = None;
    match server {
        None => {}
        Some(Ok(version)) => {
            lines.push_str(&format!("Server (Kubernetes API): {}\n", text::str_at(&version, "/gitVersion")));
            document["serverVersion"] = version;
        }
        Some(Err(error)) => failed = Some(error),
    }
    print(&match global.output() {
        Output::Json => text::json(&document)?,
        Output::Yaml => text::yaml(&document)?,
        _ => lines,
    })?;
    match failed {
        None => Ok(()),
        Some(error) => {
            complain(&error);
            Err(CliError::Reported)
        }
    }
}
