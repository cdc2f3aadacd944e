//! References to actors whose type is not known where they are found: whoever routes messages by path meets them.
//!
//! Must never guess a type. Made by [`crate::System::find`].

use crate::actor::Actor;
use crate::pid::Pid;
use crate::refs::{Inbox, Ref};
use crate::registry::AnyInbox;
use std::any::TypeId;
use std::fmt;

/// The type of an actor, for tables of what to do with which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActorType(TypeId);

impl ActorType {
    /// The type `A`.
    pub fn of<A: Actor>() -> Self {
        ActorType(TypeId::of::<Inbox<A>>())
    }
}

/// A reference to one incarnation of an actor of any type.
#[derive(Clone)]
pub struct AnyRef {
    pid: Pid,
    inbox: AnyInbox,
}

impl AnyRef {
    pub(crate) fn new(pid: Pid, inbox: AnyInbox) -> Self {
        AnyRef { pid, inbox }
    }

    /// The incarnation.
    pub fn pid(&self) -> &Pid {
        &self.pid
    }

    /// Its type.
    pub fn actor_type(&self) -> ActorType {
        ActorType(self.inbox.as_ref().type_id())
    }

    /// The reference, if it is an actor of type `A`.
    pub fn downcast<A: Actor>(self) -> Option<Ref<A>> {
        self.inbox.downcast::<Inbox<A>>().ok().map(Ref::from_inbox)
    }
}

impl fmt::Debug for AnyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnyRef({:?})", self.pid)
    }
}
