//! The answers of a child: outcomes gather for a moment, so that tiny tasks do not cost a write
//! each.

use std::{
    fs::File,
    io::{self, Write as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use gristmill_shared::{Chunk, DoneTasks, TaskFailure};
use serde_json::value::RawValue;

use super::protocol::{Answer, Why, write_line};

/// Time for which outcomes gather: each write wakes two threads of the worker. A child that dies
/// takes the outcomes of that time with it, and their tasks run again.
const ANSWER_DELAY: Duration = Duration::from_millis(50);

/// The answers of a child, in order. A thread writes what has gathered.
pub(super) struct Answers {
    state: Mutex<State>,
    gathering: Condvar,
}

struct State {
    out: File,
    /// Outputs that have no line yet, later than all of `lines`.
    done: Option<DoneTasks>,
    lines: Vec<u8>,
}

impl Answers {
    /// Answers that are written to `out`.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub(super) fn start(out: File) -> io::Result<Arc<Self>> {
        let state = State { out, done: None, lines: Vec::new() };
        let answers = Arc::new(Self { state: Mutex::new(state), gathering: Condvar::new() });
        let writer = Arc::clone(&answers);
        thread::Builder::new().name("answers".into()).spawn(move || writer.write_gathered())?;
        Ok(answers)
    }

    /// Adds the outcomes of some tasks.
    ///
    /// # Errors
    /// If the worker does not read any more.
    pub(super) fn push(&self, chunk: Chunk) -> io::Result<()> {
        let mut state = self.lock();
        let was_empty = state.is_empty();
        let mut failed = chunk.failed.into_iter().peekable();
        for done in chunk.done {
            while let Some(failure) = failed.next_if(|failure| failure.index < done.first) {
                state.fail(&failure)?;
            }
            state.push(done)?;
        }
        failed.try_for_each(|failure| state.fail(&failure))?;
        if was_empty && !state.is_empty() {
            drop(state);
            self.gathering.notify_one();
        }
        Ok(())
    }

    /// Adds an answer that need not be read before what follows it.
    ///
    /// # Errors
    /// The same as [`Answers::push`].
    pub(super) fn gather(&self, answer: &Answer<&RawValue>) -> io::Result<()> {
        let mut state = self.lock();
        let was_empty = state.is_empty();
        state.settle()?;
        write_line(&mut state.lines, answer)?;
        drop(state);
        if was_empty {
            self.gathering.notify_one();
        }
        Ok(())
    }

    /// Writes an answer, and what has gathered before it.
    ///
    /// # Errors
    /// The same as [`Answers::push`].
    pub(super) fn answer(&self, answer: &Answer<&RawValue>) -> io::Result<()> {
        let mut state = self.lock();
        state.settle()?;
        write_line(&mut state.lines, answer)?;
        state.flush()
    }

    fn write_gathered(&self) {
        loop {
            let waiting = self.gathering.wait_while(self.lock(), |state| state.is_empty());
            let gathering = waiting.unwrap_or_else(PoisonError::into_inner);
            let gathered =
                self.gathering.wait_timeout_while(gathering, ANSWER_DELAY, |state| !state.is_empty());
            drop(gathered);
            if self.lock().flush().is_err() {
                return; // the slot's own next write meets the same error
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.done.is_none() && self.lines.is_empty()
    }

    fn push(&mut self, done: DoneTasks) -> io::Result<()> {
        let apart = match &mut self.done {
            Some(before) => before.append(done).err(),
            None => Some(done),
        };
        if let Some(apart) = apart {
            self.settle()?;
            self.done = Some(apart);
        }
        Ok(())
    }

    fn fail(&mut self, failure: &TaskFailure) -> io::Result<()> {
        self.settle()?;
        if let Some(why) = Why::of(&failure.trouble) {
            write_line(&mut self.lines, &Answer::<&RawValue>::Failed { index: failure.index, why })?;
        }
        Ok(())
    }

    /// Makes a line of the outputs.
    fn settle(&mut self) -> io::Result<()> {
        let Some(done) = self.done.take() else { return Ok(()) };
        let first = done.first;
        write_line(&mut self.lines, &Answer::Done { first, outputs: &*done.into_outputs() })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.settle()?;
        self.out.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}
