//! What has happened: calls, injected faults, and refusals.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

/// Distinct actions, and distinct codes, that the report holds.
const NAMES: usize = 64;

/// What happened since the plan came into force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Calls, by action.
    pub calls: BTreeMap<String, u64>,
    /// Faults injected, by action and fault, such as `TransactWriteItems after`. What [`Plan::contention`](crate::faults::Plan::contention) cancels is
    /// a `conflict`.
    pub injected: BTreeMap<String, u64>,
    /// Calls that AWS itself refused, by action and code, such as `TransactWriteItems TransactionCanceledException`.
    pub refused: BTreeMap<String, u64>,
}

impl Report {
    /// All calls together.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }

    /// All faults together.
    pub fn faults(&self) -> u64 {
        self.injected.values().sum()
    }
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        let Self { calls, injected, refused } = self;
        for (sums, counts) in [(calls, other.calls), (injected, other.injected), (refused, other.refused)] {
            for (name, n) in counts {
                *sums.entry(name).or_default() += n;
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} calls, {} faults", self.total(), self.faults())?;
        for (what, counts) in [("calls", &self.calls), ("injected", &self.injected), ("refused", &self.refused)] {
            for (name, n) in counts {
                writeln!(f, "{what:>8} {n:>7}  {name}")?;
            }
        }
        Ok(())
    }
}

/// Counts under this name, or under `others` once there are [`NAMES`].
pub(super) fn add(counts: &mut BTreeMap<String, u64>, name: &str) {
    if counts.contains_key(name) || counts.len() < NAMES {
        *counts.entry(name.into()).or_default() += 1;
    } else {
        *counts.entry("others".into()).or_default() += 1;
    }
}
