//! What every transport must do, as promises that any of them can be put through.
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
//! conformance::all(connect).await;
//! # }
//! ```
//!
//! Each promise runs on a connection and a lane of its own, and looks at its own facts and events only, so that
//! others may use the broker meanwhile. Every wait is bounded, by [`BOUND`] if something must happen. What a
//! transport does not claim to do ([`Capabilities`](crate::Capabilities)) is skipped, and printed.

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

/// What must happen happens within this time, or the promise is broken.
pub const BOUND: Duration = Duration::from_secs(10);
/// What must not happen does not happen for this time, or the promise is broken.
pub const QUIET: Duration = Duration::from_millis(300);
/// A promise is shown within this time, or it is broken.
pub const PROMISE_BOUND: Duration = Duration::from_secs(60);

/// Opens one more connection to the same broker, independent of those before.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Arc<dyn Transport>> + Send + Sync>;

/// A [`Connect`] of any async function.
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

/// Puts a transport through every promise, one after the other.
///
/// # Panics
/// If promises are broken: the text names them all, each with what was seen.
pub async fn all(connect: Connect) {
    let mut broken = Vec::new();
    for promise in PROMISES {
        if let Err(seen) = promise.check(&connect).await {
            broken.push(format!("- {}: {seen}", promise.name));
        }
    }
    assert!(
        broken.is_empty(),
        "{} of {} promises are broken:\n{}",
        broken.len(),
        PROMISES.len(),
        broken.join("\n")
    );
}

/// One promise of [`Transport`].
#[derive(Debug)]
pub struct Promise {
    /// The promise, as the name of the function that shows it.
    pub name: &'static str,
    shown: for<'a> fn(&'a Scene) -> BoxFuture<'a, ()>,
}

impl Promise {
    /// Puts a transport to it, on a connection and a lane of its own.
    ///
    /// # Errors
    /// What was seen instead.
    pub async fn check(&self, connect: &Connect) -> Result<(), String> {
        let show = async {
            let scene = Scene::open(connect).await;
            let shown = AssertUnwindSafe((self.shown)(&scene)).catch_unwind().await;
            scene.close().await;
            shown
        };
        match timeout(PROMISE_BOUND, AssertUnwindSafe(show).catch_unwind()).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(panic)) | Err(panic)) => Err(text_of(&*panic)),
            Err(_) => Err(format!("it took longer than {PROMISE_BOUND:?}")),
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".into())
}

macro_rules! promises {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// All of them.
        pub const PROMISES: &[Promise] =
            &[$(Promise { name: stringify!($name), shown: |scene| Box::pin($module::$name(scene)) }),*];
    };
}

promises![
    publishing::properties_and_body_arrive_untouched,
    publishing::answers_come_in_the_order_of_the_batch,
    publishing::a_full_queue_refuses_and_later_takes_again,
    publishing::the_largest_body_passes_and_a_larger_one_is_refused,
    publishing::several_publishes_at_once_get_their_own_answers,
    publishing::opening_a_lane_again_changes_nothing,
    publishing::shards_are_made_once_and_found_by_all,
    publishing::a_retry_ripens_after_its_time_and_not_before,
    publishing::the_name_shows_no_password,
    consuming::a_waiting_consumer_is_woken,
    consuming::no_more_than_asked_for_is_received,
    consuming::the_prefetch_bounds_what_is_unsettled,
    consuming::settling_out_of_order_never_freezes,
    consuming::an_ack_is_final,
    consuming::receiving_is_cancel_safe,
    consuming::a_missing_queue_cannot_be_consumed,
    competing::consumers_share_and_each_message_goes_to_one,
    competing::one_consumer_of_results_is_active_and_the_next_takes_over,
    redelivery::a_dropped_receipt_settles_nothing,
    redelivery::an_extended_receipt_can_still_be_settled,
    redelivery::dropping_a_consumer_gives_back,
    redelivery::closing_a_consumer_gives_back,
    redelivery::deliveries_are_counted,
    redelivery::a_requeued_message_comes_again,
    redelivery::a_receipt_does_nothing_after_its_consumer,
    closing::a_stopped_consumer_gets_what_is_here_and_then_the_end,
    closing::a_transport_says_that_it_is_well_and_that_it_is_closed,
    closing::closing_wakes_and_disconnects_everything,
    closing::closing_hands_on_what_was_settled_and_gives_back_the_rest,
    closing::closing_leaves_other_connections_alone,
    journal::the_journal_gives_what_was_there_says_so_and_follows,
    journal::every_journal_reader_starts_at_the_start,
    journal::a_waiting_journal_reader_is_woken,
    journal::reading_the_journal_is_cancel_safe,
    events::events_reach_those_who_want_them,
    events::events_are_not_repeated_to_who_comes_later,
    events::a_waiting_events_reader_is_woken,
    events::reading_events_is_cancel_safe,
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
    async fn the_memory_transport_keeps_every_promise() {
        all(memory()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_memory_transport_keeps_every_promise_on_many_threads() {
        all(memory()).await;
    }
}
