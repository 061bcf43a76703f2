//! Submission of a job: its plan, its tasks, its seal, and the tasks that are sent again.

mod options;
mod producer;
mod resend_missing;
mod send;
mod shared_state;

pub use options::SubmitOptions;
pub use producer::{Producer, Submission};
pub use resend_missing::MissingReport;
pub use send::{SplitEnd, SplitReport};
