//! The W3C trace context of a message: the trace of its job, and the span that made it.

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

/// The value of the header `traceparent`. A job is one trace. The process that publishes a batch
/// opens a span for it. The process that takes a message opens another span, a child of the
/// message's, and its own messages carry that one.
///
/// ```
/// # use gristmill_shared::{JobId, TraceParent};
/// let job: JobId = "0192d3a0-7b1c-7d2e-8f3a-1b2c3d4e5f60".parse()?;
/// let batch = TraceParent::for_message(job, "a batch's id");
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

/// The flag that allows the trace to be recorded.
const SAMPLED_FLAG: u8 = 1;

impl TraceParent {
    /// Returns the span that publishes a message with the id `message`, in the trace of its job.
    /// The trace id is the job's id without hyphens, so that one can be found from the other; 62 of
    /// its bits are random. A message published again has the same span.
    #[must_use]
    pub fn for_message(job: JobId, message: &str) -> Self {
        Self { trace: Uuid::from(job).as_u128(), span: span_number(message.as_bytes()), flags: SAMPLED_FLAG }
    }

    /// Returns a new span for the process that takes a message with this context. Each call returns
    /// another one, because a message may be taken twice.
    #[must_use]
    pub fn follow(self) -> Self {
        // Hashes of numbers that count up from a random one: a random number each time would cost
        // more than the rest of this function.
        static NEXT_SEED: LazyLock<AtomicU64> =
            LazyLock::new(|| AtomicU64::new(Uuid::now_v7().as_u64_pair().1));
        let seed = NEXT_SEED.fetch_add(1, Ordering::Relaxed);
        Self { span: span_number(&seed.to_le_bytes()), ..self }
    }

    /// Returns the trace id, which all messages of a trace share.
    #[must_use]
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Returns the span id if the trace is to be recorded; its origin may have disabled that.
    #[must_use]
    pub fn span_id(self) -> Option<String> {
        (self.flags & SAMPLED_FLAG != 0).then(|| format!("{:016x}", self.span))
    }
}

fn span_number(seed: &[u8]) -> u64 {
    xxh3_64(seed).max(1) // 0 is invalid
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// The error for an invalid trace context. The message is processed nevertheless.
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
        // A later version may have more fields; these keep their meaning.
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
    fn trace_continues_across_messages() {
        let job = JobId::generate();
        let (batch, again) = (TraceParent::for_message(job, "1"), TraceParent::for_message(job, "1"));
        assert_eq!(batch, again, "the same message is the same span");
        assert_eq!(batch.to_string().parse(), Ok(batch));
        let (run, another) = (batch.follow(), batch.follow());
        assert_eq!(run.trace_id(), job.to_string().replace('-', ""));
        assert!(run.span_id() != batch.span_id() && run.span_id() != another.span_id());
        assert_eq!(run.to_string(), format!("00-{}-{}-01", run.trace_id(), run.span_id().unwrap()));
    }

    #[test]
    fn unsampled_trace_stays_unsampled() {
        let theirs: TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse().unwrap();
        assert_eq!((theirs.span_id(), theirs.follow().span_id()), (None, None));
        assert!(theirs.follow().to_string().ends_with("-00"));
    }

    #[test]
    fn invalid_trace_context_is_refused() {
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
