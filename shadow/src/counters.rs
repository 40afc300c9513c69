//! What the engine counts: plain integers, nothing allocated or formatted.

use vmcs12::exit::Reason;

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
    /// One more.
    #[inline]
    pub fn add(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }
    /// How many exits with this reason.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }
}

/// Counts of one vCPU's nested life.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Exits from L2 that L0 kept.
    pub kept: ByReason,
    /// Exits that L1 saw: reflected and synthesised.
    pub reflected: ByReason,
    /// VM entries of L1 that reached L2.
    pub entries: u64,
    /// VM entries of L1 that ended in VMfail or in an exit.
    pub failed_entries: u64,
    /// Pages mapped in ept02.
    pub ept02_fills: u64,
    /// VMREADs that exited.
    pub vmreads: u64,
    /// VMWRITEs that exited.
    pub vmwrites: u64,
}
