//! Submission of a job: plan, open, split and send, seal.

use std::{
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use gristmill_shared::{
    Address, AnyJob, Backoff, BuildId, JobError, JobId, Kind, Lane, Outgoing, Plan, PublishError, Publisher,
    QueueRole, RefusedRanges, RefusedTasks, Registry, Round, SplitDigest, TaskIndex, Transport,
    fail_point::{FailPoint, reached},
    publish_until_stored,
    wire::{Aborted, Sealed, WireMessage, now_ms},
};
use tokio::time::Instant;

use super::{
    options::SubmitOptions,
    send::{self, SendContext, SendOutcome, SendProgress},
    shared_state::ProducerShared,
};
use crate::{
    Cursor, CursorDir, JobWatcher, ProducerError, SplitEnd, SplitReport,
    batch_size::SizerSubscription,
    cursor_file::CursorFile,
    splitter::{self, BatchTemplate, SplitPosition, SplitSelection},
};

/// The first and the longest pause before tasks are sent again whose outcomes were refused. Each
/// pause is twice as long as the one before. After a longest pause without refusals they start from
/// the beginning.
const RESEND_PAUSE_MIN: Duration = Duration::from_secs(1);
const RESEND_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A producer, which submits jobs over a transport.
///
/// Its jobs share a lane that is opened once and one reader of the journal. The reader runs in the
/// background, on the runtime that submits the first job, until the producer, its clones and its
/// submissions are dropped. A caller that submits many jobs should keep one producer: the second
/// job starts sooner than the first.
#[derive(Debug, Clone)]
pub struct Producer {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) app: String,
    code: String,
    build: Option<BuildId>,
    cursors: Option<CursorDir>,
    shared: Arc<ProducerShared>,
}

impl Producer {
    /// Creates a producer that keeps no cursors. `app` is its name in messages.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, app: &str) -> Self {
        Self {
            transport,
            app: app.into(),
            code: String::new(),
            build: None,
            cursors: None,
            shared: Arc::default(),
        }
    }

    /// Sets the build of the program, which travels with its jobs.
    #[must_use]
    pub fn build(self, build: Option<BuildId>) -> Self {
        Self { build, ..self }
    }

    /// Keeps cursors in this directory. A program of the same version `code` can then resume a job.
    #[must_use]
    pub fn cursors(self, dir: CursorDir, code: &str) -> Self {
        Self { cursors: Some(dir), code: code.into(), ..self }
    }

    /// Asks the job for its plan and announces the job to the sink. From then on the job exists:
    /// the caller sends it or cancels it.
    ///
    /// # Errors
    /// [`ProducerError::Plan`] if the job refuses; nothing was sent then. Otherwise if the broker
    /// or the cursor's directory fails.
    pub async fn open(
        &self,
        job: Arc<dyn AnyJob>,
        options: SubmitOptions,
    ) -> Result<Submission, ProducerError> {
        let mut submission = self.prepare_new(job, options).await?;
        submission.announce_opened().await?;
        Ok(submission)
    }

    /// Opens a job as [`Producer::open`] does, and watches it through the producer's own reader of
    /// the journal and its subscription to ends. Unlike [`JobWatcher::open`], this costs the broker
    /// something, and takes time, only for the first job of a lane; but it reports no
    /// [`JobUpdate::Progress`](crate::JobUpdate::Progress).
    ///
    /// # Errors
    /// The errors of [`Producer::open`].
    pub async fn open_watched(
        &self,
        job: Arc<dyn AnyJob>,
        options: SubmitOptions,
    ) -> Result<(Submission, JobWatcher), ProducerError> {
        let mut submission = self.prepare_new(job, options).await?;
        self.shared.subscribe_ends(&self.transport, &submission.cursor().lane).await;
        // Before the job is announced to the sink, which may end it at once.
        let facts = self.shared.follower(&self.transport).board.subscribe(submission.id());
        let watch = JobWatcher::for_new_job(submission.id(), facts, Arc::clone(&self.transport));
        submission.announce_opened().await?;
        Ok((submission, watch))
    }

    /// Waits until the journal has been read. Returns true if a sink has announced there that it
    /// serves the lane. That sink may be gone since; if there was none, the lane's name may be
    /// wrong.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn is_served(&self, lane: &Lane) -> Result<bool, ProducerError> {
        let follower = self.shared.follower(&self.transport);
        follower.wait_caught_up().await?;
        Ok(follower.board.is_served(lane))
    }

    async fn prepare_new(
        &self,
        job: Arc<dyn AnyJob>,
        options: SubmitOptions,
    ) -> Result<Submission, ProducerError> {
        let plan = job.plan().map_err(ProducerError::Plan)?;
        let policy = options.effective_policy(&*job).map_err(ProducerError::Plan)?;
        let cursor = Cursor {
            job: options.job.unwrap_or_else(JobId::generate),
            kind: Kind::new(job.kind()).map_err(|error| ProducerError::Plan(error.into()))?,
            spec: job.spec().map_err(ProducerError::Plan)?,
            local: job.local().map_err(ProducerError::Plan)?,
            code: self.code.clone(),
            version: job.version(),
            build: self.build.clone(),
            policy,
            plan,
            lane: options.lane,
            shards: options.shards,
            submitted_ms: now_ms(),
            batch: options.batch,
            confirmed: TaskIndex(0),
            digest: SplitDigest::default(),
            sealed: None,
        };
        self.prepare(job, CursorFile::create(cursor, self.cursors.clone()).await?).await
    }

    /// Resumes a job where its cursor left it. A job that is sealed is only sealed again.
    ///
    /// # Errors
    /// [`ProducerError::Changed`] if the program is of another version, or the cursor's job is not
    /// known to `registry`; [`ProducerError::InputUnavailable`] if the job does not take its local
    /// input; [`CursorError::Held`](crate::CursorError::Held) if another producer is sending the
    /// job; otherwise the errors of [`Producer::open`].
    pub async fn resume(&self, registry: &Registry, cursor: Cursor) -> Result<Submission, ProducerError> {
        if cursor.code != self.code {
            return Err(ProducerError::Changed(format!(
                "job {} was submitted by version {} of this program, which is {} (hint: resume it with that version, \
                 or cancel it and submit it again)",
                cursor.job, cursor.code, self.code
            )));
        }
        // All of a sealed job was sent. Its missing tasks may belong to a round that has this
        // program's version.
        let version = match registry.version(&cursor.kind) {
            Some(version) if cursor.sealed.is_some() => version,
            _ => cursor.version,
        };
        let job = registry.open(&cursor.kind, version, &cursor.spec).map_err(|error| {
            ProducerError::Changed(format!(
                "job {} cannot be read here: {error} (hint: resume it with the program that submitted it)",
                cursor.job
            ))
        })?;
        let job = match &cursor.local {
            None => job,
            Some(local) => job
                .with_local(local)
                .map_err(|error| ProducerError::InputUnavailable { job: cursor.job, error })?,
        };
        let cursor_file = CursorFile::acquire(cursor, self.cursors.clone())?;
        let mut submission = self.prepare(job, cursor_file).await?;
        submission.is_resumed = true;
        submission.announce_opened().await?;
        Ok(submission)
    }

    async fn prepare(
        &self,
        job: Arc<dyn AnyJob>,
        cursor_file: CursorFile,
    ) -> Result<Submission, ProducerError> {
        self.shared.open_lane(&*self.transport, &cursor_file.cursor.lane, cursor_file.cursor.shards).await?;
        // The follower catches up while the job is announced.
        let refused = self.shared.follower(&self.transport).board.refused_tasks(cursor_file.cursor.job);
        let publisher = self.transport.publisher().await?;
        // Before the job is announced, since the sink may answer with the progress that it knows.
        let subscription =
            SizerSubscription::subscribe(&*self.transport, &cursor_file.cursor, job.in_flight()).await?;
        Ok(Submission {
            producer: self.clone(),
            publisher,
            job,
            cursor_file,
            subscription,
            refused,
            is_resumed: false,
            is_checked: false,
        })
    }
}

/// A job that has been opened and is to be sent.
#[derive(Debug)]
pub struct Submission {
    pub(crate) producer: Producer,
    publisher: Arc<dyn Publisher>,
    pub(crate) job: Arc<dyn AnyJob>,
    pub(crate) cursor_file: CursorFile,
    subscription: SizerSubscription,
    /// The tasks whose outcomes the sink refused since the job was opened here.
    refused: RefusedTasks,
    /// True if another producer opened the job and split a part of it.
    is_resumed: bool,
    /// True once the split was compared with what was sent, before any of it was sent again.
    is_checked: bool,
}

impl Submission {
    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor_file.cursor
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.cursor().job
    }

    /// The job's plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.cursor().plan
    }

    /// Splits the job, sends its tasks and seals it. Ends early if the job does. The tasks are
    /// split on a thread of their own, at most some dozens of batches ahead of what the broker
    /// stores.
    ///
    /// Dropping the future leaves the job open: it can be resumed from its cursor, or cancelled. A
    /// cursor that is being saved stays [`Held`](crate::CursorError::Held) until that is done.
    ///
    /// # Errors
    /// [`ProducerError`]; the job can be resumed unless the split itself failed. In a resumed job a
    /// split that fails before its first new task gives
    /// [`ProducerError::InputUnavailable`] and ends nothing.
    pub async fn send(mut self) -> Result<SplitReport, ProducerError> {
        self.send_until(pending()).await
    }

    /// Sends the job as [`Submission::send`] does, until `interrupt` resolves. Then it sends
    /// nothing more, waits at most 5 s for outstanding confirms and saves the cursor: the job can
    /// be resumed without sending anything twice.
    ///
    /// # Errors
    /// The errors of [`Submission::send`].
    pub async fn send_until(
        &mut self,
        interrupt: impl Future<Output = ()> + Send,
    ) -> Result<SplitReport, ProducerError> {
        let mut interrupt = pin!(interrupt);
        if let Some(sealed) = self.cursor().sealed.clone() {
            let stored = or_interrupted(self.send_to_sink(&sealed, "sealed"), interrupt).await?;
            return Ok(SplitReport {
                end: stored.map_or(SplitEnd::Interrupted, |()| SplitEnd::Sealed),
                sent: sealed.total,
            });
        }
        let position = self.cursor_file.position();
        let (start, is_resumed) = (position.index.0, self.is_resumed || position.index.0 > 0);
        let selection = SplitSelection::After { position, is_resumed };
        let mut sent = self.send_selection(selection, Round(0), &mut interrupt).await;
        // Once only: tasks that are refused again wait for the seal, and are sent with pauses then.
        if let Ok(SendOutcome::All(total, digest)) = sent
            && let Some(ranges) = self.refused.take()
        {
            let ended = self.resend_refused(ranges, &mut interrupt).await;
            sent = ended.map(|ended| ended.unwrap_or(SendOutcome::All(total, digest)));
        }
        match sent {
            Ok(SendOutcome::Stopped(sent)) => Ok(SplitReport { end: SplitEnd::Stopped, sent }),
            Ok(SendOutcome::Interrupted(sent)) => Ok(SplitReport { end: SplitEnd::Interrupted, sent }),
            Ok(SendOutcome::All(total, digest)) => match self.cursor().plan.tasks {
                Some(planned) if planned != total => {
                    let unit = &self.cursor().plan.unit;
                    let why = format!("the job planned {planned} {unit}, but its split gave {total}");
                    if is_resumed && total <= start {
                        // Nothing new was split: the input may be back in part only.
                        return Err(self.input_unavailable(JobError::new(why)));
                    }
                    self.abort(JobError::new(why), interrupt).await
                }
                _ => self.seal(total, digest, interrupt).await,
            },
            Err(ProducerError::Split(error)) => self.abort(error, interrupt).await,
            Err(error) => Err(error),
        }
    }

    /// Sends tasks again whose outcomes the sink refuses, because a worker of another version or
    /// build ran them. Ends when the job's round 0 has ended, or when `interrupt` resolves. Applies
    /// to a job that was sent whole. A producer that does not stay leaves such tasks to
    /// [`Submission::send_missing`].
    ///
    /// # Errors
    /// The errors of [`Submission::send`].
    pub async fn send_refused_until(
        &mut self,
        interrupt: impl Future<Output = ()> + Send,
    ) -> Result<(), ProducerError> {
        let mut interrupt = pin!(interrupt);
        self.cursor_file.release(); // `resume --missing` may run beside this one
        let refused = self.refused.clone();
        let follower = self.producer.shared.follower(&self.producer.transport).clone();
        let stop = follower.board.stop_signal(self.id(), Round(0));
        let mut backoff = Backoff::exact(RESEND_PAUSE_MIN, RESEND_PAUSE_MAX);
        let (mut pause, mut sent_at) = (Duration::ZERO, Instant::now());
        loop {
            let ranges = tokio::select! {
                ranges = refused.next() => ranges,
                () = stop.stopped() => return Ok(()),
                () = &mut interrupt => return Ok(()),
                lost = follower.connection_lost() => return Err(lost),
            };
            if sent_at.elapsed() > RESEND_PAUSE_MAX {
                backoff.reset();
                pause = Duration::ZERO;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.stopped() => return Ok(()),
                () = &mut interrupt => return Ok(()),
            }
            let is_incomplete = ranges.is_incomplete;
            if self.resend_refused(ranges, &mut interrupt).await?.is_some() {
                return Ok(());
            }
            if is_incomplete {
                tokio::select! {
                    sent = self.send_missing() => drop(sent?),
                    () = stop.stopped() => return Ok(()),
                    () = &mut interrupt => return Ok(()),
                }
            }
            pause = backoff.next_pause();
            sent_at = Instant::now();
        }
    }

    async fn resend_refused(
        &mut self,
        RefusedRanges { round, ranges, is_incomplete: _ }: RefusedRanges,
        interrupt: impl Future<Output = ()> + Send,
    ) -> Result<Option<SendOutcome>, ProducerError> {
        if !std::mem::replace(&mut self.is_checked, true) {
            self.check_unchanged().await?;
        }
        let tasks: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let job = self.id();
        tracing::warn!(
            %job, tasks,
            "the sink refused outcomes, because a worker of another version or build ran the tasks; sending these \
             tasks again"
        );
        match self.send_selection(SplitSelection::Ranges(ranges), round, interrupt).await {
            Ok(SendOutcome::All(..)) => Ok(None),
            // The caller expects the count of the job, not of these ranges.
            Ok(SendOutcome::Stopped(_)) => Ok(Some(SendOutcome::Stopped(self.cursor().confirmed.0))),
            Ok(SendOutcome::Interrupted(_)) => Ok(Some(SendOutcome::Interrupted(self.cursor().confirmed.0))),
            // The split did not fail before: the job is unchanged, and is not ended for that.
            Err(ProducerError::Split(error)) => Err(self.input_unavailable(error)),
            Err(error) => Err(error),
        }
    }

    /// Sends a selection of the split. Moves the cursor if the selection is all that is left.
    pub(crate) async fn send_selection(
        &mut self,
        selection: SplitSelection,
        round: Round,
        interrupt: impl Future<Output = ()> + Send,
    ) -> Result<SendOutcome, ProducerError> {
        let follower = self.producer.shared.follower(&self.producer.transport);
        follower.wait_caught_up().await?;
        let stop = follower.board.stop_signal(self.id(), round);
        let moves_cursor = matches!(selection, SplitSelection::After { .. });
        let (job, planned) = (Arc::clone(&self.job), self.plan().tasks);
        let sizer = Arc::clone(&self.subscription.sizer);
        let events = splitter::start(job, self.batch_template(round), selection, planned, sizer)
            .map_err(ProducerError::Thread)?;
        let Cursor { lane, shards, .. } = self.cursor();
        let to: Vec<_> = shards.queues().map(|shard| Address::Queue(shard.of(lane))).collect();
        let context =
            SendContext { job: self.id(), to: &to, publisher: &*self.publisher, stop: &stop, interrupt };
        let progress = if moves_cursor {
            SendProgress::in_cursor(&mut self.cursor_file)
        } else {
            SendProgress::Count(0)
        };
        tokio::select! {
            sent = send::send_all(events, context, progress) => sent,
            lost = follower.connection_lost() => Err(lost),
            lost = self.subscription.connection_lost() => Err(lost),
        }
    }

    async fn seal(
        &mut self,
        total: u64,
        digest: SplitDigest,
        interrupt: impl Future<Output = ()> + Send,
    ) -> Result<SplitReport, ProducerError> {
        reached(FailPoint::ProducerSplit);
        let sealed = Sealed { job: self.id(), total, digest: digest.to_string() };
        self.cursor_file.seal(SplitPosition { index: TaskIndex(total), digest }, sealed.clone()).await?;
        reached(FailPoint::ProducerSealed);
        let stored = or_interrupted(self.send_to_sink(&sealed, "sealed"), interrupt).await?;
        Ok(SplitReport { end: stored.map_or(SplitEnd::Interrupted, |()| SplitEnd::Sealed), sent: total })
    }

    async fn abort(
        &self,
        error: JobError,
        interrupt: impl Future<Output = ()> + Send,
    ) -> Result<SplitReport, ProducerError> {
        let aborted = Aborted { job: self.id(), reason: error.to_string() };
        match or_interrupted(self.send_to_sink(&aborted, "aborted"), interrupt).await? {
            Some(()) => Err(ProducerError::Split(error)),
            None => Ok(SplitReport { end: SplitEnd::Interrupted, sent: self.cursor().confirmed.0 }),
        }
    }

    fn batch_template(&self, round: Round) -> BatchTemplate {
        BatchTemplate {
            opened: self.cursor().opened(),
            round,
            version: self.job.version(),
            app: self.producer.app.clone(),
        }
    }

    async fn announce_opened(&mut self) -> Result<(), PublishError> {
        self.send_to_sink(&self.cursor().opened(), "opened").await
    }

    /// Sends the sink a message about the job as a whole; `id_suffix` makes its id.
    pub(crate) fn send_to_sink(
        &self,
        body: &impl WireMessage,
        id_suffix: &str,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + '_ {
        let message = body.message(format!("{}/{id_suffix}", self.id()), &self.producer.app);
        let to = Address::Queue(QueueRole::Results.of(&self.cursor().lane));
        publish_until_stored(&*self.publisher, vec![Outgoing { to, message }])
    }
}

/// Waits until the message is stored, or until `interrupt` resolves: the sink's queue may be full.
async fn or_interrupted(
    sent: impl Future<Output = Result<(), PublishError>> + Send,
    interrupt: impl Future<Output = ()> + Send,
) -> Result<Option<()>, PublishError> {
    tokio::select! {
        sent = sent => sent.map(Some),
        () = interrupt => Ok(None),
    }
}
