//! Supervision trees for Rust, with the semantics of Erlang/OTP.
//!
//! An [`Actor`] owns its state and handles one message at a time. A supervisor starts its children in order, restarts those that end as
//! their [`Restart`] type says, stops them in reverse order, and gives up when they crash too often, which is its own exit and its
//! parent's to deal with. A panic anywhere in an actor is an exit like any other.
//!
//! ```
//! use phalanx_actors::*;
//!
//! struct Counter(u64);
//! impl Actor for Counter {}
//! struct Add(u64);
//! impl Message for Add {
//!     type Reply = u64;
//! }
//! impl Handler<Add> for Counter {
//!     fn handle(&mut self, add: Add, _: &mut Ctx<Self>) -> Reply<u64> {
//!         self.0 = self.0.checked_add(add.0).expect("a panic is an exit, and the supervisor restarts the actor");
//!         self.0.into()
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let system = System::builder("node").build()?;
//! let spec = SupervisorSpec::new("top", Strategy::OneForOne).child(ChildSpec::actor("counter", || Counter(40)));
//! system.start(spec).await?;
//! let counter = system.named::<Counter>("top/counter");
//! assert_eq!(counter.ask(Add(2)).await?, 42);
//! assert!(counter.ask(Add(u64::MAX)).await.is_err());
//! system.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! # Map
//! `core` decides (pure, no runtime), [`SupervisorRef`]'s driver and the actor's shell carry out, [`System`] holds the threads and the
//! registry, [`ActorInfo`] and [`TreeEvent`] are what an observer sees. actix runs the mailboxes and is nowhere in the API.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod actor;
mod arbiter;
mod core;
mod ctx;
mod error;
mod exit;
mod inspect;
mod mailbox;
mod panic;
mod pid;
mod refs;
mod registry;
mod shell;
mod spec;
mod supervisor;
mod system;

pub mod docs;

pub use actor::{Actor, Down, Handler, Later, Message, Replier, Reply};
pub use ctx::{Ctx, TaskRef, TimerRef};
pub use error::{AskError, BuildError, ChildError, SendError, StartError};
pub use exit::Exit;
pub use inspect::{ActorInfo, ArbiterInfo, Kind, State, TREE_EVENTS, TreeEvent};
pub use pid::{MonitorRef, Pid};
pub use refs::{Named, Ref};
pub use spec::{
    AutoShutdown, Backoff, ChildSpec, MAILBOX_MAX_MESSAGES, MAILBOX_MESSAGES, Overflow, Placement, RESTART_INTENSITY,
    RESTART_PERIOD_MS, Restart, Shutdown, Strategy, SupervisorSpec, WORKER_SHUTDOWN_MS,
};
pub use supervisor::{ChildCount, ChildInfo, SupervisorRef};
pub use system::{System, SystemBuilder};
