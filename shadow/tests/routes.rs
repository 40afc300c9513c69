//! Whose an exit from L2 is: a case for every exit reason.

mod world;

use shadow::{L2Exit, Task};
use vmcs12::addr::{Gpa, Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::{EventKind, RecordedEvent, vector};
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::{Vmcs, table::*};
use world::*;

/// Reasons that are L1's whatever it asked for.
const ALWAYS_L1: &[Reason] = &[
    Reason::TripleFault,
    Reason::InitSignal,
    Reason::StartupIpi,
    Reason::TaskSwitch,
    Reason::Cpuid,
    Reason::Getsec,
    Reason::Invd,
    Reason::Rsm,
    Reason::Vmcall,
    Reason::Vmclear,
    Reason::Vmlaunch,
    Reason::Vmptrld,
    Reason::Vmptrst,
    Reason::Vmread,
    Reason::Vmresume,
    Reason::Vmwrite,
    Reason::Vmxoff,
    Reason::Vmxon,
    Reason::MonitorTrapFlag,
    Reason::Invept,
    Reason::Invvpid,
    Reason::Xsetbv,
    Reason::Seamcall,
    Reason::Tdcall,
    Reason::Urdmsr,
    Reason::Uwrmsr,
    Reason::RdmsrImmediate,
    Reason::WrmsrnsImmediate,
];

/// Reasons that are L0's whatever L1 asked for.
const ALWAYS_L0: &[Reason] = &[
    Reason::ExternalInterrupt,
    Reason::IoSmi,
    Reason::OtherSmi,
    Reason::EntryFailureGuestState,
    Reason::EntryFailureMsrLoading,
    Reason::EntryFailureMachineCheck,
    Reason::PageModificationLogFull,
    Reason::SppRelatedEvent,
];

/// Reasons that are L1's if it has one of these controls.
#[rustfmt::skip]
const BY_CONTROL: &[(Reason, &[Control])] = &[
    (Reason::InterruptWindow,           &[INTERRUPT_WINDOW_EXITING]),
    (Reason::NmiWindow,                 &[NMI_WINDOW_EXITING]),
    (Reason::Hlt,                       &[HLT_EXITING]),
    (Reason::Invlpg,                    &[INVLPG_EXITING]),
    (Reason::Rdpmc,                     &[RDPMC_EXITING]),
    (Reason::Rdtsc,                     &[RDTSC_EXITING]),
    (Reason::MovDr,                     &[MOV_DR_EXITING]),
    (Reason::Mwait,                     &[MWAIT_EXITING]),
    (Reason::Monitor,                   &[MONITOR_EXITING]),
    (Reason::Pause,                     &[PAUSE_EXITING, PAUSE_LOOP_EXITING]),
    (Reason::TprBelowThreshold,         &[USE_TPR_SHADOW]),
    (Reason::ApicAccess,                &[VIRTUALIZE_APIC_ACCESSES]),
    (Reason::VirtualizedEoi,            &[VIRTUAL_INTERRUPT_DELIVERY]),
    (Reason::GdtrIdtrAccess,            &[DESCRIPTOR_TABLE_EXITING]),
    (Reason::LdtrTrAccess,              &[DESCRIPTOR_TABLE_EXITING]),
    (Reason::Rdtscp,                    &[RDTSC_EXITING]),
    (Reason::VmxPreemptionTimerExpired, &[ACTIVATE_VMX_PREEMPTION_TIMER]),
    (Reason::WbinvdOrWbnoinvd,          &[WBINVD_EXITING]),
    (Reason::ApicWrite,                 &[APIC_REGISTER_VIRTUALIZATION, VIRTUAL_INTERRUPT_DELIVERY]),
    (Reason::Rdrand,                    &[RDRAND_EXITING]),
    (Reason::Invpcid,                   &[INVLPG_EXITING]),
    (Reason::Vmfunc,                    &[ENABLE_VM_FUNCTIONS]),
    (Reason::Encls,                     &[ENABLE_ENCLS_EXITING]),
    (Reason::Rdseed,                    &[RDSEED_EXITING]),
    (Reason::Pconfig,                   &[ENABLE_PCONFIG]),
    (Reason::Umwait,                    &[RDTSC_EXITING]),
    (Reason::Tpause,                    &[RDTSC_EXITING]),
    (Reason::Loadiwkey,                 &[LOADIWKEY_EXITING]),
    (Reason::Enclv,                     &[ENABLE_ENCLV_EXITING]),
    (Reason::EnqcmdPasidTranslation,    &[PASID_TRANSLATION]),
    (Reason::EnqcmdsPasidTranslation,   &[PASID_TRANSLATION]),
    (Reason::BusLock,                   &[VMM_BUS_LOCK_DETECTION]),
    (Reason::InstructionTimeout,        &[INSTRUCTION_TIMEOUT]),
    (Reason::Rdmsrlist,                 &[ENABLE_MSR_LIST_INSTRUCTIONS]),
    (Reason::Wrmsrlist,                 &[ENABLE_MSR_LIST_INSTRUCTIONS]),
];

/// Reasons with tests of their own below, or in `ept`.
const BY_EXIT: &[Reason] = &[
    Reason::ExceptionOrNmi,
    Reason::ControlRegisterAccess,
    Reason::IoInstruction,
    Reason::Rdmsr,
    Reason::Wrmsr,
    Reason::EptViolation,
    Reason::EptMisconfiguration,
    Reason::Xsaves,
    Reason::Xrstors,
];

#[test]
fn every_reason_has_a_case() {
    for reason in Reason::ALL {
        let cases = ALWAYS_L1.contains(reason) as u8
            + ALWAYS_L0.contains(reason) as u8
            + BY_CONTROL.iter().any(|row| row.0 == *reason) as u8
            + BY_EXIT.contains(reason) as u8;
        assert_eq!(cases, 1, "{reason:?}");
    }
}

#[test]
fn exits_that_are_always_l1s() {
    for &reason in ALWAYS_L1 {
        let mut world = World::in_l2();
        assert_eq!(world.exit(reason, |_| {}), L2Exit::Reflected, "{reason:?}");
        assert_eq!(world.vmcs12().get(EXIT_REASON), reason as u32);
    }
}

#[test]
fn exits_that_are_always_l0s() {
    for &reason in ALWAYS_L0 {
        let mut world = World::in_l2();
        let all = !0;
        for word in Word::ALL {
            world.vmcs12().set_raw(word.field(), all);
        }
        assert_eq!(world.exit(reason, |_| {}), L2Exit::L0(Task::Emulate(reason)), "{reason:?}");
        assert!(world.engine.in_l2());
    }
}

#[test]
fn exits_that_a_control_makes_l1s() {
    for (reason, controls) in BY_CONTROL {
        let mut world = World::in_l2();
        for control in *controls {
            world.vmcs12().set_control(*control, false);
        }
        assert_ne!(world.exit(*reason, |_| {}), L2Exit::Reflected, "{reason:?}");
        for control in *controls {
            let mut world = World::in_l2();
            let needed = [ACTIVATE_SECONDARY_CONTROLS, ACTIVATE_TERTIARY_CONTROLS];
            needed.iter().for_each(|needed| world.vmcs12().set_control(*needed, true));
            world.vmcs12().set_control(*control, true);
            assert_eq!(world.exit(*reason, |_| {}), L2Exit::Reflected, "{reason:?} {}", control.name());
        }
    }
}

fn exception(vector: u8, error_code: u32) -> impl FnOnce(&mut Vmcs) {
    move |vmcs02| {
        let event = RecordedEvent::new(EventKind::HardwareException, vector, false);
        vmcs02.set(EXITING_EVENT_IDENTIFICATION, event);
        vmcs02.set(EXITING_EVENT_ERROR_CODE, error_code);
    }
}

#[test]
fn exceptions_go_by_the_bitmap_and_page_faults_by_the_error_code_too() {
    let rows = [
        // bitmap, mask, match, vector, error code, L1's
        (1 << vector::UD, 0, 0, vector::UD, 0, true),
        (1 << vector::UD, 0, 0, vector::GP, 0, false),
        (1 << vector::PF, 0, 0, vector::PF, 2, true),
        (0, 0, 0, vector::PF, 2, false),
        (1 << vector::PF, 1, 1, vector::PF, 3, true),
        (1 << vector::PF, 1, 1, vector::PF, 2, false),
        (0, 1, 1, vector::PF, 2, true),
        (0, 1, 1, vector::PF, 3, false),
    ];
    for (bitmap, mask, matching, vector, code, wanted) in rows {
        let mut world = World::in_l2();
        world.vmcs12().set(EXCEPTION_BITMAP, bitmap);
        world.vmcs12().set(PAGE_FAULT_ERROR_CODE_MASK, mask);
        world.vmcs12().set(PAGE_FAULT_ERROR_CODE_MATCH, matching);
        let exit = world.exit(Reason::ExceptionOrNmi, exception(vector, code));
        assert_eq!(exit == L2Exit::Reflected, wanted, "{bitmap:x} {mask} {matching} {vector} {code}");
    }
}

fn mov_to_cr(register: u64, gpr: u64) -> impl FnOnce(&mut Vmcs) {
    move |vmcs02| vmcs02.set(EXIT_QUALIFICATION, register | gpr << 8)
}

#[test]
fn control_registers_go_by_masks_shadows_targets_and_controls() {
    let exit = |prepare: &dyn Fn(&mut World), register: u64, kind: u64| {
        let mut world = World::in_l2();
        prepare(&mut world);
        world.exit(Reason::ControlRegisterAccess, |vmcs02| {
            vmcs02.set(EXIT_QUALIFICATION, register | kind << 4 | 1 << 8);
        })
    };
    let (to, from) = (0, 1);
    let l1 = |exit: L2Exit| exit == L2Exit::Reflected;
    let cr0_ts = |world: &mut World| {
        world.vmcs12().set(CR0_GUEST_HOST_MASK, cr0::TS);
        world.state.gpr[1] = cr0::TS | cr0::PE;
    };
    assert!(l1(exit(&cr0_ts, 0, to)));
    let same_as_shadow = |world: &mut World| {
        cr0_ts(world);
        world.vmcs12().set(CR0_READ_SHADOW, cr0::TS);
    };
    assert!(!l1(exit(&same_as_shadow, 0, to)));
    assert!(!l1(exit(&|_| {}, 3, to)));
    let cr3 = |world: &mut World| world.vmcs12().set_control(CR3_LOAD_EXITING, true);
    assert!(l1(exit(&cr3, 3, to)));
    let target = |world: &mut World| {
        cr3(world);
        world.vmcs12().set(CR3_TARGET_COUNT, 2);
        world.vmcs12().set(CR3_TARGET_VALUE_1, 0x5000);
        world.state.gpr[1] = 0x5000;
    };
    assert!(!l1(exit(&target, 3, to)));
    assert!(l1(exit(&|world| world.vmcs12().set_control(CR3_STORE_EXITING, true), 3, from)));
    assert!(l1(exit(&|world| world.vmcs12().set_control(CR8_LOAD_EXITING, true), 8, to)));
    assert!(!l1(exit(&|_| {}, 8, to)));
    assert!(l1(exit(&|_| {}, 0, 2)), "CLTS exits only for L1's mask");
}

#[test]
fn a_bit_of_cr4_that_the_profile_lacks_is_a_gp_for_l2() {
    let mut caps = offered();
    caps.cr4_fixed1 &= !cr4::UMIP;
    let mut world = World::new(caps);
    assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), shadow::Outcome::Completed);
    assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), shadow::Outcome::Completed);
    fill_valid(world.vmcs12());
    assert_eq!(world.instruction(Reason::Vmlaunch), shadow::Outcome::Entered);
    world.state.gpr[1] = cr4::PAE | cr4::VMXE | cr4::UMIP;
    assert_eq!(world.exit(Reason::ControlRegisterAccess, mov_to_cr(4, 1)), L2Exit::Resumed);
    let injected = world.vmcs02().get(INJECTED_EVENT_IDENTIFICATION);
    assert_eq!(injected.0, 1 << 31 | 1 << 11 | 3 << 8 | u32::from(vector::GP));
}

fn io(port: u64, size: u64) -> impl FnOnce(&mut Vmcs) {
    move |vmcs02| vmcs02.set(EXIT_QUALIFICATION, port << 16 | (size - 1))
}

#[test]
fn ports_go_by_the_bitmaps_or_the_unconditional_control() {
    let with_bitmaps = || {
        let mut world = World::in_l2();
        let vmcs12 = world.vmcs12();
        vmcs12.set_control(USE_IO_BITMAPS, true);
        vmcs12.set_control(UNCONDITIONAL_IO_EXITING, true);
        vmcs12.set(ADDRESS_OF_IO_BITMAP_A, Pa(IO_BITMAP_A));
        vmcs12.set(ADDRESS_OF_IO_BITMAP_B, Pa(IO_BITMAP_B));
        world.memory.write(Pa(IO_BITMAP_A + 0x3f8 / 8), &[1]);
        world.memory.write(Pa(IO_BITMAP_B + 0x100 / 8), &[2]);
        world
    };
    let rows = [
        (0x3f8, 1, true),
        (0x3f9, 1, false),
        (0x3f7, 1, false),
        (0x3f6, 4, true),
        (0x8101, 1, true),
        (0x8100, 2, true),
        (0x8100, 1, false),
        (0xffff, 1, false),
        (0xffff, 2, true),
    ];
    for (port, size, wanted) in rows {
        let exit = with_bitmaps().exit(Reason::IoInstruction, io(port, size));
        assert_eq!(exit == L2Exit::Reflected, wanted, "{port:x} {size}");
    }
    let mut world = World::in_l2();
    let exit = world.exit(Reason::IoInstruction, io(0x80, 1));
    assert_eq!(exit, L2Exit::L0(Task::Emulate(Reason::IoInstruction)));
}

#[test]
fn msrs_go_by_the_bitmaps() {
    let rows = [
        (Reason::Rdmsr, 0x10, 2, 1),
        (Reason::Wrmsr, 0x10, 0x800 + 2, 1),
        (Reason::Rdmsr, 0xc000_0080, 0x400 + 0x10, 1),
        (Reason::Wrmsr, 0xc000_0080, 0xc00 + 0x10, 1),
    ];
    for (reason, index, byte, bit) in rows {
        for (listed, wanted) in [(0, false), (bit, true)] {
            let mut world = World::in_l2();
            world.vmcs12().set_control(USE_MSR_BITMAPS, true);
            world.vmcs12().set(ADDRESS_OF_MSR_BITMAPS, Pa(MSR_BITMAP));
            world.memory.write(Pa(MSR_BITMAP + byte), &[listed]);
            world.state.gpr[1] = index;
            assert_eq!(world.exit(reason, |_| {}) == L2Exit::Reflected, wanted, "{reason:?} {index:x}");
        }
    }
}

#[test]
fn msrs_outside_the_bitmaps_or_without_bitmaps_are_l1s() {
    let mut world = World::in_l2();
    world.vmcs12().set_control(USE_MSR_BITMAPS, true);
    world.vmcs12().set(ADDRESS_OF_MSR_BITMAPS, Pa(MSR_BITMAP));
    world.state.gpr[1] = 0x4000_0000;
    assert_eq!(world.exit(Reason::Rdmsr, |_| {}), L2Exit::Reflected);
    let mut world = World::in_l2();
    assert_eq!(world.exit(Reason::Wrmsr, |_| {}), L2Exit::Reflected);
}

#[test]
fn extended_state_goes_by_the_xss_bitmap() {
    for reason in [Reason::Xsaves, Reason::Xrstors] {
        for (listed, wanted) in [(0, false), (1 << 11, true)] {
            let mut world = World::in_l2();
            world.vmcs12().set(XSS_EXITING_BITMAP, listed);
            world.state.xss = 1 << 11;
            world.state.gpr[0] = 1 << 11;
            assert_eq!(world.exit(reason, |_| {}) == L2Exit::Reflected, wanted);
        }
    }
}

#[test]
fn without_ept_of_l1s_a_hole_of_ept01_is_l1s_devices() {
    for reason in [Reason::EptViolation, Reason::EptMisconfiguration] {
        let mut world = World::in_l2();
        let exit = world.exit(reason, |vmcs02| vmcs02.set(GUEST_PHYSICAL_ADDRESS, 0xfee0_0000));
        assert_eq!(exit, L2Exit::L0(Task::Mmio(Gpa(0xfee0_0000))));
    }
}
