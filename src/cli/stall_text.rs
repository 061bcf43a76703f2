//! What people are told of a job that gets no outcomes.

use gristmill_shared::JobId;
use indicatif::HumanCount;

/// How many ranges of missing tasks are shown to people; the rest are counted.
const RANGES_SHOWN: usize = 10;

/// What may be the matter with a job that stalls. Nobody can say from here that anything is lost.
pub(crate) fn stall_hint(job: JobId, sealed: bool) -> String {
    let unfinished =
        if sealed { String::new() } else { format!(" Is its producer? If not: `producer resume {job}`.") };
    format!(
        "hint: is a worker running?{unfinished} Tasks may be long, or wait for their next try. If the broker lost their \
         messages, `producer resume {job} --missing` sends the missing tasks again, where the job was submitted"
    )
}

/// The first few ranges of tasks, and how many more there are.
pub(crate) fn ranges_text(ranges: impl Iterator<Item = (u64, u64)>, tasks: u64) -> String {
    let (mut texts, mut rest) = (Vec::new(), tasks);
    for (first, count) in ranges.take(RANGES_SHOWN) {
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
    fn few_ranges_are_listed_and_many_are_counted() {
        assert_eq!(ranges_text([(17, 64), (100, 1)].into_iter(), 65), "17-80, 100");
        let many = (0..20).map(|place| (place * 10, 2));
        let text = ranges_text(many, 2_040);
        assert!(
            text.starts_with("0-1, 10-11, ") && text.ends_with(", 90-91, and 2,020 tasks more"),
            "{text}"
        );
    }
}
