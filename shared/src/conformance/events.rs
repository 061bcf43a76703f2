//! Promises of events.

use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::{
    QUIET_PERIOD, WAIT_BOUND,
    scene::{Scene, bounded, message, messages, new_lane},
};
use crate::{Address, EventFilter, EventReader, JobId, Message, QueueRole, Topic, Transport, WorkerId};

/// A reader receives the events of its filter, a lane or a job, from any connection, and no others.
pub(super) async fn events_match_their_filter(scene: &Scene) {
    let other = scene.second_connection().await;
    let (job, lane) = (JobId::generate(), &scene.lane);
    let mut of_lane = open(&*scene.transport, EventFilter::Lane(lane.clone())).await;
    let mut of_job = open(&*other, EventFilter::Job(job)).await;
    let published = [
        ("a worker elsewhere", Topic::Worker(new_lane(), WorkerId::generate("host"))),
        ("a job elsewhere", Topic::Job(new_lane(), JobId::generate())),
        ("the job elsewhere", Topic::Job(new_lane(), job)),
        ("a worker here", Topic::Worker(lane.clone(), WorkerId::generate("host"))),
        ("another job here", Topic::Job(lane.clone(), JobId::generate())),
        ("the job here", Topic::Job(lane.clone(), job)),
    ];
    for (id, topic) in published {
        scene.send(Address::Events(topic), vec![message(id)]).await;
    }
    for expected in ["a worker here", "another job here", "the job here"] {
        assert_eq!(next(&mut *of_lane).await, message(expected), "an event of the lane");
    }
    for expected in ["the job elsewhere", "the job here"] {
        assert_eq!(next(&mut *of_job).await, message(expected), "an event of the job");
    }
}

/// An event reaches only readers that exist when it is published. An event without a reader is no
/// error.
pub(super) async fn events_are_not_replayed(scene: &Scene) {
    let event = Address::Events(Topic::Job(scene.lane.clone(), JobId::generate()));
    scene.send(event.clone(), vec![message("early")]).await;
    scene.publish(QueueRole::Tasks, messages(0..1)).await; // once this is stored, the event has gone by
    let mut late = open(&*scene.transport, EventFilter::Lane(scene.lane.clone())).await;
    scene.send(event, vec![message("now")]).await;
    assert_eq!(next(&mut *late).await, message("now"));
}

/// A waiting reader receives an event that is published later.
pub(super) async fn waiting_event_reader_wakes(scene: &Scene) {
    let topic = Topic::Job(scene.lane.clone(), JobId::generate());
    let mut reader = open(&*scene.transport, EventFilter::Lane(scene.lane.clone())).await;
    for id in 0..2 {
        let publish = async {
            sleep(QUIET_PERIOD).await; // so that the reader waits
            scene.send(Address::Events(topic.clone()), vec![message(id)]).await;
        };
        let (read, ()) = tokio::join!(next(&mut *reader), publish);
        assert_eq!(read, message(id));
    }
}

/// A `next` that is dropped before it returns loses no event.
pub(super) async fn event_next_is_cancel_safe(scene: &Scene) {
    let topic = Topic::Job(scene.lane.clone(), JobId::generate());
    let mut reader = open(&*scene.transport, EventFilter::Lane(scene.lane.clone())).await;
    let (mut seen, start) = (0, Instant::now());
    assert!(reader.next().now_or_never().is_none(), "an event that was not published");
    scene.send(Address::Events(topic), messages(0..50)).await;
    while seen < 50 {
        assert!(start.elapsed() < WAIT_BOUND, "{seen} of 50 events came");
        match reader.next().now_or_never() {
            Some(event) => {
                assert_eq!(event.expect("an event"), message(seen), "the next event");
                seen += 1;
            }
            None => sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn open(transport: &dyn Transport, filter: EventFilter) -> Box<dyn EventReader> {
    bounded("events", transport.events(filter)).await.expect("an events reader")
}

async fn next(reader: &mut dyn EventReader) -> Message {
    bounded("an event", reader.next()).await.expect("an event")
}
