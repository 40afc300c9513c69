//! ept01: where L1's physical memory is in the machine's. RAM is mapped at its own address; the rest is devices.

use std::ops::Range;
use vmcs12::addr::{ARENA_BASE, Gpa, Pa};

/// L1-physical memory: at most two ranges of RAM, each mapped to the same machine address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ept01 {
    ram: [Range<u64>; 2],
}

impl Ept01 {
    /// RAM below and above the hole for devices: at most two ranges.
    ///
    /// # Panics
    /// If there are more, or one reaches L0's arena: L1 could then change L0's tables.
    pub fn new(ram: &[Range<u64>]) -> Self {
        assert!(ram.len() <= 2, "RAM is below and above one hole");
        assert!(ram.iter().all(|range| range.end <= ARENA_BASE.0), "RAM ends below L0's arena");
        let range = |i: usize| ram.get(i).cloned().unwrap_or(0..0);
        Self { ram: [range(0), range(1)] }
    }

    /// The machine address of a byte of RAM; `None` in a hole.
    #[inline]
    pub fn translate(&self, at: Gpa) -> Option<Pa> {
        self.backs(at, 1).then_some(Pa(at.0))
    }

    /// Are all of these bytes RAM, one after the other in the machine too?
    #[inline]
    pub fn backs(&self, from: Gpa, bytes: u64) -> bool {
        let Some(end) = from.0.checked_add(bytes) else { return false };
        self.ram.iter().any(|range| range.start <= from.0 && end <= range.end)
    }

    /// Where an access to an L1-physical address goes: RAM, or a hole, which reads all ones and drops writes.
    #[inline]
    pub fn machine(&self, at: Gpa) -> Pa {
        self.translate(at).unwrap_or(HOLE.plus(at.offset()))
    }
}

/// A page that no memory backs: below the arena, above every width that a profile has for RAM.
const HOLE: Pa = Pa(ARENA_BASE.0 - 0x1000);
