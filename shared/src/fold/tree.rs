//! A reduction tree over task indices.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, SeqAccess, Visitor},
};

use crate::TaskIndex;

/// The level of the largest block: it covers all indices that there may be.
const LEVEL_MAX: u32 = TaskIndex::LIMIT.ilog2();

/// A reduction of the values of tasks in a fixed shape, whatever their order of arrival.
///
/// The values of indices 0 and 1 merge as soon as both are there, those of 2 and 3 likewise, then
/// both pairs, and so on: always two neighbouring blocks of one size, the left one first. Blocks
/// without a neighbour wait, and [`Tree::total`] merges them in index order. The shape follows from
/// the set of indices alone, and no total is needed in advance; a `merge` that is not
/// associative, such as a sum of floats, gives the same bits each time.
///
/// Memory: about `log2(n)` values for each gap in the indices that have arrived, and at most one
/// value for each index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree<T> {
    /// The blocks by their first index: the level, which is the logarithm of the size, and the
    /// value.
    blocks: BTreeMap<u64, (u32, T)>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { blocks: BTreeMap::new() }
    }
}

impl<T> Tree<T> {
    /// Adds the value of a task. An index that is in the tree already, or is not below
    /// [`TaskIndex::LIMIT`], changes nothing.
    pub fn add(&mut self, index: TaskIndex, value: T, mut merge: impl FnMut(T, T) -> T) {
        if index.0 >= TaskIndex::LIMIT || self.contains(index) {
            return;
        }
        let (mut first, mut level, mut value) = (index.0, 0, value);
        loop {
            let sibling = first ^ (1 << level);
            if self.blocks.get(&sibling).is_none_or(|(found, _)| *found != level) {
                break;
            }
            let Some((_, other)) = self.blocks.remove(&sibling) else { break };
            value = if sibling < first { merge(other, value) } else { merge(value, other) };
            (first, level) = (first.min(sibling), level + 1);
        }
        self.blocks.insert(first, (level, value));
    }

    /// True if the value of this task was added.
    #[must_use]
    pub fn contains(&self, index: TaskIndex) -> bool {
        let before = self.blocks.range(..=index.0).next_back();
        before.is_some_and(|(first, (level, _))| index.0 - first < 1 << level)
    }

    /// Returns all values merged: the waiting blocks, from left to right. `None` if nothing was
    /// added.
    #[must_use]
    pub fn total(&self, merge: impl FnMut(T, T) -> T) -> Option<T>
    where
        T: Clone,
    {
        self.blocks.values().map(|(_, value)| value.clone()).reduce(merge)
    }

    /// Returns the number of values in memory.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// True if a block lies within the indices, at a multiple of its size, behind all others.
    fn fits_behind(&self, first: u64, level: u32) -> bool {
        let size = |level: u32| 1_u64 << level;
        let behind = self.blocks.last_key_value().map_or(0, |(last, (level, _))| last + size(*level));
        level <= LEVEL_MAX
            && first.is_multiple_of(size(level))
            && first >= behind
            && first.checked_add(size(level)).is_some_and(|end| end <= TaskIndex::LIMIT)
    }
}

/// An array of `[first index, level, value]`, in index order.
impl<T: Serialize> Serialize for Tree<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.blocks.iter().map(|(first, (level, value))| (first, level, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tree<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(TreeVisitor(PhantomData))
    }
}

struct TreeVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TreeVisitor<T> {
    type Value = Tree<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the blocks of a tree, as [first index, level, value]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut blocks: A) -> Result<Tree<T>, A::Error> {
        let mut tree = Tree::default();
        while let Some((first, level, value)) = blocks.next_element::<(u64, u32, T)>()? {
            if !tree.fits_behind(first, level) {
                return Err(A::Error::custom(format_args!(
                    "a block of level {level} cannot begin at index {first}"
                )));
            }
            tree.blocks.insert(first, (level, value));
        }
        Ok(tree)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn join(left: String, right: String) -> String {
        format!("({left}{right})")
    }

    fn tree(indices: impl IntoIterator<Item = u64>) -> Tree<String> {
        let mut tree = Tree::default();
        indices.into_iter().for_each(|index| tree.add(TaskIndex(index), index.to_string(), join));
        tree
    }

    #[test]
    fn siblings_merge_in_order() {
        assert_eq!(tree([]).total(join), None);
        assert_eq!(tree([5, 0, 4, 3, 2, 1]).total(join).unwrap(), "(((01)(23))(45))");
        assert_eq!(tree([6, 3, 2, 1]).total(join).unwrap(), "((1(23))6)");
    }

    #[test]
    fn index_counts_once() {
        let mut twice = tree([0, 1, 2]);
        twice.add(TaskIndex(1), "again".into(), join);
        twice.add(TaskIndex(TaskIndex::LIMIT), "beyond".into(), join);
        twice.add(TaskIndex(u64::MAX), "beyond".into(), join);
        assert_eq!(twice, tree([0, 1, 2]));
        assert!(twice.contains(TaskIndex(2)) && !twice.contains(TaskIndex(3)));
    }

    #[test]
    fn memory_is_bounded_by_gaps() {
        let mut tree = Tree::default();
        for index in (0..100_000).filter(|index| index % 10_000 != 77) {
            tree.add(TaskIndex(index), 1_u64, |left, right| left + right);
            assert!(tree.blocks() <= (1 + index as usize / 10_000) * 34, "{}", tree.blocks());
        }
        assert_eq!(tree.total(|left, right| left + right), Some(99_990));
    }

    #[test]
    fn bad_blocks_are_refused() {
        let read = |json: &str| serde_json::from_str::<Tree<u8>>(json).map(|tree| tree.blocks());
        assert_eq!(read("[[0,3,1],[8,0,1]]").unwrap(), 2);
        for bad in ["[[1,1,1]]", "[[0,3,1],[4,0,1]]", "[[2,0,1],[0,0,1]]", "[[0,54,1]]", "[[0,64,1]]"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("cannot begin at index"), "{bad}: {error}");
        }
        assert!(read("[[9007199254740990,3,1]]").is_err());
    }

    proptest! {
        #[test]
        fn order_and_reloads_do_not_matter(
            indices in prop::collection::btree_set(0_u64..200, 0..120).prop_map(Vec::from_iter).prop_shuffle(),
            reloads in prop::collection::vec(any::<bool>(), 120),
        ) {
            let mut found = Tree::default();
            for (index, reload) in indices.iter().zip(reloads) {
                found.add(TaskIndex(*index), index.to_string(), join);
                if reload {
                    found = serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
                }
            }
            let mut sorted = indices;
            sorted.sort_unstable();
            prop_assert_eq!(found, tree(sorted));
        }
    }
}
