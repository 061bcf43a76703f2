//! Every promise of `Transport`, on RabbitMQ. (The memory transport's turn is in `shared`.)

use gristmill_amqp::{AmqpConfig, AmqpTransport};
use gristmill_shared::conformance;

use crate::broker_url;

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_keeps_every_promise() {
    let url = broker_url();
    let connect = conformance::connect(move || {
        let config = AmqpConfig::new(&url).unwrap();
        async { AmqpTransport::connect(config).await.unwrap() }
    });
    conformance::check_all(connect).await;
}
