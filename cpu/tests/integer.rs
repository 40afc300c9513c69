//! Small integer programs, in 64-bit mode with paging on.

mod guest;

use guest::{CODE, Guest};
use iced_x86::code_asm::*;
use vmcs12::exit::{Cause, Reason};

#[test]
fn a_loop_runs_to_its_end_and_counts_its_instructions() {
    let mut guest = Guest::new();
    guest.load(|a| {
        let mut top = a.create_label();
        a.mov(rcx, 1000u64).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.dec(rcx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let exit = guest.run(1_000_000);
    assert_eq!(exit.cause, Cause::Vm(Reason::Hlt));
    assert_eq!(guest.reg(0), 500_500);
    // HLT exited: it has not retired. SDM Vol. 3, "Instructions That Cause VM Exits Conditionally".
    assert_eq!(exit.retired, 2 + 3 * 1000);
}

#[test]
fn a_budget_ends_exactly() {
    for budget in 1..200 {
        let mut guest = Guest::new();
        guest.load(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top).unwrap();
            a.inc(rax).unwrap();
            a.jmp(top).unwrap();
        });
        let exit = guest.run(budget);
        assert_eq!((exit.cause, exit.retired), (Cause::Budget, budget));
        assert_eq!(guest.reg(0), budget.div_ceil(2));
        assert_eq!(guest.rip(), CODE + if budget % 2 == 1 { 3 } else { 0 });
    }
}

#[test]
fn the_stack_of_the_host_does_not_grow() {
    let mut guest = Guest::new();
    guest.load(|a| {
        let (mut top, mut skip) = (a.create_label(), a.create_label());
        a.mov(rcx, 2_500_000u64).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(skip).unwrap();
        a.dec(rcx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut skip).unwrap();
        a.ret().unwrap();
    });
    let exit = guest.run(u64::MAX);
    assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::Hlt), 1 + 4 * 2_500_000));
}

#[test]
fn code_that_changes_itself_runs_as_changed() {
    let mut guest = Guest::new();
    guest.load(|a| {
        let mut top = a.create_label();
        a.lea(rsi, qword_ptr(top)).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.mov(ecx, 3u32).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(ebx, 1).unwrap(); // 83 C3 01: the immediate is the third byte
        a.inc(byte_ptr(rsi + 2)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    guest.run(1000);
    assert_eq!(guest.reg(3), 1 + 2 + 3);
}

#[test]
fn a_page_with_code_and_data_stays_right_however_often_its_data_is_written() {
    let mut guest = Guest::new();
    guest.load(|a| {
        let mut top = a.create_label();
        a.lea(rsi, qword_ptr(top)).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.mov(ecx, 1000u32).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(ebx, 1).unwrap();
        a.inc(dword_ptr(rsi + 0x800)).unwrap(); // beside the code, in its page
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.inc(byte_ptr(rsi + 2)).unwrap(); // the code itself, at last
        a.mov(ecx, 1u32).unwrap();
        a.cmp(ebx, 1000).unwrap();
        a.je(top).unwrap();
        a.mov(eax, dword_ptr(rsi + 0x800)).unwrap();
        a.hlt().unwrap();
    });
    let exit = guest.run(u64::MAX);
    assert_eq!((exit.cause, exit.retired), (Cause::Vm(Reason::Hlt), 3 + 4 * 1001 + 2 * 4 + 1));
    assert_eq!((guest.reg(0), guest.reg(3)), (1001, 1002));
}

#[test]
fn a_repeated_store_counts_each_iteration() {
    let mut guest = Guest::new();
    guest.load(|a| {
        a.mov(rdi, 0x30_0ff0u64).unwrap();
        a.mov(rcx, 100u64).unwrap();
        a.mov(al, 0x5a).unwrap();
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    });
    let exit = guest.run(50);
    assert_eq!((exit.cause, exit.retired, guest.reg(1)), (Cause::Budget, 50, 100 - 47));
    let exit = guest.run(1000);
    assert_eq!((exit.cause, exit.retired, guest.reg(7)), (Cause::Vm(Reason::Hlt), 53, 0x30_0ff0 + 100));
}
