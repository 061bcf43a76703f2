//! Properties of every built-in job: for any parameters, batches, orders and repetitions, the
//! report equals the one of a sequential computation.

use std::fmt::Debug;

use gristmill_jobs::{Crack, CrackReport, Primes, Spin, SpinWork};
use gristmill_shared::{
    Job, TaskIndex,
    testing::{LocalOutcome, LocalRun, run_local},
};
use proptest::{prelude::*, sample::Index};
use sha2::Digest;

fn local_runs() -> impl Strategy<Value = LocalRun> {
    (1..4_u32, 1..40_u32, any::<u64>()).prop_map(|(repeat, batch, seed)| LocalRun { repeat, batch, seed })
}

/// Runs a job and checks the properties of all jobs: the plan is exact, and the split can start
/// anywhere.
fn run<J: Job<Task: PartialEq + Debug>>(job: &J, how: LocalRun, enter: Index) -> LocalOutcome<J::Report> {
    let all: Vec<_> = job.split().collect::<Result<_, _>>().unwrap();
    assert_eq!(job.plan().unwrap().tasks, Some(all.len() as u64));
    for index in [enter.index(all.len() + 1), all.len(), all.len() + 1] {
        let rest: Vec<_> = job.split_from(TaskIndex(index as u64)).collect::<Result<_, _>>().unwrap();
        assert_eq!(rest, all.get(index..).unwrap_or_default());
    }
    let outcome = run_local(job, how).unwrap();
    let account = &outcome.account;
    assert_eq!(account.done + account.skipped, all.len() as u64, "{account:?}");
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    outcome
}

/// Returns all words of up to `max_length` letters, in order.
fn words(letters: &[char], max_length: u32) -> Vec<String> {
    let mut all = Vec::new();
    let mut longest = vec![String::new()];
    for _ in 0..max_length {
        longest = longest
            .iter()
            .flat_map(|word| letters.iter().map(move |letter| format!("{word}{letter}")))
            .collect();
        all.extend_from_slice(&longest);
    }
    all
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn crack_finds_word_or_searches_all(
        (alphabet, letters, max_length) in prop_oneof![
            Just(("a-z", "abcdefghijklmnopqrstuvwxyz", 2)),
            Just(("x", "x", 200)),
            Just(("01", "01", 9)),
            Just(("-c", "-c", 8)),
            Just(("é-ëa€", "éêëa€", 4)),
        ],
        chunk in 1..300_u64,
        hidden in proptest::option::of(any::<Index>()),
        algorithm in 0..3,
        how in local_runs(),
        enter in any::<Index>(),
    ) {
        let letters: Vec<char> = letters.chars().collect();
        let words = words(&letters, max_length);
        let hidden = hidden.map(|index| index.get(&words).clone());
        let word = hidden.clone().unwrap_or_else(|| "not among them".into());
        let hash = match algorithm {
            0 => hex(sha1::Sha1::digest(word)),
            1 => hex(sha2::Sha256::digest(word)),
            _ => hex(md5::Md5::digest(word)),
        };
        let job = Crack { hash, algorithm: None, max_length, alphabet: alphabet.into(), chunk };
        let LocalOutcome { report, account, conclusion, .. } = run(&job, how, enter);
        let size = words.len() as u64;
        prop_assert_eq!(conclusion.answered, hidden.is_some());
        if hidden.is_none() {
            prop_assert_eq!(account.skipped, 0);
            prop_assert_eq!(report, CrackReport { word: None, searched: size });
        } else {
            prop_assert!(report.searched <= size && report.searched > size.min((account.done - 1) * chunk));
            prop_assert_eq!(report.word, hidden);
        }
    }

    #[test]
    fn primes_match_trial_division(
        limit in 0..4000_u64,
        slice in prop_oneof![1..50_u64, 1..5000_u64, Just(u64::MAX)],
        how in local_runs(),
        enter in any::<Index>(),
    ) {
        let alone = (2..limit).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count();
        let outcome = run(&Primes { limit, slice }, how, enter);
        prop_assert_eq!(outcome.report, alone as u64);
        prop_assert_eq!(outcome.conclusion.text, alone.to_string());
    }

    #[test]
    fn spin_counts_each_task_once(
        tasks in 0..400_u64,
        payload in prop_oneof![Just(0), 1..100_u32],
        fail_rate in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0],
        seed in any::<u64>(),
        floats in any::<bool>(),
        how in local_runs(),
        enter in any::<Index>(),
    ) {
        let job = Spin { tasks, work: SpinWork::default(), payload, fail_rate, seed, floats, ..Spin::default() };
        let outcome = run(&job, how, enter);
        let sum = (0..u128::from(tasks)).sum();
        let expected = job.expected();
        prop_assert_eq!((expected.count, expected.sum, expected.floats.is_some()), (tasks, sum, floats && tasks > 0));
        let floats = expected.floats.as_ref().map_or_else(String::new, |floats| format!(", {floats}"));
        prop_assert_eq!(outcome.report, expected);
        prop_assert_eq!(outcome.conclusion.text, format!("{tasks} tasks, sum {sum}{floats}"));
    }
}
