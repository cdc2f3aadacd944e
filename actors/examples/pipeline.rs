//! A pipeline: three stages with small mailboxes. The last one is slow, and so the source becomes as slow, instead of memory filling up.
//!
//! `cargo run -p phalanx-actors --example pipeline`

use phalanx_actors::*;
use std::collections::VecDeque;
use std::time::Duration;

/// How many items wait at each stage.
const MAILBOX_ITEMS: usize = 4;
/// What the source has to say.
const ITEMS: u64 = 40;
/// How long the last stage takes for one.
const SLOW_MS: u64 = 10;

struct Item(u64);
impl Message for Item {
    /// Answered once the stage has room for another. Who waits for it feels the backpressure.
    type Reply = ();
}

/// Doubles what comes, and hands it to the next stage: one at a time, in order.
struct Double {
    next: Recipient<Item>,
    waiting: VecDeque<(u64, Replier<()>)>,
    busy: bool,
}

impl Double {
    fn forward(&mut self, ctx: &mut Ctx<Self>) {
        if self.busy {
            return;
        }
        let Some((item, done)) = self.waiting.pop_front() else { return };
        self.busy = true;
        let next = self.next.clone();
        // The actor itself stays free for other messages meanwhile.
        ctx.pipe(async move { next.ask(Item(item * 2)).await }, |stage, answer, ctx| match answer {
            Ok(()) => {
                done.reply(());
                stage.busy = false;
                stage.forward(ctx);
            }
            Err(error) => ctx.stop(Exit::Error(format!("the next stage: {error}"))),
        });
    }
}

impl Actor for Double {}
impl Handler<Item> for Double {
    fn handle(&mut self, item: Item, ctx: &mut Ctx<Self>) -> Reply<()> {
        let (reply, done) = ctx.defer();
        self.waiting.push_back((item.0, done));
        self.forward(ctx);
        reply
    }
}

/// Takes its time for each item.
struct Sink {
    sum: u64,
}
struct Sum;
impl Message for Sum {
    type Reply = u64;
}
impl Actor for Sink {}
impl Handler<Item> for Sink {
    fn handle(&mut self, item: Item, ctx: &mut Ctx<Self>) -> Reply<()> {
        let (reply, done) = ctx.defer();
        ctx.pipe(tokio::time::sleep(Duration::from_millis(SLOW_MS)), move |sink, (), _| {
            sink.sum += item.0;
            done.reply(());
        });
        reply
    }
}
impl Handler<Sum> for Sink {
    fn handle(&mut self, _: Sum, _: &mut Ctx<Self>) -> Reply<u64> {
        self.sum.into()
    }
}
