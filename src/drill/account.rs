//! What a drill did and what came of it; and whether that is what was promised.

use std::{collections::BTreeSet, fmt};

use gristmill_jobs::{Spin, SpinReport};
use gristmill_shared::Job as _;
use serde::Serialize;

use super::plan::Fault;
use crate::Exit;

/// Of the faults that were planned, this share must have happened: three of four.
const ENOUGH: (usize, usize) = (3, 4);
/// And they must be of so many types, or of all that were planned if those are fewer.
const TYPES: usize = 6;

/// A fault that was tried: how it is known to have happened, or why it did not.
#[derive(Debug)]
pub(crate) struct Act {
    pub(crate) fault: Fault,
    pub(crate) came: Result<String, String>,
}

/// A process that ended though nobody had asked it to.
#[derive(Debug, Serialize)]
pub(crate) struct Left {
    pub(crate) at_seconds: f64,
    pub(crate) who: String,
    /// Whether it had been up before.
    pub(crate) was_up: bool,
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its last line on stderr.
    pub(crate) said: String,
}

impl Left {
    /// Whether it ended as one may that finds no broker at its start; it is then started again, and that is no defect. One
    /// that was up waits for a broker that it lost.
    pub(crate) fn found_no_broker(&self) -> bool {
        self.code == Some(Exit::Broker as i32) && !self.was_up
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} left by itself", self.who)?;
        match self.code {
            Some(code) => write!(f, ", exit code {code}: {}", self.said),
            None => write!(f, ", by a signal: {}", self.said),
        }
    }
}

/// How often a type of fault was planned, and how often it happened.
#[derive(Debug, Serialize)]
pub(crate) struct FaultCount {
    #[serde(rename = "type")]
    pub(crate) name: &'static str,
    pub(crate) planned: usize,
    pub(crate) done: usize,
}

/// One job at the end of the drill.
#[derive(Debug)]
pub(crate) struct Sheet {
    /// Its id, for people.
    pub(crate) job: String,
    /// How many tasks were submitted.
    pub(crate) tasks: u64,
    /// The report of a run in which nothing ever went wrong.
    pub(crate) expected: SpinReport,
    /// What the ledger says of it; `None` if it does not have it.
    pub(crate) found: Option<Found>,
}

/// What the ledger says of a job.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) account: gristmill_shared::Account,
    pub(crate) report: Result<SpinReport, String>,
    /// What `sink verify` finds wrong; nothing if it proves that each task has one outcome.
    pub(crate) verified: Result<(), String>,
}

/// A report as the job's conclusion has it.
fn said(report: &SpinReport) -> String {
    Spin::default().conclude(report, &gristmill_shared::Account::default()).text
}

/// Whether the report is that of a run in which nothing ever went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Right,
    Wrong,
}

/// The account of a drill.
#[derive(Debug, Serialize)]
pub(crate) struct Account {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) took_seconds: f64,
    pub(crate) broker: String,
    pub(crate) broker_away_seconds: f64,
    pub(crate) faults: Vec<FaultCount>,
    pub(crate) faults_planned: usize,
    pub(crate) faults_done: usize,
    pub(crate) types_done: usize,
    /// What was planned and did not happen, and why.
    pub(crate) not_done: Vec<String>,
    pub(crate) left: Vec<Left>,
    pub(crate) jobs: usize,
    /// The number of them that have floats, which are compared bit by bit.
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
    pub(crate) report: Verdict,
    /// Everything that is not as it should be.
    pub(crate) wrong: Vec<String>,
    pub(crate) exact: bool,
    pub(crate) enough_faults: bool,
}

impl Account {
    /// An account of these acts, with no job in it yet. `planned` are all faults that were to come.
    pub(crate) fn of_faults(planned: &[Fault], acts: &[Act]) -> Self {
        let of = |fault| planned.iter().filter(|it| **it == fault).count();
        let came = || acts.iter().filter(|act| act.came.is_ok()).map(|act| act.fault);
        let faults: Vec<_> = Fault::ALL
            .iter()
            .map(|fault| FaultCount {
                name: fault.name(),
                planned: of(*fault),
                done: came().filter(|it| it == fault).count(),
            })
            .filter(|count| count.planned > 0)
            .collect();
        let (faults_planned, faults_done) = (planned.len(), came().count());
        let types_done = came().collect::<BTreeSet<_>>().len();
        let enough_faults = faults_done > 0
            && faults_done * ENOUGH.1 >= faults_planned * ENOUGH.0
            && types_done >= TYPES.min((faults.len() * ENOUGH.0).div_ceil(ENOUGH.1));
        let not_done =
            acts.iter().filter_map(|act| Some(format!("{}: {}", act.fault, act.came.as_ref().err()?)));
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
            report: Verdict::Right,
            wrong: Vec::new(),
            exact: false,
            enough_faults,
        }
    }

    /// Puts a job in.
    pub(crate) fn add(&mut self, sheet: &Sheet) {
        let Sheet { job, tasks, expected, found } = sheet;
        self.jobs += 1;
        self.float_jobs += usize::from(expected.floats.is_some());
        self.tasks += tasks;
        let Some(Found { account, report, verified }) = found else {
            self.lost += tasks;
            self.report = Verdict::Wrong;
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
                self.report = Verdict::Wrong;
                self.double_counted += report.count.saturating_sub(account.done);
                wrong.push(format!("its report says {}, and not {}", said(report), said(expected)));
            }
            Err(why) => {
                self.report = Verdict::Wrong;
                wrong.push(format!("its report cannot be read: {why}"));
            }
        }
        self.wrong.extend(wrong.iter().map(|what| format!("job {job}: {what}")));
    }

    /// Draws the line. Nothing is put in after this.
    pub(crate) fn conclude(mut self) -> Self {
        if self.jobs == 0 {
            self.wrong.push("no job was submitted".into());
        }
        self.exact = self.wrong.is_empty() && self.lost == 0 && self.double_counted == 0;
        self
    }

    /// Whether everything is exact, and the faults really happened.
    pub(crate) fn is_passed(&self) -> bool {
        self.exact && self.enough_faults
    }
}

impl fmt::Display for Account {
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
        let report = if self.report == Verdict::Right { "right" } else { "wrong" };
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

    fn planned() -> Vec<Fault> {
        Fault::ALL.to_vec()
    }

    fn all_done() -> Vec<Act> {
        planned().into_iter().map(|fault| Act { fault, came: Ok(String::new()) }).collect()
    }

    /// A job of 100 tasks of which all went well.
    fn sheet() -> Sheet {
        let account = gristmill_shared::Account { total: Some(100), done: 100, ..Default::default() };
        let expected = Spin { tasks: 100, floats: true, seed: 3, ..Spin::default() }.expected();
        let report = Ok(expected.clone());
        Sheet {
            job: "a".into(),
            tasks: 100,
            expected,
            found: Some(Found { account, report, verified: Ok(()) }),
        }
    }

    fn account(acts: &[Act], change: impl FnOnce(&mut Found)) -> Account {
        let mut account = Account::of_faults(&planned(), acts);
        let mut sheet = sheet();
        change(sheet.found.as_mut().unwrap());
        account.add(&sheet);
        account.conclude()
    }

    #[test]
    fn a_drill_in_which_everything_happened_and_adds_up_is_passed() {
        let account = account(&all_done(), |found| found.account.duplicates = 7);
        assert!(account.is_passed(), "{account}");
        assert_eq!((account.done, account.duplicates, account.lost, account.double_counted), (100, 7, 0, 0));
    }

    #[test]
    fn a_task_without_an_outcome_is_lost() {
        let account = account(&all_done(), |found| {
            found.account.done = 99;
            found.report = Ok(SpinReport { count: 99, sum: 4949, floats: None });
        });
        assert!(!account.is_passed() && account.enough_faults);
        assert_eq!((account.lost, account.double_counted), (1, 0));
        assert!(account.wrong[0].contains("1 of 100 tasks have no outcome"), "{account}");
    }

    #[test]
    fn an_output_that_was_folded_twice_is_counted() {
        let account = account(&all_done(), |found| {
            found.report = Ok(SpinReport { count: 101, sum: 4951, floats: None })
        });
        assert!(!account.is_passed());
        assert_eq!((account.lost, account.double_counted, account.report), (0, 1, Verdict::Wrong));
    }

    #[test]
    fn a_sum_that_is_off_by_one_is_wrong_though_the_count_is_right() {
        let account = account(&all_done(), |found| {
            found.report = Ok(SpinReport { count: 100, sum: 4951, floats: None })
        });
        assert!(!account.is_passed() && account.report == Verdict::Wrong, "{account}");
    }

    #[test]
    fn one_wrong_bit_of_a_float_is_wrong() {
        let account = account(&all_done(), |found| {
            let floats = found.report.as_mut().unwrap().floats.as_mut().unwrap();
            floats.sum += f64::from_bits(1);
        });
        assert!(!account.is_passed() && account.report == Verdict::Wrong, "{account}");
        assert_eq!(account.float_jobs, 1);
        assert!(account.wrong[0].contains("100 tasks, sum 4950, float sum "), "{account}");
    }

    #[test]
    fn a_failed_task_and_a_ledger_that_does_not_add_up_are_wrong() {
        let failed = account(&all_done(), |found| (found.account.done, found.account.failed) = (99, 1));
        assert!(!failed.is_passed() && failed.lost == 0, "{failed}");
        let unproved = account(&all_done(), |found| found.verified = Err("a gap".into()));
        assert!(!unproved.is_passed() && unproved.verified == 0, "{unproved}");
    }

    #[test]
    fn a_job_that_the_ledger_does_not_have_is_lost_whole_and_no_job_proves_nothing() {
        let mut account = Account::of_faults(&planned(), &all_done());
        account.add(&Sheet { found: None, ..sheet() });
        let account = account.conclude();
        assert!(!account.is_passed() && account.lost == 100, "{account}");
        assert!(!Account::of_faults(&planned(), &all_done()).conclude().is_passed());
    }

    #[test]
    fn faults_that_did_not_happen_prove_nothing() {
        let mut acts = all_done();
        for act in &mut acts[..4] {
            act.came = Err("nobody was there".into());
        }
        let too_few = account(&acts, |_| ());
        assert!(too_few.exact && !too_few.is_passed(), "{too_few}");
        assert!(too_few.to_string().contains("too few faults"), "{too_few}");
        assert!(!account(&[], |_| ()).is_passed());

        let (one_type, only) = (vec![Fault::WorkerKilled; 40], Fault::SinkKilled);
        let acts: Vec<_> =
            one_type.iter().map(|fault| Act { fault: *fault, came: Ok(String::new()) }).collect();
        let planned = [one_type, vec![only]].concat();
        assert!(!Account::of_faults(&planned, &acts).enough_faults, "one type of two");
    }
}
