//! The division of a range of numbers into tasks.

use std::ops::Range;

/// Returns the number of pieces of `size` that cover `0..whole`. A size of 0 counts as 1.
pub(crate) fn piece_count(whole: u64, size: u64) -> u64 {
    whole.div_ceil(size.max(1))
}

/// Returns the pieces from number `first` on, in order. Only the last one may be shorter than
/// `size`.
pub(crate) fn pieces_from(first: u64, whole: u64, size: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let size = size.max(1);
    (first..piece_count(whole, size)).map(move |piece| {
        let start = piece * size; // below `whole`, so it fits
        start..start.saturating_add(size).min(whole)
    })
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;

    #[test]
    fn pieces_cover_without_gap() {
        assert_eq!(pieces_from(0, 7, 3).collect::<Vec<_>>(), [0..3, 3..6, 6..7]);
        assert!(pieces_from(2, 7, 3).eq(once(6..7)));
        assert_eq!(pieces_from(3, 7, 3).count(), 0);
        assert_eq!(pieces_from(0, 0, 3).count(), 0);
        assert!(pieces_from(0, 2, 100).eq(once(0..2)));
    }

    #[test]
    fn no_overflow_at_u64_max() {
        let size = u64::MAX / 2 + 1;
        assert!(pieces_from(1, u64::MAX, size).eq(once(size..u64::MAX)));
        assert_eq!(piece_count(u64::MAX, 1), u64::MAX);
    }
}
