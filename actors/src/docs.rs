//! The guides, one module each. Their code runs as doctests.

#[doc = include_str!("../docs/runtime-semantics.md")]
pub mod runtime_semantics {}

/// What the compiler says about the three mistakes that everyone makes.
///
/// A message that the actor does not handle: "actor `Greeter` does not handle message `Bye`", with the note "implement `Handler<Bye>`
/// for `Greeter`":
/// ```compile_fail,E0277
/// use phalanx_actors::*;
/// struct Greeter;
/// impl Actor for Greeter {}
/// struct Bye;
/// impl Message for Bye { type Reply = (); }
/// fn bye(greeter: &Ref<Greeter>) {
///     let _ = greeter.tell(Bye);
/// }
/// ```
/// A type that is no message: "`String` is not a message":
/// ```compile_fail,E0277
/// use phalanx_actors::*;
/// struct Greeter;
/// impl Actor for Greeter {}
/// impl Handler<String> for Greeter {
///     fn handle(&mut self, _: String, _: &mut Ctx<Self>) -> Reply<()> { ().into() }
/// }
/// ```
/// A type that is no actor: "`Greeter` is not an actor":
/// ```compile_fail,E0277
/// use phalanx_actors::*;
/// struct Greeter;
/// let spec = ChildSpec::actor("greeter", || Greeter);
/// ```
pub mod compile_errors {}
