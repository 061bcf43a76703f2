//! The transport over RabbitMQ: the promises of every transport (`conformance`), and behaviour that
//! only RabbitMQ has.

mod conformance;
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

/// Bound for every wait: what takes longer hangs. Some tests wait for a journal that is away for a
/// while, on a machine with other work.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time without a delivery after which none is expected.
const QUIET_TIME: Duration = Duration::from_millis(300);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(TEST_TIMEOUT, future).await.expect("it hangs")
}

async fn connect() -> Arc<AmqpTransport> {
    within(AmqpTransport::connect(AmqpConfig::new(&broker_url()).unwrap())).await.unwrap()
}

/// Opens a connection, and a lane of the test's own.
async fn open() -> (Arc<AmqpTransport>, Lane) {
    let transport = connect().await;
    let lane = Lane::new(&format!("amqp-{}", JobId::generate())).unwrap();
    within(transport.open_lane(&lane)).await.unwrap();
    (transport, lane)
}

fn message(id: impl ToString) -> Message {
    Message { id: id.to_string(), form: "test".into(), body: "{}".into(), ..Message::default() }
}

fn outgoing(queue: &Queue, message: Message) -> Outgoing {
    Outgoing { to: Address::Queue(queue.clone()), message }
}

fn numbered(queue: &Queue, numbers: std::ops::Range<usize>) -> Vec<Outgoing> {
    numbers.map(|number| outgoing(queue, message(number))).collect()
}

async fn publish(transport: &AmqpTransport, batch: Vec<Outgoing>) -> Vec<Published> {
    let publisher = transport.publisher().await.unwrap();
    within(publisher.publish(batch)).await
}

async fn store(transport: &AmqpTransport, batch: Vec<Outgoing>) {
    for answer in publish(transport, batch).await {
        assert_eq!(answer, Published::Confirmed);
    }
}

/// Receives the next `count` deliveries.
async fn receive(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        deliveries.extend(within(consumer.recv(count - deliveries.len())).await.unwrap());
    }
    deliveries
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.message.id.as_str()).collect()
}

async fn assert_no_delivery(consumer: &mut Box<dyn Consumer>) {
    assert!(timeout(QUIET_TIME, consumer.recv(1)).await.is_err(), "something came");
}

/// Receives and acks `count` messages with a consumer that is closed afterwards.
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

/// A client without our transport, as an operator or another language has.
struct RawClient {
    _connection: Connection,
    channel: Channel,
}

impl RawClient {
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
