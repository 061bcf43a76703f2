//! The part of HTTP/1.1 that a GET needs. Every resource is bounded, since clients are unknown.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// The most connections at a time. Others wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
/// The largest request that is read.
const REQUEST_MAX_BYTES: usize = 8 << 10;
/// The time limit of one exchange, from the accept to the last byte of the response.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed accept, for example when there are no file descriptors left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

pub(super) const CODE_OK: &str = "200 OK";
pub(super) const CODE_NOT_FOUND: &str = "404 Not Found";
pub(super) const CODE_UNAVAILABLE: &str = "503 Service Unavailable";
const CODE_BAD_REQUEST: &str = "400 Bad Request";
const CODE_METHOD_NOT_ALLOWED: &str = "405 Method Not Allowed";
const CODE_TOO_LARGE: &str = "431 Request Header Fields Too Large";

/// A response to a client.
#[derive(Debug)]
pub(super) struct HttpResponse {
    pub(super) code: &'static str,
    pub(super) media_type: &'static str,
    pub(super) body: String,
}

/// Serves each GET by its path and closes the connection. Never ends.
pub(super) fn serve(
    listener: TcpListener,
    respond: impl Fn(&str) -> HttpResponse + Send + Sync + 'static,
) -> impl Future<Output = ()> + Send {
    let (respond, permits) = (Arc::new(respond), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    async move {
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return }; // never closed
            let Ok((stream, _)) = listener.accept().await else {
                sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            };
            let respond = Arc::clone(&respond);
            tokio::spawn(async move {
                // A client that is too slow, or gone, gets no response.
                let _ = timeout(EXCHANGE_TIMEOUT, handle_connection(stream, &*respond)).await;
                drop(permit);
            });
        }
    }
}

async fn handle_connection(
    mut stream: TcpStream,
    respond: &(impl Fn(&str) -> HttpResponse + Sync),
) -> std::io::Result<()> {
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
            return Ok(()); // the client closed the connection
        }
    };
    let parsed = if whole { parse_request(&request[..end]) } else { Err(CODE_TOO_LARGE) };
    let (HttpResponse { code, media_type, body }, with_body) = match parsed {
        Ok((path, with_body)) => (respond(path), with_body),
        Err(code) => (HttpResponse { code, media_type: "text/plain", body: format!("{code}\n") }, true),
    };
    let allow = if code == CODE_METHOD_NOT_ALLOWED { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if with_body {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Returns the requested path and true if the body is wanted, or the status code of the error.
fn parse_request(request: &[u8]) -> Result<(&str, bool), &'static str> {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| CODE_BAD_REQUEST)?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(CODE_BAD_REQUEST);
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(CODE_BAD_REQUEST);
    }
    let path = target.split('?').next().unwrap_or(target);
    match method {
        "GET" => Ok((path, true)),
        "HEAD" => Ok((path, false)),
        _ => Err(CODE_METHOD_NOT_ALLOWED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the response to these bytes.
    async fn ask(address: std::net::SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request).await; // the server may have responded before
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await; // reset if the request was not read to its end
        String::from_utf8(answer).unwrap()
    }

    async fn listening() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let respond =
            |path: &str| HttpResponse { code: CODE_OK, media_type: "text/plain", body: path.to_owned() };
        (address, tokio::spawn(serve(listener, respond)))
    }

    #[tokio::test]
    async fn get_succeeds_and_others_fail() {
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
    async fn slow_client_delays_no_other() {
        let (address, _serving) = listening().await;
        let mut idlers = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut idler = TcpStream::connect(address).await.unwrap();
            idler.write_all(b"GET /").await.unwrap();
            idlers.push(idler);
        }
        let got =
            timeout(EXCHANGE_TIMEOUT * 3, ask(address, b"GET /healthz HTTP/1.1\r\n\r\n")).await.unwrap();
        assert!(got.ends_with("/healthz"), "{got}");
        let mut nothing = Vec::new();
        idlers[0].read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty());
    }
}
