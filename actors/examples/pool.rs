//! A pool: workers under a supervisor, jobs to each in turn, and a crash that costs one job and no more.
//!
//! `cargo run -p phalanx-actors --example pool`

use phalanx_actors::*;

/// One square root.
struct Root(i64);
messages!(Root => i64);

struct Worker;

impl Actor for Worker {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        // A restarted worker joins again; one that ends has left.
        ctx.system().group::<Root>("workers").join(&ctx.self_ref()).map_err(|error| Exit::Error(error.to_string()))
    }
}

impl Handler<Root> for Worker {
    fn handle(&mut self, root: Root, _: &mut Ctx<Self>) -> Reply<i64> {
        assert!(root.0 >= 0, "{} has no root", root.0);
        root.0.isqrt().into()
    }
}

/// Has a pool of three work, and tells what happened.
pub async fn run() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let system = System::builder("node").build()?;
    let pool = (0..3).fold(SupervisorSpec::new("pool", Strategy::OneForOne), |pool, n| {
        pool.child(ChildSpec::actor(format!("worker-{n}"), || Worker))
    });
    system.start(pool).await?;
    let workers = system.group::<Root>("workers");
    let mut events = system.subscribe();

    let mut lines = Vec::new();
    for n in [16, 25, -1, 36, 49] {
        match workers.ask_one(Root(n)).await {
            Ok(root) => lines.push(format!("the root of {n} is {root}")),
            Err(error) => {
                lines.push(format!("no root of {n}: {error}"));
                // Not needed to go on: the other workers would take the next jobs.
                while !matches!(events.recv().await?, TreeEvent::Started { .. }) {}
            }
        }
    }
    for info in system.tree().iter().filter(|info| info.kind == Kind::Worker) {
        lines.push(format!("{}: {} restarts", info.path, info.restarts));
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
