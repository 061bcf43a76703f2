//! A set of task indices, stored in containers: only changed ones are written.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::{Range, RangeInclusive},
};

use roaring::RoaringBitmap;

/// Bits of an index within its container: the size of a container of a roaring bitmap, at most 8
/// KiB.
const CONTAINER_BITS: u32 = 16;
/// The last position in a container.
const LAST_PLACE: u32 = (1 << CONTAINER_BITS) - 1;

/// A set of task indices in containers of 65,536 that tracks which of them changed since they were
/// saved.
#[derive(Debug, Default, PartialEq)]
pub struct IndexSet {
    containers: BTreeMap<u64, RoaringBitmap>,
    len: u64,
    changed: BTreeSet<u64>,
}

impl IndexSet {
    /// Returns the number of indices in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if no index is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns one past the highest index.
    pub fn end(&self) -> u64 {
        let highest = self.containers.iter().next_back().and_then(|(key, bits)| Some((key, bits.max()?)));
        highest.map_or(0, |(key, place)| (key << CONTAINER_BITS) + u64::from(place) + 1)
    }

    /// True if the index is in the set.
    pub fn contains(&self, index: u64) -> bool {
        let (key, place) = locate(index);
        self.containers.get(&key).is_some_and(|bits| bits.contains(place))
    }

    /// Returns the parts of `range` that are not in the set, ascending and maximal. The cost
    /// depends on the size of the set there, not on the length of the range.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        if range.is_empty() {
            return missing;
        }
        let (first, last) = (range.start, range.end - 1);
        let mut next = first;
        for (&key, bits) in self.containers.range(first >> CONTAINER_BITS..=last >> CONTAINER_BITS) {
            let base = key << CONTAINER_BITS;
            let from = if first > base { locate(first).1 } else { 0 };
            let to = if last >> CONTAINER_BITS == key { locate(last).1 } else { LAST_PLACE };
            let mut present = bits.range(from..=to);
            while let Some(run) = present.next_range() {
                push_range(&mut missing, next..base + u64::from(*run.start()));
                next = base + u64::from((*run.end()).min(to)) + 1;
            }
        }
        push_range(&mut missing, next..range.end);
        missing
    }

    /// Returns the indices as ascending ranges; two of different containers may touch.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.containers.iter().flat_map(|(key, bits)| {
            let base = key << CONTAINER_BITS;
            let mut places = bits.iter();
            std::iter::from_fn(move || {
                let run = places.next_range()?;
                Some(base + u64::from(*run.start())..base + u64::from(*run.end()) + 1)
            })
        })
    }

    /// Adds all of `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        for (key, places) in pieces(range) {
            let added = self.containers.entry(key).or_default().insert_range(places);
            if added > 0 {
                self.len += added;
                self.changed.insert(key);
            }
        }
    }

    /// Adds a saved container. Only for a set that is being loaded.
    ///
    /// # Errors
    /// If the bytes are no bitmap.
    pub fn load(&mut self, key: u64, bytes: &[u8]) -> io::Result<()> {
        let bits = RoaringBitmap::deserialize_from(bytes)?;
        if bits.is_empty() || bits.max().is_some_and(|place| place > LAST_PLACE) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a container of this set"));
        }
        self.len += bits.len();
        self.containers.insert(key, bits);
        Ok(())
    }

    /// Takes the containers that changed since the last call, to be saved under their keys.
    pub fn take_changed(&mut self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        std::mem::take(&mut self.changed).into_iter().filter_map(|key| {
            let bits = self.containers.get_mut(&key)?;
            bits.optimize();
            let mut bytes = Vec::with_capacity(bits.serialized_size());
            bits.serialize_into(&mut bytes).expect("writing to a vector does not fail");
            Some((key, bytes))
        })
    }
}

/// Appends a range, joined to the last one if it is adjacent. Empty ranges are skipped.
pub fn push_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Returns the parts of `range` that are in neither set, ascending: the first `most` of them, and
/// the number of indices in all.
pub fn gaps(
    done: &IndexSet,
    failed: &BTreeSet<u64>,
    range: Range<u64>,
    most: usize,
) -> (Vec<Range<u64>>, u64) {
    let (mut listed, mut indices) = (Vec::new(), 0);
    for gap in done.missing(range) {
        let mut next = gap.start;
        for index in failed.range(gap.clone()).copied().chain([gap.end]) {
            indices += index - next;
            if next < index && listed.len() < most {
                listed.push(next..index);
            }
            next = index + 1;
        }
    }
    (listed, indices)
}

fn locate(index: u64) -> (u64, u32) {
    let place = u32::try_from(index & u64::from(LAST_PLACE)).expect("16 bits fit into 32");
    (index >> CONTAINER_BITS, place)
}

/// Splits the range at the borders of containers.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, RangeInclusive<u32>)> {
    let keys = if range.is_empty() { 0..0 } else { locate(range.start).0..locate(range.end - 1).0 + 1 };
    let (first, last) = (keys.start, keys.end.saturating_sub(1));
    keys.map(move |key| {
        let from = if key == first { locate(range.start).1 } else { 0 };
        let to = if key == last { locate(range.end - 1).1 } else { LAST_PLACE };
        (key, from..=to)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        let range = (prop_oneof![0u64..50, 65_500u64..65_600, 131_000u64..131_200], 0u64..140);
        prop::collection::vec(range.prop_map(|(start, len)| start..start + len), 1..20)
    }

    proptest! {
        #[test]
        fn index_set_matches_model(ranges in ranges(), asked in ranges()) {
            let (mut set, mut model) = (IndexSet::default(), BTreeSet::new());
            for range in ranges {
                set.insert(range.clone());
                model.extend(range);
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.end(), model.last().map_or(0, |last| last + 1));
            for range in asked {
                let missing = set.missing(range.clone());
                let expected: Vec<u64> = range.clone().filter(|index| !model.contains(index)).collect();
                prop_assert_eq!(missing.iter().cloned().flatten().collect::<Vec<_>>(), expected);
                prop_assert!(missing.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(range.clone().all(|index| set.contains(index) == model.contains(&index)));
            }
        }

        #[test]
        fn changed_containers_restore_set(first in ranges(), second in ranges()) {
            let (mut set, mut saved) = (IndexSet::default(), BTreeMap::new());
            for ranges in [first, second] {
                ranges.into_iter().for_each(|range| set.insert(range));
                saved.extend(set.take_changed());
            }
            let mut loaded = IndexSet::default();
            for (key, bytes) in &saved {
                loaded.load(*key, bytes).unwrap();
            }
            prop_assert_eq!(loaded.len(), set.len());
            prop_assert_eq!(loaded.missing(0..200_000), set.missing(0..200_000));
            prop_assert_eq!(set.take_changed().count(), 0);
        }
    }

    #[test]
    fn full_container_is_small() {
        let mut set = IndexSet::default();
        set.insert(0..65_536);
        let (_, bytes) = set.take_changed().next().unwrap();
        assert!(bytes.len() < 32, "{} bytes", bytes.len());
    }

    #[test]
    fn missing_of_huge_range_is_fast() {
        let (mut set, end) = (IndexSet::default(), 1 << 60);
        set.insert(70_000..70_003);
        set.insert(end / 2..end / 2 + 1);
        // Container by container this would take years.
        assert_eq!(set.missing(0..end), [0..70_000, 70_003..end / 2, end / 2 + 1..end]);
        assert_eq!(set.missing(70_001..70_002), []);
    }

    #[test]
    fn gaps_are_in_neither_set() {
        let (mut done, failed) = (IndexSet::default(), BTreeSet::from([0, 5, 6, 9]));
        done.insert(3..5);
        assert_eq!(gaps(&done, &failed, 0..12, 9), (vec![1..3, 7..9, 10..12], 6));
        let (first, all) = gaps(&done, &failed, 2..8, 1);
        assert_eq!((&first[..], all), (std::slice::from_ref(&(2..3)), 2));
        assert_eq!(gaps(&done, &failed, 5..5, 9), (vec![], 0));
    }

    #[test]
    fn index_set_holds_largest_index() {
        let mut set = IndexSet::default();
        set.insert(u64::MAX - 2..u64::MAX);
        assert_eq!((set.len(), set.end()), (2, u64::MAX));
    }

    #[test]
    fn invalid_bitmap_is_refused() {
        assert!(IndexSet::default().load(0, b"no bitmap").is_err());
    }
}
