//! Shows that each promise can be broken: transports with one flaw each, and what the suite says of them.

mod readers;
mod receipts;
mod transport;

use std::{collections::BTreeSet, sync::Arc};

use super::{Connect, PROMISES, connect};
use crate::memory::MemoryTransport;
use transport::{Flawed, Memory};

/// One thing that a transport does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flaw {
    None,
    // Publishing.
    DropsHeaders,
    ReversesAnswers,
    StoresWhatHasNoQueue,
    NeverSaysFull,
    LosesWhatItStores,
    StoresWhatItRejects,
    CutsLargeBodies,
    MixesUpCalls,
    EmptiesOnOpen,
    CountsOwnShards,
    RipensAtOnce,
    RipensLate,
    ShowsPassword,
    PublishesTwice,
    // Consuming.
    MissesWakeUps,
    IgnoresMax,
    IgnoresPrefetch,
    SettlesInOrder,
    ForgetsAnAck,
    LosesWhenCancelled,
    ConsumesWhatIsMissing,
    AlwaysOneActive,
    NeverOneActive,
    // Giving back and ending.
    AcksWhatIsDropped,
    AcksWhatIsExtended,
    KeepsWhenDropped,
    KeepsWhenClosed,
    ForgetsRedelivered,
    CountsToOne,
    AcksWhatIsRequeued,
    HasNoGenerations,
    NeverStops,
    ClosesWithoutWaking,
    ClosesWithoutTelling,
    LosesAcksWhenClosed,
    ClosesTheOthersToo,
    // Readers.
    NeverCatchesUp,
    CatchesUpTwice,
    CatchesUpEarly,
    StartsAtTheEnd,
    MixesUpLanes,
    RepeatsEvents,
}

/// Each flaw, a promise that it breaks, and a part of what is then said.
const CASES: &[(Flaw, &str, &str)] = &[
    (Flaw::DropsHeaders, "properties_and_body_arrive_untouched", "attempt: 3"),
    (Flaw::ReversesAnswers, "answers_come_in_the_order_of_the_batch", "Unroutable"),
    (Flaw::StoresWhatHasNoQueue, "answers_come_in_the_order_of_the_batch", "Unroutable"),
    (Flaw::NeverSaysFull, "a_full_queue_refuses_and_later_takes_again", "were stored in a queue that takes"),
    (Flaw::LosesWhatItStores, "a_full_queue_refuses_and_later_takes_again", "delivery 1 of 1: nothing"),
    (Flaw::StoresWhatItRejects, "a_full_queue_refuses_and_later_takes_again", "a refused message was stored"),
    (Flaw::CutsLargeBodies, "the_largest_body_passes_and_a_larger_one_is_refused", "[Stored, Stored]"),
    (Flaw::MixesUpCalls, "several_publishes_at_once_get_their_own_answers", "the answers to call"),
    (Flaw::EmptiesOnOpen, "opening_a_lane_again_changes_nothing", "delivery 1 of 3: nothing"),
    (Flaw::CountsOwnShards, "shards_are_made_once_and_found_by_all", "there are three shards"),
    (Flaw::RipensAtOnce, "a_retry_ripens_after_its_time_and_not_before", "it came after 0ns"),
    (Flaw::RipensLate, "a_retry_ripens_after_its_time_and_not_before", "left: Message { id: \"later\""),
    (Flaw::ShowsPassword, "the_name_shows_no_password", "a password"),
    (Flaw::MissesWakeUps, "a_waiting_consumer_is_woken", "delivery 1 of 1: nothing"),
    (Flaw::IgnoresMax, "no_more_than_asked_for_is_received", "delivery 1 of 1: 10 came"),
    (Flaw::IgnoresPrefetch, "the_prefetch_bounds_what_is_unsettled", "three of three are unsettled"),
    (Flaw::SettlesInOrder, "settling_out_of_order_never_freezes", "a delivery: nothing"),
    (Flaw::ForgetsAnAck, "an_ack_is_final", "the queue was not empty"),
    (Flaw::LosesWhenCancelled, "receiving_is_cancel_safe", "of 300 came"),
    (Flaw::ConsumesWhatIsMissing, "a_missing_queue_cannot_be_consumed", "consumes a queue"),
    (Flaw::PublishesTwice, "consumers_share_and_each_message_goes_to_one", "a message went to both"),
    (Flaw::AlwaysOneActive, "consumers_share_and_each_message_goes_to_one", "delivery 1 of 10: nothing"),
    (
        Flaw::NeverOneActive,
        "one_consumer_of_results_is_active_and_the_next_takes_over",
        "another consumer is active",
    ),
    (Flaw::AcksWhatIsDropped, "a_dropped_receipt_settles_nothing", "both are unsettled"),
    (Flaw::AcksWhatIsExtended, "an_extended_receipt_can_still_be_settled", "renewed, not settled"),
    (Flaw::KeepsWhenDropped, "dropping_a_consumer_gives_back", "delivery 6 of 10: nothing"),
    (Flaw::ForgetsRedelivered, "dropping_a_consumer_gives_back", "say that they came before"),
    (Flaw::CountsToOne, "deliveries_are_counted", "left: 1"),
    (Flaw::KeepsWhenClosed, "closing_a_consumer_gives_back", "delivery 6 of 10: nothing"),
    (Flaw::AcksWhatIsRequeued, "a_requeued_message_comes_again", "delivery 1 of 1: nothing"),
    (Flaw::ForgetsRedelivered, "a_requeued_message_comes_again", "never came before"),
    (Flaw::HasNoGenerations, "a_receipt_does_nothing_after_its_consumer", "held by this consumer"),
    (Flaw::NeverStops, "a_stopped_consumer_gets_what_is_here_and_then_the_end", "the end of a stopped"),
    (
        Flaw::ClosesWithoutTelling,
        "a_transport_says_that_it_is_well_and_that_it_is_closed",
        "end of its health",
    ),
    (Flaw::ClosesWithoutWaking, "closing_wakes_and_disconnects_everything", "the end of all that waits"),
    (Flaw::ClosesWithoutTelling, "closing_wakes_and_disconnects_everything", "the end of all that waits"),
    (Flaw::LosesAcksWhenClosed, "closing_hands_on_what_was_settled_and_gives_back_the_rest", "not empty"),
    (Flaw::ClosesTheOthersToo, "closing_leaves_other_connections_alone", "the answers to a publish"),
    (Flaw::NeverCatchesUp, "the_journal_gives_what_was_there_says_so_and_follows", "catching up"),
    (Flaw::CatchesUpTwice, "the_journal_gives_what_was_there_says_so_and_follows", "caught up twice"),
    (Flaw::CatchesUpEarly, "the_journal_gives_what_was_there_says_so_and_follows", "left: []"),
    (Flaw::StartsAtTheEnd, "every_journal_reader_starts_at_the_start", "left: []"),
    (Flaw::MissesWakeUps, "a_waiting_journal_reader_is_woken", "the next fact: nothing"),
    (Flaw::LosesWhenCancelled, "reading_the_journal_is_cancel_safe", "of 50 facts"),
    (Flaw::MixesUpLanes, "events_reach_those_who_want_them", "for who wants the lane"),
    (Flaw::RepeatsEvents, "events_are_not_repeated_to_who_comes_later", "early"),
    (Flaw::MissesWakeUps, "a_waiting_events_reader_is_woken", "an event: nothing"),
    (Flaw::LosesWhenCancelled, "reading_events_is_cancel_safe", "of 50 events"),
];

/// Connections to a new broker, all with that flaw.
fn flawed(flaw: Flaw) -> Connect {
    let broker = MemoryTransport::new();
    let memory = Arc::new(Memory::default());
    connect(move || {
        let connection = Flawed::new(broker.connect(), flaw, Arc::clone(&memory));
        async { Arc::new(connection) }
    })
}

#[tokio::test(start_paused = true)]
async fn each_flaw_breaks_its_promise() {
    let mut unseen = Vec::new();
    for &(flaw, name, part) in CASES {
        let promise = PROMISES.iter().find(|promise| promise.name == name).expect(name);
        match promise.check(&flawed(flaw)).await {
            Err(seen) if seen.contains(part) => {}
            seen => unseen.push(format!("{flaw:?}, {name}: {seen:?}, not {part:?}")),
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn without_a_flaw_no_promise_is_broken() {
    super::all(flawed(Flaw::None)).await;
}

#[test]
fn every_promise_is_broken_by_some_flaw() {
    let broken: BTreeSet<_> = CASES.iter().map(|(_, name, _)| *name).collect();
    let all: BTreeSet<_> = PROMISES.iter().map(|promise| promise.name).collect();
    assert_eq!(broken, all);
}
