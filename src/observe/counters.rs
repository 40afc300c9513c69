//! Counters that the run loop fills: plain arrays, nothing allocated, locked or formatted.

use vmcs12::exit::by_reason::ByReason;

/// What a run counted, all vCPUs together.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Instructions retired, L1 and L2 together; 0 where they are not counted (the kvm processor).
    pub instructions: u64,
    /// Of these, L2's.
    pub instructions_l2: u64,
    /// Exits from L1: L0 handles each.
    pub from_l1: ByReason,
    /// Exits from L2 that L0 kept.
    pub from_l2_kept: ByReason,
    /// Exits from L2 that L0 reflected to L1.
    pub from_l2_reflected: ByReason,
    /// VMREADs of L1's, those that cost no exit included.
    pub vmreads: u64,
    /// VMWRITEs of L1's, those that cost no exit included.
    pub vmwrites: u64,
}
