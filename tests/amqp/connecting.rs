//! Connecting and closing: the end of a transport, refused logins and unreachable brokers.

use std::time::Instant;

use gristmill_shared::{EventFilter, QueueRole, TransportError};

use super::*;

/// Bound for what needs no waiting: far longer than it takes, far below what a connection may take.
const CONNECT_BOUND: Duration = Duration::from_secs(15);

/// A closed transport has sent its acks, and every later call fails as disconnected.
#[tokio::test]
async fn close_flushes_acks_then_fails() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    store(&transport, numbered(&queue, 0..3)).await;
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    let mut idle = transport.consume(&QueueRole::Requeued.of(&lane), 10).await.unwrap();
    let mut events = transport.events(EventFilter::Lane(lane.clone())).await.unwrap();
    let publisher = transport.publisher().await.unwrap();
    let mut held = receive(&mut consumer, 3).await;
    held.remove(0).receipt.ack();
    let waiting = tokio::spawn(async move { idle.recv(1).await.map(drop) });
    within(transport.close()).await;
    for result in [
        within(waiting).await.unwrap(),
        within(consumer.recv(1)).await.map(drop),
        within(events.next()).await.map(drop),
        within(transport.open_lane(&lane)).await,
        within(transport.publisher()).await.map(drop),
        within(transport.consume(&queue, 1)).await.map(drop),
        within(transport.journal()).await.map(drop),
    ] {
        assert!(matches!(result, Err(TransportError::Disconnected { .. })), "{result:?}");
    }
    assert_eq!(
        within(publisher.publish(numbered(&queue, 0..2))).await,
        [Published::Unknown, Published::Unknown]
    );
    held.into_iter().for_each(|delivery| delivery.receipt.ack());
    let mut left: Vec<_> =
        drain(&*connect().await, &queue, 2).await.into_iter().map(|message| message.id).collect();
    left.sort();
    assert_eq!(left, ["1", "2"]);
}

/// Publishers and consumers keep working after their transport is dropped.
#[tokio::test]
async fn handles_outlive_their_transport() {
    let (transport, lane) = open().await;
    let queue = QueueRole::Tasks.of(&lane);
    let publisher = transport.publisher().await.unwrap();
    let mut consumer = transport.consume(&queue, 10).await.unwrap();
    drop(transport);
    assert_eq!(within(publisher.publish(numbered(&queue, 0..1))).await, [Published::Confirmed]);
    receive(&mut consumer, 1).await.remove(0).receipt.ack();
    drop((publisher, consumer)); // which closes the connections, on a thread that runs async code
    let mut next = connect().await.consume(&queue, 10).await.unwrap();
    assert_no_delivery(&mut next).await;
}

/// A wrong password or virtual host is denied at once, and the password is not shown.
#[tokio::test]
async fn wrong_login_fails_at_once() {
    let url = broker_url();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, place) = rest.split_once('@').unwrap();
    let place = place.split('/').next().unwrap();
    let wrong_password = format!("{scheme}://nobody:sesame@{place}");
    let wrong_vhost = format!("{scheme}://{user}@{place}/nowhere");
    for (url, hint) in [(wrong_password, "ACCESS_REFUSED"), (wrong_vhost, "nowhere")] {
        let start = Instant::now();
        let error = within(AmqpTransport::connect(AmqpConfig::new(&url).unwrap())).await.unwrap_err();
        assert!(matches!(error, TransportError::AuthenticationFailed { .. }), "{error}");
        assert!(start.elapsed() < CONNECT_BOUND, "{:?}", start.elapsed());
        let text = format!("{error} {error:?}");
        assert!(text.contains(hint) && text.contains(place) && !text.contains("sesame"), "{text}");
    }
}

/// A valid user with an unknown virtual host gets a hint about the virtual host, not the password.
#[tokio::test]
async fn unknown_vhost_is_the_reason() {
    let url = broker_url();
    let host = url.rsplit_once('@').unwrap().1.split('/').next().unwrap();
    let url = format!("amqp://guest@{host}/nowhere");
    let error = within(AmqpTransport::connect(AmqpConfig::new(&url).unwrap())).await.unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("list_vhosts"), "{error}");
    assert!(!error.contains("password"), "{error}");
}

/// A port that is silent or closed is unreachable after the configured time.
#[tokio::test]
async fn connect_gives_up_in_time() {
    // A socket that listens and never answers, and one that is closed.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, reason) in [(silent.local_addr().unwrap(), "no answer"), (closed, "refused")] {
        let mut config = AmqpConfig::new(&format!("amqp://me:sesame@{address}")).unwrap();
        config.give_up_after = Duration::from_secs(1);
        let start = Instant::now();
        let error = within(AmqpTransport::connect(config)).await.unwrap_err();
        assert!(start.elapsed() < CONNECT_BOUND, "{:?}", start.elapsed());
        let TransportError::Unreachable { tries, .. } = &error else { panic!("{error}") };
        assert!(*tries >= 1);
        let text = error.to_string();
        assert!(text.contains(reason) && text.contains(&address.to_string()), "{text}");
        assert!(!text.contains("sesame"), "{text}");
    }
}

/// A server that does not speak AMQP is reported at once.
#[tokio::test]
async fn foreign_protocol_fails_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    let start = Instant::now();
    let config = AmqpConfig::new(&format!("amqp://me:sesame@{address}")).unwrap();
    let error = within(AmqpTransport::connect(config)).await.unwrap_err();
    assert!(matches!(error, TransportError::Invalid(_)), "{error}");
    assert!(start.elapsed() < CONNECT_BOUND, "{:?}", start.elapsed());
    let text = error.to_string();
    assert!(
        text.contains("AMQP") && text.contains(&address.to_string()) && !text.contains("sesame"),
        "{text}"
    );
    server.abort();
}
