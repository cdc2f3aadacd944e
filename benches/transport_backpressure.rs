//! What a bulk stream costs its neighbours on the same connection: how long control tells, small asks and datagrams take while a
//! stream of gigabytes runs at full speed, beside the same with nothing else under way, all in one run and over loopback.
//!
//! Must never measure with the bulk standing still: how fast it was is in the table. Both nodes, and who writes and reads the
//! bulk, share the machine's processors, so ratios say more than times.
//! Run with `cargo bench -p phalanx-transport --bench transport_backpressure`; what came out is in `benches/README.md`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use phalanx_transport::{Identity, Remote, Transport, TransportConfig, server_name};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};

/// How long each load is measured.
const MEASURED: Duration = Duration::from_secs(4);
/// After it has begun, a load runs so long before it is measured: QUIC's window opens first.
const WARM_UP: Duration = Duration::from_secs(1);
/// A probe of each kind is sent this often.
const PROBE_EVERY: Duration = Duration::from_millis(2);
/// What the bulk is written in.
const PIECE_BYTES: usize = 64 << 10;
/// An ask that takes longer is lost.
const DEADLINE: Duration = Duration::from_secs(10);

/// When it was sent, in nanoseconds since the run began.
#[derive(Serialize, Deserialize)]
struct Sent(u64);

impl Remote for Sent {
    const NAME: &'static str = "bench/Sent";
    type Reply = u64;
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(run());
    runtime.shutdown_background();
}

async fn run() {
    let (a, b) = pair().await;
    let clock = Instant::now();
    let (control, mut controls) = mpsc::unbounded_channel();
    let (datagram, mut datagrams) = mpsc::unbounded_channel();
    let nanos = move || u64::try_from(clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
    b.serve::<Sent, _, _>("probe", move |_, Sent(at)| {
        // Nobody is listening between two loads.
        let _ = control.send(nanos() - at);
        async move { Ok(at) }
    });
    b.serve_datagram("probe", move |_, mut body| {
        let _ = datagram.send(nanos() - body.get_u64());
    });
    b.serve::<Sent, _, _>("ask", |_, Sent(at)| async move { Ok(at) });
    let read = Arc::new(AtomicU64::new(0));
    for node in [&a, &b] {
        let read = read.clone();
        node.serve_stream("bulk", move |_, _, send, mut recv| {
            let read = read.clone();
            async move {
                // Dropped, it would break the stream off.
                let _send = send;
                let mut buffer = vec![0; PIECE_BYTES];
                while let Ok(n @ 1..) = recv.read(&mut buffer).await {
                    read.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
        });
    }
    println!(
        "{:<26}{:>9}  {:>26}  {:>26}  {:>26}  {:>8}",
        "load", "bulk", "control tell, one way", "ask, round trip", "datagram, one way", "lost"
    );
    let unit = "p50 / p99 / max, ms";
    println!("{:<26}{:>9}  {unit:>26}  {unit:>26}  {unit:>26}", "", "MB/s");
    let mut idle = None;
    for (name, out, back) in
        [("nothing else", 0, 0), ("1 stream", 1, 0), ("8 streams", 8, 0), ("1 stream each way", 1, 1)]
    {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = vec![];
        for (from, to, streams) in [(&a, "b", out), (&b, "a", back)] {
            for _ in 0..streams {
                writers.push(tokio::spawn(bulk(from.clone(), to, stop.clone())));
            }
        }
        sleep(WARM_UP).await;
        while controls.try_recv().is_ok() || datagrams.try_recv().is_ok() {}
        let (before, begun) = (read.load(Ordering::Relaxed), Instant::now());
        let (mut asks, sent) = probe(&a, nanos).await;
        let per_second = (read.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("no panic");
        }
        // What is still on its way is soon there.
        sleep(Duration::from_millis(200)).await;
        let drain = |from: &mut mpsc::UnboundedReceiver<u64>| {
            let mut all = vec![];
            while let Ok(nanos) = from.try_recv() {
                all.push(nanos);
            }
            all
        };
        let (mut tells, mut grams) = (drain(&mut controls), drain(&mut datagrams));
        let lost = sent - grams.len();
        assert_eq!((tells.len(), asks.len()), (sent, sent), "no control tell and no ask is lost");
        let figures = [&mut tells, &mut asks, &mut grams].map(|nanos| Figures::of(nanos));
        println!(
            "{name:<26}{:>9.0}  {:>26}  {:>26}  {:>26}  {lost:>4}/{sent}",
            per_second / 1e6,
            figures[0].show(),
            figures[1].show(),
            figures[2].show()
        );
        match &idle {
            None => idle = Some(figures),
            Some(idle) => {
                let times = |i: usize| {
                    format!(
                        "{:.1} / {:.1} / {:.1}",
                        figures[i].0 / idle[i].0,
                        figures[i].1 / idle[i].1,
                        figures[i].2 / idle[i].2
                    )
                };
                println!(
                    "{:<26}{:>9}  {:>26}  {:>26}  {:>26}",
                    "  times nothing else",
                    "",
                    times(0),
                    times(1),
                    times(2)
                );
            }
        }
    }
    a.close().await;
    b.close().await;
}

/// Median, 99th percentile and longest, in milliseconds.
struct Figures(f64, f64, f64);

impl Figures {
    fn of(nanos: &mut [u64]) -> Self {
        nanos.sort_unstable();
        let at = |share: f64| nanos[((nanos.len() - 1) as f64 * share) as usize] as f64 / 1e6;
        Self(at(0.5), at(0.99), at(1.0))
    }

    fn show(&self) -> String {
        format!("{:.3} / {:.3} / {:.3}", self.0, self.1, self.2)
    }
}

/// Writes until it is told to stop.
async fn bulk(from: Transport, to: &'static str, stop: Arc<AtomicBool>) {
    let (mut send, _recv) = from.open_stream(to, "bulk", Bytes::new()).await.expect("served");
    let piece = vec![7; PIECE_BYTES];
    while !stop.load(Ordering::Relaxed) {
        send.write_all(&piece).await.expect("read to the end");
    }
    send.finish().await.expect("read to the end");
}

/// Sends probes for a while; gives the asks' times and how many of each kind were sent.
async fn probe(from: &Transport, nanos: impl Fn() -> u64 + Copy + Send + 'static) -> (Vec<u64>, usize) {
    let mut ticks = interval(PROBE_EVERY);
    // On time again at once when a tick was late: what is late is what is measured.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = Instant::now() + MEASURED;
    let mut asks = tokio::task::JoinSet::new();
    let mut sent = 0;
    while Instant::now() < end {
        ticks.tick().await;
        sent += 1;
        from.tell_control("b", "probe", &Sent(nanos())).expect("room");
        let mut body = BytesMut::new();
        body.put_u64(nanos());
        from.datagram("b", "probe", body.freeze()).expect("connected");
        let ask = from.ask("b", "ask", &Sent(nanos()), DEADLINE);
        asks.spawn(async move {
            let at = ask.await.expect("answered");
            nanos() - at
        });
    }
    (asks.join_all().await, sent)
}

/// Two connected nodes of one cluster, with certificates made for the run.
async fn pair() -> (Transport, Transport) {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let root = params.self_signed(&key).expect("self-signed").der().clone();
    let issuer = Issuer::new(params, key);
    let start = |node: &str| {
        let mut params = CertificateParams::new(vec![server_name("bench", node)]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &issuer).expect("signed");
        let identity = Identity {
            cert_chain: vec![cert.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8"),
        };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = TransportConfig::new("bench", node, 1, any, identity, vec![root.clone()]);
        Transport::start(config).expect("starts")
    };
    let (a, b) = (start("a"), start("b"));
    a.set_peer("b", b.local_addr());
    while !(a.is_connected("b") && b.is_connected("a")) {
        sleep(Duration::from_millis(5)).await;
    }
    (a, b)
}
