//! Whose turn it is in a simulated system: drawn from a seed, so that races are found, and found again.
//!
//! An actor, a supervisor or a starting job that is ready asks before its turn, and may be told to let others go first. Each actor has a
//! pace of its own, so that some seeds know a very slow one. Messages are in the receiver's mailbox when `tell` returns, so nothing of
//! one sender is ever reordered: only what real threads could do as well.
//!
//! Must never be asked by a system that is not simulated. Made by [`crate::SystemBuilder::seed`] and [`crate::testkit`].

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

/// Of 16 turns, how many an actor of each pace gives back.
const PACES: [u64; 4] = [2, 8, 12, 15];
/// The weyl constant of SplitMix64 (Steele, Lea, Flood 2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The order of turns of one simulation. One thread draws from it; it is atomic only because systems are `Sync`.
#[derive(Debug)]
pub(crate) struct Schedule {
    seed: u64,
    drawn: AtomicU64,
    trace: AtomicU64,
}

impl Schedule {
    pub(crate) fn new(seed: u64) -> Self {
        Schedule { seed, drawn: AtomicU64::new(mix(seed)), trace: AtomicU64::new(0) }
    }

    /// The next number of the sequence.
    pub(crate) fn draw(&self) -> u64 {
        mix(self.drawn.fetch_add(GOLDEN, Relaxed))
    }

    /// Whether the actor with this number lets others go first.
    pub(crate) fn passes(&self, actor: u64) -> bool {
        let pace = PACES[(mix(self.seed ^ mix(actor)) % PACES.len() as u64) as usize];
        let passes = self.draw() % 16 < pace;
        if !passes {
            self.trace.store(mix(self.trace.load(Relaxed) ^ actor), Relaxed);
        }
        passes
    }

    /// Returns when it is this actor's turn.
    pub(crate) async fn turn(&self, actor: u64) {
        std::future::poll_fn(|cx| {
            if self.passes(actor) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    /// How many messages an actor handles in this turn: mostly one, so that others come in between.
    pub(crate) fn messages(&self, max: u32) -> u32 {
        match self.draw() % 8 {
            0 => max,
            1 => 3,
            _ => 1,
        }
    }

    /// A number that stands for all turns so far and their order.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.trace.load(Relaxed)
    }
}

/// SplitMix64's finaliser.
pub(crate) fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(seed: u64) -> (Vec<bool>, u64) {
        let schedule = Schedule::new(seed);
        let passes = (0..200).map(|n| schedule.passes(n % 7)).collect();
        (passes, schedule.fingerprint())
    }

    #[test]
    fn a_seed_gives_one_order_and_another_seed_another() {
        assert_eq!(turns(1), turns(1));
        assert_ne!(turns(1), turns(2));
    }

    #[test]
    fn nobody_passes_for_ever() {
        for seed in 0..100 {
            let schedule = Schedule::new(seed);
            for actor in 0..20 {
                assert!((0..1_000).any(|_| !schedule.passes(actor)), "seed {seed}, actor {actor}");
            }
        }
    }
}
