//! An OpenTelemetry collector: receives spans by OTLP over HTTP, and keeps them.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// A collector that ends with its test.
pub(crate) struct Collector {
    address: std::net::SocketAddr,
    taken: Arc<Mutex<Vec<ExportedSpan>>>,
}

/// A span as it was received.
#[derive(Debug, Clone)]
pub(crate) struct ExportedSpan {
    /// The process that exported it: `service.name`.
    pub(crate) service: String,
    /// The head of the request that brought it, in small letters.
    pub(crate) head: String,
    pub(crate) span: Span,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, taken) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let taking = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(receive_spans(stream, Arc::clone(&taking)));
            }
        });
        Self { address, taken }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the spans received so far.
    pub(crate) fn spans(&self) -> Vec<ExportedSpan> {
        self.taken.lock().unwrap().clone()
    }
}

impl ExportedSpan {
    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(crate) fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Returns the id of the parent; empty if there is none.
    pub(crate) fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Receives the requests of one connection, until it is closed.
async fn receive_spans(stream: TcpStream, taken: Arc<Mutex<Vec<ExportedSpan>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let head = head.to_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        let spans = request.resource_spans.into_iter().flat_map(|of_process| {
            let service = attribute_text(&of_process.resource.unwrap_or_default().attributes, "service.name");
            let spans = of_process.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
            let head = head.clone();
            spans.map(move |span| ExportedSpan { service: service.clone(), head: head.clone(), span })
        });
        taken.lock().unwrap().extend(spans);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    }
}

/// Returns the text of an attribute; empty if there is none.
fn attribute_text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}
