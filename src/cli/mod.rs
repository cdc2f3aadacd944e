//! The commands: what a person types, and what a script reads.
//!
//! A command is one file with an argument struct and `run(args, &Global) -> Result<(), CliError>`, and one line in
//! [`Command`] and in `dispatch`. Nothing here decides anything about a cluster: the verbs talk to the API server as any
//! client does, the commands that run a cluster call `cluster`. Must never panic on what a user, a file or a server
//! says. Called by `main`; a failure becomes one line on standard error ([`error::report`]).

pub mod agent;
pub mod api_resources;
pub mod apply;
pub mod bench;
pub mod chaos;
pub mod client;
pub mod columns;
pub mod cordon;
pub mod create;
pub mod delete;
pub mod demo;
pub mod demo_server;
pub mod describe;
pub mod discovery;
pub mod down;
pub mod error;
pub mod events;
pub mod failover;
pub mod get;
pub mod global;
#[cfg(target_os = "linux")]
pub mod image;
pub mod kubeconfig;
pub mod label;
pub mod logs;
pub mod manifest;
pub mod progress;
pub mod rollout;
pub mod scale;
pub mod server;
pub mod status;
pub mod text;
pub mod token;
pub mod tree;
pub mod up;
pub mod version;

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
    disable_help_subcommand = false,
    max_term_width = 110,
    after_help = "Examples:
  phalanx demo                           see a cluster of five nodes heal itself, in a minute
  phalanx up --nodes 5 --servers 3       a cluster on this machine; Ctrl-C stops it
  phalanx apply -f web.yaml              create or change what a manifest says
  phalanx get pods -o wide -w            what runs where, as it changes
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
    /// Shows a cluster that heals itself: starts five nodes, kills one, kills the leader, measures
    Demo(demo::DemoArgs),
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
    /// Keeps images on this machine: loads, shows, removes them
    #[cfg(target_os = "linux")]
    Image(image::ImageArgs),

    /// Lists objects, or one
    Get(get::GetArgs),
    /// Tells all about objects, with their events
    Describe(describe::DescribeArgs),
    /// Creates what a manifest says, or changes what is there to match it
    Apply(apply::ApplyArgs),
    /// Creates what a manifest says; fails where it exists
    Create(create::CreateArgs),
    /// Deletes objects and waits until they are gone
    Delete(delete::DeleteArgs),
    /// Sets how many replicas a workload has
    Scale(scale::ScaleArgs),
    /// Shows and steers the rollout of a Deployment
    Rollout(rollout::RolloutArgs),
    /// Prints what containers say
    Logs(logs::LogsArgs),
    /// Lists events, newest last
    Events(events::EventsArgs),
    /// Sets and removes labels
    Label(label::LabelArgs),
    /// Sets and removes annotations
    Annotate(label::AnnotateArgs),
    /// Keeps new pods away from nodes
    Cordon(cordon::CordonArgs),
    /// Lets new pods onto nodes again
    Uncordon(cordon::CordonArgs),
    /// Lists the kinds of objects that the server serves
    ApiResources(api_resources::ApiResourcesArgs),
    /// Prints the versions of this program and of the server
    Version(version::VersionArgs),

    /// Measures how fast a cluster recovers
    Bench(bench::BenchArgs),
    /// Prints the completion script of a shell
    #[command(after_help = "Examples:
  phalanx completions bash > ~/.local/share/bash-completion/completions/phalanx
  phalanx completions zsh > ~/.zfunc/_phalanx
  phalanx completions fish > ~/.config/fish/completions/phalanx.fish")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Serves HTTP: the small service of the demo
    DemoServer(demo_server::DemoServerArgs),
}

/// What a command needs around it.
enum Setting {
    /// Threads for many things at once; logs at `info`.
    Member,
    /// Threads; quiet unless asked.
    Client,
    /// As small as can be.
    Small,
}

impl Command {
    fn setting(&self) -> Setting {
        match self {
            Self::Server(_) | Self::Agent(_) => Setting::Member,
            Self::DemoServer(_) => Setting::Small,
            _ => Setting::Client,
        }
    }
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
    let setting = cli.command.setting();
    trace(&setting, cli.global.verbose);
    // Fails when a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = match setting {
        Setting::Small => tokio::runtime::Builder::new_current_thread(),
        Setting::Member | Setting::Client => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.enable_all().build() {
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
        Command::Demo(args) => demo::run(args, global).await,
        Command::Up(args) => up::run(args, global).await,
        Command::Down(args) => down::run(args, global).await,
        Command::Status(args) => status::run(args, global).await,
        Command::Tree(args) => tree::run(args, global).await,
        Command::Chaos(args) => chaos::run(args, global).await,
        Command::Kubeconfig(args) => kubeconfig::run(args, global).await,
        Command::Token(args) => token::run(args, global).await,
        Command::Server(args) => server::run(args, global).await,
        Command::Agent(args) => agent::run(args, global).await,
        #[cfg(target_os = "linux")]
        Command::Image(args) => image::run(args, global).await,
        Command::Get(args) => get::run(args, global).await,
        Command::Describe(args) => describe::run(args, global).await,
        Command::Apply(args) => apply::run(args, global).await,
        Command::Create(args) => create::run(args, global).await,
        Command::Delete(args) => delete::run(args, global).await,
        Command::Scale(args) => scale::run(args, global).await,
        Command::Rollout(args) => rollout::run(args, global).await,
        Command::Logs(args) => logs::run(args, global).await,
        Command::Events(args) => events::run(args, global).await,
        Command::Label(args) => label::run_label(args, global).await,
        Command::Annotate(args) => label::run_annotate(args, global).await,
        Command::Cordon(args) => cordon::run(args, true, global).await,
        Command::Uncordon(args) => cordon::run(args, false, global).await,
        Command::ApiResources(args) => api_resources::run(args, global).await,
        Command::Version(args) => version::run(args, global).await,
        Command::Bench(args) => bench::run(args, global).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "phalanx", &mut script);
            error::print(&String::from_utf8_lossy(&script))
        }
        Command::DemoServer(args) => demo_server::run(args).await,
    }
}

/// Logs go to standard error. `PHALANX_LOG` decides (the syntax of `tracing_subscriber::EnvFilter`), else the command
/// and `-v`. A filter that cannot be read is said so and ignored.
fn trace(setting: &Setting, verbose: u8) {
    let usual = match (setting, verbose) {
        (Setting::Member, 0) => "info,openraft=error",
        (Setting::Member, 1) => "info,openraft=warn,phalanx=debug,phalanx_actors=debug,phalanx_transport=debug",
        (Setting::Client | Setting::Small, 0) => "off",
        (Setting::Client | Setting::Small, 1) => "warn,phalanx=info",
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
        let before = Cli::try_parse_from(["phalanx", "-n", "a", "-o", "json", "get", "pods"]).expect("parsed");
        let after = Cli::try_parse_from(["phalanx", "get", "pods", "-n", "a", "-o", "json"]).expect("parsed");
        for cli in [before, after] {
            assert_eq!(cli.global.namespace.as_deref(), Some("a"));
            assert!(cli.global.json());
        }
    }

    #[test]
    fn a_command_line_that_cannot_be_understood_exits_with_2_and_help_with_0() {
        for (line, code) in [
            (&["phalanx", "frobnicate"][..], 2),
            (&["phalanx", "scale", "deploy/web"][..], 2),
            (&["phalanx", "get", "--help"][..], 0),
            (&["phalanx", "--version"][..], 0),
        ] {
            assert_eq!(Cli::try_parse_from(line).expect_err("no command").exit_code(), code, "{line:?}");
        }
    }
}
