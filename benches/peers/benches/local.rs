//! `cargo bench -p phalanx-benches --features peers --bench local`, with `-- --smoke` to try it out; words choose operations by name.

use std::path::Path;

fn main() {
    phalanx_benches::main(|own| phalanx_benches::local::run(own, Path::new(env!("CARGO_BIN_EXE_counted"))));
}
