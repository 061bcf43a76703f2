//! What a broker says of itself before it knows who asks. lapin keeps that to itself, so it is asked once more.

use std::{io, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};
use lapin::{
    runtime::default_runtime,
    tcp::{AMQPUriTcpExt, TLSConfig},
    types::{AMQPValue, FieldTable, parsing::parse_field_table},
    uri::{AMQPScheme, AMQPUri},
};
use tokio::time::timeout;

use crate::config::AmqpConfig;

/// What a client of AMQP 0-9-1 says first.
const HELLO: &[u8] = b"AMQP\0\0\x09\x01";
/// A method's frame, on channel 0.
const METHOD_FRAME: u8 = 1;
/// `connection.start`, and after it the version of the protocol.
const START: [u8; 6] = [0, 10, 0, 10, 0, 9];
/// The largest greeting that is read, in bytes. RabbitMQ's has about 500.
const GREETING_MAX: usize = 16 << 10;

/// What a broker says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Greeting {
    pub(super) product: String,
    pub(super) version: String,
}

impl Greeting {
    pub(super) async fn hear(config: &AmqpConfig, within: Duration) -> Result<Self, String> {
        match timeout(within, hear(config)).await {
            Ok(Ok(properties)) => Ok(Self::of(&properties)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no greeting within {} s", within.as_secs())),
        }
    }

    fn of(properties: &FieldTable) -> Self {
        let said = |key: &str| match properties.inner().get(key) {
            Some(AMQPValue::LongString(said)) => said.to_string(),
            _ => "unknown".into(),
        };
        Self { product: said("product"), version: said("version") }
    }
}

async fn hear(config: &AmqpConfig) -> io::Result<FieldTable> {
    let runtime = default_runtime().map_err(io::Error::other)?;
    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..config.uri().clone() };
    let mut stream = plain.connect_with_config_async(TLSConfig::default(), &runtime).await?;
    if let Some(tls) = config.tls() {
        let connector = tls.connector().map_err(io::Error::other)?;
        stream = stream.into_rustls(&connector, &plain.authority.host).await?;
    }
    stream.write_all(HELLO).await?;
    stream.flush().await?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [kind, _, _, size @ ..] = head;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if kind != METHOD_FRAME || size > GREETING_MAX {
        return Err(io::Error::other("it does not greet as a broker does"));
    }
    let mut greeting = vec![0; size];
    stream.read_exact(&mut greeting).await?;
    let properties = greeting.strip_prefix(&START).and_then(|rest| parse_field_table(rest).ok());
    properties
        .map(|(_, properties)| properties)
        .ok_or_else(|| io::Error::other("its greeting cannot be read"))
}
