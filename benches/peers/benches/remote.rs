//! `cargo bench -p phalanx-benches --features peers --bench remote`, with `-- --smoke` to try it out; words choose operations by name.

fn main() {
    phalanx_benches::main(phalanx_benches::remote::run);
}
