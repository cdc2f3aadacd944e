//! The transport's own randomness: jitter of dials, QUIC's connection ids, which packets a fault hits. From the operating
//! system, or from a seed, so that a simulation can be replayed. Never used for keys: those are made by TLS alone.

use parking_lot::Mutex;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

#[derive(Debug)]
pub(crate) struct Random(Mutex<StdRng>);

impl Random {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self(Mutex::new(seed.map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64)))
    }

    /// Evenly in 0.0..1.0.
    pub(crate) fn fraction(&self) -> f64 {
        self.0.lock().random()
    }

    /// Whether something of this probability happens now.
    pub(crate) fn happens(&self, probability: f64) -> bool {
        // Draws nothing for what is certain, so that a fault which is not set costs nothing.
        probability > 0.0 && (probability >= 1.0 || self.fraction() < probability)
    }

    pub(crate) fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.lock().fill_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_again_and_another_seed_something_else() {
        let draw = |seed| -> [u8; 32] { Random::new(seed).bytes() };
        assert_eq!(draw(Some(7)), draw(Some(7)));
        assert_ne!(draw(Some(7)), draw(Some(8)));
        assert_ne!(draw(None), draw(None));
    }

    #[test]
    fn what_is_certain_happens_and_what_is_impossible_does_not() {
        let random = Random::new(None);
        assert!((0..100).all(|_| random.happens(1.0) && !random.happens(0.0)));
        assert!((0..100).all(|_| (0.0..1.0).contains(&random.fraction())));
    }
}
