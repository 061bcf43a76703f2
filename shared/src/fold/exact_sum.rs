//! A sum of floats without rounding.

use std::{fmt, ops::AddAssign};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The bits of a float's mantissa that are stored.
const MANTISSA_BITS: u32 = f64::MANTISSA_DIGITS - 1;
/// 64-bit words, from the weight of the smallest subnormal float on, 2^-1074: the 2,098 bits of all
/// finite floats, a sign, and room for 2^77 of the largest.
const SUM_WORDS: usize = 34;

/// The exact sum of any number of floats, rounded once, when it is read.
///
/// Its bits do not depend on the order or the grouping of the terms, and terms that cancel each
/// other leave no rest. Takes 280 bytes; as JSON usually a text of 20 to 70 characters.
///
/// A term that is not finite makes the sum [not finite](Self::is_finite), as IEEE 754 has it: an
/// infinity stays, and a NaN, or infinities of both signs, make it NaN for good. Likewise a sum
/// of 2^77 terms that does not fit any more counts as an infinity.
///
/// ```
/// use gristmill_shared::fold::ExactSum;
///
/// let sum: ExactSum = [0.1; 10].into_iter().collect();
/// assert_eq!(sum.value(), 1.0);
/// assert_eq!([0.1; 10].into_iter().sum::<f64>(), 0.9999999999999999);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ExactSum {
    /// Two's complement, the lowest word first.
    words: [u64; SUM_WORDS],
    class: SumClass,
}

/// The class of a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum SumClass {
    #[default]
    Finite,
    PositiveInfinity,
    NegativeInfinity,
    Nan,
}

impl SumClass {
    fn from_float(value: f64) -> Self {
        match value {
            finite if finite.is_finite() => Self::Finite,
            nan if nan.is_nan() => Self::Nan,
            positive if positive > 0.0 => Self::PositiveInfinity,
            _ => Self::NegativeInfinity,
        }
    }

    fn combine(self, other: Self) -> Self {
        match (self, other) {
            (Self::Finite, other) | (other, Self::Finite) => other,
            (Self::PositiveInfinity, Self::PositiveInfinity) => Self::PositiveInfinity,
            (Self::NegativeInfinity, Self::NegativeInfinity) => Self::NegativeInfinity,
            _ => Self::Nan,
        }
    }
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { words: [0; SUM_WORDS], class: SumClass::Finite }
    }
}

impl ExactSum {
    /// Adds one term.
    pub fn add(&mut self, term: f64) {
        if !term.is_finite() {
            return self.add_class(SumClass::from_float(term));
        }
        if !self.is_finite() {
            return;
        }
        let bits = term.to_bits();
        let exponent = (bits >> MANTISSA_BITS & 0x7ff) as usize;
        let stored = bits & ((1 << MANTISSA_BITS) - 1);
        // A subnormal float has the weights of the lowest exponent, without the leading one.
        let (mantissa, shift) =
            if exponent == 0 { (stored, 0) } else { (stored | 1 << MANTISSA_BITS, exponent - 1) };
        let placed = u128::from(mantissa) << (shift % 64);
        let parts = [placed as u64, (placed >> 64) as u64];
        let was_negative = self.is_negative();
        if term.is_sign_negative() {
            subtract(&mut self.words[shift / 64..], parts);
        } else {
            add(&mut self.words[shift / 64..], parts);
        }
        self.note_overflow(was_negative, term.is_sign_negative());
    }

    /// Adds all terms of another sum.
    pub fn merge(&mut self, other: &Self) {
        let was_negative = self.is_negative();
        add(&mut self.words, other.words);
        self.note_overflow(was_negative, other.is_negative());
        self.add_class(other.class);
    }

    /// Returns the float nearest to the exact sum; on a tie, the one with an even mantissa.
    /// A sum beyond [`f64::MAX`] by half a unit in its last place or more is an infinity, as in
    /// IEEE 754. A sum of nothing, and of terms that cancel, is `0.0` and never `-0.0`.
    #[must_use]
    pub fn value(&self) -> f64 {
        match self.class {
            SumClass::Finite => {}
            SumClass::PositiveInfinity => return f64::INFINITY,
            SumClass::NegativeInfinity => return f64::NEG_INFINITY,
            SumClass::Nan => return f64::NAN,
        }
        let magnitude = self.magnitude();
        let Some(top) = top_bit(&magnitude) else { return 0.0 };
        // The lowest bit of the result: 53 bits below the top, or the lowest that a float has.
        let low = top.saturating_sub(MANTISSA_BITS as usize);
        let mut mantissa = bits_from(&magnitude, low);
        let half = low > 0 && bit(&magnitude, low - 1);
        let more = low > 1 && has_bits_below(&magnitude, low - 1);
        mantissa += u64::from(half && (more || mantissa & 1 == 1));
        // The leading one of a normal float counts as one exponent, and a carry as the next.
        let bits = ((low as u64) << MANTISSA_BITS) + mantissa;
        let rounded = f64::from_bits(bits.min(f64::INFINITY.to_bits()));
        if self.is_negative() { -rounded } else { rounded }
    }

    /// True if all terms and the sum are finite. Its [value](Self::value) may still be infinite, if
    /// the sum exceeds the largest float.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.class == SumClass::Finite
    }

    fn is_negative(&self) -> bool {
        self.words[SUM_WORDS - 1] >> 63 == 1
    }

    /// Records an overflow: two numbers of one sign whose sum has the other sign did not fit.
    fn note_overflow(&mut self, was_negative: bool, term_is_negative: bool) {
        if was_negative == term_is_negative && self.is_negative() != was_negative {
            self.add_class(if was_negative {
                SumClass::NegativeInfinity
            } else {
                SumClass::PositiveInfinity
            });
        }
    }

    /// Adds a term's class. Clears the words of a sum that is not finite, since no finite term
    /// changes it; equal sums then compare as equal.
    fn add_class(&mut self, class: SumClass) {
        self.class = self.class.combine(class);
        if self.class != SumClass::Finite {
            self.words = [0; SUM_WORDS];
        }
    }

    fn magnitude(&self) -> [u64; SUM_WORDS] {
        if !self.is_negative() {
            return self.words;
        }
        let mut magnitude = [0; SUM_WORDS];
        subtract(&mut magnitude, self.words);
        magnitude
    }
}

/// Adds to words of two's complement; a carry out of the last is dropped.
fn add<const N: usize>(words: &mut [u64], parts: [u64; N]) {
    let mut carry = false;
    for (place, word) in words.iter_mut().enumerate() {
        let part = parts.get(place).copied();
        if part.is_none() && !carry {
            return;
        }
        let (sum, first) = word.overflowing_add(part.unwrap_or(0));
        let (sum, second) = sum.overflowing_add(carry.into());
        (*word, carry) = (sum, first || second);
    }
}

/// Subtracts from words of two's complement; a borrow out of the last is dropped.
fn subtract<const N: usize>(words: &mut [u64], parts: [u64; N]) {
    let mut borrow = false;
    for (place, word) in words.iter_mut().enumerate() {
        let part = parts.get(place).copied();
        if part.is_none() && !borrow {
            return;
        }
        let (rest, first) = word.overflowing_sub(part.unwrap_or(0));
        let (rest, second) = rest.overflowing_sub(borrow.into());
        (*word, borrow) = (rest, first || second);
    }
}

/// Returns the place of the highest bit that is set.
fn top_bit(words: &[u64]) -> Option<usize> {
    let place = words.iter().rposition(|word| *word != 0)?;
    Some(place * 64 + words[place].ilog2() as usize)
}

fn bit(words: &[u64], place: usize) -> bool {
    words[place / 64] >> (place % 64) & 1 == 1
}

/// Returns the 64 bits from `low` on.
fn bits_from(words: &[u64], low: usize) -> u64 {
    let word = |place: usize| words.get(place).copied().unwrap_or(0);
    let both = u128::from(word(low / 64 + 1)) << 64 | u128::from(word(low / 64));
    (both >> (low % 64)) as u64
}

/// True if a bit below `place` is set.
fn has_bits_below(words: &[u64], place: usize) -> bool {
    let (whole, rest) = words.split_at(place / 64);
    whole.iter().any(|word| *word != 0) || rest[0] & ((1 << (place % 64)) - 1) != 0
}

impl AddAssign<f64> for ExactSum {
    fn add_assign(&mut self, term: f64) {
        self.add(term);
    }
}

impl AddAssign<&Self> for ExactSum {
    fn add_assign(&mut self, other: &Self) {
        self.merge(other);
    }
}

impl Extend<f64> for ExactSum {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, terms: I) {
        terms.into_iter().for_each(|term| self.add(term));
    }
}

impl FromIterator<f64> for ExactSum {
    fn from_iter<I: IntoIterator<Item = f64>>(terms: I) -> Self {
        let mut sum = Self::default();
        sum.extend(terms);
        sum
    }
}

impl fmt::Debug for ExactSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExactSum({:?})", self.value())
    }
}

/// Text: a sign, the number of low words that are zero, a colon, and the other words in
/// hexadecimal; `0`, `inf`, `-inf` or `nan` for what has no words.
impl fmt::Display for ExactSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.class {
            SumClass::Finite => {}
            SumClass::PositiveInfinity => return f.write_str("inf"),
            SumClass::NegativeInfinity => return f.write_str("-inf"),
            SumClass::Nan => return f.write_str("nan"),
        }
        let magnitude = self.magnitude();
        let used = magnitude.iter().position(|word| *word != 0).zip(top_bit(&magnitude));
        let Some((low, top)) = used else { return f.write_str("0") };
        let sign = if self.is_negative() { "-" } else { "" };
        write!(f, "{sign}{low}:{:x}", magnitude[top / 64])?;
        magnitude[low..top / 64].iter().rev().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

impl ExactSum {
    /// Parses the text of `Display`.
    fn read(text: &str) -> Option<Self> {
        let class = |class| Some(Self { class, ..Self::default() });
        match text {
            "0" => return Some(Self::default()),
            "inf" => return class(SumClass::PositiveInfinity),
            "-inf" => return class(SumClass::NegativeInfinity),
            "nan" => return class(SumClass::Nan),
            _ => {}
        }
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (low, digits) = rest.split_once(':')?;
        let low: usize = low.parse().ok()?;
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let mut magnitude = [0; SUM_WORDS];
        for (place, word) in (low..).zip(digits.as_bytes().rchunks(16)) {
            *magnitude.get_mut(place)? = u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        }
        let mut sum = Self { words: magnitude, class: SumClass::Finite };
        if sum.is_negative() {
            return None;
        }
        if negative {
            sum.words = [0; SUM_WORDS];
            subtract(&mut sum.words, magnitude);
        }
        Some(sum)
    }
}

impl Serialize for ExactSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ExactSum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text).ok_or_else(|| D::Error::custom(format_args!("{text:?} is no exact sum")))
    }
}

#[cfg(test)]
mod tests;
