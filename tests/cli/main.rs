//! The verbs as a user types them: the real binary against a server with a real store, without machines.

#[allow(dead_code, reason = "shared with the gateway's tests, which need more of it")]
#[path = "../gateway/fixture.rs"]
mod fixture;
mod verbs;
