//! Phalanx: an actor-based container orchestrator. Kubernetes on the outside, Erlang/OTP on the inside, one binary.
//!
//! `ARCHITECTURE.md` is the map. A module uses those above it in this list, never those below.
#![forbid(unsafe_code)]

pub mod runtime;
