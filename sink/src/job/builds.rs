//! Outcomes of a job by the build of the program that made them.

use std::collections::BTreeMap;

use gristmill_shared::{BuildId, wire::BuildShare};

/// Builds of a job that are counted separately, each in one version.
const BUILDS_MAX: usize = 64;
/// All further builds together: an unnamed build of no version.
const OTHER_BUILDS: BuildKey = (u32::MAX, None);

/// The version of a job's code, and the build of the program, if known.
type BuildKey = (u32, Option<BuildId>);

/// The number of a job's outcomes from each build.
#[derive(Debug, Default, Clone)]
pub(crate) struct Builds {
    saved: BTreeMap<BuildKey, BuildCounts>,
    /// Counts since the last commit.
    fresh: BTreeMap<BuildKey, BuildCounts>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct BuildCounts {
    counted: u64,
    refused: u64,
}

impl Builds {
    /// Adds counted and refused outcomes. Returns true if the build is new for the job and counted
    /// separately.
    pub(crate) fn add(&mut self, version: u32, build: Option<&BuildId>, counted: u64, refused: u64) -> bool {
        let mut key = (version, build.cloned());
        let known = |key: &BuildKey| self.saved.contains_key(key) || self.fresh.contains_key(key);
        let mut is_new = !known(&key);
        if is_new {
            let only_fresh = self.fresh.keys().filter(|key| !self.saved.contains_key(*key)).count();
            if self.saved.len() + only_fresh >= BUILDS_MAX {
                (key, is_new) = (OTHER_BUILDS, false);
            }
        }
        let counts = self.fresh.entry(key).or_default();
        counts.counted += counted;
        counts.refused += refused;
        is_new
    }

    /// Discards the counts since the last commit.
    pub(crate) fn discard_fresh(&mut self) {
        self.fresh.clear();
    }

    /// Returns the share of each build, ordered by version and build.
    pub(crate) fn shares(&self) -> Vec<BuildShare> {
        let mut all = self.saved.clone();
        for (key, fresh) in &self.fresh {
            let counts = all.entry(key.clone()).or_default();
            counts.counted += fresh.counted;
            counts.refused += fresh.refused;
        }
        all.into_iter().map(share).collect()
    }

    /// Takes the counts since the last commit, to be added in the ledger.
    pub(crate) fn take_fresh(&mut self) -> Vec<BuildShare> {
        let fresh = std::mem::take(&mut self.fresh);
        for (key, BuildCounts { counted, refused }) in &fresh {
            let counts = self.saved.entry(key.clone()).or_default();
            counts.counted += counted;
            counts.refused += refused;
        }
        fresh.into_iter().map(share).collect()
    }
}

impl From<Vec<BuildShare>> for Builds {
    /// Restores the builds of a job from the ledger.
    fn from(shares: Vec<BuildShare>) -> Self {
        let saved = shares.into_iter().map(|BuildShare { version, build, counted, refused }| {
            ((version, build), BuildCounts { counted, refused })
        });
        Self { saved: saved.collect(), fresh: BTreeMap::new() }
    }
}

fn share(((version, build), BuildCounts { counted, refused }): (BuildKey, BuildCounts)) -> BuildShare {
    BuildShare { version, build, counted, refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excess_builds_count_together() {
        let mut builds = Builds::default();
        for number in 0..BUILDS_MAX + 3 {
            let build = BuildId::new(&number.to_string()).unwrap();
            let is_new = builds.add(number as u32, Some(&build), 2, 1);
            assert_eq!(is_new, number < BUILDS_MAX, "{number}");
        }
        assert!(!builds.add(0, Some(&BuildId::new("0").unwrap()), 5, 0));
        let shares = builds.shares();
        assert_eq!(shares.len(), BUILDS_MAX + 1);
        let others = &shares[BUILDS_MAX];
        assert_eq!((others.build.as_ref(), others.counted, others.refused), (None, 6, 3));
        assert_eq!((shares[0].counted, shares[0].refused), (7, 1));
        builds.discard_fresh();
        assert!(builds.shares().is_empty());
    }
}
