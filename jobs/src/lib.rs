//! The built-in jobs: [`Crack`], [`Primes`] and [`Spin`], one file each.
//!
//! Each value is a spec: it comes from the command line (`clap::Args`) or from a message, and `plan` is the one gate
//! that refuses what cannot be done. So `plan` trusts nothing that either of them has checked.

mod crack;
mod pieces;
mod primes;
mod spin;

pub use crack::{Algorithm, Crack, CrackReport};
pub use primes::Primes;
pub use spin::{FloatFolds, How, Misbehaviour, Spin, SpinOutput, SpinReport, SpinTask, Work};
