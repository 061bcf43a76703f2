//! The built-in jobs: [`Crack`], [`Primes`] and [`Spin`], one file each.
//!
//! Each value is a spec, from the command line (`clap::Args`) or from a message. `plan` is the only
//! place that refuses invalid specs, so it trusts no earlier check.

mod crack;
mod pieces;
mod primes;
mod spin;

pub use crack::{Algorithm, Crack, CrackReport};
pub use primes::Primes;
pub use spin::{
    FloatFolds, Misbehaviour, MisbehaviourKind, Spin, SpinOutput, SpinReport, SpinTask, SpinWork,
};
