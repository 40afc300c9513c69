//! Counts of exits: plain arrays, nothing allocated, locked or formatted.

use super::Reason;

const NUMBERS: usize = Reason::ALL[Reason::COUNT - 1] as usize + 1;

/// A count for each basic exit reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ByReason([u64; NUMBERS]);

impl Default for ByReason {
    fn default() -> Self {
        Self([0; NUMBERS])
    }
}

impl ByReason {
    /// One more exit for `reason`.
    #[inline]
    pub fn add(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }
    /// Counts what `others` counted, too.
    pub fn include(&mut self, others: &Self) {
        for (count, other) in self.0.iter_mut().zip(others.0) {
            *count += other;
        }
    }
    /// The count for `reason`.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }
    /// All exits.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
    /// The reasons that occurred, in the order of their numbers.
    pub fn nonzero(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.iter().map(|&reason| (reason, self.get(reason))).filter(|&(_, count)| count != 0)
    }
}
