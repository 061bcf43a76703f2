//! Benchmarks of floats to JSON and back, and of the check that all of them are finite. A
//! build-time feature of serde_json decides if their bits survive, so the other figures need
//! another build (docs/performance.md).

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gristmill_shared::{DoneTasks, TaskIndex, fold::ExactSum};

const FLOAT_COUNT: usize = 10_000;

/// Returns floats from 0 to 1 with all bits of their mantissas in use, like results of
/// computations.
fn floats() -> Vec<f64> {
    let steps = std::iter::successors(Some(0x9e37_79b9_7f4a_7c15_u64), |bits: &u64| {
        Some(bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    });
    steps.map(|bits| (bits >> 11) as f64 / (1_u64 << 53) as f64).take(FLOAT_COUNT).collect()
}

fn wire(criterion: &mut Criterion) {
    let floats = floats();
    let json = serde_json::to_vec(&floats).expect("floats are JSON");
    let decoded: Vec<f64> = serde_json::from_slice(&json).expect("it was just encoded");
    let changed = floats.iter().zip(&decoded).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    println!("{changed} of {FLOAT_COUNT} floats are changed by encode and decode");

    let mut group = criterion.benchmark_group("floats");
    group.throughput(Throughput::Elements(FLOAT_COUNT as u64));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| serde_json::to_vec(black_box(&floats)).map(|json| json.len()));
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| serde_json::from_slice::<Vec<f64>>(black_box(&json)).map(|floats| floats.len()));
    });
    group.bench_function("encode and check", |bencher| {
        bencher.iter(|| DoneTasks::from_outputs(TaskIndex(0), black_box(&floats)).bytes());
    });
    // Every other value is a `null`, which the check must walk a second time.
    let holes: Vec<Option<f64>> =
        floats.iter().enumerate().map(|(place, float)| (place % 2 == 0).then_some(*float)).collect();
    group.bench_function("encode and check, half of them null", |bencher| {
        bencher.iter(|| DoneTasks::from_outputs(TaskIndex(0), black_box(&holes)).bytes());
    });
}

fn sums(criterion: &mut Criterion) {
    let floats = floats();
    let mut group = criterion.benchmark_group("sums");
    group.throughput(Throughput::Elements(FLOAT_COUNT as u64));
    group.bench_function("plain", |bencher| bencher.iter(|| black_box(&floats).iter().sum::<f64>()));
    group.bench_function("exact", |bencher| {
        let add = |mut sum: ExactSum| {
            sum.extend(floats.iter().copied());
            sum.value()
        };
        bencher.iter_batched(ExactSum::default, add, BatchSize::SmallInput);
    });
}

criterion_group!(benches, wire, sums);
criterion_main!(benches);
