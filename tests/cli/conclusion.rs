//! A job of which tasks failed prints no answer.

use crate::harness::Site;

#[tokio::test]
async fn half_failed_job_prints_no_answer() {
    for (failing, report) in [
        ("--panic 0 --panic 1", "2 of 2 tasks failed; partial report: 0 tasks, sum 0"),
        ("--panic 0", "1 of 2 tasks failed; partial report: 1 tasks, sum 1"),
    ] {
        let words = format!("gristmill run spin --tasks 2 --max-attempts 1 {failing}");
        let ended = Site::new().run(&words).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
        assert!(ended.stderr.lines().any(|line| line == format!("no answer: {report}")), "{ended:?}");
    }
}
