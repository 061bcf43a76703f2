//! What is heard of a job's tasks while they are sent: how long they take, and who runs them.

use std::{future::pending, sync::Arc};

use gristmill_shared::{EventFilter, EventReader, JobId, Transport, TransportError, wire::Event};
use tokio_util::task::AbortOnDropHandle;

use super::Sizing;
use crate::{Cursor, ProducerError};

/// A job of no more tasks is sent before anything of it can have been measured, so nobody listens.
const NOT_WORTH_MEASURING: u64 = 16;

/// What is measured of a job while it is sent.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) sizing: Arc<Sizing>,
    /// Who listens; nobody if nobody asks.
    listening: Option<AbortOnDropHandle<TransportError>>,
}

impl Measured {
    /// Listens from now on, until it is dropped. `in_flight` is how many tasks of the job a slot
    /// keeps in flight.
    pub(crate) async fn listen(
        transport: &dyn Transport,
        cursor: &Cursor,
        in_flight: u32,
    ) -> Result<Self, TransportError> {
        let sizing = Arc::new(Sizing::new(cursor.batch, in_flight));
        let few = cursor.plan.tasks.is_some_and(|tasks| tasks <= NOT_WORTH_MEASURING);
        if few || cursor.batch.is_some() {
            return Ok(Self { sizing, listening: None });
        }
        let events = transport.events(EventFilter::Lane(cursor.lane.clone())).await?;
        let listening = tokio::spawn(hear_all(events, cursor.job, Arc::clone(&sizing)));
        Ok(Self { sizing, listening: Some(AbortOnDropHandle::new(listening)) })
    }

    /// Waits until the connection goes.
    pub(crate) async fn lost(&mut self) -> ProducerError {
        let Some(listening) = &mut self.listening else { return pending().await };
        let lost = listening.await;
        self.listening = None; // it is over
        lost.map_or(ProducerError::Died, ProducerError::from)
    }
}

async fn hear_all(mut events: Box<dyn EventReader>, job: JobId, sizing: Arc<Sizing>) -> TransportError {
    loop {
        match events.next().await.map(|message| Event::decode(&message)) {
            Ok(Ok(event)) => sizing.hear(job, &event),
            Ok(Err(_)) => {} // none of ours
            Err(lost) => return lost,
        }
    }
}
