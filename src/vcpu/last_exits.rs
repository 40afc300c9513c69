//! The last exits, kept for the message when a guest ends badly.

use std::fmt;
use vmcs12::exit::Reason;

/// How many are kept.
const KEPT: usize = 64;

/// Whose exit it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// The guest hypervisor.
    L1,
    /// Its guest.
    L2,
}

/// One exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Whose.
    pub level: Level,
    /// Its basic reason.
    pub reason: Reason,
    /// RIP at the exit.
    pub rip: u64,
    /// EXIT_QUALIFICATION.
    pub qualification: u64,
    /// Instructions retired before it, all levels together.
    pub retired: u64,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, reason, rip, qualification, retired } = self;
        write!(
            f,
            "{retired:>14}  {level:?}  {:<24} rip {rip:#018x}  qualification {qualification:#x}",
            reason.name()
        )
    }
}

/// A ring of the last exits.
#[derive(Debug)]
pub struct LastExits {
    ring: [Record; KEPT],
    written: usize,
}

impl Default for LastExits {
    fn default() -> Self {
        let none =
            Record { level: Level::L1, reason: Reason::ExceptionOrNmi, rip: 0, qualification: 0, retired: 0 };
        Self { ring: [none; KEPT], written: 0 }
    }
}

impl LastExits {
    /// Keeps an exit, and forgets the oldest.
    #[inline]
    pub fn push(&mut self, record: Record) {
        self.ring[self.written % KEPT] = record;
        self.written = self.written.wrapping_add(1);
    }

    /// The exits, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        let kept = self.written.min(KEPT);
        (self.written - kept..self.written).map(|at| &self.ring[at % KEPT])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(retired: u64) -> Record {
        Record { level: Level::L2, reason: Reason::Cpuid, rip: 0x1000, qualification: 0, retired }
    }

    #[test]
    fn the_last_ones_are_kept_in_order() {
        let mut exits = LastExits::default();
        assert_eq!(exits.iter().count(), 0);
        (0..100).for_each(|retired| exits.push(record(retired)));
        let kept: Vec<u64> = exits.iter().map(|record| record.retired).collect();
        assert_eq!(kept, (36..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_record_reads_as_one_line() {
        let line = record(7).to_string();
        assert!(line.contains("L2") && line.contains("Cpuid") && line.contains("0x0000000000001000"));
    }
}
