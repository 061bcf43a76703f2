//! The options of a submission.

use gristmill_shared::{AnyJob, JobError, JobId, Lane, Policy, PolicyOverrides, Shards};

/// Options of a submission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubmitOptions {
    /// The lane that takes the tasks. Defaults to `default`.
    pub lane: Lane,
    /// The number of the lane's shards that take batches in turn. The lane must have as many.
    /// Defaults to 1.
    pub shards: Shards,
    /// The stated part of the policy. The rest is the kind's choice, see
    /// [`Job::policy`](gristmill_shared::Job::policy).
    pub policy: PolicyOverrides,
    /// The policy of a kind that chooses nothing. Defaults to [`Policy::default`].
    pub default_policy: Policy,
    /// The number of tasks of a batch, 1 to 10,000. By default it follows the measured duration of
    /// tasks: 100 ms of one slot's work, and less towards the end.
    pub batch: Option<u32>,
    /// The job's id, of which there must be no job yet. By default a new one. A caller that wants
    /// to name the job before it is open generates one.
    pub job: Option<JobId>,
}

impl SubmitOptions {
    /// Returns the policy that travels with the job: what is stated here, else the kind's choice,
    /// else the default policy. [`Policy::keep`] is set only where it differs from the kind's.
    ///
    /// # Errors
    /// If the job panics.
    pub fn effective_policy(&self, job: &dyn AnyJob) -> Result<Policy, JobError> {
        let chosen = job.policy(self.default_policy.clone())?;
        let stated = self.policy.clone().apply(chosen);
        let keep = stated.keep.filter(|keep| *keep != job.keep());
        Ok(Policy { keep, ..stated })
    }
}
