//! A wire to the broker that can be cut, and worse.

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

/// Takes connections on a port of its own and hands on what comes, until it is cut.
pub(super) struct Wire {
    url: String,
    state: Arc<State>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    connections: Mutex<JoinSet<()>>,
    down: AtomicBool,
    manner: watch::Sender<Manner>,
    /// How many connections a manner has ended.
    ended: AtomicUsize,
}

/// How a wire treats what it hands on.
#[derive(Clone, Copy, Default)]
pub(super) enum Manner {
    #[default]
    Well,
    /// A byte at a time, as far as it can.
    InBytes,
    /// So much later, both ways.
    Late(Duration),
    /// The connection ends once so many more bytes have gone to the broker, wherever in a frame that is.
    CutAfter(usize),
    /// Each connection ends when bytes that have this among them are to go to the broker, this time and whenever they come.
    CutAt(&'static str),
    /// Nothing that the broker says comes through any more. It hears everything.
    Deaf,
}

impl Wire {
    /// To the broker that all tests share.
    pub(super) async fn lay() -> Self {
        Self::lay_to(&broker_url()).await
    }

    pub(super) async fn lay_to(url: &str) -> Self {
        let (user, rest) = url.split_once('@').expect("a user");
        let (broker, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        let broker = broker.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{user}@{}/{vhost}", listener.local_addr().unwrap());
        let state = Arc::<State>::default();
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
                    far.set_nodelay(true).unwrap(); // else bytes alone would be put together again
                    near.set_nodelay(true).unwrap();
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = state.hand_on(near_in, far_out, true) => {}
                        () = state.hand_on(far_in, near_out, false) => {}
                    }
                });
            }
        });
        Self { url, state, listening }
    }

    /// A transport over this wire, with a lane of its own.
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

    /// Cuts what is connected, both connections of a transport at least; waits for them if they are not back yet.
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

    /// Cuts it and lets nobody through until `mend`.
    pub(super) async fn break_down(&self) {
        self.state.down.store(true, Ordering::SeqCst);
        self.cut().await;
    }

    pub(super) fn mend(&self) {
        self.state.down.store(false, Ordering::SeqCst);
    }

    /// Treats what is and will be connected like this.
    pub(super) fn treat(&self, manner: Manner) {
        self.state.manner.send_replace(manner);
    }

    /// How many connections were ended by [`Manner::CutAfter`] or [`Manner::CutAt`], or kept from hearing by [`Manner::Deaf`].
    pub(super) fn ended(&self) -> usize {
        self.state.ended.load(Ordering::SeqCst)
    }
}

impl State {
    /// Hands on bytes one way, until there are no more.
    async fn hand_on(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        to_broker: bool,
    ) {
        let mut buffer = vec![0; 16 << 10];
        let mut deaf = false;
        let mut manner = self.manner.subscribe();
        let mut left = None;
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let (now, changed) = (*manner.borrow(), manner.has_changed().unwrap_or(false));
            manner.mark_unchanged();
            let mut bytes = &buffer[..count];
            let step = match now {
                Manner::InBytes => 1,
                _ => bytes.len(),
            };
            match now {
                Manner::Late(time) => tokio::time::sleep(time).await,
                Manner::Deaf => deaf |= !to_broker,
                Manner::CutAfter(limit) if to_broker => {
                    let room = left.filter(|_| !changed).unwrap_or(limit);
                    bytes = &bytes[..bytes.len().min(room)];
                    left = Some(room - bytes.len());
                }
                Manner::CutAt(word) if to_broker && contains(bytes, word) => {
                    self.ended.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                _ => {}
            }
            if deaf {
                self.ended.fetch_add(1, Ordering::SeqCst);
                return std::future::pending().await; // the far end's words pile up
            }
            for piece in bytes.chunks(step) {
                if to.write_all(piece).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
            if left == Some(0) {
                self.ended.fetch_add(1, Ordering::SeqCst);
                self.manner.send_replace(Manner::Well);
                return;
            }
        }
    }
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
