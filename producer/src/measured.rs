//! What is heard of a job's tasks while they are sent: how long they take, and who runs them.

use std::{future::pending, sync::Arc};

use gristmill_shared::{EventFilter, EventReader, JobId, Transport, TransportError, wire::Event};

use crate::{Cursor, sizing::Sizing};

/// A job of no more tasks is sent before anything of it can have been measured, so nobody listens.
const NOT_WORTH_MEASURING: u64 = 16;

/// What is measured of a job while it is sent.
#[derive(Debug)]
pub(crate) struct Measured {
    job: JobId,
    pub(crate) sizing: Arc<Sizing>,
    /// Who tells; nobody if nobody asks.
    events: Option<Box<dyn EventReader>>,
}

impl Measured {
    pub(crate) async fn listen(transport: &dyn Transport, cursor: &Cursor) -> Result<Self, TransportError> {
        let few = cursor.plan.tasks.is_some_and(|tasks| tasks <= NOT_WORTH_MEASURING);
        let events = match cursor.batch {
            None if !few => Some(transport.events(EventFilter::Lane(cursor.lane.clone())).await?),
            _ => None,
        };
        Ok(Self { job: cursor.job, sizing: Arc::new(Sizing::new(cursor.batch)), events })
    }

    /// Listens until the connection goes.
    pub(crate) async fn follow(&mut self) -> TransportError {
        let Some(events) = &mut self.events else { return pending().await };
        loop {
            match events.next().await.map(|message| Event::decode(&message)) {
                Ok(Ok(event)) => self.sizing.hear(self.job, &event),
                Ok(Err(_)) => {} // none of ours
                Err(lost) => return lost,
            }
        }
    }
}
