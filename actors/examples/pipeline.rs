//! A pipeline: three stages with small mailboxes. The last one is slow, so the source becomes as slow, and no memory fills up.
//!
//! `cargo run -p phalanx-actors --example pipeline`

use phalanx_actors::*;
use std::time::Duration;

/// How many items may wait at each stage.
const MAILBOX_ITEMS: usize = 4;
/// How many the source has.
const ITEMS: u64 = 40;
/// How long the last stage takes for one.
const SLOW_MS: u64 = 5;

struct Item(u64);
messages!(Item);

struct Square;
struct Halve;
#[derive(Default)]
struct Sink {
    items: u64,
    sum: u64,
}

impl Actor for Square {}
impl Handler<Item> for Square {
    fn handle(&mut self, item: Item, ctx: &mut Ctx<Self>) -> Reply<()> {
        let next = ctx.system().named::<Halve>("pipeline/halve");
        // Takes no other item until this one has found room: that is all there is to backpressure.
        ctx.wait(async move { next.send(Item(item.0 * item.0)).await }, passed_on);
        ().into()
    }
}

impl Actor for Halve {}
impl Handler<Item> for Halve {
    fn handle(&mut self, item: Item, ctx: &mut Ctx<Self>) -> Reply<()> {
        let next = ctx.system().named::<Sink>("pipeline/sink");
        ctx.wait(async move { next.send(Item(item.0 / 2)).await }, passed_on);
        ().into()
    }
}

/// A stage without a next one has nothing to do: it gives up, and its supervisor decides.
fn passed_on<A: Actor>(_: &mut A, sent: Result<(), SendError>, ctx: &mut Ctx<A>) {
    if let Err(error) = sent {
        ctx.stop(Exit::Error(format!("the next stage: {error}")));
    }
}

impl Actor for Sink {}
impl Handler<Item> for Sink {
    fn handle(&mut self, item: Item, ctx: &mut Ctx<Self>) -> Reply<()> {
        ctx.wait(tokio::time::sleep(Duration::from_millis(SLOW_MS)), move |sink, (), _| {
            sink.items += 1;
            sink.sum += item.0;
        });
        ().into()
    }
}

/// How many items came, and their sum.
struct Total;
messages!(Total => (u64, u64));
impl Handler<Total> for Sink {
    fn handle(&mut self, _: Total, _: &mut Ctx<Self>) -> Reply<(u64, u64)> {
        (self.items, self.sum).into()
    }
}

/// Sends all items through, and tells how far the last stage was when the source had got rid of the last item.
pub async fn run() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let system = System::builder("node").build()?;
    // Each stage starts after the one that it sends to; when that one fails, it starts again with it.
    let pipeline = SupervisorSpec::new("pipeline", Strategy::RestForOne)
        .child(ChildSpec::actor("sink", Sink::default).mailbox(MAILBOX_ITEMS))
        .child(ChildSpec::actor("halve", || Halve).mailbox(MAILBOX_ITEMS))
        .child(ChildSpec::actor("square", || Square).mailbox(MAILBOX_ITEMS));
    system.start(pipeline).await?;

    let source = system.named::<Square>("pipeline/square");
    for n in 1..=ITEMS {
        source.send(Item(n)).await?;
    }
    let taken = system.tree().iter().find(|info| info.path == "pipeline/sink").map_or(0, |info| info.messages);
    let mut lines = vec![format!("{ITEMS} items sent, and the last stage has taken {taken}")];

    let sink = system.named::<Sink>("pipeline/sink");
    loop {
        // Behind the items that wait there.
        let (items, sum) = sink.ask(Total).await?;
        if items == ITEMS {
            lines.push(format!("the sum of the squares, halved, is {sum}"));
            break;
        }
    }
    system.shutdown().await;
    Ok(lines)
}

#[allow(dead_code)] // the tests run it as a function
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    run().await?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
