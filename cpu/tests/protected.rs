//! Legacy protected mode and virtual-8086 mode: privilege, gates, segments and their error codes.

mod guest;

use guest::{CODE, GDT, Guest, IDT, TSS};
use iced_x86::code_asm::*;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::{EventKind, InjectedEvent, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::segment::{AccessRights, SegmentRegister};
use vmcs12::control::*;
use vmcs12::cpu_state::gpr::*;
use vmcs12::exit::qualification::TaskSwitch;
use vmcs12::exit::{Cause, Reason};
use vmcs12::field::table::*;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const TASK: u16 = 0x28;
const OTHER_TASK: u16 = 0x30;
const CALL_GATE: u16 = 0x38;
const CONFORMING: u16 = 0x40;
const CODE_16: u16 = 0x48;
const SMALL_STACK: u16 = 0x50;
const ABSENT_STACK: u16 = 0x58;

const PAGES: u64 = 0x7000;
const HANDLERS: u64 = 0x3_0000;
const HANDLER_SIZE: u64 = 16;
const STACK: u64 = 0x2_0000;
const RING_0_STACK: u64 = 0x2_8000;
const USER_STACK: u64 = 0x2_c000;
const USER: u64 = 0x11_0000;
const INTERRUPT: u64 = 0x8e;
const TASK_GATE: u64 = 0x85;
const DPL_3: u64 = 0x60;
/// Where the interrupt bitmap and the I/O map of the TSS would be.
const NO_MAP: u16 = 0x68;

fn gate(guest: &Guest, vector: u8, kind: u64, selector: u16) {
    let offset = HANDLERS + u64::from(vector) * HANDLER_SIZE;
    let value = (offset & 0xffff) | u64::from(selector) << 16 | kind << 40 | (offset >> 16) << 48;
    guest.memory.write_u64(Pa(IDT + u64::from(vector) * 8), value);
}

fn load(guest: &Guest, at: u64, bits: u32, assemble: impl FnOnce(&mut CodeAssembler)) {
    let mut a = CodeAssembler::new(bits).unwrap();
    assemble(&mut a);
    guest.memory.write(Pa(at), &a.assemble(at).unwrap());
}

fn segment(selector: u16, rights: u32) -> vmcs12::arch::segment::Segment {
    vmcs12::arch::segment::Segment { base: 0, limit: u32::MAX, rights: AccessRights(rights), selector }
}

/// A 32-bit guest at CPL 0 with 4-MiB pages that map the first 4 MiB.
fn protected() -> Guest {
    let mut guest = Guest::new();
    let descriptors: [u64; 12] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8b00_0000_0067 | TSS << 16,
        0x0000_8900_0000_0067 | (TSS + 0x200) << 16,
        // A call gate for CPL 3, with two parameters.
        0x0000_ec02_0008_0000 | (HANDLERS & 0xffff) | (HANDLERS >> 16) << 48,
        0x00cf_9f00_0000_ffff,
        0x0000_9b00_0000_ffff,
        0x0040_9300_0000_0fff,
        0x00cf_1300_0000_ffff,
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        guest.memory.write_u64(Pa(GDT + 8 * i as u64), descriptor);
    }
    for vector in 0..=255 {
        gate(&guest, vector, INTERRUPT, KERNEL_CODE);
        guest.memory.write(Pa(HANDLERS + u64::from(vector) * HANDLER_SIZE), &[0xf4]);
    }
    guest.memory.write_u32(Pa(PAGES), 0xe7);
    guest.memory.write_u32(Pa(TSS + 4), RING_0_STACK as u32);
    guest.memory.write_u32(Pa(TSS + 8), u32::from(KERNEL_DATA));
    guest.memory.write(Pa(TSS + 0x66), &NO_MAP.to_le_bytes());
    let vmcs = &mut guest.vmcs.current;
    vmcs.set_control(IA_32E_MODE_GUEST, false);
    vmcs.set(GUEST_IA32_EFER, 0);
    vmcs.set(GUEST_CR0, cr0::PE | cr0::NE | cr0::PG | cr0::ET | cr0::WP);
    vmcs.set(GUEST_CR3, PAGES);
    vmcs.set(GUEST_CR4, cr4::PSE | cr4::VMXE);
    vmcs.set(GUEST_RSP, STACK);
    for register in SegmentRegister::ALL.into_iter().take(6) {
        let code = register == SegmentRegister::Cs;
        let value = if code { segment(KERNEL_CODE, 0xc09b) } else { segment(KERNEL_DATA, 0xc093) };
        let fields = register.fields();
        vmcs.set(fields.selector, value.selector);
        vmcs.set(fields.base, 0);
        vmcs.set(fields.limit, value.limit);
        vmcs.set(fields.rights, value.rights);
    }
    vmcs.set(GUEST_TR_SELECTOR, TASK);
    guest
}

#[track_caller]
fn handler(guest: &mut Guest) -> u64 {
    let exit = guest.run(1000);
    assert_eq!(exit.cause, Cause::Vm(Reason::Hlt), "rip {:x} {:x?}", guest.rip(), guest.vmcs.current);
    (guest.rip() - HANDLERS) / HANDLER_SIZE
}

#[track_caller]
fn exit(guest: &mut Guest) -> Reason {
    match guest.run(1000).cause {
        Cause::Vm(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// The doublewords at the top of the stack.
fn stack<const N: usize>(guest: &Guest) -> [u32; N] {
    let top = guest.vmcs.current.get(GUEST_RSP);
    std::array::from_fn(|i| guest.memory.read_u32(Pa(top + 4 * i as u64)))
}

/// Code that goes to CPL 3 at [`USER`].
fn to_user(a: &mut CodeAssembler) {
    a.push(i32::from(USER_DATA)).unwrap();
    a.push(USER_STACK as i32).unwrap();
    a.push(0x202).unwrap();
    a.push(i32::from(USER_CODE)).unwrap();
    a.push(USER as i32).unwrap();
    a.iretd().unwrap();
}

#[test]
fn a_fault_at_the_same_privilege_keeps_the_stack() {
    let mut guest = protected();
    load(&guest, CODE, 32, |a| a.ud2().unwrap());
    assert_eq!(handler(&mut guest), u64::from(vector::UD));
    assert_eq!(stack::<3>(&guest), [CODE as u32, 8, (rflags::FIXED | rflags::RF) as u32]);
    assert_eq!(guest.vmcs.current.get(GUEST_RSP), STACK - 12);
}

#[test]
fn an_interrupt_of_cpl_3_changes_to_the_stack_of_the_tss() {
    let mut guest = protected();
    gate(&guest, 0x80, INTERRUPT | DPL_3, KERNEL_CODE);
    load(&guest, CODE, 32, to_user);
    load(&guest, USER, 32, |a| {
        a.push(1).unwrap();
        a.int(0x80).unwrap();
    });
    assert_eq!(handler(&mut guest), 0x80);
    let user_frame =
        [USER as u32 + 4, u32::from(USER_CODE), 0x202, USER_STACK as u32 - 4, u32::from(USER_DATA)];
    assert_eq!(stack::<5>(&guest), user_frame);
    assert_eq!(guest.vmcs.current.get(GUEST_RSP), RING_0_STACK - 20);
    assert_eq!(guest.vmcs.current.get(GUEST_SS_SELECTOR), KERNEL_DATA);
}

#[test]
fn a_return_outward_takes_away_inner_data_segments() {
    let mut guest = protected();
    load(&guest, CODE, 32, |a| {
        a.mov(eax, i32::from(USER_DATA)).unwrap();
        a.mov(es, eax).unwrap();
        to_user(a);
    });
    load(&guest, USER, 32, |a| {
        a.mov(eax, es).unwrap();
        a.mov(ebx, ds).unwrap();
        a.mov(ecx, dword_ptr(0)).unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::GP));
    assert_eq!((guest.reg(RAX), guest.reg(RBX)), (u64::from(USER_DATA), 0));
    assert_eq!(stack::<2>(&guest), [0, USER as u32 + 4]);
}

#[test]
fn bad_stacks_of_the_tss_are_invalid_tss() {
    for (selector, code) in [(0u16, 0u32), (0x1000, 0x1000), (USER_DATA, 0x20), (ABSENT_STACK, 0x58)] {
        let mut guest = protected();
        gate(&guest, 0x80, INTERRUPT | DPL_3, KERNEL_CODE);
        guest.memory.write_u32(Pa(TSS + 8), u32::from(selector));
        guest.vmcs.current.set(EXCEPTION_BITMAP, 1 << vector::TS | 1 << vector::SS);
        load(&guest, CODE, 32, to_user);
        load(&guest, USER, 32, |a| a.int(0x80).unwrap());
        assert_eq!(exit(&mut guest), Reason::ExceptionOrNmi);
        let vmcs = &guest.vmcs.current;
        let expected = if selector == ABSENT_STACK { vector::SS } else { vector::TS };
        let event = RecordedEvent::new(EventKind::HardwareException, expected, true);
        assert_eq!(vmcs.get(EXITING_EVENT_IDENTIFICATION), event);
        assert_eq!(vmcs.get(EXITING_EVENT_ERROR_CODE), code, "EXT is 0 for INT n");
        let original = RecordedEvent::new(EventKind::SoftwareInterrupt, 0x80, false);
        assert_eq!(vmcs.get(ORIGINAL_EVENT_IDENTIFICATION), original);
    }
}

#[test]
fn a_stack_beyond_its_limit_is_a_stack_fault_of_its_selector() {
    let mut guest = protected();
    gate(&guest, 0x80, INTERRUPT | DPL_3, KERNEL_CODE);
    guest.memory.write_u32(Pa(TSS + 4), 0x2000);
    guest.memory.write_u32(Pa(TSS + 8), u32::from(SMALL_STACK));
    guest.vmcs.current.set(EXCEPTION_BITMAP, 1 << vector::SS);
    load(&guest, CODE, 32, to_user);
    load(&guest, USER, 32, |a| a.int(0x80).unwrap());
    assert_eq!(exit(&mut guest), Reason::ExceptionOrNmi);
    assert_eq!(guest.vmcs.current.get(EXITING_EVENT_ERROR_CODE), u32::from(SMALL_STACK));
    assert_eq!((guest.rip(), guest.vmcs.current.get(GUEST_RSP)), (USER, USER_STACK));
}

#[test]
fn ext_is_set_for_a_fault_in_the_delivery_of_an_external_event() {
    let mut guest = protected();
    gate(&guest, 0x41, 0, 0);
    guest.vmcs.current.set(EXCEPTION_BITMAP, 1 << vector::GP);
    guest.vmcs.current.set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    let event = InjectedEvent::new(EventKind::ExternalInterrupt, 0x41, false);
    guest.vmcs.current.set(INJECTED_EVENT_IDENTIFICATION, event);
    assert_eq!(exit(&mut guest), Reason::ExceptionOrNmi);
    assert_eq!(guest.vmcs.current.get(EXITING_EVENT_ERROR_CODE), 0x41 * 8 + 3);
    let original = RecordedEvent::new(EventKind::ExternalInterrupt, 0x41, false);
    assert_eq!(guest.vmcs.current.get(ORIGINAL_EVENT_IDENTIFICATION), original);
}

#[test]
fn a_task_gate_exits_with_its_tss() {
    let mut guest = protected();
    gate(&guest, 0x90, TASK_GATE, OTHER_TASK);
    load(&guest, CODE, 32, |a| a.int(0x90).unwrap());
    assert_eq!(exit(&mut guest), Reason::TaskSwitch);
    let vmcs = &guest.vmcs.current;
    let expected = TaskSwitch::default().with(TaskSwitch::SELECTOR, OTHER_TASK).with(TaskSwitch::SOURCE, 3);
    assert_eq!(vmcs.get(EXIT_QUALIFICATION), expected.0);
    assert_eq!(vmcs.get(VM_EXIT_INSTRUCTION_LENGTH), 2);
    assert!(vmcs.get(ORIGINAL_EVENT_IDENTIFICATION).get(RecordedEvent::VALID));
    assert_eq!(vmcs.get(GUEST_RIP), CODE);
}

#[test]
fn a_jump_to_a_tss_exits_and_a_busy_one_is_refused() {
    for (selector, busy) in [(OTHER_TASK, false), (TASK, true)] {
        let mut guest = protected();
        guest.memory.write(Pa(CODE), &[0xea, 0, 0, 0, 0, selector as u8, 0]);
        if busy {
            assert_eq!(handler(&mut guest), u64::from(vector::GP));
            assert_eq!(stack::<1>(&guest), [u32::from(selector)]);
        } else {
            assert_eq!(exit(&mut guest), Reason::TaskSwitch);
            let source = TaskSwitch(guest.vmcs.current.get(EXIT_QUALIFICATION)).get(TaskSwitch::SOURCE);
            assert_eq!(source, 2);
        }
    }
}

#[test]
fn a_nested_task_returns_by_iret_through_its_back_link() {
    let mut guest = protected();
    guest.memory.write(Pa(TSS), &OTHER_TASK.to_le_bytes());
    // The task that is returned to is busy.
    guest.memory.write(Pa(GDT + u64::from(OTHER_TASK) + 5), &[0x8b]);
    guest.vmcs.current.set(GUEST_RFLAGS, rflags::FIXED | rflags::NT);
    load(&guest, CODE, 32, |a| a.iretd().unwrap());
    assert_eq!(exit(&mut guest), Reason::TaskSwitch);
    let qualification = TaskSwitch(guest.vmcs.current.get(EXIT_QUALIFICATION));
    assert_eq!(qualification.get(TaskSwitch::SELECTOR), OTHER_TASK);
    assert_eq!(qualification.get(TaskSwitch::SOURCE), 1);
}

#[test]
fn a_call_gate_copies_parameters_to_the_inner_stack_and_ret_takes_them_back() {
    let mut guest = protected();
    load(&guest, CODE, 32, to_user);
    load(&guest, USER, 32, |a| {
        a.push(0x1111).unwrap();
        a.push(0x2222).unwrap();
        a.db(&[0x9a, 0, 0, 0, 0, CALL_GATE as u8 | 3, 0]).unwrap();
        a.ud2().unwrap();
    });
    // The gate leads to handler 0: look at the frame, then return.
    load(&guest, HANDLERS, 32, |a| {
        a.hlt().unwrap();
        a.retf_1(8).unwrap();
    });
    assert_eq!(handler(&mut guest), 0);
    let ret = USER as u32 + 5 + 5 + 7;
    let frame = [ret, u32::from(USER_CODE), 0x2222, 0x1111, USER_STACK as u32 - 8, u32::from(USER_DATA)];
    assert_eq!(stack::<6>(&guest), frame);
    let next = guest.rip() + 1;
    guest.vmcs.current.set(GUEST_RIP, next);
    assert_eq!(handler(&mut guest), u64::from(vector::UD));
    let frame = stack::<5>(&guest);
    assert_eq!(
        (frame[0], frame[1], frame[3]),
        (ret, u32::from(USER_CODE), USER_STACK as u32),
        "parameters are gone on both stacks"
    );
}

#[test]
fn a_conforming_segment_runs_at_the_callers_privilege() {
    let mut guest = protected();
    load(&guest, CODE, 32, to_user);
    guest.memory.write(Pa(USER), &[0xea, 0x10, 0, 0x11, 0, CONFORMING as u8, 0]);
    load(&guest, USER + 0x10, 32, |a| {
        a.mov(eax, cs).unwrap();
        a.cli().unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::GP));
    assert_eq!(guest.reg(RAX), u64::from(CONFORMING) | 3);
}

#[test]
fn a_16_bit_segment_has_16_bit_operands() {
    let mut guest = protected();
    guest.memory.write(Pa(CODE), &[0xea, 0, 0x60, 0, 0, CODE_16 as u8, 0]);
    load(&guest, 0x6000, 16, |a| {
        a.mov(ax, 0x1234).unwrap();
        a.push(ax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::Hlt);
    assert_eq!((guest.reg(RAX), guest.vmcs.current.get(GUEST_RSP)), (0x1234, STACK - 2));
}

#[test]
fn descriptors_are_looked_at_without_faults() {
    let mut guest = protected();
    load(&guest, CODE, 32, |a| {
        a.mov(eax, i32::from(KERNEL_CODE)).unwrap();
        a.lar(ebx, eax).unwrap();
        a.lsl(ecx, eax).unwrap();
        a.verw(ax).unwrap();
        a.setz(dl).unwrap();
        a.mov(eax, 0x1000).unwrap();
        a.lar(esi, eax).unwrap();
        a.setz(dh).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(exit(&mut guest), Reason::Hlt);
    assert_eq!((guest.reg(RBX), guest.reg(RCX)), (0x00c0_9b00, 0xffff_ffff));
    assert_eq!((guest.reg(RDX) & 0xffff, guest.reg(RSI)), (0, 0));
}

#[test]
fn the_task_register_is_marked_busy() {
    let mut guest = protected();
    load(&guest, CODE, 32, |a| {
        a.mov(eax, i32::from(OTHER_TASK)).unwrap();
        a.ltr(ax).unwrap();
        a.str(ecx).unwrap();
        a.ltr(ax).unwrap();
    });
    assert_eq!(handler(&mut guest), u64::from(vector::GP));
    assert_eq!(stack::<1>(&guest), [u32::from(OTHER_TASK)]);
    assert_eq!(guest.vmcs.current.get(GUEST_TR_BASE), TSS + 0x200);
    assert_eq!(guest.reg(RCX), u64::from(OTHER_TASK));
}

/// Code that goes to virtual-8086 mode at CS:IP with this IOPL.
fn to_virtual_8086(guest: &Guest, iopl: u64) {
    load(guest, CODE, 32, |a| {
        for selector in [4, 3, 2, 1] {
            a.push(selector).unwrap();
        }
        a.push(0x1000).unwrap();
        a.push(0x800).unwrap();
        a.push((rflags::VM | rflags::IF | iopl << 12) as i32).unwrap();
        a.push(0x1100).unwrap();
        a.push(0x10).unwrap();
        a.iretd().unwrap();
    });
}

#[test]
fn virtual_8086_mode_is_entered_by_iret_and_left_by_an_interrupt() {
    let mut guest = protected();
    gate(&guest, 0x21, INTERRUPT | DPL_3, KERNEL_CODE);
    to_virtual_8086(&guest, 3);
    load(&guest, 0x1_1010, 16, |a| {
        a.mov(ax, ds).unwrap();
        a.push(ax).unwrap();
        a.int(0x21).unwrap();
    });
    assert_eq!(handler(&mut guest), 0x21);
    let flags = (rflags::VM | rflags::IF | 3 << 12 | rflags::FIXED) as u32;
    assert_eq!(stack::<9>(&guest), [0x15, 0x1100, flags, 0x7fe, 0x1000, 1, 2, 3, 4]);
    assert_eq!((guest.reg(RAX) & 0xffff, guest.rflags() & rflags::VM), (2, 0));
    assert!(!guest.vmcs.current.get(GUEST_DS_ACCESS_RIGHTS).is_usable());
    let mut pushed = [0; 2];
    guest.memory.read(Pa(0x1_07fe), &mut pushed);
    assert_eq!(pushed, [2, 0]);
}

#[test]
fn virtual_8086_mode_with_less_iopl_traps_sensitive_instructions() {
    let mut guest = protected();
    to_virtual_8086(&guest, 0);
    load(&guest, 0x1_1010, 16, |a| a.pushf().unwrap());
    assert_eq!(handler(&mut guest), u64::from(vector::GP));
    assert_eq!(stack::<3>(&guest), [0, 0x10, 0x1100]);
}
