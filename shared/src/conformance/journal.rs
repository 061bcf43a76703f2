//! Promises about the journal. Other clients may write to it meanwhile, so each promise looks at
//! the facts of a job of its own.

use std::time::Duration;

use futures::FutureExt;
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    QUIET_PERIOD, WAIT_BOUND,
    scene::{Scene, bounded, message},
};
use crate::{Address, JobId, JournalEntry, JournalReader, Message, Transport};

/// A reader receives every fact that was in the journal when it was opened, in order; then
/// `CaughtUp`, once; then later facts.
pub(super) async fn journal_replays_then_follows(scene: &Scene) {
    let job = JobId::generate();
    let before = facts(job, ["opened", "sealed", "finished"]);
    scene.send(Address::Journal, before.clone()).await;
    let mut reader = open(&*scene.transport).await;
    assert_eq!(catch_up(&mut *reader, job).await, before);
    for later in facts(job, ["reopened", "stopped"]) {
        scene.send(Address::Journal, vec![later.clone()]).await;
        assert_eq!(follow(&mut *reader, job, 1).await, [later]);
    }
}

/// Readers take nothing from one another: each receives every fact from the start, also on another
/// connection, and all of them follow.
pub(super) async fn journal_readers_are_independent(scene: &Scene) {
    let other = scene.second_connection().await;
    let job = JobId::generate();
    let facts = facts(job, ["opened", "sealed", "stopped"]);
    scene.send(Address::Journal, vec![facts[0].clone()]).await;
    let mut one = open(&*scene.transport).await;
    assert_eq!(catch_up(&mut *one, job).await, facts[..1]);
    scene.send(Address::Journal, vec![facts[1].clone()]).await;
    let mut two = open(&*other).await;
    assert_eq!(catch_up(&mut *two, job).await, facts[..2]);
    scene.send(Address::Journal, vec![facts[2].clone()]).await;
    assert_eq!(follow(&mut *one, job, 2).await, facts[1..]);
    assert_eq!(follow(&mut *two, job, 1).await, facts[2..]);
}

/// A waiting reader receives a fact that is written later.
pub(super) async fn waiting_journal_reader_wakes(scene: &Scene) {
    let job = JobId::generate();
    let mut reader = open(&*scene.transport).await;
    assert_eq!(catch_up(&mut *reader, job).await, []);
    for fact in facts(job, ["opened", "sealed"]) {
        let publish = async {
            sleep(QUIET_PERIOD).await; // so that the reader waits
            scene.send(Address::Journal, vec![fact.clone()]).await;
        };
        let (read, ()) = tokio::join!(follow(&mut *reader, job, 1), publish);
        assert_eq!(read, [fact]);
    }
}

/// A `next` that is dropped before it returns loses no fact.
pub(super) async fn journal_next_is_cancel_safe(scene: &Scene) {
    let job = JobId::generate();
    let facts: Vec<_> = (0..50).map(|id| Message { job: Some(job), ..message(id) }).collect();
    let mut reader = open(&*scene.transport).await;
    scene.send(Address::Journal, facts.clone()).await;
    let (mut seen, mut caught_up, start) = (Vec::new(), 0, Instant::now());
    while seen.len() < facts.len() || caught_up == 0 {
        assert!(start.elapsed() < WAIT_BOUND, "{} of {} facts came", seen.len(), facts.len());
        match reader.next().now_or_never() {
            Some(Ok(JournalEntry::Fact(fact))) if fact.job == Some(job) => seen.push(fact),
            Some(Ok(JournalEntry::Fact(_))) => {}
            Some(Ok(JournalEntry::CaughtUp)) => caught_up += 1,
            Some(Err(error)) => panic!("the journal ended: {error}"),
            None => sleep(Duration::from_millis(1)).await,
        }
        yield_now().await;
    }
    assert!(seen == facts, "the facts did not come each once and in order");
    assert_eq!(caught_up, 1, "how often the reader caught up");
}

fn facts<const N: usize>(job: JobId, names: [&str; N]) -> Vec<Message> {
    names.into_iter().map(|name| Message { job: Some(job), ..message(format!("{job}/{name}")) }).collect()
}

async fn open(transport: &dyn Transport) -> Box<dyn JournalReader> {
    bounded("journal", transport.journal()).await.expect("a journal reader")
}

/// Reads the job's facts until the reader has caught up.
async fn catch_up(reader: &mut dyn JournalReader, job: JobId) -> Vec<Message> {
    let mut facts = Vec::new();
    loop {
        match bounded("catching up with the journal", reader.next()).await.expect("an entry") {
            JournalEntry::Fact(fact) if fact.job == Some(job) => facts.push(fact),
            JournalEntry::Fact(_) => {}
            JournalEntry::CaughtUp => return facts,
        }
    }
}

/// Reads the job's next `count` facts with a reader that has caught up.
async fn follow(reader: &mut dyn JournalReader, job: JobId, count: usize) -> Vec<Message> {
    let mut facts = Vec::new();
    while facts.len() < count {
        match bounded("the next fact", reader.next()).await.expect("an entry") {
            JournalEntry::Fact(fact) if fact.job == Some(job) => facts.push(fact),
            JournalEntry::Fact(_) => {}
            JournalEntry::CaughtUp => panic!("the reader caught up twice"),
        }
    }
    facts
}
