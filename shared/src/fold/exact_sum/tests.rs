//! Tests of the sum against exact decimal arithmetic, and at the edges of the range of floats.

use proptest::prelude::*;

use super::*;

/// The digits after the point that the smallest subnormal float needs.
const DECIMAL_PLACES: usize = 1074;

fn sum(terms: &[f64]) -> ExactSum {
    terms.iter().copied().collect()
}

fn read(sum: &ExactSum) -> ExactSum {
    serde_json::from_str(&serde_json::to_string(sum).unwrap()).unwrap()
}

/// Returns the sum by exact decimals, column by column, rounded by the standard library's parser.
fn oracle(terms: &[f64]) -> f64 {
    let mut columns = vec![0_i64; 320 + DECIMAL_PLACES];
    for term in terms {
        let sign = if term.is_sign_negative() { -1 } else { 1 };
        let decimal = format!("{:.DECIMAL_PLACES$}", term.abs());
        let digits = decimal.bytes().rev().filter(u8::is_ascii_digit);
        for (column, digit) in columns.iter_mut().zip(digits) {
            *column += sign * i64::from(digit - b'0');
        }
    }
    carry(&mut columns);
    let negative = columns.last().is_some_and(|top| *top < 0);
    if negative {
        columns.iter_mut().for_each(|column| *column = -*column);
        carry(&mut columns);
    }
    let text: String = columns.iter().rev().map(|digit| (b'0' + *digit as u8) as char).collect();
    let (whole, places) = text.split_at(text.len() - DECIMAL_PLACES);
    let rounded: f64 = format!("{whole}.{places}").parse().unwrap();
    if negative { -rounded } else { rounded }
}

/// Carries, so that all columns but the highest, which has the sign, are digits from 0 to 9.
fn carry(columns: &mut [i64]) {
    for place in 1..columns.len() {
        let (digit, carried) = (columns[place - 1].rem_euclid(10), columns[place - 1].div_euclid(10));
        columns[place - 1] = digit;
        columns[place] += carried;
    }
}

fn assert_bits(found: f64, expected: f64, of: &[f64]) {
    assert_eq!(found.to_bits(), expected.to_bits(), "{found:e} and not {expected:e} of {of:?}");
}

#[test]
fn edge_sums_are_exact() {
    let tiny = f64::from_bits(1);
    let max = f64::MAX;
    let half_ulp_of_max = 2_f64.powi(970);
    let cases: &[(&[f64], f64)] = &[
        (&[], 0.0),
        (&[-0.0], 0.0),
        (&[-0.0, -0.0], 0.0),
        (&[1.5, -1.5], 0.0),
        (&[1e308, 1.0, -1e308, -1.0, tiny], tiny),
        (&[tiny, tiny, tiny], f64::from_bits(3)),
        (&[-tiny], -tiny),
        (&[f64::MIN_POSITIVE, -tiny], f64::from_bits((1 << 52) - 1)),
        (&[f64::from_bits((1 << 52) - 1), tiny], f64::MIN_POSITIVE),
        (&[max, max, -max], max),
        (&[max, max], f64::INFINITY),
        (&[-max, -max], f64::NEG_INFINITY),
        (&[max, half_ulp_of_max], f64::INFINITY),
        (&[max, half_ulp_of_max, -tiny], max),
        // A tie goes to the even mantissa, and anything beyond it breaks the tie.
        (&[1.0, f64::EPSILON / 2.0], 1.0),
        (&[1.0, f64::EPSILON / 2.0, tiny], 1.0 + f64::EPSILON),
        (&[1.0, f64::EPSILON, f64::EPSILON / 2.0], 1.0 + 2.0 * f64::EPSILON),
        (&[-1.0, -f64::EPSILON / 2.0, -tiny], -1.0 - f64::EPSILON),
        (&[2.0 - f64::EPSILON, f64::EPSILON / 2.0], 2.0),
    ];
    for (terms, expected) in cases {
        assert_bits(sum(terms).value(), *expected, terms);
        assert_bits(oracle(terms) + 0.0, *expected, terms); // the oracle is one
        assert_bits(read(&sum(terms)).value(), *expected, terms);
        assert!(sum(terms).is_finite());
    }
}

#[test]
fn nonfinite_terms_have_a_class() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for (terms, text) in [
        (&[1.0, inf, 2.0][..], "inf"),
        (&[inf, inf], "inf"),
        (&[-inf, f64::MAX], "-inf"),
        (&[-inf, inf], "nan"),
        (&[inf, -inf, 1.0], "nan"),
        (&[nan, 1.0], "nan"),
        (&[1.0, nan, inf], "nan"),
    ] {
        let found = sum(terms);
        assert_eq!((found.to_string().as_str(), found.is_finite()), (text, false), "{terms:?}");
        assert_eq!(read(&found), found);
        let mut merged = sum(&[7.0]);
        merged += &found;
        assert_eq!(merged, found, "{terms:?}");
    }
    assert!(sum(&[nan]).value().is_nan());
    assert_eq!((sum(&[inf]).value(), sum(&[-inf]).value()), (inf, -inf));
}

#[test]
fn overflowing_sum_is_infinite() {
    for (term, expected) in [(f64::MAX, f64::INFINITY), (-f64::MAX, f64::NEG_INFINITY)] {
        let mut doubled = sum(&[term]);
        for doubling in 0..200 {
            let same = doubled.clone();
            doubled += &same;
            assert_eq!(doubled.value(), expected, "after {doubling} doublings");
        }
        assert!(!doubled.is_finite());
    }
}

#[test]
fn text_form_is_short_and_checked() {
    assert_eq!(sum(&[1.0]).to_string(), "16:4000000000000");
    assert_eq!(sum(&[-3.0, 0.5]).to_string(), "-16:a000000000000");
    assert_eq!(sum(&[]).to_string(), "0");
    for bad in ["", "1", "16:", "34:1", "33:8000000000000000", "33:10000000000000000", "a:1", "1:+1", "1:-1"]
    {
        let error = serde_json::from_str::<ExactSum>(&format!("{bad:?}")).unwrap_err().to_string();
        assert!(error.contains("is no exact sum"), "{bad}: {error}");
    }
}

/// Generates any finite float: all bit patterns, and those whose sums are hard.
fn floats() -> impl Strategy<Value = f64> {
    let all = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |float| float.is_finite());
    let subnormal = any::<u64>().prop_map(|bits| f64::from_bits(bits & !(0x7ff << 52)));
    let near_one = any::<u64>().prop_map(|bits| f64::from_bits(bits & !(0x7ff << 52) | 0x3ff << 52));
    prop_oneof![all, subnormal, near_one, Just(f64::MAX), Just(-f64::MAX), Just(-0.0)]
}

proptest! {
    #[test]
    fn order_and_grouping_do_not_matter(
        terms in prop::collection::vec(floats(), 0..12),
        cancelled in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut terms = terms;
        if cancelled {
            terms.extend(terms.clone().iter().skip(1).map(|term| -term));
        }
        let expected = oracle(&terms) + 0.0;
        let whole = sum(&terms);
        prop_assert_eq!(whole.value().to_bits(), expected.to_bits(), "{:?}", terms);
        let mut shuffled: Vec<_> =
            terms.iter().enumerate().map(|(place, term)| (seed.rotate_left(place as u32 * 7), *term)).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let shuffled: Vec<f64> = shuffled.into_iter().map(|(_, term)| term).collect();
        let (left, right) = shuffled.split_at(terms.len() / 2);
        let mut merged = read(&sum(right));
        merged += &sum(left);
        prop_assert_eq!(&merged, &whole, "{:?}", terms);
        prop_assert_eq!(merged.to_string(), whole.to_string());
    }
}
