//! The fleet of a drill: its supervisors, the faults that they get, and its end.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    drill_role::DrillRole,
    error::DrillError,
    plan::{DrillFault, DrillPlan, PlannedFault},
    process_supervisor::{FaultOrder, LEAVE_BOUND, ORDERS_MAX, ProcessFault, ProcessSupervisor},
    workload::Workload,
    workspace::Workspace,
};

/// Bound for the time until the whole fleet is up for the first time.
const UP_BOUND: Duration = Duration::from_secs(60);
/// Bound for the time that a fault waits for its target, which may not have recovered from the last
/// one: on a busy machine a broker takes half a minute to start, and restarted processes wait for
/// it.
const TARGET_BOUND: Duration = Duration::from_secs(120);

/// A handle to a supervisor.
#[derive(Debug, Clone)]
struct SupervisorHandle {
    name: String,
    orders: mpsc::Sender<FaultOrder>,
    running: watch::Receiver<bool>,
}

/// The fleet of a drill.
#[derive(Debug)]
pub(super) struct DrillFleet {
    workspace: Arc<Workspace>,
    slots: u16,
    workers: Vec<SupervisorHandle>,
    sink: SupervisorHandle,
    producer: SupervisorHandle,
    /// The producer's supervisor, which ends when everything is sent.
    sending: JoinSet<()>,
    /// All other supervisors, which run until they are closed.
    serving: JoinSet<()>,
    /// Cancelled when no more jobs are to be submitted.
    enough: CancellationToken,
    close: CancellationToken,
}

impl DrillFleet {
    /// Starts the fleet and returns once every process is up.
    pub(super) async fn start(
        workspace: &Arc<Workspace>,
        plan: &DrillPlan,
        workers: u16,
        slots: u16,
    ) -> Result<Self, DrillError> {
        let (mut sending, mut serving) = (JoinSet::new(), JoinSet::new());
        let (enough, close) = (CancellationToken::new(), CancellationToken::new());
        let workload = Workload::new(plan.seed, plan.length, enough.clone());
        let supervisor = |name: String, role, tasks: &mut JoinSet<()>| {
            spawn_supervisor(workspace, &close, name, role, tasks)
        };
        let fleet = Self {
            workers: (1..=workers)
                .map(|number| {
                    supervisor(format!("worker {number}"), DrillRole::Worker { slots }, &mut serving)
                })
                .collect(),
            sink: supervisor("sink".into(), DrillRole::Sink, &mut serving),
            producer: supervisor("producer".into(), DrillRole::Producer(workload), &mut sending),
            workspace: Arc::clone(workspace),
            slots,
            sending,
            serving,
            enough,
            close,
        };
        fleet.wait_up().await?;
        Ok(fleet)
    }

    async fn wait_up(&self) -> Result<(), DrillError> {
        let all = || self.workers.iter().chain([&self.sink, &self.producer]);
        let up = futures::future::join_all(all().map(|handle| async {
            let _ = handle.running.clone().wait_for(|running| *running).await; // never, if it has ended
        }));
        if timeout(UP_BOUND, up).await.is_ok() {
            return Ok(());
        }
        let missing: Vec<_> = all().filter(|it| !*it.running.borrow()).map(|it| it.name.as_str()).collect();
        Err(DrillError::NotUp {
            waited_s: UP_BOUND.as_secs(),
            missing: format!("no {}", missing.join(", no ")),
            logs: self.workspace.dir.join("logs").display().to_string(),
        })
    }

    /// Injects the planned faults, each at its time. Returns when the last one is over.
    pub(super) async fn inject_all(&mut self, plan: &DrillPlan) {
        let began = Instant::now();
        let mut injections = JoinSet::new();
        for planned in &plan.faults {
            tokio::time::sleep_until(began + planned.at).await;
            injections.spawn(self.inject(*planned));
        }
        injections.join_all().await;
        tokio::time::sleep_until(began + plan.length).await;
        self.enough.cancel();
    }

    /// Injects one fault, from its time to its end, and records the result.
    fn inject(&mut self, planned: PlannedFault) -> impl Future<Output = ()> + Send + use<> {
        let PlannedFault { fault, duration, .. } = planned;
        let (workspace, target) = (Arc::clone(&self.workspace), self.select_target(planned));
        async move {
            let result = match (workspace.outstanding_count().await, target) {
                (0, _) => Err("there was nothing left to do".into()),
                (_, Some((supervisor, what))) => supervisor.order(what, duration).await,
                (_, None) => workspace.broker.inject(fault, duration).await,
            };
            workspace.record_fault(fault, result);
        }
    }

    /// Returns the target of a fault and the fault of its process; `None` if it is the broker's.
    fn select_target(
        &mut self,
        PlannedFault { fault, worker, duration, .. }: PlannedFault,
    ) -> Option<(SupervisorHandle, ProcessFault)> {
        let (supervisor, what) = match fault {
            DrillFault::WorkerKilled => (&self.workers[worker], ProcessFault::Kill),
            DrillFault::WorkerPaused => (&self.workers[worker], ProcessFault::Pause(duration)),
            DrillFault::WorkerDrained => (&self.workers[worker], ProcessFault::Drain),
            DrillFault::WorkerAdded => {
                let role = DrillRole::Worker { slots: self.slots };
                let added = spawn_supervisor(
                    &self.workspace,
                    &self.close,
                    "added worker".into(),
                    role,
                    &mut self.serving,
                );
                return Some((added, ProcessFault::DrainAfter(duration)));
            }
            DrillFault::SinkKilled => (&self.sink, ProcessFault::Kill),
            DrillFault::SinkPaused => (&self.sink, ProcessFault::Pause(duration)),
            DrillFault::SinkDrained => (&self.sink, ProcessFault::Drain),
            DrillFault::ProducerKilled => (&self.producer, ProcessFault::Kill),
            DrillFault::ProducerInterrupted => (&self.producer, ProcessFault::Interrupt),
            DrillFault::BrokerKilled | DrillFault::BrokerPaused | DrillFault::ConnectionsClosed => {
                return None;
            }
        };
        Some((supervisor.clone(), what))
    }

    /// Waits until everything is sent.
    pub(super) async fn wait_sent(&mut self) {
        while let Some(ended) = self.sending.join_next().await {
            if let Err(panic) = ended {
                self.workspace.record_defect(format!("the producer's post: {panic}"));
            }
        }
    }

    /// Drains every process, and returns when all have ended.
    pub(super) async fn drain(&mut self) {
        self.close.cancel();
        while let Some(ended) = self.serving.join_next().await {
            if let Err(panic) = ended {
                self.workspace.record_defect(format!("a post: {panic}"));
            }
        }
    }
}

/// Spawns a supervisor as one of `tasks`.
fn spawn_supervisor(
    workspace: &Arc<Workspace>,
    close: &CancellationToken,
    name: String,
    role: DrillRole,
    tasks: &mut JoinSet<()>,
) -> SupervisorHandle {
    let (orders, receiver) = mpsc::channel(ORDERS_MAX);
    let (sender, running) = watch::channel(false);
    let supervisor = ProcessSupervisor {
        name: name.clone(),
        workspace: Arc::clone(workspace),
        role,
        orders: receiver,
        running: sender,
        close: close.clone(),
    };
    tasks.spawn(supervisor.run());
    SupervisorHandle { name, orders, running }
}

impl SupervisorHandle {
    /// Orders a fault, and waits for its result.
    async fn order(&self, what: ProcessFault, duration: Duration) -> Result<String, String> {
        let (done, result) = oneshot::channel();
        let until = Instant::now() + TARGET_BOUND;
        self.orders
            .try_send(FaultOrder { what, until, done })
            .map_err(|_| format!("{} takes no more orders", self.name))?;
        match timeout(TARGET_BOUND + duration + LEAVE_BOUND, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(format!("{} was given up before that", self.name)),
            Err(_) => Err(format!("{} was not there in time", self.name)),
        }
    }
}
