//! `crack`: finds the word of a digest by trying all words.

mod alphabet;
mod rows;
mod target_digest;

use std::ops::{ControlFlow, Range};

use gristmill_shared::{Account, Conclusion, Job, JobError, Plan, TaskContext, TaskError, TaskIndex};
use serde::{Deserialize, Serialize};

pub use self::target_digest::Algorithm;
use self::{alphabet::Alphabet, target_digest::TargetDigest};
use crate::pieces;

/// The most letters a word may have.
const MAX_LENGTH: u32 = 1024;

/// Find the word behind a SHA-1, SHA-256 or MD5 digest.
///
/// Words are tried in the order a, b, …, z, aa, ab, … (without the empty word)
/// until one matches.
///
/// Examples:
///   gristmill run crack --hash f8e966d1e207d02c44511a58dccff2f5429e9a3b --max-length 4
///   producer submit crack --hash 900150983cd24fb0d6963f7d28e17f72 \
///     --max-length 5 --alphabet a-z0-9_ --wait
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Crack {
    /// The digest, in hex: SHA-1, SHA-256 or MD5
    ///
    /// 40 digits are SHA-1, 64 SHA-256, 32 MD5.
    #[arg(long, value_name = "HEX")]
    pub hash: String,

    /// Algorithm of the digest [default: the one of its length]
    ///
    /// Must match the length.
    #[arg(long)]
    #[serde(default)]
    pub algorithm: Option<Algorithm>,

    /// The longest word to try, in letters
    #[arg(long, value_name = "N")]
    pub max_length: u32,

    /// The letters of a word, as in a-z0-9_
    ///
    /// Ranges and single letters. A literal '-' goes first or last; a letter given twice counts
    /// once.
    #[arg(long, value_name = "LETTERS", default_value = DEFAULT_ALPHABET, allow_hyphen_values = true)]
    #[serde(default = "default_alphabet")]
    pub alphabet: String,

    /// The candidates of one task
    #[arg(long, value_name = "CANDIDATES", default_value_t = DEFAULT_CHUNK)]
    #[serde(default = "default_chunk")]
    pub chunk: u64,
}

const DEFAULT_ALPHABET: &str = "a-z";
const DEFAULT_CHUNK: u64 = 10_000;

fn default_alphabet() -> String {
    DEFAULT_ALPHABET.into()
}

const fn default_chunk() -> u64 {
    DEFAULT_CHUNK
}

/// The state of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrackReport {
    /// The word, once it is found.
    pub word: Option<String>,
    /// The number of candidates in finished chunks. The chunk with the word counts in full.
    pub searched: u64,
}

/// A valid spec, parsed.
struct CrackSearch {
    digest: TargetDigest,
    alphabet: Alphabet,
    /// The number of all candidates.
    size: u64,
}

impl Crack {
    /// Checks and parses the spec. Takes about a microsecond, so it can be done for every task.
    fn search(&self) -> Result<CrackSearch, JobError> {
        let digest = TargetDigest::parse(&self.hash, self.algorithm)?;
        let alphabet = Alphabet::parse(&self.alphabet)?;
        let max_length = self.max_length;
        if !(1..=MAX_LENGTH).contains(&max_length) {
            return Err(JobError::new(format!(
                "--max-length {max_length}: expected 1 to {MAX_LENGTH} letters"
            )));
        }
        if self.chunk == 0 {
            return Err(JobError::new("--chunk 0: expected at least 1 candidate a task"));
        }
        let size = alphabet.words(max_length).map_err(|size| {
            JobError::new(format!(
                "{size} candidates of up to {max_length} letters are more than can be numbered, expected at most {} \
                 (hint: a smaller --max-length or --alphabet)",
                group_thousands(u64::MAX.into())
            ))
        })?;
        Ok(CrackSearch { digest, alphabet, size })
    }
}

impl Job for Crack {
    const KIND: &'static str = "crack";
    /// A range of candidates by number; 0 is the first letter alone.
    type Task = Range<u64>;
    /// The word, if it is in the range.
    type Output = Option<String>;
    type Report = CrackReport;

    fn plan(&self) -> Result<Plan, JobError> {
        Ok(Plan::of(pieces::piece_count(self.search()?.size, self.chunk)).unit("chunks"))
    }

    fn split(&self) -> impl Iterator<Item = Result<Range<u64>, JobError>> + Send {
        self.split_from(TaskIndex(0))
    }

    fn split_from(&self, index: TaskIndex) -> impl Iterator<Item = Result<Range<u64>, JobError>> + Send {
        let (size, refused) = match self.search() {
            Ok(search) => (search.size, None),
            Err(error) => (0, Some(Err(error))),
        };
        pieces::pieces_from(index.0, size, self.chunk).map(Ok).chain(refused)
    }

    fn process(&self, task: Range<u64>, cx: &TaskContext) -> Result<Option<String>, TaskError> {
        let search = self.search().map_err(TaskError::reject)?;
        if task.start > task.end || task.end > search.size {
            return Err(TaskError::reject(format!("candidates {task:?} are not within 0..{}", search.size)));
        }
        search.digest.find(search.alphabet.letters(), task.start, task.end - task.start, cx)
    }

    fn collect(&self, report: &mut CrackReport, index: TaskIndex, output: Option<String>) -> ControlFlow<()> {
        let size = self.search().map_or(0, |search| search.size);
        let left = size.saturating_sub(index.0.saturating_mul(self.chunk));
        report.searched = report.searched.saturating_add(left.min(self.chunk));
        match output {
            None => ControlFlow::Continue(()),
            found => {
                report.word = found;
                ControlFlow::Break(())
            }
        }
    }

    fn conclude(&self, report: &CrackReport, account: &Account) -> Conclusion {
        if let Some(word) = &report.word {
            return Conclusion::answer(word);
        }
        let searched = group_thousands(report.searched.into());
        match self.search() {
            Err(error) => Conclusion::no_answer(error.to_string()),
            Ok(search) if search.size == report.searched => {
                Conclusion::no_answer(format!("all {searched} candidates were searched and none fits"))
            }
            Ok(search) => Conclusion::no_answer(format!(
                "only {searched} of {} candidates were searched and none fits (failed chunks: {}, skipped: {})",
                group_thousands(search.size.into()),
                group_thousands(account.failed.into()),
                group_thousands(account.skipped.into()),
            )),
        }
    }
}

/// Formats a number with a comma between thousands.
fn group_thousands(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{FailureKind, JobId, StopSignal};

    use super::*;

    fn crack(hash: &str, max_length: u32) -> Crack {
        Crack {
            hash: hash.into(),
            algorithm: None,
            max_length,
            alphabet: default_alphabet(),
            chunk: default_chunk(),
        }
    }

    const ZERO_DIGEST: &str = "0000000000000000000000000000000000000000";

    #[test]
    fn plan_counts_chunks() {
        assert_eq!(crack(ZERO_DIGEST, 4).plan().unwrap(), Plan::of(48).unit("chunks"));
        assert_eq!(crack(ZERO_DIGEST, 1).plan().unwrap().tasks, Some(1));
    }

    #[test]
    fn bad_specs_are_refused() {
        let good = crack(ZERO_DIGEST, 4);
        for (bad, why) in [
            (Crack { hash: "f00".into(), ..good.clone() }, "3 hex digits"),
            (Crack { max_length: 0, ..good.clone() }, "--max-length 0: expected 1 to 1024"),
            (Crack { max_length: 1025, ..good.clone() }, "--max-length 1025"),
            (Crack { alphabet: String::new(), ..good.clone() }, "no letters"),
            (Crack { chunk: 0, ..good.clone() }, "--chunk 0"),
            (Crack { max_length: 14, ..good.clone() }, "67,090,373,691,429,037,014 candidates"),
            (Crack { algorithm: Some(Algorithm::Sha256), ..good.clone() }, "expected 64 for sha256"),
        ] {
            let error = bad.plan().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.lines().count() <= 2, "{error}");
            assert!(bad.split().any(|task| task.is_err()), "a split that says nothing");
        }
    }

    #[test]
    fn spec_fields_have_defaults() {
        let spec: Crack =
            serde_json::from_str(&format!(r#"{{"hash":"{ZERO_DIGEST}","max_length":4}}"#)).unwrap();
        assert_eq!(spec, crack(ZERO_DIGEST, 4));
    }

    #[test]
    fn conclusion_states_coverage() {
        let job = crack(ZERO_DIGEST, 4);
        let mut report = CrackReport::default();
        for index in (0..48).rev() {
            assert!(job.collect(&mut report, TaskIndex(index), None).is_continue());
        }
        let text = "all 475,254 candidates were searched and none fits";
        assert_eq!(job.conclude(&report, &Account::default()), Conclusion::no_answer(text));

        report.searched -= 10_000;
        let account = Account { failed: 1, ..Account::default() };
        let text =
            "only 465,254 of 475,254 candidates were searched and none fits (failed chunks: 1, skipped: 0)";
        assert_eq!(job.conclude(&report, &account), Conclusion::no_answer(text));

        assert!(job.collect(&mut report, TaskIndex(0), Some("node".into())).is_break());
        assert_eq!(job.conclude(&report, &account), Conclusion::answer("node"));
    }

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (475_254, "475,254"), (1_000_000, "1,000,000")]
        {
            assert_eq!(group_thousands(number), text);
        }
    }

    #[test]
    fn foreign_task_is_rejected() {
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        #[expect(clippy::reversed_empty_ranges, reason = "that is one of them")]
        for task in [475_250..475_255, 7..6] {
            let trouble = crack(ZERO_DIGEST, 4).process(task, &cx).unwrap_err().into_kind();
            assert!(
                matches!(&trouble, FailureKind::Rejected(why) if why.contains("not within 0..475254")),
                "{trouble:?}"
            );
        }
    }
}
