//! The fleet: its posts, who is ordered what, and its end.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    drill_role::Duty,
    error::DrillError,
    plan::{Fault, Plan, Planned},
    process_supervisor::{LEAVE_BOUND, ORDERS, Order, Post, What},
    workload::Series,
    workspace::Site,
};

/// How long the fleet may take until everybody is up for the first time.
const UP_BOUND: Duration = Duration::from_secs(60);
/// A fault waits so long for its target, which may not have recovered from the last one: on a busy machine a broker takes
/// half a minute to start, and those who follow others wait for it.
const TARGET_BOUND: Duration = Duration::from_secs(120);

/// Where orders for a post go.
#[derive(Debug, Clone)]
struct Handle {
    name: String,
    orders: mpsc::Sender<Order>,
    manned: watch::Receiver<bool>,
}

/// The fleet of a drill.
#[derive(Debug)]
pub(super) struct Crew {
    site: Arc<Site>,
    slots: u16,
    workers: Vec<Handle>,
    sink: Handle,
    producer: Handle,
    /// The producer's post, which is given up when everything is sent.
    sending: JoinSet<()>,
    /// All others, which are kept until they are closed.
    serving: JoinSet<()>,
    /// When it is cancelled, no more jobs are submitted.
    enough: CancellationToken,
    close: CancellationToken,
}

impl Crew {
    /// Starts the fleet; returns when everybody is up.
    pub(super) async fn start(
        site: &Arc<Site>,
        plan: &Plan,
        workers: u16,
        slots: u16,
    ) -> Result<Self, DrillError> {
        let (mut sending, mut serving) = (JoinSet::new(), JoinSet::new());
        let (enough, close) = (CancellationToken::new(), CancellationToken::new());
        let series = Series::new(plan.seed, plan.length, enough.clone());
        let post = |name: String, duty, tasks: &mut JoinSet<()>| man(site, &close, name, duty, tasks);
        let crew = Self {
            workers: (1..=workers)
                .map(|number| post(format!("worker {number}"), Duty::Worker { slots }, &mut serving))
                .collect(),
            sink: post("sink".into(), Duty::Sink, &mut serving),
            producer: post("producer".into(), Duty::Producer(series), &mut sending),
            site: Arc::clone(site),
            slots,
            sending,
            serving,
            enough,
            close,
        };
        crew.until_up().await?;
        Ok(crew)
    }

    async fn until_up(&self) -> Result<(), DrillError> {
        let all = || self.workers.iter().chain([&self.sink, &self.producer]);
        let up = futures::future::join_all(all().map(|handle| async {
            let _ = handle.manned.clone().wait_for(|manned| *manned).await; // a post that is given up does not come
        }));
        if timeout(UP_BOUND, up).await.is_ok() {
            return Ok(());
        }
        let missing: Vec<_> = all().filter(|it| !*it.manned.borrow()).map(|it| it.name.as_str()).collect();
        Err(DrillError::NotUp {
            waited_s: UP_BOUND.as_secs(),
            missing: format!("no {}", missing.join(", no ")),
            logs: self.site.dir.join("logs").display().to_string(),
        })
    }

    /// Does what is planned, each fault at its time. Returns when the last one is over.
    pub(super) async fn suffer(&mut self, plan: &Plan) {
        let began = Instant::now();
        let mut acts = JoinSet::new();
        for planned in &plan.faults {
            tokio::time::sleep_until(began + planned.at).await;
            acts.spawn(self.act(*planned));
        }
        acts.join_all().await;
        tokio::time::sleep_until(began + plan.length).await;
        self.enough.cancel();
    }

    /// One fault, from its time to its end; notes what came of it.
    fn act(&mut self, planned: Planned) -> impl Future<Output = ()> + Send + use<> {
        let Planned { fault, lasts, .. } = planned;
        let (site, aim) = (Arc::clone(&self.site), self.aim(planned));
        async move {
            let came = match (site.outstanding().await, aim) {
                (0, _) => Err("there was nothing left to do".into()),
                (_, Some((whom, what))) => whom.order(what, lasts).await,
                (_, None) => site.broker.suffer(fault, lasts).await,
            };
            site.act(fault, came);
        }
    }

    /// Whom a fault hits, and what is done to them; `None` if it is the broker.
    fn aim(&mut self, Planned { fault, worker, lasts, .. }: Planned) -> Option<(Handle, What)> {
        let (whom, what) = match fault {
            Fault::WorkerKilled => (&self.workers[worker], What::Kill),
            Fault::WorkerPaused => (&self.workers[worker], What::Pause(lasts)),
            Fault::WorkerDrained => (&self.workers[worker], What::Drain),
            Fault::WorkerAdded => {
                let duty = Duty::Worker { slots: self.slots };
                let guest = man(&self.site, &self.close, "added worker".into(), duty, &mut self.serving);
                return Some((guest, What::DrainAfter(lasts)));
            }
            Fault::SinkKilled => (&self.sink, What::Kill),
            Fault::SinkPaused => (&self.sink, What::Pause(lasts)),
            Fault::SinkDrained => (&self.sink, What::Drain),
            Fault::ProducerKilled => (&self.producer, What::Kill),
            Fault::ProducerInterrupted => (&self.producer, What::Interrupt),
            Fault::BrokerKilled | Fault::BrokerPaused | Fault::ConnectionsClosed => return None,
        };
        Some((whom.clone(), what))
    }

    /// Waits until everything is sent.
    pub(super) async fn until_sent(&mut self) {
        while let Some(ended) = self.sending.join_next().await {
            if let Err(panic) = ended {
                self.site.defect(format!("the producer's post: {panic}"));
            }
        }
    }

    /// Lets everybody drain, and returns when nobody is left.
    pub(super) async fn leave(&mut self) {
        self.close.cancel();
        while let Some(ended) = self.serving.join_next().await {
            if let Err(panic) = ended {
                self.site.defect(format!("a post: {panic}"));
            }
        }
    }
}

/// Makes a post and keeps it manned, as one of `tasks`.
fn man(
    site: &Arc<Site>,
    close: &CancellationToken,
    name: String,
    duty: Duty,
    tasks: &mut JoinSet<()>,
) -> Handle {
    let (orders, receiver) = mpsc::channel(ORDERS);
    let (sender, manned) = watch::channel(false);
    let post = Post {
        name: name.clone(),
        site: Arc::clone(site),
        duty,
        orders: receiver,
        manned: sender,
        close: close.clone(),
    };
    tasks.spawn(post.keep());
    Handle { name, orders, manned }
}

impl Handle {
    /// Orders something, and waits for what comes of it.
    async fn order(&self, what: What, lasts: Duration) -> Result<String, String> {
        let (done, came) = oneshot::channel();
        let until = Instant::now() + TARGET_BOUND;
        self.orders
            .try_send(Order { what, until, done })
            .map_err(|_| format!("{} takes no more orders", self.name))?;
        match timeout(TARGET_BOUND + lasts + LEAVE_BOUND, came).await {
            Ok(Ok(came)) => came,
            Ok(Err(_)) => Err(format!("{} was given up before that", self.name)),
            Err(_) => Err(format!("{} was not there in time", self.name)),
        }
    }
}
