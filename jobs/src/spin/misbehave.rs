//! Tasks that do not do what a task should: to test what they cost.

use std::{
    future::{Future as _, pending},
    hint::black_box,
    pin::pin,
    process::Command,
    str::FromStr,
    task::{Context, Waker},
    thread,
};

use serde::{Deserialize, Serialize};

/// A task that misbehaves. On the command line `INDEX=HOW`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misbehaviour {
    /// The index of the task.
    pub index: u64,
    /// Its act, instead of its work.
    pub how: How,
}

/// An act of a task that misbehaves. None looks at `cx.check()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Computes for ever.
    Spin,
    /// Sleeps for ever.
    Sleep,
    /// Waits for a future that is never ready.
    Await,
    /// Waits for `sleep` with this number of seconds, by the standard library's means.
    Command(String),
    /// Aborts its process.
    Abort,
    /// Overflows its stack.
    Overflow,
}

impl FromStr for Misbehaviour {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "expected INDEX=HOW, with spin, sleep, await, command:SECONDS, abort or overflow as HOW";
        let (index, how) = text.split_once('=').ok_or(EXPECTED)?;
        let how = match how.split_once(':') {
            Some(("command", seconds)) => How::Command(seconds.into()),
            Some(_) => return Err(EXPECTED),
            None => match how {
                "spin" => How::Spin,
                "sleep" => How::Sleep,
                "await" => How::Await,
                "abort" => How::Abort,
                "overflow" => How::Overflow,
                _ => return Err(EXPECTED),
            },
        };
        Ok(Self { index: index.parse().map_err(|_| EXPECTED)?, how })
    }
}

impl Misbehaviour {
    /// Misbehaves. First prints a line, and tells standard error, since nothing else shows when
    /// it begins.
    pub(super) fn perform(&self) -> ! {
        println!("task {} prints", self.index);
        eprintln!("task {} misbehaves: {:?}", self.index, self.how);
        match &self.how {
            How::Spin => loop {
                black_box(());
            },
            How::Sleep => sleep(),
            How::Await => {
                let mut never = pin!(pending::<()>());
                let ready = never.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(ready.is_pending());
                sleep()
            }
            How::Command(seconds) => {
                let ended = Command::new("sleep").arg(seconds).status();
                panic!("sleep {seconds} ended: {ended:?}")
            }
            How::Abort => std::process::abort(),
            How::Overflow => {
                let depth = overflow(0);
                panic!("a stack of {depth} frames has not overflowed")
            }
        }
    }
}

fn sleep() -> ! {
    loop {
        thread::park();
    }
}

/// Calls itself, each time with some stack of its own, deeper than any stack.
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX { depth } else { overflow(frame[7] + 1).max(black_box(frame)[3]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misbehaviour_is_read_from_words() {
        let parsed = |text: &str| text.parse::<Misbehaviour>();
        assert_eq!(parsed("7=overflow"), Ok(Misbehaviour { index: 7, how: How::Overflow }));
        let how = How::Command("4242.5".into());
        assert_eq!(parsed("0=command:4242.5"), Ok(Misbehaviour { index: 0, how }));
        for bad in ["", "7", "spin", "x=spin", "7=dance", "7=command", "7=spin:3"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
