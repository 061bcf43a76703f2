//! Bare lapin: loops that publish, relay and consume, and nothing else. They are the baseline by
//! which Gristmill's figures are divided.
//!
//! They give the same guarantees at the least cost that lapin has for them: durable quorum queues;
//! persistent, mandatory and confirmed messages; an ack only after everything that follows from a
//! message was confirmed. Publishes are polled together, so that they share a write, and one ack
//! covers all messages up to its own.

use std::{
    collections::HashSet,
    io::{BufRead as _, Write as _},
};

use futures::{StreamExt as _, future::join_all, stream::FuturesOrdered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use crate::BenchResult;

/// The most unconfirmed messages.
pub(crate) const WINDOW_MESSAGES: u64 = 1_000;
/// The most unacked deliveries.
const PREFETCH_MESSAGES: u16 = 500;
/// The number of publishes that share a write, and of deliveries that share an ack.
const CHUNK_MESSAGES: usize = 250;
/// The size of a body: the message's number and padding, about that of a batch with a single task
/// without its headers.
const BODY_BYTES: usize = 64;

/// A process of the baseline. It prints `ready`, waits for a line on stdin, runs, and prints the
/// number of messages that it has counted.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum BareLoop {
    /// Publishes `count` messages with confirms.
    Publish { url: String, to: String, count: u64 },
    /// Consumes `count` messages, publishes each again with a confirm, and then acks it.
    Relay { url: String, from: String, to: String, count: u64 },
    /// Consumes `count` different messages and acks them.
    Consume { url: String, from: String, count: u64 },
}

/// Runs a process of the baseline.
pub(crate) async fn run(command: BareLoop) -> BenchResult<()> {
    let (BareLoop::Publish { url, .. } | BareLoop::Relay { url, .. } | BareLoop::Consume { url, .. }) =
        &command;
    let connection = connect(url).await?;
    let channel = channel(&connection).await?;
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?; // blocks: the process has nothing else to do
    let counted = match command {
        BareLoop::Publish { to, count, .. } => publish(&channel, &to, count).await?,
        BareLoop::Relay { from, to, count, .. } => relay(&channel, &from, &to, count).await?,
        BareLoop::Consume { from, count, .. } => consume(&channel, &from, count).await?,
    };
    println!("{counted}");
    Ok(connection.close(200, "done".into()).await?)
}

/// Opens a lapin connection with its defaults.
pub(crate) async fn connect(url: &str) -> BenchResult<Connection> {
    Ok(Connection::connect(url, ConnectionProperties::default()).await?)
}

/// Opens a channel with confirms and the baseline's prefetch.
pub(crate) async fn channel(connection: &Connection) -> BenchResult<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    channel.basic_qos(PREFETCH_MESSAGES, BasicQosOptions::default()).await?;
    Ok(channel)
}

/// Creates an empty queue of the same type as Gristmill's.
pub(crate) async fn create_queue(channel: &Channel, name: &str) -> BenchResult<()> {
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), options, arguments).await?;
    Ok(())
}

/// Publishes these bodies, polled together, and waits until the broker has confirmed all of them.
pub(crate) async fn publish_all(channel: &Channel, to: &str, bodies: Vec<Vec<u8>>) -> BenchResult<u64> {
    let count = bodies.len() as u64;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let sent = join_all(bodies.iter().map(|body| {
        let persistent = BasicProperties::default().with_delivery_mode(2);
        channel.basic_publish("".into(), to.into(), options, body, persistent)
    }));
    for confirm in sent.await {
        match confirm?.await? {
            Confirmation::Ack(None) => {}
            other => return Err(format!("a message was not stored: {other:?}").into()),
        }
    }
    Ok(count)
}

/// Returns the body of the message with this number.
pub(crate) fn body(number: u64) -> Vec<u8> {
    let mut body = vec![b'.'; BODY_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body
}

fn decode_number(body: &[u8]) -> BenchResult<u64> {
    Ok(u64::from_be_bytes(*body.first_chunk().ok_or("a message that is none of ours")?))
}

async fn publish(channel: &Channel, to: &str, count: u64) -> BenchResult<u64> {
    let mut chunks =
        (0..count).step_by(CHUNK_MESSAGES).map(|first| first..count.min(first + CHUNK_MESSAGES as u64));
    let mut under_way = FuturesOrdered::new();
    let (mut unconfirmed, mut confirmed) = (0, 0);
    loop {
        if unconfirmed + CHUNK_MESSAGES as u64 <= WINDOW_MESSAGES
            && let Some(chunk) = chunks.next()
        {
            unconfirmed += chunk.end - chunk.start;
            let chunk = publish_all(channel, to, chunk.map(body).collect());
            under_way.push_back(chunk);
        } else if let Some(stored) = under_way.next().await {
            let stored: u64 = stored?;
            unconfirmed -= stored;
            confirmed += stored;
        } else {
            return Ok(confirmed);
        }
    }
}

async fn relay(channel: &Channel, from: &str, to: &str, count: u64) -> BenchResult<u64> {
    let consumer = consumer(channel, from).await?;
    let mut deliveries = consumer.ready_chunks(CHUNK_MESSAGES);
    let mut under_way = FuturesOrdered::new();
    let (mut taken, mut relayed) = (0, 0);
    while relayed < count {
        tokio::select! {
            biased;
            Some(stored) = under_way.next(), if !under_way.is_empty() => {
                let (last, stored): (u64, u64) = stored?;
                relayed += stored;
                channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
            }
            chunk = deliveries.next(), if taken < count => {
                let chunk = chunk.ok_or("the consumer ended")?.into_iter().collect::<Result<Vec<_>, _>>()?;
                let last = chunk.last().ok_or("a chunk of nothing")?.delivery_tag;
                taken += chunk.len() as u64;
                let bodies = chunk.into_iter().map(|delivery| delivery.data).collect();
                under_way.push_back(async move {
                    publish_all(channel, to, bodies).await.map(|stored| (last, stored))
                });
            }
        }
    }
    Ok(relayed)
}

async fn consume(channel: &Channel, from: &str, count: u64) -> BenchResult<u64> {
    let consumer = consumer(channel, from).await?;
    let mut deliveries = consumer.ready_chunks(CHUNK_MESSAGES);
    let mut seen = HashSet::new();
    while (seen.len() as u64) < count {
        let chunk = deliveries.next().await.ok_or("the consumer ended")?;
        let mut last = 0;
        for delivery in chunk {
            let delivery = delivery?;
            seen.insert(decode_number(&delivery.data)?);
            last = delivery.delivery_tag;
        }
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
    }
    Ok(seen.len() as u64)
}

/// Starts a consumer of a queue.
pub(crate) async fn consumer(channel: &Channel, from: &str) -> BenchResult<lapin::Consumer> {
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(from.into(), "".into(), options, FieldTable::default()).await?)
}
