//! A job that is spread over several queues of tasks.

use std::sync::Arc;

use gristmill_producer::{CursorDir, Producer, SubmitOptions};
use gristmill_shared::{
    Lane, QueueRole, Registry, Shards, TASKS_MAX_MESSAGES, Transport, erase, memory::MemoryTransport,
};

use crate::harness::{Count, consume, count, drain, first_and_count, options, within};

/// Batches go to existing shards in turn, also after the job is resumed.
#[tokio::test]
async fn shards_take_batches_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let cursors = CursorDir::new(dir.path());
    let mut registry = Registry::default();
    registry.register::<Count>().unwrap();
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let producer = Producer::new(Arc::clone(&transport), "test").cursors(cursors.clone(), "1");
    let three = Shards::new(3).unwrap();
    let options = SubmitOptions { shards: three, ..options(1) };

    transport.open_lane(&Lane::default()).await.unwrap();
    transport.open_shards(&Lane::default(), Shards::new(2).unwrap()).await.unwrap();
    let refused = producer.open(erase(count(9)), options.clone()).await.unwrap_err();
    assert!(refused.to_string().starts_with("lane default has 2 of the 3 shards"), "{refused}");
    assert!(
        drain(&*transport, QueueRole::Results).await.is_empty(),
        "a refused job was announced to the sink"
    );

    transport.open_shards(&Lane::default(), three).await.unwrap();
    let firsts = async || {
        let mut firsts = Vec::new();
        for shard in three.queues() {
            let there = drain(&*transport, shard).await;
            firsts.push(there.iter().map(|message| first_and_count(message).0).collect::<Vec<_>>());
        }
        firsts
    };
    let submission = producer.open(erase(count(9)), options).await.unwrap();
    let job = submission.id();
    let fresh = cursors.load(job).unwrap();
    within(submission.send()).await.unwrap();
    let in_turn = [[0, 3, 6], [1, 4, 7], [2, 5, 8]].map(Vec::from);
    assert_eq!(firsts().await, in_turn);
    within(producer.resume(&registry, fresh).await.unwrap().send()).await.unwrap();
    assert_eq!(firsts().await, in_turn, "resumed");
}

/// A full shard without a consumer does not block the other shards.
#[tokio::test]
async fn full_shard_yields_to_others() {
    let transport: Arc<dyn Transport> = MemoryTransport::new();
    let two = Shards::new(2).unwrap();
    transport.open_lane(&Lane::default()).await.unwrap();
    transport.open_shards(&Lane::default(), two).await.unwrap();
    let total = 2 * TASKS_MAX_MESSAGES + 100;
    let mut other = consume(&*transport, two.last()).await;
    let taking = tokio::spawn(async move {
        loop {
            for delivery in other.recv(500).await.unwrap() {
                delivery.receipt.ack();
            }
        }
    });
    let producer = Producer::new(Arc::clone(&transport), "test");
    let options = SubmitOptions { shards: two, ..options(1) };
    let submission = producer.open(erase(count(total)), options).await.unwrap();
    assert_eq!(within(submission.send()).await.unwrap().sent, total);
    assert_eq!(drain(&*transport, QueueRole::Tasks).await.len() as u64, TASKS_MAX_MESSAGES);
    taking.abort();
}
