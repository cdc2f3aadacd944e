//! Turns panics of supervised code into exits, with message and place.
//!
//! The one thing of this crate that is process-wide, because Rust has one panic hook: it is installed once, remembers the place of
//! panics in supervised code instead of printing them (their supervisor logs them), and hands all others to the hook before it.

use crate::exit::Exit;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
    static IN_DROP: RefCell<Option<Exit>> = const { RefCell::new(None) };
}

/// Installs the hook; later calls do nothing.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.with(Cell::get) == 0 {
                return previous(info);
            }
            let location = info.location().map(|at| format!("{}:{}:{}", at.file(), at.line(), at.column()));
            LOCATION.with(|slot| *slot.borrow_mut() = location);
        }));
    });
}

/// Runs supervised code; a panic becomes an exit.
pub(crate) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, Exit> {
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    let result = catch_unwind(AssertUnwindSafe(f));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
    result.map_err(exit)
}

/// As [`guarded`], for code that runs inside it already: all but free when nothing panics.
#[inline(always)]
pub(crate) fn guarded_inside(f: impl FnOnce()) -> Option<Box<Exit>> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(()) => None,
        Err(payload) => Some(boxed_exit(payload)),
    }
}

#[cold]
#[inline(never)]
fn boxed_exit(payload: Box<dyn Any + Send>) -> Box<Exit> {
    Box::new(exit(payload))
}

#[cold]
fn exit(payload: Box<dyn Any + Send>) -> Exit {
    let location = LOCATION.with(|slot| slot.borrow_mut().take());
    Exit::Panic { message: message(payload), location }
}

/// Drops a value of the user's. A panic in its `Drop` is kept for [`take_drop_panic`], so that no second one can abort the process.
pub(crate) fn drop_guarded<T>(value: T) {
    if let Err(exit) = guarded(move || drop(value)) {
        IN_DROP.with(|slot| {
            slot.borrow_mut().get_or_insert(exit);
        });
    }
}

/// As [`drop_guarded`], for what is not the running actor's own: a panic in its `Drop` is nobody's exit.
pub(crate) fn drop_foreign<T>(value: T) {
    let own = take_drop_panic();
    drop_guarded(value);
    if let Some(panic) = IN_DROP.with(|slot| std::mem::replace(&mut *slot.borrow_mut(), own)) {
        tracing::warn!(%panic, "a message that was not handled panicked in its drop");
    }
}

/// The first panic in a `Drop` on this thread since the last call.
pub(crate) fn take_drop_panic() -> Option<Exit> {
    IN_DROP.with(|slot| slot.borrow_mut().take())
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let text = match payload.downcast_ref::<&str>() {
        Some(text) => Some((*text).to_owned()),
        None => payload.downcast_ref::<String>().cloned(),
    };
    // A payload of the user's own type may panic in its Drop too.
    drop_guarded(payload);
    text.unwrap_or_else(|| "a panic whose payload is not text".to_owned())
}
