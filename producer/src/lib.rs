//! Splits a job lazily, publishes its tasks confirmed and within bounds, and seals it.
//!
//! ```text
//! split (thread, user code) ──▶ packed batches (bounded) ──▶ sending (async, window) ──▶ tasks
//!   ▲                                                             │
//!   └── size of the next batch ◀── measured task time (events)      └──▶ cursor (file)
//! ```

mod cancel;
mod cursor;
mod error;
mod following;
mod kept_cursor;
mod measured;
mod missing;
mod producer;
mod sending;
mod sizing;
mod splitting;
mod watch;
mod window;

pub use cancel::{Cancelling, cancel};
pub use cursor::{CURSORS_KEPT, Cursor, CursorDir, CursorError};
pub use error::ProducerError;
pub use missing::MissingReport;
pub use producer::{Producer, Submission, SubmitOptions};
pub use sending::{SplitEnd, SplitReport};
pub use watch::{News, OutcomeError, Watch};
