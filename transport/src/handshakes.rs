//! The places for inbound handshakes: how many there are in all and for one IP address, and when a dialer has to prove its
//! address first. No I/O; called by the accept loop. Must never hold anything for an address that may be forged beyond half
//! of the places.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

#[derive(Debug)]
pub(crate) struct Handshakes {
    max: usize,
    max_per_address: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// What to do with a first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Have the dialer show that it is where it says (RFC 9000, section 8.1.2); holds nothing meanwhile.
    Prove,
    Refuse,
    Take,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    from: IpAddr,
    taken: Arc<Mutex<Taken>>,
}

impl Handshakes {
    pub(crate) fn new(max: usize, max_per_address: usize) -> Self {
        Self { max, max_per_address, taken: Arc::default() }
    }

    /// An address that is not proven gets at most half of the places, its own and all, so that packets with a forged one
    /// keep out neither its owner nor the others.
    pub(crate) fn judge(&self, from: IpAddr, is_proven: bool) -> Admission {
        let taken = self.taken.lock();
        let here = taken.by_address.get(&from).copied().unwrap_or(0);
        let is_full =
            |share: usize| taken.all >= self.max.div_ceil(share) || here >= self.max_per_address.div_ceil(share);
        match is_proven {
            true if is_full(1) => Admission::Refuse,
            false if is_full(2) => Admission::Prove,
            _ => Admission::Take,
        }
    }

    pub(crate) fn take(&self, from: IpAddr) -> Place {
        let mut taken = self.taken.lock();
        taken.all += 1;
        *taken.by_address.entry(from).or_default() += 1;
        Place { from, taken: self.taken.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.all -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.from) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn an_address_gets_its_share_and_no_more() {
        let handshakes = Handshakes::new(8, 4);
        let mut held: Vec<_> = (0..2).map(|_| handshakes.take(address(1))).collect();
        assert_eq!(handshakes.judge(address(1), false), Admission::Prove);
        held.extend((0..2).map(|_| handshakes.take(address(1))));
        assert_eq!(handshakes.judge(address(1), true), Admission::Refuse);
        // Another is not concerned, until half of all places are taken.
        assert_eq!(handshakes.judge(address(2), true), Admission::Take);
        assert_eq!(handshakes.judge(address(2), false), Admission::Prove);
        held.pop();
        assert_eq!(handshakes.judge(address(2), false), Admission::Take);
        assert_eq!(handshakes.judge(address(1), true), Admission::Take);
    }

    #[test]
    fn forged_addresses_take_half_of_the_places() {
        let handshakes = Handshakes::new(8, 4);
        let mut held = vec![];
        for n in 0..100 {
            if handshakes.judge(address(n), false) == Admission::Take {
                held.push(handshakes.take(address(n)));
            }
        }
        assert_eq!(held.len(), 4);
        assert_eq!(handshakes.judge(address(200), true), Admission::Take);
        held.clear();
        assert!(handshakes.taken.lock().by_address.is_empty());
    }
}
