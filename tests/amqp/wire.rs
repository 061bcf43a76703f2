//! A wire to the broker that can be cut.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
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
            while let Ok((mut near, _)) = listener.accept().await {
                if own.down.load(Ordering::SeqCst) {
                    continue;
                }
                let broker = broker.clone();
                own.connections.lock().unwrap().spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(broker).await {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
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
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
