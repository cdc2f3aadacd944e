//! What goes up to the control plane: pod statuses and events, each in a bounded place where the newest wins, and the
//! actor that empties them.
//!
//! Pod and Container actors only put things here: none of them ever waits for the network, and an outage of any length
//! costs at most one status a pod and [`EVENTS_WAITING_MAX`] events.
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use phalanx_actors::{Actor, Ctx, Exit};
use tokio::sync::Notify;

use super::control_plane::{EventRecord, EventType, PodReport, ReportOutcome};
use super::sync::{Gone, SyncActor};
use super::{Agent, Retry};

/// More events than this wait for the control plane only by dropping the oldest.
pub const EVENTS_WAITING_MAX: usize = 1024;
/// Reports and events that go in one call.
const BATCH_MAX: usize = 256;

/// The latest status of each pod that the control plane has not taken yet. At most one for each pod of the node.
#[derive(Default)]
pub struct StatusBoard {
    waiting: Mutex<BTreeMap<String, PodReport>>,
    filled: Notify,
}

impl StatusBoard {
    pub fn put(&self, report: PodReport) {
        self.waiting.lock().insert(report.uid.clone(), report);
        self.filled.notify_one();
    }

    /// The pod is gone from here: nothing more to say.
    pub fn forget(&self, uid: &str) {
        self.waiting.lock().remove(uid);
    }

    fn take(&self) -> Vec<PodReport> {
        let mut waiting = self.waiting.lock();
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX
            && let Some((_, report)) = waiting.pop_first()
        {
            batch.push(report);
        }
        batch
    }

    /// What could not be delivered waits again, unless something newer does.
    fn give_back(&self, batch: Vec<PodReport>) {
        let mut waiting = self.waiting.lock();
        for report in batch {
            waiting.entry(report.uid.clone()).or_insert(report);
        }
    }
}

/// Events on their way.
#[derive(Default)]
pub struct Recorder {
    waiting: Mutex<VecDeque<EventRecord>>,
    filled: Notify,
}

impl Recorder {
    /// An event about a pod, or about one of its containers (`field`: `spec.containers{NAME}`).
    pub fn pod(&self, pod: &Pod, field: Option<String>, kind: EventType, reason: &'static str, message: String) {
        let now = Timestamp::now();
        let meta = &pod.metadata;
        self.record(EventRecord {
            kind: "Pod",
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            field_path: field,
            event_type: kind,
            reason,
            message,
            first_at: now,
            last_at: now,
            count: 1,
        });
    }

    /// The same event again, while it waits, only counts.
    pub fn record(&self, event: EventRecord) {
        let mut waiting = self.waiting.lock();
        let same = waiting.iter_mut().rev().find(|known| {
            known.uid == event.uid
                && known.reason == event.reason
                && known.message == event.message
                && known.field_path == event.field_path
        });
        if let Some(known) = same {
            known.count += event.count;
            known.last_at = event.last_at;
        } else {
            if waiting.len() == EVENTS_WAITING_MAX {
                waiting.pop_front();
            }
            waiting.push_back(event);
        }
        drop(waiting);
        self.filled.notify_one();
    }

    fn take(&self) -> Vec<EventRecord> {
        let mut waiting = self.waiting.lock();
        let count = waiting.len().min(BATCH_MAX);
        waiting.drain(..count).collect()
    }
}

/// Delivers statuses and events, with patience.
pub struct Reporter {
    agent: Arc<Agent>,
}

impl Reporter {
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

impl Actor for Reporter {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        let agent = self.agent.clone();
        let parent = ctx.path().rsplit_once('/').map_or("", |(parent, _)| parent);
        let sync = ctx.system().named::<SyncActor>(&format!("{parent}/sync"));
        ctx.spawn(async move {
            let mut retry = Retry::default();
            loop {
                let batch = agent.board.take();
                if batch.is_empty() {
                    agent.board.filled.notified().await;
                    continue;
                }
                match agent.control.report(batch.clone()).await {
                    Ok(outcomes) => {
                        retry.reset();
                        for (report, outcome) in batch.into_iter().zip(outcomes) {
                            if outcome == ReportOutcome::Gone {
                                // A full mailbox is no loss: the next report of this pod will be Gone again.
                                let _ = sync.tell(Gone { uid: report.uid });
                            }
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "pod statuses could not be reported");
                        agent.board.give_back(batch);
                        tokio::time::sleep(retry.next()).await;
                    }
                }
            }
        });
        let agent = self.agent.clone();
        ctx.spawn(async move {
            let mut retry = Retry::default();
            loop {
                let batch = agent.recorder.take();
                if batch.is_empty() {
                    agent.recorder.filled.notified().await;
                    continue;
                }
                while let Err(error) = agent.control.record(batch.clone()).await {
                    tracing::debug!(%error, "events could not be recorded");
                    tokio::time::sleep(retry.next().max(Duration::from_millis(500))).await;
                }
                retry.reset();
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodStatus;

    fn report(uid: &str, phase: &str) -> PodReport {
        PodReport {
            namespace: "d".into(),
            name: "n".into(),
            uid: uid.into(),
            status: PodStatus { phase: Some(phase.into()), ..PodStatus::default() },
        }
    }

    #[test]
    fn only_the_latest_status_of_a_pod_is_delivered() {
        let board = StatusBoard::default();
        board.put(report("a", "Pending"));
        board.put(report("a", "Running"));
        let taken = board.take();
        assert_eq!(taken, [report("a", "Running")]);
        board.put(report("a", "Failed"));
        board.give_back(taken);
        assert_eq!(board.take(), [report("a", "Failed")]);
    }

    #[test]
    fn repeated_events_count_and_the_oldest_are_dropped_when_too_many_wait() {
        let recorder = Recorder::default();
        let pod = Pod::default();
        for _ in 0..3 {
            recorder.pod(&pod, None, EventType::Warning, "BackOff", "again".into());
        }
        let first = recorder.take();
        assert_eq!((first.len(), first[0].count), (1, 3));
        for number in 0..=EVENTS_WAITING_MAX {
            recorder.pod(&pod, None, EventType::Normal, "Started", number.to_string());
        }
        assert_eq!(recorder.take()[0].message, "1");
    }
}
