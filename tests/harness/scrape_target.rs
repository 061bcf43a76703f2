//! A client like Prometheus: scrapes a process, and checks the answer by the rules of the text
//! format.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Process, within};

/// The address at which a process serves its metrics.
#[derive(Debug, Clone)]
pub(crate) struct ScrapeTarget(String);

/// The samples of one scrape, by series.
#[derive(Debug)]
pub(crate) struct Samples(BTreeMap<String, f64>);

impl ScrapeTarget {
    /// Reads the address from the process's log.
    pub(crate) async fn from_log(process: &mut Process) -> Self {
        let line = process.wait_for("metrics are at http://").await;
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
        Self(address.into())
    }

    /// Returns the code and the body of a GET.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.0).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.0);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        (code, body.to_owned())
    }

    pub(crate) async fn metrics(&self) -> Samples {
        let (code, text) = self.get("/metrics").await;
        assert_eq!(code, 200, "{text}");
        Samples::read(&text)
    }

    /// Waits until the samples are `enough`, and returns them.
    pub(crate) async fn wait_for_samples(
        &self,
        what: &str,
        enough: impl Fn(&Samples) -> bool + Send + Sync,
    ) -> Samples {
        within(what, async {
            loop {
                let samples = self.metrics().await;
                if enough(&samples) {
                    return samples;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await
    }

    /// Waits until `/readyz` has this code, and returns its body.
    pub(crate) async fn wait_ready(&self, wanted: u16) -> String {
        within("another answer of /readyz", async {
            loop {
                let (code, body) = self.get("/readyz").await;
                if code == wanted {
                    return body;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await
    }
}

impl Samples {
    /// Returns the sum over all series of that name whose labels contain `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &str) -> f64 {
        let of_name = self.0.iter().filter(|(series, _)| series.split('{').next() == Some(name));
        of_name.filter(|(series, _)| series.contains(labels)).map(|(_, value)| value).sum()
    }

    /// True if there is such a series.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.keys().any(|series| series.split('{').next() == Some(name))
    }

    /// Reads the text; panics where it breaks a rule.
    pub(crate) fn read(text: &str) -> Self {
        let mut samples = BTreeMap::new();
        let (mut families, mut family, mut kind) = (BTreeSet::new(), String::new(), String::new());
        assert!(text.ends_with('\n'), "the last line is not ended");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty() && families.insert(name.to_owned()), "a family twice: {line}");
                (family, kind) = (name.to_owned(), String::new());
            } else if let Some(of) = line.strip_prefix("# TYPE ") {
                let (name, of) = of.split_once(' ').unwrap();
                assert!(name == family && ["counter", "gauge", "histogram"].contains(&of), "{line}");
                assert_eq!(name.ends_with("_total"), of == "counter", "{line}");
                of.clone_into(&mut kind);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let parts: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                let of_family = parts.iter().any(|part| name == format!("{family}{part}"));
                assert!(of_family && !kind.is_empty(), "not of {family}: {line}");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(kind == "gauge" || value >= 0.0, "{line}");
                assert!(samples.insert(series.to_owned(), value).is_none(), "a series twice: {line}");
                if name.ends_with("_count") && kind == "histogram" {
                    let labels = series[name.len()..].trim_matches(['{', '}']);
                    let comma = if labels.is_empty() { "" } else { "," };
                    let all = format!("{family}_bucket{{{labels}{comma}le=\"+Inf\"}}");
                    assert_eq!(samples.get(&all), Some(&value), "{all} is not {line}");
                }
            }
        }
        Self(samples)
    }
}

#[test]
fn bad_metrics_text_is_refused() {
    let good = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\"} 1\n";
    assert!(Samples::read(good).sum("a_total", "b=\"c\"") > 0.5);
    for bad in [
        "a_total 1\n",
        "# HELP a x\n# TYPE a counter\na 1\n",
        "# HELP a x\n# TYPE a gauge\nb 1\n",
        "# HELP a x\n# TYPE a gauge\na x\n",
        "# HELP a x\n# TYPE a gauge\na 1\na 1\n",
        "# HELP a x\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_count 2\n",
        "# HELP a x\n# TYPE a gauge\na 1",
    ] {
        assert!(std::panic::catch_unwind(|| Samples::read(bad)).is_err(), "{bad}");
    }
}
