//! What the engine counts: plain integers, nothing allocated or formatted.

use vmcs12::exit::by_reason::ByReason;

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
