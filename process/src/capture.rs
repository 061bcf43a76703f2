//! Bounded capture of a pipe.

use std::io;

use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver};

use crate::command::StdoutBound;

/// The size of a read, in bytes: the capacity of a pipe.
const READ_BYTES: usize = 64 << 10;

/// The error of a command that wrote more bytes than this bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutputExceeded(pub(crate) usize);

/// The bytes of a pipe, up to the bound. A tail takes up to twice its bound while it is read.
#[derive(Debug)]
pub(crate) struct Capture {
    bound: StdoutBound,
    bytes: Vec<u8>,
    omitted: u64,
}

impl Capture {
    pub(crate) fn new(bound: StdoutBound) -> Self {
        Self { bound, bytes: Vec::new(), omitted: 0 }
    }

    /// Reads to the end of file, or until the bound is exceeded. Cancel safe: bytes that were read
    /// are kept.
    ///
    /// # Errors
    /// If a maximum is exceeded. A pipe that cannot be read counts as ended.
    pub(crate) async fn read(&mut self, mut pipe: Receiver) -> Result<(), OutputExceeded> {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        loop {
            buffer.clear();
            match pipe.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => self.push(&buffer)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(()),
            }
        }
    }

    /// Adds bytes.
    fn push(&mut self, bytes: &[u8]) -> Result<(), OutputExceeded> {
        match self.bound {
            StdoutBound::Max(max) if self.bytes.len() + bytes.len() > max => return Err(OutputExceeded(max)),
            StdoutBound::Max(_) => self.bytes.extend_from_slice(bytes),
            StdoutBound::Tail(tail) => {
                self.bytes.extend_from_slice(bytes);
                if self.bytes.len() > tail.saturating_mul(2).max(READ_BYTES) {
                    self.trim(tail);
                }
            }
        }
        Ok(())
    }

    fn trim(&mut self, tail: usize) {
        let extra = self.bytes.len().saturating_sub(tail);
        self.bytes.drain(..extra);
        self.omitted += extra as u64;
    }

    /// Returns the bytes, and the number of bytes before them that were dropped.
    pub(crate) fn finish(mut self) -> (Vec<u8>, u64) {
        if let StdoutBound::Tail(tail) = self.bound {
            self.trim(tail);
        }
        (self.bytes, self.omitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_counts_dropped_bytes() {
        let mut tail = Capture::new(StdoutBound::Tail(10));
        for _ in 0..3 {
            tail.push(&[b'x'; READ_BYTES - 1]).unwrap();
        }
        tail.push(b"0123456789").unwrap();
        let dropped = 3 * (READ_BYTES as u64 - 1);
        assert_eq!(tail.finish(), (b"0123456789".to_vec(), dropped));
    }

    #[test]
    fn maximum_is_exact() {
        let mut bounded = Capture::new(StdoutBound::Max(4));
        assert_eq!(bounded.push(b"1234"), Ok(()));
        assert_eq!(bounded.push(b"5"), Err(OutputExceeded(4)));
        assert_eq!(bounded.finish(), (b"1234".to_vec(), 0));
    }
}
