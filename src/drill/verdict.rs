//! The end of a drill: every job is waited for as a user would, and then the ledger is asked.

use std::time::Duration;

use gristmill_shared::JobId;
use tokio::time::{Instant, timeout_at};

use super::{
    account::{Account, Found, Sheet},
    supervised_process::Mark,
    plan::{Fault, Plan},
    workload::Submitted,
    workspace::Site,
};
use crate::Exit;

/// How long the jobs may take to end, all together, once no fault comes any more. What has not ended then is lost.
const END_BOUND: Duration = Duration::from_secs(180);

/// Waits for the end of every job, by `producer wait`; a job that does not come to its end is shown by its account.
pub(super) async fn wait_for_jobs(site: &Site, sent: impl Future<Output = ()>) {
    let deadline = Instant::now() + END_BOUND;
    if timeout_at(deadline, sent).await.is_err() {
        return site.defect(format!(
            "the producer has not sent everything {} s after the last fault",
            END_BOUND.as_secs()
        ));
    }
    for Submitted { job, .. } in site.jobs() {
        match timeout_at(deadline, wait_for(site, job)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => site.defect(format!("producer wait {job}: {why}")),
            Err(_) => {
                return site.defect(format!(
                    "job {job} has not ended {} s after the last fault",
                    END_BOUND.as_secs()
                ));
            }
        }
    }
}

async fn wait_for(site: &Site, job: JobId) -> Result<(), String> {
    let words = ["producer".into(), "wait".into(), job.to_string()];
    let mut child = site.start("waiting", &words, Mark::Prints).map_err(|error| error.to_string())?;
    let ended = child.ended().await.map_err(|error| error.to_string())?;
    match ended.code() {
        Some(code) if code == Exit::Ok as i32 => Ok(()),
        _ => Err(format!("{}: {}", ended.status, ended.last)),
    }
}

/// The account, from the ledger and from everybody's notes. When all processes have ended.
pub(super) async fn account(site: &Site, plan: &Plan) -> Account {
    let mut sheets = Vec::new();
    for submitted in site.jobs() {
        sheets.push(sheet(site, submitted).await);
    }
    let strangers = strangers(site).await;
    let mut notes = std::mem::take(&mut *site.notes());
    let planned: Vec<Fault> = plan.faults.iter().map(|planned| planned.fault).collect();
    let mut account = Account {
        seed: plan.seed,
        seconds: plan.length.as_secs(),
        took_seconds: site.elapsed().as_secs_f64(),
        broker: site.broker.what().into(),
        broker_away_seconds: site.broker.away().as_secs_f64(),
        left: notes.left,
        wrong: std::mem::take(&mut notes.defects),
        ..Account::of_faults(&planned, &notes.acts)
    };
    account.wrong.extend(strangers);
    sheets.iter().for_each(|sheet| account.add(sheet));
    account.conclude()
}

async fn sheet(site: &Site, submitted: Submitted) -> Sheet {
    let Submitted { job, tasks, .. } = submitted;
    let read = site.read(move |ledger| {
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
        Ok(Some(Found { account: view.summary.account, report, verified }))
    });
    let found = read.await.unwrap_or_else(|error| {
        site.defect(error);
        None
    });
    Sheet { job: job.to_string(), tasks, expected: submitted.expected(), found }
}

/// What is in the ledger and should not be.
async fn strangers(site: &Site) -> Vec<String> {
    let known = site.jobs();
    let read = site.read(move |ledger| {
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
