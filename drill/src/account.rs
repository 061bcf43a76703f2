//! The account of a drill: its faults, its jobs, and whether they are as promised.

use std::{collections::BTreeSet, fmt};

use gristmill_jobs::{Spin, SpinReport};
use gristmill_shared::Job as _;
use serde::Serialize;

use super::plan::DrillFault;
use gristmill_shared::Exit;

/// The share of the planned faults that must have happened: three of four.
const HAPPENED_SHARE_MIN: (usize, usize) = (3, 4);
/// The number of fault types that must have happened, or of all planned types if those are fewer.
const FAULT_TYPES_MIN: usize = 6;

/// A fault that was tried, with the evidence that it happened or the reason that it did not.
#[derive(Debug)]
pub(crate) struct FaultAttempt {
    pub(crate) fault: DrillFault,
    pub(crate) result: Result<String, String>,
}

/// A process that ended without a fault of the drill.
#[derive(Debug, Serialize)]
pub(crate) struct UnplannedExit {
    pub(crate) at_seconds: f64,
    pub(crate) who: String,
    /// True if it had been up before.
    pub(crate) was_up: bool,
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its last line on stderr.
    pub(crate) said: String,
}

impl UnplannedExit {
    /// True if it found no broker at its start. It is then started again, and that is no defect. A
    /// process that was up waits for a broker that it lost.
    pub(crate) fn found_no_broker(&self) -> bool {
        self.code == Some(Exit::Broker as i32) && !self.was_up
    }
}

impl fmt::Display for UnplannedExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} left by itself", self.who)?;
        match self.code {
            Some(code) => write!(f, ", exit code {code}: {}", self.said),
            None => write!(f, ", by a signal: {}", self.said),
        }
    }
}

/// The numbers of planned and done faults of a type.
#[derive(Debug, Serialize)]
pub(crate) struct FaultCount {
    #[serde(rename = "type")]
    pub(crate) name: &'static str,
    pub(crate) planned: usize,
    pub(crate) done: usize,
}

/// One job at the end of the drill.
#[derive(Debug)]
pub(crate) struct JobAudit {
    /// Its id.
    pub(crate) job: String,
    /// Number of tasks that were submitted.
    pub(crate) tasks: u64,
    /// The report of a run without faults.
    pub(crate) expected: SpinReport,
    /// Findings in the ledger; `None` if it does not have the job.
    pub(crate) found: Option<LedgerFindings>,
}

/// The findings on a job in the ledger.
#[derive(Debug)]
pub(crate) struct LedgerFindings {
    pub(crate) account: gristmill_shared::Account,
    pub(crate) report: Result<SpinReport, String>,
    /// The problems that `sink verify` finds; `Ok` if it proves that each task has one outcome.
    pub(crate) verified: Result<(), String>,
}

/// Returns a report as the job's conclusion has it.
fn report_text(report: &SpinReport) -> String {
    Spin::default().conclude(report, &gristmill_shared::Account::default()).text
}

/// The comparison of a report with that of a run without faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReportVerdict {
    Right,
    Wrong,
}

/// The account of a drill.
#[derive(Debug, Serialize)]
pub struct DrillAccount {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) took_seconds: f64,
    pub(crate) broker: String,
    pub(crate) broker_away_seconds: f64,
    pub(crate) faults: Vec<FaultCount>,
    pub(crate) faults_planned: usize,
    pub(crate) faults_done: usize,
    pub(crate) types_done: usize,
    /// Planned faults that did not happen, with the reasons.
    pub(crate) not_done: Vec<String>,
    pub(crate) left: Vec<UnplannedExit>,
    pub(crate) jobs: usize,
    /// Number of jobs with floats, which are compared bit by bit.
    pub(crate) float_jobs: usize,
    pub(crate) verified: usize,
    pub(crate) tasks: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    pub(crate) duplicates: u64,
    pub(crate) late: u64,
    /// Tasks that were submitted and have no outcome.
    pub(crate) lost: u64,
    /// Outputs in reports beyond the tasks that have one.
    pub(crate) double_counted: u64,
    pub(crate) report: ReportVerdict,
    /// Everything that is wrong.
    pub(crate) wrong: Vec<String>,
    pub(crate) exact: bool,
    pub(crate) enough_faults: bool,
}

impl DrillAccount {
    /// Creates an account of these attempts, without jobs. `planned` has all faults that were to
    /// come.
    pub(crate) fn from_faults(planned: &[DrillFault], attempts: &[FaultAttempt]) -> Self {
        let of = |fault| planned.iter().filter(|it| **it == fault).count();
        let happened =
            || attempts.iter().filter(|attempt| attempt.result.is_ok()).map(|attempt| attempt.fault);
        let faults: Vec<_> = DrillFault::ALL
            .iter()
            .map(|fault| FaultCount {
                name: fault.name(),
                planned: of(*fault),
                done: happened().filter(|it| it == fault).count(),
            })
            .filter(|count| count.planned > 0)
            .collect();
        let (faults_planned, faults_done) = (planned.len(), happened().count());
        let types_done = happened().collect::<BTreeSet<_>>().len();
        let enough_faults = faults_done > 0
            && faults_done * HAPPENED_SHARE_MIN.1 >= faults_planned * HAPPENED_SHARE_MIN.0
            && types_done
                >= FAULT_TYPES_MIN.min((faults.len() * HAPPENED_SHARE_MIN.0).div_ceil(HAPPENED_SHARE_MIN.1));
        let not_done = attempts
            .iter()
            .filter_map(|attempt| Some(format!("{}: {}", attempt.fault, attempt.result.as_ref().err()?)));
        Self {
            seed: 0,
            seconds: 0,
            took_seconds: 0.0,
            broker: String::new(),
            broker_away_seconds: 0.0,
            faults,
            faults_planned,
            faults_done,
            types_done,
            not_done: not_done.collect(),
            left: Vec::new(),
            jobs: 0,
            float_jobs: 0,
            verified: 0,
            tasks: 0,
            done: 0,
            failed: 0,
            skipped: 0,
            duplicates: 0,
            late: 0,
            lost: 0,
            double_counted: 0,
            report: ReportVerdict::Right,
            wrong: Vec::new(),
            exact: false,
            enough_faults,
        }
    }

    /// Adds a job to the account.
    pub(crate) fn add_job(&mut self, audit: &JobAudit) {
        let JobAudit { job, tasks, expected, found } = audit;
        self.jobs += 1;
        self.float_jobs += usize::from(expected.floats.is_some());
        self.tasks += tasks;
        let Some(LedgerFindings { account, report, verified }) = found else {
            self.lost += tasks;
            self.report = ReportVerdict::Wrong;
            self.wrong.push(format!("job {job}: the ledger does not have it"));
            return;
        };
        self.done += account.done;
        self.failed += account.failed;
        self.skipped += account.skipped;
        self.duplicates += account.duplicates;
        self.late += account.late;
        let mut wrong = Vec::new();
        let outcomes = account.done + account.failed + account.skipped;
        if outcomes < *tasks {
            self.lost += tasks - outcomes;
            wrong.push(format!("{} of {tasks} tasks have no outcome", tasks - outcomes));
        } else if outcomes > *tasks {
            wrong.push(format!("{outcomes} outcomes of {tasks} tasks"));
        }
        if account.failed + account.skipped > 0 {
            wrong.push(format!("{} tasks failed and {} were skipped", account.failed, account.skipped));
        }
        match verified {
            Ok(()) => self.verified += 1,
            Err(why) => wrong.push(format!("its ledger does not add up: {why}")),
        }
        match report {
            Ok(report) if report == expected => {}
            Ok(report) => {
                self.report = ReportVerdict::Wrong;
                self.double_counted += report.count.saturating_sub(account.done);
                wrong.push(format!(
                    "its report says {}, and not {}",
                    report_text(report),
                    report_text(expected)
                ));
            }
            Err(why) => {
                self.report = ReportVerdict::Wrong;
                wrong.push(format!("its report cannot be read: {why}"));
            }
        }
        self.wrong.extend(wrong.iter().map(|what| format!("job {job}: {what}")));
    }

    /// Completes the account. No job may be added after this.
    pub(crate) fn conclude(mut self) -> Self {
        if self.jobs == 0 {
            self.wrong.push("no job was submitted".into());
        }
        self.exact = self.wrong.is_empty() && self.lost == 0 && self.double_counted == 0;
        self
    }

    /// True if everything is exact, and the faults really happened.
    pub fn is_passed(&self) -> bool {
        self.exact && self.enough_faults
    }
}

impl fmt::Display for DrillAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed            {}", self.seed)?;
        writeln!(f, "time            {} s of faults, {:.0} s in all", self.seconds, self.took_seconds)?;
        writeln!(f, "broker          {}; away for {:.1} s", self.broker, self.broker_away_seconds)?;
        writeln!(
            f,
            "faults          {} of {} planned, of {} types",
            self.faults_done, self.faults_planned, self.types_done
        )?;
        for FaultCount { name, planned, done } in &self.faults {
            let missed = if done < planned { format!(" of {planned}") } else { String::new() };
            writeln!(f, "  {name:25}{done:>3}{missed}")?;
        }
        for what in &self.not_done {
            writeln!(f, "  did not happen: {what}")?;
        }
        let of_broker = self.left.iter().filter(|left| left.found_no_broker()).count();
        let others = self.left.len() - of_broker;
        writeln!(
            f,
            "left            {of_broker} processes as they found no broker, {others} for other reasons"
        )?;
        let Self { jobs, verified, float_jobs, .. } = self;
        writeln!(f, "jobs            {jobs}, {verified} of them verified, {float_jobs} with floats")?;
        writeln!(f, "tasks           {}", self.tasks)?;
        writeln!(f, "outcomes        {} done, {} failed, {} skipped", self.done, self.failed, self.skipped)?;
        writeln!(f, "ignored         {} duplicates, {} late ones", self.duplicates, self.late)?;
        writeln!(f, "lost            {}", self.lost)?;
        writeln!(f, "double-counted  {}", self.double_counted)?;
        let report = if self.report == ReportVerdict::Right { "right" } else { "wrong" };
        writeln!(f, "report          {report}")?;
        for what in &self.wrong {
            writeln!(f, "  wrong: {what}")?;
        }
        write!(
            f,
            "verdict         {}",
            match (self.exact, self.enough_faults) {
                (true, true) => "exact",
                (true, false) => "exact, but too few faults happened to prove anything",
                (false, _) => "NOT exact",
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned() -> Vec<DrillFault> {
        DrillFault::ALL.to_vec()
    }

    fn all_done() -> Vec<FaultAttempt> {
        planned().into_iter().map(|fault| FaultAttempt { fault, result: Ok(String::new()) }).collect()
    }

    /// Returns the audit of a job of 100 tasks without problems.
    fn audit() -> JobAudit {
        let account = gristmill_shared::Account { total: Some(100), done: 100, ..Default::default() };
        let expected = Spin { tasks: 100, floats: true, seed: 3, ..Spin::default() }.expected();
        let report = Ok(expected.clone());
        JobAudit {
            job: "a".into(),
            tasks: 100,
            expected,
            found: Some(LedgerFindings { account, report, verified: Ok(()) }),
        }
    }

    fn account(attempts: &[FaultAttempt], change: impl FnOnce(&mut LedgerFindings)) -> DrillAccount {
        let mut account = DrillAccount::from_faults(&planned(), attempts);
        let mut audit = audit();
        change(audit.found.as_mut().unwrap());
        account.add_job(&audit);
        account.conclude()
    }

    /// A drill in which every fault happened and every job adds up is passed.
    #[test]
    fn exact_drill_is_passed() {
        let account = account(&all_done(), |found| found.account.duplicates = 7);
        assert!(account.is_passed(), "{account}");
        assert_eq!((account.done, account.duplicates, account.lost, account.double_counted), (100, 7, 0, 0));
    }

    #[test]
    fn task_without_outcome_is_lost() {
        let account = account(&all_done(), |found| {
            found.account.done = 99;
            found.report = Ok(SpinReport { count: 99, sum: 4949, floats: None });
        });
        assert!(!account.is_passed() && account.enough_faults);
        assert_eq!((account.lost, account.double_counted), (1, 0));
        assert!(account.wrong[0].contains("1 of 100 tasks have no outcome"), "{account}");
    }

    #[test]
    fn output_folded_twice_is_counted() {
        let account = account(&all_done(), |found| {
            found.report = Ok(SpinReport { count: 101, sum: 4951, floats: None })
        });
        assert!(!account.is_passed());
        assert_eq!((account.lost, account.double_counted, account.report), (0, 1, ReportVerdict::Wrong));
    }

    /// A sum that is off by one is wrong although the count is right.
    #[test]
    fn wrong_sum_is_wrong() {
        let account = account(&all_done(), |found| {
            found.report = Ok(SpinReport { count: 100, sum: 4951, floats: None })
        });
        assert!(!account.is_passed() && account.report == ReportVerdict::Wrong, "{account}");
    }

    #[test]
    fn one_wrong_float_bit_is_wrong() {
        let account = account(&all_done(), |found| {
            let floats = found.report.as_mut().unwrap().floats.as_mut().unwrap();
            floats.sum += f64::from_bits(1);
        });
        assert!(!account.is_passed() && account.report == ReportVerdict::Wrong, "{account}");
        assert_eq!(account.float_jobs, 1);
        assert!(account.wrong[0].contains("100 tasks, sum 4950, float sum "), "{account}");
    }

    /// A failed task, or a ledger that does not add up, is wrong.
    #[test]
    fn failed_task_is_wrong() {
        let failed = account(&all_done(), |found| (found.account.done, found.account.failed) = (99, 1));
        assert!(!failed.is_passed() && failed.lost == 0, "{failed}");
        let unproved = account(&all_done(), |found| found.verified = Err("a gap".into()));
        assert!(!unproved.is_passed() && unproved.verified == 0, "{unproved}");
    }

    /// A job that the ledger does not have is lost whole, and a drill without jobs proves nothing.
    #[test]
    fn missing_job_is_lost_whole() {
        let mut account = DrillAccount::from_faults(&planned(), &all_done());
        account.add_job(&JobAudit { found: None, ..audit() });
        let account = account.conclude();
        assert!(!account.is_passed() && account.lost == 100, "{account}");
        assert!(!DrillAccount::from_faults(&planned(), &all_done()).conclude().is_passed());
    }

    #[test]
    fn too_few_faults_prove_nothing() {
        let mut attempts = all_done();
        for attempt in &mut attempts[..4] {
            attempt.result = Err("no process was up".into());
        }
        let too_few = account(&attempts, |_| ());
        assert!(too_few.exact && !too_few.is_passed(), "{too_few}");
        assert!(too_few.to_string().contains("too few faults"), "{too_few}");
        assert!(!account(&[], |_| ()).is_passed());

        let (one_type, only) = (vec![DrillFault::WorkerKilled; 40], DrillFault::SinkKilled);
        let attempts: Vec<_> =
            one_type.iter().map(|fault| FaultAttempt { fault: *fault, result: Ok(String::new()) }).collect();
        let planned = [one_type, vec![only]].concat();
        assert!(!DrillAccount::from_faults(&planned, &attempts).enough_faults, "one type of two");
    }
}
