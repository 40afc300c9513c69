//! The system side of the processor: events through the IDT, privilege, system registers, VM exits of instructions.

mod guest;

use guest::{CODE, GDT, Guest, IDT, STACK, TSS};
use iced_x86::code_asm::*;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::{EventKind, InjectedEvent, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::arch::state::InterruptibilityState;
use vmcs12::control::*;
use vmcs12::cpu_state::gpr::*;
use vmcs12::exit::qualification::{ControlRegisterAccess, IoInstruction};
use vmcs12::exit::{Cause, Reason};
use vmcs12::field::Vmcs;
use vmcs12::field::table::*;

/// Selectors of the test's GDT.
const CODE_64: u16 = 0x08;
const DATA: u16 = 0x10;
const USER_CODE_32: u16 = 0x18;
const USER_DATA: u16 = 0x20;
const USER_CODE_64: u16 = 0x28;
const ABSENT: u16 = 0x50;
/// Handler `i` is one HLT at this distance from the first.
const HANDLERS: u64 = 0x3_0000;
const HANDLER_SIZE: u64 = 16;
/// RSP0 and IST1 of the TSS.
const RSP0: u64 = 0x28_0000;
const IST1: u64 = 0x2c_0000;
/// Stack and code of CPL 3.
const USER_STACK: u64 = 0x30_0000;
const USER_CODE: u64 = 0x11_0000;
/// An address that nothing maps.
const UNMAPPED: u64 = 0x40_0000_0000;

const INTERRUPT: u64 = 0x8e;
const TRAP: u64 = 0x8f;
const USER: u64 = 0x60;

fn gate(guest: &Guest, vector: u8, kind: u64, ist: u64) {
    let offset = HANDLERS + u64::from(vector) * HANDLER_SIZE;
    let low =
        (offset & 0xffff) | u64::from(CODE_64) << 16 | ist << 32 | kind << 40 | (offset >> 16 & 0xffff) << 48;
    guest.memory.write_u64(Pa(IDT + u64::from(vector) * 16), low);
    guest.memory.write_u64(Pa(IDT + u64::from(vector) * 16 + 8), offset >> 32);
}

/// A 64-bit guest with a GDT, a TSS, and an IDT whose handlers halt.
fn with_tables() -> Guest {
    let mut guest = Guest::new();
    let gdt: [u64; 11] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16,
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9700_0000_0fff,
        0x00cf_1300_0000_ffff,
    ];
    for (i, descriptor) in gdt.into_iter().enumerate() {
        guest.memory.write_u64(Pa(GDT + 8 * i as u64), descriptor);
    }
    guest.memory.write(Pa(TSS + 4), &RSP0.to_le_bytes());
    guest.memory.write(Pa(TSS + 36), &IST1.to_le_bytes());
    for vector in 0..=255 {
        gate(&guest, vector, INTERRUPT, 0);
        guest.memory.write(Pa(HANDLERS + u64::from(vector) * HANDLER_SIZE), &[0xf4]);
    }
    set(&mut guest).set(GUEST_IA32_SYSENTER_CS, 0);
    guest.state.star = u64::from(USER_CODE_32) << 48 | u64::from(CODE_64) << 32;
    guest
}

fn set(guest: &mut Guest) -> &mut Vmcs {
    &mut guest.vmcs.current
}

fn load_at(guest: &Guest, at: u64, bits: u32, assemble: impl FnOnce(&mut CodeAssembler)) {
    let mut a = CodeAssembler::new(bits).unwrap();
    assemble(&mut a);
    guest.memory.write(Pa(at), &a.assemble(at).unwrap());
}

/// Runs to a HLT and says which handler it is in.
#[track_caller]
fn handler(guest: &mut Guest) -> u64 {
    let exit = guest.run(1000);
    assert_eq!(exit.cause, Cause::Vm(Reason::Hlt), "rip {:x} {:x?}", guest.rip(), guest.vmcs.current);
    (guest.rip() - HANDLERS) / HANDLER_SIZE
}

/// The quadwords at the top of the stack.
fn stack<const N: usize>(guest: &Guest) -> [u64; N] {
    let top = guest.vmcs.current.get(GUEST_RSP);
    std::array::from_fn(|i| guest.memory.read_u64(Pa(top + 8 * i as u64)))
}

#[track_caller]
fn exit(guest: &mut Guest) -> Reason {
    match guest.run(1000).cause {
        Cause::Vm(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_undefined_instruction_is_delivered_with_rf_in_the_image() {
    let mut guest = with_tables();
    guest.load(|a| a.ud2().unwrap());
    assert_eq!(handler(&mut guest), u64::from(vector::UD));
    let frame = stack::<5>(&guest);
    assert_eq!(frame, [CODE, u64::from(CODE_64), rflags::FIXED | rflags::RF, STACK, u64::from(DATA)]);
}

#[test]
fn a_page_fault_pushes_its_code_and_sets_cr2() {
    let mut guest = with_tables();
    guest.load(|a| {
        a.mov(rax, UNMAPPED).unwrap();
        a.mov(dword_ptr(rax + 0x123), 1).unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::PF));
    assert_eq!(guest.state.cr2, UNMAPPED + 0x123);
    assert_eq!(stack::<2>(&guest)[0], 2, "a write to a page that is not present");
}

#[test]
fn a_fault_is_fetched_too() {
    let mut guest = with_tables();
    guest.load(|a| {
        a.mov(rax, UNMAPPED).unwrap();
        a.jmp(rax).unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::PF));
    assert_eq!((guest.state.cr2, stack::<2>(&guest)[0]), (UNMAPPED, 0x10));
    assert_eq!(stack::<2>(&guest)[1], UNMAPPED);
}

#[test]
fn int_n_returns_by_iretq_with_its_flags() {
    let mut guest = with_tables();
    load_at(&guest, HANDLERS + 0x80 * HANDLER_SIZE, 64, |a| {
        a.inc(rbx).unwrap();
        a.iretq().unwrap();
    });
    guest.load(|a| {
        a.stc().unwrap();
        a.sti().unwrap();
        a.int(0x80).unwrap();
        a.pushfq().unwrap();
        a.pop(rax).unwrap();
        a.hlt().unwrap();
    });
    let exit = guest.run(100);
    assert_eq!(exit.cause, Cause::Vm(Reason::Hlt));
    assert_eq!((guest.reg(RBX), guest.vmcs.current.get(GUEST_RSP)), (1, STACK));
    assert_eq!(guest.reg(RAX), rflags::FIXED | rflags::CF | rflags::IF);
    assert_eq!(exit.retired, 7, "INT n retires, delivery does not");
}

/// Code that enters CPL 3 at [`USER_CODE`] by IRETQ.
fn to_user(a: &mut CodeAssembler, flags: u64) {
    a.push(i32::from(USER_DATA) | 3).unwrap();
    a.push(USER_STACK as i32).unwrap();
    a.push(flags as i32).unwrap();
    a.push(i32::from(USER_CODE_64) | 3).unwrap();
    a.push(USER_CODE as i32).unwrap();
    a.iretq().unwrap();
}

#[test]
fn a_user_interrupt_switches_to_rsp0_with_a_null_ss() {
    let mut guest = with_tables();
    gate(&guest, 0x80, INTERRUPT | USER, 0);
    guest.load(|a| to_user(a, rflags::IF));
    load_at(&guest, USER_CODE, 64, |a| a.int(0x80).unwrap());
    assert_eq!(handler(&mut guest), 0x80);
    let frame = stack::<5>(&guest);
    let flags = rflags::FIXED | rflags::IF;
    let user = [USER_CODE + 2, u64::from(USER_CODE_64) | 3, flags, USER_STACK, u64::from(USER_DATA) | 3];
    assert_eq!(frame, user);
    assert_eq!(guest.vmcs.current.get(GUEST_RSP), RSP0 - 40);
    assert_eq!(guest.vmcs.current.get(GUEST_SS_SELECTOR), 0);
    assert_eq!(guest.rflags() & rflags::IF, 0);
}

#[test]
fn a_gate_with_dpl_0_refuses_int_n_of_cpl_3_but_not_a_fault() {
    let mut guest = with_tables();
    guest.load(|a| to_user(a, 0));
    load_at(&guest, USER_CODE, 64, |a| a.int(0x81).unwrap());
    assert_eq!(handler(&mut guest), u64::from(vector::GP));
    let [code, rip] = stack(&guest);
    assert_eq!((code, rip), (0x81 * 8 + 2, USER_CODE));
}

#[test]
fn an_interrupt_stack_is_used_at_any_privilege_and_aligned() {
    let mut guest = with_tables();
    gate(&guest, vector::UD, TRAP, 1);
    guest.load(|a| {
        a.sub(rsp, 4).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::UD));
    assert_eq!(guest.vmcs.current.get(GUEST_RSP), IST1 - 40);
    assert_eq!(stack::<4>(&guest)[3], STACK - 4);
}

#[test]
fn a_frame_starts_at_a_multiple_of_16() {
    let mut guest = with_tables();
    guest.load(|a| {
        a.sub(rsp, 4).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::UD));
    assert_eq!(guest.vmcs.current.get(GUEST_RSP), ((STACK - 4) & !15) - 40);
}

#[test]
fn syscall_and_sysret_go_there_and_back() {
    let mut guest = with_tables();
    let entry = 0x12_0000;
    guest.state.lstar = entry;
    guest.state.fmask = rflags::IF | rflags::DF;
    guest.load(|a| to_user(a, rflags::IF));
    load_at(&guest, USER_CODE, 64, |a| {
        a.std().unwrap();
        a.syscall().unwrap();
        a.pushfq().unwrap();
        a.mov(r15, rsp).unwrap();
        a.cli().unwrap();
    });
    load_at(&guest, entry, 64, |a| {
        a.mov(r14d, cs).unwrap();
        a.pushfq().unwrap();
        a.pop(r13).unwrap();
        a.sysretq().unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::GP), "CLI is not for CPL 3");
    assert_eq!(guest.reg(14), u64::from(CODE_64));
    assert_eq!(guest.reg(13) & (rflags::IF | rflags::DF), 0);
    assert_eq!(guest.reg(RCX), USER_CODE + 3);
    assert_eq!(guest.memory.read_u64(Pa(guest.reg(15))), rflags::FIXED | rflags::IF | rflags::DF);
    assert_eq!(stack::<3>(&guest)[2], u64::from(USER_CODE_64) | 3);
}

#[test]
fn bad_selectors_are_reported_by_their_codes() {
    for (selector, expected) in [(0x1000, (vector::GP, 0x1000)), (ABSENT, (vector::NP, u64::from(ABSENT)))] {
        let mut guest = with_tables();
        guest.load(|a| {
            a.mov(eax, u32::from(selector)).unwrap();
            a.mov(ds, eax).unwrap();
        });
        assert_eq!((handler(&mut guest), stack::<1>(&guest)[0]), (u64::from(expected.0), expected.1));
    }
    let mut guest = with_tables();
    guest.load(|a| {
        a.mov(eax, u32::from(USER_DATA)).unwrap();
        a.mov(ss, eax).unwrap();
    });
    assert_eq!((handler(&mut guest), stack::<1>(&guest)[0]), (u64::from(vector::GP), u64::from(USER_DATA)));
}

#[test]
fn a_fault_in_the_delivery_of_a_fault_is_a_double_fault() {
    let mut guest = with_tables();
    gate(&guest, vector::GP, 0, 0);
    guest.load(|a| {
        a.mov(eax, 0x1000).unwrap();
        a.mov(ds, eax).unwrap();
    });
    // A gate of no type: #GP during #GP.
    assert_eq!(handler(&mut guest), u64::from(vector::DF));
    assert_eq!(stack::<2>(&guest), [0, CODE + 5]);
}

#[test]
fn a_fault_in_the_delivery_of_a_double_fault_exits() {
    let mut guest = with_tables();
    set(&mut guest).set(GUEST_IDTR_LIMIT, 0);
    guest.load(|a| a.ud2().unwrap());
    assert_eq!(exit(&mut guest), Reason::TripleFault);
    assert!(!guest.vmcs.current.get(ORIGINAL_EVENT_IDENTIFICATION).get(RecordedEvent::VALID));
    assert_eq!(guest.rip(), CODE);
}

#[test]
fn the_exception_bitmap_makes_an_exit_that_changes_nothing() {
    let mut guest = with_tables();
    set(&mut guest).set(EXCEPTION_BITMAP, 1 << vector::PF);
    guest.load(|a| {
        a.mov(rax, UNMAPPED).unwrap();
        a.mov(rbx, qword_ptr(rax)).unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::ExceptionOrNmi);
    let vmcs = &guest.vmcs.current;
    let event = vmcs.get(EXITING_EVENT_IDENTIFICATION);
    assert_eq!(event, RecordedEvent::new(EventKind::HardwareException, vector::PF, true));
    assert_eq!((vmcs.get(EXITING_EVENT_ERROR_CODE), vmcs.get(EXIT_QUALIFICATION)), (0, UNMAPPED));
    assert_eq!((guest.state.cr2, vmcs.get(GUEST_RIP)), (0, CODE + 10));
    assert_eq!(vmcs.get(GUEST_RFLAGS), rflags::FIXED | rflags::RF);
}

#[test]
fn the_page_fault_mask_inverts_the_bitmap_for_codes_that_do_not_match() {
    let mut guest = with_tables();
    set(&mut guest).set(EXCEPTION_BITMAP, 1 << vector::PF);
    set(&mut guest).set(PAGE_FAULT_ERROR_CODE_MASK, 2);
    set(&mut guest).set(PAGE_FAULT_ERROR_CODE_MATCH, 2);
    guest.load(|a| {
        a.mov(rax, UNMAPPED).unwrap();
        a.mov(rbx, qword_ptr(rax)).unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::PF));
}

#[test]
fn int3_exits_as_a_software_exception_with_its_length() {
    let mut guest = with_tables();
    set(&mut guest).set(EXCEPTION_BITMAP, 1 << vector::BP);
    guest.load(|a| a.int3().unwrap());
    assert_eq!(exit(&mut guest), Reason::ExceptionOrNmi);
    let vmcs = &guest.vmcs.current;
    let event = RecordedEvent::new(EventKind::SoftwareException, vector::BP, false);
    assert_eq!(vmcs.get(EXITING_EVENT_IDENTIFICATION), event);
    assert_eq!((vmcs.get(VM_EXIT_INSTRUCTION_LENGTH), vmcs.get(GUEST_RIP)), (1, CODE));
}

#[test]
fn a_nested_exception_that_exits_reports_the_event_it_interrupted() {
    let mut guest = with_tables();
    gate(&guest, 0x90, 0, 0);
    set(&mut guest).set(EXCEPTION_BITMAP, 1 << vector::GP);
    guest.load(|a| a.int(0x90).unwrap());
    assert_eq!(exit(&mut guest), Reason::ExceptionOrNmi);
    let vmcs = &guest.vmcs.current;
    let original = RecordedEvent::new(EventKind::SoftwareInterrupt, 0x90, false);
    assert_eq!(vmcs.get(ORIGINAL_EVENT_IDENTIFICATION), original);
    assert_eq!(vmcs.get(EXITING_EVENT_ERROR_CODE), 0x90 * 8 + 2, "EXT is 0 for a software interrupt");
    assert_eq!((vmcs.get(VM_EXIT_INSTRUCTION_LENGTH), vmcs.get(GUEST_RIP)), (2, CODE));
}

#[test]
fn an_injected_interrupt_is_delivered_before_the_first_instruction() {
    let mut guest = with_tables();
    guest.load(|a| a.nop().unwrap());
    set(&mut guest).set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    let event = InjectedEvent::new(EventKind::ExternalInterrupt, 0x41, false);
    set(&mut guest).set(INJECTED_EVENT_IDENTIFICATION, event);
    let exit = guest.run(100);
    assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::Hlt), 0));
    assert_eq!(guest.rip(), HANDLERS + 0x41 * HANDLER_SIZE);
    assert_eq!(stack::<3>(&guest), [CODE, u64::from(CODE_64), rflags::FIXED | rflags::IF]);
    assert!(!guest.vmcs.current.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::VALID));
}

#[test]
fn an_injected_nmi_blocks_nmis_until_iret() {
    let mut guest = with_tables();
    for control in [NMI_EXITING, VIRTUAL_NMIS] {
        set(&mut guest).set_control(control, true);
    }
    guest.load(|a| a.hlt().unwrap());
    load_at(&guest, HANDLERS + 2 * HANDLER_SIZE, 64, |a| {
        a.hlt().unwrap();
        a.iretq().unwrap();
    });
    set(&mut guest).set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent::new(EventKind::Nmi, 2, false));
    assert_eq!(handler(&mut guest), 2);
    let blocked =
        |guest: &Guest| guest.vmcs.current.get(GUEST_INTERRUPTIBILITY_STATE).get(InterruptibilityState::NMI);
    assert!(blocked(&guest));
    let next = guest.rip() + 1;
    set(&mut guest).set(GUEST_RIP, next);
    assert_eq!(exit(&mut guest), Reason::Hlt);
    assert_eq!((guest.rip(), blocked(&guest)), (CODE, false));
}

#[test]
fn single_stepping_traps_after_each_instruction() {
    let mut guest = with_tables();
    load_at(&guest, HANDLERS + HANDLER_SIZE, 64, |a| {
        a.inc(rbx).unwrap();
        a.iretq().unwrap();
    });
    guest.load(|a| {
        a.pushfq().unwrap();
        a.or(dword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.pushfq().unwrap();
        a.and(dword_ptr(rsp), !0x100).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::Hlt);
    assert_eq!(guest.reg(RBX), 5, "two NOPs, PUSHF, AND and the POPF that ends it");
    assert_eq!(guest.state.dr6 & 0x4000, 0x4000);
}

#[test]
fn single_stepping_on_branches_passes_over_what_does_not_branch() {
    const BTF: u64 = 2;
    let mut guest = with_tables();
    // NOP, NOP, JMP over one byte
    guest.memory.write(Pa(CODE), &[0x90, 0x90, 0xeb, 0x01, 0x90, 0x90]);
    set(&mut guest).set(GUEST_RFLAGS, rflags::FIXED | rflags::TF);
    set(&mut guest).set(GUEST_IA32_DEBUGCTL, BTF);
    assert_eq!(handler(&mut guest), u64::from(vector::DB));
    assert_eq!(stack::<1>(&guest), [CODE + 5]);
    assert_eq!(guest.vmcs.current.get(GUEST_IA32_DEBUGCTL), 0);
}

#[test]
fn breakpoints_stop_before_code_and_after_data() {
    let mut guest = with_tables();
    load_at(&guest, HANDLERS + HANDLER_SIZE, 64, |a| {
        a.hlt().unwrap();
        a.iretq().unwrap();
    });
    guest.load(|a| {
        a.mov(rcx, STACK - 0x100).unwrap();
        a.mov(qword_ptr(rcx), rax).unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let after = CODE + 13;
    (guest.state.dr[0], guest.state.dr[1]) = (STACK - 0x100, after);
    // DR0: eight bytes, written; DR1: executed.
    set(&mut guest).set(GUEST_DR7, 0x400 | 0b1010 | 0x9 << 16);
    assert_eq!(handler(&mut guest), 1);
    assert_eq!((stack::<1>(&guest)[0], guest.state.dr6 & 0xf), (after, 1), "the store has been made");
    let resume = guest.rip() + 1;
    set(&mut guest).set(GUEST_RIP, resume);
    assert_eq!(handler(&mut guest), 1);
    assert_eq!((stack::<1>(&guest)[0], guest.state.dr6 & 0xf), (after, 2), "the NOP has not run");
    // RF in the image lets it run.
    let image = Pa(guest.vmcs.current.get(GUEST_RSP) + 16);
    guest.memory.write_u64(image, guest.memory.read_u64(image) | rflags::RF);
    set(&mut guest).set(GUEST_RIP, resume);
    assert_eq!(exit(&mut guest), Reason::Hlt);
    assert_eq!((guest.rip(), guest.rflags() & rflags::RF), (after + 1, 0));
}

#[test]
fn general_detect_guards_the_debug_registers() {
    let mut guest = with_tables();
    set(&mut guest).set(GUEST_DR7, 0x400 | 1 << 13);
    guest.load(|a| a.mov(rax, dr7).unwrap());
    assert_eq!(handler(&mut guest), 1);
    assert_eq!(guest.state.dr6 & 1 << 13, 1 << 13);
    assert_eq!((stack::<1>(&guest)[0], guest.vmcs.current.get(GUEST_DR7)), (CODE, 0x400));
}

#[test]
fn host_owned_bits_of_cr0_read_from_the_shadow_and_exit_when_changed() {
    let mut guest = with_tables();
    set(&mut guest).set(CR0_GUEST_HOST_MASK, cr0::TS | cr0::NE);
    set(&mut guest).set(CR0_READ_SHADOW, cr0::TS);
    guest.load(|a| {
        a.mov(rax, cr0).unwrap();
        a.mov(rbx, rax).unwrap();
        a.or(rbx, cr0::AM as i32).unwrap();
        a.mov(cr0, rbx).unwrap();
        a.and(rbx, !(cr0::TS as i32)).unwrap();
        a.mov(cr0, rbx).unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::ControlRegisterAccess);
    let qualification = ControlRegisterAccess(guest.vmcs.current.get(EXIT_QUALIFICATION));
    assert_eq!(qualification.get(ControlRegisterAccess::GPR), RBX as u8);
    assert_eq!(guest.reg(RAX) & (cr0::TS | cr0::NE), cr0::TS);
    let real = guest.vmcs.current.get(GUEST_CR0);
    assert_eq!(real & (cr0::TS | cr0::NE | cr0::AM), cr0::NE | cr0::AM);
}

#[test]
fn reserved_bits_of_cr4_are_refused() {
    let mut guest = with_tables();
    guest.load(|a| {
        a.mov(rax, cr4).unwrap();
        a.bts(rax, 27).unwrap();
        a.mov(cr4, rax).unwrap();
    });
    assert_eq!((handler(&mut guest), stack::<1>(&guest)[0]), (u64::from(vector::GP), 0));
}

#[test]
fn io_exits_by_bitmap_with_its_qualification() {
    let mut guest = with_tables();
    set(&mut guest).set_control(USE_IO_BITMAPS, true);
    let (a_bitmap, b_bitmap) = (0x5_0000, 0x5_1000);
    set(&mut guest).set(ADDRESS_OF_IO_BITMAP_A, Pa(a_bitmap));
    set(&mut guest).set(ADDRESS_OF_IO_BITMAP_B, Pa(b_bitmap));
    guest.memory.write(Pa(a_bitmap + 0x3f8 / 8), &[2]);
    guest.load(|a| {
        a.mov(edx, 0x3f8).unwrap();
        a.in_(al, dx).unwrap();
        a.out(dx, ax).unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::IoInstruction);
    let qualification = IoInstruction(guest.vmcs.current.get(EXIT_QUALIFICATION));
    assert_eq!(guest.reg(RAX) & 0xff, 0xff, "no port answers");
    let expected =
        IoInstruction::default().with(IoInstruction::SIZE_MINUS_1, 1).with(IoInstruction::PORT, 0x3f8);
    assert_eq!(qualification, expected);
}

#[test]
fn ports_of_cpl_3_need_iopl_or_the_tss() {
    let mut guest = with_tables();
    guest.memory.write(Pa(TSS + 0x66), &0x68u16.to_le_bytes());
    guest.memory.write(Pa(TSS + 0x68), &[0xfe, 0xff]);
    set(&mut guest).set(GUEST_TR_LIMIT, 0x70);
    guest.load(|a| to_user(a, 0));
    load_at(&guest, USER_CODE, 64, |a| {
        a.in_(al, 0).unwrap();
        a.in_(al, 1).unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::GP));
    assert_eq!(stack::<2>(&guest), [0, USER_CODE + 2]);
}

#[test]
fn vmx_instructions_exit_at_any_privilege() {
    let mut guest = with_tables();
    guest.load(|a| to_user(a, 0));
    load_at(&guest, USER_CODE, 64, |a| {
        a.db(&[0x66, 0x0f, 0xc7, 0x35, 0x10, 0, 0, 0]).unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::Vmclear);
    assert_eq!(guest.vmcs.current.get(EXIT_QUALIFICATION), USER_CODE + 8 + 0x10, "RIP-relative");
    assert_eq!(guest.vmcs.current.get(VM_EXIT_INSTRUCTION_INFORMATION) >> 27 & 1, 1);
}

#[test]
fn msrs_that_the_bitmap_lets_through_are_the_processors() {
    let mut guest = with_tables();
    set(&mut guest).set_control(USE_MSR_BITMAPS, true);
    set(&mut guest).set(ADDRESS_OF_MSR_BITMAPS, Pa(0x5_0000));
    guest.load(|a| {
        a.mov(ecx, 0xc000_0101u32).unwrap();
        a.mov(eax, 0x1234_0000).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.swapgs().unwrap();
        a.rdmsr().unwrap();
        a.mov(rbx, rax).unwrap();
        a.mov(ecx, 0x1b).unwrap();
        a.rdmsr().unwrap();
    });
    guest.state.kernel_gs_base = 0x5678;
    assert_eq!(handler(&mut guest), u64::from(vector::GP), "IA32_APIC_BASE is not the processor's");
    assert_eq!((guest.reg(RBX), guest.state.kernel_gs_base), (0x5678, 0x1234_0000));
    assert_eq!(guest.vmcs.current.get(GUEST_GS_BASE), 0x5678);
}

#[test]
fn vmread_and_vmwrite_reach_the_linked_vmcs() {
    let mut guest = with_tables();
    set(&mut guest).set_control(ACTIVATE_SECONDARY_CONTROLS, true);
    set(&mut guest).set_control(VMCS_SHADOWING, true);
    set(&mut guest).set(VMREAD_BITMAP_ADDRESS, Pa(0x5_0000));
    set(&mut guest).set(VMWRITE_BITMAP_ADDRESS, Pa(0x5_1000));
    set(&mut guest).touch();
    guest.memory.write(Pa(0x5_0000 + 0x4402 / 8), &[1 << 2]);
    guest.vmcs.linked = Some(Box::default());
    guest.load(|a| {
        a.mov(eax, 0x2010).unwrap();
        a.mov(rbx, 0x1111_2222_3333_4444u64).unwrap();
        a.vmwrite(rax, rbx).unwrap();
        a.mov(eax, 0x2011).unwrap();
        a.vmread(rcx, rax).unwrap();
        a.mov(eax, 0x2ffe).unwrap();
        a.vmread(rdx, rax).unwrap();
        a.setz(sil).unwrap();
        a.mov(eax, 0x4402).unwrap();
        a.vmread(rdi, rax).unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::Vmread);
    assert_eq!(guest.reg(RCX), 0x1111_2222);
    assert_eq!(guest.reg(RSI) & 1, 1);
    assert_eq!(guest.vmcs.current.get(VM_INSTRUCTION_ERROR), 12);
    assert_eq!(guest.vmcs.linked.as_ref().unwrap().get(TSC_OFFSET), 0x1111_2222_3333_4444);
    assert_eq!(guest.vmcs.shadow_accesses, (1, 1));
}

#[test]
fn popf_changes_what_cpl_and_iopl_let_it() {
    let mut guest = with_tables();
    guest.load(|a| to_user(a, 0));
    load_at(&guest, USER_CODE, 64, |a| {
        a.push(0x3fd7).unwrap();
        a.popfq().unwrap();
        a.pushfq().unwrap();
        a.pop(rax).unwrap();
        a.ud2().unwrap();
    });
    // TF is among the bits: leave it out.
    load_at(&guest, USER_CODE, 64, |a| {
        a.push(0x3ed7).unwrap();
        a.popfq().unwrap();
        a.pushfq().unwrap();
        a.pop(rax).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::UD));
    assert_eq!(guest.reg(RAX), 0x3ed7 & !(rflags::IOPL | rflags::IF));
}

#[test]
fn sti_opens_the_interrupt_window_one_instruction_later() {
    let mut guest = with_tables();
    set(&mut guest).set_control(INTERRUPT_WINDOW_EXITING, true);
    guest.load(|a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.inc(rax).unwrap();
        a.inc(rax).unwrap();
    });
    let exit = guest.run(100);
    assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::InterruptWindow), 3));
    assert_eq!(guest.reg(RAX), 1);
}

#[test]
fn mov_ss_holds_back_interrupts_and_traps_for_one_instruction() {
    let mut guest = with_tables();
    set(&mut guest).set_control(INTERRUPT_WINDOW_EXITING, true);
    guest.load(|a| {
        a.mov(ecx, ss).unwrap();
        a.sti().unwrap();
        a.mov(ss, ecx).unwrap();
        a.inc(rax).unwrap();
        a.inc(rax).unwrap();
    });
    let exit = guest.run(100);
    assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::InterruptWindow), 4));
}

#[test]
fn the_tsc_follows_the_count_of_instructions() {
    let mut guest = with_tables();
    set(&mut guest).set_control(USE_TSC_OFFSETTING, true);
    set(&mut guest).set(TSC_OFFSET, 1000);
    guest.time.tsc_mult_q32 = 2 << 32;
    guest.load(|a| {
        a.nop().unwrap();
        a.rdtsc().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::Hlt);
    assert_eq!(guest.reg(RAX), 1002);
}

#[test]
fn compatibility_mode_interrupts_into_64_bit_mode() {
    let mut guest = with_tables();
    gate(&guest, 0x80, INTERRUPT | USER, 0);
    guest.load(|a| {
        a.push(i32::from(USER_DATA) | 3).unwrap();
        a.push(USER_STACK as i32).unwrap();
        a.push(0).unwrap();
        a.push(i32::from(USER_CODE_32) | 3).unwrap();
        a.push(USER_CODE as i32).unwrap();
        a.iretq().unwrap();
    });
    load_at(&guest, USER_CODE, 32, |a| {
        a.push(0x1234).unwrap();
        a.int(0x80).unwrap();
    });
    assert_eq!(handler(&mut guest), 0x80);
    assert_eq!(guest.memory.read_u32(Pa(USER_STACK - 4)), 0x1234);
    assert_eq!(stack::<4>(&guest)[3], USER_STACK - 4);
}

#[test]
fn far_returns_and_calls_check_the_selector() {
    let mut guest = with_tables();
    guest.load(|a| {
        a.push(i32::from(CODE_64)).unwrap();
        a.db(&[0x48, 0x8d, 0x05, 3, 0, 0, 0]).unwrap();
        a.push(rax).unwrap();
        a.db(&[0x48, 0xcb]).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::Hlt);
    assert_eq!(guest.vmcs.current.get(GUEST_RSP), STACK);
}

/// The way of a boot loader: real mode, protected mode, IA-32e mode, 64-bit mode.
#[test]
fn from_real_mode_to_64_bit_mode() {
    let mut guest = with_tables();
    let vmcs = set(&mut guest);
    for control in [ACTIVATE_SECONDARY_CONTROLS, ENABLE_EPT, UNRESTRICTED_GUEST, USE_MSR_BITMAPS] {
        vmcs.set_control(control, true);
    }
    vmcs.set_control(IA_32E_MODE_GUEST, false);
    vmcs.set(ADDRESS_OF_MSR_BITMAPS, Pa(0x5_0000));
    vmcs.set(GUEST_CR0, cr0::NE | cr0::ET);
    vmcs.set(GUEST_CR4, cr4::VMXE);
    vmcs.set(GUEST_IA32_EFER, 0);
    for register in SegmentRegister::ALL.into_iter().take(6) {
        let fields = register.fields();
        let code = register == SegmentRegister::Cs;
        vmcs.set(fields.selector, 0);
        vmcs.set(fields.base, 0);
        vmcs.set(fields.limit, 0xffff);
        vmcs.set(fields.rights, vmcs12::arch::segment::AccessRights(if code { 0x9b } else { 0x93 }));
    }
    vmcs.set(GUEST_RSP, 0x7000);
    let start = 0x7c00;
    vmcs.set(GUEST_RIP, start);
    vmcs.set(GUEST_IDTR_BASE, 0);
    let ept = ept_identity(&guest);
    set(&mut guest).set(EPTP, vmcs12::arch::eptp::Eptp(ept | 0x1e));
    // INT 21H in real mode writes a byte and comes back.
    guest.memory.write(Pa(0x21 * 4), &[0x00, 0x60, 0, 0]);
    load_at(&guest, 0x6000, 16, |a| {
        a.mov(byte_ptr(0x500), 0x5a).unwrap();
        a.iret().unwrap();
    });
    guest.memory.write(Pa(0x7e00), &[0xff, 0, 0, 0x80, 0, 0]);
    load_at(&guest, start, 16, |a| {
        a.int(0x21).unwrap();
        a.lgdt(dword_ptr(0x7e00)).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0x66, 0xea, 0, 0x80, 1, 0, 0x40, 0]).unwrap();
    });
    load_at(&guest, 0x1_8000, 32, |a| {
        a.mov(eax, u32::from(DATA)).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(ss, eax).unwrap();
        a.mov(esp, 0x2_0000).unwrap();
        a.mov(eax, cr4).unwrap();
        a.or(eax, 0x20).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, guest::PML4 as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 0x100).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 0x8000_0000u32 as i32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0xea, 0, 0, 0x10, 0, 8, 0]).unwrap();
    });
    guest.load(|a| {
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.hlt().unwrap();
    });
    let reason = exit(&mut guest);
    assert_eq!(reason, Reason::Hlt, "{:x?}", guest.vmcs.current);
    assert_eq!(guest.reg(RAX), 0x1122_3344_5566_7788);
    let vmcs = &guest.vmcs.current;
    assert_eq!((vmcs.get(GUEST_IA32_EFER), vmcs.get(GUEST_RIP)), (0x500, CODE + 10));
    assert!(vmcs.has(IA_32E_MODE_GUEST));
    let mut byte = [0];
    guest.memory.read(Pa(0x500), &mut byte);
    assert_eq!(byte, [0x5a]);
}

/// EPT that maps the first GiB to itself, but for [`HOLE`].
fn ept_identity(guest: &Guest) -> u64 {
    let pml4 = 0x6_0000;
    guest.memory.write_u64(Pa(pml4), 0x6_1007);
    guest.memory.write_u64(Pa(0x6_1000), 0x6_2007);
    for i in 0..512 {
        guest.memory.write_u64(Pa(0x6_2000 + 8 * i), i << 21 | 0xb7);
    }
    pml4
}

#[test]
fn an_ept_violation_on_the_way_to_a_handler_reports_the_event() {
    let mut guest = with_tables();
    let ept = ept_identity(&guest);
    // The 2-MiB page of the stack below RSP is taken away.
    guest.memory.write_u64(Pa(0x6_2000), 0xb7);
    guest.memory.write_u64(Pa(0x6_2000 + 8 * (0x80_0000 >> 21)), 0);
    let vmcs = set(&mut guest);
    for control in [ACTIVATE_SECONDARY_CONTROLS, ENABLE_EPT] {
        vmcs.set_control(control, true);
    }
    vmcs.set(EPTP, vmcs12::arch::eptp::Eptp(ept | 0x1e));
    vmcs.set(GUEST_RSP, 0x80_1000);
    guest.load(|a| a.int(0x33).unwrap());
    assert_eq!(exit(&mut guest), Reason::EptViolation);
    let vmcs = &guest.vmcs.current;
    let original = RecordedEvent::new(EventKind::SoftwareInterrupt, 0x33, false);
    assert_eq!(vmcs.get(ORIGINAL_EVENT_IDENTIFICATION), original);
    assert_eq!((vmcs.get(GUEST_PHYSICAL_ADDRESS), vmcs.get(GUEST_RIP)), (0x80_0ff8, CODE));
    assert_eq!((vmcs.get(GUEST_RSP), vmcs.get(VM_EXIT_INSTRUCTION_LENGTH)), (0x80_1000, 2));
}

#[test]
fn a_guest_that_only_faults_uses_up_its_budget() {
    let mut guest = with_tables();
    // The handler of #PF is not mapped, and its stack starts anew each time.
    let far = UNMAPPED;
    let low = u64::from(CODE_64) << 16 | 1 << 32 | INTERRUPT << 40;
    guest.memory.write_u64(Pa(IDT + u64::from(vector::PF) * 16), low);
    guest.memory.write_u64(Pa(IDT + u64::from(vector::PF) * 16 + 8), far >> 32);
    guest.load(|a| {
        a.mov(rax, far).unwrap();
        a.jmp(rax).unwrap();
    });
    let exit = guest.run(5);
    assert_eq!((exit.cause, exit.retired), (Cause::Budget, 5));
}

#[test]
fn the_last_address_is_code_like_any_other() {
    let mut guest = with_tables();
    guest.load(|a| {
        a.mov(rax, -1i64 as u64).unwrap();
        a.jmp(rax).unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::PF));
    assert_eq!(guest.state.cr2, u64::MAX);
}
