//! The alphabet of the candidates, and their number.

use gristmill_shared::JobError;

/// The most letters an alphabet may have: it is expanded once per task.
const MAX_LETTERS: usize = 256;

/// One letter, ready to be copied into a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct AlphabetLetter {
    pub(super) letter: char,
    utf8: [u8; 4],
    width: u8,
}

impl AlphabetLetter {
    fn new(letter: char) -> Self {
        let mut utf8 = [0; 4];
        let width = letter.encode_utf8(&mut utf8).len() as u8;
        Self { letter, utf8, width }
    }

    /// Returns its bytes in UTF-8, one to four.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.utf8[..usize::from(self.width)]
    }
}

/// Letters in the order of the spec, each once. Never empty.
#[derive(Debug)]
pub(super) struct Alphabet(Vec<AlphabetLetter>);

impl Alphabet {
    /// Parses letters and ranges (`a-z`). A `-` that is first or last is a letter; a letter given
    /// twice counts once.
    pub(super) fn parse(text: &str) -> Result<Self, JobError> {
        let refuse = |why: String| Err(JobError::new(format!("--alphabet {text:?}: {why}")));
        let symbols: Vec<char> = text.chars().collect();
        let mut letters: Vec<AlphabetLetter> = Vec::with_capacity(symbols.len().min(MAX_LETTERS));
        let mut at = 0;
        while let Some(&low) = symbols.get(at) {
            let (high, next) = match symbols.get(at + 1..at + 3) {
                Some(&['-', high]) => (high, at + 3),
                _ => (low, at + 1),
            };
            if low == '-' && at > 0 && next < symbols.len() && next == at + 1 {
                return refuse(
                    "'-' is between two ranges (hint: put it first or last to mean the letter '-')".into(),
                );
            }
            if low > high {
                return refuse(format!(
                    "the range {low}-{high} is reversed (hint: did you mean {high}-{low}?)"
                ));
            }
            for letter in low..=high {
                if letters.iter().any(|known| known.letter == letter) {
                    continue;
                }
                if letters.len() == MAX_LETTERS {
                    return refuse(format!("more than {MAX_LETTERS} letters, expected at most that many"));
                }
                letters.push(AlphabetLetter::new(letter));
            }
            at = next;
        }
        if letters.is_empty() {
            return refuse("no letters, expected at least one (hint: a-z, or a-zA-Z0-9)".into());
        }
        Ok(Self(letters))
    }

    pub(super) fn letters(&self) -> &[AlphabetLetter] {
        &self.0
    }

    /// Returns the number of words of 1 to `max_length` letters. The error is the number as text,
    /// if it exceeds u64.
    pub(super) fn words(&self, max_length: u32) -> Result<u64, String> {
        let letters = self.0.len() as u128;
        let mut words = Some(0_u128);
        for _ in 0..max_length {
            words = words.and_then(|shorter| shorter.checked_add(1)?.checked_mul(letters));
        }
        match words {
            Some(words) => u64::try_from(words).map_err(|_| super::group_thousands(words)),
            None => Err(format!("about 10^{:.0}", f64::from(max_length) * (letters as f64).log10())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> String {
        Alphabet::parse(text).unwrap().letters().iter().map(|letter| letter.letter).collect()
    }

    #[test]
    fn ranges_and_letters_expand() {
        for (text, letters) in [
            ("a-e", "abcde"),
            ("a-c0-2", "abc012"),
            ("xyz", "xyz"),
            ("c-ca", "ca"),
            ("-a-c", "-abc"),
            ("a-c-", "abc-"),
            ("-", "-"),
            ("--", "-"),
            ("+--", "+,-"),
            ("a-cb-d", "abcd"),
            ("à-âß", "àáâß"),
            (" \n", " \n"),
        ] {
            assert_eq!(expand(text), letters, "{text:?}");
        }
    }

    #[test]
    fn unclear_alphabet_is_refused() {
        for (text, why) in [
            ("", "no letters"),
            ("z-a", "did you mean a-z?"),
            ("a-c-e", "first or last"),
            ("\u{0}-\u{10ffff}", "more than 256 letters"),
        ] {
            let error = Alphabet::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn words_are_counted_up_to_u64() {
        let words = |text, max_length| Alphabet::parse(text).unwrap().words(max_length);
        assert_eq!(words("a-z", 4), Ok(475_254));
        assert_eq!(words("a", 1000), Ok(1000));
        assert_eq!(words("ab", 63), Ok(u64::MAX - 1));
        assert_eq!(words("ab", 64), Err("36,893,488,147,419,103,230".into()));
        assert_eq!(words("a-z", 100), Err("about 10^141".into()));
    }
}
