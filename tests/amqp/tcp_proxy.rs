//! A TCP proxy to the broker that cuts, delays and withholds.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::*;

/// A proxy that accepts connections on a port of its own and forwards their bytes.
pub(super) struct TcpProxy {
    url: String,
    state: Arc<ProxyState>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct ProxyState {
    connections: Mutex<JoinSet<()>>,
    down: AtomicBool,
    mode: watch::Sender<ProxyMode>,
    /// Number of connections that a mode has ended or muted.
    faults: AtomicUsize,
}

/// The way in which a proxy treats the bytes that it forwards.
#[derive(Clone, Copy, Default)]
pub(super) enum ProxyMode {
    #[default]
    Normal,
    /// Forwards a byte at a time, as far as it can.
    SingleBytes,
    /// Forwards after this delay, both ways.
    Delayed(Duration),
    /// Ends the connection after this number of further bytes to the broker, wherever in a frame
    /// that is.
    CutAfter(usize),
    /// Ends each connection before bytes with this text go to the broker, now and later.
    CutAt(&'static str),
    /// Forwards nothing from the broker, and everything to it.
    Mute,
}

impl TcpProxy {
    /// Starts a proxy to the broker that all tests share.
    pub(super) async fn start() -> Self {
        Self::start_to(&broker_url()).await
    }

    pub(super) async fn start_to(url: &str) -> Self {
        let (user, rest) = url.split_once('@').expect("a user");
        let (broker, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        let broker = broker.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{user}@{}/{vhost}", listener.local_addr().unwrap());
        let state = Arc::<ProxyState>::default();
        let own = Arc::clone(&state);
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if own.down.load(Ordering::SeqCst) {
                    continue;
                }
                let broker = broker.clone();
                let state = Arc::clone(&own);
                own.connections.lock().unwrap().spawn(async move {
                    let Ok(far) = TcpStream::connect(broker).await else { return };
                    far.set_nodelay(true).unwrap(); // else single bytes would be merged again
                    near.set_nodelay(true).unwrap();
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = state.forward(near_in, far_out, true) => {}
                        () = state.forward(far_in, near_out, false) => {}
                    }
                });
            }
        });
        Self { url, state, listening }
    }

    /// Opens a transport over this proxy, with a lane of its own.
    pub(super) async fn open(&self) -> (Arc<AmqpTransport>, Lane) {
        let transport = within(AmqpTransport::connect(self.config())).await.unwrap();
        let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
        within(transport.open_lane(&lane)).await.unwrap();
        (transport, lane)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn config(&self) -> AmqpConfig {
        AmqpConfig::new(&self.url).unwrap()
    }

    /// Cuts all connections, at least both of a transport. Waits for them if they are not back yet.
    pub(super) async fn cut(&self) {
        loop {
            let up = {
                let mut connections = self.state.connections.lock().unwrap();
                while connections.try_join_next().is_some() {} // those that ended by themselves
                (connections.len() >= 2).then(|| std::mem::take(&mut *connections))
            };
            match up {
                Some(mut up) => return up.shutdown().await,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Cuts all connections and accepts none until `restore`.
    pub(super) async fn take_down(&self) {
        self.state.down.store(true, Ordering::SeqCst);
        self.cut().await;
    }

    pub(super) fn restore(&self) {
        self.state.down.store(false, Ordering::SeqCst);
    }

    /// Sets the mode of all connections, present and future.
    pub(super) fn set_mode(&self, mode: ProxyMode) {
        self.state.mode.send_replace(mode);
    }

    /// Returns the number of connections that [`ProxyMode::CutAfter`] or [`ProxyMode::CutAt`]
    /// ended, or [`ProxyMode::Mute`] muted.
    pub(super) fn fault_count(&self) -> usize {
        self.state.faults.load(Ordering::SeqCst)
    }
}

impl ProxyState {
    /// Forwards bytes one way, until there are no more.
    async fn forward(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        to_broker: bool,
    ) {
        let mut buffer = vec![0; 16 << 10];
        let mut mute = false;
        let mut mode = self.mode.subscribe();
        let mut left = None;
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let (now, changed) = (*mode.borrow(), mode.has_changed().unwrap_or(false));
            mode.mark_unchanged();
            let mut bytes = &buffer[..count];
            let step = match now {
                ProxyMode::SingleBytes => 1,
                _ => bytes.len(),
            };
            match now {
                ProxyMode::Delayed(time) => tokio::time::sleep(time).await,
                ProxyMode::Mute => mute |= !to_broker,
                ProxyMode::CutAfter(limit) if to_broker => {
                    let room = left.filter(|_| !changed).unwrap_or(limit);
                    bytes = &bytes[..bytes.len().min(room)];
                    left = Some(room - bytes.len());
                }
                ProxyMode::CutAt(word) if to_broker && contains(bytes, word) => {
                    self.faults.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                _ => {}
            }
            if mute {
                self.faults.fetch_add(1, Ordering::SeqCst);
                return std::future::pending().await; // the far end's bytes pile up
            }
            for piece in bytes.chunks(step) {
                if to.write_all(piece).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
            if left == Some(0) {
                self.faults.fetch_add(1, Ordering::SeqCst);
                self.mode.send_replace(ProxyMode::Normal);
                return;
            }
        }
    }
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
