//! Bare lapin: loops that publish, relay and consume, and nothing else. What everything of ours is divided by.
//!
//! They give the promises that we give, at the least cost that lapin has for it: durable quorum queues, persistent and
//! mandatory messages, confirmed; a message is acked after what follows from it was confirmed. Publishes are polled
//! together, so that they share a write, and acks cover all up to a message.

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

use crate::Outcome;

/// How many messages may be unconfirmed.
pub(crate) const WINDOW: u64 = 1_000;
/// How many deliveries may be unacked.
const PREFETCH: u16 = 500;
/// How many publishes share a write, or deliveries an ack.
const TOGETHER: usize = 250;
/// The body: the message's number and padding, about what a batch with a single task has beside its headers.
const BODY_BYTES: usize = 64;

/// What a process of the baseline does. Each says `ready` on stdout, waits for a line on stdin, does it, and says what it
/// has counted.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Loop {
    /// Publishes so many messages, confirmed.
    Publish { url: String, to: String, count: u64 },
    /// Takes so many messages, publishes each again, confirmed, and then acks it.
    Relay { url: String, from: String, to: String, count: u64 },
    /// Takes so many different messages and acks them.
    Consume { url: String, from: String, count: u64 },
}

/// Runs a process of the baseline.
pub(crate) async fn run(what: Loop) -> Outcome<()> {
    let (Loop::Publish { url, .. } | Loop::Relay { url, .. } | Loop::Consume { url, .. }) = &what;
    let connection = connect(url).await?;
    let channel = channel(&connection).await?;
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?; // nothing else is to be done in this process meanwhile
    let counted = match what {
        Loop::Publish { to, count, .. } => publish(&channel, &to, count).await?,
        Loop::Relay { from, to, count, .. } => relay(&channel, &from, &to, count).await?,
        Loop::Consume { from, count, .. } => consume(&channel, &from, count).await?,
    };
    println!("{counted}");
    Ok(connection.close(200, "done".into()).await?)
}

/// A connection of lapin's, as it comes.
pub(crate) async fn connect(url: &str) -> Outcome<Connection> {
    Ok(Connection::connect(url, ConnectionProperties::default()).await?)
}

/// A channel that confirms, and that holds the baseline's number of deliveries.
pub(crate) async fn channel(connection: &Connection) -> Outcome<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    Ok(channel)
}

/// Makes an empty queue of the kind that ours are.
pub(crate) async fn make_queue(channel: &Channel, name: &str) -> Outcome<()> {
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), options, arguments).await?;
    Ok(())
}

/// Publishes these bodies, polled together, and waits until the broker has written each of them down.
pub(crate) async fn publish_all(channel: &Channel, to: &str, bodies: Vec<Vec<u8>>) -> Outcome<u64> {
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

/// The body of the message with this number.
pub(crate) fn body(number: u64) -> Vec<u8> {
    let mut body = vec![b'.'; BODY_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body
}

fn number_of(body: &[u8]) -> Outcome<u64> {
    Ok(u64::from_be_bytes(*body.first_chunk().ok_or("a message that is none of ours")?))
}

async fn publish(channel: &Channel, to: &str, count: u64) -> Outcome<u64> {
    let mut waves = (0..count).step_by(TOGETHER).map(|first| first..count.min(first + TOGETHER as u64));
    let mut under_way = FuturesOrdered::new();
    let (mut unconfirmed, mut confirmed) = (0, 0);
    loop {
        if unconfirmed + TOGETHER as u64 <= WINDOW
            && let Some(wave) = waves.next()
        {
            unconfirmed += wave.end - wave.start;
            let wave = publish_all(channel, to, wave.map(body).collect());
            under_way.push_back(wave);
        } else if let Some(stored) = under_way.next().await {
            let stored: u64 = stored?;
            unconfirmed -= stored;
            confirmed += stored;
        } else {
            return Ok(confirmed);
        }
    }
}

async fn relay(channel: &Channel, from: &str, to: &str, count: u64) -> Outcome<u64> {
    let consumer = consumer(channel, from).await?;
    let mut deliveries = consumer.ready_chunks(TOGETHER);
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

async fn consume(channel: &Channel, from: &str, count: u64) -> Outcome<u64> {
    let consumer = consumer(channel, from).await?;
    let mut deliveries = consumer.ready_chunks(TOGETHER);
    let mut seen = HashSet::new();
    while (seen.len() as u64) < count {
        let chunk = deliveries.next().await.ok_or("the consumer ended")?;
        let mut last = 0;
        for delivery in chunk {
            let delivery = delivery?;
            seen.insert(number_of(&delivery.data)?);
            last = delivery.delivery_tag;
        }
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
    }
    Ok(seen.len() as u64)
}

/// Takes messages from a queue.
pub(crate) async fn consumer(channel: &Channel, from: &str) -> Outcome<lapin::Consumer> {
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(from.into(), "".into(), options, FieldTable::default()).await?)
}
