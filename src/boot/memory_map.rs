//! Where RAM is, what of it is the guest's, and where the loaders put things.

use super::Problem;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// RAM below 4 GiB ends here at the latest; from here to 4 GiB are devices.
pub const LOW_RAM_END: u64 = 3 << 30;
const FOUR_GIB: u64 = 1 << 32;
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Places in the first megabyte.
#[allow(missing_docs, reason = "named by what is there")]
pub mod place {
    pub const BIOS_DATA: u64 = 0x400;
    pub const GDT: u64 = 0x500;
    pub const BOOT_INFO: u64 = 0x7000;
    pub const STACK: u64 = 0x8ff0;
    pub const PAGE_TABLES: u64 = 0x9000;
    pub const BOOT_INFO_TABLES: u64 = 0x1_0000;
    pub const CMDLINE: u64 = 0x2_0000;
    /// Command line and modules' strings end here.
    pub const CMDLINE_END: u64 = 0x3_0000;
    pub const EXTENDED_BIOS_DATA: u64 = 0x9_fc00;
    pub const VIDEO: u64 = 0xa_0000;
    pub const FIRMWARE: u64 = 0xe_0000;
    pub const HIGH: u64 = 0x10_0000;
}

/// What a range of physical memory is. The numbers are those of E820, multiboot and PVH alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// A range of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    pub kind: Kind,
}

/// How much RAM there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ram {
    /// The end of the RAM that begins at 0.
    pub low_end: u64,
    /// The end of the RAM that begins at 4 GiB; 4 GiB if there is none.
    pub high_end: u64,
}

impl Ram {
    pub fn of(memory: &GuestMemoryMmap) -> Self {
        let end_of_region_at = |start: u64| {
            let region = memory.find_region(GuestAddress(start))?;
            Some(region.start_addr().raw_value().saturating_add(region.len()))
        };
        Self {
            low_end: end_of_region_at(0).unwrap_or(0).min(FOUR_GIB),
            high_end: end_of_region_at(FOUR_GIB).unwrap_or(FOUR_GIB),
        }
    }

    /// The memory map, as firmware would tell it.
    pub fn map(self) -> Vec<Range> {
        let range = |start, end, kind| Range { start, end, kind };
        let ranges = [
            range(0, place::EXTENDED_BIOS_DATA, Kind::Ram),
            range(place::EXTENDED_BIOS_DATA, place::VIDEO, Kind::Reserved),
            range(place::FIRMWARE, place::HIGH, Kind::Reserved),
            range(place::HIGH, self.low_end, Kind::Ram),
            range(FOUR_GIB, self.high_end, Kind::Ram),
        ];
        ranges.into_iter().filter(|range| range.start < range.end).collect()
    }

    /// The problem of something that would reach to `end`.
    pub fn too_large(self, end: u64) -> Problem {
        Problem::TooLarge { needed_mib: end.div_ceil(MIB), memory_mib: self.low_end / MIB }
    }

    /// Is `length` bytes from `start` on RAM above the first megabyte?
    pub fn check(self, start: u64, length: u64) -> Result<u64, Problem> {
        let end = start.saturating_add(length);
        if end > self.low_end {
            return Err(self.too_large(end));
        }
        if start < place::HIGH {
            return Err(Problem::Unsupported {
                what: "wants to be loaded below 1 MiB, where firmware is",
                remedy: "link it to 1 MiB or higher",
            });
        }
        Ok(end)
    }

    /// The highest page-aligned place for `length` bytes that ends at `limit` and begins at `floor`.
    pub fn place_high(self, length: u64, floor: u64, limit: u64) -> Result<u64, Problem> {
        let start = self.low_end.min(limit).checked_sub(length).map(|start| start & !(PAGE - 1));
        start
            .filter(|start| *start >= floor)
            .ok_or_else(|| self.too_large(floor.saturating_add(length).saturating_add(PAGE)))
    }
}

/// Rounds up to a page.
pub fn page_up(address: u64) -> u64 {
    address.saturating_add(PAGE - 1) & !(PAGE - 1)
}

/// Copies bytes into guest RAM.
pub fn write(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) -> Result<(), Problem> {
    memory.write_slice(bytes, GuestAddress(at)).map_err(|_| {
        let ram = Ram::of(memory);
        ram.too_large(at.saturating_add(bytes.len() as u64))
    })
}

/// Copies a string and its terminator.
pub fn write_string(memory: &GuestMemoryMmap, at: u64, string: &str) -> Result<(), Problem> {
    if string.as_bytes().contains(&0) {
        return Err(Problem::Nul);
    }
    write(memory, at, string.as_bytes())?;
    write(memory, at + string.len() as u64, &[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: Ram = Ram { low_end: 64 * MIB, high_end: FOUR_GIB };

    #[test]
    fn the_map_is_in_order_and_without_overlap() {
        let map = Ram { low_end: LOW_RAM_END, high_end: 6 << 30 }.map();
        assert!(map.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let total: u64 = map.iter().filter(|r| r.kind == Kind::Ram).map(|r| r.end - r.start).sum();
        assert_eq!(total, (5 << 30) - place::HIGH + place::EXTENDED_BIOS_DATA);
        assert_eq!(RAM.map().len(), 4);
    }

    #[test]
    fn high_places_are_page_aligned_and_bounded() {
        assert_eq!(RAM.place_high(1, MIB, u64::MAX), Ok(64 * MIB - PAGE));
        assert_eq!(RAM.place_high(PAGE, MIB, 32 * MIB), Ok(32 * MIB - PAGE));
        assert!(RAM.place_high(64 * MIB, MIB, u64::MAX).is_err());
        assert!(RAM.place_high(u64::MAX, MIB, u64::MAX).is_err());
    }

    #[test]
    fn loads_stay_in_ram() {
        assert_eq!(RAM.check(MIB, 63 * MIB), Ok(64 * MIB));
        assert!(RAM.check(MIB, 64 * MIB).is_err());
        assert!(RAM.check(u64::MAX, 2).is_err());
        assert!(RAM.check(0x1000, 2).is_err());
    }
}
