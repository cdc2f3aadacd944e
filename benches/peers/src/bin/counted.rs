//! A contestant of the local figures, with an allocator that counts what is asked of it.

#![forbid(unsafe_code)]

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    phalanx_benches::contestant::main(std::env::args().skip(1).collect());
}
