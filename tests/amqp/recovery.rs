//! Connections that are lost and come back.

use std::collections::HashSet;

use gristmill_shared::{
    EventFilter, EventReader, JournalEntry, JournalReader, QueueRole, Topic, TransportError,
};
use lapin::{options::QueueDeclareOptions, types::FieldTable};

use super::{tcp_proxy::Wire, *};

pub(super) fn is_end<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    match result {
        Err(error @ TransportError::Disconnected { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn fact(job: JobId, id: impl ToString) -> Outgoing {
    Outgoing { to: Address::Journal, message: Message { job: Some(job), ..message(id) } }
}

/// The facts of one job, up to the one of this name; a fact that comes twice counts once. And how often `CaughtUp`
/// came.
pub(super) async fn read_up_to(
    reader: &mut Box<dyn JournalReader>,
    job: JobId,
    last: &str,
) -> (Vec<String>, usize) {
    let (mut own, mut caught_up) = (Vec::new(), 0);
    loop {
        match within(reader.next()).await.unwrap() {
            JournalEntry::Fact(fact) if fact.job == Some(job) => {
                own.push(fact.id);
                if own.last().unwrap() == last {
                    return (own, caught_up);
                }
            }
            JournalEntry::Fact(_) => {}
            JournalEntry::CaughtUp => caught_up += 1,
        }
    }
}

/// Until an event of this job comes, which is told again and again as nobody may listen yet.
pub(super) async fn hear(
    transport: &AmqpTransport,
    lane: &Lane,
    events: &mut Box<dyn EventReader>,
    id: &str,
) {
    let to = Address::Events(Topic::Job(lane.clone(), JobId::generate()));
    let telling = async {
        loop {
            store(transport, vec![Outgoing { to: to.clone(), message: message(id) }]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let hearing = async { while events.next().await.unwrap().id != id {} };
    tokio::select! {
        () = within(hearing) => {}
        () = telling => {}
    }
}

#[tokio::test]
async fn a_publish_that_is_cut_off_is_sent_again_until_all_is_stored() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Again.of(&lane);
    let publishing = tokio::spawn({
        let (transport, queue) = (Arc::clone(&transport), queue.clone());
        async move {
            for round in 0..20 {
                store(&transport, numbered(&queue, round * 500..(round + 1) * 500)).await;
            }
        }
    });
    let direct = connect().await;
    let mut consumer = direct.consume(&queue, 100).await.unwrap();
    let mut seen = HashSet::new();
    let mut cuts = 0;
    while seen.len() < 10_000 {
        for delivery in within(consumer.recv(100)).await.unwrap() {
            seen.insert(delivery.message.id);
            delivery.receipt.ack();
        }
        if seen.len() > 2_000 * (cuts + 1) && cuts < 3 {
            assert!(!publishing.is_finished());
            wire.cut().await;
            cuts += 1;
        }
    }
    assert_eq!(cuts, 3);
    within(publishing).await.unwrap();
}

#[tokio::test]
async fn a_consumer_goes_on_and_what_was_not_settled_comes_again() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..8)).await;
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    let mut held = take(&mut consumer, 4).await; // and one that is here, and was not looked at
    within(wire.break_down()).await;
    let stale = held.remove(0);
    stale.receipt.ack(); // nobody is there to hear it
    while let Ok(here) = timeout(QUIET, consumer.recv(9)).await {
        held.extend(here.unwrap()); // until the loss is seen
    }
    assert!(held.len() <= 4, "more came than the prefetch");
    wire.mend();
    let again = take(&mut consumer, 5).await;
    let mut names = ids(&again);
    names.sort_unstable();
    assert_eq!(names, ["0", "1", "2", "3", "4"], "stale: the ack came too late");
    assert!(again.iter().all(|delivery| delivery.redelivered()));
    held.into_iter().for_each(|stale| stale.receipt.requeue());
    nothing_comes(&mut consumer).await; // the prefetch is as it was, and stale receipts move nothing
    again.into_iter().for_each(|delivery| delivery.receipt.ack());
    let rest = take(&mut consumer, 3).await;
    assert_eq!(ids(&rest), ["5", "6", "7"]);
    assert!(rest.iter().all(|delivery| !delivery.redelivered()), "and its channel stood");
    rest.into_iter().for_each(|delivery| delivery.receipt.ack());
    nothing_comes(&mut consumer).await;
    within(consumer.close()).await;
    let mut empty = connect().await.consume(&queue, 5).await.unwrap();
    nothing_comes(&mut empty).await;
}

#[tokio::test]
async fn whoever_stops_to_wait_all_the_time_gets_its_deliveries_all_the_same() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    within(wire.cut()).await;
    let patient = connect().await;
    store(&patient, numbered(&queue, 0..1)).await;
    let impatient = async {
        loop {
            if let Ok(deliveries) = timeout(Duration::from_millis(2), consumer.recv(1)).await {
                return deliveries.unwrap();
            }
        }
    };
    assert_eq!(ids(&within(impatient).await), ["0"]);
}

#[tokio::test]
async fn a_consumer_whose_queue_is_deleted_makes_it_anew() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    let stranger = connect().await; // who does not know that the queue should be there, and so does not make it anew
    for round in 0..3 {
        ByHand::open().await.delete(&queue).await;
        let received = tokio::spawn(async move {
            let delivery = take(&mut consumer, 1).await.remove(0);
            (consumer, delivery)
        });
        // Until it is there again, nothing can be sent there.
        let sent = within(async {
            let mut tries = 0;
            while publish(&stranger, numbered(&queue, round..round + 1)).await != [Published::Stored] {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tries
        });
        assert!(sent.await > 0, "it was not gone");
        let (taken, delivery) = within(received).await.unwrap();
        consumer = taken;
        assert_eq!(delivery.message.id, round.to_string());
        delivery.receipt.ack();
    }
}

#[tokio::test]
async fn a_stopped_consumer_that_is_cut_off_has_ended() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..6)).await;
    let mut stopped = transport.consume(&queue, 3).await.unwrap();
    let held = take(&mut stopped, 1).await;
    within(stopped.stop()).await.unwrap();
    let mut cut_off = transport.consume(&queue, 3).await.unwrap();
    let also_held = take(&mut cut_off, 1).await;
    within(wire.break_down()).await;
    // One stopped before, the other stops now, when there is nobody to tell.
    while !within(stopped.recv(9)).await.unwrap().is_empty() {} // what is here, until the loss is seen
    tokio::time::sleep(QUIET).await;
    within(cut_off.stop()).await.unwrap();
    assert!(within(cut_off.recv(9)).await.unwrap().is_empty());
    wire.mend();
    let all = drain(&transport, &queue, 6).await; // on the next connection, where neither consumes
    assert_eq!(all.len(), 6);
    assert!(within(stopped.recv(9)).await.unwrap().is_empty());
    assert!(within(cut_off.recv(9)).await.unwrap().is_empty());
    held.into_iter().chain(also_held).for_each(|stale| stale.receipt.ack());
}

#[tokio::test]
async fn the_journal_goes_on_where_it_was_and_is_caught_up_with_once() {
    let wire = Wire::lay().await;
    let (transport, _) = wire.open().await;
    let direct = connect().await;
    let job = JobId::generate();
    store(&direct, (0..1_000).map(|id| fact(job, id)).collect()).await;
    let mut reader = transport.journal().await.unwrap();
    let (mut facts, mut caught_up) = read_up_to(&mut reader, job, "10").await;
    within(wire.cut()).await; // before it has caught up
    let (more, told) = read_up_to(&mut reader, job, "999").await;
    facts.extend(more);
    caught_up += told;
    store(&direct, (1_000..1_100).map(|id| fact(job, id)).collect()).await;
    let (more, told) = read_up_to(&mut reader, job, "1050").await;
    facts.extend(more);
    caught_up += told;
    assert_eq!(caught_up, 1);
    within(wire.cut()).await; // after
    let (more, told) = read_up_to(&mut reader, job, "1099").await;
    facts.extend(more);
    within(wire.cut()).await; // at its very end
    let (last, told_again) = tokio::join!(read_up_to(&mut reader, job, "end"), async {
        tokio::time::sleep(QUIET).await;
        store(&direct, vec![fact(job, "end")]).await;
    })
    .0;
    facts.extend(last);
    assert_eq!((told, told_again), (0, 0));
    let expected: Vec<_> = (0..1_100).map(|id| id.to_string()).chain(["end".into()]).collect();
    assert_eq!(facts, expected);
}

#[tokio::test]
async fn events_are_heard_again() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let direct = connect().await;
    let mut events = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    hear(&direct, &lane, &mut events, "before").await;
    within(wire.cut()).await;
    hear(&direct, &lane, &mut events, "after").await;
}

#[tokio::test]
async fn what_is_asked_during_an_outage_waits_for_its_end() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    within(wire.break_down()).await;
    tokio::time::sleep(QUIET).await;
    let other = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    let asked = async {
        tokio::join!(
            transport.open_lane(&other),
            async { transport.publisher().await.unwrap().publish(numbered(&queue, 0..2)).await },
            transport.consume(&queue, 1),
            transport.journal(),
            transport.events(EventFilter::Lane(lane.clone())),
        )
    };
    let mut asked = std::pin::pin!(within(asked));
    assert!(timeout(QUIET, &mut asked).await.is_err(), "there was no outage");
    wire.mend();
    let (opened, published, consumer, journal, events) = asked.await;
    opened.unwrap();
    assert_eq!(published, [Published::Stored, Published::Stored]);
    assert_eq!(ids(&take(&mut consumer.unwrap(), 1).await), ["0"]);
    within(journal.unwrap().next()).await.unwrap();
    hear(&transport, &lane, &mut events.unwrap(), "heard").await;
}

#[tokio::test]
async fn a_transport_that_is_closed_during_an_outage_ends_all_that_waits() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    let mut events = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    within(wire.break_down()).await;
    let (received, heard, published, opened, ()) = within(async {
        tokio::join!(
            consumer.recv(1),
            events.next(),
            async { transport.publisher().await.unwrap().publish(numbered(&queue, 0..2)).await },
            transport.open_lane(&lane),
            async {
                tokio::time::sleep(QUIET).await;
                transport.close().await;
            },
        )
    })
    .await;
    for why in [is_end(received), is_end(heard), is_end(opened)] {
        assert!(why.contains("closed at this end"), "{why}");
    }
    assert_eq!(published, [Published::Unknown, Published::Unknown]);
    wire.mend();
    is_end(within(consumer.recv(1)).await);
}

#[tokio::test]
async fn a_transport_gives_up_when_it_was_told_to() {
    let wire = Wire::lay().await;
    let mut config = wire.config();
    config.give_up_after_loss = Some(Duration::from_secs(1));
    let transport = within(AmqpTransport::connect(config)).await.unwrap();
    let (_, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    let start = std::time::Instant::now();
    within(wire.break_down()).await;
    let why = is_end(within(consumer.recv(1)).await);
    assert!(why.contains("not back after") && why.contains("tries"), "{why}");
    assert!((1..15).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    is_end(within(transport.consume(&queue, 1)).await.map(drop));
}

#[tokio::test]
async fn queues_that_were_replaced_by_others_meanwhile_end_the_transport() {
    let wire = Wire::lay().await;
    let (transport, lane) = wire.open().await;
    let queue = QueueRole::Dead.of(&lane);
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    within(wire.break_down()).await;
    let by_hand = ByHand::open().await;
    by_hand.delete(&queue).await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = by_hand.channel.queue_declare(queue.to_string().into(), options, FieldTable::default());
    declared.await.unwrap();
    wire.mend();
    let why = is_end(within(consumer.recv(1)).await);
    assert!(why.contains("other settings") && why.contains(&queue.to_string()), "{why}");
    is_end(within(transport.open_lane(&lane)).await);
    by_hand.delete(&queue).await;
}
