//! Folds whose result does not depend on the order in which outputs arrive.
//!
//! A sum of floats depends on the order of its terms, so a report that is a plain sum has other
//! bits after each run. [`ExactSum`] and [`Tree`] give the same bits for the same outputs in any
//! order. Both are parts of a report: they encode as JSON and go on after a restart of the sink.
//! For folds that must see the outputs in index order there is
//! [`Job::fold_in_order`](crate::Job::fold_in_order).
//!
//! ```
//! use gristmill_shared::{TaskIndex, fold::{ExactSum, Tree}};
//!
//! let outputs = [1e100, 1.0, -1e100];
//! let mut sum = ExactSum::default();
//! let mut means = Tree::default();
//! for index in [2, 0, 1] {
//!     sum += outputs[index];
//!     means.add(TaskIndex(index as u64), outputs[index], |left, right| left / 2.0 + right / 2.0);
//! }
//! assert_eq!(sum.value(), 1.0);
//! let in_order = (1e100 / 2.0 + 1.0 / 2.0) / 2.0 + -1e100 / 2.0;
//! assert_eq!(means.total(|left, right| left / 2.0 + right / 2.0), Some(in_order));
//! ```

mod exact_sum;
mod tree;

pub use exact_sum::ExactSum;
pub use tree::Tree;
