//! Encoding and decoding of messages, as the producer, the worker and the sink do it.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use gristmill_jobs::Spin;
use gristmill_shared::{
    Headers, JobId, Message, Round, TaskIndex, WorkerId, erase,
    wire::{Batch, OutputRun, Results, SinkMessage, WireMessage as _, decode},
};
use serde_json::value::RawValue;

use crate::{
    BATCH_SIZES,
    fixtures::{batch, packed},
};

/// Measures encoding and decoding of a batch.
pub(crate) fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/batch");
    for count in BATCH_SIZES {
        group.throughput(Throughput::Elements(count.into()));
        let tasks = packed(count).finish();
        let spec = spec(count);
        group.bench_with_input(BenchmarkId::new("encode", count), &count, |bencher, _| {
            bencher.iter(|| batch(&spec, &tasks, count).to_message(Headers::default(), "bench"));
        });
        let message = batch(&spec, &tasks, count).to_message(Headers::default(), "bench");
        group.bench_with_input(BenchmarkId::new("decode", count), &message, |bencher, message| {
            bencher.iter(|| black_box(decode::<Batch<'_>>(message).expect("it was just encoded")).count);
        });
    }
}

/// Measures encoding and decoding of results with as many outputs.
pub(crate) fn results(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/results");
    for count in BATCH_SIZES {
        group.throughput(Throughput::Elements(count.into()));
        let outputs = packed(count).finish(); // a spin's output is its task's index, like its task
        group.bench_with_input(BenchmarkId::new("encode", count), &outputs, |bencher, outputs| {
            bencher.iter(|| message(outputs, count));
        });
        let message = message(&outputs, count);
        group.bench_with_input(BenchmarkId::new("decode", count), &message, |bencher, message| {
            bencher.iter(|| black_box(SinkMessage::decode(message).expect("it was just encoded")).job());
        });
    }
}

/// Returns the spec of a spin of `count` tasks, as it travels.
fn spec(count: u32) -> Box<RawValue> {
    let job = erase(Spin { tasks: count.into(), ..Spin::default() });
    job.spec().expect("a spin's parameters are small")
}

fn message(outputs: &RawValue, count: u32) -> Message {
    let done = vec![OutputRun { first: TaskIndex(0), count, outputs, tasks: None }];
    let worker = WorkerId::new("bench").expect("a name of the right characters");
    let job = JobId::generate();
    Results { job, round: Round(0), worker, busy_us: 1, done, failed: Vec::new(), version: 0, build: None }
        .message("1".into(), "bench")
}
