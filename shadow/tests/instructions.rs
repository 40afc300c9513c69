//! Each VMX instruction ends as the manual says. The names are those of the checks of the instruction reference.

mod world;

use shadow::Outcome;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::AccessRights;
use vmcs12::arch::state::InterruptibilityState;
use vmcs12::arch::{efer, rflags};
use vmcs12::control::*;
use vmcs12::exit::{Invalidation, Reason};
use vmcs12::field::table::*;
use vmcs12::region;
use world::*;

const GP0: Outcome = Outcome::Exception(Exception::gp(0));
const UD: Outcome = Outcome::Exception(Exception::UD);

/// Every VMX instruction that exits from L1, VMXON aside.
const NOT_VMXON: [Reason; 12] = [
    Reason::Vmxoff,
    Reason::Vmclear,
    Reason::Vmptrld,
    Reason::Vmptrst,
    Reason::Vmread,
    Reason::Vmwrite,
    Reason::Vmlaunch,
    Reason::Vmresume,
    Reason::Invept,
    Reason::Invvpid,
    Reason::Vmcall,
    Reason::Vmfunc,
];

fn at_privilege(world: &mut World, level: u8) {
    let rights = world.get01(GUEST_SS_ACCESS_RIGHTS).with(AccessRights::DPL, level);
    world.vmcs01.current.set(GUEST_SS_ACCESS_RIGHTS, rights);
}

#[test]
fn outside_vmx_operation_all_but_vmxon_are_undefined() {
    for reason in NOT_VMXON {
        assert_eq!(World::default().instruction(reason), UD, "{reason:?}");
    }
}

#[test]
fn they_fault_at_privilege_levels_above_0() {
    for reason in NOT_VMXON.into_iter().filter(|&reason| reason != Reason::Vmfunc).chain([Reason::Vmxon]) {
        let mut world = World::with_current();
        at_privilege(&mut world, 3);
        assert_eq!(world.instruction(reason), GP0, "{reason:?}");
        assert_eq!(world.get01(GUEST_RIP), L1_RIP);
    }
}

#[test]
fn they_are_undefined_in_compatibility_mode() {
    for reason in NOT_VMXON.into_iter().chain([Reason::Vmxon]) {
        let mut world = World::with_current();
        let rights = world.get01(GUEST_CS_ACCESS_RIGHTS).with(AccessRights::L, false);
        world.vmcs01.current.set(GUEST_CS_ACCESS_RIGHTS, rights);
        assert_eq!(world.instruction(reason), UD, "{reason:?}");
    }
}

#[test]
fn a_completed_instruction_ends_blocking_and_traps_with_tf() {
    let mut world = World::default();
    let sti = InterruptibilityState::default().with(InterruptibilityState::STI, true);
    world.vmcs01.current.set(GUEST_INTERRUPTIBILITY_STATE, sti);
    world.vmcs01.current.set(GUEST_RFLAGS, rflags::FIXED | rflags::TF | rflags::OF | rflags::CF);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), Outcome::Completed);
    assert_eq!(world.get01(GUEST_INTERRUPTIBILITY_STATE), InterruptibilityState::default());
    assert_eq!(world.get01(GUEST_RFLAGS), rflags::FIXED | rflags::TF);
    assert_eq!(world.get01(GUEST_PENDING_DEBUG_EXCEPTIONS).0, 1 << 14);
}

// VMXON

#[test]
fn vmxon_enters_vmx_operation() {
    let world = World::in_root();
    assert!(world.engine.in_vmx_operation() && !world.engine.in_l2());
}

#[test]
fn vmxon_cr4_vmxe() {
    let mut world = World::default();
    world.vmcs01.current.set(CR4_READ_SHADOW, 0);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), UD);
}

#[test]
fn vmxon_cr0_fixed_goes_by_what_l1_reads() {
    let mut world = World::default();
    world.vmcs01.current.set(CR0_READ_SHADOW, 0);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), GP0);
}

#[test]
fn vmxon_cr4_fixed() {
    let mut world = World::default();
    let cr4 = world.get01(GUEST_CR4) | cr4::LA57;
    world.vmcs01.current.set(GUEST_CR4, cr4);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), GP0);
}

#[test]
fn vmxon_feature_control() {
    for locked_or_enabled in [0, 1, 4] {
        let mut world = World::default();
        world.engine.feature_control = locked_or_enabled;
        assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), GP0);
    }
}

#[test]
fn vmxon_operand_access() {
    let mut world = World { faulting: Some(OPERAND), ..World::default() };
    let fault = Outcome::Exception(Exception::pf(OPERAND, 0));
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), fault);
}

#[test]
fn vmxon_pointer_and_revision() {
    for pointer in [VMXON_REGION + 8, 1 << WIDTH, HOLE] {
        let mut world = World::default();
        assert_eq!(world.with_pointer(Reason::Vmxon, pointer), Outcome::Completed);
        assert!(world.failed_invalid() && !world.engine.in_vmx_operation(), "{pointer:x}");
    }
    for first in [7, 1 | region::SHADOW_INDICATOR] {
        let mut world = World::default();
        world.memory.write_u32(Pa(VMXON_REGION), first);
        assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), Outcome::Completed);
        assert!(world.failed_invalid());
    }
}

#[test]
fn vmxon_in_root() {
    let mut world = World::in_root();
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), Outcome::Completed);
    assert!(world.failed_invalid());
    let mut world = World::with_current();
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), Outcome::Completed);
    assert!(world.failed(15));
}

#[test]
fn vmxoff_leaves_vmx_operation_and_writes_the_vmcs_back() {
    let mut world = World::with_current();
    assert_eq!(world.instruction(Reason::Vmxoff), Outcome::Completed);
    assert!(world.succeeded() && !world.engine.in_vmx_operation());
    assert!(world.vmcs01.linked.is_none() && !world.vmcs01.current.has(VMCS_SHADOWING));
    let vmcs = region::load(&world.memory.copy_page(Pa(VMCS_REGION)));
    assert_eq!(vmcs.get(HOST_RIP), HOST_RIP_12);
}

#[test]
fn vmcall_has_no_monitor_to_call() {
    let mut world = World::with_current();
    assert_eq!(world.instruction(Reason::Vmcall), Outcome::Completed);
    assert!(world.failed(1));
}

// VMCLEAR, VMPTRLD, VMPTRST

#[test]
fn vmclear_pointers() {
    for (pointer, error) in [(VMCS_REGION + 4, 2), (1 << WIDTH, 2), (VMXON_REGION, 3)] {
        let mut world = World::with_current();
        assert_eq!(world.with_pointer(Reason::Vmclear, pointer), Outcome::Completed);
        assert!(world.failed(error), "{pointer:x}");
    }
}

#[test]
fn vmclear_without_a_current_vmcs_fails_invalid() {
    let mut world = World::in_root();
    assert_eq!(world.with_pointer(Reason::Vmclear, 1), Outcome::Completed);
    assert!(world.failed_invalid());
}

#[test]
fn vmclear_of_the_current_vmcs_leaves_none() {
    let mut world = World::with_current();
    assert_eq!(world.with_pointer(Reason::Vmclear, VMCS_REGION), Outcome::Completed);
    assert!(world.succeeded() && world.engine.current_pointer().is_none());
    let page = world.memory.copy_page(Pa(VMCS_REGION));
    assert_eq!(region::load(&page).get(VPID), 7);
    assert_eq!(region::launch_state(&page), region::LaunchState::Clear);
}

#[test]
fn vmclear_of_another_vmcs_clears_its_launch_state_only() {
    let mut world = World::with_current();
    world.memory.write(Pa(OTHER_REGION), &[0x5a; 4096]);
    assert_eq!(world.with_pointer(Reason::Vmclear, OTHER_REGION), Outcome::Completed);
    let page = world.memory.copy_page(Pa(OTHER_REGION));
    assert_eq!(region::launch_state(&page), region::LaunchState::Clear);
    assert_eq!(page.iter().filter(|&&byte| byte != 0x5a).count(), 4);
    assert!(world.engine.current_pointer().is_some());
}

#[test]
fn vmptrld_pointers() {
    for (pointer, error) in [(VMCS_REGION + 4, 9), (1 << WIDTH, 9), (VMXON_REGION, 10), (HOLE, 11)] {
        let mut world = World::with_current();
        assert_eq!(world.with_pointer(Reason::Vmptrld, pointer), Outcome::Completed);
        assert!(world.failed(error), "{pointer:x}");
    }
}

#[test]
fn vmptrld_shadow_unsupported() {
    let mut world = World::with_current();
    let revision = world.revision() | region::SHADOW_INDICATOR;
    world.memory.write_u32(Pa(OTHER_REGION), revision);
    assert_eq!(world.with_pointer(Reason::Vmptrld, OTHER_REGION), Outcome::Completed);
    assert!(world.failed(11));
}

#[test]
fn vmptrld_of_another_vmcs_writes_the_first_back() {
    let mut world = World::with_current();
    world.vmcs12().set(GUEST_RSP, 0x1234);
    assert_eq!(world.with_pointer(Reason::Vmptrld, OTHER_REGION), Outcome::Completed);
    assert_eq!(world.vmcs12().get(GUEST_RSP), 0);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), Outcome::Completed);
    assert_eq!(world.vmcs12().get(GUEST_RSP), 0x1234);
}

#[test]
fn vmptrld_again_keeps_the_cached_vmcs() {
    let mut world = World::with_current();
    world.vmcs12().set(GUEST_RSP, 0x1234);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), Outcome::Completed);
    assert_eq!(world.vmcs12().get(GUEST_RSP), 0x1234);
}

#[test]
fn fields_that_the_profile_lacks_are_not_loaded_from_memory() {
    let mut world = World::in_root();
    world.memory.write(Pa(VMCS_REGION + 64), &[0xff; 4096 - 64]);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), Outcome::Completed);
    assert_eq!(world.vmcs12().get(TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS), 0);
    assert_eq!(world.vmcs12().get(GUEST_RSP), u64::MAX);
}

#[test]
fn vmptrst_stores_the_pointer() {
    for (mut world, pointer) in [(World::in_root(), u64::MAX), (World::with_current(), VMCS_REGION)] {
        world.at_memory_operand(OPERAND + 64);
        assert_eq!(world.instruction(Reason::Vmptrst), Outcome::Completed);
        assert!(world.succeeded());
        assert_eq!(world.memory.read_u64(Pa(OPERAND + 64)), pointer);
    }
}

#[test]
fn vmptrst_faults_as_the_write_does() {
    let mut world = World::in_root();
    world.faulting = Some(OPERAND);
    assert_eq!(world.instruction(Reason::Vmptrst), Outcome::Exception(Exception::pf(OPERAND, 0)));
}

#[test]
fn an_operand_that_is_not_canonical_raises_gp_or_through_ss_ss() {
    let mut world = World::in_root();
    world.at_memory_operand(1 << 60);
    assert_eq!(world.instruction(Reason::Vmptrst), GP0);
    let ss = (world.get01(VM_EXIT_INSTRUCTION_INFORMATION) & !(7 << 15)) | 2 << 15;
    world.vmcs01.current.set(VM_EXIT_INSTRUCTION_INFORMATION, ss);
    assert_eq!(world.instruction(Reason::Vmptrst), Outcome::Exception(Exception::ss(0)));
}

#[test]
fn an_operand_address_is_base_and_scaled_index_and_displacement_and_fs() {
    let mut world = World::in_root();
    world.state.gpr[3] = 0x100;
    world.state.gpr[6] = 0x10;
    world.vmcs01.current.set(GUEST_FS_BASE, OPERAND);
    world.vmcs01.current.set(EXIT_QUALIFICATION, 8);
    let (scale_8, size_64, fs, rsi, rbx) = (3, 2 << 7, 4 << 15, 6 << 18, 3 << 23);
    world.vmcs01.current.set(VM_EXIT_INSTRUCTION_INFORMATION, scale_8 | size_64 | fs | rsi | rbx);
    assert_eq!(world.instruction(Reason::Vmptrst), Outcome::Completed);
    assert_eq!(world.memory.read_u64(Pa(OPERAND + 0x100 + 0x80 + 8)), u64::MAX);
}

#[test]
fn outside_64_bit_mode_an_operand_stays_within_its_segment() {
    let mut world = World::in_root();
    let vmcs01 = &mut world.vmcs01.current;
    vmcs01.set(GUEST_IA32_EFER, efer::NXE);
    vmcs01.set(GUEST_CS_ACCESS_RIGHTS, segment(11, false).with(AccessRights::DB, true));
    vmcs01.set(GUEST_DS_LIMIT, OPERAND as u32 + 7);
    vmcs01.set(GUEST_RIP, 0x1000);
    assert_eq!(world.instruction(Reason::Vmptrst), Outcome::Completed);
    world.vmcs01.current.set(GUEST_DS_LIMIT, OPERAND as u32 + 6);
    assert_eq!(world.instruction(Reason::Vmptrst), GP0);
    world.vmcs01.current.set(GUEST_DS_LIMIT, u32::MAX);
    world.vmcs01.current.set(GUEST_DS_ACCESS_RIGHTS, segment(1, false));
    assert_eq!(world.instruction(Reason::Vmptrst), GP0);
}

// VMREAD, VMWRITE

#[test]
fn vmread_and_vmwrite_without_a_current_vmcs() {
    for reason in [Reason::Vmread, Reason::Vmwrite] {
        let mut world = World::in_root();
        assert_eq!(world.access(reason, 0x681e, 0), Outcome::Completed);
        assert!(world.failed_invalid());
    }
}

#[test]
fn vmwrite_then_vmread() {
    let mut world = World::with_current();
    assert_eq!(world.access(Reason::Vmwrite, 0x681e, 0x1122_3344_5566_7788), Outcome::Completed);
    assert!(world.succeeded());
    assert_eq!(world.access(Reason::Vmread, 0x681e, 0), Outcome::Completed);
    assert_eq!(world.state.gpr[1], 0x1122_3344_5566_7788);
}

#[test]
fn a_short_field_takes_the_low_bits() {
    let mut world = World::with_current();
    assert_eq!(world.access(Reason::Vmwrite, 0x0800, 0xabcd_1234), Outcome::Completed);
    assert_eq!(world.vmcs12().get(GUEST_ES_SELECTOR), 0x1234);
}

#[test]
fn a_high_half_is_32_bits() {
    let mut world = World::with_current();
    world.vmcs12().set(TSC_OFFSET, 0x1111_1111_2222_2222);
    assert_eq!(world.access(Reason::Vmwrite, 0x2011, 0x9999_9999_3333_3333), Outcome::Completed);
    assert_eq!(world.vmcs12().get(TSC_OFFSET), 0x3333_3333_2222_2222);
    assert_eq!(world.access(Reason::Vmread, 0x2011, 0), Outcome::Completed);
    assert_eq!(world.state.gpr[1], 0x3333_3333);
}

#[test]
fn vmread_unsupported_field() {
    let unsupported = [0x2034, 0x7fff, 0x1_0000_681e, 0x681f, 0x0801, 0x1000, 0x8000, 0x2018];
    for encoding in unsupported {
        for reason in [Reason::Vmread, Reason::Vmwrite] {
            let mut world = World::with_current();
            assert_eq!(world.access(reason, encoding, 0), Outcome::Completed);
            assert!(world.failed(12), "{encoding:x} {reason:?}");
        }
    }
}

#[test]
fn vmwrite_read_only_field() {
    let mut caps = offered();
    caps.misc = caps.misc.with(vmcs12::caps::VmxMisc::VMWRITE_ANY_FIELD, false);
    let mut world = World::new(caps);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), Outcome::Completed);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), Outcome::Completed);
    assert_eq!(world.access(Reason::Vmwrite, 0x4402, 5), Outcome::Completed);
    assert!(world.failed(13));
    let mut world = World::with_current();
    assert_eq!(world.access(Reason::Vmwrite, 0x4402, 5), Outcome::Completed);
    assert!(world.succeeded());
}

#[test]
fn vmwrite_reads_memory_before_it_looks_at_the_field() {
    let mut world = World::with_current();
    world.faulting = Some(OPERAND);
    world.state.gpr[0] = 0x7fff;
    assert_eq!(world.instruction(Reason::Vmwrite), Outcome::Exception(Exception::pf(OPERAND, 0)));
}

#[test]
fn vmread_of_an_unsupported_field_does_not_touch_memory() {
    let mut world = World::with_current();
    world.faulting = Some(OPERAND);
    world.state.gpr[0] = 0x7fff;
    assert_eq!(world.instruction(Reason::Vmread), Outcome::Completed);
    assert!(world.failed(12));
}

#[test]
fn the_processor_completes_accesses_to_fields_that_exist() {
    let mut world = World::with_current();
    let vmcs01 = &world.vmcs01.current;
    assert!(vmcs01.has(VMCS_SHADOWING));
    let bitmaps = [vmcs01.get(VMREAD_BITMAP_ADDRESS), vmcs01.get(VMWRITE_BITMAP_ADDRESS)];
    let exits = |memory: &Memory, bitmap: Pa, encoding: u64| {
        let mut byte = [0];
        memory.read(bitmap.plus(encoding / 8), &mut byte);
        byte[0] >> (encoding % 8) & 1 != 0
    };
    for bitmap in bitmaps {
        assert!(!exits(&world.memory, bitmap, 0x681e));
        assert!(exits(&world.memory, bitmap, 0x2034), "a field that the profile lacks");
        assert!(exits(&world.memory, bitmap, 0x2011), "a high half");
    }
    let link = world.get01(VMCS_LINK_POINTER);
    assert_ne!(world.memory.read_u32(link) & region::SHADOW_INDICATOR, 0);
    assert_eq!(world.with_pointer(Reason::Vmclear, VMCS_REGION), Outcome::Completed);
    assert!(!world.vmcs01.current.has(VMCS_SHADOWING));
    assert_eq!(world.get01(VMCS_LINK_POINTER), Pa(u64::MAX));
}

// VMLAUNCH, VMRESUME

#[test]
fn vmlaunch_enters_and_then_vmresume() {
    let mut world = World::in_l2();
    assert!(world.engine.in_l2());
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), shadow::L2Exit::Reflected);
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Completed);
    assert!(world.failed(4));
    assert_eq!(world.instruction(Reason::Vmresume), Outcome::Entered);
}

#[test]
fn vmresume_launch_state() {
    let mut world = World::with_current();
    assert_eq!(world.instruction(Reason::Vmresume), Outcome::Completed);
    assert!(world.failed(5));
}

#[test]
fn vmlaunch_current_vmcs() {
    let mut world = World::in_root();
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Completed);
    assert!(world.failed_invalid());
}

#[test]
fn vmlaunch_mov_ss() {
    let mut world = World::with_current();
    let mov_ss = InterruptibilityState::default().with(InterruptibilityState::MOV_SS, true);
    world.vmcs01.current.set(GUEST_INTERRUPTIBILITY_STATE, mov_ss);
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Completed);
    assert!(world.failed(26));
}

#[test]
fn vmlaunch_controls_and_host_state() {
    let mut world = World::with_current();
    world.vmcs12().set_control(PROCESS_POSTED_INTERRUPTS, true);
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Completed);
    assert!(world.failed(7));
    let mut world = World::with_current();
    world.vmcs12().set(HOST_TR_SELECTOR, 0);
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Completed);
    assert!(world.failed(8) && world.engine.broken_rule.is_some());
}

#[test]
fn vmlaunch_guest_state_fails_as_an_exit_and_leaves_the_guest_state_alone() {
    let mut world = World::with_current();
    world.vmcs12().set(GUEST_RFLAGS, 0);
    world.vmcs12().set(EXITING_EVENT_ERROR_CODE, 77);
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Reflected);
    assert!(!world.engine.in_l2());
    assert_eq!(world.get01(GUEST_RIP), HOST_RIP_12);
    assert_eq!(world.vmcs12().get(EXIT_REASON), 33 | 1 << 31);
    assert_eq!(world.vmcs12().get(GUEST_RIP), L2_RIP);
    assert_eq!(world.vmcs12().get(EXITING_EVENT_ERROR_CODE), 77);
    assert_eq!(world.instruction(Reason::Vmresume), Outcome::Completed);
    assert!(world.failed(5), "the launch state is still clear");
}

#[test]
fn vmlaunch_link_pointer_qualification() {
    let mut world = World::with_current();
    world.vmcs12().set(VMCS_LINK_POINTER, Pa(1));
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), 4);
}

fn msr_list(world: &mut World, entries: &[(u64, u64)]) {
    for (i, (index, data)) in (0..).zip(entries) {
        world.memory.write_u64(Pa(MSR_LIST + 16 * i), *index);
        world.memory.write_u64(Pa(MSR_LIST + 16 * i + 8), *data);
    }
    world.vmcs12().set(VM_ENTRY_MSR_LOAD_ADDRESS, Pa(MSR_LIST));
    world.vmcs12().set(VM_ENTRY_MSR_LOAD_COUNT, entries.len() as u32);
}

#[test]
fn vmlaunch_msr_load_takes_effect_in_order() {
    let mut world = World::with_current();
    msr_list(&mut world, &[(0xc000_0102, 5), (0x200, 6), (0x174, 7)]);
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Entered);
    assert_eq!((world.state.kernel_gs_base, world.msrs.0), (5, 6));
    assert_eq!(world.vmcs02().get(GUEST_IA32_SYSENTER_CS), 7);
}

#[test]
fn vmlaunch_msr_load_failure_names_the_entry() {
    for bad in [(0xc000_0100, 0), (0x1_0000_0200, 0), (0x999, 0), (0xc000_0102, 1 << 60), (0x808, 0)] {
        let mut world = World::with_current();
        msr_list(&mut world, &[(0xc000_0102, 5), bad, (0x200, 6)]);
        assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Reflected, "{bad:x?}");
        assert_eq!(world.vmcs12().get(EXIT_REASON), 34 | 1 << 31);
        assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), 2);
        assert_eq!((world.state.kernel_gs_base, world.msrs.0), (5, 0));
        assert_eq!(world.get01(GUEST_RIP), HOST_RIP_12);
    }
}

#[test]
fn a_list_without_end_fails_at_the_recommended_length() {
    let mut world = World::with_current();
    world.vmcs12().set(VM_ENTRY_MSR_LOAD_COUNT, 1 << 20);
    world.vmcs12().set(VM_ENTRY_MSR_LOAD_ADDRESS, Pa(MSR_LIST));
    for i in 0..1024 {
        world.memory.write_u64(Pa(MSR_LIST + 16 * i), 0x200);
    }
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), 513);
}

// INVEPT, INVVPID

#[test]
fn invept_type_is_tested_before_the_descriptor_is_read() {
    for kind in [0, 3, 1 << 32 | 1] {
        let mut world = World::with_current();
        world.faulting = Some(OPERAND);
        assert_eq!(world.invalidate(Reason::Invept, kind, 0, 0), Outcome::Completed);
        assert!(world.failed(28));
    }
}

#[test]
fn invept_eptp() {
    for (eptp, valid) in [(EPT12 | 3 << 3 | 6, true), (EPT12 | 3 << 3 | 1, false), (EPT12 | 6, false)] {
        let mut world = World::with_current();
        assert_eq!(world.invalidate(Reason::Invept, 1, eptp, 0), Outcome::Completed);
        assert_eq!(world.succeeded(), valid, "{eptp:x}");
    }
}

#[test]
fn invept_operand_access() {
    let mut world = World::with_current();
    world.faulting = Some(OPERAND);
    let fault = Outcome::Exception(Exception::pf(OPERAND, 0));
    assert_eq!(world.invalidate(Reason::Invept, 2, 0, 0), fault);
}

#[test]
fn invvpid_descriptors() {
    let rows = [
        // type, low, high, error
        (4, 1, 0, true),
        (0, 0, 0, true),
        (1, 0, 0, true),
        (3, 0, 0, true),
        (2, 0, 0, false),
        (1, 1 << 16 | 1, 0, true),
        (2, 1 << 16, 0, true),
        (0, 1, 1 << 50, true),
        (0, 1, 0xffff_8000_0000_0000, false),
        (1, 7, 0, false),
        (3, 7, 0, false),
    ];
    for (kind, low, high, fails) in rows {
        let mut world = World::with_current();
        assert_eq!(world.invalidate(Reason::Invvpid, kind, low, high), Outcome::Completed);
        assert_eq!(world.failed(28), fails, "{kind} {low:x} {high:x}");
        assert_eq!(world.succeeded(), !fails);
    }
}

#[test]
fn invvpid_forgets_the_tag_that_the_vpid_has() {
    let mut world = World::in_l2();
    let vpid02 = world.vmcs02().get(VPID);
    assert_ne!(vpid02, 1, "L1's own tag");
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), shadow::L2Exit::Reflected);
    world.engine.invalidations.drain(|_| {});
    assert_eq!(world.invalidate(Reason::Invvpid, 1, 9, 0), Outcome::Completed);
    assert!(world.engine.invalidations.is_empty(), "L1 never used VPID 9");
    assert_eq!(world.invalidate(Reason::Invvpid, 1, 7, 0), Outcome::Completed);
    assert_eq!(world.engine.invalidations.as_slice(), [Invalidation::Vpid(vpid02)]);
}
