//! What only RabbitMQ does, beside the promises that every transport keeps: see the conformance suite.

mod connecting;
mod consuming;
mod journal_away;
mod lanes;
mod network_faults;
mod outages;
mod publishing;
mod reading;
mod recovery;
mod tcp_proxy;

use std::{sync::Arc, time::Duration};

use gristmill_amqp::{AmqpConfig, AmqpTransport};
use gristmill_shared::{
    Address, Consumer, Delivery, JobId, Lane, Message, Outgoing, Published, Queue, Transport,
};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, QueueDeleteOptions},
};
use tokio::time::timeout;

use crate::broker_url;

/// Nothing here takes longer, or it hangs. Some of it waits for a journal that is away for a while, on a machine with other
/// work.
const BOUND: Duration = Duration::from_secs(60);
/// What must not come does not come for so long.
const QUIET: Duration = Duration::from_millis(300);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(BOUND, future).await.expect("it hangs")
}

async fn connect() -> Arc<AmqpTransport> {
    within(AmqpTransport::connect(AmqpConfig::new(&broker_url()).unwrap())).await.unwrap()
}

/// A connection, and a lane that nobody else uses.
async fn open() -> (Arc<AmqpTransport>, Lane) {
    let transport = connect().await;
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    within(transport.open_lane(&lane)).await.unwrap();
    (transport, lane)
}

fn message(id: impl ToString) -> Message {
    Message { id: id.to_string(), form: "test".into(), body: "{}".into(), ..Message::default() }
}

fn to(queue: &Queue, message: Message) -> Outgoing {
    Outgoing { to: Address::Queue(queue.clone()), message }
}

fn numbered(queue: &Queue, numbers: std::ops::Range<usize>) -> Vec<Outgoing> {
    numbers.map(|number| to(queue, message(number))).collect()
}

async fn publish(transport: &AmqpTransport, batch: Vec<Outgoing>) -> Vec<Published> {
    let publisher = transport.publisher().await.unwrap();
    within(publisher.publish(batch)).await
}

async fn store(transport: &AmqpTransport, batch: Vec<Outgoing>) {
    for answer in publish(transport, batch).await {
        assert_eq!(answer, Published::Stored);
    }
}

/// The next `count` deliveries.
async fn take(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        deliveries.extend(within(consumer.recv(count - deliveries.len())).await.unwrap());
    }
    deliveries
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.message.id.as_str()).collect()
}

async fn nothing_comes(consumer: &mut Box<dyn Consumer>) {
    assert!(timeout(QUIET, consumer.recv(1)).await.is_err(), "something came");
}

/// What is there, taken and acked by a consumer that goes again.
async fn drain(transport: &AmqpTransport, queue: &Queue, count: usize) -> Vec<Message> {
    let mut consumer = transport.consume(queue, 200).await.unwrap();
    let mut messages = Vec::new();
    while messages.len() < count {
        for delivery in within(consumer.recv(200)).await.unwrap() {
            delivery.receipt.ack();
            messages.push(delivery.message);
        }
    }
    within(consumer.close()).await;
    messages
}

/// Past our own code: as an operator or another language would.
struct ByHand {
    _connection: Connection,
    channel: Channel,
}

impl ByHand {
    async fn open() -> Self {
        Self::open_at(&broker_url()).await
    }

    async fn open_at(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        Self { channel: connection.create_channel().await.unwrap(), _connection: connection }
    }

    async fn publish(&self, queue: &Queue, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions::default();
        self.channel
            .basic_publish("".into(), queue.to_string().into(), options, body, properties)
            .await
            .unwrap();
    }

    async fn delete(&self, queue: &Queue) {
        self.channel.queue_delete(queue.to_string().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}
