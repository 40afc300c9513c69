//! VM exits that instructions cause: what asks for each, what it records, and which fault comes first.

mod guest;

use guest::{CODE, GDT, Guest, IDT, STACK, TSS};
use iced_x86::code_asm::*;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::{EventKind, InjectedEvent, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::state::{Activity, InterruptibilityState};
use vmcs12::control::*;
use vmcs12::cpu_state::gpr::*;
use vmcs12::exit::{Cause, Reason};
use vmcs12::field::table::*;

/// Where the instruction under test stands, after what prepares for it.
const AT: u64 = CODE + 0x100;
const USER_CODE: u64 = 0x2b;
const USER_DATA: u64 = 0x23;
const USER_STACK: u64 = 0x30_0000;
/// An empty page for bitmaps.
const BITMAP: u64 = 0x5_0000;
const VIRTUAL_APIC: u64 = 0x5_4000;

/// A guest whose exceptions all exit, about to execute these bytes at [`AT`].
fn guest(controls: &[Control], bytes: &[u8]) -> Guest {
    let mut guest = Guest::new();
    let descriptors: [u64; 8] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16,
        0,
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        guest.memory.write_u64(Pa(GDT + 8 * i as u64), descriptor);
    }
    // The TSS has no I/O map.
    guest.memory.write(Pa(TSS + 0x66), &[0x68, 0]);
    let vmcs = &mut guest.vmcs.current;
    vmcs.set_control(ACTIVATE_SECONDARY_CONTROLS, true);
    for &control in controls {
        vmcs.set_control(control, true);
    }
    vmcs.set(EXCEPTION_BITMAP, u32::MAX);
    vmcs.set(GUEST_RIP, AT);
    for field in [ADDRESS_OF_IO_BITMAP_A, ADDRESS_OF_IO_BITMAP_B, ADDRESS_OF_MSR_BITMAPS] {
        vmcs.set(field, Pa(BITMAP));
    }
    vmcs.set(VIRTUAL_APIC_ADDRESS, Pa(VIRTUAL_APIC));
    guest.memory.write(Pa(AT), bytes);
    guest
}

/// The same at CPL 3.
fn user(controls: &[Control], bytes: &[u8]) -> Guest {
    let mut guest = guest(controls, bytes);
    let mut a = CodeAssembler::new(64).unwrap();
    for value in [USER_DATA, USER_STACK, rflags::FIXED, USER_CODE, AT] {
        a.push(value as i32).unwrap();
    }
    a.iretq().unwrap();
    guest.memory.write(Pa(CODE), &a.assemble(CODE).unwrap());
    guest.vmcs.current.set(GUEST_RIP, CODE);
    guest
}

#[track_caller]
fn reason(guest: &mut Guest) -> Reason {
    match guest.run(1000).cause {
        Cause::Vm(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// The exception that the run ends in.
#[track_caller]
fn exception(guest: &mut Guest) -> u8 {
    assert_eq!(reason(guest), Reason::ExceptionOrNmi);
    guest.vmcs.current.get(EXITING_EVENT_IDENTIFICATION).get(RecordedEvent::VECTOR)
}

/// A row of [`EXITS`].
type Row = (&'static [Control], &'static [u8], Reason, u64, u32);

/// Instructions that exit at once: controls, bytes, reason, qualification, instruction information.
#[rustfmt::skip]
const EXITS: &[Row] = &[
    (&[],                         &[0x0f, 0xa2],                   Reason::Cpuid,                 0, 0),
    (&[HLT_EXITING],              &[0xf4],                         Reason::Hlt,                   0, 0),
    (&[],                         &[0x0f, 0x08],                   Reason::Invd,                  0, 0),
    // INVLPG [rdx*4+0x20]
    (&[INVLPG_EXITING],           &[0x0f, 0x01, 0x3c, 0x95, 0x20, 0, 0, 0], Reason::Invlpg,       0x28, 0),
    (&[RDPMC_EXITING],            &[0x0f, 0x33],                   Reason::Rdpmc,                 0, 0),
    (&[RDTSC_EXITING],            &[0x0f, 0x31],                   Reason::Rdtsc,                 0, 0),
    (&[RDTSC_EXITING, ENABLE_RDTSCP], &[0x0f, 0x01, 0xf9],         Reason::Rdtscp,                0, 0),
    (&[],                         &[0x0f, 0x01, 0xc1],             Reason::Vmcall,                0, 0),
    (&[],                         &[0x0f, 0x01, 0xc2],             Reason::Vmlaunch,              0, 0),
    (&[],                         &[0x0f, 0x01, 0xc3],             Reason::Vmresume,              0, 0),
    (&[],                         &[0x0f, 0x01, 0xc4],             Reason::Vmxoff,                0, 0),
    // VMXON [rbx+rcx*8-8], VMCLEAR fs:[r9], VMPTRLD [eax], VMPTRST ss:[rsp]
    (&[], &[0xf3, 0x0f, 0xc7, 0x74, 0xcb, 0xf8], Reason::Vmxon, (-8i64) as u64, 3 | 2 << 7 | 3 << 15 | 1 << 18 | 3 << 23),
    (&[], &[0x64, 0x66, 0x41, 0x0f, 0xc7, 0x31], Reason::Vmclear, 0, 2 << 7 | 4 << 15 | 1 << 22 | 9 << 23),
    (&[], &[0x67, 0x0f, 0xc7, 0x30],             Reason::Vmptrld, 0, 1 << 7 | 3 << 15 | 1 << 22),
    (&[], &[0x0f, 0xc7, 0x3c, 0x24],             Reason::Vmptrst, 0, 2 << 7 | 2 << 15 | 1 << 22 | 4 << 23),
    // VMREAD rcx, rdx and VMWRITE rdx, [rax]
    (&[], &[0x0f, 0x78, 0xd1],                   Reason::Vmread,  0, 1 << 10 | 1 << 3 | 2 << 28),
    (&[], &[0x0f, 0x79, 0x10],                   Reason::Vmwrite, 0, 2 << 7 | 3 << 15 | 1 << 22 | 2 << 28),
    // INVEPT rdi, [rax] and INVVPID rdi, [rip]
    (&[], &[0x66, 0x0f, 0x38, 0x80, 0x38],       Reason::Invept,  0, 2 << 7 | 3 << 15 | 1 << 22 | 7 << 28),
    (&[], &[0x66, 0x0f, 0x38, 0x81, 0x3d, 0, 0, 0, 0], Reason::Invvpid, AT + 9, 2 << 7 | 3 << 15 | 1 << 22 | 1 << 27 | 7 << 28),
    (&[INVLPG_EXITING, ENABLE_INVPCID], &[0x66, 0x0f, 0x38, 0x82, 0x38], Reason::Invpcid, 0, 2 << 7 | 3 << 15 | 1 << 22 | 7 << 28),
    // MOV rbx, cr3; MOV cr3, rbx; MOV r9, cr8; MOV cr8, r9
    (&[CR3_STORE_EXITING],        &[0x0f, 0x20, 0xdb],             Reason::ControlRegisterAccess, 3 | 1 << 4 | 3 << 8, 0),
    (&[CR3_LOAD_EXITING],         &[0x0f, 0x22, 0xdb],             Reason::ControlRegisterAccess, 3 | 3 << 8, 0),
    (&[CR8_STORE_EXITING],        &[0x45, 0x0f, 0x20, 0xc1],       Reason::ControlRegisterAccess, 8 | 1 << 4 | 9 << 8, 0),
    (&[CR8_LOAD_EXITING],         &[0x45, 0x0f, 0x22, 0xc1],       Reason::ControlRegisterAccess, 8 | 9 << 8, 0),
    // MOV rdx, dr6; MOV dr7, rdx
    (&[MOV_DR_EXITING],           &[0x0f, 0x21, 0xf2],             Reason::MovDr,                 6 | 1 << 4 | 2 << 8, 0),
    (&[MOV_DR_EXITING],           &[0x0f, 0x23, 0xfa],             Reason::MovDr,                 7 | 2 << 8, 0),
    // IN al, 0x71; OUT dx, eax
    (&[UNCONDITIONAL_IO_EXITING], &[0xe4, 0x71],                   Reason::IoInstruction,         1 << 3 | 1 << 6 | 0x71 << 16, 0),
    (&[UNCONDITIONAL_IO_EXITING], &[0xef],                         Reason::IoInstruction,         3 | 2 << 16, 0),
    // REP INSW; OUTSB gs:[esi]
    (&[UNCONDITIONAL_IO_EXITING], &[0x66, 0xf3, 0x6d],             Reason::IoInstruction,         1 | 1 << 3 | 1 << 4 | 1 << 5 | 2 << 16, 2 << 7),
    (&[UNCONDITIONAL_IO_EXITING], &[0x65, 0x67, 0x6e],             Reason::IoInstruction,         1 << 4 | 2 << 16, 1 << 7 | 5 << 15),
    (&[],                         &[0x0f, 0x32],                   Reason::Rdmsr,                 0, 0),
    (&[],                         &[0x0f, 0x30],                   Reason::Wrmsr,                 0, 0),
    (&[MONITOR_EXITING],          &[0x0f, 0x01, 0xc8],             Reason::Monitor,               0, 0),
    (&[MWAIT_EXITING],            &[0x0f, 0x01, 0xc9],             Reason::Mwait,                 0, 0),
    (&[PAUSE_EXITING],            &[0xf3, 0x90],                   Reason::Pause,                 0, 0),
    // SGDT [rax], LIDT [rax]; SLDT cx, LTR [rax]
    (&[DESCRIPTOR_TABLE_EXITING], &[0x0f, 0x01, 0x00],             Reason::GdtrIdtrAccess,        0, 2 << 7 | 1 << 11 | 3 << 15 | 1 << 22),
    (&[DESCRIPTOR_TABLE_EXITING], &[0x0f, 0x01, 0x18],             Reason::GdtrIdtrAccess,        0, 2 << 7 | 1 << 11 | 3 << 15 | 1 << 22 | 3 << 28),
    (&[DESCRIPTOR_TABLE_EXITING], &[0x66, 0x0f, 0x00, 0xc1],       Reason::LdtrTrAccess,          0, 1 << 3 | 1 << 10),
    (&[DESCRIPTOR_TABLE_EXITING], &[0x0f, 0x00, 0x18],             Reason::LdtrTrAccess,          0, 2 << 7 | 3 << 15 | 1 << 22 | 3 << 28),
    (&[WBINVD_EXITING],           &[0x0f, 0x09],                   Reason::WbinvdOrWbnoinvd,      0, 0),
    (&[WBINVD_EXITING],           &[0xf3, 0x0f, 0x09],             Reason::WbinvdOrWbnoinvd,      1, 0),
    (&[],                         &[0x0f, 0x01, 0xd1],             Reason::Xsetbv,                0, 0),
    // RDRAND r9; RDSEED cx
    (&[RDRAND_EXITING],           &[0x49, 0x0f, 0xc7, 0xf1],       Reason::Rdrand,                0, 9 << 3 | 2 << 11),
    (&[RDSEED_EXITING],           &[0x66, 0x0f, 0xc7, 0xf9],       Reason::Rdseed,                0, 1 << 3),
];

#[test]
fn each_exit_records_its_reason_qualification_information_and_length() {
    for (controls, bytes, expected, qualification, information) in EXITS {
        let mut guest = guest(controls, bytes);
        (guest.state.gpr[RDX], guest.state.gpr[RCX]) = (2, 1);
        let exit = guest.run(1000);
        assert_eq!((exit.cause, exit.retired), (Cause::Vm(*expected), 0), "{bytes:x?}");
        let vmcs = &guest.vmcs.current;
        assert_eq!(vmcs.get(EXIT_REASON), *expected as u32);
        assert_eq!(vmcs.get(EXIT_QUALIFICATION), *qualification, "{bytes:x?}");
        assert_eq!(vmcs.get(VM_EXIT_INSTRUCTION_INFORMATION), *information, "{bytes:x?}");
        assert_eq!(vmcs.get(VM_EXIT_INSTRUCTION_LENGTH), bytes.len() as u32);
        assert_eq!(vmcs.get(GUEST_RIP), AT);
    }
}

/// The exits of [`EXITS`] that any CPL takes: those before the check of CPL, and instructions for everybody.
const AT_ANY_CPL: &[Reason] = &[
    Reason::Cpuid,
    Reason::Rdpmc,
    Reason::Rdtsc,
    Reason::Rdtscp,
    Reason::Vmcall,
    Reason::Vmlaunch,
    Reason::Vmresume,
    Reason::Vmxoff,
    Reason::Vmxon,
    Reason::Vmclear,
    Reason::Vmptrld,
    Reason::Vmptrst,
    Reason::Vmread,
    Reason::Vmwrite,
    Reason::Invept,
    Reason::Invvpid,
    Reason::MovDr,
    Reason::Pause,
    Reason::Rdrand,
    Reason::Rdseed,
];
/// Those that raise #UD outside CPL 0.
const UNDEFINED_FOR_USERS: &[Reason] = &[Reason::Monitor, Reason::Mwait];

#[test]
fn at_cpl_3_privilege_comes_before_the_exit_but_for_vmx_instructions_and_mov_dr() {
    for (controls, bytes, expected, ..) in EXITS {
        // What stores a descriptor-table register is for everybody without UMIP.
        if matches!(expected, Reason::GdtrIdtrAccess | Reason::LdtrTrAccess) && *bytes != [0x0f, 0x01, 0x18] {
            continue;
        }
        let mut guest = user(controls, bytes);
        guest.state.gpr[RCX] = 1;
        guest.vmcs.current.set(GUEST_CR4, guest.vmcs.current.get(GUEST_CR4) | cr4::PCE);
        if AT_ANY_CPL.contains(expected) {
            assert_eq!(reason(&mut guest), *expected, "{bytes:x?}");
        } else {
            let wanted = if UNDEFINED_FOR_USERS.contains(expected) { vector::UD } else { vector::GP };
            assert_eq!(exception(&mut guest), wanted, "{bytes:x?}");
        }
    }
}

#[test]
fn without_their_controls_the_instructions_complete() {
    const INSTRUCTIONS: &[(&[Control], &[u8])] = &[
        (&[], &[0x0f, 0x01, 0x38]),
        (&[ENABLE_RDTSCP], &[0x0f, 0x01, 0xf9]),
        (&[], &[0x0f, 0x31]),
        (&[], &[0x0f, 0x20, 0xdb]),
        (&[], &[0x45, 0x0f, 0x22, 0xc1]),
        (&[], &[0x0f, 0x21, 0xf2]),
        (&[], &[0xe4, 0x71]),
        (&[], &[0x0f, 0x01, 0xc8]),
        (&[], &[0x0f, 0x01, 0xc9]),
        (&[], &[0xf3, 0x90]),
        (&[], &[0x0f, 0x09]),
        (&[], &[0x49, 0x0f, 0xc7, 0xf1]),
        (&[], &[0x0f, 0x00, 0xc1]),
    ];
    for (controls, bytes) in INSTRUCTIONS {
        let code = [*bytes, &[0x0f, 0xa2]].concat();
        let mut guest = guest(controls, &code);
        guest.state.gpr[RAX] = STACK;
        let exit = guest.run(100);
        assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::Cpuid), 1), "{bytes:x?}");
    }
}

#[test]
fn umip_keeps_users_from_the_descriptor_table_registers() {
    for bytes in [
        &[0x0f, 0x01, 0x00],
        &[0x0f, 0x01, 0x08],
        &[0x0f, 0x00, 0xc1],
        &[0x0f, 0x00, 0xc9],
        &[0x0f, 0x01, 0xe1],
    ] {
        let mut guest = user(&[DESCRIPTOR_TABLE_EXITING], bytes);
        guest.vmcs.current.set(GUEST_CR4, guest.vmcs.current.get(GUEST_CR4) | cr4::UMIP);
        assert_eq!(exception(&mut guest), vector::GP, "{bytes:x?}");
    }
}

#[test]
fn a_cr3_target_makes_no_exit() {
    let mut guest = guest(&[CR3_LOAD_EXITING], &[0x0f, 0x22, 0xdb, 0x0f, 0xa2]);
    guest.vmcs.current.set(CR3_TARGET_COUNT, 1);
    guest.vmcs.current.set(CR3_TARGET_VALUE_0, guest::PML4);
    guest.state.gpr[RBX] = guest::PML4;
    assert_eq!(reason(&mut guest), Reason::Cpuid);
}

#[test]
fn lmsw_exits_with_its_operand_and_never_clears_pe() {
    // LMSW [rax] with TS, of which the shadow knows nothing.
    let mut exits = guest(&[], &[0x0f, 0x01, 0x30]);
    exits.vmcs.current.set(CR0_GUEST_HOST_MASK, cr0::TS);
    exits.memory.write(Pa(STACK), &[8, 0]);
    exits.state.gpr[RAX] = STACK;
    assert_eq!(reason(&mut exits), Reason::ControlRegisterAccess);
    let vmcs = &exits.vmcs.current;
    assert_eq!(
        (vmcs.get(EXIT_QUALIFICATION), vmcs.get(GUEST_LINEAR_ADDRESS)),
        (3 << 4 | 1 << 6 | 8 << 16, STACK)
    );
    // LMSW ax, then CPUID.
    let mut completes = guest(&[], &[0x0f, 0x01, 0xf0, 0x0f, 0xa2]);
    completes.state.gpr[RAX] = cr0::TS | cr0::MP;
    assert_eq!(reason(&mut completes), Reason::Cpuid);
    let low = completes.vmcs.current.get(GUEST_CR0) & 0xf;
    assert_eq!(low, cr0::PE | cr0::MP | cr0::TS);
}

#[test]
fn clts_exits_only_if_the_guest_believes_ts_to_be_set() {
    for (shadow, expected) in [(cr0::TS, Reason::ControlRegisterAccess), (0, Reason::Cpuid)] {
        let mut guest = guest(&[], &[0x0f, 0x06, 0x0f, 0xa2]);
        guest.vmcs.current.set(CR0_GUEST_HOST_MASK, cr0::TS);
        guest.vmcs.current.set(CR0_READ_SHADOW, shadow);
        guest.vmcs.current.set(GUEST_CR0, guest.vmcs.current.get(GUEST_CR0) | cr0::TS);
        assert_eq!(reason(&mut guest), expected);
        assert_ne!(guest.vmcs.current.get(GUEST_CR0) & cr0::TS, 0);
    }
}

#[test]
fn the_tpr_shadow_answers_cr8_and_exits_below_the_threshold() {
    // MOV cr8, r9; MOV rbx, cr8; MOV cr8, rax
    let mut guest =
        guest(&[USE_TPR_SHADOW], &[0x45, 0x0f, 0x22, 0xc1, 0x44, 0x0f, 0x20, 0xc3, 0x44, 0x0f, 0x22, 0xc0]);
    guest.vmcs.current.set(TPR_THRESHOLD, 5);
    guest.memory.write_u32(Pa(VIRTUAL_APIC + 0x80), 0x60);
    (guest.state.gpr[9], guest.state.gpr[RAX]) = (7, 4);
    let exit = guest.run(100);
    assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::TprBelowThreshold), 3));
    assert_eq!((guest.reg(RBX), guest.rip()), (7, AT + 12), "trap-like");
    assert_eq!(guest.memory.read_u32(Pa(VIRTUAL_APIC + 0x80)), 0x40);
}

#[test]
fn a_loop_of_pauses_exits_when_its_window_is_over() {
    let mut guest = guest(&[PAUSE_LOOP_EXITING], &[0xf3, 0x90, 0xeb, 0xfc]);
    guest.vmcs.current.set(PLE_GAP, 10);
    guest.vmcs.current.set(PLE_WINDOW, 100);
    let exit = guest.run(1000);
    assert_eq!(exit.cause, Cause::Vm(Reason::Pause));
    assert!((100..=106).contains(&exit.retired), "{}", exit.retired);
    assert_eq!(guest.rip(), AT);
}

#[test]
fn hlt_without_an_exit_leaves_the_guest_halted_until_an_event() {
    let mut guest = guest(&[], &[0xf4, 0x0f, 0xa2]);
    guest.vmcs.current.set_control(HLT_EXITING, false);
    let exit = guest.run(1000);
    assert_eq!((exit.cause, exit.retired), (Cause::Budget, 1));
    assert_eq!(guest.vmcs.current.get(GUEST_ACTIVITY_STATE), Activity::Hlt as u32);
    assert_eq!(guest.run(1000).retired, 0, "it stays halted");
    // An interrupt wakes it: its handler runs.
    let vmcs = &mut guest.vmcs.current;
    vmcs.set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    vmcs.set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent::new(EventKind::ExternalInterrupt, 0x40, false));
    let gate = (AT + 1) & 0xffff | 8 << 16 | 0x8e << 40 | (AT >> 16) << 48;
    guest.memory.write_u64(Pa(IDT + 0x400), gate);
    assert_eq!(reason(&mut guest), Reason::Cpuid);
    assert_eq!(guest.vmcs.current.get(GUEST_ACTIVITY_STATE), Activity::Active as u32);
}

#[test]
fn an_open_window_ends_hlt() {
    let mut guest = guest(&[INTERRUPT_WINDOW_EXITING], &[0xf4]);
    guest.vmcs.current.set(GUEST_ACTIVITY_STATE, Activity::Hlt as u32);
    guest.vmcs.current.set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    assert_eq!(reason(&mut guest), Reason::InterruptWindow);
}

#[test]
fn the_monitor_trap_flag_exits_after_one_instruction_or_one_delivery() {
    let mut stepping = guest(&[MONITOR_TRAP_FLAG], &[0x90, 0x90]);
    let exit = stepping.run(100);
    assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::MonitorTrapFlag), 1));
    assert_eq!(stepping.rip(), AT + 1);
    // UD2 with a handler: after the delivery.
    let mut faulting = guest(&[MONITOR_TRAP_FLAG], &[0x0f, 0x0b]);
    faulting.vmcs.current.set(EXCEPTION_BITMAP, 0);
    let gate = 0x4000 | 8 << 16 | 0x8e << 40;
    faulting.memory.write_u64(Pa(IDT + 0x60), gate);
    let exit = faulting.run(100);
    assert_eq!((exit.cause, exit.retired, faulting.rip()), (Cause::Vm(Reason::MonitorTrapFlag), 0, 0x4000));
    // An injected event: before the first instruction.
    let mut injecting = guest(&[MONITOR_TRAP_FLAG], &[0x90]);
    injecting.vmcs.current.set(EXCEPTION_BITMAP, 0);
    injecting.memory.write_u64(Pa(IDT + 0x60), gate);
    let event = InjectedEvent::new(EventKind::HardwareException, vector::UD, false);
    injecting.vmcs.current.set(INJECTED_EVENT_IDENTIFICATION, event);
    let exit = injecting.run(100);
    assert_eq!((exit.cause, exit.retired, injecting.rip()), (Cause::Vm(Reason::MonitorTrapFlag), 0, 0x4000));
    // A pending MTF VM exit, which needs no control.
    let mut pending = guest(&[], &[0x90]);
    let event = InjectedEvent::new(EventKind::Other, 0, false);
    pending.vmcs.current.set(INJECTED_EVENT_IDENTIFICATION, event);
    assert_eq!((reason(&mut pending), pending.rip()), (Reason::MonitorTrapFlag, AT));
}

#[test]
fn an_iret_that_faults_has_ended_nmi_blocking_and_says_so() {
    let mut guest = guest(&[NMI_EXITING, VIRTUAL_NMIS], &[0x48, 0xcf]);
    let blocked = InterruptibilityState::default().with(InterruptibilityState::NMI, true);
    guest.vmcs.current.set(GUEST_INTERRUPTIBILITY_STATE, blocked);
    guest.vmcs.current.set(GUEST_RSP, 0x40_0000_0000);
    assert_eq!(exception(&mut guest), vector::PF);
    let vmcs = &guest.vmcs.current;
    assert!(vmcs.get(EXITING_EVENT_IDENTIFICATION).get(RecordedEvent::NMI_UNBLOCKING));
    assert!(!vmcs.get(GUEST_INTERRUPTIBILITY_STATE).get(InterruptibilityState::NMI));
}

#[test]
fn vmx_instructions_are_undefined_in_compatibility_mode_but_vmcall_exits() {
    for (bytes, exits) in
        [(&[0x0f, 0x01, 0xc1], true), (&[0x0f, 0x01, 0xc3], false), (&[0x0f, 0x78, 0xd1], false)]
    {
        let mut guest = guest(&[], bytes);
        let mut a = CodeAssembler::new(64).unwrap();
        for value in [USER_DATA, USER_STACK, rflags::FIXED, 0x1b, AT] {
            a.push(value as i32).unwrap();
        }
        a.iretq().unwrap();
        guest.memory.write(Pa(CODE), &a.assemble(CODE).unwrap());
        guest.vmcs.current.set(GUEST_RIP, CODE);
        if exits {
            assert_eq!(reason(&mut guest), Reason::Vmcall);
        } else {
            assert_eq!(exception(&mut guest), vector::UD);
        }
    }
}
