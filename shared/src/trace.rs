//! The W3C trace context of a message: which job's trace it belongs to, and in which span it was made.

use std::{
    fmt,
    str::FromStr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::JobId;

/// What the header `traceparent` says. A job is one trace. Whoever sends a batch of it has a span for that, whoever takes
/// a message another one, which follows from the message's; what is published then carries that on.
///
/// ```
/// # use gristmill_shared::{JobId, TraceParent};
/// let job: JobId = "0192d3a0-7b1c-7d2e-8f3a-1b2c3d4e5f60".parse()?;
/// let batch = TraceParent::of_job(job, "a batch's id");
/// assert_eq!(batch.trace_id(), "0192d3a07b1c7d2e8f3a1b2c3d4e5f60");
/// let header = batch.to_string();
/// let run = header.parse::<TraceParent>().unwrap().follow();
/// assert!(run.to_string().starts_with("00-0192d3a07b1c7d2e8f3a1b2c3d4e5f60-"));
/// assert_ne!(run.span_id(), batch.span_id());
/// # Ok::<(), gristmill_shared::InvalidName>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

/// Somebody may record it.
const SAMPLED: u8 = 1;

impl TraceParent {
    /// Of whoever sends a message with this id, in the trace of its job. The trace's id is the job's, without its hyphens,
    /// so that one finds the other; 62 of its bits are random. The message published again is the same span.
    #[must_use]
    pub fn of_job(job: JobId, message: &str) -> Self {
        Self { trace: Uuid::from(job).as_u128(), span: span(message.as_bytes()), flags: SAMPLED }
    }

    /// Of whoever takes a message that has this. A new one each time, since a message may be taken twice.
    #[must_use]
    pub fn follow(self) -> Self {
        // Hashes of numbers that go on from a random one: asking for randomness each time would cost more than all else here.
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(Uuid::now_v7().as_u64_pair().1));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { span: span(&number.to_le_bytes()), ..self }
    }

    /// What all messages of a trace have in common.
    #[must_use]
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Which span of it, if it is to be recorded: whoever began the trace may not want it.
    #[must_use]
    pub fn span_id(self) -> Option<String> {
        (self.flags & SAMPLED != 0).then(|| format!("{:016x}", self.span))
    }
}

fn span(of: &[u8]) -> u64 {
    xxh3_64(of).max(1) // 0 is none
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// It is no trace context, which is no reason not to work on a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a W3C traceparent, 00-TRACE-SPAN-FLAGS")]
pub struct InvalidTrace;

impl FromStr for TraceParent {
    type Err = InvalidTrace;

    fn from_str(text: &str) -> Result<Self, InvalidTrace> {
        let mut fields = text.split('-');
        let mut field = |length: usize| {
            let field = fields.next().filter(|field| field.len() == length)?;
            let plain = field.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            plain.then(|| u128::from_str_radix(field, 16).ok()).flatten()
        };
        let (version, trace) = (field(2).ok_or(InvalidTrace)?, field(32).ok_or(InvalidTrace)?);
        let (span, flags) = (field(16).ok_or(InvalidTrace)?, field(2).ok_or(InvalidTrace)?);
        // A later version may have more fields, and says the same in these.
        let more = fields.next().is_some();
        if trace == 0 || span == 0 || version == 0xff || (version == 0 && more) {
            return Err(InvalidTrace);
        }
        let (span, flags) = (u64::try_from(span), u8::try_from(flags));
        Ok(Self { trace, span: span.map_err(|_| InvalidTrace)?, flags: flags.map_err(|_| InvalidTrace)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_on_from_message_to_message() {
        let job = JobId::generate();
        let (batch, again) = (TraceParent::of_job(job, "1"), TraceParent::of_job(job, "1"));
        assert_eq!(batch, again, "the same message is the same span");
        assert_eq!(batch.to_string().parse(), Ok(batch));
        let (run, another) = (batch.follow(), batch.follow());
        assert_eq!(run.trace_id(), job.to_string().replace('-', ""));
        assert!(run.span_id() != batch.span_id() && run.span_id() != another.span_id());
        assert_eq!(run.to_string(), format!("00-{}-{}-01", run.trace_id(), run.span_id().unwrap()));
    }

    #[test]
    fn a_trace_that_nobody_wants_recorded_goes_on_unrecorded() {
        let theirs: TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse().unwrap();
        assert_eq!((theirs.span_id(), theirs.follow().span_id()), (None, None));
        assert!(theirs.follow().to_string().ends_with("-00"));
    }

    #[test]
    fn what_is_no_trace_context_is_told_from_one() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for good in [
            format!("00-{trace}-b7ad6b7169203331-01"),
            format!("00-{trace}-b7ad6b7169203331-00"),
            format!("01-{trace}-b7ad6b7169203331-01-more"),
        ] {
            assert_eq!(good.parse::<TraceParent>().unwrap().trace_id(), trace, "{good}");
        }
        for bad in [
            String::new(),
            "00-1-2-01".into(),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{trace}-b7ad6b7169203331-01-more"),
            format!("00-{trace}-b7ad6b7169203331"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            format!("00-{}-b7ad6b7169203331-01", "+".repeat(32)),
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(InvalidTrace), "{bad}");
        }
    }
}
