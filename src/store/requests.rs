//! Numbers the proposals of one start of a server, so that each is applied at most once however often it is sent.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::state::{RequestId, SESSION_WINDOW};

/// Proposals of one server that may be on their way at once; more wait for a place, within their deadline.
const REQUESTS_MAX: usize = 1_024;

#[derive(Debug)]
pub struct Requests {
    session: u128,
    numbers: Mutex<Numbers>,
    places: Semaphore,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

/// A place among the open requests, with its name; given back when dropped, whatever became of the request.
#[derive(Debug)]
pub struct Ticket<'a> {
    pub id: RequestId,
    requests: &'a Requests,
    _place: Option<SemaphorePermit<'a>>,
}

impl Requests {
    /// `session` must be random: it names this start of the server for ever.
    pub fn new(session: u128) -> Requests {
        let places = Semaphore::new(REQUESTS_MAX);
        Requests { session, numbers: Mutex::default(), places, freed: Notify::new() }
    }

    pub async fn begin(&self) -> Ticket<'_> {
        // The semaphore is never closed.
        let place = self.places.acquire().await.ok();
        loop {
            // Registered before looking, so that a place freed in between is not missed.
            let freed = self.freed.notified();
            if let Some(id) = self.number() {
                return Ticket { id, requests: self, _place: place };
            }
            freed.await;
        }
    }

    /// `None` while an old request holds the window open: the answers behind it must all be kept.
    fn number(&self) -> Option<RequestId> {
        let mut numbers = self.numbers.lock();
        let seq = numbers.last + 1;
        let oldest_open = numbers.open.first().copied().unwrap_or(seq);
        if seq - oldest_open >= SESSION_WINDOW {
            return None;
        }
        numbers.last = seq;
        numbers.open.insert(seq);
        Some(RequestId { session: self.session, seq, oldest_open })
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.requests.numbers.lock().open.remove(&self.id.seq);
        self.requests.freed.notify_waiters();
    }
}
