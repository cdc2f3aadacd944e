//! The runtime `sim`: containers that only exist in memory, for scale tests and simulated time.
//!
//! A container runs until it is stopped (SIGTERM: exit 0 at once). `command: [exit, CODE, after, MS]` makes it end by
//! itself. Nothing is written, nothing is adopted, an exec always succeeds.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Container, ContainerSpec, ExecResult, ExitStatus, Runtime, RuntimeError};

const SIGKILL: i32 = 9;

#[derive(Clone, Debug, Default)]
pub struct SimRuntime {
    /// How long a container takes to start.
    pub start_delay: Duration,
}

#[async_trait]
impl Runtime for SimRuntime {
    fn name(&self) -> &'static str {
        "sim"
    }

    async fn start(&self, spec: ContainerSpec) -> Result<Arc<dyn Container>, RuntimeError> {
        if !self.start_delay.is_zero() {
            tokio::time::sleep(self.start_delay).await;
        }
        let (exit, _) = watch::channel(None);
        let ends = match spec.command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["exit", code, "after", ms] => match (code.parse(), ms.parse()) {
                (Ok(code), Ok(ms)) => Some((code, tokio::time::Instant::now() + Duration::from_millis(ms))),
                _ => {
                    return Err(RuntimeError::Config("sim: write command: [exit, CODE, after, MS]".to_owned()));
                }
            },
            _ => None,
        };
        Ok(Arc::new(SimContainer { id: spec.id, started_at: Timestamp::now(), ends, exit }))
    }

    async fn adopt(&self, _dir: &Path) -> Result<Option<Arc<dyn Container>>, RuntimeError> {
        Ok(None)
    }
}

struct SimContainer {
    id: String,
    started_at: Timestamp,
    ends: Option<(i32, tokio::time::Instant)>,
    exit: watch::Sender<Option<ExitStatus>>,
}

impl SimContainer {
    fn end(&self, status: ExitStatus) {
        self.exit.send_if_modified(|exit| exit.is_none() && exit.replace(status).is_none());
    }
}

#[async_trait]
impl Container for SimContainer {
    fn id(&self) -> &str {
        &self.id
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn started_at(&self) -> Timestamp {
        self.started_at
    }

    async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.subscribe();
        let stopped = async {
            match exit.wait_for(Option::is_some).await {
                Ok(status) => status.clone(),
                Err(_) => None,
            }
        };
        let status = match self.ends {
            Some((code, at)) => tokio::select! {
                biased;
                status = stopped => status,
                () = tokio::time::sleep_until(at) => {
                    self.end(ExitStatus::exited(code));
                    self.exit.borrow().clone()
                }
            },
            None => stopped.await,
        };
        status.unwrap_or_else(|| ExitStatus::exited(0))
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.end(if signal == SIGKILL { ExitStatus::signalled(SIGKILL) } else { ExitStatus::exited(0) });
        Ok(())
    }

    async fn kill(&self) -> Result<(), RuntimeError> {
        self.signal(SIGKILL).await
    }

    async fn exec(&self, _command: &[String], _timeout: Duration) -> Result<ExecResult, RuntimeError> {
        Ok(ExecResult { code: 0, output: Vec::new() })
    }

    async fn cleanup(&self) -> Result<(), RuntimeError> {
        Ok(())
    }
}
