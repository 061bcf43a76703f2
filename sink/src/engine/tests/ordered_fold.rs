//! Jobs whose report is built at the end, from the kept outputs in index order.

use gristmill_shared::{Job, JobError, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};

use super::*;

const TASK_COUNT: u64 = 40;

/// Adds floats up by a plain sum, whose bits depend on the order.
#[derive(Serialize, Deserialize, Default)]
struct PlainSumJob {
    panics: bool,
}

impl Job for PlainSumJob {
    const KIND: &'static str = "plain-sum";
    const FOLDS_IN_ORDER: bool = true;
    type Task = u64;
    type Output = f64;
    type Report = f64;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        (0..TASK_COUNT).map(Ok)
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<f64, TaskError> {
        Ok(term(task))
    }
    fn collect(&self, report: &mut f64, _: TaskIndex, _: f64) -> ControlFlow<()> {
        *report -= 1.0; // what is folded on the way is replaced
        ControlFlow::Continue(())
    }
    fn fold_in_order(&self, outputs: &mut dyn Iterator<Item = (TaskIndex, f64)>) -> f64 {
        assert!(!self.panics, "no order");
        let mut last = None;
        outputs.fold(0.0, |sum, (index, output)| {
            assert!(last.replace(index) < Some(index), "{index} after {last:?}");
            sum + output
        })
    }
}

fn term(index: u64) -> f64 {
    1.0 / (index as f64 + 3.0)
}

fn plain_sum(indices: impl Iterator<Item = u64>) -> f64 {
    indices.map(term).fold(0.0, |sum, term| sum + term)
}

fn engine(fixture: &EngineFixture) -> LedgerEngine {
    let mut registry = registry();
    registry.register::<PlainSumJob>().unwrap();
    fixture.engine_with(registry)
}

fn commit(fixture: &EngineFixture, messages: impl IntoIterator<Item = Message>) -> Vec<OutboxBatch> {
    accept_all(engine(fixture), messages).commit().unwrap().1.outbox
}

fn done(job: &SubmittedJob, indices: Range<u64>) -> Message {
    let outputs: Vec<f64> = indices.clone().map(term).collect();
    let outputs = serde_json::to_string(&outputs).unwrap();
    job.spans(&[(indices.start, u32::try_from(indices.end - indices.start).unwrap(), &outputs)], &[], 0)
}

fn report(fixture: &EngineFixture, job: &SubmittedJob) -> u64 {
    fixture.report(job).parse::<f64>().unwrap().to_bits()
}

#[test]
fn outputs_fold_in_order_at_end() {
    // The terms in reverse order have another sum; otherwise this test would prove nothing.
    assert_ne!(plain_sum(0..TASK_COUNT).to_bits(), plain_sum((0..TASK_COUNT).rev()).to_bits());
    for group in [1, 3, 100] {
        let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&PlainSumJob::default()));
        let pieces = (0..TASK_COUNT / 4).rev().map(|piece| done(&job, piece * 4..piece * 4 + 4));
        // The last of them arrive in the message that ends the job, and in the commit that does.
        let messages: Vec<_> = [job.opened(), job.sealed(TASK_COUNT)]
            .into_iter()
            .chain(pieces)
            .chain([done(&job, 8..9), done(&job, 0..2)])
            .collect();
        let mut told = Vec::new();
        for (place, messages) in messages.chunks(group).enumerate() {
            if place % 2 == 1 {
                drop(accept_all(engine(&fixture), messages.iter().cloned())); // killed; they come again
            }
            told = names(&commit(&fixture, messages.iter().cloned()));
        }
        assert_eq!(report(&fixture, &job), plain_sum(0..TASK_COUNT).to_bits(), "in groups of {group}");
        assert_eq!(told.last(), Some(&"finished"), "{told:?}");
        assert_eq!(fixture.conclusion(&job), Conclusion::answer(fixture.report(&job)));
        fixture.verify(&job);
    }
}

#[test]
fn reopened_job_folds_all_again() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&PlainSumJob::default()));
    commit(
        &fixture,
        [job.opened(), job.failed(&[7]), done(&job, 8..40), done(&job, 0..7), job.sealed(TASK_COUNT)],
    );
    let partial = plain_sum((0..TASK_COUNT).filter(|index| *index != 7));
    assert_eq!(report(&fixture, &job), partial.to_bits());
    let told = fixture.conclusion(&job);
    assert_eq!(
        told,
        Conclusion::no_answer(format!("no answer: 1 of 40 tasks failed; partial report: {partial}"))
    );
    commit(&fixture, [job.reopen(&[])]);
    let outputs = format!("[{}]", term(7));
    commit(&fixture, [job.spans(&[(7, 1, &outputs)], &[], 1)]);
    assert_eq!(report(&fixture, &job), plain_sum(0..TASK_COUNT).to_bits());
    assert!(fixture.conclusion(&job).answered);
}

#[test]
fn ordered_fold_panic_fails_job() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&PlainSumJob { panics: true }));
    let outbox = commit(&fixture, [job.opened(), done(&job, 0..2), job.sealed(2)]);
    assert_eq!(fixture.state(&job), JobState::Failed);
    let told = fixture.conclusion(&job);
    assert!(!told.answered && told.text.starts_with("fold_in_order panicked: no order"), "{told:?}");
    assert_eq!(names(&outbox), ["opened", "stopped", "finished"]);
    assert_eq!(fixture.account(&job).done, 2, "outcomes count all the same");
    // The next job is served as usual.
    let next = SubmittedJob::new(&PlainSumJob::default());
    commit(&fixture, [next.opened(), done(&next, 0..2), next.sealed(2)]);
    assert_eq!(report(&fixture, &next), plain_sum(0..2).to_bits());
}

#[test]
fn cancelled_job_folds_in_order() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&PlainSumJob::default()));
    commit(&fixture, [job.opened(), done(&job, 4..8), done(&job, 0..4), job.cancelled(), job.opened()]);
    let told = fixture.conclusion(&job);
    assert_eq!(told.text, format!("cancelled: lunch; so far: {}", plain_sum(0..8)));
}

#[test]
fn infinite_report_fails_job() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&PlainSumJob::default()));
    let outputs = format!("[{max},{max}]", max = f64::MAX);
    commit(&fixture, [job.opened(), job.spans(&[(0, 2, &outputs)], &[], 0), job.sealed(2)]);
    assert_eq!(fixture.state(&job), JobState::Failed);
    let told = fixture.conclusion(&job);
    let why = "the report cannot be encoded: report is infinite, but only finite floats travel";
    assert!(!told.answered && told.text.starts_with(why), "{told:?}");
}

/// More rows than a page, in the ledger and in the commit that ends the job, fold in one order.
#[test]
fn pages_and_commit_fold_in_one_order() {
    const ROW_COUNT: u64 = 200;
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::new(&PlainSumJob::default()));
    let rows = |parity: u64| (0..ROW_COUNT).map(move |row| row * 2 + parity);
    commit(&fixture, [job.opened()].into_iter().chain(rows(0).map(|index| done(&job, index..index + 1))));
    let last = rows(1).rev().map(|index| done(&job, index..index + 1));
    commit(&fixture, last.chain([job.sealed(2 * ROW_COUNT)]));
    assert_eq!(report(&fixture, &job), plain_sum(0..2 * ROW_COUNT).to_bits());
    let mut outputs = 0;
    let mut each = |index: TaskIndex, _: &serde_json::value::RawValue| {
        assert_eq!(index.0, outputs);
        outputs += 1;
        ControlFlow::Continue(())
    };
    fixture.reader().outputs(job.id, true, &mut each).unwrap();
    assert_eq!(outputs, 2 * ROW_COUNT, "a reader takes two pages of them");
}
