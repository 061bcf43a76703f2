//! The typed loops: tasks into batches in the producer, batches into outputs in a worker.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use gristmill_shared::{BatchRun, Chunk, Policy, StopSignal, TaskContext, TaskIndex, erase};

use crate::{
    BATCH_SIZES,
    fixtures::{batch, packed, spin},
};

/// Measures packing of tasks without work into one batch, and into the digest.
pub(crate) fn split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split");
    for count in BATCH_SIZES {
        group.throughput(Throughput::Elements(count.into()));
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bencher, count| {
            bencher.iter(|| black_box(packed(*count)).count());
        });
    }
}

/// Measures a slot that runs such a batch, up to the outputs as they travel.
pub(crate) fn process(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("process");
    for count in BATCH_SIZES {
        let job = erase(spin(count));
        let (spec, tasks) = (job.spec().expect("a spin's parameters are small"), packed(count).finish());
        let batch = batch(&spec, &tasks, count);
        group.throughput(Throughput::Elements(count.into()));
        group.bench_with_input(BenchmarkId::from_parameter(count), &batch, |bencher, batch| {
            bencher.iter(|| {
                let mut outputs = 0;
                let mut emit = |chunk: Chunk| {
                    outputs += chunk
                        .done
                        .into_iter()
                        .map(|done| black_box(done.into_outputs()).get().len())
                        .sum::<usize>();
                };
                let context = TaskContext::new(batch.job, TaskIndex(0), 0, StopSignal::new());
                let mut run = BatchRun::new(context, &Policy::default(), StopSignal::new(), &mut emit);
                let ran = job.process_batch(batch, &mut run).expect("the batch is well-formed");
                drop(run);
                assert!(ran == count && outputs > 0, "{ran} tasks ran, {outputs} bytes of outputs");
            });
        });
    }
}
