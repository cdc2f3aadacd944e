//! The examples do what they say: run as functions, so that they cost no further build.

#[path = "../examples/connections.rs"]
mod connections;
#[path = "../examples/pipeline.rs"]
mod pipeline;
#[path = "../examples/pool.rs"]
mod pool;

#[tokio::test]
async fn a_pool_loses_one_job_with_a_crash_and_no_worker() {
    let lines = pool::run().await.expect("runs");
    assert_eq!(lines[..2], ["the root of 16 is 4", "the root of 25 is 5"]);
    assert!(lines[2].starts_with("no root of -1: the actor ended before it answered: panic"), "{lines:?}");
    assert_eq!(lines[3..5], ["the root of 36 is 6", "the root of 49 is 7"]);
    let mut restarts = lines[5..].to_vec();
    restarts.sort();
    assert_eq!(restarts, ["pool/worker-0: 0 restarts", "pool/worker-1: 0 restarts", "pool/worker-2: 1 restarts"]);
}

#[tokio::test]
async fn the_source_of_a_pipeline_is_as_slow_as_its_last_stage() {
    let lines = pipeline::run().await.expect("runs");
    let taken: u64 = lines[0].rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    // What the last stage has not taken is in the other two stages' hands or in one of three mailboxes of four.
    // One more may be taken and not counted yet.
    assert!(taken >= 40 - 2 - 3 * 4 - 1, "{lines:?}");
    let sum: u64 = (1..=40).map(|n| n * n / 2).sum();
    assert_eq!(lines[1], format!("the sum of the squares, halved, is {sum}"));
}

#[tokio::test]
async fn a_connection_that_crashes_costs_one_client() {
    let lines = connections::run().await.expect("runs");
    let expected = [
        "client 0 sends 20, gets 20",
        "client 1 sends 20, gets 20",
        "client 2 sends 20, gets 20",
        "client 0 sends 0, gets 20",
        "client 1 sends twenty, gets (cut off)",
        "client 2 sends 0, gets 20",
        "client 0 sends 22, gets 42",
        "client 1 sends 22, gets (cut off)",
        "client 2 sends 22, gets 42",
    ];
    assert_eq!(lines[..9], expected);
    assert!(lines[9].starts_with("one connection crashed: panic at "), "{lines:?}");
    assert_eq!(lines[10], "2 connections go on");
}
