//! A fault drill: a fleet at work on real jobs, to which everything is done that may happen to one, and then the
//! account of what came of it.
//!
//! ```text
//! plan (seed) ──▶ crew ──order──▶ post ──▶ child: sink, workers, producer (this same program)
//!                  └─────────────────────▶ broker, if it is our own
//!                                               └──▶ ledger ──▶ account
//! ```
//!
//! A fault counts only if it is known to have happened: the target was up before, tasks were left to do, and the
//! system says how the process ended, or that it stood still.

mod account;
mod broker;
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

pub(crate) use self::{
    account::Account,
    error::DrillError,
    plan::{Fault, Plan},
};
use self::{broker::Broker, fleet::Crew, error::cannot, workspace::Site};

/// Who takes part in a drill.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The broker, which is left in peace, and the environment that opens its door; or one of our own, which is not.
    pub(crate) broker: Option<(String, Vec<(&'static str, OsString)>)>,
    pub(crate) workers: u16,
    pub(crate) slots: u16,
}

/// Holds a drill. Its directory is removed if it is passed, else kept and told. When `interrupted` comes, every process
/// is killed.
///
/// # Errors
/// If it could not be held; what went wrong in it stands in the account.
pub(crate) async fn hold(
    fleet: Fleet,
    plan: Plan,
    interrupted: impl Future<Output = ()>,
) -> Result<Account, DrillError> {
    let mut interrupted = pin!(interrupted);
    let broker = match fleet.broker {
        Some((url, variables)) => Broker::given(url, variables),
        None => tokio::select! {
            broker = Broker::start() => broker?,
            () = &mut interrupted => return Err(DrillError::Interrupted),
        },
    };
    let site = Arc::new(Site::new(broker)?);
    let account = tokio::select! {
        account = drill(&site, &plan, fleet.workers, fleet.slots) => account?,
        () = interrupted => {
            return Err(DrillError::InterruptedAt { kept: site.dir.display().to_string() });
        }
    };
    if account.is_passed() {
        std::fs::remove_dir_all(&site.dir).map_err(cannot("remove the drill's directory"))?;
    } else {
        site.say(format_args!("ledger and logs are kept in {}", site.dir.display()));
    }
    if !site.broker.is_own() {
        site.say(format_args!(
            "the queues of lane {} stay on the broker, empty if all went well",
            site.lane()
        ));
    }
    Ok(account)
}

async fn drill(site: &Arc<Site>, plan: &Plan, workers: u16, slots: u16) -> Result<Account, DrillError> {
    site.say(format_args!("the broker is up: {}", site.broker.what()));
    let mut crew = Crew::start(site, plan, workers, slots).await?;
    site.say(format_args!("the fleet is up: a sink, {workers} workers, a producer"));
    crew.suffer(plan).await;
    site.say(format_args!("no more faults; {} tasks are left to do", site.outstanding().await));
    verdict::wait_for_jobs(site, crew.until_sent()).await;
    crew.leave().await;
    Ok(verdict::account(site, plan).await)
}
