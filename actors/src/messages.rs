//! The one macro of this crate: it says which types are messages, and what they are answered with.
//!
//! Must never grow into a language of its own: actors and handlers are plain `impl`s, which editors and compiler errors know how to show.

/// Makes types messages: `Type => Reply`, or `Type` alone for those whose reply is `()`.
///
/// ```
/// use phalanx_actors::{Message, messages};
/// struct Add(u64);
/// struct Total;
/// struct Reset;
/// messages!(Add, Total => u64, Reset);
///
/// fn reply_of<M: Message<Reply = R>, R>(_: M) {}
/// reply_of::<Total, u64>(Total); // the same as `impl Message for Total { type Reply = u64; }`
/// reply_of::<Reset, ()>(Reset);
/// ```
#[macro_export]
macro_rules! messages {
    (@one $message:ty) => {
        impl $crate::Message for $message {
            type Reply = ();
        }
    };
    (@one $message:ty, $reply:ty) => {
        impl $crate::Message for $message {
            type Reply = $reply;
        }
    };
    ($($message:ty $(=> $reply:ty)?),* $(,)?) => {
        $($crate::messages!(@one $message $(, $reply)?);)*
    };
}
