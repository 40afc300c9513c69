//! Machine-physical memory: guest RAM, which devices and loaders reach, and L0's arena, which the processor
//! alone sees beside it.

use crate::processor::HostError;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};
use vmcs12::addr::{ARENA_BASE, Pa};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4 * KIB;

/// RAM below 4 GiB ends here; the rest of the 4 GiB is for devices.
pub const LOW_RAM_END: u64 = 3 * GIB;
/// RAM that does not fit below [`LOW_RAM_END`] begins here.
pub const HIGH_RAM_BASE: u64 = 4 * GIB;
/// Size of L0's arena. Its pages cost host memory only once they are written.
const ARENA_SIZE: u64 = 64 * MIB;

/// The ranges of L1-physical addresses that are RAM.
pub fn ram_ranges(size: u64) -> Vec<Range<u64>> {
    let low = 0..size.min(LOW_RAM_END);
    let high = HIGH_RAM_BASE..HIGH_RAM_BASE + size.saturating_sub(LOW_RAM_END);
    [low, high].into_iter().filter(|range| !range.is_empty()).collect()
}

/// All machine-physical memory. Clones share it.
#[derive(Clone)]
pub struct Memory {
    ram: GuestMemoryMmap,
    arena: Arc<MmapRegion>,
}

impl Memory {
    /// RAM of `size` bytes and an empty arena, both zero. The host provides pages as they are touched.
    ///
    /// # Errors
    /// The host has not enough address space, or `size` is not a multiple of 4 KiB.
    pub fn new(size: u64) -> Result<Self, HostError> {
        if size == 0 || !size.is_multiple_of(PAGE) {
            return Err(HostError::MemorySize { size });
        }
        let ranges: Vec<_> = ram_ranges(size)
            .into_iter()
            .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
            .collect();
        let ram = GuestMemoryMmap::from_ranges(&ranges)
            .map_err(|source| HostError::system(format!("map {size} bytes of guest RAM"), source))?;
        let arena = MmapRegion::new(ARENA_SIZE as usize)
            .map_err(|source| HostError::system("map L0's arena", source))?;
        ram.iter().for_each(|region| prefer_large_pages(region.as_ptr(), region.len() as usize));
        Ok(Self { ram, arena: Arc::new(arena) })
    }

    /// RAM, as loaders and devices see it.
    pub fn ram(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    /// The ranges of RAM, in ascending order.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.ram.iter().map(|region| region.start_addr().0..region.last_addr().0 + 1).collect()
    }

    /// The arena, not handed out yet. To be asked for once per machine.
    pub fn arena(&self) -> Arena {
        Arena { next: ARENA_BASE, end: ARENA_BASE.plus(ARENA_SIZE) }
    }

    /// RAM and arena as the processor sees them. The caller keeps a clone of `self` as long as the processor.
    pub fn machine(&self) -> cpu::Memory {
        let ram = self.ram.iter().map(|region| cpu::Region {
            base: Pa(region.start_addr().0),
            len: region.len(),
            host: NonNull::new(region.as_ptr()).expect("a mapping is not at address 0"),
        });
        let arena = cpu::Region {
            base: ARENA_BASE,
            len: ARENA_SIZE,
            host: NonNull::new(self.arena.as_ptr()).expect("a mapping is not at address 0"),
        };
        // SAFETY: each region is one live private mapping of exactly that length, and the regions are disjoint;
        // `machine.rs` drops the processors before the last clone of this object, which unmaps them.
        unsafe { cpu::Memory::new(ram.chain([arena]).collect()) }
    }
}

/// Asks the host for large pages: guest memory is touched all over, and the host's TLB is small. Advice only: where
/// the host has none, small pages serve.
fn prefer_large_pages(start: *mut u8, len: usize) {
    // SAFETY: the range is one live mapping of the caller's; the advice changes no content.
    unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
}

/// Pages of L0's own, handed out once and never taken back.
#[derive(Debug)]
pub struct Arena {
    next: Pa,
    end: Pa,
}

impl Arena {
    /// The next page, zeroed.
    ///
    /// # Errors
    /// The arena is used up.
    pub fn page(&mut self) -> Result<Pa, HostError> {
        self.pages(1).map(|range| range.start)
    }

    /// The next `count` pages, zeroed.
    ///
    /// # Errors
    /// The arena has fewer left.
    pub fn pages(&mut self, count: u64) -> Result<Range<Pa>, HostError> {
        let wanted = count.checked_mul(PAGE).filter(|bytes| *bytes <= self.end.0 - self.next.0);
        let bytes = wanted.ok_or(HostError::ArenaFull)?;
        let start = self.next;
        self.next = start.plus(bytes);
        Ok(start..self.next)
    }

    /// How many pages are left.
    pub fn left(&self) -> u64 {
        (self.end.0 - self.next.0) / PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmcs12::addr::Physical;

    #[test]
    fn ram_leaves_the_device_hole_below_4_gib() {
        assert_eq!(ram_ranges(512 * MIB), vec![0..512 * MIB]);
        assert_eq!(ram_ranges(3 * GIB), vec![0..3 * GIB]);
        assert_eq!(ram_ranges(5 * GIB), vec![0..3 * GIB, 4 * GIB..6 * GIB]);
    }

    #[test]
    fn sizes_that_are_no_whole_pages_are_refused() {
        assert!(matches!(Memory::new(0), Err(HostError::MemorySize { .. })));
        assert!(matches!(Memory::new(4097), Err(HostError::MemorySize { .. })));
    }

    #[test]
    fn the_arena_ends() {
        let mut arena = Arena { next: ARENA_BASE, end: ARENA_BASE.plus(3 * PAGE) };
        assert_eq!(arena.page().unwrap(), ARENA_BASE);
        assert!(matches!(arena.pages(3), Err(HostError::ArenaFull)));
        assert!(matches!(arena.pages(u64::MAX), Err(HostError::ArenaFull)));
        assert_eq!(arena.pages(2).unwrap(), ARENA_BASE.plus(PAGE)..ARENA_BASE.plus(3 * PAGE));
        assert_eq!(arena.left(), 0);
    }

    #[test]
    fn the_processor_sees_ram_and_arena_and_devices_see_ram_alone() {
        let memory = Memory::new(2 * MIB).unwrap();
        let machine = memory.machine();
        machine.write_u64(Pa(0x1000), 1);
        machine.write_u64(ARENA_BASE, 2);
        assert_eq!((machine.read_u64(Pa(0x1000)), machine.read_u64(ARENA_BASE)), (1, 2));
        assert!(memory.ram().address_in_range(GuestAddress(0x1000)));
        assert!(!memory.ram().address_in_range(GuestAddress(ARENA_BASE.0)));
        assert!(!machine.is_backed(Pa(2 * MIB)));
    }
}
