//! Events that arrive in L2, that L1 injects, and that are cut short. SDM Vol. 3, "VM Exits", "Event Injection".

use crate::asm;
use crate::code::*;
use crate::l1::{self, guest};
use crate::place::*;
use iced_x86::code_asm::*;
use testudo::config::End;
use vmcs12::arch::rflags;
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::table::*;

const EXCEPTION_OR_NMI: u64 = Reason::ExceptionOrNmi as u64;
const EXTERNAL_INTERRUPT: u64 = Reason::ExternalInterrupt as u64;
const INTERRUPT_WINDOW: u64 = Reason::InterruptWindow as u64;
const NMI_WINDOW: u64 = Reason::NmiWindow as u64;
const VMCALL: u64 = Reason::Vmcall as u64;
const VIOLATION: u64 = Reason::EptViolation as u64;
const TIMER: u64 = Reason::VmxPreemptionTimerExpired as u64;
const TPR_BELOW_THRESHOLD: u64 = Reason::TprBelowThreshold as u64;

const VALID: u64 = 1 << 31;
const ERROR_CODE: u64 = 1 << 11;
const NMI: u64 = 2 << 8 | 2;
const HARDWARE: u64 = 3 << 8;
const SOFTWARE_INTERRUPT: u64 = 4 << 8;
const SOFTWARE_EXCEPTION: u64 = 6 << 8;
/// A vector of interrupts.
const VECTOR: u8 = 0x51;

const ENABLED: u64 = rflags::FIXED | rflags::IF;
const SEND_NMI: u64 = 4 << 8;
const BLOCKED_BY_NMI: u64 = 1 << 3;

/// Loops until an event.
fn for_ever(l2: &mut Code) {
    let mut here = l2.label();
    l2.place(&mut here);
    asm!(l2; jmp(here));
}

/// L2 may use the APIC.
fn pass_msrs_through(l1: &mut Code) {
    l1.enable_apic(VECTOR).set(USE_MSR_BITMAPS).write(ADDRESS_OF_MSR_BITMAPS, MSR_BITMAP);
}

/// Takes what interrupts wait for L1.
fn open_window(l1: &mut Code) {
    asm!(l1; sti(); nop(); cli());
}

#[test]
fn an_external_interrupt_exits_and_stays_pending_without_acknowledge() {
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).set(EXTERNAL_INTERRUPT_EXITING).wrmsr(msr::X2APIC_INITIAL_COUNT, 1000);
            l1.enter().read(EXIT_REASON).read(EXITING_EVENT_IDENTIFICATION);
            open_window(l1);
        },
        for_ever,
    );
    assert_eq!((log[0], log[1] & VALID, log[2]), (EXTERNAL_INTERRUPT, 0, interrupt(VECTOR)));
}

#[test]
fn with_acknowledge_an_external_interrupt_exit_tells_the_vector() {
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).set(EXTERNAL_INTERRUPT_EXITING).set(ACKNOWLEDGE_INTERRUPT_ON_EXIT);
            l1.wrmsr(msr::X2APIC_INITIAL_COUNT, 1000);
            l1.enter().read(EXIT_REASON).read(EXITING_EVENT_IDENTIFICATION);
            open_window(l1);
        },
        for_ever,
    );
    assert_eq!(log, [EXTERNAL_INTERRUPT, VALID | u64::from(VECTOR)]);
}

#[test]
fn an_interrupt_that_waits_at_the_entry_exits_before_l2s_first_instruction() {
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).set(EXTERNAL_INTERRUPT_EXITING).wrmsr(msr::X2APIC_SELF_IPI, VECTOR.into());
            l1.enter().read(EXIT_REASON).read(GUEST_RIP);
        },
        |l2| asm!(l2; nop()),
    );
    assert_eq!(log, [EXTERNAL_INTERRUPT, CODE_L2]);
}

#[test]
fn without_external_interrupt_exiting_l2_takes_l1s_interrupt() {
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).wrmsr(msr::X2APIC_SELF_IPI, VECTOR.into()).enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; sti(); nop(); nop()),
    );
    assert_eq!(log, [interrupt_in_l2(VECTOR), VMCALL]);
}

#[test]
fn the_interrupt_window_exits_when_if_is_1_and_sti_no_longer_blocks() {
    let log = guest(
        |l1| {
            l1.set(INTERRUPT_WINDOW_EXITING).enter().read(EXIT_REASON).read(GUEST_RIP);
            l1.clear(INTERRUPT_WINDOW_EXITING).enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; nop(); sti(); nop(); nop()),
    );
    assert_eq!(log, [INTERRUPT_WINDOW, CODE_L2 + 3, VMCALL]);
}

#[test]
fn an_interrupt_window_that_is_open_exits_before_the_first_instruction() {
    let log = guest(
        |l1| {
            l1.set(INTERRUPT_WINDOW_EXITING).write(GUEST_RFLAGS, ENABLED);
            l1.enter().read(EXIT_REASON).read(GUEST_RIP);
        },
        |_| {},
    );
    assert_eq!(log, [INTERRUPT_WINDOW, CODE_L2]);
}

#[test]
fn an_nmi_exits_and_blocks_nmis_in_l1_until_iret() {
    let log = guest(
        |l1| {
            pass_msrs_through(l1);
            l1.set(NMI_EXITING).enter().read(EXIT_REASON).read(EXITING_EVENT_IDENTIFICATION);
            l1.wrmsr(msr::X2APIC_ICR, SEND_NMI).log(1);
            let mut unblocked = l1.label();
            asm!(l1; mov(rcx, rsp); push(i32::from(DATA_SELECTOR)); push(rcx); pushfq(); push(i32::from(CODE_SELECTOR));
                lea(rax, ptr(unblocked)); push(rax); iretq());
            l1.place(&mut unblocked);
            l1.log(2);
        },
        |l2| {
            l2.wrmsr(msr::X2APIC_ICR, SEND_NMI);
            for_ever(l2);
        },
    );
    assert_eq!(log, [EXCEPTION_OR_NMI, VALID | NMI, 1, interrupt(2), 2]);
}

#[test]
fn without_nmi_exiting_l2_takes_the_nmi_and_iret_ends_its_blocking() {
    let log = guest(
        |l1| {
            pass_msrs_through(l1);
            l1.enter().read(EXIT_REASON).read(GUEST_INTERRUPTIBILITY_STATE);
        },
        |l2| {
            l2.wrmsr(msr::X2APIC_ICR, SEND_NMI);
            asm!(l2; nop());
        },
    );
    assert_eq!(log, [interrupt_in_l2(2), VMCALL, 0]);
}

#[test]
fn an_injected_nmi_blocks_virtual_nmis_and_the_window_opens_at_iret() {
    let log = guest(
        |l1| {
            l1.set(NMI_EXITING).set(VIRTUAL_NMIS).set(NMI_WINDOW_EXITING);
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | NMI);
            l1.enter().read(EXIT_REASON).read(GUEST_RIP).read(GUEST_INTERRUPTIBILITY_STATE);
            l1.clear(NMI_WINDOW_EXITING).enter().read(EXIT_REASON);
        },
        |_| {},
    );
    assert_eq!(log, [interrupt_in_l2(2), NMI_WINDOW, CODE_L2, 0, VMCALL]);
}

#[test]
fn an_entry_with_blocking_by_nmi_holds_the_window_closed() {
    let log = guest(
        |l1| {
            l1.set(NMI_EXITING).set(VIRTUAL_NMIS).set(NMI_WINDOW_EXITING);
            l1.write(GUEST_INTERRUPTIBILITY_STATE, BLOCKED_BY_NMI);
            l1.enter().read(EXIT_REASON).read(GUEST_INTERRUPTIBILITY_STATE);
        },
        |_| {},
    );
    assert_eq!(log, [VMCALL, BLOCKED_BY_NMI]);
}

#[test]
fn an_injected_external_interrupt_is_delivered_and_the_field_becomes_invalid() {
    let log = guest(
        |l1| {
            l1.write(GUEST_RFLAGS, ENABLED).write(INJECTED_EVENT_IDENTIFICATION, VALID | 0x60);
            l1.enter().read(EXIT_REASON).read(INJECTED_EVENT_IDENTIFICATION).read(GUEST_RFLAGS);
        },
        |_| {},
    );
    assert_eq!(log, [interrupt_in_l2(0x60), VMCALL, 0x60, ENABLED]);
}

#[test]
fn an_injected_exception_pushes_its_error_code() {
    let log = guest(
        |l1| {
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | HARDWARE | ERROR_CODE | 13);
            l1.write(INJECTED_EVENT_ERROR_CODE, 0x18).enter().read(EXIT_REASON);
        },
        |_| {},
    );
    assert_eq!(log, [exception_in_l2(13, 0x18), VMCALL]);
}

#[test]
fn an_injected_exception_does_not_exit_whatever_the_bitmap_says() {
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, u32::MAX.into());
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | HARDWARE | 6).enter().read(EXIT_REASON);
        },
        |_| {},
    );
    assert_eq!(log, [exception_in_l2(6, 0), VMCALL]);
}

#[test]
fn an_injected_page_fault_leaves_cr2_as_l1_wrote_it() {
    let log = guest(
        |l1| {
            asm!(l1; mov(eax, 0x7654u32); mov(cr2, rax));
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | HARDWARE | ERROR_CODE | 14);
            l1.write(INJECTED_EVENT_ERROR_CODE, 6).enter();
            asm!(l1; mov(rax, cr2));
            l1.log_rax();
        },
        |_| {},
    );
    assert_eq!(log, [exception_in_l2(14, 6), 0x7654]);
}

#[test]
fn an_injected_software_interrupt_returns_behind_its_instruction() {
    let log = guest(
        |l1| {
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | SOFTWARE_INTERRUPT | u64::from(VECTOR));
            l1.write(VM_ENTRY_INSTRUCTION_LENGTH, 2).enter().read(EXIT_REASON).read(GUEST_RIP);
        },
        |l2| asm!(l2; ud2()),
    );
    assert_eq!(log, [interrupt_in_l2(VECTOR), VMCALL, CODE_L2 + 2]);
}

#[test]
fn an_injected_breakpoint_returns_behind_int3() {
    let log = guest(
        |l1| {
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | SOFTWARE_EXCEPTION | 3);
            l1.write(VM_ENTRY_INSTRUCTION_LENGTH, 1).enter().read(EXIT_REASON).skip();
            l1.enter().read(GUEST_RIP);
        },
        |l2| asm!(l2; int3()),
    );
    assert_eq!(log, [exception_in_l2(3, 0), VMCALL, CODE_L2 + 1]);
}

#[test]
fn an_exit_during_delivery_records_the_event() {
    let event = VALID | SOFTWARE_INTERRUPT | u64::from(VECTOR);
    let log = guest(
        |l1| {
            l1.store(EPT_PT, 0).write(GUEST_IDTR_BASE, PAGES);
            l1.enter().read(EXIT_REASON).read(ORIGINAL_EVENT_IDENTIFICATION).read(VM_EXIT_INSTRUCTION_LENGTH);
            l1.read(GUEST_RIP).read(GUEST_PHYSICAL_ADDRESS);
        },
        |l2| asm!(l2; int(i32::from(VECTOR))),
    );
    assert_eq!(log, [VIOLATION, event, 2, CODE_L2, PAGES + 16 * u64::from(VECTOR)]);
}

#[test]
fn an_injected_event_that_is_cut_short_is_recorded_with_its_error_code_and_can_be_injected_again() {
    let event = VALID | HARDWARE | ERROR_CODE | 13;
    let log = guest(
        |l1| {
            l1.store(EPT_PT, 0).write(GUEST_RSP, PAGES + 0x1000);
            l1.write(INJECTED_EVENT_IDENTIFICATION, event).write(INJECTED_EVENT_ERROR_CODE, 0x20);
            l1.enter().read(EXIT_REASON).read(ORIGINAL_EVENT_IDENTIFICATION).read(ORIGINAL_EVENT_ERROR_CODE);
            l1.store(EPT_PT, PAGES | 0x37);
            l1.write(INJECTED_EVENT_IDENTIFICATION, event).enter().read(EXIT_REASON);
            l1.read(ORIGINAL_EVENT_IDENTIFICATION);
        },
        |_| {},
    );
    assert_eq!(log[..3], [VIOLATION, event, 0x20]);
    assert_eq!((&log[3..5], log[5] & VALID), (&[exception_in_l2(13, 0x20), VMCALL][..], 0));
}

#[test]
fn an_exception_during_delivery_that_exits_records_both() {
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, 1 << 14).write(GUEST_IDTR_BASE, NOT_MAPPED);
            l1.enter()
                .read(EXIT_REASON)
                .read(EXITING_EVENT_IDENTIFICATION)
                .read(ORIGINAL_EVENT_IDENTIFICATION);
            l1.read(EXIT_QUALIFICATION);
        },
        |l2| asm!(l2; ud2()),
    );
    let page_fault = VALID | HARDWARE | ERROR_CODE | 14;
    assert_eq!(log, [EXCEPTION_OR_NMI, page_fault, VALID | HARDWARE | 6, NOT_MAPPED + 16 * 6]);
}

#[test]
fn a_double_fault_exits_if_its_bit_in_the_bitmap_is_1() {
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, 1 << 8).write(GUEST_IDTR_BASE, NOT_MAPPED);
            l1.enter().read(EXIT_REASON).read(EXITING_EVENT_IDENTIFICATION).read(EXITING_EVENT_ERROR_CODE);
        },
        |l2| asm!(l2; mov(byte_ptr(NOT_MAPPED as u32), 0)),
    );
    assert_eq!(log, [EXCEPTION_OR_NMI, VALID | HARDWARE | ERROR_CODE | 8, 0]);
}

#[test]
fn the_preemption_timer_exits_when_it_has_counted_down() {
    let log = guest(
        |l1| {
            l1.set(ACTIVATE_VMX_PREEMPTION_TIMER).write(VMX_PREEMPTION_TIMER_VALUE, 100);
            l1.enter().read(EXIT_REASON).read(VMX_PREEMPTION_TIMER_VALUE);
        },
        for_ever,
    );
    assert_eq!(log, [TIMER, 100], "the value is not saved without its control");
}

#[test]
fn a_preemption_timer_of_0_exits_before_the_first_instruction() {
    let log = guest(
        |l1| {
            l1.set(ACTIVATE_VMX_PREEMPTION_TIMER).write(VMX_PREEMPTION_TIMER_VALUE, 0);
            l1.enter().read(EXIT_REASON).read(GUEST_RIP);
        },
        |_| {},
    );
    assert_eq!(log, [TIMER, CODE_L2]);
}

#[test]
fn the_preemption_timer_is_saved_by_its_control() {
    let log = guest(
        |l1| {
            l1.set(ACTIVATE_VMX_PREEMPTION_TIMER).set(SAVE_VMX_PREEMPTION_TIMER_VALUE);
            l1.write(VMX_PREEMPTION_TIMER_VALUE, 1_000_000).enter().read(EXIT_REASON);
            l1.read(VMX_PREEMPTION_TIMER_VALUE);
        },
        |l2| l2.spin(10_000).done(),
    );
    assert_eq!(log[0], VMCALL);
    assert!((900_000..1_000_000).contains(&log[1]), "{}", log[1]);
}

#[test]
fn an_l2_that_is_entered_halted_waits_for_an_interrupt() {
    const HALTED: u64 = 1;
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).set(EXTERNAL_INTERRUPT_EXITING).write(GUEST_ACTIVITY_STATE, HALTED);
            l1.wrmsr(msr::X2APIC_INITIAL_COUNT, 1000);
            l1.enter().read(EXIT_REASON).read(GUEST_RIP).read(GUEST_ACTIVITY_STATE);
        },
        |_| {},
    );
    assert_eq!(log, [EXTERNAL_INTERRUPT, CODE_L2, HALTED]);
}

#[test]
fn an_injected_event_wakes_a_halted_l2() {
    const HALTED: u64 = 1;
    let log = guest(
        |l1| {
            l1.write(GUEST_ACTIVITY_STATE, HALTED).write(GUEST_RFLAGS, ENABLED);
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | 0x60);
            l1.enter().read(EXIT_REASON).read(GUEST_ACTIVITY_STATE);
        },
        |_| {},
    );
    assert_eq!(log, [interrupt_in_l2(0x60), VMCALL, 0]);
}

#[test]
fn hlt_without_hlt_exiting_halts_l2_until_an_interrupt() {
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).set(EXTERNAL_INTERRUPT_EXITING).wrmsr(msr::X2APIC_INITIAL_COUNT, 1000);
            l1.enter().read(EXIT_REASON).read(GUEST_RIP).read(GUEST_ACTIVITY_STATE);
        },
        |l2| asm!(l2; hlt()),
    );
    assert_eq!(log, [EXTERNAL_INTERRUPT, CODE_L2 + 1, 1]);
}

#[test]
fn the_preemption_timer_expires_while_l2_is_halted() {
    let log = guest(
        |l1| {
            l1.set(ACTIVATE_VMX_PREEMPTION_TIMER).write(VMX_PREEMPTION_TIMER_VALUE, 1000);
            l1.enter().read(EXIT_REASON).read(GUEST_ACTIVITY_STATE);
        },
        |l2| asm!(l2; hlt()),
    );
    assert_eq!(log, [TIMER, 1]);
}

#[test]
fn with_a_tpr_shadow_cr8_is_the_virtual_apics() {
    const TPR: u64 = VIRTUAL_APIC + 0x80;
    let log = guest(
        |l1| {
            l1.set(USE_TPR_SHADOW).write(VIRTUAL_APIC_ADDRESS, VIRTUAL_APIC).store(TPR, 0x50);
            l1.enter().log_memory(TPR);
            asm!(l1; mov(rax, cr8));
            l1.log_rax();
        },
        |l2| {
            asm!(l2; mov(rax, cr8));
            l2.log_rax();
            asm!(l2; mov(eax, 7u32); mov(cr8, rax));
        },
    );
    assert_eq!(log, [5, 0x70, 0]);
}

#[test]
fn a_tpr_that_falls_below_the_threshold_exits_behind_the_instruction() {
    let log = guest(
        |l1| {
            l1.set(USE_TPR_SHADOW).write(VIRTUAL_APIC_ADDRESS, VIRTUAL_APIC).write(TPR_THRESHOLD, 3);
            l1.store(VIRTUAL_APIC + 0x80, 0x50).enter().read(EXIT_REASON).read(GUEST_RIP);
        },
        |l2| asm!(l2; mov(eax, 4u32); mov(cr8, rax); mov(eax, 2u32); mov(cr8, rax); nop()),
    );
    assert_eq!(log, [TPR_BELOW_THRESHOLD, CODE_L2 + 18]);
}

#[test]
fn a_single_step_exits_as_a_debug_exception() {
    const BS: u64 = 1 << 14;
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, 1 << 1).write(GUEST_RFLAGS, rflags::FIXED | rflags::TF);
            l1.enter().read(EXIT_REASON).read(EXIT_QUALIFICATION).read(GUEST_RIP);
            asm!(l1; mov(rax, dr6); and(eax, BS as i32));
            l1.log_rax();
        },
        |l2| asm!(l2; nop(); nop()),
    );
    assert_eq!(log, [EXCEPTION_OR_NMI, BS, CODE_L2 + 1, 0], "DR6 is not written by an exception that exits");
}

#[test]
fn a_pending_debug_exception_of_the_entry_is_delivered_first() {
    const BS: u64 = 1 << 14;
    let log = guest(
        |l1| {
            l1.write(EXCEPTION_BITMAP, 1 << 1).write(GUEST_RFLAGS, rflags::FIXED | rflags::TF);
            l1.write(GUEST_PENDING_DEBUG_EXCEPTIONS, BS);
            l1.enter().read(EXIT_REASON).read(EXIT_QUALIFICATION).read(GUEST_RIP);
        },
        |_| {},
    );
    assert_eq!(log, [EXCEPTION_OR_NMI, BS, CODE_L2]);
}

#[test]
fn an_interrupt_that_l1_does_not_intercept_wakes_a_halted_l2() {
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).wrmsr(msr::X2APIC_INITIAL_COUNT, 1000).enter().read(EXIT_REASON);
        },
        |l2| asm!(l2; sti(); hlt(); cli()),
    );
    assert_eq!(log, [interrupt_in_l2(VECTOR), VMCALL]);
}

#[test]
fn an_interrupt_that_l1_does_not_intercept_waits_for_if() {
    let log = guest(
        |l1| {
            l1.enable_apic(VECTOR).wrmsr(msr::X2APIC_SELF_IPI, VECTOR.into()).enter().read(EXIT_REASON);
        },
        |l2| {
            l2.log(1).spin(100).log(2);
            asm!(l2; sti(); nop());
            l2.log(3);
        },
    );
    assert_eq!(log, [1, 2, interrupt_in_l2(VECTOR), 3, VMCALL]);
}

#[test]
fn an_init_signal_exits() {
    const SEND_INIT: u64 = 0x4500;
    let log = guest(
        |l1| {
            pass_msrs_through(l1);
            l1.enter().read(EXIT_REASON);
        },
        |l2| {
            l2.wrmsr(msr::X2APIC_ICR, SEND_INIT);
            for_ever(l2);
        },
    );
    assert_eq!(log, [Reason::InitSignal as u64]);
}

#[test]
fn a_page_fault_of_an_iret_that_had_unblocked_nmis_says_so() {
    const NMI_UNBLOCKING: u64 = 1 << 12;
    let log = guest(
        |l1| {
            l1.set(NMI_EXITING)
                .set(VIRTUAL_NMIS)
                .write(GUEST_RSP, NOT_MAPPED)
                .write(EXCEPTION_BITMAP, 1 << 14);
            l1.write(GUEST_INTERRUPTIBILITY_STATE, BLOCKED_BY_NMI);
            l1.enter()
                .read(EXIT_REASON)
                .read(EXITING_EVENT_IDENTIFICATION)
                .read(GUEST_INTERRUPTIBILITY_STATE);
        },
        |l2| asm!(l2; iretq()),
    );
    let event = VALID | NMI_UNBLOCKING | HARDWARE | ERROR_CODE | 14;
    assert_eq!(log, [EXCEPTION_OR_NMI, event, 0]);
}

#[test]
fn the_preemption_timer_comes_before_the_interrupt_window() {
    let log = guest(
        |l1| {
            l1.set(ACTIVATE_VMX_PREEMPTION_TIMER).write(VMX_PREEMPTION_TIMER_VALUE, 0);
            l1.set(INTERRUPT_WINDOW_EXITING).write(GUEST_RFLAGS, ENABLED);
            l1.enter().read(EXIT_REASON);
            l1.clear(ACTIVATE_VMX_PREEMPTION_TIMER).enter().read(EXIT_REASON);
        },
        |_| {},
    );
    assert_eq!(log, [TIMER, INTERRUPT_WINDOW]);
}

#[test]
fn an_injected_event_is_delivered_before_a_window_exits() {
    let log = guest(
        |l1| {
            l1.set(INTERRUPT_WINDOW_EXITING).write(GUEST_RFLAGS, ENABLED);
            l1.write(INJECTED_EVENT_IDENTIFICATION, VALID | HARDWARE | 6).enter().read(EXIT_REASON);
        },
        |_| {},
    );
    // The handler is entered through an interrupt gate, which clears IF.
    assert_eq!(log, [exception_in_l2(6, 0), VMCALL]);
}

#[test]
fn a_msr_that_cannot_be_loaded_at_an_exit_is_a_vmx_abort() {
    const LOADING_HOST_MSRS: u32 = 4;
    let end = l1::end_of_guest(
        |l1| {
            l1.store(MSR_LIST, 0xc000_0100).store(MSR_LIST + 8, 0);
            l1.write(VM_EXIT_MSR_LOAD_ADDRESS, MSR_LIST).write(VM_EXIT_MSR_LOAD_COUNT, 1).enter();
        },
        |_| {},
    );
    assert_eq!(end, End::VmxAbort(LOADING_HOST_MSRS));
}

#[test]
fn an_event_that_is_delivered_through_an_idt_without_memory_ends_in_a_triple_fault() {
    const HOLE: u64 = 0x9000_0000;
    let log = guest(
        |l1| {
            l1.store(EPT_PT, HOLE | 0x7).write(GUEST_IDTR_BASE, PAGES);
            l1.enter().read(EXIT_REASON).read(GUEST_RIP);
        },
        |l2| asm!(l2; ud2()),
    );
    assert_eq!(log, [Reason::TripleFault as u64, CODE_L2], "every gate is all ones");
}

#[test]
fn an_event_is_delivered_to_a_stack_without_memory() {
    const HOLE: u64 = 0x9000_0000;
    const FRAME: u64 = 5 * 8;
    let log = guest(
        |l1| {
            l1.store(EPT_PT, HOLE | 0x7).write(GUEST_RSP, PAGES + 0x1000).set(MONITOR_TRAP_FLAG);
            l1.enter().read(EXIT_REASON).read(GUEST_RSP);
        },
        |l2| asm!(l2; ud2()),
    );
    assert_eq!(log, [Reason::MonitorTrapFlag as u64, PAGES + 0x1000 - FRAME]);
}
