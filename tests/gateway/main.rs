//! The gateway as clients see it: over TLS, against a real store.

mod fixture;
mod http;
mod kubectl;
