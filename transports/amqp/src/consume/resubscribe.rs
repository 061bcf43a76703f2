//! What lives on a channel, and is made again when that is lost.

use std::sync::Arc;

use futures::future::BoxFuture;
use gristmill_shared::TransportError;
use tokio::time::{Instant, sleep};

use crate::{
    connection::generation::Generation,
    connection::degraded::Interrupted,
    connection::handle::{Line, Link},
    connection::backoff::{Pauses, STEADY},
};

/// Something on a channel, of this generation or of the next. It is made again while somebody waits for it.
pub(crate) struct Renewed<T> {
    /// What it is, for the log.
    what: String,
    state: State<T>,
    /// How it ended last, and when it began.
    lost: Option<Lost>,
    since: Instant,
    pauses: Option<Pauses>,
    link: Arc<Link>,
}

enum State<T> {
    Here(T),
    /// Kept, so that whoever stops to wait does not begin from the start the next time.
    Making(BoxFuture<'static, (Pauses, Result<T, TransportError>)>),
    Gone,
}

/// How something ended.
struct Lost {
    generation: u64,
    reason: String,
}

impl<T: Send + 'static> Renewed<T> {
    /// Makes it for the first time, on this generation or the next.
    pub(crate) async fn make<F>(
        link: Arc<Link>,
        what: String,
        make: impl Fn(Arc<Generation>) -> F,
    ) -> Result<Self, TransportError>
    where
        F: Future<Output = Result<T, TransportError>>,
    {
        let made = loop {
            let generation = link.generation().await?;
            match make(Arc::clone(&generation)).await {
                Err(error) if error.is_retryable() && generation.end.is_over() => {
                    tracing::debug!("{what} waits for the next connection: {error}");
                }
                made => break made?,
            }
        };
        let (since, pauses) = (Instant::now(), Some(Pauses::new()));
        Ok(Self { what, state: State::Here(made), lost: None, since, pauses, link })
    }

    /// What there is, or else the next. Cancel safe.
    ///
    /// # Errors
    /// If there will be none.
    pub(crate) async fn get<M, F>(&mut self, make: impl FnOnce() -> M) -> Result<&mut T, TransportError>
    where
        M: Fn(Arc<Generation>) -> F + Send + 'static,
        F: Future<Output = Result<T, TransportError>> + Send + 'static,
    {
        self.link.end.check()?;
        if matches!(self.state, State::Gone) {
            let line = Line::clone(&self.link);
            let pauses = self.pauses.take().unwrap_or_else(Pauses::new);
            let making = make_again(line, self.what.clone(), self.lost.take(), pauses, make());
            self.state = State::Making(Box::pin(making));
        }
        if let State::Making(making) = &mut self.state {
            let (pauses, made) = making.await;
            self.pauses = Some(pauses);
            self.state = State::Gone;
            self.state = State::Here(made?);
            self.since = Instant::now();
        }
        match &mut self.state {
            State::Here(it) => Ok(it),
            State::Making(_) | State::Gone => Err(self.link.end.error()),
        }
    }

    pub(crate) fn here(&mut self) -> Option<&mut T> {
        match &mut self.state {
            State::Here(it) => Some(it),
            State::Making(_) | State::Gone => None,
        }
    }

    /// It is of no use any more; the next `get` makes another.
    pub(crate) fn lost(&mut self, generation: u64, error: &TransportError) {
        let reason = reason(error);
        self.state = State::Gone;
        self.lost = Some(Lost { generation, reason });
        if self.since.elapsed() >= STEADY {
            self.pauses = Some(Pauses::new());
        }
    }

    pub(crate) fn line(&self) -> &Line {
        &self.link
    }
}

/// Why, where the connection may stand all the same.
fn reason(error: &TransportError) -> String {
    match error {
        TransportError::Disconnected { reason, .. } => reason.clone(),
        error => error.to_string(),
    }
}

/// Until it is made, or there is no further generation.
async fn make_again<T, M, F>(
    line: Line,
    what: String,
    lost: Option<Lost>,
    mut pauses: Pauses,
    make: M,
) -> (Pauses, Result<T, TransportError>)
where
    M: Fn(Arc<Generation>) -> F + Send + 'static,
    F: Future<Output = Result<T, TransportError>> + Send + 'static,
{
    let mut interrupted: Option<Interrupted> = None;
    let mut remade = false;
    loop {
        sleep(pauses.next()).await;
        let generation = match line.generation().await {
            Ok(generation) => generation,
            Err(error) => return (pauses, Err(error)),
        };
        let error = match make(Arc::clone(&generation)).await {
            Ok(made) => {
                if remade {
                    tracing::warn!(
                        "{what} goes on, from a queue that was gone and has been made anew: what it held is lost (hint: a job \
                         that gets no outcomes any more says so; `producer resume JOB --missing` sends what is missing again)"
                    );
                } else if let Some(Lost { reason, .. }) =
                    lost.filter(|lost| lost.generation == generation.number)
                {
                    tracing::warn!("{what} was interrupted: {reason}; it goes on");
                }
                return (pauses, Ok(made));
            }
            // Its queue may be gone.
            Err(error) => match line.declare(&generation).await {
                Ok(()) => {
                    remade |= reason(&error).contains("NOT_FOUND");
                    error
                }
                Err(refused) => refused,
            },
        };
        if generation.end.is_over() {
            continue;
        }
        if matches!(error, TransportError::Mismatch { .. } | TransportError::Invalid(_)) {
            line.end.because(error.to_string());
            return (pauses, Err(line.end.error()));
        }
        let why = format!("{what} is interrupted: {}", reason(&error));
        if let Some(interrupted) = &interrupted {
            tracing::debug!("{why}");
            interrupted.go_on(generation.number, why);
        } else {
            tracing::warn!("{why}; trying again");
            interrupted = Some(line.interruptions.begin(generation.number, why));
        }
    }
}
