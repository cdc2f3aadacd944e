//! Which loopback address each pod of this node has.
//!
//! Pods of the process runtime share the machine's network, so each gets an address of its own in 127/8 (Linux binds
//! all of it): two pods may use the same port. Nodes on one machine have disjoint ranges. Pure; used by the sync actor.
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    pub base: Ipv4Addr,
    /// Length of the prefix, 8 to 30.
    pub prefix: u8,
}

impl PodNetwork {
    /// The range of the node with this index on its machine: 254 addresses each, from 127.1.0.0/24 on. 127.0.x.y stays
    /// the machine's own.
    pub fn loopback(node_index: u16) -> Self {
        let index = u32::from(node_index) % 0xfe00;
        Self { base: Ipv4Addr::from(0x7f01_0000 + (index << 8)), prefix: 24 }
    }

    /// How many pods it has addresses for.
    pub fn size(self) -> u32 {
        (1 << (32 - u32::from(self.prefix.clamp(8, 30)))) - 2
    }

    fn nth(self, index: u32) -> IpAddr {
        let mask = u32::MAX << (32 - u32::from(self.prefix.clamp(8, 30)));
        Ipv4Addr::from((u32::from(self.base) & mask) + 1 + index).into()
    }
}

/// The addresses in use, by pod uid.
#[derive(Debug)]
pub struct Addresses {
    network: PodNetwork,
    by_uid: HashMap<String, IpAddr>,
    used: HashSet<IpAddr>,
    /// Where the search for a free one goes on: an address rests before it is used again.
    next: u32,
}

impl Addresses {
    pub fn new(network: PodNetwork) -> Self {
        Self { network, by_uid: HashMap::new(), used: HashSet::new(), next: 0 }
    }

    /// The address of a pod; `None` when the range is used up.
    pub fn assign(&mut self, uid: &str) -> Option<IpAddr> {
        if let Some(known) = self.by_uid.get(uid) {
            return Some(*known);
        }
        let size = self.network.size();
        let found =
            (0..size).map(|step| (self.next + step) % size).find(|n| !self.used.contains(&self.network.nth(*n)))?;
        self.next = (found + 1) % size;
        let address = self.network.nth(found);
        self.keep(uid, address);
        Some(address)
    }

    /// The pod had this address before the agent was restarted.
    pub fn keep(&mut self, uid: &str, address: IpAddr) {
        self.used.insert(address);
        self.by_uid.insert(uid.to_owned(), address);
    }

    pub fn release(&mut self, uid: &str) {
        if let Some(address) = self.by_uid.remove(uid) {
            self.used.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_on_one_machine_have_disjoint_ranges() {
        let addresses = |index| {
            let mut all = Addresses::new(PodNetwork::loopback(index));
            (0..254).map(|pod| all.assign(&pod.to_string()).unwrap()).collect::<HashSet<_>>()
        };
        let (zero, one, far) = (addresses(0), addresses(1), addresses(300));
        assert_eq!(zero.len(), 254);
        assert!(zero.contains(&"127.1.0.1".parse::<IpAddr>().unwrap()));
        assert!(zero.contains(&"127.1.0.254".parse::<IpAddr>().unwrap()));
        assert!(zero.is_disjoint(&one) && zero.is_disjoint(&far) && one.is_disjoint(&far));
        assert!(PodNetwork::loopback(u16::MAX).nth(0).is_loopback());
    }

    #[test]
    fn an_address_is_kept_by_its_pod_rests_after_it_and_the_range_can_be_full() {
        let mut all = Addresses::new(PodNetwork { base: "127.7.0.0".parse().unwrap(), prefix: 29 });
        all.keep("old", "127.7.0.2".parse().unwrap());
        let first = all.assign("a").unwrap();
        assert_eq!(all.assign("a"), Some(first));
        all.release("a");
        assert_ne!(all.assign("b").unwrap(), first);
        for pod in ["c", "d", "e", "f"] {
            assert_ne!(all.assign(pod).unwrap(), "127.7.0.2".parse::<IpAddr>().unwrap());
        }
        assert_eq!(all.assign("g"), None);
    }
}
