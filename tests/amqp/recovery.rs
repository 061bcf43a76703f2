//! Connections that are lost and come back.

use std::collections::HashSet;

use gristmill_shared::{
    EventFilter, EventReader, JournalEntry, JournalReader, QueueRole, Topic, TransportError,
};
use lapin::{options::QueueDeclareOptions, types::FieldTable};

use super::{tcp_proxy::TcpProxy, *};

pub(super) fn disconnect_reason<T: std::fmt::Debug>(result: Result<T, TransportError>) -> String {
    match result {
        Err(error @ TransportError::Disconnected { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn fact(job: JobId, id: impl ToString) -> Outgoing {
    Outgoing { to: Address::Journal, message: Message { job: Some(job), ..message(id) } }
}

/// Returns the facts of one job, repeated ones too, up to the one named `last`, and the number of
/// `CaughtUp` entries.
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

/// Publishes an event again and again until it comes, since the subscription may not be active yet.
pub(super) async fn exchange_event(
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

/// A publish that is cut off is sent again until every message is stored.
#[tokio::test]
async fn cut_publish_is_sent_again() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Requeued.of(&lane);
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
            proxy.cut().await;
            cuts += 1;
        }
    }
    assert_eq!(cuts, 3);
    within(publishing).await.unwrap();
}

/// A consumer continues after a lost connection. Unsettled deliveries come again, and stale
/// receipts have no effect.
#[tokio::test]
async fn consumer_resumes_with_unsettled() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..8)).await;
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    let mut held = receive(&mut consumer, 4).await; // and one that is buffered
    within(proxy.take_down()).await;
    let stale = held.remove(0);
    stale.receipt.ack(); // there is no connection to send it on
    while let Ok(here) = timeout(QUIET_TIME, consumer.recv(9)).await {
        held.extend(here.unwrap()); // until the loss is seen
    }
    assert!(held.len() <= 4, "more came than the prefetch");
    proxy.restore();
    let again = receive(&mut consumer, 5).await;
    let mut names = ids(&again);
    names.sort_unstable();
    assert_eq!(names, ["0", "1", "2", "3", "4"], "stale: the ack came too late");
    assert!(again.iter().all(|delivery| delivery.is_redelivered()));
    held.into_iter().for_each(|stale| stale.receipt.requeue());
    assert_no_delivery(&mut consumer).await; // the prefetch is as it was, and stale receipts move nothing
    again.into_iter().for_each(|delivery| delivery.receipt.ack());
    let rest = receive(&mut consumer, 3).await;
    assert_eq!(ids(&rest), ["5", "6", "7"]);
    assert!(rest.iter().all(|delivery| !delivery.is_redelivered()), "its channel was still open");
    rest.into_iter().for_each(|delivery| delivery.receipt.ack());
    assert_no_delivery(&mut consumer).await;
    within(consumer.close()).await;
    let mut empty = connect().await.consume(&queue, 5).await.unwrap();
    assert_no_delivery(&mut empty).await;
}

/// A caller that cancels `recv` again and again still gets its deliveries.
#[tokio::test]
async fn cancelled_recv_loses_nothing() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    within(proxy.cut()).await;
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

/// A consumer whose queue is deleted declares it again.
#[tokio::test]
async fn consumer_recreates_its_queue() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 5).await.unwrap();
    let stranger = connect().await; // which does not know the queue, and so does not declare it
    for round in 0..3 {
        RawClient::open().await.delete(&queue).await;
        let received = tokio::spawn(async move {
            let delivery = receive(&mut consumer, 1).await.remove(0);
            (consumer, delivery)
        });
        // Until the queue exists again, nothing can be published to it.
        let sent = within(async {
            let mut tries = 0;
            while publish(&stranger, numbered(&queue, round..round + 1)).await != [Published::Confirmed] {
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

/// A stopped consumer that loses its connection has ended.
#[tokio::test]
async fn stopped_consumer_stays_ended() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..6)).await;
    let mut stopped = transport.consume(&queue, 3).await.unwrap();
    let held = receive(&mut stopped, 1).await;
    within(stopped.stop()).await.unwrap();
    let mut cut_off = transport.consume(&queue, 3).await.unwrap();
    let also_held = receive(&mut cut_off, 1).await;
    within(proxy.take_down()).await;
    // One stopped before, the other stops now, without a connection.
    while !within(stopped.recv(9)).await.unwrap().is_empty() {} // what is buffered, until the loss is seen
    tokio::time::sleep(QUIET_TIME).await;
    within(cut_off.stop()).await.unwrap();
    assert!(within(cut_off.recv(9)).await.unwrap().is_empty());
    proxy.restore();
    let all = drain(&transport, &queue, 6).await; // on the next connection, where neither consumes
    assert_eq!(all.len(), 6);
    assert!(within(stopped.recv(9)).await.unwrap().is_empty());
    assert!(within(cut_off.recv(9)).await.unwrap().is_empty());
    held.into_iter().chain(also_held).for_each(|stale| stale.receipt.ack());
}

/// The journal continues where it was, and `CaughtUp` comes once.
#[tokio::test]
async fn journal_catches_up_only_once() {
    let proxy = TcpProxy::start().await;
    let (transport, _) = proxy.open().await;
    let direct = connect().await;
    let job = JobId::generate();
    store(&direct, (0..1_000).map(|id| fact(job, id)).collect()).await;
    let mut reader = transport.journal().await.unwrap();
    let (mut facts, mut caught_up) = read_up_to(&mut reader, job, "10").await;
    within(proxy.cut()).await; // before it has caught up
    let (more, told) = read_up_to(&mut reader, job, "999").await;
    facts.extend(more);
    caught_up += told;
    store(&direct, (1_000..1_100).map(|id| fact(job, id)).collect()).await;
    let (more, told) = read_up_to(&mut reader, job, "1050").await;
    facts.extend(more);
    caught_up += told;
    assert_eq!(caught_up, 1);
    within(proxy.cut()).await; // after
    let (more, told) = read_up_to(&mut reader, job, "1099").await;
    facts.extend(more);
    within(proxy.cut()).await; // at its very end
    let (last, told_again) = tokio::join!(read_up_to(&mut reader, job, "end"), async {
        tokio::time::sleep(QUIET_TIME).await;
        store(&direct, vec![fact(job, "end")]).await;
    })
    .0;
    facts.extend(last);
    assert_eq!((told, told_again), (0, 0));
    let expected: Vec<_> = (0..1_100).map(|id| id.to_string()).chain(["end".into()]).collect();
    assert_eq!(facts, expected);
}

#[tokio::test]
async fn events_resume_after_a_cut() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let direct = connect().await;
    let mut events = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    exchange_event(&direct, &lane, &mut events, "before").await;
    within(proxy.cut()).await;
    exchange_event(&direct, &lane, &mut events, "after").await;
}

/// Requests during an outage wait for its end.
#[tokio::test]
async fn requests_wait_out_an_outage() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    within(proxy.take_down()).await;
    tokio::time::sleep(QUIET_TIME).await;
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
    assert!(timeout(QUIET_TIME, &mut asked).await.is_err(), "there was no outage");
    proxy.restore();
    let (opened, published, consumer, journal, events) = asked.await;
    opened.unwrap();
    assert_eq!(published, [Published::Confirmed, Published::Confirmed]);
    assert_eq!(ids(&receive(&mut consumer.unwrap(), 1).await), ["0"]);
    within(journal.unwrap().next()).await.unwrap();
    exchange_event(&transport, &lane, &mut events.unwrap(), "heard").await;
}

/// A transport that is closed during an outage ends every request that waits.
#[tokio::test]
async fn close_ends_waiting_requests() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    let mut events = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    within(proxy.take_down()).await;
    let (received, heard, published, opened, ()) = within(async {
        tokio::join!(
            consumer.recv(1),
            events.next(),
            async { transport.publisher().await.unwrap().publish(numbered(&queue, 0..2)).await },
            transport.open_lane(&lane),
            async {
                tokio::time::sleep(QUIET_TIME).await;
                transport.close().await;
            },
        )
    })
    .await;
    for why in [disconnect_reason(received), disconnect_reason(heard), disconnect_reason(opened)] {
        assert!(why.contains("closed at this end"), "{why}");
    }
    assert_eq!(published, [Published::Unknown, Published::Unknown]);
    proxy.restore();
    disconnect_reason(within(consumer.recv(1)).await);
}

/// A transport gives up a configured time after it lost its connection.
#[tokio::test]
async fn transport_gives_up_in_time() {
    let proxy = TcpProxy::start().await;
    let mut config = proxy.config();
    config.give_up_after_loss = Some(Duration::from_secs(1));
    let transport = within(AmqpTransport::connect(config)).await.unwrap();
    let (_, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    let start = std::time::Instant::now();
    within(proxy.take_down()).await;
    let why = disconnect_reason(within(consumer.recv(1)).await);
    assert!(why.contains("not back after") && why.contains("tries"), "{why}");
    assert!((1..15).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    disconnect_reason(within(transport.consume(&queue, 1)).await.map(drop));
}

/// A queue that others replaced during an outage, with other arguments, ends the transport.
#[tokio::test]
async fn replaced_queue_ends_transport() {
    let proxy = TcpProxy::start().await;
    let (transport, lane) = proxy.open().await;
    let queue = QueueRole::Dead.of(&lane);
    let mut consumer = transport.consume(&queue, 1).await.unwrap();
    within(proxy.take_down()).await;
    let raw_client = RawClient::open().await;
    raw_client.delete(&queue).await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = raw_client.channel.queue_declare(queue.to_string().into(), options, FieldTable::default());
    declared.await.unwrap();
    proxy.restore();
    let why = disconnect_reason(within(consumer.recv(1)).await);
    assert!(why.contains("other settings") && why.contains(&queue.to_string()), "{why}");
    disconnect_reason(within(transport.open_lane(&lane)).await);
    raw_client.delete(&queue).await;
}
