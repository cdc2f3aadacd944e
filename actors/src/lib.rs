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
//! struct Add(u64);
//! messages!(Add => u64);
//!
//! impl Actor for Counter {}
//!
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
//! To write an actor: [`Actor`], [`Handler`], [`messages!`], [`Reply`], [`Ctx`]. To run it: [`System`], [`SupervisorSpec`], [`ChildSpec`].
//! To talk to it: [`Ref`], [`Named`], [`Recipient`], [`Group`]. One in the cluster: [`Singleton`]. To test it: [`testkit`].
//!
//! `core` decides (pure, no runtime), [`SupervisorRef`]'s driver and the actor's shell carry out, [`System`] holds the threads and the
//! registry, [`ActorInfo`] and [`TreeEvent`] are what an observer sees. actix runs the mailboxes and is nowhere in the API.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod actor;
mod any;
mod arbiter;
mod core;
mod ctx;
mod error;
mod exit;
mod far;
mod groups;
mod inspect;
mod mailbox;
mod messages;
mod note;
mod observe;
mod panic;
mod pid;
mod recipient;
mod refs;
mod registry;
mod schedule;
mod shell;
mod singleton;
mod spec;
mod stand_in;
mod supervisor;
mod system;
pub mod testkit;
mod trace;
mod watchdog;

pub mod docs;

pub use actor::{Actor, Down, Handler, Later, Message, MessageTo, Replier, Reply};
pub use any::{ActorType, AnyRef};
pub use ctx::{Ctx, TaskRef, TimerRef};
pub use error::{AskError, BuildError, ChildError, JoinError, SendError, StartError};
pub use exit::Exit;
pub use groups::{GROUP_EVENTS, Group, GroupEvent, GroupInfo, GroupWatch, Member, Membership};
pub use inspect::{
    ActorInfo, ArbiterInfo, Current, Kind, LAST_EXITS, MessageInfo, PastExit, State, TREE_EVENTS, TreeEvent,
};
pub use note::MESSAGE_SPANS;
pub use observe::{MESSAGE_TYPES, OTHER_MESSAGES, Observer};
pub use pid::{ExitWatch, MonitorRef, Pid};
pub use recipient::{Receive, Recipient, Rejected};
pub use refs::{Named, Ref};
pub use singleton::{
    Grant, Lease, LeaseError, SINGLETON_ANSWER_MS, SINGLETON_MARGIN_MS, SINGLETON_RETRY_MS, SINGLETON_STOP_MS,
    Singleton, SingletonSettings, SingletonState, SingletonStatus, StandDown,
};
pub use spec::{
    AutoShutdown, Backoff, ChildSpec, MAILBOX_MAX_MESSAGES, MAILBOX_MESSAGES, Overflow, Placement, RESTART_INTENSITY,
    RESTART_PERIOD_MS, Restart, Shutdown, Strategy, SupervisorSpec, WORKER_SHUTDOWN_MS,
};
pub use stand_in::{Proxy, StandIn};
pub use supervisor::{ChildCount, ChildInfo, SupervisorRef};
pub use system::{System, SystemBuilder};
pub use trace::{TRACEPARENT_LEN, Trace, TraceError};
pub use watchdog::{Overdue, STUCK_THREADS, Watch};
