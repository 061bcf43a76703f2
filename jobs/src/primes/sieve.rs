//! A segmented sieve of Eratosthenes over the odd numbers.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use gristmill_shared::{TaskContext, TaskError};

/// Odd numbers sieved at a time, a byte each: what a core's own cache holds. A task needs no more memory than this and
/// the base primes, whatever its size.
const SEGMENT: usize = 1 << 17;

/// The primes whose multiples are copied rather than struck out: they would be two fifths of all strokes.
const WHEEL: [u64; 5] = [3, 5, 7, 11, 13];
/// After so many odd numbers the multiples of [`WHEEL`] come again as before.
const PERIOD: usize = 3 * 5 * 7 * 11 * 13;
/// Which odd numbers from 1 on are multiples of a prime of [`WHEEL`]. Those primes are, too.
static PATTERN: [bool; PERIOD] = {
    let mut multiple = [false; PERIOD];
    let mut prime = 0;
    while prime < WHEEL.len() {
        let step = WHEEL[prime] as usize;
        let mut at = step / 2;
        while at < PERIOD {
            multiple[at] = true;
            at += step;
        }
        prime += 1;
    }
    multiple
};

/// How many of `numbers` are prime. All of them lie below `limit`, whose base primes are found once per process.
///
/// # Errors
/// Only that the task was stopped; it is asked once a segment.
pub(super) fn count(numbers: Range<u64>, limit: u64, cx: &TaskContext) -> Result<u64, TaskError> {
    let base = base_primes(limit);
    let mut found = u64::from(numbers.contains(&2));
    let mut segments = Segments::new(numbers, &base);
    while let Some((_, composite)) = segments.next() {
        cx.check()?;
        // Added up in bytes, as far as they go: a core adds many of them at once.
        let bytes = composite.chunks(u8::MAX.into());
        let primes = bytes.map(|bytes| bytes.iter().map(|&composite| u8::from(!composite)).sum::<u8>());
        found += primes.map(u64::from).sum::<u64>();
    }
    Ok(found)
}

/// [`odd_primes_to_root`], kept for the largest limit that this process has met.
fn base_primes(limit: u64) -> Arc<Vec<u64>> {
    /// The limit, and its base primes.
    static KEPT: Mutex<(u64, Option<Arc<Vec<u64>>>)> = Mutex::new((0, None));
    // Held while they are found, so that slots that start together do not all find them.
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    match &*kept {
        (known, Some(base)) if *known >= limit => Arc::clone(base),
        _ => {
            let base = Arc::new(odd_primes_to_root(limit));
            *kept = (limit, Some(Arc::clone(&base)));
            base
        }
    }
}

/// The odd primes whose square is at most `limit`.
fn odd_primes_to_root(limit: u64) -> Vec<u64> {
    odd_primes(limit.isqrt() + 1)
}

/// The odd primes below `limit`.
fn odd_primes(limit: u64) -> Vec<u64> {
    if limit <= 3 {
        return Vec::new();
    }
    let mut primes = Vec::new();
    let base = odd_primes_to_root(limit);
    let mut segments = Segments::new(0..limit, &base);
    while let Some((low, composite)) = segments.next() {
        primes
            .extend((low..).step_by(2).zip(composite).filter(|(_, composite)| !**composite).map(|(n, _)| n));
    }
    primes
}

/// The odd ones of some numbers, sieved a segment at a time.
struct Segments<'a> {
    /// The odd number that the next segment starts with.
    low: u64,
    end: u64,
    /// The primes to strike out, which are not those of [`WHEEL`].
    base: &'a [u64],
    composite: Vec<bool>,
}

impl<'a> Segments<'a> {
    /// `base` has the odd primes up to the root of the last number.
    fn new(numbers: Range<u64>, base: &'a [u64]) -> Self {
        let base = &base[base.partition_point(|prime| WHEEL.contains(prime))..];
        Self { low: numbers.start | 1, end: numbers.end, base, composite: Vec::new() }
    }

    /// The first number of the next segment, and for it and each second number after it whether it is composite (as
    /// is 1).
    fn next(&mut self) -> Option<(u64, &[bool])> {
        let low = self.low;
        let odd = self.end.checked_sub(low)?.div_ceil(2).min(SEGMENT as u64);
        let end = low + 2 * odd; // the first number of the segment after this one
        self.turn_wheel(odd as usize);
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

    /// Begins a segment of so many odd numbers: knows the multiples of [`WHEEL`], and that its primes are prime.
    fn turn_wheel(&mut self, odd: usize) {
        self.composite.clear();
        let mut from = (self.low / 2 % PERIOD as u64) as usize;
        while self.composite.len() < odd {
            let some = (PERIOD - from).min(odd - self.composite.len());
            self.composite.extend_from_slice(&PATTERN[from..from + some]);
            from = 0;
        }
        for prime in WHEEL {
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
    use gristmill_shared::{JobId, StopSignal, TaskIndex, Trouble};

    use super::*;

    fn count_in(numbers: Range<u64>) -> u64 {
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        count(numbers.clone(), numbers.end, &cx).unwrap()
    }

    #[test]
    fn known_counts_below_a_limit() {
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
    fn every_number_alone_is_judged_like_by_trial_division() {
        for n in 0..3000 {
            let prime = n > 1 && (2..n).take_while(|d| d * d <= n).all(|d| n % d != 0);
            assert_eq!(count_in(n..n + 1), u64::from(prime), "{n}");
        }
    }

    #[test]
    fn a_slice_far_out_and_the_squares_of_primes() {
        assert_eq!(count_in(1_000_000_000_000..1_000_000_001_000), 37);
        assert_eq!(count_in(9_999_999_999_999_900..10_000_000_000_000_000), 2);
        for prime in [3_u64, 5, 997, 65_537, 99_999_989] {
            assert_eq!(count_in(prime * prime..prime * prime + 1), 0, "{prime} squared");
            assert_eq!(count_in(prime..prime + 1), 1, "{prime}");
        }
    }

    /// Apart from `count`, where a larger limit of another test may have left more than is needed.
    #[test]
    fn the_base_primes_reach_the_root_and_no_further() {
        for (limit, base) in
            [(0, &[][..]), (8, &[]), (9, &[3]), (24, &[3]), (25, &[3, 5]), (121, &[3, 5, 7, 11])]
        {
            assert_eq!(odd_primes_to_root(limit), base, "to the root of {limit}");
        }
    }

    #[test]
    fn segments_join_without_a_gap() {
        let span = 2 * SEGMENT as u64;
        let whole = count_in(0..3 * span);
        for cut in [span - 1, span, span + 1, span + 2] {
            assert_eq!(count_in(0..cut) + count_in(cut..3 * span), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_stopped_job_ends_the_sieve() {
        let stop = StopSignal::new();
        stop.stop();
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop);
        assert_eq!(count(0..u64::MAX / 2, 100, &cx).unwrap_err().into_trouble(), Trouble::Stopped);
    }
}
