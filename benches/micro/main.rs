//! The parts by themselves: `cargo bench --bench micro`, or with a name, `cargo bench --bench micro -- wire`. What the
//! sink does alone is beside it: `cargo bench -p gristmill-sink`.

mod batching;
mod pipeline;
mod wire;

use criterion::{criterion_group, criterion_main};

criterion_group!(parts, batching::split, batching::process, wire::batches, wire::results);
criterion_group!(whole, pipeline::memory_and_rayon);
criterion_main!(parts, whole);

/// How many tasks the messages have that are measured: one alone, a usual one, the largest.
const SIZES: [u32; 3] = [1, 100, 10_000];
