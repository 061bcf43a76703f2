//! One broker for all tests of the binary.

use std::sync::{Mutex, OnceLock};

use gristmill::testing::LocalBroker;

/// Returns the URL of the broker that all tests share; every test uses a lane of its own there.
pub(crate) fn broker_url() -> String {
    static SHARED_BROKER: OnceLock<(String, Option<Mutex<LocalBroker>>)> = OnceLock::new();
    let (url, _) = SHARED_BROKER.get_or_init(|| match std::env::var("GRISTMILL_TEST_BROKER") {
        Ok(url) => (url, None),
        // It ends with this process by its watchdog, since a static is never dropped.
        Err(_) => {
            // On a thread without async code, as it requires. Every test needs it, so all wait
            // here.
            let started = std::thread::spawn(LocalBroker::start).join().expect("starting a broker panicked");
            let broker = started.unwrap_or_else(|error| {
                panic!("no broker to test with: {error} (hint: `scripts/test` installs one, or set GRISTMILL_TEST_BROKER)")
            });
            // `scripts/test` sets this if it wants a certain version.
            let wanted = std::env::var("GRISTMILL_TEST_BROKER_VERSION").unwrap_or_default();
            assert!(broker.version().starts_with(&wanted), "RabbitMQ {}, not {wanted}", broker.version());
            (broker.url(), Some(Mutex::new(broker)))
        }
    });
    url.clone()
}
