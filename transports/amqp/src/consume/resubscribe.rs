//! Subscriptions that are opened again after their channel is lost.

use std::sync::Arc;

use futures::future::BoxFuture;
use gristmill_shared::TransportError;
use tokio::time::{Instant, sleep};

use crate::connection::{ConnectionHandle, CurrentConnection, DegradedGuard, Generation, ReconnectBackoff};

/// A subscription in the current or the next generation. It is opened again while a caller waits
/// for it.
pub(crate) struct AutoRecover<T> {
    /// Its name in log lines.
    what: String,
    state: RecoverState<T>,
    /// The last loss, and the time of the last start.
    lost: Option<SubscriptionLoss>,
    since: Instant,
    backoff: Option<ReconnectBackoff>,
    handle: Arc<ConnectionHandle>,
}

enum RecoverState<T> {
    Active(T),
    /// Kept, so that a cancelled caller does not restart the recovery.
    Recovering(BoxFuture<'static, (ReconnectBackoff, Result<T, TransportError>)>),
    Lost,
}

/// The generation in which a subscription was lost, and the reason.
struct SubscriptionLoss {
    generation: u64,
    reason: String,
}

impl<T: Send + 'static> AutoRecover<T> {
    /// Opens the subscription for the first time, in the current generation or the next.
    pub(crate) async fn open<F>(
        handle: Arc<ConnectionHandle>,
        what: String,
        make: impl Fn(Arc<Generation>) -> F,
    ) -> Result<Self, TransportError>
    where
        F: Future<Output = Result<T, TransportError>>,
    {
        let made = loop {
            let generation = handle.generation().await?;
            match make(Arc::clone(&generation)).await {
                Err(error) if error.is_retryable() && generation.end.is_terminated() => {
                    tracing::debug!("{what} waits for the next connection: {error}");
                }
                made => break made?,
            }
        };
        let (since, backoff) = (Instant::now(), Some(ReconnectBackoff::new()));
        Ok(Self { what, state: RecoverState::Active(made), lost: None, since, backoff, handle })
    }

    /// Returns the subscription, or waits until it is open again. Cancel safe.
    ///
    /// # Errors
    /// There will be no further generation, or the queue does not match.
    pub(crate) async fn get<M, F>(&mut self, make: impl FnOnce() -> M) -> Result<&mut T, TransportError>
    where
        M: Fn(Arc<Generation>) -> F + Send + 'static,
        F: Future<Output = Result<T, TransportError>> + Send + 'static,
    {
        self.handle.end.check()?;
        if matches!(self.state, RecoverState::Lost) {
            let connection = CurrentConnection::clone(&self.handle);
            let backoff = self.backoff.take().unwrap_or_else(ReconnectBackoff::new);
            let recovering = recover(connection, self.what.clone(), self.lost.take(), backoff, make());
            self.state = RecoverState::Recovering(Box::pin(recovering));
        }
        if let RecoverState::Recovering(recovering) = &mut self.state {
            let (backoff, made) = recovering.await;
            self.backoff = Some(backoff);
            self.state = RecoverState::Lost;
            self.state = RecoverState::Active(made?);
            self.since = Instant::now();
        }
        match &mut self.state {
            RecoverState::Active(it) => Ok(it),
            RecoverState::Recovering(_) | RecoverState::Lost => Err(self.handle.end.error()),
        }
    }

    pub(crate) fn active(&mut self) -> Option<&mut T> {
        match &mut self.state {
            RecoverState::Active(it) => Some(it),
            RecoverState::Recovering(_) | RecoverState::Lost => None,
        }
    }

    /// Marks the subscription as lost; the next `get` opens another.
    pub(crate) fn mark_lost(&mut self, generation: u64, error: &TransportError) {
        let reason = error_reason(error);
        self.state = RecoverState::Lost;
        self.lost = Some(SubscriptionLoss { generation, reason });
        if let Some(backoff) = &mut self.backoff {
            backoff.reset_after(self.since.elapsed());
        }
    }

    pub(crate) fn connection(&self) -> &CurrentConnection {
        &self.handle
    }
}

/// Returns the reason alone, since the connection itself may still be up.
fn error_reason(error: &TransportError) -> String {
    match error {
        TransportError::Disconnected { reason, .. } => reason.clone(),
        error => error.to_string(),
    }
}

/// Retries until the subscription is open, or until there is no further generation.
async fn recover<T, M, F>(
    connection: CurrentConnection,
    what: String,
    lost: Option<SubscriptionLoss>,
    mut backoff: ReconnectBackoff,
    make: M,
) -> (ReconnectBackoff, Result<T, TransportError>)
where
    M: Fn(Arc<Generation>) -> F + Send + 'static,
    F: Future<Output = Result<T, TransportError>> + Send + 'static,
{
    let mut degraded: Option<DegradedGuard> = None;
    let mut remade = false;
    loop {
        sleep(backoff.next_delay()).await;
        let generation = match connection.generation().await {
            Ok(generation) => generation,
            Err(error) => return (backoff, Err(error)),
        };
        let error = match make(Arc::clone(&generation)).await {
            Ok(made) => {
                if remade {
                    tracing::warn!(
                        "{what} continues on a queue that was deleted and has been declared again: its \
                         messages are lost (hint: a job that gets no more outcomes reports it; \
                         `producer resume JOB --missing` sends what is missing again)"
                    );
                } else if let Some(SubscriptionLoss { reason, .. }) =
                    lost.filter(|lost| lost.generation == generation.number)
                {
                    tracing::warn!("{what} was interrupted: {reason}; it continues");
                }
                return (backoff, Ok(made));
            }
            // The queue may be missing.
            Err(error) => match connection.redeclare_lanes(&generation).await {
                Ok(()) => {
                    remade |= error_reason(&error).contains("NOT_FOUND");
                    error
                }
                Err(refused) => refused,
            },
        };
        if generation.end.is_terminated() {
            continue;
        }
        if matches!(error, TransportError::Mismatch { .. } | TransportError::Invalid(_)) {
            connection.end.terminate(error.to_string());
            return (backoff, Err(connection.end.error()));
        }
        let why = format!("{what} is interrupted: {}", error_reason(&error));
        if let Some(degraded) = &degraded {
            tracing::debug!("{why}");
            degraded.update(generation.number, why);
        } else {
            tracing::warn!("{why}; trying again");
            degraded = Some(connection.degradations.add(generation.number, why));
        }
    }
}
