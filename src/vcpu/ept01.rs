//! ept01: the identity over RAM, in the arena, with the largest pages that fit. The holes for devices are not
//! mapped. SDM Vol. 3, "The Extended Page Table Mechanism (EPT)".

use crate::memory::Arena;
use crate::processor::HostError;
use std::ops::Range;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::eptp::{EptEntry, Eptp, memory_type};

/// Paging-structure levels: the root is level 4, an entry of level 1 maps 4 KiB.
const ROOT_LEVEL: u32 = 4;
/// The highest level whose entries can map memory: 1 GiB.
const HIGHEST_LEAF: u32 = 3;
const ENTRIES: u64 = 512;

/// Bytes that one entry of a level covers.
const fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// Builds the tables and returns the EPT pointer.
///
/// # Errors
/// The arena is used up.
pub fn build(memory: &impl Physical, arena: &mut Arena, ram: &[Range<u64>]) -> Result<Eptp, HostError> {
    let root = arena.page()?;
    for range in ram {
        map(memory, arena, root, ROOT_LEVEL, range.clone())?;
    }
    Ok(Eptp::default()
        .with(Eptp::MEMORY_TYPE, memory_type::WB)
        .with(Eptp::WALK_LENGTH_MINUS_1, (ROOT_LEVEL - 1) as u8)
        .with(Eptp::ROOT, root.0 >> 12))
}

/// Maps `range`, which lies in what the table covers, entry by entry.
fn map(
    memory: &impl Physical,
    arena: &mut Arena,
    table: Pa,
    level: u32,
    range: Range<u64>,
) -> Result<(), HostError> {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min((at & !(span(level) - 1)) + span(level));
        let slot = table.plus(8 * (at / span(level) % ENTRIES));
        if level <= HIGHEST_LEAF && end - at == span(level) {
            memory.write_u64(slot, leaf(at, level).0);
        } else {
            let below = subtable(memory, arena, slot)?;
            map(memory, arena, below, level - 1, at..end)?;
        }
        at = end;
    }
    Ok(())
}

/// The table that an entry references, made if it is not there.
fn subtable(memory: &impl Physical, arena: &mut Arena, slot: Pa) -> Result<Pa, HostError> {
    let entry = EptEntry(memory.read_u64(slot));
    if entry.get(EptEntry::READ) {
        return Ok(Pa(entry.0 & EptEntry::FRAME.mask()));
    }
    let table = arena.page()?;
    memory.write_u64(slot, accessible(table.0).0);
    Ok(table)
}

/// An entry that permits everything.
fn accessible(address: u64) -> EptEntry {
    EptEntry::default()
        .with(EptEntry::READ, true)
        .with(EptEntry::WRITE, true)
        .with(EptEntry::EXECUTE, true)
        .with(EptEntry::FRAME, address >> 12)
}

/// An entry that maps memory to the same address.
fn leaf(address: u64, level: u32) -> EptEntry {
    accessible(address).with(EptEntry::MEMORY_TYPE, memory_type::WB).with(EptEntry::LARGE, level > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HIGH_RAM_BASE, Memory, ram_ranges};
    use vmcs12::addr::ARENA_BASE;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// Where an address leads, and by an entry of which level.
    fn walk(memory: &impl Physical, eptp: Eptp, address: u64) -> Option<(u64, u32)> {
        let mut table = eptp.root();
        for level in (1..=ROOT_LEVEL).rev() {
            let entry = EptEntry(memory.read_u64(table.plus(8 * (address / span(level) % ENTRIES))));
            if !entry.get(EptEntry::READ) {
                return None;
            }
            let frame = entry.0 & EptEntry::FRAME.mask();
            if level == 1 || entry.get(EptEntry::LARGE) {
                assert_eq!(entry.get(EptEntry::MEMORY_TYPE), memory_type::WB);
                return Some((frame + address % span(level), level));
            }
            assert!(frame >= ARENA_BASE.0, "tables lie in the arena");
            table = Pa(frame);
        }
        None
    }

    fn built(size: u64) -> (Memory, Eptp) {
        let memory = Memory::new(size).unwrap();
        let eptp = build(&memory.machine(), &mut memory.arena(), &ram_ranges(size)).unwrap();
        (memory, eptp)
    }

    #[test]
    fn ram_maps_to_itself_with_the_largest_pages() {
        let (memory, eptp) = built(GIB + 2 * MIB + 4096);
        let machine = memory.machine();
        for (address, level) in [(0, 3), (GIB - 1, 3), (GIB, 2), (GIB + 2 * MIB - 1, 2), (GIB + 2 * MIB, 1)] {
            assert_eq!(walk(&machine, eptp, address), Some((address, level)));
        }
        assert_eq!(walk(&machine, eptp, GIB + 2 * MIB + 4096), None);
    }

    #[test]
    fn the_device_hole_is_not_mapped() {
        let (memory, eptp) = built(5 * GIB);
        let machine = memory.machine();
        assert_eq!(walk(&machine, eptp, 3 * GIB), None);
        assert_eq!(walk(&machine, eptp, HIGH_RAM_BASE - 1), None);
        assert_eq!(walk(&machine, eptp, HIGH_RAM_BASE), Some((HIGH_RAM_BASE, 3)));
        assert_eq!(walk(&machine, eptp, 6 * GIB), None);
    }
}
