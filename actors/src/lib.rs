//! Supervision trees for Rust, with the semantics of Erlang/OTP.
#![forbid(unsafe_code)]
