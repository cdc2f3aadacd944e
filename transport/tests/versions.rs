//! Neighbouring versions talk: of messages, in both directions, and of the protocol itself.

mod support;
#[path = "support/worker.rs"]
mod worker;

use phalanx_actors::{Actor, ChildSpec, Ctx, Exit, Handler, Message, Reply, Restart, Strategy, SupervisorSpec, System};
use phalanx_transport::{AskError, Protocol, Remote, RemoteActor, RemoteAddress, SendError, Transport};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use support::*;
use worker::{Do, Worker, crew};

/// One message as several builds know it. In each the sum of all numbers that the handler sees is the answer.
mod message {
    use super::*;

    macro_rules! message {
        ($type:ident, $version:literal, $min:literal, $reply:ident) => {
            impl Remote for $type {
                const NAME: &'static str = "test/Order";
                const VERSION: u16 = $version;
                const MIN_VERSION: u16 = $min;
                type Reply = $reply;
            }
            impl Message for $type {
                type Reply = $reply;
            }
        };
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Order1 {
        pub amount: u64,
        pub items: Vec<Item1>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Item1 {
        pub weight: u64,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Done1 {
        pub sum: u64,
    }

    /// Appends a field to the message, to what is in it, and to the reply.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Order2 {
        pub amount: u64,
        pub items: Vec<Item2>,
        #[serde(default)]
        pub tip: u64,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Item2 {
        pub weight: u64,
        #[serde(default)]
        pub price: u64,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Done2 {
        pub sum: u64,
        #[serde(default)]
        pub note: Option<String>,
    }

    /// Another encoding, so neighbours of version 2 and older do not read it.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Order3 {
        pub amounts: Vec<u64>,
    }

    message!(Order1, 1, 1, Done1);
    message!(Order2, 2, 1, Done2);
    message!(Order3, 3, 3, Done2);
}

use message::*;

fn order1() -> Order1 {
    Order1 { amount: 1, items: vec![Item1 { weight: 10 }, Item1 { weight: 100 }] }
}

fn order2() -> Order2 {
    Order2 { amount: 1, items: vec![Item2 { weight: 10, price: 1_000 }, Item2 { weight: 100, price: 0 }], tip: 10_000 }
}

fn sum1(order: &Order1) -> u64 {
    order.amount + order.items.iter().map(|item| item.weight).sum::<u64>()
}

fn sum2(order: &Order2) -> u64 {
    order.amount + order.tip + order.items.iter().map(|item| item.weight + item.price).sum::<u64>()
}

fn serve1(transport: &Transport) {
    transport.serve::<Order1, _, _>("shop", |_, order| async move { Ok(Done1 { sum: sum1(&order) }) });
}

fn serve2(transport: &Transport) {
    transport.serve::<Order2, _, _>("shop", |_, order| async move {
        Ok(Done2 { sum: sum2(&order), note: Some("thanks".into()) })
    });
}

async fn order<M: Remote>(from: &Transport, message: &M) -> Result<M::Reply, AskError> {
    within(from.ask("b", "shop", message, PATIENCE)).await
}

fn unknown(version: u16) -> AskError {
    AskError::UnknownMessage { path: "shop".into(), name: "test/Order".into(), version }
}

#[tokio::test]
async fn an_older_message_is_read_with_defaults_and_an_older_asker_skips_what_the_reply_has_got_since() {
    let (_ca, a, b) = pair().await;
    serve2(&b);
    assert_eq!(order(&a, &order1()).await, Ok(Done1 { sum: 111 }));
    assert_eq!(order(&a, &order2()).await, Ok(Done2 { sum: 11_111, note: Some("thanks".into()) }));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_newer_message_is_read_without_what_was_appended_at_any_depth() {
    let (_ca, a, b) = pair().await;
    serve1(&b);
    assert_eq!(order(&a, &order2()).await, Ok(Done2 { sum: 111, note: None }));
    assert_eq!(order(&a, &order1()).await, Ok(Done1 { sum: 111 }));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_version_that_is_not_read_is_unknown_to_the_asker_in_both_directions_and_the_connection_stays() {
    let (_ca, a, b) = pair().await;
    let mut events = a.events();
    serve2(&b);
    assert_eq!(order(&a, &Order3 { amounts: vec![1] }).await, Err(unknown(3)));
    // Nothing older than 3 is served any more.
    b.unserve("shop");
    b.serve::<Order3, _, _>("shop", |_, Order3 { amounts }| async move {
        Ok(Done2 { sum: amounts.iter().sum(), note: None })
    });
    assert_eq!(order(&a, &order2()).await, Err(unknown(2)));
    assert_eq!(order(&a, &order1()).await, Err(unknown(1)));
    // And for tells it is a drop that is counted.
    let dropped = || b.peers()[0].dropped_messages;
    let before = dropped();
    a.tell("b", "shop", &order1()).expect("room");
    until(|| dropped() == before + 1).await;
    assert_eq!(order(&a, &Order3 { amounts: vec![1, 2] }).await, Ok(Done2 { sum: 3, note: None }));
    assert_eq!(events_so_far(&mut events), []);
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn of_several_versions_at_a_path_the_asker_gets_its_own() {
    let (_ca, a, b) = pair().await;
    serve1(&b);
    serve2(&b);
    b.serve::<Order3, _, _>("shop", |_, _| async move { Err("by three".into()) });
    assert_eq!(order(&a, &order1()).await, Ok(Done1 { sum: 111 }));
    assert_eq!(order(&a, &order2()).await.map(|done| done.sum), Ok(11_111));
    assert_eq!(order(&a, &Order3 { amounts: vec![] }).await, Err(AskError::Remote("by three".into())));
    // The same on the own node.
    assert_eq!(within(b.ask("b", "shop", &order1(), PATIENCE)).await, Ok(Done1 { sum: 111 }));
    close(&[&a, &b]).await;
}

/// The shop as an actor of the older build: it knows version 1 alone.
struct Shop;

impl Actor for Shop {}

impl Handler<Order1> for Shop {
    fn handle(&mut self, order: Order1, _: &mut Ctx<Self>) -> Reply<Done1> {
        Done1 { sum: sum1(&order) }.into()
    }
}

/// What an asker of the newer build sends.
impl Handler<Order2> for Shop {
    fn handle(&mut self, _: Order2, _: &mut Ctx<Self>) -> Reply<Done2> {
        Done2 { sum: 0, note: Some("not in the protocol of this build".into()) }.into()
    }
}

impl Handler<Order3> for Shop {
    fn handle(&mut self, _: Order3, _: &mut Ctx<Self>) -> Reply<Done2> {
        Done2 { sum: 0, note: Some("not in the protocol of this build".into()) }.into()
    }
}

impl RemoteActor for Shop {
    const NAME: &'static str = "test/Shop";

    fn protocol(protocol: &mut Protocol<Self>) {
        protocol.message::<Order1>();
    }
}

#[tokio::test]
async fn an_actor_of_another_build_is_asked_by_reference_by_the_same_rule() {
    let (_ca, a, b) = pair().await;
    let system = System::builder("b").build().expect("starts");
    let spec = SupervisorSpec::new("top", Strategy::OneForOne).child(ChildSpec::actor("shop", || Shop));
    system.start(spec).await.expect("starts");
    b.attach(&system).expect("the first");
    b.share::<Shop>();
    let shop = within(a.lookup::<Shop>("b", "top/shop")).await.expect("runs");
    assert_eq!(within(shop.ask(order1())).await, Ok(Done1 { sum: 111 }));
    assert_eq!(within(shop.ask(order2())).await, Ok(Done2 { sum: 111, note: None }));
    let unknown = AskError::UnknownMessage { path: "top/shop".into(), name: "test/Order".into(), version: 3 };
    assert_eq!(within(shop.ask(Order3 { amounts: vec![] })).await, Err(unknown));
    close(&[&a, &b]).await;
    system.shutdown().await;
}

#[tokio::test]
async fn a_message_that_was_a_mere_word_may_get_fields() {
    #[derive(Serialize, Deserialize)]
    struct Ping;
    #[derive(Serialize, Deserialize)]
    struct PingNow {
        #[serde(default)]
        times: u64,
    }
    impl Remote for Ping {
        const NAME: &'static str = "test/Ping";
        type Reply = u64;
    }
    impl Remote for PingNow {
        const NAME: &'static str = "test/Ping";
        const VERSION: u16 = 2;
        const MIN_VERSION: u16 = 1;
        type Reply = u64;
    }
    let (_ca, a, b) = pair().await;
    b.serve::<Ping, _, _>("old", |_, _| async move { Ok(1) });
    b.serve::<PingNow, _, _>("new", |_, ping| async move { Ok(ping.times) });
    assert_eq!(within(a.ask("b", "old", &PingNow { times: 5 }, PATIENCE)).await, Ok(1));
    assert_eq!(within(a.ask("b", "new", &Ping, PATIENCE)).await, Ok(0));
    assert_eq!(within(a.ask("b", "new", &PingNow { times: 5 }, PATIENCE)).await, Ok(5));
    close(&[&a, &b]).await;
}

/// A node that is held back to an older protocol version, as every node of an older build is.
fn old_node(ca: &Ca, node: &str, protocol_max: u8) -> Transport {
    let mut config = ca.config(node, 1);
    config.protocol_max = protocol_max;
    Transport::start(config).expect("starts")
}

async fn everything_of_version_1_works(a: &Transport, b: &Transport) {
    for (from, to) in [(a, b), (b, a)] {
        serve_echo(to, "echo");
        assert_eq!(within(echo(from, to.node(), "echo")).await, Ok(format!("{}: hello", from.node())));
        let (told, mut numbers) = tokio::sync::mpsc::unbounded_channel();
        to.serve::<Number, _, _>("numbers", move |_, Number(n)| {
            let told = told.clone();
            async move { told.send(n).map_err(|e| e.to_string()) }
        });
        for n in 0..100 {
            from.tell(to.node(), "numbers", &Number(n)).expect("room");
        }
        for n in 0..100 {
            assert_eq!(within(numbers.recv()).await, Some(n));
        }
        let monitor = from.monitor(to.node(), "numbers");
        assert_eq!(within(from.monitor(to.node(), "nothing")).await.reason, Exit::NoProc);
        to.unserve("numbers");
        assert_eq!(within(monitor).await.reason, Exit::Shutdown);
    }
}

#[tokio::test]
async fn nodes_of_neighbouring_protocol_versions_talk_whoever_dials() {
    let ca = Ca::new();
    for (old_dials, protocol) in [(true, 1), (false, 1), (true, 2), (false, 2)] {
        let (old, new) = (old_node(&ca, "a", protocol), ca.start("b", 1));
        let (from, to) = if old_dials { (&old, &new) } else { (&new, &old) };
        connect(from, to).await;
        everything_of_version_1_works(&old, &new).await;
        serve1(&old);
        assert_eq!(within(new.ask("a", "shop", &order1(), PATIENCE)).await, Ok(Done1 { sum: 111 }));
        if protocol == 1 {
            // A message with a range of versions goes as its own one, which is all that the older node understands.
            let unserved = within(new.ask("a", "shop", &order2(), PATIENCE)).await;
            assert_eq!(unserved, Err(unknown(2)));
        }
        close(&[&old, &new]).await;
    }
}

#[tokio::test]
async fn references_to_a_node_that_knows_none_fail_with_that_reason_and_the_connection_stays() {
    let ca = Ca::new();
    let (old, new) = (old_node(&ca, "a", 1), ca.start("b", 1));
    connect(&new, &old).await;
    let crew = crew(&old, Restart::Permanent).await;
    let mut events = new.events();
    let unsupported = || AskError::Unsupported { node: "a".into() };
    assert_eq!(within(new.lookup::<Worker>("a", "top/w")).await, Err(unsupported()));
    let address = RemoteAddress { node: "a".into(), incarnation: 1, path: "top/w".into(), id: 1 };
    let worker = new.resolve::<Worker>(address);
    assert_eq!(worker.tell(Do::Add(1)), Err(SendError::Unsupported { node: "a".into() }));
    assert_eq!(within(worker.ask(Do::Add(1))).await, Err(unsupported()));
    assert_eq!(worker.kill(), Err(SendError::Unsupported { node: "a".into() }));
    assert_eq!(within(worker.pid().exited()).await, Exit::NoConnection);
    assert_eq!(events_so_far(&mut events), []);
    close(&[&old, &new]).await;
    crew.system.shutdown().await;
}

/// What an older build writes and reads is fixed: these bytes must not change while `PROTOCOL_VERSION_MIN` is 1.
#[test]
fn a_message_is_a_compact_array_of_its_fields() {
    fn written<T: Serialize + DeserializeOwned>(value: &T) -> Vec<u8> {
        rmp_serde::to_vec(value).expect("encodes")
    }
    assert_eq!(written(&order1()), [0x92, 1, 0x92, 0x91, 10, 0x91, 100]);
    assert_eq!(written(&Done2 { sum: 7, note: None }), [0x92, 7, 0xc0]);
}
