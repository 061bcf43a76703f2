//! Digests by their compression functions: a candidate is a prepared message, hashed without
//! copies.

use clap::ValueEnum;
use gristmill_shared::{JobError, TaskContext, TaskError};
use serde::{Deserialize, Serialize};

use super::{
    alphabet::AlphabetLetter,
    rows::{self, CandidateRows, MessageBlock},
};

/// The number of blocks hashed between two checks for a stop: well under a millisecond.
const CHECK_EVERY: usize = 4096;

// The initial state of each digest: FIPS 180-4 sections 5.3.1 and 5.3.3, RFC 1321 section 3.3.
const SHA1_START: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
const SHA256_START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const MD5_START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The algorithm of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-1, 40 hex digits.
    Sha1,
    /// SHA-256, 64 hex digits.
    Sha256,
    /// MD5, 32 hex digits.
    Md5,
}

impl Algorithm {
    const fn hex_digits(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Md5 => 32,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
        }
    }
}

/// The digest of the wanted word, as the state words of a compression function.
#[derive(Debug)]
pub(super) enum TargetDigest {
    Sha1([u32; 5]),
    Sha256([u32; 8]),
    Md5([u32; 4]),
}

impl TargetDigest {
    /// Parses hex digits in either case. The length determines the algorithm, and must match
    /// `algorithm` if that is given.
    pub(super) fn parse(hex: &str, algorithm: Option<Algorithm>) -> Result<Self, JobError> {
        if let Some(other) = hex.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(JobError::new(format!(
                "--hash {hex:?}: {other:?} is no hex digit, expected 0-9 and a-f"
            )));
        }
        let length = hex.len();
        let Some(found) = Algorithm::value_variants().iter().find(|known| known.hex_digits() == length)
        else {
            return Err(JobError::new(format!(
                "--hash {hex:?}: {length} hex digits, expected 40 for sha1, 64 for sha256 or 32 for md5"
            )));
        };
        if let Some(wanted) = algorithm.filter(|wanted| wanted != found) {
            return Err(JobError::new(format!(
                "--hash {hex:?}: {length} hex digits, expected {} for {} (hint: leave --algorithm out, the length decides)",
                wanted.hex_digits(),
                wanted.name(),
            )));
        }
        Ok(match found {
            Algorithm::Sha1 => Self::Sha1(words(hex)),
            Algorithm::Sha256 => Self::Sha256(words(hex)),
            Algorithm::Md5 => Self::Md5(words(hex).map(u32::swap_bytes)),
        })
    }

    /// Finds the first of `count` words from number `first` on that has this digest.
    ///
    /// # Errors
    /// Only if the task is stopped.
    pub(super) fn find(
        &self,
        letters: &[AlphabetLetter],
        first: u64,
        count: u64,
        cx: &TaskContext,
    ) -> Result<Option<String>, TaskError> {
        let found = match self {
            Self::Sha1(wanted) => {
                let rows = CandidateRows::seek(letters, first, u64::to_be_bytes);
                search(rows, count, wanted, &SHA1_START, sha1::block_api::compress, cx)
            }
            Self::Sha256(wanted) => {
                let rows = CandidateRows::seek(letters, first, u64::to_be_bytes);
                search(rows, count, wanted, &SHA256_START, sha2::block_api::compress256, cx)
            }
            Self::Md5(wanted) => {
                let rows = CandidateRows::seek(letters, first, u64::to_le_bytes);
                search(rows, count, wanted, &MD5_START, md5::block_api::compress, cx)
            }
        }?;
        Ok(found.map(|nth| rows::word(letters, first + nth)))
    }
}

/// Runs the inner loop, compiled once per digest. Returns the position among `count` words, from a
/// place in a row on, of the first that has the digest.
fn search<const N: usize>(
    (mut rows, mut place): (CandidateRows<'_>, usize),
    count: u64,
    wanted: &[u32; N],
    start: &[u32; N],
    compress: impl Fn(&mut [u32; N], &[MessageBlock]),
    cx: &TaskContext,
) -> Result<Option<u64>, TaskError> {
    let mut done = 0;
    let mut unchecked = CHECK_EVERY; // so that the loop begins with a check
    while done < count {
        if unchecked >= CHECK_EVERY {
            cx.check()?;
            unchecked = 0;
        }
        let end = place.saturating_add(usize::try_from(count - done).unwrap_or(usize::MAX)).min(rows.width());
        for (nth, message) in rows.messages(place..end).enumerate() {
            let mut state = *start;
            compress(&mut state, message);
            if state[0] == wanted[0] && state == *wanted {
                return Ok(Some(done + nth as u64));
            }
        }
        done += (end - place) as u64;
        unchecked += (end - place) * rows.blocks();
        rows.advance();
        place = 0;
    }
    Ok(None)
}

/// Parses 8 · N hex digits as big-endian words.
fn words<const N: usize>(hex: &str) -> [u32; N] {
    let mut words = [0; N];
    for (at, digit) in hex.chars().enumerate() {
        words[at / 8] = words[at / 8] << 4 | digit.to_digit(16).unwrap_or_default();
    }
    words
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{FailureKind, JobId, StopSignal, TaskIndex};
    use sha2::Digest as _;

    use super::*;
    use crate::crack::alphabet::Alphabet;

    fn context(stop: StopSignal) -> TaskContext {
        TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop)
    }

    fn hex(bytes: impl AsRef<[u8]>) -> String {
        bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Covers the lengths at which a message needs another block, with letters of one to four
    /// bytes.
    #[test]
    fn words_of_any_length_are_found() {
        let cx = context(StopSignal::new());
        for text in ["x", "ß", "€", "😀"] {
            let alphabet = Alphabet::parse(text).unwrap();
            for length in 1..=140 {
                let word = text.repeat(length);
                for digest in [
                    hex(sha1::Sha1::digest(&word)),
                    hex(sha2::Sha256::digest(&word)).to_uppercase(),
                    hex(md5::Md5::digest(&word)),
                ] {
                    let digest = TargetDigest::parse(&digest, None).unwrap();
                    let (number, found) = (length as u64 - 1, Some(word.clone()));
                    assert_eq!(digest.find(alphabet.letters(), number, 1, &cx).unwrap(), found);
                    assert_eq!(digest.find(alphabet.letters(), 0, number, &cx).unwrap(), None, "too early");
                    assert_eq!(digest.find(alphabet.letters(), 0, 140, &cx).unwrap(), found);
                }
            }
        }
    }

    #[test]
    fn one_bit_off_matches_nothing() {
        let cx = context(StopSignal::new());
        let alphabet = Alphabet::parse("a-z").unwrap();
        let right = hex(sha1::Sha1::digest("node"));
        for at in 0..40 {
            let digit = right[at..=at].chars().next().unwrap().to_digit(16).unwrap() ^ 1;
            let wrong = format!("{}{digit:x}{}", &right[..at], &right[at + 1..]);
            let number = 26 + 676 + 17_576 + 13 * 17_576 + 14 * 676 + 3 * 26 + 4;
            let find = |hex: &str| {
                TargetDigest::parse(hex, None).unwrap().find(alphabet.letters(), number, 1, &cx).unwrap()
            };
            assert_eq!(find(&right).as_deref(), Some("node"));
            assert_eq!(find(&wrong), None);
        }
    }

    #[test]
    fn stopped_search_does_not_start() {
        let stop = StopSignal::new();
        stop.stop();
        let alphabet = Alphabet::parse("a-z").unwrap();
        let digest = TargetDigest::parse(&"0".repeat(40), None).unwrap();
        let trouble = digest.find(alphabet.letters(), 0, u64::MAX, &context(stop)).unwrap_err().into_kind();
        assert_eq!(trouble, FailureKind::Stopped);
    }

    #[test]
    fn stop_ends_a_running_search() {
        let stop = StopSignal::new();
        let alphabet = Alphabet::parse("a-z").unwrap();
        let digest = TargetDigest::parse(&"0".repeat(40), None).unwrap();
        let search = |count, stop| digest.find(alphabet.letters(), 0, count, &context(stop));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(search(100_000, StopSignal::new()).unwrap(), None); // until the other has begun
                stop.stop();
            });
            let trouble = search(1_000_000_000, stop.clone()).unwrap_err().into_kind();
            assert_eq!(trouble, FailureKind::Stopped);
        });
    }

    #[test]
    fn bad_digest_is_refused() {
        let zeros = |n| "0".repeat(n);
        for (text, algorithm, why) in [
            (String::new(), None, "0 hex digits, expected 40 for sha1"),
            (zeros(39), None, "39 hex digits"),
            ("x".repeat(40), None, "'x' is no hex digit"),
            (format!("{}ß", zeros(38)), None, "'ß' is no hex digit"),
            (format!("+{}", zeros(39)), None, "'+' is no hex digit"),
            (zeros(40), Some(Algorithm::Md5), "expected 32 for md5 (hint: leave --algorithm out"),
        ] {
            let error = TargetDigest::parse(&text, algorithm).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        assert!(TargetDigest::parse(&zeros(40), Some(Algorithm::Sha1)).is_ok());
    }
}
