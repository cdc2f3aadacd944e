//! The one binary: every role and command is a subcommand of it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    phalanx::cli::main()
}
