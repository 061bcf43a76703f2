//! The retry delays as the command line gives them.

use std::{str::FromStr, time::Duration};

use gristmill_shared::{RETRY_DELAY_MAX, RETRY_DELAYS_MAX};

/// The shortest delay: the shortest step of the retry ladder.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);

/// The delays before the second, third, ... attempt, as `1s,5s,1m`; the last one repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryDelays {
    pub(crate) millis: Vec<u64>,
}

impl FromStr for RetryDelays {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let millis: Vec<u64> =
            text.split(',').map(|part| parse_delay_ms(part.trim())).collect::<Result<_, _>>()?;
        if millis.len() > RETRY_DELAYS_MAX {
            return Err(format!(
                "{} delays are listed, expected at most {RETRY_DELAYS_MAX} (hint: the last one repeats)",
                millis.len()
            ));
        }
        Ok(Self { millis })
    }
}

fn parse_delay_ms(text: &str) -> Result<u64, String> {
    let expected = "expected delays from 1s to 24h, with commas between them, as 1s,5s,1m";
    match humantime::parse_duration(text) {
        Ok(delay) if (RETRY_DELAY_MIN..=RETRY_DELAY_MAX).contains(&delay) => {
            Ok(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
        }
        Ok(_) => Err(format!("{text:?} is out of range, {expected}")),
        Err(error) => Err(format!("{text:?} is no duration ({error}), {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delays_are_bounded_durations() {
        let parsed = |text: &str| text.parse::<RetryDelays>().map(|delays| delays.millis);
        assert_eq!(parsed("1s,5s,1m"), Ok(vec![1_000, 5_000, 60_000]));
        assert_eq!(parsed("1500ms, 24h"), Ok(vec![1_500, 86_400_000]));
        assert_eq!(parsed(&["2s"; 16].join(",")), Ok(vec![2_000; 16]));
        for (text, part) in [
            ("", "is no duration"),
            ("1s,", "is no duration"),
            ("soon", "\"soon\" is no duration"),
            ("100ms", "\"100ms\" is out of range"),
            ("1s,25h", "\"25h\" is out of range"),
        ] {
            let why = parsed(text).unwrap_err();
            assert!(why.contains(part) && why.contains("1s to 24h"), "{text}: {why}");
        }
        assert!(parsed(&["2s"; 17].join(",")).unwrap_err().contains("at most 16"));
    }
}
