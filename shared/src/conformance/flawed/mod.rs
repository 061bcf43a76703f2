//! Transports with one flaw each, which prove that the suite detects every broken promise.

mod flaw_memory;
mod flawed_transport;
mod readers;
mod receipts;

use std::{collections::BTreeSet, sync::Arc};

use super::{ALL_PROMISES, Connect, connect};
use crate::memory::MemoryTransport;
use flaw_memory::FlawMemory;
use flawed_transport::FlawedTransport;

/// A single defect of a transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flaw {
    None,
    // Publishing.
    DropsHeaders,
    ReversesAnswers,
    ConfirmsUnroutable,
    NeverRejects,
    LosesStored,
    StoresRejected,
    TruncatesBodies,
    SwapsAnswers,
    PurgesOnOpen,
    CountsOwnShards,
    IgnoresRetryDelay,
    ExtendsRetryDelay,
    ShowsPassword,
    PublishesTwice,
    // Consuming.
    MissesWakeUps,
    IgnoresMax,
    IgnoresPrefetch,
    SettlesInOrder,
    ForgetsAck,
    LosesOnCancel,
    CreatesMissingQueue,
    AlwaysSingleActive,
    NeverSingleActive,
    // Redelivery and closing.
    AcksDropped,
    AcksExtended,
    LeaksOnDrop,
    LeaksOnClose,
    ForgetsRedelivered,
    CountsToOne,
    AcksRequeued,
    IgnoresGenerations,
    NeverStops,
    CloseWakesNone,
    IgnoresClose,
    LosesAcksOnClose,
    ClosesOthers,
    // Readers.
    NeverCatchesUp,
    CatchesUpTwice,
    CatchesUpEarly,
    StartsAtEnd,
    MixesLanes,
    ReplaysEvents,
}

/// Each flaw, a promise that it breaks, and a part of the promise's error.
const FLAW_CASES: &[(Flaw, &str, &str)] = &[
    (Flaw::DropsHeaders, "properties_and_body_survive", "attempt: 3"),
    (Flaw::ReversesAnswers, "answers_keep_batch_order", "Unroutable"),
    (Flaw::ConfirmsUnroutable, "answers_keep_batch_order", "Unroutable"),
    (Flaw::NeverRejects, "full_queue_rejects_then_accepts", "were stored in a queue that takes"),
    (Flaw::LosesStored, "full_queue_rejects_then_accepts", "delivery 1 of 1: nothing"),
    (Flaw::StoresRejected, "full_queue_rejects_then_accepts", "a refused message was stored"),
    (Flaw::TruncatesBodies, "body_size_limit_is_exact", "[Confirmed, Confirmed]"),
    (Flaw::SwapsAnswers, "concurrent_publishes_get_own_answers", "the answers to call"),
    (Flaw::PurgesOnOpen, "reopening_lane_keeps_messages", "delivery 1 of 3: nothing"),
    (Flaw::CountsOwnShards, "shards_are_created_once", "there are three shards"),
    (Flaw::IgnoresRetryDelay, "retry_arrives_after_its_delay", "it came after 0ns"),
    (Flaw::ExtendsRetryDelay, "retry_arrives_after_its_delay", "left: Message { id: \"later\""),
    (Flaw::ShowsPassword, "name_hides_password", "a password"),
    (Flaw::MissesWakeUps, "waiting_consumer_wakes", "delivery 1 of 1: nothing"),
    (Flaw::IgnoresMax, "recv_respects_max", "delivery 1 of 1: 10 came"),
    (Flaw::IgnoresPrefetch, "prefetch_bounds_unsettled", "three of three are unsettled"),
    (Flaw::SettlesInOrder, "out_of_order_acks_never_stall", "a delivery: nothing"),
    (Flaw::ForgetsAck, "ack_is_final", "the queue was not empty"),
    (Flaw::LosesOnCancel, "recv_is_cancel_safe", "of 300 came"),
    (Flaw::CreatesMissingQueue, "missing_queue_is_an_error", "consumes a queue"),
    (Flaw::PublishesTwice, "each_message_goes_to_one_consumer", "a message went to both"),
    (Flaw::AlwaysSingleActive, "each_message_goes_to_one_consumer", "delivery 1 of 10: nothing"),
    (Flaw::NeverSingleActive, "single_active_consumer_hands_over", "another consumer is active"),
    (Flaw::AcksDropped, "dropped_receipt_settles_nothing", "both are unsettled"),
    (Flaw::AcksExtended, "extended_receipt_can_be_settled", "renewed, not settled"),
    (Flaw::LeaksOnDrop, "dropped_consumer_requeues", "delivery 6 of 10: nothing"),
    (Flaw::ForgetsRedelivered, "dropped_consumer_requeues", "say that they came before"),
    (Flaw::CountsToOne, "deliveries_are_counted", "left: 1"),
    (Flaw::LeaksOnClose, "closed_consumer_requeues", "delivery 6 of 10: nothing"),
    (Flaw::AcksRequeued, "requeued_message_is_redelivered", "delivery 1 of 1: nothing"),
    (Flaw::ForgetsRedelivered, "requeued_message_is_redelivered", "never came before"),
    (Flaw::IgnoresGenerations, "stale_receipt_does_nothing", "held by this consumer"),
    (Flaw::NeverStops, "stopped_consumer_drains_then_ends", "the end of a stopped"),
    (Flaw::IgnoresClose, "health_reports_close", "end of its health"),
    (Flaw::CloseWakesNone, "close_disconnects_everything", "the end of all that waits"),
    (Flaw::IgnoresClose, "close_disconnects_everything", "the end of all that waits"),
    (Flaw::LosesAcksOnClose, "close_keeps_acks_and_requeues_rest", "not empty"),
    (Flaw::ClosesOthers, "close_spares_other_connections", "the answers to a publish"),
    (Flaw::NeverCatchesUp, "journal_replays_then_follows", "catching up"),
    (Flaw::CatchesUpTwice, "journal_replays_then_follows", "caught up twice"),
    (Flaw::CatchesUpEarly, "journal_replays_then_follows", "left: []"),
    (Flaw::StartsAtEnd, "journal_readers_are_independent", "left: []"),
    (Flaw::MissesWakeUps, "waiting_journal_reader_wakes", "the next fact: nothing"),
    (Flaw::LosesOnCancel, "journal_next_is_cancel_safe", "of 50 facts"),
    (Flaw::MixesLanes, "events_match_their_filter", "an event of the lane"),
    (Flaw::ReplaysEvents, "events_are_not_replayed", "early"),
    (Flaw::MissesWakeUps, "waiting_event_reader_wakes", "an event: nothing"),
    (Flaw::LosesOnCancel, "event_next_is_cancel_safe", "of 50 events"),
];

/// Returns connections to a new broker, all with that flaw.
fn connect_flawed(flaw: Flaw) -> Connect {
    let broker = MemoryTransport::new();
    let memory = Arc::new(FlawMemory::default());
    connect(move || {
        let connection = FlawedTransport::new(broker.connect(), flaw, Arc::clone(&memory));
        async { Arc::new(connection) }
    })
}

#[tokio::test(start_paused = true)]
async fn flaw_breaks_its_promise() {
    let mut unseen = Vec::new();
    for &(flaw, name, part) in FLAW_CASES {
        let promise = ALL_PROMISES.iter().find(|promise| promise.name == name).expect(name);
        match promise.check(&connect_flawed(flaw)).await {
            Err(seen) if seen.contains(part) => {}
            seen => unseen.push(format!("{flaw:?}, {name}: {seen:?}, not {part:?}")),
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn flawless_transport_passes() {
    super::check_all(connect_flawed(Flaw::None)).await;
}

#[test]
fn every_promise_has_a_flaw() {
    let broken: BTreeSet<_> = FLAW_CASES.iter().map(|(_, name, _)| *name).collect();
    let all: BTreeSet<_> = ALL_PROMISES.iter().map(|promise| promise.name).collect();
    assert_eq!(broken, all);
}
