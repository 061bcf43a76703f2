//! Promises about stopping a consumer and closing a connection.

use super::scene::{Scene, ack, answers, bounded, consumer, ids, message, messages, numbers, receive};
use crate::{
    Address, EventFilter, Health, JobId, JournalEntry, Outgoing, Published, QueueRole, Topic, TransportError,
};

/// After `stop` a consumer receives only messages that had arrived already. They can still be
/// settled, and the rest stays in the queue.
pub(super) async fn stopped_consumer_drains_then_ends(scene: &Scene) {
    const PREFETCH_COUNT: u16 = 5;
    scene.publish(QueueRole::Tasks, messages(0..20)).await;
    let mut stopped = scene.consumer(QueueRole::Tasks, PREFETCH_COUNT).await;
    let mut here = receive(&mut *stopped, 1).await;
    bounded("stop", stopped.stop()).await.expect("a stop");
    let mut seen = ids(&here);
    loop {
        ack(here);
        here =
            bounded("the end of a stopped consumer", stopped.recv(2)).await.expect("deliveries or the end");
        if here.is_empty() {
            break;
        }
        seen.extend(ids(&here));
    }
    assert!(seen.len() <= PREFETCH_COUNT.into(), "{} deliveries came to a stopped consumer", seen.len());
    let end = bounded("the end again", stopped.recv(2)).await.expect("the end again");
    assert!(end.is_empty(), "a stopped consumer goes on");
    bounded("closing a consumer", stopped.close()).await;

    let mut other = scene.consumer(QueueRole::Tasks, 20).await;
    let rest = receive(&mut *other, 20 - seen.len()).await;
    assert!(seen.is_disjoint(&ids(&rest)), "a message that was settled after the stop came again");
    assert_eq!(&seen | &ids(&rest), numbers(0..20));
}

/// An open connection reports [`Health::Ready`]. A closed one reports [`Health::Closed`], to
/// earlier subscribers and to later ones.
pub(super) async fn health_reports_close(scene: &Scene) {
    let other = scene.second_connection().await;
    let mut health = other.health();
    bounded("a healthy transport", health.wait_for(|health| *health == Health::Ready)).await.expect("a word");
    bounded("closing", other.close()).await;
    // The sender may have gone with the connection; the last value stays readable.
    drop(bounded("the end of its health", health.wait_for(|health| *health == Health::Closed)).await);
    assert_eq!((&*health.borrow(), &*other.health().borrow()), (&Health::Closed, &Health::Closed));
}

/// Closing a transport wakes every pending call. Everything made by it reports a disconnect from
/// then on, and publishes nothing.
pub(super) async fn close_disconnects_everything(scene: &Scene) {
    let other = scene.second_connection().await;
    let tasks = scene.queue(QueueRole::Tasks);
    let publisher = bounded("a publisher", other.publisher()).await.expect("a publisher");
    let mut tasks_consumer = consumer(&*other, &tasks, 1).await;
    let filter = || EventFilter::Lane(scene.lane.clone());
    let mut events = bounded("events", other.events(filter())).await.expect("a reader");
    let mut journal = bounded("journal", other.journal()).await.expect("a reader");
    while !matches!(bounded("the journal", journal.next()).await.expect("an entry"), JournalEntry::CaughtUp) {
    }

    let followed = async {
        // Other tests may write to the journal meanwhile.
        loop {
            if let Err(error) = journal.next().await {
                return error;
            }
        }
    };
    let closing = async {
        tokio::task::yield_now().await; // after the others began to wait
        other.close().await;
    };
    let ((), received, event, followed) = bounded("the end of all that waits", async {
        tokio::join!(closing, tasks_consumer.recv(1), events.next(), followed)
    })
    .await;
    expect_disconnected("a waiting recv", received);
    expect_disconnected("a waiting events reader", event);
    expect_disconnected("a waiting journal reader", Err::<(), _>(followed));

    expect_disconnected("recv", bounded("recv", tasks_consumer.recv(1)).await);
    expect_disconnected("stop", bounded("stop", tasks_consumer.stop()).await);
    expect_disconnected("an events reader", bounded("events", events.next()).await);
    expect_disconnected("a journal reader", bounded("journal", journal.next()).await);
    expect_disconnected("open_lane", bounded("open_lane", other.open_lane(&scene.lane)).await);
    expect_disconnected("publisher", bounded("publisher", other.publisher()).await);
    expect_disconnected("consume", bounded("consume", other.consume(&tasks, 1)).await);
    expect_disconnected("events", bounded("events", other.events(filter())).await);
    expect_disconnected("journal", bounded("journal", other.journal()).await);
    let late = Outgoing { to: Address::Queue(tasks), message: message("late") };
    assert_eq!(answers(&*publisher, vec![late]).await, [Published::Unknown]);
    bounded("closing a consumer", tasks_consumer.close()).await;
    bounded("closing again", other.close()).await;
    scene.expect_empty(QueueRole::Tasks).await;
}

fn expect_disconnected<T>(what: &str, result: Result<T, TransportError>) {
    match result {
        Err(TransportError::Disconnected { .. }) => {}
        Err(error) => panic!("{what} on a closed transport gives another error: {error}"),
        Ok(_) => panic!("{what} works on a closed transport"),
    }
}

/// Closing a transport forwards every settlement that was made and requeues unsettled messages. A
/// receipt that outlives the transport does nothing.
pub(super) async fn close_keeps_acks_and_requeues_rest(scene: &Scene) {
    let other = scene.second_connection().await;
    scene.publish(QueueRole::Tasks, messages(0..10)).await;
    let mut goes = consumer(&*other, &scene.queue(QueueRole::Tasks), 10).await;
    let mut held = receive(&mut *goes, 10).await;
    let settled = held.split_off(5);
    let seen = ids(&settled);
    ack(settled);
    bounded("closing", other.close()).await;
    ack(held); // too late
    let mut stays = scene.consumer(QueueRole::Tasks, 10).await;
    let rest = receive(&mut *stays, 5).await;
    assert_eq!(&seen | &ids(&rest), numbers(0..10));
    assert!(
        rest.iter().all(|delivery| delivery.is_redelivered()),
        "a requeued message says that it never came before"
    );
    ack(rest);
    bounded("closing a consumer", stays.close()).await;
    scene.expect_empty(QueueRole::Tasks).await;
}

/// Closing a connection does not affect another: its consumers keep their deliveries and go on.
pub(super) async fn close_spares_other_connections(scene: &Scene) {
    let other = scene.second_connection().await;
    let mut goes = consumer(&*other, &scene.queue(QueueRole::Requeued), 1).await;
    let mut stays = scene.consumer(QueueRole::Tasks, 2).await;
    let filter = EventFilter::Lane(scene.lane.clone());
    let mut events = bounded("events", scene.transport.events(filter)).await.expect("a reader");
    scene.publish(QueueRole::Tasks, vec![message("before")]).await;
    let mut held = receive(&mut *stays, 1).await;
    bounded("closing", other.close()).await;
    expect_disconnected("recv", bounded("recv", goes.recv(1)).await);

    scene.publish(QueueRole::Tasks, vec![message("after")]).await;
    held.extend(receive(&mut *stays, 1).await);
    assert_eq!(held[1].message.id, "after", "what comes next");
    let topic = Topic::Job(scene.lane.clone(), JobId::generate());
    scene.send(Address::Events(topic), vec![message("event")]).await;
    assert_eq!(bounded("an event", events.next()).await.expect("an event").id, "event");
    ack(held);
    bounded("closing a consumer", stays.close()).await;
    scene.expect_empty(QueueRole::Tasks).await;
}
