//! One broker for all tests of the binary.

use std::sync::{Mutex, OnceLock};

use gristmill::testing::LocalBroker;

/// The URL of the broker that all tests share; every test uses a lane of its own there.
pub(crate) fn broker_url() -> String {
    static BROKER: OnceLock<(String, Option<Mutex<LocalBroker>>)> = OnceLock::new();
    let (url, _) = BROKER.get_or_init(|| match std::env::var("GRISTMILL_TEST_BROKER") {
        Ok(url) => (url, None),
        // It ends with this process: a watchdog sees to it, since a static is never dropped.
        Err(_) => {
            // On a thread that runs nothing async, as it asks for; the tests wait for it here, since none goes without.
            let started = std::thread::spawn(LocalBroker::start).join().expect("starting a broker panicked");
            let broker = started.unwrap_or_else(|error| {
                panic!("no broker to test with: {error} (hint: `scripts/test` installs one, or set GRISTMILL_TEST_BROKER)")
            });
            // `scripts/test` says so if it has to be a certain one.
            let wanted = std::env::var("GRISTMILL_TEST_BROKER_VERSION").unwrap_or_default();
            assert!(broker.version().starts_with(&wanted), "RabbitMQ {}, not {wanted}", broker.version());
            (broker.url(), Some(Mutex::new(broker)))
        }
    });
    url.clone()
}
