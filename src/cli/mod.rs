//! The commands: what a person types, and what a script reads.
//!
//! A command is one file with an argument struct and `run(args, &Global) -> Result<(), CliError>`, and one line in
//! [`Command`] and in `dispatch`. Nothing here decides anything about a cluster. Must never panic on what a user, a file or
//! a server says. Called by `main`; a failure becomes one line on standard error ([`error::report`]).

pub mod agent;
pub mod chaos;
pub mod down;
pub mod error;
pub mod global;
pub mod kubeconfig;
pub mod server;
pub mod status;
pub mod token;
pub mod tree;
pub mod up;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use error::CliError;
pub use global::{Global, Output};

/// Kubernetes on the outside, Erlang/OTP on the inside, one binary.
#[derive(Parser, Debug)]
#[command(
    name = "phalanx",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "Examples:
  phalanx up --nodes 5 --servers 3       a cluster on this machine; Ctrl-C stops it
  phalanx status                         its nodes, its leader, their leases
  phalanx chaos kill n4                  what a power cut does to a node
  phalanx tree                           every actor of the cluster
  phalanx completions bash               for your shell's completion directory

Exit code: 0 done, 1 failed, 2 the command line cannot be understood."
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Starts a whole cluster of separate processes on this machine
    Up(up::UpArgs),
    /// Stops the cluster that `up` started, with everything it runs
    Down(down::DownArgs),
    /// Shows the nodes of the cluster, its leader, and their leases
    Status(status::StatusArgs),
    /// Shows the live supervision tree of the whole cluster
    Tree(tree::TreeArgs),
    /// Does harm on purpose: kill, stop, partition, delay a node; start or heal it
    Chaos(chaos::ChaosArgs),
    /// Prints how to reach the cluster, for kubectl and other clients
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Makes tokens with which machines join the cluster
    Token(token::TokenArgs),
    /// Runs one server of a cluster in this process
    Server(server::ServerArgs),
    /// Runs one agent of a cluster in this process
    Agent(agent::AgentArgs),
    /// Prints the completion script of a shell
    #[command(after_help = "Examples:
  phalanx completions bash > ~/.local/share/bash-completion/completions/phalanx
  phalanx completions zsh > ~/.zfunc/_phalanx
  phalanx completions fish > ~/.config/fish/completions/phalanx.fish")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Parses the command line, runs the command, says what failed.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" to clap, of exit code 0. A reader who has gone away is none.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let member = matches!(cli.command, Command::Server(_) | Command::Agent(_));
    trace(member, cli.global.verbose);
    // Fails when a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return error::report(Err(CliError::new(format!("the system gives no threads or events: {error}"))));
        }
    };
    let result = runtime.block_on(dispatch(cli));
    // A read of standard input that never returns must not keep the process.
    runtime.shutdown_background();
    error::report(result)
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Up(args) => up::run(args, global).await,
        Command::Down(args) => down::run(args, global).await,
        Command::Status(args) => status::run(args, global).await,
        Command::Tree(args) => tree::run(args, global).await,
        Command::Chaos(args) => chaos::run(args, global).await,
        Command::Kubeconfig(args) => kubeconfig::run(args, global).await,
        Command::Token(args) => token::run(args, global).await,
        Command::Server(args) => server::run(args, global).await,
        Command::Agent(args) => agent::run(args, global).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "phalanx", &mut script);
            error::print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Logs go to standard error. `PHALANX_LOG` decides (the syntax of `tracing_subscriber::EnvFilter`), else the command
/// and `-v`. A filter that cannot be read is said so and ignored.
fn trace(member: bool, verbose: u8) {
    let usual = match (member, verbose) {
        (true, 0) => "info,openraft=error",
        (true, 1) => "info,openraft=warn,phalanx=debug,phalanx_actors=debug,phalanx_transport=debug",
        (false, 0) => "off",
        (false, 1) => "warn,phalanx=info",
        _ => "debug",
    };
    let filter = match std::env::var("PHALANX_LOG") {
        Ok(text) if !text.is_empty() => tracing_subscriber::EnvFilter::try_new(&text).unwrap_or_else(|why| {
            error::warn(&format!("warning: PHALANX_LOG={text} is no filter ({why}); using {usual}"));
            tracing_subscriber::EnvFilter::new(usual)
        }),
        _ => tracing_subscriber::EnvFilter::new(usual),
    };
    // Fails when an embedding program has set a subscriber already: then that one it is.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_every_command_may_stand_before_or_after_it() {
        let before = Cli::try_parse_from(["phalanx", "-o", "json", "status"]).expect("parsed");
        let after = Cli::try_parse_from(["phalanx", "status", "-o", "json"]).expect("parsed");
        for cli in [before, after] {
            assert!(cli.global.json());
        }
    }

    #[test]
    fn a_command_line_that_cannot_be_understood_exits_with_2_and_help_with_0() {
        for (line, code) in [
            (&["phalanx", "frobnicate"][..], 2),
            (&["phalanx", "chaos", "kill"][..], 2),
            (&["phalanx", "up", "--help"][..], 0),
            (&["phalanx", "--version"][..], 0),
        ] {
            assert_eq!(Cli::try_parse_from(line).expect_err("no command").exit_code(), code, "{line:?}");
        }
    }
}
