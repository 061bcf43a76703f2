//! The example of async tasks, against a server that takes its time.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::harness::{Process, ProcessOutput};

const ANSWER_DELAY: Duration = Duration::from_millis(100);
const SLOT_COUNT: usize = 2;
/// Tasks that the example keeps in flight on a slot.
const IN_FLIGHT: usize = 64;
/// Enough to take a few seconds at full speed.
const PAGE_COUNT: usize = 6_000;
/// Least share of the rate that slots, requests in flight and latency allow.
const SHARE_MIN: f64 = 0.8;
/// Pages of the control, which fetches without Gristmill, and the share that it reaches on a
/// machine with time for it. Beside a slower control [`SHARE_MIN`] is a share of what the control
/// reaches.
const CONTROL_PAGES: usize = 2_000;
const CONTROL_MIN: f64 = 0.9;
/// Runs of which one must be fast enough: another program may use the machine during one of them.
const ATTEMPTS_MAX: usize = 3;
const PAGE_BODY: &str = "0123456789";

/// A server on loopback, with the highest number of requests that it had at a time.
struct PageServer {
    address: String,
    most: Arc<AtomicUsize>,
}

impl PageServer {
    async fn start(pages: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (here, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let most_of = Arc::clone(&most);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (here, most) = (Arc::clone(&here), Arc::clone(&most_of));
                tokio::spawn(async move {
                    most.fetch_max(here.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let _ = answer(stream, pages).await;
                    here.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, most }
    }
}

/// Answers one request after [`ANSWER_DELAY`].
async fn answer(mut stream: TcpStream, pages: usize) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    tokio::time::sleep(ANSWER_DELAY).await;
    let request = String::from_utf8_lossy(&request);
    let page = request.split(['/', ' ']).nth(2).and_then(|page| page.parse::<usize>().ok());
    let answer = match page {
        Some(page) if page < pages => {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{PAGE_BODY}", PAGE_BODY.len())
        }
        _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(),
    };
    stream.write_all(answer.as_bytes()).await
}

async fn fetch(server: &PageServer, pages: usize) -> ProcessOutput {
    let tests = std::env::current_exe().unwrap();
    let path: PathBuf = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/fetch");
    assert!(path.exists(), "{} is missing (hint: cargo build --examples)", path.display());
    let mut command = Command::new(path);
    command.args(["run", "fetch", "--server", &server.address]);
    command.args(["--pages", &pages.to_string(), "--slots", &SLOT_COUNT.to_string()]);
    Process::start("fetch", command).output().await
}

/// Fetches the pages as the example does, from within this process and without Gristmill: what the
/// machine is able to.
async fn fetch_bare(server: &PageServer) {
    let fetch_one = async |page: usize| {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(format!("GET /{page} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with(PAGE_BODY), "{answer}");
    };
    stream::iter(0..CONTROL_PAGES).for_each_concurrent(SLOT_COUNT * IN_FLIGHT, fetch_one).await;
}

/// The share of the highest rate that is possible.
fn share_of_full(pages: usize, took: Duration) -> f64 {
    let full = (SLOT_COUNT * IN_FLIGHT) as f64 / ANSWER_DELAY.as_secs_f64();
    pages as f64 / took.as_secs_f64() / full
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_keeps_64_in_flight_per_slot() {
    let mut slow = Vec::new();
    while slow.len() < ATTEMPTS_MAX {
        let server = PageServer::start(PAGE_COUNT).await;
        let began = Instant::now();
        let ended = fetch(&server, PAGE_COUNT).await;
        let share = share_of_full(PAGE_COUNT, began.elapsed());
        assert_eq!(ended.answer(), format!("{PAGE_COUNT} pages, {} bytes", PAGE_COUNT * PAGE_BODY.len()));
        let most = server.most.load(Ordering::SeqCst);
        // A request whose connection is closed may be counted a moment longer than its client knows
        // of it.
        assert!(
            (IN_FLIGHT..=SLOT_COUNT * IN_FLIGHT + SLOT_COUNT * IN_FLIGHT / 8).contains(&most),
            "{most} at a time"
        );
        let began = Instant::now();
        fetch_bare(&server).await;
        let control = share_of_full(CONTROL_PAGES, began.elapsed());
        println!("{share:.3} of the full rate, without Gristmill {control:.3}, {most} at a time");
        let wanted = if control < CONTROL_MIN { SHARE_MIN * control } else { SHARE_MIN };
        if share >= wanted {
            return;
        }
        slow.push((share, control));
    }
    panic!("shares of the full rate, and those without Gristmill: {slow:.3?}");
}

#[tokio::test]
async fn missing_page_fails_alone() {
    let server = PageServer::start(100).await;
    let ended = fetch(&server, 101).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("there is no page 100"), "{ended:?}");
}
