//! A sink and a worker in this process, for the duration of one job.

use std::{future::Future, pin::pin, sync::Arc};

use gristmill_shared::Transport;
use gristmill_sink::{ClaimedSink, SinkError};
use gristmill_worker::{Worker, WorkerError};
use tokio_util::sync::CancellationToken;

/// A sink and a worker on one lane.
pub(crate) struct Pipeline {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) sink: ClaimedSink,
    pub(crate) worker: Worker,
}

/// The reasons why a role ended before the job did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PipelineError {
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("the sink and the worker ended before the job did")]
    EndedEarly,
}

/// The shutdown of the roles after the job has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PipelineShutdown {
    /// The roles settle what they hold, and the worker waits for running tasks within its grace.
    Graceful,
    /// The roles are dropped.
    Immediate,
}

impl Pipeline {
    /// Serves the lane until `job` has resolved. Dropping the future drops the roles.
    ///
    /// # Errors
    /// The error of `job`, or [`PipelineError`] if a role ends first.
    pub(crate) async fn serve<T, E: From<PipelineError>>(
        self,
        shutdown: PipelineShutdown,
        job: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Self { transport, sink, worker } = self;
        let job_ended = CancellationToken::new();
        let sinking = async {
            sink.run_until(job_ended.cancelled()).await?;
            Ok::<_, PipelineError>(())
        };
        let working = async {
            worker.run_until(transport, job_ended.cancelled()).await?;
            Ok::<_, PipelineError>(())
        };
        let mut roles = pin!(async { futures::try_join!(sinking, working).map(|((), ())| ()) });
        let ended = tokio::select! {
            ended = job => ended?,
            early = &mut roles => {
                early?;
                return Err(PipelineError::EndedEarly.into());
            }
        };
        job_ended.cancel();
        if shutdown == PipelineShutdown::Graceful {
            roles.await?;
        }
        Ok(ended)
    }
}
