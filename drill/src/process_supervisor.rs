//! A supervisor keeps one process of the fleet running: when it ends, another one is started.

use std::{io, sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    account::UnplannedExit,
    drill_role::DrillRole,
    supervised_process::{ProcessExit, SupervisedProcess},
    workspace::Workspace,
};
use gristmill_shared::{Backoff, Exit};

/// Number of orders that may wait at a supervisor. The plan leaves time between them, so more than
/// one is rare.
pub(super) const ORDERS_MAX: usize = 8;
/// Bound for a process to end after a signal: twice the time that a worker needs at worst.
pub(super) const LEAVE_BOUND: Duration = Duration::from_secs(60);
/// Time before a process that ended by itself is restarted: at first, and at most, doubled each
/// time.
const BACKOFF_RANGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Uptime after which the backoff is short again.
const STEADY_UPTIME: Duration = Duration::from_secs(10);

/// A fault of a supervised process.
#[derive(Debug, Clone, Copy)]
pub(super) enum ProcessFault {
    /// Sends SIGKILL.
    Kill,
    /// Sends SIGTERM; the process must exit 0.
    Drain,
    /// Drains after a while, and ends the supervisor.
    DrainAfter(Duration),
    /// Sends SIGINT to a producer, which prints how to resume.
    Interrupt,
    /// Sends SIGSTOP, and SIGCONT after a while.
    Pause(Duration),
}

/// An order to inject a fault, with the sender for its result.
#[derive(Debug)]
pub(super) struct FaultOrder {
    pub(super) what: ProcessFault,
    /// Time after which the order is too late.
    pub(super) until: Instant,
    pub(super) done: oneshot::Sender<Result<String, String>>,
}

/// A supervisor of one process at a time.
#[derive(Debug)]
pub(super) struct ProcessSupervisor {
    pub(super) name: String,
    pub(super) workspace: Arc<Workspace>,
    pub(super) role: DrillRole,
    pub(super) orders: mpsc::Receiver<FaultOrder>,
    /// True once a process is up, for the start of the fleet.
    pub(super) running: watch::Sender<bool>,
    /// When it is cancelled, the process is drained and the supervisor ends.
    pub(super) close: CancellationToken,
}

/// The end of a supervised process.
enum SupervisedEnd {
    /// The process ended by itself.
    ByItself(ProcessExit),
    /// The process ended by a fault.
    Ordered(ProcessExit),
    /// The process ended by a fault, and the supervisor ends too.
    Final,
}

impl ProcessSupervisor {
    /// Keeps a process running until the supervisor is closed, or its role is done.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::exact(BACKOFF_RANGE.0, BACKOFF_RANGE.1);
        loop {
            // A process that starts while the broker is away would give up.
            self.workspace.broker.wait_up().await;
            let Some(words) = self.role.next_command(&self.workspace).await else { return };
            let began = Instant::now();
            let end = match self.workspace.start_process(&self.name, &words, self.role.startup_sign()) {
                Ok(process) => self.supervise(process).await,
                Err(error) => Err(error),
            };
            let (ended, ordered) = match end {
                Ok(SupervisedEnd::Final) => return,
                Ok(SupervisedEnd::Ordered(ended)) => (ended, true),
                Ok(SupervisedEnd::ByItself(ended)) => (ended, false),
                Err(error) => return self.workspace.record_defect(format!("{}: {error}", self.name)),
            };
            self.role.note_exit(&ended);
            if ordered || self.role.is_done(&ended) {
                continue;
            }
            self.record_unplanned_exit(&ended);
            if began.elapsed() > STEADY_UPTIME {
                backoff.reset();
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_pause()) => {}
                () = self.close.cancelled() => return,
            }
        }
    }

    /// Supervises a process to its end, and injects the faults that are ordered.
    async fn supervise(&mut self, mut process: SupervisedProcess) -> io::Result<SupervisedEnd> {
        let up = process.wait_up();
        tokio::select! {
            () = up => {}
            ended = process.wait() => {
                self.role.note_startup(&self.workspace, &process); // it may have been, for a moment
                return ended.map(SupervisedEnd::ByItself);
            }
            () = self.close.cancelled() => return Ok(SupervisedEnd::Final), // dropped, and so killed
        }
        self.role.note_startup(&self.workspace, &process);
        self.running.send_replace(true);
        loop {
            let order = tokio::select! {
                ended = process.wait() => return ended.map(SupervisedEnd::ByItself),
                order = self.orders.recv() => order,
                () = self.close.cancelled() => None,
            };
            let Some(order) = order else {
                if let (Err(why), _) = self.stop_gracefully(&mut process, Signal::TERM, Exit::Ok).await? {
                    self.workspace.record_defect(format!("{} at the end: {why}", self.name));
                }
                return Ok(SupervisedEnd::Final);
            };
            if order.until < Instant::now() || order.done.is_closed() {
                let _ = order.done.send(Err("no process was up in time".into()));
                continue;
            }
            let (result, ended) = self.inject(&mut process, order.what).await?;
            let last = matches!(order.what, ProcessFault::DrainAfter(_));
            let _ = order.done.send(result); // the receiver may have given up
            match ended {
                Some(_) if last => return Ok(SupervisedEnd::Final),
                Some(ended) => return Ok(SupervisedEnd::Ordered(ended)),
                None => {}
            }
        }
    }

    /// Injects a fault. Returns its result, and the end of the process if it ended.
    async fn inject(
        &self,
        process: &mut SupervisedProcess,
        what: ProcessFault,
    ) -> io::Result<(Result<String, String>, Option<ProcessExit>)> {
        let pid = process.pid();
        match what {
            ProcessFault::Kill => {
                process.signal(Signal::KILL)?;
                let ended = process.wait().await?;
                let result = match ended.was_killed() {
                    true => Ok(format!("{}, pid {pid}", self.name)),
                    false => {
                        self.record_unplanned_exit(&ended);
                        Err(format!("{} had ended by itself: {}", self.name, ended.status))
                    }
                };
                Ok((result, Some(ended)))
            }
            ProcessFault::Drain => self.stop_gracefully(process, Signal::TERM, Exit::Ok).await,
            ProcessFault::DrainAfter(visit) => {
                tokio::select! {
                    () = tokio::time::sleep(visit) => {}
                    ended = process.wait() => {
                        let ended = ended?;
                        self.record_unplanned_exit(&ended);
                        return Ok((Err(format!("{} left by itself: {}", self.name, ended.status)), Some(ended)));
                    }
                }
                self.stop_gracefully(process, Signal::TERM, Exit::Ok).await
            }
            ProcessFault::Interrupt => self.stop_gracefully(process, Signal::INT, Exit::Interrupted).await,
            ProcessFault::Pause(duration) => {
                if !process.freeze().await? {
                    return Ok((Err(format!("{} ended instead of standing still", self.name)), None));
                }
                self.workspace.print_status(format_args!("{} stands still, pid {pid}", self.name));
                tokio::time::sleep(duration).await;
                let still = process.is_frozen()?;
                process.signal(Signal::CONT)?;
                let result = match still {
                    true => Ok(format!("{}, pid {pid}, for {:.1} s", self.name, duration.as_secs_f64())),
                    false => Err(format!("{} went on before it was told to", self.name)),
                };
                Ok((result, None))
            }
        }
    }

    /// Sends a signal and waits for the end. The process must end in time and with this exit code;
    /// it may have lost its broker meanwhile.
    async fn stop_gracefully(
        &self,
        process: &mut SupervisedProcess,
        signal: Signal,
        exit: Exit,
    ) -> io::Result<(Result<String, String>, Option<ProcessExit>)> {
        let (name, pid) = (&self.name, process.pid());
        let began = Instant::now();
        process.signal(signal)?;
        let Ok(ended) = tokio::time::timeout(LEAVE_BOUND, process.wait()).await else {
            let why =
                format!("{name}, pid {pid}, had not left {} s after it was asked to", LEAVE_BOUND.as_secs());
            self.workspace.record_defect(why.clone());
            process.signal(Signal::KILL)?;
            return Ok((Err(why), Some(process.wait().await?)));
        };
        let ended = ended?;
        let result = match ended.code() {
            Some(code) if code == exit as i32 => {
                let took = began.elapsed().as_secs_f64();
                Ok(format!("{name}, pid {pid}, exit code {code} after {took:.1} s"))
            }
            _ => {
                self.record_unplanned_exit(&ended);
                Err(format!("{name}: {}: {}", ended.status, ended.last_line))
            }
        };
        Ok((result, Some(ended)))
    }

    /// Records an end without a fault. A producer that has sent its job may end.
    fn record_unplanned_exit(&self, ended: &ProcessExit) {
        if self.role.is_done(ended) {
            return;
        }
        let left = UnplannedExit {
            at_seconds: self.workspace.elapsed().as_secs_f64(),
            who: self.name.clone(),
            was_up: ended.was_up,
            code: ended.code(),
            said: ended.last_line.clone(),
        };
        if !left.found_no_broker() {
            self.workspace.record_defect(left.to_string());
        }
        self.workspace.record_exit(left);
    }
}
