//! A segmented sieve of Eratosthenes over the odd numbers.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use gristmill_shared::{TaskContext, TaskError};

/// The number of odd numbers sieved at a time, a byte each; they fit into a core's own cache. A
/// task needs only this memory and the base primes, whatever its size.
const SEGMENT_NUMBERS: usize = 1 << 17;

/// The primes whose multiples are copied from a pattern: they would be two fifths of all marks.
const WHEEL_PRIMES: [u64; 5] = [3, 5, 7, 11, 13];
/// The number of odd numbers after which the pattern of multiples of [`WHEEL_PRIMES`] repeats.
const WHEEL_PERIOD: usize = 3 * 5 * 7 * 11 * 13;
/// True for each odd number from 1 on that is a multiple of one of [`WHEEL_PRIMES`], also for those
/// primes themselves.
static WHEEL_PATTERN: [bool; WHEEL_PERIOD] = {
    let mut multiple = [false; WHEEL_PERIOD];
    let mut prime = 0;
    while prime < WHEEL_PRIMES.len() {
        let step = WHEEL_PRIMES[prime] as usize;
        let mut at = step / 2;
        while at < WHEEL_PERIOD {
            multiple[at] = true;
            at += step;
        }
        prime += 1;
    }
    multiple
};

/// Counts the primes among `numbers`, which must lie below `limit`. The base primes of a limit are
/// computed once per process.
///
/// # Errors
/// Only if the task is stopped, which is checked once a segment.
pub(super) fn count_primes(numbers: Range<u64>, limit: u64, cx: &TaskContext) -> Result<u64, TaskError> {
    let base = base_primes(limit);
    let mut found = u64::from(numbers.contains(&2));
    let mut segments = SegmentedSieve::new(numbers, &base);
    while let Some((_, composite)) = segments.next() {
        cx.check()?;
        // Summed in bytes, 255 at most, since a core adds many bytes at once.
        let bytes = composite.chunks(u8::MAX.into());
        let primes = bytes.map(|bytes| bytes.iter().map(|&composite| u8::from(!composite)).sum::<u8>());
        found += primes.map(u64::from).sum::<u64>();
    }
    Ok(found)
}

/// Returns [`odd_primes_to_root`], cached for the largest limit so far in this process.
fn base_primes(limit: u64) -> Arc<Vec<u64>> {
    /// The limit, and its base primes.
    static KEPT_PRIMES: Mutex<(u64, Option<Arc<Vec<u64>>>)> = Mutex::new((0, None));
    // Locked during the computation, so that slots that start together do not all compute them.
    let mut kept = KEPT_PRIMES.lock().unwrap_or_else(PoisonError::into_inner);
    match &*kept {
        (known, Some(base)) if *known >= limit => Arc::clone(base),
        _ => {
            let base = Arc::new(odd_primes_to_root(limit));
            *kept = (limit, Some(Arc::clone(&base)));
            base
        }
    }
}

/// Returns the odd primes whose square is at most `limit`.
fn odd_primes_to_root(limit: u64) -> Vec<u64> {
    odd_primes(limit.isqrt() + 1)
}

/// Returns the odd primes below `limit`.
fn odd_primes(limit: u64) -> Vec<u64> {
    if limit <= 3 {
        return Vec::new();
    }
    let mut primes = Vec::new();
    let base = odd_primes_to_root(limit);
    let mut segments = SegmentedSieve::new(0..limit, &base);
    while let Some((low, composite)) = segments.next() {
        primes
            .extend((low..).step_by(2).zip(composite).filter(|(_, composite)| !**composite).map(|(n, _)| n));
    }
    primes
}

/// A sieve over the odd numbers of a range, a segment at a time.
struct SegmentedSieve<'a> {
    /// The first odd number of the next segment.
    low: u64,
    end: u64,
    /// The primes whose multiples are marked, without [`WHEEL_PRIMES`].
    base: &'a [u64],
    composite: Vec<bool>,
}

impl<'a> SegmentedSieve<'a> {
    /// Creates a sieve of `numbers`. `base` must have the odd primes up to the root of the last
    /// one.
    fn new(numbers: Range<u64>, base: &'a [u64]) -> Self {
        let base = &base[base.partition_point(|prime| WHEEL_PRIMES.contains(prime))..];
        Self { low: numbers.start | 1, end: numbers.end, base, composite: Vec::new() }
    }

    /// Sieves the next segment. Returns its first number, and a flag for it and each second number
    /// after it: true if it is composite, or 1.
    fn next(&mut self) -> Option<(u64, &[bool])> {
        let low = self.low;
        let odd = self.end.checked_sub(low)?.div_ceil(2).min(SEGMENT_NUMBERS as u64);
        let end = low + 2 * odd; // the first number of the segment after this one
        self.copy_wheel(odd as usize);
        *self.composite.first_mut()? |= low == 1;
        for &prime in self.base.iter().take_while(|&&prime| prime * prime < end) {
            let factor = low.div_ceil(prime) | 1; // an odd one: even multiples are not here
            let first = (prime * factor.max(prime) - low) / 2;
            for composite in self.composite.iter_mut().skip(first as usize).step_by(prime as usize) {
                *composite = true;
            }
        }
        self.low = end;
        Some((low, &self.composite))
    }

    /// Begins a segment of `odd` odd numbers: marks the multiples of [`WHEEL_PRIMES`], but not
    /// those primes themselves.
    fn copy_wheel(&mut self, odd: usize) {
        self.composite.clear();
        let mut from = (self.low / 2 % WHEEL_PERIOD as u64) as usize;
        while self.composite.len() < odd {
            let some = (WHEEL_PERIOD - from).min(odd - self.composite.len());
            self.composite.extend_from_slice(&WHEEL_PATTERN[from..from + some]);
            from = 0;
        }
        for prime in WHEEL_PRIMES {
            if let Some(place) = prime.checked_sub(self.low)
                && let Some(composite) = self.composite.get_mut(place as usize / 2)
            {
                *composite = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gristmill_shared::{FailureKind, JobId, StopSignal, TaskIndex};

    use super::*;

    fn count_in(numbers: Range<u64>) -> u64 {
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        count_primes(numbers.clone(), numbers.end, &cx).unwrap()
    }

    #[test]
    fn known_counts_are_found() {
        for (limit, primes) in [
            (0, 0),
            (1, 0),
            (2, 0),
            (3, 1),
            (4, 2),
            (5, 2),
            (6, 3),
            (9, 4),
            (10, 4),
            (26, 9),
            (100, 25),
            (1000, 168),
            (1_000_000, 78_498),
            (10_000_000, 664_579),
        ] {
            assert_eq!(count_in(0..limit), primes, "below {limit}");
        }
    }

    #[test]
    fn sieve_matches_trial_division() {
        for n in 0..3000 {
            let prime = n > 1 && (2..n).take_while(|d| d * d <= n).all(|d| n % d != 0);
            assert_eq!(count_in(n..n + 1), u64::from(prime), "{n}");
        }
    }

    #[test]
    fn large_slices_and_prime_squares() {
        assert_eq!(count_in(1_000_000_000_000..1_000_000_001_000), 37);
        assert_eq!(count_in(9_999_999_999_999_900..10_000_000_000_000_000), 2);
        for prime in [3_u64, 5, 997, 65_537, 99_999_989] {
            assert_eq!(count_in(prime * prime..prime * prime + 1), 0, "{prime} squared");
            assert_eq!(count_in(prime..prime + 1), 1, "{prime}");
        }
    }

    /// Bypasses the cache of `count_primes`, which may hold more primes from another test.
    #[test]
    fn base_primes_end_at_the_root() {
        for (limit, base) in
            [(0, &[][..]), (8, &[]), (9, &[3]), (24, &[3]), (25, &[3, 5]), (121, &[3, 5, 7, 11])]
        {
            assert_eq!(odd_primes_to_root(limit), base, "to the root of {limit}");
        }
    }

    #[test]
    fn segments_join_without_gap() {
        let span = 2 * SEGMENT_NUMBERS as u64;
        let whole = count_in(0..3 * span);
        for cut in [span - 1, span, span + 1, span + 2] {
            assert_eq!(count_in(0..cut) + count_in(cut..3 * span), whole, "cut at {cut}");
        }
    }

    #[test]
    fn stop_ends_the_sieve() {
        let stop = StopSignal::new();
        stop.stop();
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop);
        assert_eq!(count_primes(0..u64::MAX / 2, 100, &cx).unwrap_err().into_kind(), FailureKind::Stopped);
    }
}
