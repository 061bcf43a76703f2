//! Texts about a job that gets no outcomes.

use gristmill_shared::JobId;
use indicatif::HumanCount;

/// Maximum number of ranges of missing tasks that are listed; the rest are counted.
const RANGES_SHOWN_MAX: usize = 10;

/// Returns a hint about the likely causes of a stall. Callers cannot know whether messages were
/// lost.
pub(crate) fn stall_hint(job: JobId, sealed: bool) -> String {
    let unfinished =
        if sealed { String::new() } else { format!(" Is its producer? If not: `producer resume {job}`.") };
    format!(
        "hint: is a worker running?{unfinished} Tasks may be long, or wait for their next attempt. If the broker lost their \
         messages, `producer resume {job} --missing` sends the missing tasks again, where the job was submitted"
    )
}

/// Returns the first few ranges of tasks, and the number of tasks in the rest.
pub(crate) fn ranges_text(ranges: impl Iterator<Item = (u64, u64)>, tasks: u64) -> String {
    let (mut texts, mut rest) = (Vec::new(), tasks);
    for (first, count) in ranges.take(RANGES_SHOWN_MAX) {
        rest = rest.saturating_sub(count);
        texts.push(if count == 1 { first.to_string() } else { format!("{first}-{}", first + count - 1) });
    }
    if rest > 0 {
        texts.push(format!("and {} tasks more", HumanCount(rest)));
    }
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ranges_are_counted() {
        assert_eq!(ranges_text([(17, 64), (100, 1)].into_iter(), 65), "17-80, 100");
        let many = (0..20).map(|place| (place * 10, 2));
        let text = ranges_text(many, 2_040);
        assert!(
            text.starts_with("0-1, 10-11, ") && text.ends_with(", 90-91, and 2,020 tasks more"),
            "{text}"
        );
    }
}
