//! Any order, repetition, grouping and crash gives the same ledger.

use proptest::prelude::*;

use super::*;

fn messages(job: &SubmittedJob, total: u64) -> impl Strategy<Value = Vec<Message>> + use<> {
    // Every task has one outcome: 3, 13, 23 … fail.
    let job = job.clone();
    let fails = |index: u64| index % 10 == 3;
    let pieces = prop::collection::vec((0..total, 1u64..30), 0..12);
    pieces.prop_map(move |pieces| {
        let extra = pieces.into_iter().map(|(start, len)| start..(start + len).min(total));
        let all = (0..total).step_by(7).map(|start| start..(start + 7).min(total));
        let as_message = |range: Range<u64>| {
            let (mut spans, mut failed) = (Vec::<(u64, u32, String)>::new(), Vec::new());
            for index in range {
                match spans.last_mut() {
                    _ if fails(index) => failed.push(index),
                    Some((first, count, outputs)) if *first + u64::from(*count) == index => {
                        *count += 1;
                        outputs.push_str(&format!(",{index}"));
                    }
                    _ => spans.push((index, 1, format!("[{index}"))),
                }
            }
            spans.iter_mut().for_each(|(_, _, outputs)| outputs.push(']'));
            let spans: Vec<_> =
                spans.iter().map(|(first, count, outputs)| (*first, *count, outputs.as_str())).collect();
            job.spans(&spans, &failed, 0)
        };
        all.chain(extra).map(as_message).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_order_gives_same_ledger(
        (job, total, messages) in (1u64..90).prop_flat_map(|total| {
            let job = SubmittedJob::toy();
            (Just(job.clone()), Just(total), messages(&job, total).prop_shuffle())
        }),
        seal_at in any::<prop::sample::Index>(),
        open_at in any::<prop::sample::Index>(),
        ends in prop::collection::vec((1usize..6, any::<bool>()), 1..8),
    ) {
        let outcomes: u64 = messages.iter().map(|message| {
            let results: gristmill_shared::wire::Results<'_> = decode(message).unwrap();
            results.done.iter().map(|span| u64::from(span.count)).sum::<u64>() + results.failed.len() as u64
        }).sum();
        let mut sequence = messages;
        sequence.insert(seal_at.index(sequence.len() + 1), job.sealed(total));
        sequence.insert(open_at.index(sequence.len() + 1), job.opened());
        let fixture = EngineFixture::new();
        let mut rest = &sequence[..];
        let mut repeated = 0;
        for (size, killed) in ends.iter().cycle() {
            let (group, others) = rest.split_at((*size).min(rest.len()));
            if *killed && repeated < 8 {
                drop(accept_all(fixture.engine(), group.iter().cloned())); // they come again
                repeated += 1;
                continue;
            }
            fixture.commit(group.iter().cloned());
            rest = others;
            if rest.is_empty() {
                break;
            }
        }
        let verification = fixture.verify(&job);
        prop_assert!(verification.ok, "{:?}", verification);
        let failed = (0..total).filter(|index| index % 10 == 3).count() as u64;
        prop_assert_eq!((verification.done, verification.failed, verification.skipped), (total - failed, failed, 0));
        prop_assert_eq!(verification.duplicates + verification.late, outcomes - total);
        let expected: u64 = (0..total).filter(|index| index % 10 != 3).sum();
        let report = fixture.report(&job);
        prop_assert_eq!(report.parse::<u64>().unwrap_or_default(), expected);
        let view = fixture.reader().job(job.id).unwrap().unwrap();
        prop_assert_eq!(view.conclusion.unwrap().text, format!("{expected} from {} tasks", total - failed));
    }
}
