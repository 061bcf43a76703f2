//! Benchmarks of the parts: `cargo bench --bench micro`, or with a name, `cargo bench --bench micro
//! -- wire`. The parts of the sink have their own: `cargo bench -p gristmill-sink`.

mod batching;
mod fixtures;
mod pipeline;
mod wire;

use criterion::{criterion_group, criterion_main};

criterion_group!(parts, batching::split, batching::process, wire::batches, wire::results);
criterion_group!(whole, pipeline::memory_and_rayon);
criterion_main!(parts, whole);

/// The numbers of tasks in the measured messages: one alone, a usual one, the largest.
const BATCH_SIZES: [u32; 3] = [1, 100, 10_000];
