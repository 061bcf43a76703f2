//! The candidates, a row at a time, each as a padded message that a compression function takes as it is.

use std::ops::Range;

use super::alphabet::Letter;

/// What every digest here works on.
pub(super) type Block = [u8; 64];

/// A row has at least so many messages (unless all words of a length are fewer), and at most 256.
///
/// What was just written byte by byte cannot be read by the block until it has reached the cache, and that waits for
/// all that is computed before it. So a message that is hashed as soon as it is changed is hashed alone; of messages
/// that were changed some time ago a core hashes two or three at once, which is twice as fast.
const FEWEST: usize = 16;

/// An odometer whose last wheels stand still: the words a, b, …, z, then aa, ab, …, az, then ba, bb, …
///
/// A row is all the words that have a stem in common. To turn to the next row mostly changes one letter in each message
/// and nothing else. It allocates only when words get longer.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    letters: &'a [Letter],
    /// The place of each letter of the stem in the alphabet.
    wheels: Vec<usize>,
    /// The same in UTF-8.
    stem: Vec<u8>,
    /// How many letters follow the stem; every combination of so many is in the row.
    ending: u32,
    /// The row, each message from a multiple of `stride` on.
    messages: Vec<Block>,
    stride: usize,
    /// How many blocks each message has: letters of more bytes may need another.
    sizes: Vec<usize>,
    length_bytes: fn(u64) -> [u8; 8],
}

impl<'a> Rows<'a> {
    /// The row that has the word with this number, and the word's place in it. Number 0 is the first letter alone.
    /// `letters` are not empty; `length_bytes` is the byte order in which the digest takes the message's length in bits.
    pub(super) fn at(letters: &'a [Letter], number: u64, length_bytes: fn(u64) -> [u8; 8]) -> (Self, usize) {
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
        rows.lay_out();
        (rows, place)
    }

    /// How many words the row has.
    #[inline]
    pub(super) fn width(&self) -> usize {
        self.sizes.len()
    }

    /// How many blocks a message of the row has at most.
    #[inline]
    pub(super) fn blocks(&self) -> usize {
        self.stride
    }

    /// Some words of the row, each padded: all of its blocks.
    #[inline]
    pub(super) fn messages(&self, places: Range<usize>) -> impl Iterator<Item = &[Block]> {
        let messages = &self.messages[places.start * self.stride..places.end * self.stride];
        messages.chunks_exact(self.stride).zip(&self.sizes[places]).map(|(message, &size)| &message[..size])
    }

    /// Turns to the next row.
    pub(super) fn advance(&mut self) {
        let length = self.stem.len();
        match self.turn() {
            Some(changed) if self.stem.len() == length => self.restem(changed),
            Some(_) => self.lay_out(),
            None => self.lengthen(),
        }
    }

    /// Turns to the next stem of as many letters, if there is one, and says from which byte on it is another.
    fn turn(&mut self) -> Option<usize> {
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

    /// Writes the stem, from its byte `changed` on, into messages that had another one of the same length.
    fn restem(&mut self, changed: usize) {
        let messages = self.messages.chunks_exact_mut(self.stride).map(<[Block]>::as_flattened_mut);
        match self.stem[changed..] {
            [byte] => messages.for_each(|message| message[changed] = byte), // mostly; worth not to be a memcpy
            ref bytes => {
                messages.for_each(|message| message[changed..][..bytes.len()].copy_from_slice(bytes))
            }
        }
    }

    /// Turns to the first of the words that are one letter longer.
    #[cold]
    fn lengthen(&mut self) {
        let length = self.wheels.len() + self.ending as usize + 1;
        self.ending = ending(self.letters, length);
        self.wheels = vec![0; length - self.ending as usize];
        self.stem = self.letters[0].bytes().repeat(self.wheels.len());
        self.lay_out();
    }

    /// Writes all messages: a word, a bit that ends it, zeros, and its length in bits in the last 8 bytes.
    fn lay_out(&mut self) {
        let (base, zeros) = (self.letters.len(), [0; size_of::<Block>()]);
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
            let length = size * size_of::<Block>() - 8;
            bytes[length..][..8].copy_from_slice(&(self.length_bytes)(end as u64 * 8));
            self.sizes.push(size);
        }
    }
}

/// The word with this number, as text.
pub(super) fn word(letters: &[Letter], number: u64) -> String {
    wheels(letters, number).into_iter().map(|wheel| letters[wheel].letter).collect()
}

/// The word with this number, as the places of its letters.
fn wheels(letters: &[Letter], number: u64) -> Vec<usize> {
    let base = letters.len() as u64;
    let mut wheels = Vec::new();
    let mut rest = Some(number);
    while let Some(number) = rest {
        wheels.push((number % base) as usize);
        rest = (number / base).checked_sub(1); // there is no letter for "nothing", as a digit 0 would be
    }
    wheels.reverse();
    wheels
}

/// How many letters of words of this length are left to the row: one, or as many more as it takes to make it wide.
fn ending(letters: &[Letter], length: usize) -> u32 {
    let (mut ending, mut width) = (1, letters.len());
    while width < FEWEST && letters.len() > 1 && (ending as usize) < length {
        ending += 1;
        width *= letters.len();
    }
    ending
}

/// How many blocks it takes for so many bytes, a bit that ends them, and their length.
fn blocks(bytes: usize) -> usize {
    (bytes + 1 + 8).div_ceil(size_of::<Block>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crack::alphabet::Alphabet;

    /// What a digest pads a text to, from its definition.
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
    fn words_come_in_order_of_length_then_alphabet() {
        let alphabet = Alphabet::parse("abc").unwrap();
        let words: Vec<_> = (0..14).map(|number| word(alphabet.letters(), number)).collect();
        assert_eq!(words.join(" "), "a b c aa ab ac ba bb bc ca cb cc aaa aab");
    }

    /// Through words of one letter, of as many as the ending, and of more; and over the bounds of blocks.
    #[test]
    fn row_by_row_every_word_is_there_once_and_padded() {
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
            let (mut rows, place) = Rows::at(letters, first, u64::to_le_bytes);
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
    fn a_row_can_be_entered_anywhere() {
        for text in ["a", "ab", "a-z", "aß€😀"] {
            let alphabet = Alphabet::parse(text).unwrap();
            for number in (0..1000).chain(50_000..51_000) {
                if text == "a" && number > 1000 {
                    break; // words longer than any that is searched
                }
                let (rows, place) = Rows::at(alphabet.letters(), number, u64::to_le_bytes);
                let message = rows.messages(place..rows.width()).next().unwrap().as_flattened();
                assert_eq!(message, padded(&word(alphabet.letters(), number)), "{text:?} {number}");
            }
        }
    }

    #[test]
    fn rows_are_wide_but_not_too_wide() {
        for (text, short, long) in
            [("a", 1, 1), ("ab", 4, 16), ("abc", 9, 27), ("a-d", 16, 16), ("a-o", 225, 225), ("a-p", 16, 16)]
        {
            let alphabet = Alphabet::parse(text).unwrap();
            let width = |length| alphabet.letters().len().pow(ending(alphabet.letters(), length));
            assert_eq!((width(2), width(9)), (short, long), "{text:?}");
        }
    }

    #[test]
    fn the_last_number_of_all_has_a_word() {
        let alphabet = Alphabet::parse("ab").unwrap();
        assert_eq!(word(alphabet.letters(), u64::MAX), format!("{}b", "a".repeat(63)));
        let (rows, place) = Rows::at(alphabet.letters(), u64::MAX, u64::to_be_bytes);
        assert_eq!((rows.width(), place), (16, 1));
    }
}
