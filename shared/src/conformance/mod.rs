//! The conformance suite: the promises of [`Transport`], as checks for any implementation.
//!
//! ```
//! use gristmill_shared::{conformance, memory::MemoryTransport};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let broker = MemoryTransport::new();
//! let connect = conformance::connect(move || {
//!     let connection = broker.connect();
//!     async { connection }
//! });
//! conformance::check_all(connect).await;
//! # }
//! ```
//!
//! Each promise runs on a connection and a lane of its own and looks only at its own facts and
//! events, so other clients may use the broker meanwhile. Every wait is bounded, by [`WAIT_BOUND`]
//! if something must happen. Promises outside the transport's [`Capabilities`](crate::Capabilities)
//! are skipped, with a line on standard error.

mod closing;
mod competing;
mod consuming;
mod events;
#[cfg(test)]
mod flawed;
mod journal;
mod publishing;
mod redelivery;
mod scene;

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use tokio::time::timeout;

use crate::Transport;
use scene::Scene;

/// The longest wait for something that must happen; after it the promise is broken.
pub const WAIT_BOUND: Duration = Duration::from_secs(10);
/// The time for which something that must not happen is watched for.
pub const QUIET_PERIOD: Duration = Duration::from_millis(300);
/// The longest time that one promise may take; after it the promise is broken.
pub const PROMISE_BOUND: Duration = Duration::from_secs(60);

/// A function that opens one more connection to the same broker, independent of earlier ones.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Arc<dyn Transport>> + Send + Sync>;

/// Makes a [`Connect`] of any async function.
pub fn connect<T, F>(open: impl Fn() -> F + Send + Sync + 'static) -> Connect
where
    T: Transport,
    F: Future<Output = Arc<T>> + Send + 'static,
{
    Arc::new(move || {
        let opening = open();
        Box::pin(async { opening.await as Arc<dyn Transport> })
    })
}

/// Checks every promise, one after the other.
///
/// # Panics
/// If promises are broken. The text names all of them, each with its observation.
pub async fn check_all(connect: Connect) {
    let mut broken = Vec::new();
    for promise in ALL_PROMISES {
        if let Err(seen) = promise.check(&connect).await {
            broken.push(format!("- {}: {seen}", promise.name));
        }
    }
    assert!(
        broken.is_empty(),
        "{} of {} promises are broken:\n{}",
        broken.len(),
        ALL_PROMISES.len(),
        broken.join("\n")
    );
}

/// One promise of [`Transport`].
#[derive(Debug)]
pub struct Promise {
    /// The name of the function that checks the promise.
    pub name: &'static str,
    run: for<'a> fn(&'a Scene) -> BoxFuture<'a, ()>,
}

impl Promise {
    /// Checks the promise, on a connection and a lane of its own.
    ///
    /// # Errors
    /// If the promise is broken: the text of the failed assertion.
    pub async fn check(&self, connect: &Connect) -> Result<(), String> {
        let check = async {
            let scene = Scene::open(connect).await;
            let checked = AssertUnwindSafe((self.run)(&scene)).catch_unwind().await;
            scene.close().await;
            checked
        };
        match timeout(PROMISE_BOUND, AssertUnwindSafe(check).catch_unwind()).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(panic)) | Err(panic)) => Err(panic_message(&*panic)),
            Err(_) => Err(format!("it took longer than {PROMISE_BOUND:?}")),
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".into())
}

macro_rules! promises {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// Every promise, in the order in which the suite checks them.
        pub const ALL_PROMISES: &[Promise] =
            &[$(Promise { name: stringify!($name), run: |scene| Box::pin($module::$name(scene)) }),*];
    };
}

promises![
    publishing::properties_and_body_survive,
    publishing::answers_keep_batch_order,
    publishing::full_queue_rejects_then_accepts,
    publishing::body_size_limit_is_exact,
    publishing::concurrent_publishes_get_own_answers,
    publishing::reopening_lane_keeps_messages,
    publishing::shards_are_created_once,
    publishing::retry_arrives_after_its_delay,
    publishing::name_hides_password,
    consuming::waiting_consumer_wakes,
    consuming::recv_respects_max,
    consuming::prefetch_bounds_unsettled,
    consuming::out_of_order_acks_never_stall,
    consuming::ack_is_final,
    consuming::recv_is_cancel_safe,
    consuming::missing_queue_is_an_error,
    competing::each_message_goes_to_one_consumer,
    competing::single_active_consumer_hands_over,
    redelivery::dropped_receipt_settles_nothing,
    redelivery::extended_receipt_can_be_settled,
    redelivery::dropped_consumer_requeues,
    redelivery::closed_consumer_requeues,
    redelivery::deliveries_are_counted,
    redelivery::requeued_message_is_redelivered,
    redelivery::stale_receipt_does_nothing,
    closing::stopped_consumer_drains_then_ends,
    closing::health_reports_close,
    closing::close_disconnects_everything,
    closing::close_keeps_acks_and_requeues_rest,
    closing::close_spares_other_connections,
    journal::journal_replays_then_follows,
    journal::journal_readers_are_independent,
    journal::waiting_journal_reader_wakes,
    journal::journal_next_is_cancel_safe,
    events::events_match_their_filter,
    events::events_are_not_replayed,
    events::waiting_event_reader_wakes,
    events::event_next_is_cancel_safe,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTransport;

    fn memory() -> Connect {
        let broker = MemoryTransport::new();
        connect(move || {
            let connection = broker.connect();
            async { connection }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn memory_keeps_every_promise() {
        check_all(memory()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn memory_keeps_promises_in_threads() {
        check_all(memory()).await;
    }
}
