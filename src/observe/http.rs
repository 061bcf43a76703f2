//! As much of HTTP/1.1 as a GET needs. Bounded in every way: who asks is not known.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// How many may ask at a time. Others wait to be let in.
const CONNECTIONS_MAX: usize = 16;
/// The largest request that is read.
const REQUEST_MAX_BYTES: usize = 8 << 10;
/// How long one may take to ask and to listen.
const TIME_MAX: Duration = Duration::from_secs(5);
/// How long to leave the listener alone when it lets nobody in, as when there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) const CODE_OK: &str = "200 OK";
pub(super) const CODE_NOT_FOUND: &str = "404 Not Found";
pub(super) const CODE_UNAVAILABLE: &str = "503 Service Unavailable";
const CODE_BAD: &str = "400 Bad Request";
const CODE_METHOD: &str = "405 Method Not Allowed";
const CODE_TOO_LARGE: &str = "431 Request Header Fields Too Large";

/// What somebody is told.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: &'static str,
    pub(super) media: &'static str,
    pub(super) body: String,
}

/// Answers each GET for a path, and closes the connection. Never ends.
pub(super) fn serve(
    listener: TcpListener,
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> impl Future<Output = ()> + Send {
    let (answer, seats) = (Arc::new(answer), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    async move {
        loop {
            let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return }; // nobody closes it
            let Ok((stream, _)) = listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                // Somebody who is too slow, or gone, hears nothing.
                let _ = timeout(TIME_MAX, converse(stream, &*answer)).await;
                drop(seat);
            });
        }
    }
}

async fn converse(mut stream: TcpStream, answer: &(impl Fn(&str) -> Answer + Sync)) -> std::io::Result<()> {
    let (mut request, mut end) = (vec![0; REQUEST_MAX_BYTES], 0);
    let whole = loop {
        let read = stream.read(&mut request[end..]).await?;
        end += read;
        if request[..end].windows(4).any(|window| window == b"\r\n\r\n") {
            break true;
        }
        if end == request.len() {
            break false;
        }
        if read == 0 {
            return Ok(()); // they hung up
        }
    };
    let heard = if whole { understand(&request[..end]) } else { Err(CODE_TOO_LARGE) };
    let (Answer { code, media, body }, with_body) = match heard {
        Ok((path, with_body)) => (answer(path), with_body),
        Err(code) => (Answer { code, media: "text/plain", body: format!("{code}\n") }, true),
    };
    let allow = if code == CODE_METHOD { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {media}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if with_body {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// The path that is asked for, and whether its body is; or the code of what is wrong.
fn understand(request: &[u8]) -> Result<(&str, bool), &'static str> {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| CODE_BAD)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(CODE_BAD);
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(CODE_BAD);
    }
    let path = target.split('?').next().unwrap_or(target);
    match method {
        "GET" => Ok((path, true)),
        "HEAD" => Ok((path, false)),
        _ => Err(CODE_METHOD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes back for these bytes.
    async fn ask(address: std::net::SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request).await; // it may have been told enough before
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await; // reset if it did not listen to the end
        String::from_utf8(answer).unwrap()
    }

    async fn listening() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let told = |path: &str| Answer { code: CODE_OK, media: "text/plain", body: path.to_owned() };
        (address, tokio::spawn(serve(listener, told)))
    }

    #[tokio::test]
    async fn a_get_is_answered_and_everything_else_is_told_what_is_wrong() {
        let (address, _serving) = listening().await;
        let got = ask(address, b"GET /metrics?x=1 HTTP/1.1\r\nHost: here\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\n/metrics"), "{got}");
        assert!(got.contains("Content-Length: 8\r\n") && got.contains("Connection: close\r\n"), "{got}");
        let got = ask(address, b"HEAD /metrics HTTP/1.0\r\n\r\n").await;
        assert!(got.contains("Content-Length: 8\r\n") && got.ends_with("\r\n\r\n"), "{got}");
        for (request, code) in [
            (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], "405"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"GET http://x/ HTTP/1.1\r\n\r\n", "400"),
            (b"GET / SMTP\r\n\r\n", "400"),
            (b"\xff\xfe\r\n\r\n", "400"),
            (&[b'x'; REQUEST_MAX_BYTES], "431"),
        ] {
            let got = ask(address, request).await;
            assert!(got.starts_with(&format!("HTTP/1.1 {code} ")), "{code}: {got}");
        }
    }

    #[tokio::test]
    async fn who_is_slow_keeps_nobody_else_for_long() {
        let (address, _serving) = listening().await;
        let mut idlers = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut idler = TcpStream::connect(address).await.unwrap();
            idler.write_all(b"GET /").await.unwrap();
            idlers.push(idler);
        }
        let got = timeout(TIME_MAX * 3, ask(address, b"GET /healthz HTTP/1.1\r\n\r\n")).await.unwrap();
        assert!(got.ends_with("/healthz"), "{got}");
        let mut nothing = Vec::new();
        idlers[0].read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty());
    }
}
