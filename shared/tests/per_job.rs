//! Choices of a job by its parameters and not by its type: outputs to keep, policy, local input.

use std::{ops::ControlFlow, sync::Arc};

use gristmill_shared::{
    AnyJob, BatchLimit, Job, JobError, Keep, Kind, LocalInput, Policy, PolicyOverrides, Registry,
    SplitDigest, TaskContext, TaskError, TaskIndex, erase, erase_shared, wire::PackedTasks,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Misbehaves as its field says.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Choosing {
    keep: Option<Keep>,
    panics: bool,
    forgets_input: bool,
    #[serde(skip)]
    input: Vec<String>,
}

impl Choosing {
    fn choose(&self) {
        assert!(!self.panics, "no choice");
    }
}

impl Job for Choosing {
    const KIND: &'static str = "choosing";
    const KEEP: Keep = Keep::Outputs;
    type Task = String;
    type Output = ();
    type Report = ();

    fn keep(&self) -> Keep {
        self.choose();
        self.keep.unwrap_or(Self::KEEP)
    }
    fn policy(&self, defaults: Policy) -> Policy {
        self.choose();
        Policy { max_attempts: 0, keep: Some(Keep::Tasks), ..defaults }
    }
    fn local(&self) -> Result<LocalInput, JobError> {
        self.choose();
        if self.input.is_empty() { Ok(LocalInput::none()) } else { LocalInput::new(&self.input) }
    }
    fn with_local(&mut self, local: &LocalInput) -> Result<(), JobError> {
        if self.forgets_input {
            return Err(JobError::new("what input?"));
        }
        self.input = local.get()?;
        Ok(())
    }
    fn split(&self) -> impl Iterator<Item = Result<String, JobError>> + Send {
        self.input.iter().cloned().map(Ok)
    }
    fn process(&self, _: String, _: &TaskContext) -> Result<(), TaskError> {
        Ok(())
    }
    fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn panicking() -> Arc<dyn AnyJob> {
    erase(Choosing { panics: true, ..Choosing::default() })
}

fn with_input() -> Choosing {
    Choosing { input: vec!["a".into(), "b".into()], ..Choosing::default() }
}

/// Decodes a job from its spec, as `producer resume` does.
fn reopened(job: &dyn AnyJob) -> Arc<dyn AnyJob> {
    let mut registry = Registry::default();
    registry.register::<Choosing>().unwrap();
    registry.open(&Kind::new(job.kind()).unwrap(), job.version(), &job.spec().unwrap()).unwrap()
}

fn tasks(job: &dyn AnyJob) -> String {
    let (mut tasks, mut digest) = (PackedTasks::default(), SplitDigest::default());
    let limit = BatchLimit { tasks: u32::MAX, bytes: usize::MAX };
    job.split_from(TaskIndex(0)).unwrap().split_into(&mut tasks, &mut digest, limit).unwrap();
    tasks.finish().get().to_owned()
}

#[test]
fn parameters_decide_what_is_kept() {
    for (keep, kept) in
        [(None, Keep::Outputs), (Some(Keep::Report), Keep::Report), (Some(Keep::Tasks), Keep::Tasks)]
    {
        let job = erase(Choosing { keep, ..Choosing::default() });
        assert_eq!((job.keep(), reopened(&*job).keep()), (kept, kept));
        assert_eq!(job.sends_tasks(&Policy::default()), kept == Keep::Tasks);
        let stated = PolicyOverrides::default().keep(Keep::Report).apply(Policy::default());
        assert!(!job.sends_tasks(&stated), "what is stated wins");
    }
    assert_eq!(panicking().keep(), Choosing::KEEP);
}

#[test]
fn chosen_policy_has_an_attempt() {
    let defaults = Policy { retry_delays_ms: vec![7_000], ..Policy::default() };
    let chosen = erase(Choosing::default()).policy(defaults.clone()).unwrap();
    assert_eq!(chosen, Policy { max_attempts: 1, ..defaults.clone() }, "`keep` alone says what is kept");
    assert_eq!(panicking().policy(defaults).unwrap_err().to_string(), "policy panicked: no choice");
}

#[test]
fn local_input_comes_back() {
    let job = erase(with_input());
    let local = job.local().unwrap().unwrap();
    assert_eq!(local.get(), r#"["a","b"]"#);
    assert!(!job.spec().unwrap().get().contains("\"a\""), "it travels");
    let restored = reopened(&*job).with_local(&local).unwrap();
    assert_eq!((tasks(&*restored), tasks(&*job)), (local.get().into(), local.get().into()));
    assert!(erase(Choosing::default()).local().unwrap().is_none());
}

/// A job that could not be resumed is refused when it is submitted.
#[test]
fn unrestorable_input_is_refused() {
    let forgetful = erase(Choosing { forgets_input: true, ..with_input() });
    assert_eq!(forgetful.local().unwrap_err().to_string(), "what input?");
    assert_eq!(panicking().local().unwrap_err().to_string(), "local panicked: no choice");
    let other = RawValue::from_string("7".into()).unwrap();
    let error = reopened(&*forgetful).with_local(&other).unwrap_err();
    assert_eq!(error.to_string(), "what input?");
    let error = erase(Choosing::default()).with_local(&other).unwrap_err();
    assert!(error.to_string().starts_with("the job's local input does not fit: invalid type"), "{error}");
}

/// A job that others hold keeps its value: it is taken only with the same input.
#[test]
fn shared_job_keeps_its_input() {
    let shared = Arc::new(with_input());
    let job = erase_shared(Arc::clone(&shared));
    let local = job.local().unwrap().unwrap();
    for job in [Arc::clone(&job), erase_shared(shared)] {
        assert_eq!(tasks(&*job.with_local(&local).unwrap()), local.get());
    }
    let other = RawValue::from_string(r#"["c"]"#.into()).unwrap();
    let error = Arc::clone(&job).with_local(&other).unwrap_err().to_string();
    assert!(error.contains(r#"is shared, and its local input is not ["c"]"#), "{error}");
}
