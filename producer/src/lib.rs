//! Splits a job lazily, publishes its tasks with confirms and within bounds, and seals it.
//!
//! ```text
//! split (thread, user code) ──▶ packed batches (bounded) ──▶ sending (async, window) ──▶ tasks
//!   ▲                                                             │
//!   └── size of the next batch ◀── measured task time (events)      └──▶ cursor (file)
//! ```

mod batch_size;
mod cancel;
mod cursor;
mod cursor_file;
mod error;
mod splitter;
mod submit;
mod watcher;
mod window;

pub use cancel::{CancelOutcome, cancel};
pub use cursor::{CURSORS_KEPT, Cursor, CursorDir, CursorError};
pub use error::ProducerError;
pub use submit::{MissingReport, Producer, SplitEnd, SplitReport, Submission, SubmitOptions};
pub use watcher::{JobUpdate, JobWatcher, OutcomeError};
