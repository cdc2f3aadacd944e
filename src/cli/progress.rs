//! Progress of anything that may take over a second: a spinner on a terminal, plain lines otherwise, on standard error.
//!
//! What is done within a second says nothing. Must never write to standard output, which a program may read.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::error;

/// What is done sooner says nothing.
const QUIET: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

struct State {
    message: String,
    shown: bool,
    bar: Option<ProgressBar>,
}

/// A piece of work in progress; ends when dropped.
pub struct Progress {
    state: Arc<Mutex<State>>,
    timer: tokio::task::JoinHandle<()>,
}

impl Progress {
    /// Begins. Needs a tokio runtime around it.
    pub fn start(message: impl Into<String>) -> Self {
        let state = Arc::new(Mutex::new(State { message: message.into(), shown: false, bar: None }));
        let shared = state.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            let mut state = shared.lock();
            state.shown = true;
            if std::io::stderr().is_terminal() {
                let bar = ProgressBar::new_spinner();
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                    bar.set_style(style);
                }
                bar.set_message(state.message.clone());
                bar.enable_steady_tick(TICK);
                state.bar = Some(bar);
            } else {
                error::warn(&format!("{} ...", state.message));
            }
        });
        Self { state, timer }
    }

    /// What is being done now.
    pub fn set(&self, message: impl Into<String>) {
        let mut state = self.state.lock();
        let message = message.into();
        if message == state.message {
            return;
        }
        state.message = message;
        match &state.bar {
            Some(bar) => bar.set_message(state.message.clone()),
            None if state.shown => error::warn(&format!("{} ...", state.message)),
            None => {}
        }
    }

    /// Prints something without tearing the spinner.
    pub fn suspend<R>(&self, f: impl FnOnce() -> R) -> R {
        let bar = self.state.lock().bar.clone();
        match bar {
            Some(bar) => bar.suspend(f),
            None => f(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.timer.abort();
        if let Some(bar) = self.state.lock().bar.take() {
            bar.finish_and_clear();
        }
    }
}
