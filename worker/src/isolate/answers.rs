//! The writer of a child's answers, which buffers outcomes for a moment so that tiny tasks do not
//! cost one write each.

use std::{
    fs::File,
    io::{self, Write as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use gristmill_shared::{Chunk, DoneTasks, TaskFailure};
use serde_json::value::RawValue;

use super::protocol::{Answer, AnswerFailure, write_line};

/// Time for which outcomes are buffered, since each write wakes two threads of the worker. A child
/// that dies loses the outcomes of that time, and their tasks run again.
const ANSWER_DELAY: Duration = Duration::from_millis(50);

/// The answers of a child, in order. A thread writes the buffered ones.
pub(super) struct AnswerWriter {
    buffer: Mutex<AnswerBuffer>,
    filled: Condvar,
}

/// Answers that are not yet written.
struct AnswerBuffer {
    out: File,
    /// Outputs that have no line yet, later than all of `lines`.
    done: Option<DoneTasks>,
    lines: Vec<u8>,
}

impl AnswerWriter {
    /// Starts a writer of answers to `out`.
    ///
    /// # Errors
    /// If the operating system refuses another thread.
    pub(super) fn start(out: File) -> io::Result<Arc<Self>> {
        let buffer = AnswerBuffer { out, done: None, lines: Vec::new() };
        let answers = Arc::new(Self { buffer: Mutex::new(buffer), filled: Condvar::new() });
        let writer = Arc::clone(&answers);
        thread::Builder::new().name("answers".into()).spawn(move || writer.write_buffered())?;
        Ok(answers)
    }

    /// Adds the outcomes of some tasks.
    ///
    /// # Errors
    /// If the worker does not read any more.
    pub(super) fn push(&self, chunk: Chunk) -> io::Result<()> {
        let mut buffer = self.lock();
        let was_empty = buffer.is_empty();
        let mut failed = chunk.failed.into_iter().peekable();
        for done in chunk.done {
            while let Some(failure) = failed.next_if(|failure| failure.index < done.first) {
                buffer.push_failure(&failure)?;
            }
            buffer.push_outputs(done)?;
        }
        failed.try_for_each(|failure| buffer.push_failure(&failure))?;
        if was_empty && !buffer.is_empty() {
            drop(buffer);
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Adds an answer that may be written later, with those that follow.
    ///
    /// # Errors
    /// The same as [`AnswerWriter::push`].
    pub(super) fn push_answer(&self, answer: &Answer<&RawValue>) -> io::Result<()> {
        let mut buffer = self.lock();
        let was_empty = buffer.is_empty();
        buffer.finish_outputs()?;
        write_line(&mut buffer.lines, answer)?;
        drop(buffer);
        if was_empty {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Writes an answer, after all that are buffered.
    ///
    /// # Errors
    /// The same as [`AnswerWriter::push`].
    pub(super) fn write_answer(&self, answer: &Answer<&RawValue>) -> io::Result<()> {
        let mut buffer = self.lock();
        buffer.finish_outputs()?;
        write_line(&mut buffer.lines, answer)?;
        buffer.flush()
    }

    fn write_buffered(&self) {
        loop {
            let waiting = self.filled.wait_while(self.lock(), |buffer| buffer.is_empty());
            let filled = waiting.unwrap_or_else(PoisonError::into_inner);
            let expired = self.filled.wait_timeout_while(filled, ANSWER_DELAY, |buffer| !buffer.is_empty());
            drop(expired);
            if self.lock().flush().is_err() {
                return; // the slot's own next write meets the same error
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, AnswerBuffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AnswerBuffer {
    fn is_empty(&self) -> bool {
        self.done.is_none() && self.lines.is_empty()
    }

    fn push_outputs(&mut self, done: DoneTasks) -> io::Result<()> {
        let apart = match &mut self.done {
            Some(before) => before.append(done).err(),
            None => Some(done),
        };
        if let Some(apart) = apart {
            self.finish_outputs()?;
            self.done = Some(apart);
        }
        Ok(())
    }

    fn push_failure(&mut self, failure: &TaskFailure) -> io::Result<()> {
        self.finish_outputs()?;
        if let Some(reason) = AnswerFailure::from_kind(&failure.trouble) {
            let answer = Answer::<&RawValue>::Failed { index: failure.index, failure: reason };
            write_line(&mut self.lines, &answer)?;
        }
        Ok(())
    }

    /// Moves the pending outputs into a line.
    fn finish_outputs(&mut self) -> io::Result<()> {
        let Some(done) = self.done.take() else { return Ok(()) };
        let first = done.first;
        write_line(&mut self.lines, &Answer::Done { first, outputs: &*done.into_outputs() })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.finish_outputs()?;
        self.out.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}
