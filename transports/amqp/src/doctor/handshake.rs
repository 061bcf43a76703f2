//! The broker's server properties, which it sends before authentication. lapin does not expose
//! them, so the doctor asks once more.

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

/// First bytes of a client of AMQP 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// A method's frame, on channel 0.
const METHOD_FRAME: u8 = 1;
/// `connection.start`, followed by the version of the protocol.
const CONNECTION_START: [u8; 6] = [0, 10, 0, 10, 0, 9];
/// The largest `connection.start` that is read, in bytes. RabbitMQ's has about 500.
const HANDSHAKE_MAX_BYTES: usize = 16 << 10;

/// The broker's product and version, as it reports them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ServerIdentity {
    pub(super) product: String,
    pub(super) version: String,
}

impl ServerIdentity {
    pub(super) async fn fetch(config: &AmqpConfig, within: Duration) -> Result<Self, String> {
        match timeout(within, read_server_properties(config)).await {
            Ok(Ok(properties)) => Ok(Self::from_properties(&properties)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no reply to the handshake within {} s", within.as_secs())),
        }
    }

    fn from_properties(properties: &FieldTable) -> Self {
        let text = |key: &str| match properties.inner().get(key) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            _ => "unknown".into(),
        };
        Self { product: text("product"), version: text("version") }
    }
}

async fn read_server_properties(config: &AmqpConfig) -> io::Result<FieldTable> {
    let runtime = default_runtime().map_err(io::Error::other)?;
    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..config.uri().clone() };
    let mut stream = plain.connect_with_config_async(TLSConfig::default(), &runtime).await?;
    if let Some(tls) = config.tls() {
        let connector = tls.connector().map_err(io::Error::other)?;
        stream = stream.into_rustls(&connector, &plain.authority.host).await?;
    }
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [kind, _, _, size @ ..] = head;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if kind != METHOD_FRAME || size > HANDSHAKE_MAX_BYTES {
        return Err(io::Error::other("its reply is not that of a broker"));
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await?;
    let properties = payload.strip_prefix(&CONNECTION_START).and_then(|rest| parse_field_table(rest).ok());
    properties
        .map(|(_, properties)| properties)
        .ok_or_else(|| io::Error::other("its server properties cannot be read"))
}
