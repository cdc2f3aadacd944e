//! The one binary: every role and command is a subcommand of it.
#![forbid(unsafe_code)]

fn main() {}
