//! Candidates, a row at a time, each as a padded message that is ready for a compression function.

use std::ops::Range;

use super::alphabet::AlphabetLetter;

/// A block of a message, of the same size for every digest here.
pub(super) type MessageBlock = [u8; 64];

/// The fewest messages of a row, unless all words of a length are fewer. A row has at most 256.
///
/// A core cannot read a block right after its bytes were written: the read waits until the writes
/// have reached the cache, and those wait for earlier computations. So a message that is hashed
/// right after a change is hashed alone. Of messages that were changed some time ago a core hashes
/// two or three at once, which is twice as fast.
const ROW_MIN_WORDS: usize = 16;

/// All words, one row after the other: a, b, …, z, then aa, ab, …, az, then ba, bb, …
///
/// A row holds all words with a common stem. Advancing to the next row mostly changes one letter in
/// each message and nothing else. It allocates only when words get longer.
#[derive(Debug)]
pub(super) struct CandidateRows<'a> {
    letters: &'a [AlphabetLetter],
    /// The index in the alphabet of each letter of the stem.
    wheels: Vec<usize>,
    /// The stem in UTF-8.
    stem: Vec<u8>,
    /// The number of letters after the stem. The row has every combination of them.
    ending: u32,
    /// The messages of the row, each at a multiple of `stride`.
    messages: Vec<MessageBlock>,
    stride: usize,
    /// The number of blocks of each message: letters of several bytes may need another block.
    sizes: Vec<usize>,
    length_bytes: fn(u64) -> [u8; 8],
}

impl<'a> CandidateRows<'a> {
    /// Returns the row with this word, by number, and the word's place in it. Number 0 is the first
    /// letter alone. `letters` must not be empty. `length_bytes` is the byte order in which the
    /// digest takes the message's length in bits.
    pub(super) fn seek(
        letters: &'a [AlphabetLetter],
        number: u64,
        length_bytes: fn(u64) -> [u8; 8],
    ) -> (Self, usize) {
        let mut wheels = wheels(letters, number);
        let ending = ending(letters, wheels.len());
        let last = wheels.split_off(wheels.len() - ending as usize);
        let place = last.iter().fold(0, |place, wheel| place * letters.len() + wheel);
        let mut rows = Self {
            letters,
            wheels,
            stem: Vec::new(),
            ending,
            messages: Vec::new(),
            stride: 0,
            sizes: Vec::new(),
            length_bytes,
        };
        rows.stem = rows.wheels.iter().flat_map(|&wheel| letters[wheel].bytes()).copied().collect();
        rows.write_messages();
        (rows, place)
    }

    /// Returns the number of words of the row.
    #[inline]
    pub(super) fn width(&self) -> usize {
        self.sizes.len()
    }

    /// Returns the most blocks of a message of the row.
    #[inline]
    pub(super) fn blocks(&self) -> usize {
        self.stride
    }

    /// Returns the padded messages of some words of the row, each as its blocks.
    #[inline]
    pub(super) fn messages(&self, places: Range<usize>) -> impl Iterator<Item = &[MessageBlock]> {
        let messages = &self.messages[places.start * self.stride..places.end * self.stride];
        messages.chunks_exact(self.stride).zip(&self.sizes[places]).map(|(message, &size)| &message[..size])
    }

    /// Advances to the next row.
    pub(super) fn advance(&mut self) {
        let length = self.stem.len();
        match self.advance_stem() {
            Some(changed) if self.stem.len() == length => self.replace_stem(changed),
            Some(_) => self.write_messages(),
            None => self.lengthen(),
        }
    }

    /// Advances to the next stem with the same number of letters. Returns the first byte that
    /// changed, or `None` if there is no such stem.
    fn advance_stem(&mut self) -> Option<usize> {
        for at in (0..self.wheels.len()).rev() {
            let wheel = self.wheels[at];
            let rest = self.stem.len() - self.letters[wheel].bytes().len();
            self.stem.truncate(rest);
            if wheel + 1 < self.letters.len() {
                self.wheels[at] += 1;
                for &wheel in &self.wheels[at..] {
                    self.stem.extend_from_slice(self.letters[wheel].bytes());
                }
                return Some(rest);
            }
            self.wheels[at] = 0;
        }
        None
    }

    /// Writes the stem, from its byte `changed` on, over an old one of the same length in all
    /// messages.
    fn replace_stem(&mut self, changed: usize) {
        let messages = self.messages.chunks_exact_mut(self.stride).map(<[MessageBlock]>::as_flattened_mut);
        match self.stem[changed..] {
            [byte] => messages.for_each(|message| message[changed] = byte), // the usual case, faster than a memcpy
            ref bytes => {
                messages.for_each(|message| message[changed..][..bytes.len()].copy_from_slice(bytes))
            }
        }
    }

    /// Advances to the first row of words that are one letter longer.
    #[cold]
    fn lengthen(&mut self) {
        let length = self.wheels.len() + self.ending as usize + 1;
        self.ending = ending(self.letters, length);
        self.wheels = vec![0; length - self.ending as usize];
        self.stem = self.letters[0].bytes().repeat(self.wheels.len());
        self.write_messages();
    }

    /// Writes all messages: a word, the bit that ends it, zeros, and its length in bits in the last
    /// 8 bytes.
    fn write_messages(&mut self) {
        let (base, zeros) = (self.letters.len(), [0; size_of::<MessageBlock>()]);
        let widest = self.letters.iter().map(|letter| letter.bytes().len()).max().unwrap_or_default();
        self.stride = blocks(self.stem.len() + widest * self.ending as usize);
        self.messages.clear();
        self.messages.resize(base.pow(self.ending) * self.stride, zeros);
        self.sizes.clear();
        for (place, message) in self.messages.chunks_exact_mut(self.stride).enumerate() {
            let bytes = message.as_flattened_mut();
            let mut end = self.stem.len();
            bytes[..end].copy_from_slice(&self.stem);
            for wheel in (0..self.ending).rev() {
                let letter = self.letters[place / base.pow(wheel) % base].bytes();
                bytes[end..][..letter.len()].copy_from_slice(letter);
                end += letter.len();
            }
            bytes[end] = 0x80;
            let size = blocks(end);
            let length = size * size_of::<MessageBlock>() - 8;
            bytes[length..][..8].copy_from_slice(&(self.length_bytes)(end as u64 * 8));
            self.sizes.push(size);
        }
    }
}

/// Returns the word with this number, as text.
pub(super) fn word(letters: &[AlphabetLetter], number: u64) -> String {
    wheels(letters, number).into_iter().map(|wheel| letters[wheel].letter).collect()
}

/// Returns the word with this number, as the indices of its letters.
fn wheels(letters: &[AlphabetLetter], number: u64) -> Vec<usize> {
    let base = letters.len() as u64;
    let mut wheels = Vec::new();
    let mut rest = Some(number);
    while let Some(number) = rest {
        wheels.push((number % base) as usize);
        rest = (number / base).checked_sub(1); // unlike the digit 0, no letter stands for "nothing"
    }
    wheels.reverse();
    wheels
}

/// Returns the number of letters that a row varies in words of this length: one, or more if one
/// makes the row too short.
fn ending(letters: &[AlphabetLetter], length: usize) -> u32 {
    let (mut ending, mut width) = (1, letters.len());
    while width < ROW_MIN_WORDS && letters.len() > 1 && (ending as usize) < length {
        ending += 1;
        width *= letters.len();
    }
    ending
}

/// Returns the number of blocks for a message of `bytes` bytes, the bit that ends it, and its
/// length.
fn blocks(bytes: usize) -> usize {
    (bytes + 1 + 8).div_ceil(size_of::<MessageBlock>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crack::alphabet::Alphabet;

    /// Pads a text as the definition of the digests says.
    fn padded(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0x80);
        while bytes.len() % 64 != 56 {
            bytes.push(0);
        }
        bytes.extend((text.len() as u64 * 8).to_le_bytes());
        bytes
    }

    #[test]
    fn words_are_ordered() {
        let alphabet = Alphabet::parse("abc").unwrap();
        let words: Vec<_> = (0..14).map(|number| word(alphabet.letters(), number)).collect();
        assert_eq!(words.join(" "), "a b c aa ab ac ba bb bc ca cb cc aaa aab");
    }

    /// Covers words of one letter, of as many as the ending, and of more, and the bounds of blocks.
    #[test]
    fn rows_have_each_word_padded() {
        for (text, first, words) in [
            ("a", 0, 200),
            ("ab", 0, 5000),
            ("ab", u64::MAX >> 8, 3000),
            ("abc", 0, 5000),
            ("a-d", 0, 5000),
            ("0-9", 0, 20_000),
            ("a-z", 0, 20_000),
            ("aß€😀", 0, 20_000),
            ("aß€😀", (1 << 30) - 5000, 10_000),
            ("aß€😀", (1 << 36) - 5000, 10_000),
            ("\u{1}-\u{ff}", 0, 70_000),
        ] {
            let alphabet = Alphabet::parse(text).unwrap();
            let letters = alphabet.letters();
            let (mut rows, place) = CandidateRows::seek(letters, first, u64::to_le_bytes);
            let mut number = first;
            let mut places = place..rows.width();
            while number < first + words {
                for message in rows.messages(places) {
                    let word = word(letters, number);
                    assert_eq!(message.as_flattened(), padded(&word), "{text:?} {number}: {word}");
                    number += 1;
                }
                rows.advance();
                places = 0..rows.width();
            }
        }
    }

    #[test]
    fn row_can_be_entered_anywhere() {
        for text in ["a", "ab", "a-z", "aß€😀"] {
            let alphabet = Alphabet::parse(text).unwrap();
            for number in (0..1000).chain(50_000..51_000) {
                if text == "a" && number > 1000 {
                    break; // words longer than the longest of a search
                }
                let (rows, place) = CandidateRows::seek(alphabet.letters(), number, u64::to_le_bytes);
                let message = rows.messages(place..rows.width()).next().unwrap().as_flattened();
                assert_eq!(message, padded(&word(alphabet.letters(), number)), "{text:?} {number}");
            }
        }
    }

    #[test]
    fn row_width_is_bounded() {
        for (text, short, long) in
            [("a", 1, 1), ("ab", 4, 16), ("abc", 9, 27), ("a-d", 16, 16), ("a-o", 225, 225), ("a-p", 16, 16)]
        {
            let alphabet = Alphabet::parse(text).unwrap();
            let width = |length| alphabet.letters().len().pow(ending(alphabet.letters(), length));
            assert_eq!((width(2), width(9)), (short, long), "{text:?}");
        }
    }

    #[test]
    fn last_number_has_a_word() {
        let alphabet = Alphabet::parse("ab").unwrap();
        assert_eq!(word(alphabet.letters(), u64::MAX), format!("{}b", "a".repeat(63)));
        let (rows, place) = CandidateRows::seek(alphabet.letters(), u64::MAX, u64::to_be_bytes);
        assert_eq!((rows.width(), place), (16, 1));
    }
}
