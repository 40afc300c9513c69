//! What L1 sees of an exit: the record, L2's saved state, and its own state after it.

mod world;

use shadow::{L2Exit, Outcome};
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::{EventKind, InjectedEvent, RecordedEvent};
use vmcs12::arch::segment::{AccessRights, SegmentRegister};
use vmcs12::arch::state::InterruptibilityState;
use vmcs12::arch::{efer, rflags};
use vmcs12::check::{self, Ctx, Entrant};
use vmcs12::control::*;
use vmcs12::error::Abort;
use vmcs12::exit::Reason;
use vmcs12::field::{AnyField, Area, table::*};
use vmcs12::implemented;
use vmcs12::region;
use world::*;

/// L2 takes a CPUID.
fn cpuid(world: &mut World) {
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Reflected);
}

#[test]
fn l1_goes_on_at_its_host_rip_with_its_host_state() {
    let mut world = World::in_l2_with(|world| {
        let vmcs12 = world.vmcs12();
        vmcs12.set(HOST_RSP, 0x7777);
        vmcs12.set(HOST_CR3, 0x1234_5000);
        vmcs12.set(HOST_FS_BASE, 0x1111);
        vmcs12.set(HOST_FS_SELECTOR, 0x18);
        vmcs12.set(HOST_GS_BASE, 0x2222);
        vmcs12.set(HOST_TR_BASE, 0x3333);
        vmcs12.set(HOST_GDTR_BASE, 0x4444);
        vmcs12.set(HOST_IDTR_BASE, 0x5555);
        vmcs12.set(HOST_IA32_SYSENTER_CS, 6);
        vmcs12.set(HOST_CR4, cr4::PAE | cr4::VMXE | cr4::PGE);
    });
    cpuid(&mut world);
    assert!(!world.engine.in_l2());
    let expected = [
        (GUEST_RIP, HOST_RIP_12),
        (GUEST_RSP, 0x7777),
        (GUEST_CR3, 0x1234_5000),
        (GUEST_FS_BASE, 0x1111),
        (GUEST_GS_BASE, 0x2222),
        (GUEST_TR_BASE, 0x3333),
        (GUEST_GDTR_BASE, 0x4444),
        (GUEST_IDTR_BASE, 0x5555),
        (GUEST_RFLAGS, rflags::FIXED),
        (GUEST_DR7, 0x400),
        (GUEST_CR4, cr4::PAE | cr4::VMXE | cr4::PGE),
        (GUEST_IA32_DEBUGCTL, 0),
    ];
    for (field, value) in expected {
        assert_eq!(world.get01(field), value, "{}", field.row().name);
    }
    assert_eq!(world.get01(GUEST_GDTR_LIMIT), 0xffff);
    assert_eq!(world.get01(GUEST_IA32_SYSENTER_CS), 6);
    assert!(world.vmcs01.current.has(IA_32E_MODE_GUEST));
}

#[test]
fn segments_get_the_attributes_of_a_flat_64_bit_host() {
    let mut world = World::in_l2_with(|world| world.vmcs12().set(HOST_SS_SELECTOR, 0x18));
    cpuid(&mut world);
    let rights = |register: SegmentRegister| world.get01(register.fields().rights);
    let cs = rights(SegmentRegister::Cs);
    assert_eq!(cs.0, 0xa09b);
    assert_eq!(rights(SegmentRegister::Ss).0, 0xc093);
    assert!(!rights(SegmentRegister::Ds).is_usable(), "a null selector");
    assert!(!rights(SegmentRegister::Ldtr).is_usable());
    assert_eq!(rights(SegmentRegister::Tr).0, 0x8b);
    assert_eq!(world.get01(GUEST_TR_LIMIT), 0x67);
    assert_eq!(world.get01(GUEST_CS_LIMIT), u32::MAX);
    assert_eq!(cs.get(AccessRights::DPL), 0);
}

#[test]
fn vmcs01_is_valid_after_an_exit() {
    let mut world = World::in_l2();
    cpuid(&mut world);
    let caps = implemented::processor();
    let entrant = Entrant { long_mode: true, current_vmcs: u64::MAX };
    let memory = &world.memory;
    let ctx = Ctx::new(&world.vmcs01.current, &caps, entrant, |at, into| memory.read(Pa(at), into));
    assert_eq!(check::controls_and_host(&ctx).err().map(|broken| broken.rule.id), None);
    assert_eq!(check::guest(&ctx).err().map(|broken| broken.rule.id), None);
}

#[test]
fn the_record_is_the_processors() {
    let mut world = World::in_l2();
    let reflected = world.exit(Reason::IoInstruction, |vmcs02| {
        vmcs02.set(EXIT_QUALIFICATION, 0x3f8 << 16);
        vmcs02.set(VM_EXIT_INSTRUCTION_LENGTH, 1);
        vmcs02.set(GUEST_LINEAR_ADDRESS, 0x99);
        vmcs02.set(IO_RIP, 0x77);
    });
    // L1 did not ask for I/O exits.
    assert_eq!(reflected, L2Exit::L0(shadow::Task::Emulate(Reason::IoInstruction)));
    let mut world = World::in_l2_with(|world| world.vmcs12().set_control(UNCONDITIONAL_IO_EXITING, true));
    let reflected = world.exit(Reason::IoInstruction, |vmcs02| {
        vmcs02.set(EXIT_QUALIFICATION, 0x3f8 << 16);
        vmcs02.set(VM_EXIT_INSTRUCTION_LENGTH, 1);
        vmcs02.set(GUEST_LINEAR_ADDRESS, 0x99);
    });
    assert_eq!(reflected, L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(EXIT_REASON), 30);
    assert_eq!(world.vmcs12().get(EXIT_QUALIFICATION), 0x3f8 << 16);
    assert_eq!(world.vmcs12().get(VM_EXIT_INSTRUCTION_LENGTH), 1);
    assert_eq!(world.vmcs12().get(GUEST_LINEAR_ADDRESS), 0x99);
    assert_eq!(world.engine.counters.reflected.get(Reason::IoInstruction), 1);
}

#[test]
fn an_exit_clears_the_valid_bit_of_the_injected_event_and_keeps_the_instruction_error() {
    let event = InjectedEvent::new(EventKind::HardwareException, 14, true);
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set(INJECTED_EVENT_IDENTIFICATION, event);
        world.vmcs12().set(VM_INSTRUCTION_ERROR, 12);
    });
    assert_eq!(world.vmcs02().get(INJECTED_EVENT_IDENTIFICATION), event);
    cpuid(&mut world);
    let held = world.vmcs12().get(INJECTED_EVENT_IDENTIFICATION);
    assert_eq!(held, event.with(InjectedEvent::VALID, false));
    assert_eq!(world.vmcs12().get(VM_INSTRUCTION_ERROR), 12);
}

#[test]
fn every_guest_field_is_saved_unless_a_control_says_otherwise() {
    let mut world = World::in_l2();
    let never_or_by_control = [
        GUEST_IA32_PAT.any(),
        GUEST_IA32_PERF_GLOBAL_CTRL.any(),
        VMX_PREEMPTION_TIMER_VALUE.any(),
        GUEST_INTERRUPT_STATUS.any(),
        PML_INDEX.any(),
        VMCS_LINK_POINTER.any(),
        GUEST_SMBASE.any(),
    ];
    let guest = (0..COUNT).map(AnyField::at).filter(|field| field.row().area() == Area::Guest);
    let guest: Vec<_> = guest.filter(|field| *field != GUEST_IA32_EFER.any()).collect();
    for &field in &guest {
        world.vmcs02().set_raw(field, field.slot() as u64 + 1);
    }
    let before: Vec<_> = guest.iter().map(|&field| world.vmcs12().raw(field)).collect();
    cpuid(&mut world);
    for (&field, before) in guest.iter().zip(before) {
        let expected = if never_or_by_control.contains(&field) { before } else { field.slot() as u64 + 1 };
        assert_eq!(world.vmcs12().raw(field), expected, "{}", field.row().name);
    }
}

#[test]
fn debug_controls_pat_efer_and_timer_are_saved_with_their_controls() {
    for save in [false, true] {
        let mut world = World::in_l2_with(|world| {
            let vmcs12 = world.vmcs12();
            vmcs12.set_control(SAVE_DEBUG_CONTROLS, save);
            vmcs12.set_control(SAVE_IA32_PAT, save);
            vmcs12.set_control(SAVE_IA32_EFER, save);
            vmcs12.set_control(ACTIVATE_VMX_PREEMPTION_TIMER, true);
            vmcs12.set_control(SAVE_VMX_PREEMPTION_TIMER_VALUE, save);
            vmcs12.set(VMX_PREEMPTION_TIMER_VALUE, 1000);
        });
        assert!(world.vmcs02().has(SAVE_VMX_PREEMPTION_TIMER_VALUE));
        let changed = efer::LMA | efer::LME | efer::NXE;
        let vmcs02 = world.vmcs02();
        vmcs02.set(GUEST_DR7, 0x401);
        vmcs02.set(GUEST_IA32_PAT, 0x0606);
        vmcs02.set(GUEST_IA32_EFER, changed);
        vmcs02.set(VMX_PREEMPTION_TIMER_VALUE, 600);
        cpuid(&mut world);
        let vmcs12 = world.vmcs12();
        assert_eq!(vmcs12.get(GUEST_DR7) == 0x401, save);
        assert_eq!(vmcs12.get(GUEST_IA32_PAT) == 0x0606, save);
        assert_eq!(vmcs12.get(GUEST_IA32_EFER) == changed, save);
        assert_eq!(vmcs12.get(VMX_PREEMPTION_TIMER_VALUE), if save { 600 } else { 1000 });
    }
}

#[test]
fn the_entry_control_for_ia_32e_mode_follows_lma() {
    let mut world = World::in_l2();
    world.vmcs02().set(GUEST_IA32_EFER, 0);
    cpuid(&mut world);
    assert!(!world.vmcs12().has(IA_32E_MODE_GUEST));
}

#[test]
fn pat_and_efer_of_l2_stay_unless_the_exit_loads_them() {
    let mut world = World::in_l2_with(|world| {
        world.vmcs12().set_control(LOAD_IA32_EFER_ON_EXIT, false);
        world.vmcs12().set_control(LOAD_IA32_PAT_ON_EXIT, false);
    });
    world.vmcs02().set(GUEST_IA32_PAT, 0x0606_0606_0606_0606);
    world.vmcs02().set(GUEST_IA32_EFER, efer::NXE | efer::LMA | efer::LME);
    cpuid(&mut world);
    assert_eq!(world.get01(GUEST_IA32_PAT), 0x0606_0606_0606_0606);
    assert_eq!(world.get01(GUEST_IA32_EFER), efer::NXE | efer::LMA | efer::LME);
}

#[test]
fn bits_of_cr0_that_an_exit_does_not_load_stay() {
    let mut world = World::in_l2();
    let cd = world.vmcs02().get(GUEST_CR0) | cr0::CD;
    world.vmcs02().set(GUEST_CR0, cd);
    cpuid(&mut world);
    assert_ne!(world.get01(GUEST_CR0) & cr0::CD, 0);
    assert_eq!(world.get01(CR0_READ_SHADOW) & cr0::NE, cr0::NE);
}

#[test]
fn a_32_bit_host_gets_a_32_bit_code_segment_and_no_pcids() {
    let mut world = World::with_current();
    let vmcs01 = &mut world.vmcs01.current;
    vmcs01.set(GUEST_IA32_EFER, 0);
    vmcs01.set(GUEST_CS_ACCESS_RIGHTS, segment(11, false).with(AccessRights::DB, true));
    let vmcs12 = world.vmcs12();
    vmcs12.set_control(HOST_ADDRESS_SPACE_SIZE, false);
    vmcs12.set_control(IA_32E_MODE_GUEST, false);
    vmcs12.set(HOST_IA32_EFER, 0);
    vmcs12.set(GUEST_IA32_EFER, 0);
    vmcs12.set(HOST_RIP, 0x2000);
    vmcs12.set(HOST_SS_SELECTOR, 0x18);
    vmcs12.set(HOST_CR4, cr4::VMXE);
    vmcs12.set(GUEST_CS_ACCESS_RIGHTS, segment(11, false).with(AccessRights::DB, true));
    assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Entered, "{:?}", world.engine.broken_rule);
    cpuid(&mut world);
    assert_eq!(world.get01(GUEST_CS_ACCESS_RIGHTS).0, 0xc09b);
    assert!(!world.vmcs01.current.has(IA_32E_MODE_GUEST));
    assert_eq!(world.get01(GUEST_IA32_EFER), 0);
}

#[test]
fn leaving_ia_32e_mode_for_a_32_bit_host_aborts() {
    let mut world = World::in_l2();
    world.vmcs12().set_control(HOST_ADDRESS_SPACE_SIZE, false);
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Abort(Abort::HostAddressSpace));
    assert_eq!(region::abort_indicator(&world.memory.copy_page(Pa(VMCS_REGION))), 6);
}

fn exit_list(
    world: &mut World,
    address: vmcs12::field::Field<Pa>,
    count: vmcs12::field::Field<u32>,
    msr: u64,
) {
    world.memory.write_u64(Pa(MSR_LIST), msr);
    world.memory.write_u64(Pa(MSR_LIST + 8), 0x4321);
    world.vmcs12().set(address, Pa(MSR_LIST));
    world.vmcs12().set(count, 1);
}

#[test]
fn msr_lists_are_stored_from_l2_and_loaded_for_l1() {
    let mut world = World::in_l2_with(|world| {
        exit_list(world, VM_EXIT_MSR_STORE_ADDRESS, VM_EXIT_MSR_STORE_COUNT, 0x176);
    });
    world.vmcs02().set(GUEST_IA32_SYSENTER_EIP, 0x8888);
    cpuid(&mut world);
    assert_eq!(world.memory.read_u64(Pa(MSR_LIST + 8)), 0x8888);
    let mut world = World::in_l2_with(|world| {
        exit_list(world, VM_EXIT_MSR_LOAD_ADDRESS, VM_EXIT_MSR_LOAD_COUNT, 0x176);
    });
    cpuid(&mut world);
    assert_eq!(world.get01(GUEST_IA32_SYSENTER_EIP), 0x4321);
}

#[test]
fn the_time_stored_is_l1s() {
    let mut world = World::in_l2_with(|world| {
        exit_list(world, VM_EXIT_MSR_STORE_ADDRESS, VM_EXIT_MSR_STORE_COUNT, 0x10);
    });
    cpuid(&mut world);
    assert_eq!(world.memory.read_u64(Pa(MSR_LIST + 8)), world.tsc);
}

#[test]
fn bad_msr_lists_abort() {
    let mut world = World::in_l2_with(|world| {
        exit_list(world, VM_EXIT_MSR_STORE_ADDRESS, VM_EXIT_MSR_STORE_COUNT, 0x999);
    });
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Abort(Abort::SaveGuestMsrs));
    let mut world = World::in_l2_with(|world| {
        exit_list(world, VM_EXIT_MSR_LOAD_ADDRESS, VM_EXIT_MSR_LOAD_COUNT, 0x999);
    });
    assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Abort(Abort::LoadHostMsrs));
    assert_eq!(region::abort_indicator(&world.memory.copy_page(Pa(VMCS_REGION))), 4);
}

#[test]
fn without_virtual_nmis_blocking_by_nmi_is_shared_with_l1() {
    let nmi = InterruptibilityState::default().with(InterruptibilityState::NMI, true);
    for virtual_nmis in [false, true] {
        let mut world = World::in_l2_with(|world| world.vmcs12().set_control(VIRTUAL_NMIS, virtual_nmis));
        world.vmcs02().set(GUEST_INTERRUPTIBILITY_STATE, nmi);
        cpuid(&mut world);
        assert_eq!(world.get01(GUEST_INTERRUPTIBILITY_STATE) == nmi, !virtual_nmis);
        assert_eq!(world.vmcs12().get(GUEST_INTERRUPTIBILITY_STATE), nmi);
    }
}

#[test]
fn an_event_that_an_exit_cut_short_is_recorded_for_l1() {
    let mut world = World::in_l2_with(|world| {
        world.enable_ept12();
        world.memory.write_u64(World::leaf12(0x5000), 0);
    });
    let original = RecordedEvent::new(EventKind::ExternalInterrupt, 0x31, false);
    let reflected = world.exit(Reason::EptViolation, |vmcs02| {
        vmcs02.set(GUEST_PHYSICAL_ADDRESS, 0x5000);
        vmcs02.set(EXIT_QUALIFICATION, 2);
        vmcs02.set(ORIGINAL_EVENT_IDENTIFICATION, original);
    });
    assert_eq!(reflected, L2Exit::Reflected);
    assert_eq!(world.vmcs12().get(ORIGINAL_EVENT_IDENTIFICATION), original);
}
