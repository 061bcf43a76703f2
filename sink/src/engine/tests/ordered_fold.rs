//! Jobs whose report is made at the end, from the kept outputs in index order.

use gristmill_shared::{Job, JobError, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};

use super::*;

const TASK_COUNT: u64 = 40;

/// Adds floats up by a plain sum, whose bits depend on the order.
#[derive(Serialize, Deserialize, Default)]
struct PlainSum {
    panics: bool,
}

impl Job for PlainSum {
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

fn clerk(office: &Office) -> Clerk {
    let mut registry = registry();
    registry.register::<PlainSum>().unwrap();
    office.clerk_with(registry)
}

fn commit(office: &Office, messages: impl IntoIterator<Item = Message>) -> Vec<OutboxBatch> {
    take(clerk(office), messages).commit().unwrap().1.outbox
}

fn done(job: &Submitted, indices: Range<u64>) -> Message {
    let outputs: Vec<f64> = indices.clone().map(term).collect();
    let outputs = serde_json::to_string(&outputs).unwrap();
    job.spans(&[(indices.start, u32::try_from(indices.end - indices.start).unwrap(), &outputs)], &[], 0)
}

fn report(office: &Office, job: &Submitted) -> u64 {
    office.report(job).parse::<f64>().unwrap().to_bits()
}

#[test]
fn outputs_are_folded_in_order_at_the_end() {
    // The terms from the last to the first have another sum; else this test shows nothing.
    assert_ne!(plain_sum(0..TASK_COUNT).to_bits(), plain_sum((0..TASK_COUNT).rev()).to_bits());
    for group in [1, 3, 100] {
        let (office, job) = (Office::new(), Submitted::new(&PlainSum::default()));
        let pieces = (0..TASK_COUNT / 4).rev().map(|piece| done(&job, piece * 4..piece * 4 + 4));
        // The last of them come in the message that ends the job, and in the commit that does.
        let messages: Vec<_> = [job.opened(), job.sealed(TASK_COUNT)]
            .into_iter()
            .chain(pieces)
            .chain([done(&job, 8..9), done(&job, 0..2)])
            .collect();
        let mut told = Vec::new();
        for (place, messages) in messages.chunks(group).enumerate() {
            if place % 2 == 1 {
                drop(take(clerk(&office), messages.iter().cloned())); // killed; they come again
            }
            told = names(&commit(&office, messages.iter().cloned()));
        }
        assert_eq!(report(&office, &job), plain_sum(0..TASK_COUNT).to_bits(), "in groups of {group}");
        assert_eq!(told.last(), Some(&"finished"), "{told:?}");
        assert_eq!(office.conclusion(&job), Conclusion::answer(office.report(&job)));
        office.verify(&job);
    }
}

#[test]
fn a_reopened_job_folds_all_outputs_anew() {
    let (office, job) = (Office::new(), Submitted::new(&PlainSum::default()));
    commit(
        &office,
        [job.opened(), job.failed(&[7]), done(&job, 8..40), done(&job, 0..7), job.sealed(TASK_COUNT)],
    );
    let partial = plain_sum((0..TASK_COUNT).filter(|index| *index != 7));
    assert_eq!(report(&office, &job), partial.to_bits());
    let told = office.conclusion(&job);
    assert_eq!(
        told,
        Conclusion::no_answer(format!("no answer: 1 of 40 tasks failed; partial report: {partial}"))
    );
    commit(&office, [job.reopen(&[])]);
    let outputs = format!("[{}]", term(7));
    commit(&office, [job.spans(&[(7, 1, &outputs)], &[], 1)]);
    assert_eq!(report(&office, &job), plain_sum(0..TASK_COUNT).to_bits());
    assert!(office.conclusion(&job).answered);
}

#[test]
fn a_panic_in_the_ordered_fold_fails_the_job() {
    let (office, job) = (Office::new(), Submitted::new(&PlainSum { panics: true }));
    let outbox = commit(&office, [job.opened(), done(&job, 0..2), job.sealed(2)]);
    assert_eq!(office.state(&job), JobState::Failed);
    let told = office.conclusion(&job);
    assert!(!told.answered && told.text.starts_with("fold_in_order panicked: no order"), "{told:?}");
    assert_eq!(names(&outbox), ["opened", "stopped", "finished"]);
    assert_eq!(office.account(&job).done, 2, "outcomes count all the same");
    // The next job is served as ever.
    let next = Submitted::new(&PlainSum::default());
    commit(&office, [next.opened(), done(&next, 0..2), next.sealed(2)]);
    assert_eq!(report(&office, &next), plain_sum(0..2).to_bits());
}

#[test]
fn a_cancelled_job_shows_what_it_has_in_order() {
    let (office, job) = (Office::new(), Submitted::new(&PlainSum::default()));
    commit(&office, [job.opened(), done(&job, 4..8), done(&job, 0..4), job.cancelled(), job.opened()]);
    let told = office.conclusion(&job);
    assert_eq!(told.text, format!("cancelled: lunch; so far: {}", plain_sum(0..8)));
}

#[test]
fn a_report_that_is_not_finite_fails_the_job() {
    let (office, job) = (Office::new(), Submitted::new(&PlainSum::default()));
    let outputs = format!("[{max},{max}]", max = f64::MAX);
    commit(&office, [job.opened(), job.spans(&[(0, 2, &outputs)], &[], 0), job.sealed(2)]);
    assert_eq!(office.state(&job), JobState::Failed);
    let told = office.conclusion(&job);
    let why = "the report cannot be encoded: report is infinite, but only finite floats travel";
    assert!(!told.answered && told.text.starts_with(why), "{told:?}");
}
