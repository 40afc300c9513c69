//! ept02 is ept12 over ept01: what L2 may reach, and what L1 is told of the rest.

mod world;

use shadow::ept::walk::Format;
use shadow::ept::{Filled, ShadowEpt};
use shadow::invalidations::Invalidations;
use shadow::{L2Exit, Task};
use vmcs12::addr::{ARENA_BASE, Gpa, Ngpa, Pa, Physical};
use vmcs12::arch::eptp::{EptEntry, Eptp};
use vmcs12::exit::qualification::EptViolation;
use vmcs12::exit::{Invalidation, Reason};
use vmcs12::field::table::*;
use world::*;

const READ: u64 = 1;
const WRITE: u64 = 2;
const FETCH: u64 = 4;
const LINEAR: u64 = 1 << 7 | 1 << 8;

/// The leaf of ept02 for an address: entry and page size.
fn leaf02(memory: &Memory, eptp02: Eptp, at: u64) -> Option<(EptEntry, u64)> {
    let mut table = eptp02.root();
    for level in (1..=4).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = EptEntry(memory.read_u64(table.plus(((at >> shift) & 0x1ff) * 8)));
        if entry.0 & 7 == 0 {
            return None;
        }
        if level == 1 || entry.get(EptEntry::LARGE) {
            return Some((entry, 1 << shift));
        }
        table = Pa(entry.0 & EptEntry::FRAME.mask());
        assert!(table.0 >= ARENA_BASE.0, "tables of ept02 are L0's");
    }
    None
}

fn rights(entry: EptEntry) -> u64 {
    entry.0 & 7
}

/// L2 touches an address.
fn touch(world: &mut World, at: u64, access: u64) -> L2Exit {
    world.exit(Reason::EptViolation, |vmcs02| {
        vmcs02.set(GUEST_PHYSICAL_ADDRESS, at);
        vmcs02.set(EXIT_QUALIFICATION, access | LINEAR);
    })
}

fn leaf(world: &mut World, at: u64) -> Option<(EptEntry, u64)> {
    let eptp02 = world.vmcs02().get(EPTP);
    leaf02(&world.memory, eptp02, at)
}

fn world_with_ept() -> World {
    World::in_l2_with(|world| {
        world.enable_ept12();
    })
}

#[test]
fn ept02_starts_empty_and_is_filled_where_l2_touches_it() {
    let mut world = world_with_ept();
    assert!(world.vmcs02().get(EPTP).root().0 >= ARENA_BASE.0);
    assert_eq!(leaf(&mut world, 0x5123), None);
    assert_eq!(touch(&mut world, 0x5123, READ), L2Exit::Resumed);
    let (entry, size) = leaf(&mut world, 0x5123).unwrap();
    assert_eq!((entry.0 & EptEntry::FRAME.mask(), size, rights(entry)), (0x5000, 0x1000, 7));
    assert_eq!(entry.get(EptEntry::MEMORY_TYPE), 6);
    assert_eq!(world.engine.counters.ept02_fills, 1);
}

#[test]
fn a_page_that_ept12_moves_is_moved() {
    let mut world = world_with_ept();
    world.memory.write_u64(World::leaf12(0x5000), 0x9000 | 7 | 6 << 3 | 1 << 6);
    assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Resumed);
    let (entry, _) = leaf(&mut world, 0x5000).unwrap();
    assert_eq!(entry.0 & EptEntry::FRAME.mask(), 0x9000);
    assert!(entry.get(EptEntry::IGNORE_PAT));
}

#[test]
fn rights_are_those_that_all_entries_of_ept12_give() {
    let mut world = world_with_ept();
    world.memory.write_u64(Pa(EPT12 + 0x2000), (EPT12 + 0x3000) | READ | FETCH);
    world.memory.write_u64(World::leaf12(0x5000), 0x5000 | READ | WRITE | 6 << 3);
    assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Resumed);
    assert_eq!(rights(leaf(&mut world, 0x5000).unwrap().0), READ);
}

#[test]
fn an_access_that_ept12_forbids_is_l1s_with_the_rights_in_the_qualification() {
    let rows = [
        // leaf, access, qualification bits 5:3
        (READ, WRITE, READ),
        (READ | WRITE, FETCH, READ | WRITE),
        (FETCH, READ, FETCH),
        (0, READ, 0),
    ];
    for (allowed, access, seen) in rows {
        let mut world = world_with_ept();
        world.memory.write_u64(World::leaf12(0x5000), 0x5000 | allowed | 6 << 3);
        assert_eq!(touch(&mut world, 0x5678, access), L2Exit::Reflected, "{allowed} {access}");
        assert_eq!(world.vmcs12().get(EXIT_REASON), 48);
        assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), access | seen << 3 | LINEAR);
        assert_eq!(world.vmcs12().get(GUEST_PHYSICAL_ADDRESS), 0x5678);
    }
}

#[test]
fn an_entry_on_the_way_that_is_not_present_is_a_violation_without_rights() {
    let mut world = world_with_ept();
    world.memory.write_u64(Pa(EPT12 + 0x2000), 0x6000);
    assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), READ | LINEAR);
}

#[test]
fn bits_above_48_are_a_violation() {
    let mut world = world_with_ept();
    assert_eq!(touch(&mut world, 1 << 48, READ), L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_REASON), 48);
}

#[test]
fn misconfigured_entries_are_exit_49() {
    let rows = [
        ("write without read", World::leaf12(0x5000), 0x5000 | WRITE | 6 << 3),
        ("memory type", World::leaf12(0x5000), 0x5000 | 7 | 2 << 3),
        ("beyond the width", World::leaf12(0x5000), 1 << WIDTH | 7 | 6 << 3),
        ("reserved in a table's entry", Pa(EPT12 + 0x2000), (EPT12 + 0x3000) | 7 | 1 << 3),
        ("page size in a PML4E", Pa(EPT12), (EPT12 + 0x1000) | 7 | 1 << 7),
        ("offset of a 2-MByte page", Pa(EPT12 + 0x2000), 0x1000 | 7 | 6 << 3 | 1 << 7),
        ("offset of a 1-GByte page", Pa(EPT12 + 0x1000), 0x20_0000 | 7 | 6 << 3 | 1 << 7),
    ];
    for (what, place, entry) in rows {
        let mut world = world_with_ept();
        world.memory.write_u64(place, entry);
        assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Reflected, "{what}");
        assert_eq!(world.vmcs12().get(EXIT_REASON), 49, "{what}");
        assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), 0);
    }
}

#[test]
fn execute_only_needs_the_capability() {
    let mut caps = offered();
    caps.ept_vpid = caps.ept_vpid.with(vmcs12::caps::EptVpidCap::EXECUTE_ONLY, false);
    let world = world_with_ept();
    world.memory.write_u64(World::leaf12(0x5000), 0x5000 | FETCH | 6 << 3);
    let arena = ARENA_BASE.plus(ARENA / 2)..ARENA_BASE.plus(ARENA - 0x2000);
    let mut ept = ShadowEpt::new(ept01(), Format::new(&caps), arena);
    let filled = ept.fill(
        &world.memory,
        Eptp(EPT12 | 3 << 3 | 6),
        Ngpa(0x5000),
        EptViolation(FETCH),
        &mut Invalidations::default(),
    );
    assert_eq!(filled, Filled::Misconfiguration);
}

#[test]
fn a_large_page_of_l1s_is_large_as_far_as_it_lies_in_ram() {
    let mut world = world_with_ept();
    let large = 7 | 6 << 3 | 1 << 7;
    world.memory.write_u64(Pa(EPT12 + 0x2000), 0x40_0000 | large);
    assert_eq!(touch(&mut world, 0x12_3000, READ), L2Exit::Resumed);
    let (entry, size) = leaf(&mut world, 0x12_3000).unwrap();
    assert_eq!((entry.0 & EptEntry::FRAME.mask(), size), (0x40_0000, 2 << 20));
    // 16 MiB of RAM: a 1-GByte page is mapped by 2-MByte pages.
    world.memory.write_u64(Pa(EPT12 + 0x1000 + 8), large);
    assert_eq!(touch(&mut world, (1 << 30) + 0x21_0000, READ), L2Exit::Resumed);
    let (entry, size) = leaf(&mut world, (1 << 30) + 0x21_0000).unwrap();
    assert_eq!((entry.0 & EptEntry::FRAME.mask(), size), (0x20_0000, 2 << 20));
}

#[test]
fn what_is_not_ram_is_l1s_devices_and_never_mapped() {
    let mut world = world_with_ept();
    world.memory.write_u64(World::leaf12(0x5000), 0xfee0_0000 | 7);
    assert_eq!(touch(&mut world, 0x50b0, WRITE), L2Exit::L0(Task::Mmio(Gpa(0xfee0_00b0))));
    assert_eq!(leaf(&mut world, 0x5000), None);
}

#[test]
fn an_ept12_in_a_hole_reads_as_ones() {
    let mut world = World::in_l2_with(|world| {
        world.enable_ept12();
        world.vmcs12().set(EPTP, Eptp(HOLE | 3 << 3 | 6));
    });
    assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_REASON), 49);
}

#[test]
fn an_ept12_cannot_reach_the_arena() {
    let mut world = world_with_ept();
    world.memory.write_u64(World::leaf12(0x5000), ARENA_BASE.0 | 7 | 6 << 3);
    assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_REASON), 49);
}

#[test]
fn accessed_and_dirty_flags_follow_the_accesses() {
    let mut world = World::in_l2_with(|world| {
        let eptp = world.enable_ept12();
        world.vmcs12().set(EPTP, eptp.with(Eptp::ACCESSED_DIRTY, true));
    });
    let flags = |world: &World, place: Pa| world.memory.read_u64(place) >> 8 & 3;
    assert!(world.vmcs02().get(EPTP).get(Eptp::ACCESSED_DIRTY));
    assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Resumed);
    for table in [EPT12, EPT12 + 0x1000, EPT12 + 0x2000] {
        assert_eq!(flags(&world, Pa(table)), 1);
    }
    assert_eq!(flags(&world, World::leaf12(0x5000)), 1);
    assert_eq!(rights(leaf(&mut world, 0x5000).unwrap().0), READ | FETCH, "the first write comes back");
    assert_eq!(touch(&mut world, 0x5000, WRITE), L2Exit::Resumed);
    assert_eq!(flags(&world, World::leaf12(0x5000)), 3);
    assert_eq!(rights(leaf(&mut world, 0x5000).unwrap().0), 7);
}

#[test]
fn a_denied_access_sets_no_flags() {
    let mut world = World::in_l2_with(|world| {
        let eptp = world.enable_ept12();
        world.vmcs12().set(EPTP, eptp.with(Eptp::ACCESSED_DIRTY, true));
    });
    world.memory.write_u64(World::leaf12(0x5000), 0x5000 | READ | 6 << 3);
    assert_eq!(touch(&mut world, 0x5000, WRITE), L2Exit::Reflected);
    assert_eq!(world.memory.read_u64(Pa(EPT12)) >> 8 & 3, 0);
}

#[test]
fn invept_drops_what_was_composed() {
    for (kind, eptp) in [(1, EPT12 | 3 << 3 | 6), (2, 0)] {
        let mut world = world_with_ept();
        assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Resumed);
        let eptp02 = world.vmcs02().get(EPTP);
        assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Reflected);
        world.engine.invalidations.drain(|_| {});
        assert_eq!(world.invalidate(Reason::Invept, kind, eptp, 0), shadow::Outcome::Completed);
        assert!(world.engine.invalidations.as_slice().contains(&Invalidation::Ept(eptp02.root())));
        assert_eq!(world.instruction(Reason::Vmresume), shadow::Outcome::Entered);
        assert_eq!(world.vmcs02().get(EPTP), eptp02);
        assert_eq!(leaf(&mut world, 0x5000), None);
    }
}

#[test]
fn an_ept02_is_kept_from_entry_to_entry() {
    let mut world = world_with_ept();
    assert_eq!(touch(&mut world, 0x5000, READ), L2Exit::Resumed);
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Reflected);
    assert_eq!(world.instruction(Reason::Vmresume), shadow::Outcome::Entered);
    assert!(leaf(&mut world, 0x5000).is_some());
}

#[test]
fn when_the_arena_is_full_all_is_dropped_and_the_page_is_mapped() {
    let world = world_with_ept();
    let tables = 48;
    let arena = ARENA_BASE.plus(ARENA / 2)..ARENA_BASE.plus(ARENA / 2 + tables * 0x1000);
    let mut ept = ShadowEpt::new(ept01(), Format::new(&offered()), arena);
    let (eptp12, mut forget) = (Eptp(EPT12 | 3 << 3 | 6), Invalidations::default());
    // Every 512 GiB an entry of its own, all through the same tables: three new tables of ept02 each.
    for i in 0..256 {
        world.memory.write_u64(Pa(EPT12 + 8 * i), (EPT12 + 0x1000) | 7);
    }
    let eptp02 = ept.pointer(&world.memory, eptp12, &mut forget);
    for i in 0..256 {
        let at = i << 39 | 0x5000;
        forget.drain(|_| {});
        let filled = ept.fill(&world.memory, eptp12, Ngpa(at), EptViolation(READ), &mut forget);
        assert_eq!(filled, Filled::Mapped);
        assert!(leaf02(&world.memory, eptp02, at).is_some());
    }
}

#[test]
fn every_leaf_of_ept02_is_in_ram() {
    let world = world_with_ept();
    let arena = ARENA_BASE.plus(ARENA / 2)..ARENA_BASE.plus(ARENA - 0x2000);
    let mut ept = ShadowEpt::new(ept01(), Format::new(&offered()), arena);
    let (eptp12, mut forget) = (Eptp(EPT12 | 3 << 3 | 6), Invalidations::default());
    let eptp02 = ept.pointer(&world.memory, eptp12, &mut forget);
    let mut seed = 1_u64;
    for _ in 0..20_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (level, entry) = (seed >> 60, (seed >> 8) & 0xff_ffff_ffff);
        let at = (seed >> 20) & 0x1_ffff;
        let place = if level < 4 { Pa(EPT12 + 0x2000) } else { World::leaf12(at << 12 & 0x1f_f000) };
        let kept = world.memory.read_u64(place);
        world.memory.write_u64(place, entry);
        let _ = ept.fill(&world.memory, eptp12, Ngpa(at), EptViolation(seed >> 3 & 7), &mut forget);
        world.memory.write_u64(place, kept);
        if let Some((leaf, size)) = leaf02(&world.memory, eptp02, at) {
            assert!((leaf.0 & EptEntry::FRAME.mask()) + size <= RAM);
        }
    }
}
