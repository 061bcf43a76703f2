//! A fault drill: injects faults into a fleet that works on real jobs, and accounts for every task.
//!
//! ```text
//! plan (seed) ──▶ fleet ──order──▶ supervisor ──▶ process: sink, workers, producer (this program)
//!                  └─────────────────────────────▶ broker, if it is a private one
//!                                                       └──▶ ledger ──▶ account
//! ```
//!
//! A fault counts only if it is known to have happened: the target was up before, tasks were left
//! to do, and the system reports how the process ended, or that it was stopped.

mod account;
mod drill_broker;
mod drill_job;
mod drill_role;
mod error;
mod fleet;
mod plan;
mod process_group;
mod process_supervisor;
mod supervised_process;
mod verdict;
mod workload;
mod workspace;

use std::{ffi::OsString, future::Future, pin::pin, sync::Arc};

pub use self::{
    account::DrillAccount,
    error::DrillError,
    plan::{DrillFault, DrillPlan},
};
use self::{drill_broker::DrillBroker, error::system_error, fleet::DrillFleet, workspace::Workspace};

/// The fleet of a drill.
#[derive(Debug)]
pub struct FleetConfig {
    /// A given broker, which is not harmed, with the environment variables for access; or `None`
    /// for a private one, which is.
    pub broker: Option<(String, Vec<(&'static str, OsString)>)>,
    /// The number of workers.
    pub workers: u16,
    /// The number of slots of each worker.
    pub slots: u16,
}

/// Runs a drill. Its directory is removed if it is passed, else kept and printed. When
/// `interrupted` completes, every process is killed.
///
/// # Errors
/// If it could not run; defects that it finds are in the account.
pub async fn run(
    fleet: FleetConfig,
    plan: DrillPlan,
    interrupted: impl Future<Output = ()>,
) -> Result<DrillAccount, DrillError> {
    let mut interrupted = pin!(interrupted);
    let broker = match fleet.broker {
        Some((url, variables)) => DrillBroker::given(url, variables),
        None => tokio::select! {
            broker = DrillBroker::start() => broker?,
            () = &mut interrupted => return Err(DrillError::Interrupted),
        },
    };
    let workspace = Arc::new(Workspace::new(broker)?);
    let account = tokio::select! {
        account = run_phases(&workspace, &plan, fleet.workers, fleet.slots) => account?,
        () = interrupted => {
            return Err(DrillError::InterruptedAt { kept: workspace.dir.display().to_string() });
        }
    };
    if account.is_passed() {
        std::fs::remove_dir_all(&workspace.dir).map_err(system_error("remove the drill's directory"))?;
    } else {
        workspace.print_status(format_args!("ledger and logs are kept in {}", workspace.dir.display()));
    }
    if !workspace.broker.is_own() {
        workspace.print_status(format_args!(
            "the queues of lane {} stay on the broker, empty if all went well",
            workspace.lane()
        ));
    }
    Ok(account)
}

async fn run_phases(
    workspace: &Arc<Workspace>,
    plan: &DrillPlan,
    workers: u16,
    slots: u16,
) -> Result<DrillAccount, DrillError> {
    workspace.print_status(format_args!("the broker is up: {}", workspace.broker.description()));
    let mut fleet = DrillFleet::start(workspace, plan, workers, slots).await?;
    workspace.print_status(format_args!("the fleet is up: a sink, {workers} workers, a producer"));
    fleet.inject_all(plan).await;
    workspace.print_status(format_args!(
        "no more faults; {} tasks are left to do",
        workspace.outstanding_count().await
    ));
    verdict::wait_for_jobs(workspace, fleet.wait_sent()).await;
    fleet.drain().await;
    Ok(verdict::build_account(workspace, plan).await)
}
