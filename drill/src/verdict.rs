//! The verdict of a drill: waits for every job as a user would, and then reads the ledger.

use std::time::Duration;

use gristmill_shared::JobId;
use tokio::time::{Instant, timeout_at};

use super::{
    account::{DrillAccount, JobAudit, LedgerFindings},
    drill_job::DrillJob,
    plan::{DrillFault, DrillPlan},
    supervised_process::StartupSign,
    workspace::Workspace,
};
use gristmill_shared::Exit;

/// Bound for all jobs together to end after the last fault. A job that has not ended then is lost.
const END_BOUND: Duration = Duration::from_secs(180);

/// Waits for the end of every job by `producer wait`. A job that does not end shows in its account.
pub(super) async fn wait_for_jobs(workspace: &Workspace, sent: impl Future<Output = ()>) {
    let deadline = Instant::now() + END_BOUND;
    if timeout_at(deadline, sent).await.is_err() {
        return workspace.record_defect(format!(
            "the producer has not sent everything {} s after the last fault",
            END_BOUND.as_secs()
        ));
    }
    for DrillJob { job, .. } in workspace.jobs() {
        match timeout_at(deadline, wait_for_job(workspace, job)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => workspace.record_defect(format!("producer wait {job}: {why}")),
            Err(_) => {
                return workspace.record_defect(format!(
                    "job {job} has not ended {} s after the last fault",
                    END_BOUND.as_secs()
                ));
            }
        }
    }
}

async fn wait_for_job(workspace: &Workspace, job: JobId) -> Result<(), String> {
    let words = ["producer".into(), "wait".into(), job.to_string()];
    let mut process = workspace
        .start_process("waiting", &words, StartupSign::StdoutLine)
        .map_err(|error| error.to_string())?;
    let ended = process.wait().await.map_err(|error| error.to_string())?;
    match ended.code() {
        Some(code) if code == Exit::Ok as i32 => Ok(()),
        _ => Err(format!("{}: {}", ended.status, ended.last_line)),
    }
}

/// Builds the account from the ledger and the notes. All processes must have ended.
pub(super) async fn build_account(workspace: &Workspace, plan: &DrillPlan) -> DrillAccount {
    let mut audits = Vec::new();
    for submitted in workspace.jobs() {
        audits.push(audit_job(workspace, submitted).await);
    }
    let unexpected = find_unexpected(workspace).await;
    let mut notes = std::mem::take(&mut *workspace.notes());
    let planned: Vec<DrillFault> = plan.faults.iter().map(|planned| planned.fault).collect();
    let mut account = DrillAccount {
        seed: plan.seed,
        seconds: plan.length.as_secs(),
        took_seconds: workspace.elapsed().as_secs_f64(),
        broker: workspace.broker.description().into(),
        broker_away_seconds: workspace.broker.time_away().as_secs_f64(),
        left: notes.left,
        wrong: std::mem::take(&mut notes.defects),
        ..DrillAccount::from_faults(&planned, &notes.attempts)
    };
    account.wrong.extend(unexpected);
    audits.iter().for_each(|audit| account.add_job(audit));
    account.conclude()
}

async fn audit_job(workspace: &Workspace, submitted: DrillJob) -> JobAudit {
    let DrillJob { job, tasks, .. } = submitted;
    let read = workspace.read_ledger(move |ledger| {
        let Some(view) = ledger.job(job)? else { return Ok(None) };
        let verified = ledger.verify(job)?;
        let report = view.report.as_ref().map_or(Err("there is none".into()), |report| {
            serde_json::from_str(report.get()).map_err(|error| error.to_string())
        });
        let verified = match (verified.ok, verified.problems.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => Err(format!("{}, {} tasks missing", verified.state, verified.missing)),
            (false, false) => Err(verified.problems.join("; ")),
        };
        Ok(Some(LedgerFindings { account: view.summary.account, report, verified }))
    });
    let found = read.await.unwrap_or_else(|error| {
        workspace.record_defect(error);
        None
    });
    JobAudit { job: job.to_string(), tasks, expected: submitted.expected(), found }
}

/// Returns everything in the ledger that should not be there.
async fn find_unexpected(workspace: &Workspace) -> Vec<String> {
    let known = workspace.jobs();
    let read = workspace.read_ledger(move |ledger| {
        let (jobs, dead, parked) = (ledger.jobs()?, ledger.dead()?, ledger.parked()?);
        let unknown = jobs.iter().filter(|it| known.iter().all(|job| job.job != it.job));
        let mut found: Vec<_> =
            unknown.map(|it| format!("job {} is in the ledger and was not submitted", it.job)).collect();
        found.extend(dead.messages.iter().map(|it| format!("a dead message: {}", it.reason)));
        found.extend(
            parked.jobs.iter().map(|it| format!("{} messages of unknown job {}", it.messages, it.job)),
        );
        Ok(found)
    });
    read.await.unwrap_or_else(|error| vec![error])
}
