//! The subscription that feeds a batch sizer: durations of tasks, and heartbeats of workers.

use std::{future::pending, sync::Arc};

use gristmill_shared::{EventFilter, EventReader, JobId, Transport, TransportError, wire::Event};
use tokio_util::task::AbortOnDropHandle;

use super::BatchSizer;
use crate::{Cursor, ProducerError};

/// The largest planned number of tasks for which a job is not measured. Such a job is sent before a
/// measurement can arrive.
const UNMEASURED_MAX_TASKS: u64 = 16;

/// A job's batch sizer and the subscription that feeds it while the job is sent.
#[derive(Debug)]
pub(crate) struct SizerSubscription {
    pub(crate) sizer: Arc<BatchSizer>,
    /// The task that reads events; `None` if nothing is measured.
    listener: Option<AbortOnDropHandle<TransportError>>,
}

impl SizerSubscription {
    /// Subscribes until the value is dropped. `in_flight` is the number of the job's tasks that a
    /// slot keeps in flight.
    ///
    /// # Errors
    /// If the broker refuses the subscription or the connection is lost.
    pub(crate) async fn subscribe(
        transport: &dyn Transport,
        cursor: &Cursor,
        in_flight: u32,
    ) -> Result<Self, TransportError> {
        let sizer = Arc::new(BatchSizer::new(cursor.batch, in_flight));
        let few = cursor.plan.tasks.is_some_and(|tasks| tasks <= UNMEASURED_MAX_TASKS);
        if few || cursor.batch.is_some() {
            return Ok(Self { sizer, listener: None });
        }
        let events = transport.events(EventFilter::Lane(cursor.lane.clone())).await?;
        let listener = tokio::spawn(apply_events(events, cursor.job, Arc::clone(&sizer)));
        Ok(Self { sizer, listener: Some(AbortOnDropHandle::new(listener)) })
    }

    /// Waits until the connection is lost. Never returns if nothing is measured.
    pub(crate) async fn connection_lost(&mut self) -> ProducerError {
        let Some(listener) = &mut self.listener else { return pending().await };
        let lost = listener.await;
        self.listener = None; // a finished task must not be polled again
        lost.map_or(ProducerError::ThreadDied, ProducerError::from)
    }
}

async fn apply_events(
    mut events: Box<dyn EventReader>,
    job: JobId,
    sizer: Arc<BatchSizer>,
) -> TransportError {
    loop {
        match events.next().await.map(|message| Event::decode(&message)) {
            Ok(Ok(event)) => sizer.apply_event(job, &event),
            Ok(Err(_)) => {} // no event of this protocol
            Err(lost) => return lost,
        }
    }
}
