//! The report and the failures that the end of a job carries.

use gristmill_shared::{
    Job, JobError, TaskContext, TaskError, TaskIndex,
    wire::{FAILURE_NOTE_MAX_BYTES, FINISHED_MAX_FAILURES, FINISHED_REPORT_MAX_BYTES},
};
use gristmill_sqlite::SqliteLedger;
use serde::{Deserialize, Serialize};

use super::*;

/// Returns the last end that was published.
fn end(outbox: &[OutboxBatch]) -> Finished {
    let end = facts(outbox).into_iter().rev().find_map(|fact| match fact {
        Fact::Finished(finished) => Some(finished),
        _ => None,
    });
    end.expect("no end")
}

fn report(finished: &Finished) -> Option<&str> {
    finished.report.as_deref().map(serde_json::value::RawValue::get)
}

#[test]
fn end_carries_report() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    fixture.commit([job.opened(), job.done(0..2)]);
    let finished = end(&fixture.commit([job.done(2..4), job.sealed(4)]));
    assert_eq!((report(&finished), finished.report_bytes), (Some("6"), None));
    assert_eq!(finished.outcome::<ToyJob>().unwrap().into_answer().unwrap(), 6);

    // The reports of no task and of some.
    let job = SubmittedJob::toy();
    assert_eq!(report(&end(&fixture.commit([job.opened(), job.sealed(0)]))), Some("0"));
    let job = SubmittedJob::toy();
    let finished = end(&fixture.commit([job.opened(), job.done(0..3), job.cancelled()]));
    assert_eq!(report(&finished), Some("3"));
    let error = finished.outcome::<ToyJob>().unwrap().into_answer().unwrap_err();
    assert!(error.to_string().contains("cancelled: lunch"), "{error}");
}

#[test]
fn repeated_end_has_report() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    // Once in the same group, once from the ledger.
    let all = [job.opened(), job.failed(&[1]), job.done(2..4), job.done(0..1), job.sealed(4), job.opened()];
    for outbox in [fixture.commit(all), fixture.commit([job.opened()])] {
        let finished = end(&outbox);
        assert_eq!(report(&finished), Some("5"));
        assert_eq!(finished.failures.len(), 1);
        assert_eq!(finished.failures[0].index, TaskIndex(1));
    }
}

#[test]
fn end_names_first_failures() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    let many: Vec<u64> = (0..40).collect();
    fixture.commit([job.opened(), job.failed(&many)]);
    // An output overrides a failure, also after a restart.
    let finished =
        end(&fixture.commit([job.done(0..1), job.failed(&[50]), job.done(40..50), job.sealed(51)]));
    let indices: Vec<_> = finished.failures.iter().map(|failure| failure.index.0).collect();
    let last = FINISHED_MAX_FAILURES as u64;
    assert_eq!(indices[..15], (1..last).collect::<Vec<_>>());
    assert!(indices.len() <= FINISHED_MAX_FAILURES);
    assert!(finished.failures.iter().all(|failure| !failure.reason.is_empty()));
    assert_eq!(finished.account.failed, 40);
}

/// The report is as long as the sum of the outputs.
#[derive(Serialize, Deserialize)]
struct LongReportJob;

impl Job for LongReportJob {
    const KIND: &'static str = "long";
    type Task = u64;
    type Output = u64;
    type Report = String;

    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        std::iter::empty()
    }
    fn process(&self, task: u64, _: &TaskContext) -> Result<u64, TaskError> {
        Ok(task)
    }
    fn collect(&self, report: &mut String, _: TaskIndex, output: u64) -> ControlFlow<()> {
        report.extend(std::iter::repeat_n('a', usize::try_from(output).unwrap()));
        ControlFlow::Continue(())
    }
    fn conclude(&self, report: &String, _: &Account) -> Conclusion {
        Conclusion::answer(report.len().to_string())
    }
}

/// Ends a job whose report has this length in JSON, in bytes.
fn end_of_long(engine: LedgerEngine, bytes: usize) -> Vec<OutboxBatch> {
    let job = SubmittedJob::new(&LongReportJob);
    let outputs = format!("[{}]", bytes - 2);
    let engine = accept_all(engine, [job.opened(), job.spans(&[(0, 1, &outputs)], &[], 0), job.sealed(1)]);
    engine.commit().unwrap().1.outbox
}

fn long_registry() -> Registry {
    let mut registry = Registry::default();
    registry.register::<LongReportJob>().unwrap();
    registry
}

#[test]
fn long_report_stays_in_ledger() {
    let fixture = EngineFixture::new();
    for (bytes, travels) in [(FINISHED_REPORT_MAX_BYTES, true), (FINISHED_REPORT_MAX_BYTES + 1, false)] {
        let finished = end(&end_of_long(fixture.engine_with(long_registry()), bytes));
        assert_eq!(finished.report.is_some(), travels);
        assert_eq!(finished.report_bytes, (!travels).then_some(bytes as u64));
        assert!(finished.conclusion.answered, "the conclusion is not concerned");
    }
    // A ledger in memory is no other place to read it.
    let ledger = Box::new(SqliteLedger::open(LedgerLocation::Memory).unwrap());
    let engine = LedgerEngine::new(ledger, long_registry(), Lane::default(), app());
    let finished = end(&end_of_long(engine, FINISHED_REPORT_MAX_BYTES + 1));
    assert_eq!(finished.report.unwrap().get().len(), FINISHED_REPORT_MAX_BYTES + 1);
}

#[test]
fn short_end_event_has_report() {
    for (bytes, is_live) in [(1_000, true), (5_000, false)] {
        let outbox = end_of_long(EngineFixture::new().engine_with(long_registry()), bytes);
        assert_eq!(end(&outbox).report.unwrap().get().len(), bytes);
        let live: Vec<_> = outbox.iter().flat_map(|batch| &batch.live).collect();
        assert_eq!(live.len(), usize::from(is_live));
        assert!(live.iter().all(|event| event.message.body.len() <= 4 << 10));
    }
}

#[test]
fn long_failure_reason_is_cut() {
    let (fixture, job) = (EngineFixture::new(), SubmittedJob::toy());
    // The decoder quotes all of it.
    let output = format!("[\"{}\"]", "ä".repeat(1_000));
    let finished = end(&fixture.commit([job.opened(), job.spans(&[(0, 1, &output)], &[], 0), job.sealed(1)]));
    let reason = &finished.failures[0].reason;
    assert!(reason.len() <= FAILURE_NOTE_MAX_BYTES && reason.ends_with("(cut)"), "{reason}");
}
