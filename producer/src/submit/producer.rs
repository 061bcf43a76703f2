//! Submitting a job: plan, open, split and send, seal.

use std::{
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use gristmill_shared::{
    Address, AnyJob, BuildId, JobError, JobId, Kind, Lane, Outgoing, Plan, Policy, Publisher, QueueRole,
    RefusedRanges, RefusedTasks, Registry, Round, Shards, SplitDigest, StoreError, TaskIndex, Transport,
    fail_point::{FailPoint, reached},
    publish_until_stored,
    wire::{Aborted, Form, Sealed, now_ms},
};
use tokio::time::Instant;

use super::{
    send::{self, Note, Sending, Sent},
    shared_state::Commons,
};
use crate::{
    Cursor, CursorDir, ProducerError, SplitEnd, SplitReport, Watch,
    batch_size::Measured,
    cursor_file::KeptCursor,
    splitter::{self, Label, Part, Place},
};

/// The first pause before tasks whose outcomes were refused again are sent once more, and the
/// longest. Each is twice as long as the one before; after a longest pause without refusals they
/// start anew.
const RESEND_PAUSE_MIN: Duration = Duration::from_secs(1);
const RESEND_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How a job is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubmitOptions {
    /// Where to. Defaults to the lane `default`.
    pub lane: Lane,
    /// Over how many of the lane's shards, in turn; there must be as many. Defaults to 1.
    pub shards: Shards,
    /// How its tasks are treated when they fail.
    pub policy: Policy,
    /// How many tasks a batch has, 1 to 10,000. By default as many as suits how long they are measured to take: 100 ms of
    /// one slot's work, and fewer towards the end.
    pub batch: Option<u32>,
    /// The job's id, of which there must be no job yet. By default a new one; whoever wants to name the job before it is open
    /// makes one.
    pub job: Option<JobId>,
}

/// Submits jobs over a transport.
///
/// Its jobs share what can be shared: a lane is opened once, and the journal is read once, in the background, on the
/// runtime that submits the first job, for as long as the producer, a clone of it or a submission lives. So whoever
/// submits many jobs keeps one producer; the second job is on its way sooner than the first.
#[derive(Debug, Clone)]
pub struct Producer {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) app: String,
    code: String,
    build: Option<BuildId>,
    cursors: Option<CursorDir>,
    commons: Arc<Commons>,
}

impl Producer {
    /// A producer that keeps no cursors. `app` is how messages name it.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, app: &str) -> Self {
        Self {
            transport,
            app: app.into(),
            code: String::new(),
            build: None,
            cursors: None,
            commons: Arc::default(),
        }
    }

    /// Names the build of the program, which travels with its jobs.
    #[must_use]
    pub fn build(self, build: Option<BuildId>) -> Self {
        Self { build, ..self }
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
        let mut submission = self.prepare_new(job, options).await?;
        submission.tell_opened().await?;
        Ok(submission)
    }

    /// [`Producer::open`], and watches the job by way of the producer's own reader of the journal, and of its listener to
    /// ends. Only the first job of a lane costs the broker anything, or takes time, for that, unlike [`Watch::open`]; but it
    /// tells no [`News::Progress`](crate::News::Progress).
    ///
    /// # Errors
    /// Those of [`Producer::open`].
    pub async fn open_watched(
        &self,
        job: Arc<dyn AnyJob>,
        options: SubmitOptions,
    ) -> Result<(Submission, Watch), ProducerError> {
        let mut submission = self.prepare_new(job, options).await?;
        self.commons.listen(&self.transport, &submission.cursor().lane).await;
        // Before the sink is told, which may end the job at once.
        let heard = self.commons.following(&self.transport).board.listen(submission.id());
        let watch = Watch::of_new(submission.id(), heard, Arc::clone(&self.transport));
        submission.tell_opened().await?;
        Ok((submission, watch))
    }

    /// Waits until the journal has been read, and says whether a sink has said there that it serves the lane. One that did
    /// may be gone since; where none did, the lane's name may be wrong.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn is_served(&self, lane: &Lane) -> Result<bool, ProducerError> {
        let following = self.commons.following(&self.transport);
        following.caught_up().await?;
        Ok(following.board.is_served(lane))
    }

    async fn prepare_new(
        &self,
        job: Arc<dyn AnyJob>,
        options: SubmitOptions,
    ) -> Result<Submission, ProducerError> {
        let plan = job.plan().map_err(ProducerError::Plan)?;
        // What the kind says need not travel.
        let keep = options.policy.keep.filter(|keep| *keep != job.keep());
        let cursor = Cursor {
            job: options.job.unwrap_or_else(JobId::generate),
            kind: Kind::new(job.kind()).map_err(|error| ProducerError::Plan(error.into()))?,
            spec: job.spec().map_err(ProducerError::Plan)?,
            code: self.code.clone(),
            version: job.version(),
            build: self.build.clone(),
            policy: Policy { keep, ..options.policy },
            plan,
            lane: options.lane,
            shards: options.shards,
            submitted_ms: now_ms(),
            batch: options.batch,
            confirmed: TaskIndex(0),
            digest: SplitDigest::default(),
            sealed: None,
        };
        self.prepare(job, KeptCursor::begin(cursor, self.cursors.clone()).await?).await
    }

    /// Takes up a job where its cursor says it was left. A job that is sealed is only sealed again.
    ///
    /// # Errors
    /// [`ProducerError::Changed`] if the program is of another version, or the cursor's job is not known to
    /// `registry`; [`CursorError::Held`](crate::CursorError::Held) if another producer is sending the job; otherwise as
    /// [`Producer::open`].
    pub async fn resume(&self, registry: &Registry, cursor: Cursor) -> Result<Submission, ProducerError> {
        if cursor.code != self.code {
            return Err(ProducerError::Changed(format!(
                "job {} was submitted by version {} of this program, which is {} (hint: resume it with that version, \
                 or cancel it and submit it anew)",
                cursor.job, cursor.code, self.code
            )));
        }
        // All of a sealed job was sent. What is missing of it may belong to a round that has this
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
        let kept = KeptCursor::hold(cursor, self.cursors.clone())?;
        let mut submission = self.prepare(job, kept).await?;
        submission.tell_opened().await?;
        Ok(submission)
    }

    async fn prepare(&self, job: Arc<dyn AnyJob>, kept: KeptCursor) -> Result<Submission, ProducerError> {
        self.commons.open_lane(&*self.transport, &kept.cursor.lane, kept.cursor.shards).await?;
        // It catches up while the sink is told.
        let refused = self.commons.following(&self.transport).board.refused(kept.cursor.job);
        let publisher = self.transport.publisher().await?;
        // Before the sink is told, since it may answer with what it knows of the job.
        let measured = Measured::listen(&*self.transport, &kept.cursor, job.in_flight()).await?;
        Ok(Submission { producer: self.clone(), publisher, job, kept, measured, refused, is_checked: false })
    }
}

/// A job that has been opened and is to be sent.
#[derive(Debug)]
pub struct Submission {
    pub(crate) producer: Producer,
    publisher: Arc<dyn Publisher>,
    pub(crate) job: Arc<dyn AnyJob>,
    pub(crate) kept: KeptCursor,
    measured: Measured,
    /// Tasks whose outcomes the sink refused since the job was opened here.
    refused: RefusedTasks,
    /// True once the split was compared with what was sent, before anything of it was sent again.
    is_checked: bool,
}

impl Submission {
    pub(crate) fn cursor(&self) -> &Cursor {
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
    /// their own, and never more than some dozens of batches ahead of what the broker takes.
    ///
    /// Dropping the future leaves the job open: it can be resumed from its cursor, or cancelled. A cursor that is just being
    /// saved is [`Held`](crate::CursorError::Held) until that is done.
    ///
    /// # Errors
    /// [`ProducerError`]; the job can be resumed unless the split itself failed.
    pub async fn send(mut self) -> Result<SplitReport, ProducerError> {
        self.send_until(pending()).await
    }

    /// [`Submission::send`], but when `leave` resolves nothing more is sent, what is on its way is waited for, for 5 s at
    /// most, and the cursor is saved: then the job can be resumed without sending anything twice.
    ///
    /// # Errors
    /// Those of [`Submission::send`].
    pub async fn send_until(
        &mut self,
        leave: impl Future<Output = ()> + Send,
    ) -> Result<SplitReport, ProducerError> {
        let mut leave = pin!(leave);
        if let Some(sealed) = self.cursor().sealed.clone() {
            let told = unless_left(self.tell_sink(&sealed, "sealed"), leave).await?;
            return Ok(SplitReport {
                end: told.map_or(SplitEnd::Interrupted, |()| SplitEnd::Sealed),
                sent: sealed.total,
            });
        }
        let part = Part::After(self.kept.place());
        let mut sent = self.send_part(part, Round(0), &mut leave).await;
        // Once: what is refused again waits until the job is sealed, and is sent with pauses then.
        if let Ok(Sent::All(total, digest)) = sent
            && let Some(ranges) = self.refused.take()
        {
            let ended = self.send_again(ranges, &mut leave).await;
            sent = ended.map(|ended| ended.unwrap_or(Sent::All(total, digest)));
        }
        match sent {
            Ok(Sent::Stopped(sent)) => Ok(SplitReport { end: SplitEnd::Stopped, sent }),
            Ok(Sent::Interrupted(sent)) => Ok(SplitReport { end: SplitEnd::Interrupted, sent }),
            Ok(Sent::All(total, digest)) => match self.cursor().plan.tasks {
                Some(planned) if planned != total => {
                    let unit = &self.cursor().plan.unit;
                    let why = format!("the job planned {planned} {unit}, but its split gave {total}");
                    self.abort(JobError::new(why), leave).await
                }
                _ => self.seal(total, digest, leave).await,
            },
            Err(ProducerError::Split(error)) => self.abort(error, leave).await,
            Err(error) => Err(error),
        }
    }

    /// Sends tasks again whose outcomes the sink refuses, because a worker of another version or
    /// build ran them. Ends when the job's round 0 has ended, or when `leave` resolves. For a job
    /// that was sent whole; a producer that does not stay leaves such tasks to
    /// [`Submission::send_missing`].
    ///
    /// # Errors
    /// The errors of [`Submission::send`].
    pub async fn send_refused_until(
        &mut self,
        leave: impl Future<Output = ()> + Send,
    ) -> Result<(), ProducerError> {
        let mut leave = pin!(leave);
        self.kept.let_go(); // `resume --missing` may run beside this one
        let refused = self.refused.clone();
        let following = self.producer.commons.following(&self.producer.transport).clone();
        let stop = following.board.stop_signal(self.id(), Round(0));
        let (mut pause, mut sent_at) = (Duration::ZERO, Instant::now());
        loop {
            let ranges = tokio::select! {
                ranges = refused.next() => ranges,
                () = stop.stopped() => return Ok(()),
                () = &mut leave => return Ok(()),
                lost = following.lost() => return Err(lost),
            };
            pause = if sent_at.elapsed() > RESEND_PAUSE_MAX { Duration::ZERO } else { pause };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.stopped() => return Ok(()),
                () = &mut leave => return Ok(()),
            }
            let is_incomplete = ranges.is_incomplete;
            if self.send_again(ranges, &mut leave).await?.is_some() {
                return Ok(());
            }
            if is_incomplete {
                tokio::select! {
                    sent = self.send_missing() => drop(sent?),
                    () = stop.stopped() => return Ok(()),
                    () = &mut leave => return Ok(()),
                }
            }
            pause = (2 * pause).clamp(RESEND_PAUSE_MIN, RESEND_PAUSE_MAX);
            sent_at = Instant::now();
        }
    }

    async fn send_again(
        &mut self,
        RefusedRanges { round, ranges, is_incomplete: _ }: RefusedRanges,
        leave: impl Future<Output = ()> + Send,
    ) -> Result<Option<Sent>, ProducerError> {
        if !std::mem::replace(&mut self.is_checked, true) {
            self.refuse_if_changed().await?;
        }
        let tasks: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let job = self.id();
        tracing::warn!(
            %job, tasks,
            "outcomes were refused, since a worker of another version or build ran their tasks; sending these again"
        );
        match self.send_part(Part::Ranges(ranges), round, leave).await {
            Ok(Sent::All(..)) => Ok(None),
            // Of a part the count is of no use to the caller.
            Ok(Sent::Stopped(_)) => Ok(Some(Sent::Stopped(self.cursor().confirmed.0))),
            Ok(Sent::Interrupted(_)) => Ok(Some(Sent::Interrupted(self.cursor().confirmed.0))),
            // The split did not fail before: the job is as it was, and is not ended for that.
            Err(ProducerError::Split(error)) => Err(ProducerError::Changed(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Sends a part of the split; the place that is reached is noted if the part is all that is left.
    pub(crate) async fn send_part(
        &mut self,
        part: Part,
        round: Round,
        leave: impl Future<Output = ()> + Send,
    ) -> Result<Sent, ProducerError> {
        let following = self.producer.commons.following(&self.producer.transport);
        following.caught_up().await?;
        let stop = following.board.stop_signal(self.id(), round);
        let note = matches!(part, Part::After(_));
        let (job, planned) = (Arc::clone(&self.job), self.plan().tasks);
        let sizing = Arc::clone(&self.measured.sizing);
        let splits =
            splitter::start(job, self.label(round), part, planned, sizing).map_err(ProducerError::Thread)?;
        let Cursor { lane, shards, .. } = self.cursor();
        let to: Vec<_> = shards.queues().map(|shard| Address::Queue(shard.of(lane))).collect();
        let sending = Sending { to: &to, publisher: &*self.publisher, stop: &stop, leave };
        let note = if note { Note::place(&mut self.kept) } else { Note::Count(0) };
        tokio::select! {
            sent = send::send_all(splits, sending, note) => sent,
            lost = following.lost() => Err(lost),
            lost = self.measured.lost() => Err(lost),
        }
    }

    async fn seal(
        &mut self,
        total: u64,
        digest: SplitDigest,
        leave: impl Future<Output = ()> + Send,
    ) -> Result<SplitReport, ProducerError> {
        reached(FailPoint::ProducerSplit);
        let sealed = Sealed { job: self.id(), total, digest: digest.to_string() };
        self.kept.seal(Place { index: TaskIndex(total), digest }, sealed.clone()).await?;
        reached(FailPoint::ProducerSealed);
        let told = unless_left(self.tell_sink(&sealed, "sealed"), leave).await?;
        Ok(SplitReport { end: told.map_or(SplitEnd::Interrupted, |()| SplitEnd::Sealed), sent: total })
    }

    async fn abort(
        &self,
        error: JobError,
        leave: impl Future<Output = ()> + Send,
    ) -> Result<SplitReport, ProducerError> {
        let aborted = Aborted { job: self.id(), reason: error.to_string() };
        match unless_left(self.tell_sink(&aborted, "aborted"), leave).await? {
            Some(()) => Err(ProducerError::Split(error)),
            None => Ok(SplitReport { end: SplitEnd::Interrupted, sent: self.cursor().confirmed.0 }),
        }
    }

    fn label(&self, round: Round) -> Label {
        Label {
            opened: self.cursor().opened(),
            round,
            version: self.job.version(),
            app: self.producer.app.clone(),
        }
    }

    async fn tell_opened(&mut self) -> Result<(), StoreError> {
        self.tell_sink(&self.cursor().opened(), "opened").await
    }

    /// Sends the sink a message about the job as a whole; `part` makes its id.
    pub(crate) fn tell_sink(
        &self,
        what: &impl Form,
        part: &str,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + '_ {
        let message = what.message(format!("{}/{part}", self.id()), &self.producer.app);
        let to = Address::Queue(QueueRole::Results.of(&self.cursor().lane));
        publish_until_stored(&*self.publisher, vec![Outgoing { to, message }])
    }
}

/// Waits until the sink is told, unless we are to leave: its queue may be full.
async fn unless_left(
    told: impl Future<Output = Result<(), StoreError>> + Send,
    leave: impl Future<Output = ()> + Send,
) -> Result<Option<()>, StoreError> {
    tokio::select! {
        told = told => told.map(Some),
        () = leave => Ok(None),
    }
}
