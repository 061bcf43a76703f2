//! TLS works with the right certificates, and each wrong one has an error of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gristmill::testing::{LocalBroker, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::harness::{NODE_DIGEST, OwnBroker, ProcessOutput, Site};

/// A CA of the test's own, and a directory for what it signs.
struct TestCa {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    /// A CA whose own certificate is `ca.pem`.
    fn new() -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the test's own CA");
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Signs a certificate for this CN, and these hosts if there are any: `NAME.pem` and
    /// `NAME.key`.
    fn sign(&self, name: &str, common_name: &str, hosts: &[&str], years: std::ops::Range<i32>) {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.not_before, params.not_after) =
            (date_time_ymd(years.start, 1, 1), date_time_ymd(years.end, 1, 1));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Returns the files of a broker that is known as `localhost` alone.
    fn server(&self, years: std::ops::Range<i32>, mutual: bool) -> TlsFiles {
        self.sign("server", "rabbit", &["localhost"], years);
        TlsFiles {
            ca: self.path("ca.pem"),
            cert: self.path("server.pem"),
            key: self.path("server.key"),
            mutual,
        }
    }
}

const VALID_YEARS: std::ops::Range<i32> = 2020..2120;

/// Starts a broker with TLS whose certificate is for `localhost` alone, with its CA.
async fn start_broker(mutual: bool) -> (OwnBroker, TestCa) {
    let ca = TestCa::new();
    let files = ca.server(VALID_YEARS, mutual);
    (OwnBroker::start_with(move || LocalBroker::start_with_tls(&files)).await, ca)
}

/// Runs a producer with these files, which has to fail.
async fn fail_submit(site: &Site, url: &str, files: &[(&str, &Path)]) -> ProcessOutput {
    let words = format!("producer submit crack --hash {NODE_DIGEST} --max-length 4");
    let ended =
        site.start_with(&words, |command| command.env("GRISTMILL_BROKER", url).envs(files.iter().copied()));
    let ended = ended.output().await;
    assert!(ended.stderr.lines().count() <= 2 && ended.stdout.is_empty(), "{ended:?}");
    assert!(!ended.stderr.contains("guest:guest"), "the password is shown: {ended:?}");
    ended
}

fn assert_error(ended: &ProcessOutput, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is missing: {ended:?}");
    }
}

/// A job runs over TLS with the right CA, and each wrong certificate is reported.
#[tokio::test]
async fn tls_needs_the_right_certificate() {
    let (broker, ca) = start_broker(false).await;
    let (plain, port) = (broker.url(), broker.with(|broker| broker.tls_port()).await);
    let url = format!("amqps://guest:guest@localhost:{port}");
    let trust = ca.path("ca.pem");
    let trusted = [("GRISTMILL_TLS_CA", trust.as_path())];
    let site = Site::at(url.clone());

    let with_ca = |words: &str| site.start_with(words, |command| command.env("GRISTMILL_TLS_CA", &trust));
    let mut sink = with_ca("sink");
    sink.wait_for("serving").await;
    let worker = with_ca("worker --slots 1");
    let submitted = with_ca(&format!("producer submit crack --hash {NODE_DIGEST} --max-length 4 --wait"));
    assert_eq!(submitted.output().await.answer(), "node");
    assert_eq!((worker.stop().await.code, sink.stop().await.code), (0, 0));

    let other = TestCa::new();
    let wrong_ca = other.path("ca.pem");
    let ended = fail_submit(&site, &url, &[("GRISTMILL_TLS_CA", &wrong_ca)]).await;
    assert_error(&ended, 3, &["its certificate was not signed by a CA that we trust", "--tls-ca FILE"]);

    let by_address = format!("amqps://guest:guest@127.0.0.1:{port}");
    let ended = fail_submit(&site, &by_address, &trusted).await;
    assert_error(
        &ended,
        3,
        &["its certificate is not for \"127.0.0.1\", but for localhost", "(hint: use a name"],
    );

    let plain_port = plain.rsplit(':').next().unwrap();
    let ended = fail_submit(&site, &format!("amqps://guest:guest@localhost:{plain_port}"), &trusted).await;
    assert_error(&ended, 2, &["it does not speak TLS there", "without TLS it is amqp://"]);

    let ended = fail_submit(&site, &format!("amqp://guest:guest@localhost:{port}"), &[]).await;
    assert_error(&ended, 2, &["with TLS it is amqps://"]);

    // A CA that is replaced while a sink is connected: the file is read again.
    let mut sink = with_ca("sink");
    sink.wait_for("serving").await;
    let files = other.server(VALID_YEARS, false);
    fs::copy(&files.ca, &trust).unwrap();
    broker.with(move |broker| broker.renew_tls(&files)).await.unwrap();
    broker.ctl("close_all_connections renewed").await;
    sink.wait_for("again after").await;
    assert_eq!(sink.stop().await.code, 0);

    // The same broker, with certificates of other years.
    for (years, part) in
        [(2001..2002, "its certificate has expired"), (2110..2120, "is not valid yet, only in")]
    {
        let files = other.server(years, false);
        broker.with(move |broker| broker.renew_tls(&files)).await.unwrap();
        assert_error(&fail_submit(&site, &url, &trusted).await, 3, &[part, "correct a wrong clock"]);
    }
}

/// A client certificate names the user if the URL has none.
#[tokio::test]
async fn client_certificate_is_the_user() {
    let (broker, ca) = start_broker(true).await;
    broker.ctl("add_user mill not-the-password").await;
    broker.ctl("set_permissions mill .* .* .*").await;
    let port = broker.with(|broker| broker.tls_port()).await;
    let url = format!("amqps://localhost:{port}");
    ca.sign("mill", "mill", &[], VALID_YEARS);
    ca.sign("stranger", "stranger", &[], VALID_YEARS);
    let trust = ca.path("ca.pem");
    let site = Site::at(url.clone());

    let (cert, key) = (ca.path("mill.pem"), ca.path("mill.key"));
    let ours = [("GRISTMILL_TLS_CA", &*trust), ("GRISTMILL_TLS_CERT", &*cert), ("GRISTMILL_TLS_KEY", &*key)];
    let mut sink = site.start_with("sink", |command| command.envs(ours));
    sink.wait_for("serving").await;
    let users = broker.ctl("list_connections user").await;
    assert!(users.contains("mill") && !users.contains("guest"), "{users}");
    assert_eq!(sink.stop().await.code, 0);

    let ended = fail_submit(&site, &url, &[("GRISTMILL_TLS_CA", &trust)]).await;
    assert_error(
        &ended,
        3,
        &["the broker wants a client certificate", "(hint: --tls-cert FILE and --tls-key FILE)"],
    );

    let as_stranger = |cert: &'static str, key: &'static str| {
        let (cert, key) = (ca.path(cert), ca.path(key));
        let (site, url, trust) = (&site, &url, &trust);
        async move {
            let files = [
                ("GRISTMILL_TLS_CA", &**trust),
                ("GRISTMILL_TLS_CERT", &*cert),
                ("GRISTMILL_TLS_KEY", &*key),
            ];
            fail_submit(site, url, &files).await
        }
    };
    assert_error(&as_stranger("stranger.pem", "stranger.key").await, 3, &["refuses", "ACCESS_REFUSED"]);
    let parts = ["the key in", "mill.key does not match the certificate in", "stranger.pem"];
    assert_error(&as_stranger("stranger.pem", "mill.key").await, 2, &parts);
    let parts = ["cannot read the certificate file", "nobody.pem: No such file"];
    assert_error(&as_stranger("nobody.pem", "mill.key").await, 2, &parts);
    let parts = ["mill.pem holds no private key", "-----BEGIN PRIVATE KEY-----"];
    assert_error(&as_stranger("mill.pem", "mill.pem").await, 2, &parts);

    // A client whose certificate the broker's CA did not sign is refused by the handshake.
    let other = TestCa::new();
    other.sign("mill", "mill", &[], VALID_YEARS);
    let (cert, key) = (other.path("mill.pem"), other.path("mill.key"));
    let files = [("GRISTMILL_TLS_CA", &*trust), ("GRISTMILL_TLS_CERT", &*cert), ("GRISTMILL_TLS_KEY", &*key)];
    let ended = fail_submit(&site, &url, &files).await;
    assert_error(&ended, 3, &["the broker does not accept our certificate", "--tls-cert"]);
}
