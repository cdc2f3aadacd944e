//! The one binary: every role and command is a subcommand of it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: a shim must not pay for, or start, anything else.
    phalanx::runtime::process::shim::run_shim_if_invoked();
    phalanx::cli::main()
}
