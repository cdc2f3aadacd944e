//! For tests of actors: simulated time, an order of turns that is drawn from a seed, and probes that see what an actor sends.
//!
//! Everything of a simulation runs on one thread with one clock that moves only when nothing else can: an hour takes a millisecond, and
//! the same seed gives the same history. What waits for something that never comes is found, too: the clock runs to the limit.
//!
//! ```
//! use phalanx_actors::testkit::{Probe, explore};
//! use phalanx_actors::*;
//! use std::time::Duration;
//!
//! struct Alarm(Recipient<Ring>);
//! #[derive(Debug, PartialEq)]
//! struct Ring;
//! impl Message for Ring {
//!     type Reply = ();
//! }
//! impl Actor for Alarm {
//!     fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
//!         ctx.interval(Duration::from_secs(3600), |alarm, _| drop(alarm.0.tell(Ring)));
//!         Ok(())
//!     }
//! }
//!
//! explore(0..10, |sim| async move {
//!     let mut probe = Probe::<Ring>::start(sim.system(), "probe").await;
//!     let bell = probe.recipient();
//!     let alarm = ChildSpec::actor("alarm", move || Alarm(bell.clone()));
//!     sim.system().start(SupervisorSpec::new("s", Strategy::OneForOne).child(alarm)).await.unwrap();
//!     sim.advance(Duration::from_secs(3599)).await;
//!     probe.expect_nothing();
//!     sim.advance(Duration::from_secs(1)).await;
//!     assert_eq!(probe.expect_message().await, Ring);
//! });
//! ```
//!
//! Two things are outside of the seed: `tokio::select!` draws the order of its branches itself unless it is `biased`, and a hash map of
//! the standard library has another order in each run.

mod probe;
mod simulation;

pub use probe::{EXPECT_MS, PROBE_SEEN, Probe, Recorder, Seen, expect_exit};
pub use simulation::{
    Failure, JOURNAL_LINES, Journal, SEED_VARIABLE, SIMULATED_LIMIT_S, Sim, Simulation, explore, first_failure,
    simulate,
};
