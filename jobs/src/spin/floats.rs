//! The floats of a spin: outputs that must keep their bits, and folds that do not depend on the
//! order.

use std::fmt;

use gristmill_shared::{
    TaskIndex,
    fold::{ExactSum, Tree},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The index of a task, and a float if the spin has floats. JSON: `7`, or `[7,-1.5e-300]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpinOutput {
    /// The task's index.
    pub index: u64,
    /// Its float.
    pub float: Option<f64>,
}

/// Sums and a digest of the floats in a spin's outputs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FloatFolds {
    /// The exact sum, which changes with each bit of each float.
    pub sum: ExactSum,
    /// The tree of means of left and right; every step rounds.
    pub tree: Tree<f64>,
    /// The wrapping sum of a hash of each float's bits. Unlike the others, it distinguishes `-0.0`
    /// from `0.0`.
    pub digest: u32,
}

impl FloatFolds {
    pub(super) fn add(&mut self, index: TaskIndex, float: f64) {
        self.sum += float;
        self.tree.add(index, float, mean);
        let hash = xxh3_64_with_seed(&float.to_bits().to_le_bytes(), index.0);
        self.digest = self.digest.wrapping_add(hash as u32);
    }
}

impl fmt::Display for FloatFolds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.tree.total(mean).unwrap_or_default();
        write!(f, "float sum {}, tree {:016x}, digest {:08x}", self.sum, root.to_bits(), self.digest)
    }
}

fn mean(left: f64, right: f64) -> f64 {
    left / 2.0 + right / 2.0
}

/// Returns a pseudo-random finite float of any size, sometimes subnormal or `-0.0`; a function of
/// index and seed.
pub(super) fn random_float(index: u64, seed: u64) -> f64 {
    /// The bits of a float's exponent. A float with all of them set is not finite.
    const EXPONENT_BITS: u64 = 0x7ff << 52;
    let bits = xxh3_64_with_seed(format!("float {index}").as_bytes(), seed);
    match bits % 8 {
        0 => f64::from_bits(bits & !EXPONENT_BITS),
        1 => -0.0,
        _ if bits & EXPONENT_BITS == EXPONENT_BITS => f64::MAX,
        _ => f64::from_bits(bits),
    }
}

impl Serialize for SpinOutput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.float {
            None => serializer.serialize_u64(self.index),
            Some(float) => (self.index, float).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SpinOutput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OutputVisitor)
    }
}

struct OutputVisitor;

impl<'de> Visitor<'de> for OutputVisitor {
    type Value = SpinOutput;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index, or an index and a float: 7 or [7,1.5]")
    }

    fn visit_u64<E: Error>(self, index: u64) -> Result<SpinOutput, E> {
        Ok(SpinOutput { index, float: None })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<SpinOutput, A::Error> {
        let index = parts.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let float = parts.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
        Ok(SpinOutput { index, float: Some(float) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_a_number_or_a_pair() {
        for (output, json) in [
            (SpinOutput { index: 7, float: None }, "7"),
            (SpinOutput { index: 7, float: Some(-0.0) }, "[7,-0.0]"),
        ] {
            assert_eq!(serde_json::to_string(&output).unwrap(), json);
            assert_eq!(serde_json::from_str::<SpinOutput>(json).unwrap(), output);
        }
        for bad in ["[7]", "\"7\"", "-1", "[7,null]", "[7,1.0,2.0]"] {
            serde_json::from_str::<SpinOutput>(bad).unwrap_err();
        }
    }

    #[test]
    fn floats_are_finite_and_varied() {
        let floats: Vec<f64> = (0..10_000).map(|index| random_float(index, 3)).collect();
        assert!(floats.iter().all(|float| float.is_finite()));
        assert!(floats.iter().any(|float| float.is_subnormal()));
        assert!(floats.iter().any(|float| float.to_bits() == (-0.0_f64).to_bits()));
        assert_ne!(random_float(1, 3).to_bits(), random_float(1, 4).to_bits());
    }
}
