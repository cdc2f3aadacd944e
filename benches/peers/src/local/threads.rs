//! Where contestants run: a thread's own runtime, here or on another thread.

use std::future::Future;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// One thread's runtime: who sends and who receives take turns on it, so wall time is processor time.
pub struct Here {
    local: LocalSet,
    runtime: Runtime,
}

impl Here {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Here { local: LocalSet::new(), runtime }
    }

    /// As a task among the actors, as an actor would run: `block_on` itself may look for I/O between two of its turns.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        self.local
            .block_on(&self.runtime, self.local.spawn_local(future))
            .expect("the benchmark's own task does not panic")
    }

    /// As [`Here::run`], for actors that are tasks of the runtime itself.
    #[cfg(feature = "peers")]
    pub fn run_send<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.block_on(self.runtime.spawn(future)).expect("the benchmark's own task does not panic")
    }
}

/// Another thread that runs what `setup` starts, until this is dropped.
pub struct There {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl There {
    pub fn new<T: Send + 'static, F: Future<Output = T>>(setup: impl FnOnce() -> F + Send + 'static) -> (Self, T) {
        let (stop, stopped) = oneshot::channel::<()>();
        let (give, take) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let here = Here::new();
            here.local.block_on(&here.runtime, async move {
                give.send(setup().await).expect("the benchmark waits for it");
                let _ = stopped.await;
            });
        });
        let made = take.recv().expect("the other thread has set up");
        (There { stop: Some(stop), thread: Some(thread) }, made)
    }
}

impl Drop for There {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
