//! Misbehaving tasks, to test their effects.

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
    /// The kind of misbehaviour.
    pub how: MisbehaviourKind,
}

/// A kind of misbehaviour, in place of the task's work. None calls `cx.check()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MisbehaviourKind {
    /// Computes forever.
    Spin,
    /// Sleeps forever.
    Sleep,
    /// Waits for a future that is never ready.
    Await,
    /// Runs `sleep` with this number of seconds, by the standard library.
    Command(String),
    /// Aborts its process.
    Abort,
    /// Overflows its stack.
    Overflow,
}

impl FromStr for Misbehaviour {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED_SYNTAX: &str =
            "expected INDEX=HOW, with spin, sleep, await, command:SECONDS, abort or overflow as HOW";
        let (index, how) = text.split_once('=').ok_or(EXPECTED_SYNTAX)?;
        let how = match how.split_once(':') {
            Some(("command", seconds)) => MisbehaviourKind::Command(seconds.into()),
            Some(_) => return Err(EXPECTED_SYNTAX),
            None => match how {
                "spin" => MisbehaviourKind::Spin,
                "sleep" => MisbehaviourKind::Sleep,
                "await" => MisbehaviourKind::Await,
                "abort" => MisbehaviourKind::Abort,
                "overflow" => MisbehaviourKind::Overflow,
                _ => return Err(EXPECTED_SYNTAX),
            },
        };
        Ok(Self { index: index.parse().map_err(|_| EXPECTED_SYNTAX)?, how })
    }
}

impl Misbehaviour {
    /// Misbehaves. First prints a line to each of standard output and standard error, since its
    /// beginning has no other trace.
    pub(super) fn perform(&self) -> ! {
        println!("task {} prints", self.index);
        eprintln!("task {} misbehaves: {:?}", self.index, self.how);
        match &self.how {
            MisbehaviourKind::Spin => loop {
                black_box(());
            },
            MisbehaviourKind::Sleep => sleep(),
            MisbehaviourKind::Await => {
                let mut never = pin!(pending::<()>());
                let ready = never.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(ready.is_pending());
                sleep()
            }
            MisbehaviourKind::Command(seconds) => {
                let ended = Command::new("sleep").arg(seconds).status();
                panic!("sleep {seconds} ended: {ended:?}")
            }
            MisbehaviourKind::Abort => std::process::abort(),
            MisbehaviourKind::Overflow => {
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

/// Overflows the stack: calls itself, with some stack of its own each time.
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX { depth } else { overflow(frame[7] + 1).max(black_box(frame)[3]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misbehaviour_is_parsed() {
        let parsed = |text: &str| text.parse::<Misbehaviour>();
        assert_eq!(parsed("7=overflow"), Ok(Misbehaviour { index: 7, how: MisbehaviourKind::Overflow }));
        let how = MisbehaviourKind::Command("4242.5".into());
        assert_eq!(parsed("0=command:4242.5"), Ok(Misbehaviour { index: 0, how }));
        for bad in ["", "7", "spin", "x=spin", "7=dance", "7=command", "7=spin:3"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
