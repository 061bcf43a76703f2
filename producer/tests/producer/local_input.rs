//! Input that only the splitting machine has, and policies that a kind chooses.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use gristmill_producer::{CursorDir, Producer, ProducerError, Submission, SubmitOptions};
use gristmill_shared::{
    FailFast, Job, JobError, JobId, Keep, LocalInput, Policy, PolicyOverrides, QueueRole, Registry,
    TASKS_MAX_MESSAGES, TaskContext, TaskError, TaskIndex, Transport, erase,
    memory::MemoryTransport,
    wire::{Opened, SinkMessage},
};
use serde::{Deserialize, Serialize};

use crate::harness::{drain, first_and_count, options, seal, within};

/// Counts to the number in a file. An input that begins with `!` is refused by `with_local`.
#[derive(Serialize, Deserialize)]
struct FromFile {
    #[serde(skip)]
    file: String,
}

impl Job for FromFile {
    const KIND: &'static str = "from-file";
    type Task = u64;
    type Output = ();
    type Report = ();

    fn policy(&self, defaults: Policy) -> Policy {
        let fail_fast = Some(FailFast::Tasks(3));
        Policy { max_attempts: 1, task_timeout_ms: Some(500), fail_fast, ..defaults }
    }
    fn keep(&self) -> Keep {
        Keep::Outputs
    }
    fn local(&self) -> Result<LocalInput, JobError> {
        LocalInput::new(&self.file)
    }
    fn with_local(&mut self, local: &LocalInput) -> Result<(), JobError> {
        self.file = local.get()?;
        if self.file.starts_with('!') { Err(JobError::new("no such input")) } else { Ok(()) }
    }
    fn split(&self) -> impl Iterator<Item = Result<u64, JobError>> + Send {
        let read = || -> Result<u64, JobError> { Ok(std::fs::read_to_string(&self.file)?.parse()?) };
        let (tasks, error) = match read() {
            Ok(tasks) => (tasks, None),
            Err(error) => (0, Some(Err(error))),
        };
        error.into_iter().chain((0..tasks).map(Ok))
    }
    fn process(&self, _: u64, _: &TaskContext) -> Result<(), TaskError> {
        Ok(())
    }
    fn collect(&self, (): &mut (), _: TaskIndex, (): ()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A producer with cursors, and the file of its job.
struct FileBench {
    transport: Arc<dyn Transport>,
    producer: Producer,
    registry: Registry,
    cursors: CursorDir,
    dir: tempfile::TempDir,
}

impl FileBench {
    fn new() -> Self {
        let transport: Arc<dyn Transport> = MemoryTransport::new();
        let dir = tempfile::tempdir().unwrap();
        let cursors = CursorDir::new(dir.path().join("jobs"));
        let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
        let mut registry = Registry::default();
        registry.register::<FromFile>().unwrap();
        Self { transport, producer, registry, cursors, dir }
    }

    fn file(&self) -> String {
        self.dir.path().join("only-here").to_str().unwrap().to_owned()
    }

    fn write(&self, tasks: u64) {
        std::fs::write(self.file(), tasks.to_string()).unwrap();
    }

    async fn open(&self) -> Submission {
        self.producer.open(erase(FromFile { file: self.file() }), options(1)).await.unwrap()
    }

    async fn resume(&self, job: JobId) -> Result<Submission, ProducerError> {
        self.producer.resume(&self.registry, self.cursors.load(job).unwrap()).await
    }

    /// Resumes the job, which fails, and asserts that nothing but its opening was sent.
    async fn fail_to_resume(&self, job: JobId) {
        let resumed = within(self.resume(job).await.unwrap().send()).await;
        let error = resumed.unwrap_err();
        let is_named = matches!(&error, ProducerError::InputUnavailable { job: named, .. } if *named == job);
        assert!(is_named && error.to_string().contains(&format!("`producer resume {job}`")), "{error}");
        assert!(drain(&*self.transport, QueueRole::Tasks).await.is_empty());
        for message in drain(&*self.transport, QueueRole::Results).await {
            let message = SinkMessage::decode(&message).unwrap();
            assert!(matches!(message, SinkMessage::Opened(_)), "{message:?}");
        }
    }
}

/// The file is away before the first task and in the middle; each time the job stays, and is exact
/// when the file is back.
#[tokio::test]
async fn absent_file_ends_nothing() {
    let bench = FileBench::new();
    let total = TASKS_MAX_MESSAGES + 10;
    bench.write(total);
    let mut submission = bench.open().await;
    let job = submission.id();
    assert!(bench.cursors.load(job).unwrap().local.is_some());
    std::fs::remove_file(bench.file()).unwrap();
    drop(submission); // releases the cursor
    bench.fail_to_resume(job).await;

    bench.write(total);
    submission = bench.resume(job).await.unwrap();
    let full = async {
        while bench.cursors.load(job).unwrap().confirmed.0 < TASKS_MAX_MESSAGES {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(submission.send_until(full)).await.unwrap();
    drop(submission);
    let sent = drain(&*bench.transport, QueueRole::Tasks).await;
    assert_eq!(sent.len() as u64, TASKS_MAX_MESSAGES);
    let is_there = |message: &gristmill_shared::Message| {
        let name = Path::new(&bench.file()).file_name().unwrap().to_str().unwrap().to_owned();
        message.body.windows(name.len()).any(|bytes| bytes == name.as_bytes())
    };
    let opened = drain(&*bench.transport, QueueRole::Results).await;
    assert!(!sent.iter().chain(&opened).any(is_there), "the path travelled");
    std::fs::remove_file(bench.file()).unwrap();
    bench.fail_to_resume(job).await;

    bench.write(total);
    let report = within(bench.resume(job).await.unwrap().send()).await.unwrap();
    assert_eq!(report.sent, total);
    let rest = drain(&*bench.transport, QueueRole::Tasks).await;
    assert_eq!(
        rest.iter().map(first_and_count).collect::<Vec<_>>(),
        (1_000..1_010).map(|n| (n, 1)).collect::<Vec<_>>()
    );
    assert_eq!(seal(&drain(&*bench.transport, QueueRole::Results).await).0, total);
}

/// A split that fails at a new task of a resumed job aborts it, as in any job.
#[tokio::test]
async fn resumed_job_still_aborts() {
    use crate::harness::{Count, count};
    let bench = FileBench::new();
    let job = Count { fail_at: Some(5), ..count(10) };
    let submission = bench.producer.open(erase(job), options(1)).await.unwrap();
    let id = submission.id();
    drop(submission);
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    let resumed = bench.producer.resume(&registry, bench.cursors.load(id).unwrap()).await.unwrap();
    assert!(matches!(within(resumed.send()).await, Err(ProducerError::Split(_))));
}

#[tokio::test]
async fn refused_input_sends_nothing() {
    let bench = FileBench::new();
    bench.write(3);
    let submission = bench.open().await;
    let job = submission.id();
    drop(submission);
    drain(&*bench.transport, QueueRole::Results).await;
    let mut cursor = bench.cursors.load(job).unwrap();
    for local in [r#""!gone""#, "[7]"] {
        cursor.local = Some(serde_json::from_str(local).unwrap());
        let error = bench.producer.resume(&bench.registry, cursor.clone()).await.unwrap_err();
        assert!(matches!(error, ProducerError::InputUnavailable { .. }), "{error}");
    }
    assert!(drain(&*bench.transport, QueueRole::Results).await.is_empty());
    let refused = bench.producer.open(erase(FromFile { file: "!gone".into() }), options(1)).await;
    assert!(matches!(refused, Err(ProducerError::Plan(why)) if why.to_string() == "no such input"));
}

#[tokio::test]
async fn stated_policy_overrides_the_kinds() {
    let bench = FileBench::new();
    let opened = async |policy: PolicyOverrides| -> Opened {
        let default_policy = Policy { same_build: true, ..Policy::default() };
        let options = SubmitOptions { policy, default_policy, ..options(1) };
        let submission = bench.producer.open(erase(FromFile { file: bench.file() }), options).await.unwrap();
        let policy = bench.cursors.load(submission.id()).unwrap().policy;
        let messages = drain(&*bench.transport, QueueRole::Results).await;
        let SinkMessage::Opened(opened) = SinkMessage::decode(&messages[0]).unwrap() else {
            panic!("not opened")
        };
        assert_eq!(policy, opened.policy);
        opened
    };
    let chosen = Policy {
        max_attempts: 1,
        task_timeout_ms: Some(500),
        fail_fast: Some(FailFast::Tasks(3)),
        same_build: true,
        ..Policy::default()
    };
    assert_eq!(opened(PolicyOverrides::default()).await.policy, chosen);
    let stated = PolicyOverrides::default().max_attempts(5).keep(Keep::Report).same_build(false);
    let expected = Policy { max_attempts: 5, keep: Some(Keep::Report), same_build: false, ..chosen.clone() };
    assert_eq!(opened(stated).await.policy, expected);
    // What the kind keeps anyway need not travel.
    assert_eq!(opened(PolicyOverrides::default().keep(Keep::Outputs)).await.policy, chosen);
}
