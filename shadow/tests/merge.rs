//! vmcs02 is always valid, and has every intercept that L0 or L1 needs.

mod world;

use shadow::merge::controls::{MERGES, Policy};
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::eptp::Eptp;
use vmcs12::arch::event::vector;
use vmcs12::check::{self, Ctx, Entrant};
use vmcs12::control::*;
use vmcs12::exit::{Invalidation, Reason};
use vmcs12::field::table::*;
use vmcs12::implemented;
use world::*;

/// What the processor would say of vmcs02.
fn refused(world: &mut World) -> Option<&'static str> {
    let caps = implemented::processor();
    let vmcs02 = world.vmcs02().clone();
    let memory = &world.memory;
    let entrant = Entrant { long_mode: true, current_vmcs: u64::MAX };
    let ctx = Ctx::new(&vmcs02, &caps, entrant, |at, into| memory.read(Pa(at), into));
    let broken = check::controls_and_host(&ctx).err().map(|refusal| refusal.rule.id);
    broken.or(check::guest(&ctx).err().map(|failure| failure.rule.id))
}

/// Controls that can be set on their own in a valid vmcs12, and in a vmcs01.
fn free(control: Control) -> bool {
    let needs_more = [
        USE_TPR_SHADOW,
        USE_MSR_BITMAPS,
        UNRESTRICTED_GUEST,
        ENABLE_EPT,
        VIRTUAL_NMIS,
        NMI_WINDOW_EXITING,
        SAVE_VMX_PREEMPTION_TIMER_VALUE,
        HOST_ADDRESS_SPACE_SIZE,
        IA_32E_MODE_GUEST,
    ];
    offered().can_be_one(control) && !offered().must_be_one(control) && !needs_more.contains(&control)
}

#[test]
fn each_control_follows_its_row() {
    for row in MERGES.iter().filter(|row| free(row.control)) {
        for (ours, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut world = World::with_current();
            if !implemented::processor().must_be_one(row.control)
                && row.control != ACTIVATE_SECONDARY_CONTROLS
            {
                world.vmcs01.current.set_control(row.control, ours);
            }
            world.vmcs12().set_control(row.control, theirs);
            if row.control == ACTIVATE_SECONDARY_CONTROLS && !theirs {
                world.vmcs12().set_control(ENABLE_VPID, false);
            }
            let outcome = world.instruction(Reason::Vmlaunch);
            assert_eq!(outcome, shadow::Outcome::Entered, "{row:?} {:?}", world.engine.broken_rule);
            let ours = world.vmcs01.current.has(row.control);
            let expected = match row.policy {
                Policy::Either => ours || theirs,
                Policy::Both => ours && theirs,
                Policy::Ours => ours,
                Policy::Theirs => theirs,
                Policy::On => true,
                Policy::Off | Policy::Absent => false,
                Policy::Emulated => continue,
            };
            assert_eq!(world.vmcs02().has(row.control), expected, "{row:?} {ours} {theirs}");
            if !(row.policy == Policy::Ours) {
                assert_eq!(refused(&mut world), None, "{row:?} {ours} {theirs}");
            }
        }
    }
}

#[test]
fn no_intercept_of_l0s_is_lost() {
    let intercepts = [
        EXTERNAL_INTERRUPT_EXITING,
        NMI_EXITING,
        HLT_EXITING,
        INVLPG_EXITING,
        MWAIT_EXITING,
        RDPMC_EXITING,
        RDTSC_EXITING,
        CR3_LOAD_EXITING,
        CR3_STORE_EXITING,
        CR8_LOAD_EXITING,
        CR8_STORE_EXITING,
        MOV_DR_EXITING,
        UNCONDITIONAL_IO_EXITING,
        MONITOR_EXITING,
        PAUSE_EXITING,
        DESCRIPTOR_TABLE_EXITING,
        WBINVD_EXITING,
        RDRAND_EXITING,
        RDSEED_EXITING,
    ];
    let world = World::in_l2_with(|world| {
        let required: Vec<Control> = intercepts.into_iter().filter(|&c| offered().must_be_one(c)).collect();
        for control in intercepts {
            world.vmcs01.current.set_control(control, true);
            world.vmcs12().set_control(control, required.contains(&control));
        }
        world.vmcs01.current.set(EXCEPTION_BITMAP, 1 << vector::DB | 1 << vector::PF);
        world.vmcs12().set(EXCEPTION_BITMAP, 1 << vector::UD);
        world.vmcs12().set(PAGE_FAULT_ERROR_CODE_MASK, 1);
        world.vmcs12().set(PAGE_FAULT_ERROR_CODE_MATCH, 1);
    });
    let vmcs02 = &world.engine.vmcs02.current;
    for control in intercepts {
        assert!(vmcs02.has(control), "{}", control.name());
    }
    assert_eq!(vmcs02.get(EXCEPTION_BITMAP), 1 << vector::DB | 1 << vector::PF | 1 << vector::UD);
    assert_eq!((vmcs02.get(PAGE_FAULT_ERROR_CODE_MASK), vmcs02.get(PAGE_FAULT_ERROR_CODE_MATCH)), (0, 0));
}

#[test]
fn msr_bitmaps_are_ored_at_each_entry() {
    let mut world = World::in_l2_with(|world| {
        world.memory.write(Pa(L0_MSR_BITMAP + 1), &[0x0f]);
        world.memory.write(Pa(MSR_BITMAP + 1), &[0xc0]);
        world.vmcs12().set_control(USE_MSR_BITMAPS, true);
        world.vmcs12().set(ADDRESS_OF_MSR_BITMAPS, Pa(MSR_BITMAP));
    });
    let merged = |world: &mut World| {
        let at = world.vmcs02().get(ADDRESS_OF_MSR_BITMAPS);
        assert!(at.0 >= vmcs12::addr::ARENA_BASE.0 && world.vmcs02().has(USE_MSR_BITMAPS));
        let mut bytes = [0; 4];
        world.memory.read(at, &mut bytes);
        bytes
    };
    assert_eq!(merged(&mut world), [0, 0xcf, 0, 0]);
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), shadow::L2Exit::Reflected);
    world.memory.write(Pa(MSR_BITMAP + 2), &[1]);
    assert_eq!(world.instruction(Reason::Vmresume), shadow::Outcome::Entered);
    assert_eq!(merged(&mut world), [0, 0xcf, 1, 0]);
}

#[test]
fn without_bitmaps_of_l1s_every_msr_exits() {
    let mut world = World::in_l2();
    assert!(!world.vmcs02().has(USE_MSR_BITMAPS));
}

#[test]
fn offsets_of_the_tsc_add() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(USE_TSC_OFFSETTING, true);
        world.vmcs12().set(TSC_OFFSET, 5_u64.wrapping_sub(1000));
    });
    assert_eq!(world.vmcs02().get(TSC_OFFSET), 105_u64.wrapping_sub(1000));
    let mut world = World::in_l2_with(|world| world.vmcs12().set(TSC_OFFSET, 77));
    assert_eq!(world.vmcs02().get(TSC_OFFSET), 100, "L1 does not use its offset");
}

#[test]
fn l2_reads_the_control_registers_that_l1_shows() {
    let mut world = World::in_l2_with(|world| {
        let vmcs12 = world.vmcs12();
        vmcs12.set(CR4_GUEST_HOST_MASK, cr4::VMXE | cr4::PAE);
        vmcs12.set(CR4_READ_SHADOW, cr4::PAE);
        vmcs12.set(CR0_GUEST_HOST_MASK, cr0::NE);
        vmcs12.set(CR0_READ_SHADOW, 0);
    });
    let vmcs02 = world.vmcs02();
    assert_eq!(shadow::cr::seen_cr4(vmcs02), cr4::PAE);
    assert_eq!(shadow::cr::seen_cr0(vmcs02) & cr0::NE, 0);
    assert_eq!(vmcs02.get(GUEST_CR4), cr4::PAE | cr4::VMXE);
}

#[test]
fn bits_of_cr4_that_the_profile_lacks_exit() {
    let mut caps = offered();
    caps.cr4_fixed1 &= !cr4::UMIP;
    let mut world = World::new(caps);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), shadow::Outcome::Completed);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), shadow::Outcome::Completed);
    fill_valid(world.vmcs12());
    assert_eq!(world.instruction(Reason::Vmlaunch), shadow::Outcome::Entered);
    assert_eq!(world.vmcs02().get(CR4_GUEST_HOST_MASK), cr4::UMIP);
}

#[test]
fn what_the_entry_does_not_load_l2_has_from_l1() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs01.current.set(GUEST_DR7, 0x402);
        world.vmcs01.current.set(GUEST_IA32_PAT, 0x0606_0606_0606_0606);
        world.vmcs12().set_control(LOAD_DEBUG_CONTROLS, false);
        world.vmcs12().set_control(LOAD_IA32_EFER_ON_ENTRY, false);
        world.vmcs12().set(GUEST_IA32_EFER, 0);
        world.vmcs12().set(GUEST_DR7, 0x400);
    });
    let efer = world.get01(GUEST_IA32_EFER);
    let vmcs02 = world.vmcs02();
    assert_eq!(vmcs02.get(GUEST_DR7), 0x402);
    assert_eq!(vmcs02.get(GUEST_IA32_PAT), 0x0606_0606_0606_0606);
    assert_eq!(vmcs02.get(GUEST_IA32_EFER), efer);
    assert_eq!(refused(&mut world), None);
}

#[test]
fn without_ept_of_l1s_l2_runs_on_ept01() {
    let mut world = World::in_l2();
    assert_eq!(world.vmcs02().get(EPTP), Eptp(EPTP01 | 3 << 3 | 6));
}

#[test]
fn an_l2_without_vpid_forgets_at_entry_and_exit() {
    let mut world = World::in_l2_with(|world| world.vmcs12().set_control(ENABLE_VPID, false));
    let untagged = world.vmcs02().get(VPID);
    assert!(untagged > 1);
    let both = [Invalidation::Vpid(untagged), Invalidation::Vpid(1)];
    assert_eq!(world.engine.invalidations.as_slice(), both);
    world.engine.invalidations.drain(|_| {});
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), shadow::L2Exit::Reflected);
    assert_eq!(world.engine.invalidations.as_slice(), both);
}

#[test]
fn a_tpr_shadow_of_l1s_takes_the_place_of_l0s_cr8_exits() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs01.current.set_control(CR8_LOAD_EXITING, true);
        world.vmcs12().set_control(USE_TPR_SHADOW, true);
        world.vmcs12().set(VIRTUAL_APIC_ADDRESS, Pa(0x9000));
    });
    assert!(world.vmcs02().has(USE_TPR_SHADOW) && !world.vmcs02().has(CR8_LOAD_EXITING));
    assert_eq!(world.vmcs02().get(VIRTUAL_APIC_ADDRESS), Pa(0x9000));
    assert_eq!(refused(&mut world), None);
}

#[test]
fn with_ept_and_an_unrestricted_guest_vmcs02_is_valid() {
    let mut world = World::in_l2_with(|world| {
        world.enable_ept12();
        let vmcs12 = world.vmcs12();
        vmcs12.set_control(UNRESTRICTED_GUEST, true);
        vmcs12.set_control(IA_32E_MODE_GUEST, false);
        vmcs12.set(GUEST_IA32_EFER, 0);
        vmcs12.set(GUEST_CR0, cr0::NE | cr0::ET);
        vmcs12.set(GUEST_RIP, 0xfff0);
        let rights = segment(11, false);
        vmcs12.set(GUEST_CS_ACCESS_RIGHTS, rights);
    });
    assert_eq!(refused(&mut world), None);
    assert!(world.vmcs02().has(UNRESTRICTED_GUEST) && world.vmcs02().has(ENABLE_EPT));
}

#[test]
fn a_pae_l2_without_ept_gets_its_pdptes_from_memory() {
    let mut world = World::in_l2_with(|world| {
        for i in 0..4 {
            world.memory.write_u64(Pa(0xa020 + 8 * i), 0xb001 + 0x1000 * i);
        }
        let vmcs12 = world.vmcs12();
        vmcs12.set_control(IA_32E_MODE_GUEST, false);
        vmcs12.set(GUEST_IA32_EFER, 0);
        vmcs12.set(GUEST_CR3, 0xa020);
        let rights = segment(11, false).with(vmcs12::arch::segment::AccessRights::DB, true);
        vmcs12.set(GUEST_CS_ACCESS_RIGHTS, rights);
    });
    assert_eq!(world.vmcs02().get(GUEST_PDPTE0), 0xb001);
    assert_eq!(world.vmcs02().get(GUEST_PDPTE3), 0xe001);
    assert_eq!(refused(&mut world), None);
}

#[test]
fn pages_that_l1_names_are_never_l0s() {
    let mut caps = offered();
    caps.physical_width = 52;
    let mut world = World::new(caps);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), shadow::Outcome::Completed);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), shadow::Outcome::Completed);
    fill_valid(world.vmcs12());
    let l0s = vmcs12::addr::ARENA_BASE.0;
    world.vmcs12().set_control(USE_TPR_SHADOW, true);
    world.vmcs12().set(VIRTUAL_APIC_ADDRESS, Pa(l0s + 0x3000));
    assert_eq!(world.instruction(Reason::Vmlaunch), shadow::Outcome::Entered);
    assert!(world.vmcs02().get(VIRTUAL_APIC_ADDRESS).0 < l0s);
    assert_eq!(refused(&mut world), None);
    for address in [VM_EXIT_MSR_STORE_ADDRESS, VM_EXIT_MSR_LOAD_ADDRESS] {
        world.vmcs12().set(address, Pa(l0s));
    }
    world.vmcs12().set(VM_EXIT_MSR_STORE_COUNT, 1);
    let exit = world.exit(Reason::Cpuid, |_| {});
    assert_eq!(exit, shadow::L2Exit::Abort(vmcs12::error::Abort::SaveGuestMsrs), "a hole reads as ones");
}
