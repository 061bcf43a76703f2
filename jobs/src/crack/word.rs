//! The candidates, one after another, each as a padded message that a compression function takes as it is.

use super::alphabet::Letter;

/// What every digest here works on.
pub(super) type Block = [u8; 64];

/// An odometer of letters: a, b, …, z, aa, ab, … It allocates only when a word needs one block more than any before.
#[derive(Debug)]
pub(super) struct Word<'a> {
    letters: &'a [Letter],
    /// The place of each letter of the word in the alphabet.
    wheels: Vec<usize>,
    message: Vec<Block>,
    /// Where the last letter starts in the message.
    last: usize,
    length_bytes: fn(u64) -> [u8; 8],
}

impl<'a> Word<'a> {
    /// The word with this number; 0 is the first letter alone. `letters` are not empty; `length_bytes` is the byte
    /// order in which the digest takes the message's length in bits.
    pub(super) fn new(letters: &'a [Letter], number: u64, length_bytes: fn(u64) -> [u8; 8]) -> Self {
        let base = letters.len() as u64;
        let mut wheels = Vec::new();
        let mut rest = Some(number);
        while let Some(number) = rest {
            wheels.push((number % base) as usize);
            rest = (number / base).checked_sub(1); // there is no letter for "nothing", as a digit 0 would be
        }
        wheels.reverse();
        let mut word = Self { letters, wheels, message: Vec::new(), last: 0, length_bytes };
        word.write();
        word
    }

    /// The word, padded: all of its blocks.
    #[inline]
    pub(super) fn message(&self) -> &[Block] {
        &self.message
    }

    /// Turns to the next word. Mostly that changes the last letter and nothing else.
    #[inline]
    pub(super) fn advance(&mut self) {
        if let Some(wheel) = self.wheels.last_mut()
            && let Some(next) = self.letters.get(*wheel + 1)
        {
            let (old, new) = (self.letters[*wheel].bytes(), next.bytes());
            if old.len() == new.len() {
                *wheel += 1;
                self.message.as_flattened_mut()[self.last..][..new.len()].copy_from_slice(new);
                return;
            }
        }
        self.carry();
        self.write();
    }

    #[cold]
    fn carry(&mut self) {
        for wheel in self.wheels.iter_mut().rev() {
            *wheel += 1;
            if *wheel < self.letters.len() {
                return;
            }
            *wheel = 0;
        }
        self.wheels.push(0); // all of this length were tried
    }

    /// Writes the whole message: the word, a bit that ends it, zeros, and its length in bits in the last 8 bytes.
    fn write(&mut self) {
        let length: usize = self.wheels.iter().map(|&wheel| self.letters[wheel].bytes().len()).sum();
        self.message.clear();
        self.message.resize((length + 1 + 8).div_ceil(size_of::<Block>()), [0; size_of::<Block>()]);
        let bytes = self.message.as_flattened_mut();
        let mut end = 0;
        for &wheel in &self.wheels {
            let letter = self.letters[wheel].bytes();
            self.last = end;
            end += letter.len();
            bytes[self.last..end].copy_from_slice(letter);
        }
        bytes[end] = 0x80;
        let tail = bytes.len() - 8;
        bytes[tail..].copy_from_slice(&(self.length_bytes)(length as u64 * 8));
    }
}

/// As text.
impl std::fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.wheels.iter().try_for_each(|&wheel| write!(f, "{}", self.letters[wheel].letter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crack::alphabet::Alphabet;

    #[test]
    fn words_come_in_order_of_length_then_alphabet() {
        let alphabet = Alphabet::parse("abc").unwrap();
        let mut word = Word::new(alphabet.letters(), 0, u64::to_be_bytes);
        let mut seen = Vec::new();
        for _ in 0..14 {
            seen.push(word.to_string());
            word.advance();
        }
        assert_eq!(seen.join(" "), "a b c aa ab ac ba bb bc ca cb cc aaa aab");
    }

    #[test]
    fn turning_and_jumping_agree_to_the_byte() {
        for text in ["a", "ab", "a-z", "aß€😀", "01"] {
            let alphabet = Alphabet::parse(text).unwrap();
            let mut turned = Word::new(alphabet.letters(), 0, u64::to_le_bytes);
            for number in 0..3000 {
                let jumped = Word::new(alphabet.letters(), number, u64::to_le_bytes);
                assert_eq!(turned.to_string(), jumped.to_string(), "{text:?} {number}");
                assert_eq!(turned.message(), jumped.message(), "{text:?} {number}");
                turned.advance();
            }
        }
    }

    #[test]
    fn the_last_number_of_all_has_a_word() {
        let alphabet = Alphabet::parse("ab").unwrap();
        let word = Word::new(alphabet.letters(), u64::MAX, u64::to_be_bytes);
        assert_eq!(word.to_string(), format!("{}b", "a".repeat(63)));
    }
}
