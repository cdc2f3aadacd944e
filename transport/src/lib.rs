//! Actor messages between machines over QUIC.
#![forbid(unsafe_code)]
