//! The documents, alerts and dashboards agree with the catalogue of metrics.

use gristmill_shared::metrics::{METRIC_CATALOGUE, MetricSpec, MetricType};

use super::files;

/// Returns the names of our metrics in a text, without the suffixes of a histogram's series.
fn metric_names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'))
        .filter(|word| word.starts_with("gristmill_"))
        .map(|word| {
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|part| word.strip_suffix(part)).unwrap_or(word);
            let is_histogram = |listed: &&MetricSpec| matches!(listed.shape, MetricType::Histogram(_));
            let histogram = METRIC_CATALOGUE.iter().filter(is_histogram).any(|listed| listed.name == family);
            if histogram { family } else { word }
        })
}

/// Returns the row of a metric in the table of `docs/metrics.md`.
fn table_row(MetricSpec { name, shape, labels, help }: &MetricSpec) -> String {
    let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
    let labels = if labels.is_empty() { "—".into() } else { labels.join(", ") };
    format!("| `{name}` | {} | {labels} | {help} |", shape.as_str())
}

#[test]
fn documents_name_real_metrics() {
    let mut seen = 0;
    for (path, text) in files(&["json", "yml", "md"]) {
        let looked_at = ["deploy/grafana/", "deploy/prometheus/", "docs/metrics.md"];
        if !looked_at.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        seen += 1;
        for name in metric_names(&text) {
            assert!(
                METRIC_CATALOGUE.iter().any(|listed| listed.name == name),
                "{path} names {name}, which is not counted"
            );
        }
    }
    assert!(seen >= 3, "the walk through the checkout missed files that name metrics");
}

#[test]
fn every_metric_is_documented() {
    let documents = files(&["md"]);
    let (_, page) = documents.iter().find(|(path, _)| path == "docs/metrics.md").unwrap();
    let missing: Vec<_> =
        METRIC_CATALOGUE.iter().map(table_row).filter(|row| !page.lines().any(|line| line == row)).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks:\n{}", missing.join("\n"));
}

/// Every alert is explained in docs/metrics.md, and the dashboard is valid JSON.
#[test]
fn every_alert_is_explained() {
    let all = files(&["json", "yml", "md"]);
    let text = |wanted| &all.iter().find(|(path, _)| path == wanted).unwrap().1;
    let page = text("docs/metrics.md");
    let alerts: Vec<_> = text("deploy/prometheus/alerts.yml")
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(
            page.contains(&format!("| `{alert}` |")),
            "docs/metrics.md does not say what to do about {alert}"
        );
    }
    let board: serde_json::Value = serde_json::from_str(text("deploy/grafana/gristmill.json")).unwrap();
    assert!(board["panels"].as_array().is_some_and(|panels| panels.len() > 8));
}

#[test]
fn metric_names_are_found() {
    let text = "rate(gristmill_sink_commit_seconds_bucket{le=\"1\"}[5m]) / gristmill_worker_slots_sum";
    assert_eq!(
        metric_names(text).collect::<Vec<_>>(),
        ["gristmill_sink_commit_seconds", "gristmill_worker_slots_sum"]
    );
}
