//! Submitting a job: plan, open, split and send, seal.

use std::{future::Future, sync::Arc};

use gristmill_shared::{
    Address, AnyJob, JobBoard, JobError, JobId, Kind, Lane, Outgoing, Plan, Policy, Publisher, QueueRole,
    Registry, Round, SplitDigest, StoreError, TaskIndex, Transport,
    fail_point::{FailPoint, reached},
    publish_until_stored,
    wire::{Aborted, Form, Opened, Sealed, now_ms},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Cursor, CursorDir, ProducerError, SplitEnd, SplitReport,
    kept_cursor::KeptCursor,
    sending::{self, Sent},
    splitting::{self, Label, Place},
};

/// How many tasks a batch has unless told otherwise.
pub const DEFAULT_BATCH: u32 = 64;

/// How a job is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitOptions {
    /// Where to. Defaults to the lane `default`.
    pub lane: Lane,
    /// How its tasks are treated when they fail.
    pub policy: Policy,
    /// How many tasks a batch has, 1 to 10,000. Defaults to [`DEFAULT_BATCH`].
    pub batch: u32,
}

impl Default for SubmitOptions {
    fn default() -> Self {
        Self { lane: Lane::default(), policy: Policy::default(), batch: DEFAULT_BATCH }
    }
}

/// Submits jobs over a transport.
#[derive(Debug, Clone)]
pub struct Producer {
    transport: Arc<dyn Transport>,
    app: String,
    code: String,
    cursors: Option<CursorDir>,
}

impl Producer {
    /// A producer that keeps no cursors. `app` is how messages name it.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, app: &str) -> Self {
        Self { transport, app: app.into(), code: String::new(), cursors: None }
    }

    /// Keeps cursors in this directory, so that a job can be resumed by a program of the same version `code`.
    #[must_use]
    pub fn cursors(self, dir: CursorDir, code: &str) -> Self {
        Self { cursors: Some(dir), code: code.into(), ..self }
    }

    /// Asks the job for its plan and tells the sink of it. After this the job exists: send it, or cancel it.
    ///
    /// # Errors
    /// [`ProducerError::Plan`] if the job refuses; nothing was sent then. Otherwise if the broker or the cursor's
    /// directory does.
    pub async fn open(
        &self,
        job: Arc<dyn AnyJob>,
        options: SubmitOptions,
    ) -> Result<Submission, ProducerError> {
        let plan = job.plan().map_err(ProducerError::Plan)?;
        let cursor = Cursor {
            job: JobId::generate(),
            kind: Kind::new(job.kind()).map_err(|error| ProducerError::Plan(error.into()))?,
            spec: job.spec().map_err(ProducerError::Plan)?,
            code: self.code.clone(),
            policy: options.policy,
            plan,
            lane: options.lane,
            submitted_ms: now_ms(),
            batch: options.batch,
            confirmed: TaskIndex(0),
            digest: SplitDigest::default(),
            sealed: None,
        };
        if let Some(cursors) = &self.cursors {
            cursors.save(&cursor)?;
            cursors.prune()?;
        }
        self.begin(job, cursor).await
    }

    /// Takes up a job where its cursor says it was left. A job that is sealed is only sealed again.
    ///
    /// # Errors
    /// [`ProducerError::Changed`] if the program is of another version, or the cursor's job is not known to
    /// `registry`; otherwise as [`Producer::open`].
    pub async fn resume(&self, registry: &Registry, cursor: Cursor) -> Result<Submission, ProducerError> {
        if cursor.code != self.code {
            return Err(ProducerError::Changed(format!(
                "job {} was submitted by version {} of this program, which is {} (hint: resume it with that version, \
                 or cancel it and submit it anew)",
                cursor.job, cursor.code, self.code
            )));
        }
        let job = registry.open(&cursor.kind, &cursor.spec).map_err(|error| {
            ProducerError::Changed(format!("job {} cannot be read here: {error}", cursor.job))
        })?;
        self.begin(job, cursor).await
    }

    async fn begin(&self, job: Arc<dyn AnyJob>, cursor: Cursor) -> Result<Submission, ProducerError> {
        self.transport.open_lane(&cursor.lane).await?;
        let publisher = self.transport.publisher().await?;
        let kept = KeptCursor { cursor, dir: self.cursors.clone() };
        let submission = Submission { producer: self.clone(), publisher, job, kept };
        let Cursor { job, kind, spec, policy, plan, lane, submitted_ms, .. } = submission.cursor().clone();
        submission.tell_sink(&Opened { job, kind, spec, policy, plan, lane, submitted_ms }, "opened").await?;
        Ok(submission)
    }
}

/// A job that has been opened and is to be sent.
#[derive(Debug)]
pub struct Submission {
    producer: Producer,
    publisher: Arc<dyn Publisher>,
    job: Arc<dyn AnyJob>,
    kept: KeptCursor,
}

impl Submission {
    fn cursor(&self) -> &Cursor {
        &self.kept.cursor
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.cursor().job
    }

    /// What the job said of itself.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.cursor().plan
    }

    /// Splits the job, sends its tasks and seals it; ends early if the job does. The tasks are split on a thread of
    /// their own, and never more than a few batches ahead of what the broker takes.
    ///
    /// Dropping the future leaves the job open: it can be resumed from its cursor, or cancelled.
    ///
    /// # Errors
    /// [`ProducerError`]; the job can be resumed unless the split itself failed.
    pub async fn send(mut self) -> Result<SplitReport, ProducerError> {
        if let Some(sealed) = self.cursor().sealed.clone() {
            self.tell_sink(&sealed, "sealed").await?;
            return Ok(SplitReport { end: SplitEnd::Sealed, sent: sealed.total });
        }
        let (board, following) = JobBoard::open(&*self.producer.transport).await?;
        let stop = board.stop_signal(self.id(), Round(0));
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        let splits =
            splitting::start(Arc::clone(&self.job), self.label(), self.kept.place(), self.cursor().batch)
                .map_err(ProducerError::Thread)?;
        let to = Address::Queue(QueueRole::Tasks.of(&self.cursor().lane));
        let sent = tokio::select! {
            sent = sending::send_all(splits, to, &*self.publisher, &stop, &mut self.kept) => sent,
            lost = following => return Err(lost.map_or(ProducerError::Died, ProducerError::from)),
        };
        match sent {
            Ok(Sent::Stopped(sent)) => Ok(SplitReport { end: SplitEnd::Stopped, sent }),
            Ok(Sent::All(total, digest)) => match self.cursor().plan.tasks {
                Some(planned) if planned != total => {
                    let unit = &self.cursor().plan.unit;
                    let why = format!("the job planned {planned} {unit}, but its split gave {total}");
                    self.abort(JobError::new(why)).await
                }
                _ => self.seal(total, digest).await,
            },
            Err(ProducerError::Split(error)) => self.abort(error).await,
            Err(error) => Err(error),
        }
    }

    async fn seal(mut self, total: u64, digest: SplitDigest) -> Result<SplitReport, ProducerError> {
        reached(FailPoint::ProducerSplit);
        let sealed = Sealed { job: self.id(), total, digest: digest.to_string() };
        self.kept.seal(Place { index: TaskIndex(total), digest }, sealed.clone()).await?;
        reached(FailPoint::ProducerSealed);
        self.tell_sink(&sealed, "sealed").await?;
        Ok(SplitReport { end: SplitEnd::Sealed, sent: total })
    }

    async fn abort(self, error: JobError) -> Result<SplitReport, ProducerError> {
        self.tell_sink(&Aborted { job: self.id(), reason: error.to_string() }, "aborted").await?;
        Err(ProducerError::Split(error))
    }

    fn label(&self) -> Label {
        let Cursor { job, kind, spec, policy, .. } = self.cursor().clone();
        Label { job, kind, spec, policy, app: self.producer.app.clone() }
    }

    /// Sends the sink a message about the job as a whole; `part` makes its id.
    fn tell_sink(
        &self,
        what: &impl Form,
        part: &str,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + '_ {
        let message = what.message(format!("{}/{part}", self.id()), &self.producer.app);
        let to = Address::Queue(QueueRole::Results.of(&self.cursor().lane));
        publish_until_stored(&*self.publisher, vec![Outgoing { to, message }])
    }
}
