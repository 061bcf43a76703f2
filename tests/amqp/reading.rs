//! The journal and the events.

use gristmill_amqp::EVENTS_MAX_WAITING;
use gristmill_shared::{EventFilter, JournalEntry, JournalReader, Topic};

use super::*;

/// Returns the facts of one job, in order, up to the point where the reader has caught up.
async fn read_journal(reader: &mut Box<dyn JournalReader>, job: JobId) -> Vec<String> {
    let mut own = Vec::new();
    loop {
        match within(reader.next()).await.unwrap() {
            JournalEntry::Fact(fact) if fact.job == Some(job) => own.push(fact.id),
            JournalEntry::Fact(_) => {}
            JournalEntry::CaughtUp => return own,
        }
    }
}

fn facts(job: JobId, numbers: std::ops::Range<usize>) -> Vec<Outgoing> {
    let fact = |number| Message { job: Some(job), ..message(number) };
    numbers.map(|number| Outgoing { to: Address::Journal, message: fact(number) }).collect()
}

/// `CaughtUp` comes once, after exactly the facts that were there.
#[tokio::test]
async fn caught_up_follows_existing_facts() {
    let (transport, _) = open().await;
    let job = JobId::generate();
    for count in [0, 1, 5_000] {
        let written = read_journal(&mut transport.journal().await.unwrap(), job).await.len();
        store(&transport, facts(job, written..count)).await;
        let mut reader = transport.journal().await.unwrap();
        store(&transport, facts(job, count..count + 1)).await; // after it was opened
        let read = read_journal(&mut reader, job).await;
        // A fact that comes while the reader opens may come before or after.
        assert!((count..=count + 1).contains(&read.len()), "{} of {count}", read.len());
        assert!(read.iter().map(|id| id.parse::<usize>().unwrap()).eq(0..read.len()));
        while read.len() == count {
            match within(reader.next()).await.unwrap() {
                JournalEntry::Fact(fact) if fact.job != Some(job) => {}
                JournalEntry::Fact(fact) => {
                    assert_eq!(fact.id, count.to_string());
                    break;
                }
                JournalEntry::CaughtUp => panic!("told twice"),
            }
        }
    }
}

/// Events reach their subscribers, and a slow one misses the oldest.
#[tokio::test]
async fn slow_reader_misses_oldest_events() {
    let (transport, lane) = open().await;
    let other = connect().await;
    let (job, stranger) = (JobId::generate(), JobId::generate());
    let mut of_lane = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    let mut of_job = other.events(EventFilter::Job(job)).await.unwrap();
    let event = |job, id: usize| {
        let to = Address::Events(Topic::Job(lane.clone(), job));
        Outgoing { to, message: message(id) }
    };
    store(&transport, vec![event(stranger, 0), event(job, 1)]).await;
    assert_eq!(within(of_lane.next()).await.unwrap().id, "0");
    assert_eq!(within(of_lane.next()).await.unwrap().id, "1");
    assert_eq!(within(of_job.next()).await.unwrap().id, "1");

    let many = usize::try_from(EVENTS_MAX_WAITING).unwrap() + 3_000;
    store(&transport, (2..many).map(|id| event(job, id)).collect()).await;
    let mut heard = vec![];
    while heard.last() != Some(&(many - 1)) {
        heard.push(within(of_job.next()).await.unwrap().id.parse().unwrap());
    }
    assert!(heard.is_sorted());
    let most = usize::try_from(EVENTS_MAX_WAITING).unwrap() + 1_000; // and what was under way
    assert!((1_000..most).contains(&heard.len()), "{} heard", heard.len());
}
