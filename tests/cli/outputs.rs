//! `--keep` and the forms of `sink outputs`.

use serde_json::json;

use crate::harness::Site;

/// Submits a job of three tasks and waits for its end. Returns its id.
async fn submit(site: &Site, keep: &str) -> String {
    let words = format!("producer submit primes --limit 25 --slice 10 {keep} --wait --json");
    let end = site.json(&words).await;
    assert_eq!(end["conclusion"]["text"], "9", "{end}");
    end["job"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn kept_tasks_print_in_all_formats() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 2"));
    let job = submit(&site, "--keep tasks").await;
    let printed = async |flags: &str| site.run(&format!("sink outputs {job} --ordered {flags}")).await.stdout;
    let tasks =
        [json!({"start": 0, "end": 10}), json!({"start": 10, "end": 20}), json!({"start": 20, "end": 25})];

    assert_eq!(printed("").await, "0\t4\n1\t4\n2\t1\n");
    let lines: Vec<String> = tasks
        .iter()
        .zip([4, 4, 1])
        .enumerate()
        .map(|(index, (task, output))| format!("{index}\t{task}\t{output}\n"))
        .collect();
    assert_eq!(sorted_keys(&printed("--with-tasks").await), sorted_keys(&lines.concat()));

    let rows: Vec<serde_json::Value> = printed("--with-tasks --json")
        .await
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows[2], json!({"index": 2, "task": tasks[2], "output": 1}));
    assert_eq!(printed("--json").await.lines().next(), Some(r#"{"index":0,"output":4}"#));

    assert_eq!(printed("--csv").await, "index,output\r\n0,4\r\n1,4\r\n2,1\r\n");
    assert_eq!(
        printed("--csv --with-tasks").await,
        "index,task.start,task.end,output\r\n0,0,10,4\r\n1,10,20,4\r\n2,20,25,1\r\n"
    );

    let exported = site.run(&format!("sink export {job}")).await.stdout;
    let output = exported.lines().find(|line| line.contains("\"index\":1")).unwrap();
    assert!(output.contains(r#""task":{"start":10,"end":20}"#), "{exported}");
    site.verify(&job).await;
}

fn sorted_keys(text: &str) -> Vec<Vec<serde_json::Value>> {
    let values = |line: &str| line.split('\t').map(|part| serde_json::from_str(part).unwrap()).collect();
    text.lines().map(values).collect()
}

/// The kind keeps its report only; outputs are there because the submitter asked for them.
#[tokio::test]
async fn submitter_chooses_what_is_kept() {
    let site = Site::new();
    let _roles = (site.start("sink"), site.start("worker --slots 1"));
    for (keep, flag, told) in [
        ("", "", "keeps no outputs, only its report"),
        ("--keep report", "--csv", "submit with --keep outputs"),
        ("--keep outputs", "--with-tasks", "submit with --keep tasks"),
    ] {
        let job = submit(&site, keep).await;
        let refused = site.run(&format!("sink outputs {job} {flag}")).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{refused:?}");
        assert!(refused.stderr.contains(told), "{refused:?}");
        site.verify(&job).await;
    }
    let job = submit(&site, "--keep outputs").await;
    assert_eq!(site.run(&format!("sink outputs {job}")).await.stdout.lines().count(), 3);
    let shown = site.json(&format!("sink show {job} --json")).await;
    assert_eq!((&shown["keeps_outputs"], &shown["keeps_tasks"]), (&json!(true), &json!(false)));

    let refused = site.run("producer submit primes --limit 25 --keep all").await;
    assert!(refused.code == 2 && refused.stderr.contains("report, outputs or tasks"), "{refused:?}");
    let together = site.run(&format!("sink outputs {job} --csv --json")).await;
    assert_eq!(together.code, 2, "{together:?}");
}
