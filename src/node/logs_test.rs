use super::*;
use crate::runtime::container_log::{LogFile, Rotation};
use futures::StreamExt;
use serde_json::json;

struct Pod {
    dir: tempfile::TempDir,
    layout: Layout,
}

impl Pod {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        std::fs::create_dir_all(layout.pods()).unwrap();
        std::fs::create_dir_all(layout.pod_logs("d", "web", "u").join("c")).unwrap();
        Self { dir, layout }
    }

    fn path(&self, attempt: u32) -> PathBuf {
        self.layout.pod_logs("d", "web", "u").join("c").join(format!("{attempt}.log"))
    }

    fn log(&self, attempt: u32, bytes_max: u64) -> LogFile {
        LogFile::open(&self.path(attempt), Rotation { file_bytes_max: bytes_max, files_max: 5 })
    }

    fn state(&self, state: serde_json::Value, last: serde_json::Value, restarts: u32) {
        let status = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true,
            "restartCount": restarts, "state": state, "lastState": last, "containerID": format!("process://u_c_{restarts}")}]});
        self.layout.write_status("u", &serde_json::from_value(status).unwrap());
    }

    fn running(&self, attempt: u32) {
        self.state(json!({"running": {}}), json!({}), attempt);
    }

    fn ended(&self, attempt: u32) {
        let id = format!("process://u_c_{attempt}");
        self.state(json!({"terminated": {"exitCode": 0, "containerID": id}}), json!({}), attempt);
    }

    fn open(&self, request: LogRequest) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, LogError> {
        open(&self.layout, "d", "web", "u", "c".into(), request)
    }

    async fn text(&self, request: LogRequest) -> String {
        let mut stream = Box::pin(self.open(request).unwrap());
        let mut text = Vec::new();
        while let Some(chunk) = stream.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }
}

fn record(second: u32, tag: &str, text: &str) -> Vec<u8> {
    format!("2026-11-23T10:00:{second:02}.000000000Z stdout {tag} {text}\n").into_bytes()
}

fn numbers(text: &str) -> Vec<u32> {
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test]
async fn partial_records_are_one_line_and_options_apply() {
    let pod = Pod::new();
    pod.running(0);
    let mut log = pod.log(0, 1 << 20);
    for (second, tag, text) in [(1, "F", "one"), (2, "P", "tw"), (2, "F", "o"), (3, "F", "three")] {
        log.write(&record(second, tag, text));
    }
    log.write(b"torn\n");
    let ask = LogRequest::default;
    assert_eq!(pod.text(ask()).await, "one\ntwo\nthree\n");
    assert_eq!(pod.text(LogRequest { limit_bytes: Some(5), ..ask() }).await, "one\nt");
    let since = Some("2026-11-23T10:00:02Z".parse().unwrap());
    assert_eq!(pod.text(LogRequest { since, ..ask() }).await, "two\nthree\n");
    let stamped = pod.text(LogRequest { timestamps: true, ..ask() }).await;
    assert_eq!(stamped.lines().nth(1), Some("2026-11-23T10:00:02.000000000Z two"));
}

#[tokio::test]
async fn tail_reaches_back_across_rotation() {
    let pod = Pod::new();
    pod.ended(0);
    let mut log = pod.log(0, 1000);
    for number in 0..60 {
        log.write(&record(number, "F", &number.to_string()));
    }
    assert!(rotated(&pod.path(0)).len() >= 2);
    for lines in [0, 1, 5, 30, 59, 60, 1000] {
        let text = pod.text(LogRequest { tail_lines: Some(lines.into()), ..LogRequest::default() }).await;
        let expected: Vec<u32> = (60 - lines.min(60)..60).collect();
        assert_eq!(numbers(&text), expected, "--tail={lines}");
    }
}

#[tokio::test]
async fn following_misses_no_line_across_rotations_and_ends_with_the_run() {
    let pod = Pod::new();
    pod.running(0);
    let mut log = pod.log(0, 20_000);
    log.write(&record(0, "F", "0"));
    let mut stream = Box::pin(pod.open(LogRequest { follow: true, ..LogRequest::default() }).unwrap());
    let mut text = String::new();
    let mut written = 0;
    for _ in 0..20 {
        for _ in 0..200 {
            written += 1;
            log.write(&record(written % 60, "F", &written.to_string()));
        }
        // The reader keeps up within the files that are kept; it is woken by every batch.
        while text.lines().last() != Some(&written.to_string()) {
            text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
    }
    log.write(&record(1, "F", "4001"));
    pod.ended(0);
    while let Some(chunk) = stream.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
    }
    assert_eq!(numbers(&text), (0..=4001).collect::<Vec<_>>());
}

#[tokio::test]
async fn which_run_is_meant_is_the_kubelets_choice() {
    let pod = Pod::new();
    for attempt in 0..3 {
        pod.log(attempt, 1 << 20).write(&record(0, "F", &attempt.to_string()));
    }
    let previous = || LogRequest { previous: true, ..LogRequest::default() };
    let ended =
        |attempt: u32| json!({"terminated": {"exitCode": 1, "containerID": format!("process://u_c_{attempt}")}});
    pod.state(json!({"running": {}}), ended(1), 2);
    assert_eq!(pod.text(LogRequest::default()).await, "2\n");
    assert_eq!(pod.text(previous()).await, "1\n");
    pod.state(json!({"waiting": {"reason": "CrashLoopBackOff"}}), ended(2), 2);
    assert_eq!(pod.text(LogRequest::default()).await, "2\n");
    assert_eq!(pod.text(previous()).await, "2\n");
    pod.state(json!({"waiting": {"reason": "CreateContainerConfigError"}}), json!({}), 0);
    assert_eq!(
        pod.open(LogRequest::default()).err().unwrap().to_string(),
        "container \"c\" in pod \"web\" is waiting to start: CreateContainerConfigError"
    );
    assert_eq!(
        pod.open(previous()).err().unwrap().to_string(),
        "previous terminated container \"c\" in pod \"web\" not found"
    );
    drop(pod.dir);
}
