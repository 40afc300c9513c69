//! Events for L1: injection, re-injection and windows. SDM Vol. 3, "VM-Entry Controls for Event Injection",
//! "Interrupt-Window Exiting and Virtual-Interrupt Delivery".

use vmcs12::arch::cr::cr0;
use vmcs12::arch::event::{EventKind, Exception, InjectedEvent, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::state::InterruptibilityState;
use vmcs12::control::{INTERRUPT_WINDOW_EXITING, NMI_WINDOW_EXITING};
use vmcs12::cpu_state::CpuState;
use vmcs12::field::Vmcs;
use vmcs12::field::table::*;

/// What of the pending events the next entry injects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The NMI.
    Nmi,
    /// The interrupt, now to be acknowledged.
    Interrupt,
    /// Neither.
    Nothing,
}

/// Has the next entry an event to inject already?
pub fn is_injecting(vmcs: &Vmcs) -> bool {
    vmcs.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::VALID)
}

/// Are maskable interrupts let through, blocking aside?
pub fn interrupts_enabled(vmcs: &Vmcs) -> bool {
    vmcs.get(GUEST_RFLAGS) & rflags::IF != 0
}

/// Chooses by priority, and asks for an exit when what has to wait can go in.
pub fn choose(vmcs: &mut Vmcs, nmi: bool, interrupt: bool) -> Choice {
    let blocked = vmcs.get(GUEST_INTERRUPTIBILITY_STATE);
    let injecting = is_injecting(vmcs);
    let shadow = blocked.get(InterruptibilityState::STI) || blocked.get(InterruptibilityState::MOV_SS);
    let choice = if nmi && !injecting && !shadow && !blocked.get(InterruptibilityState::NMI) {
        Choice::Nmi
    } else if interrupt && !injecting && !shadow && interrupts_enabled(vmcs) {
        Choice::Interrupt
    } else {
        Choice::Nothing
    };
    want_window(vmcs, NMI_WINDOW_EXITING, nmi && choice != Choice::Nmi);
    want_window(vmcs, INTERRUPT_WINDOW_EXITING, interrupt && choice != Choice::Interrupt);
    choice
}

fn want_window(vmcs: &mut Vmcs, window: vmcs12::control::Control, wanted: bool) {
    if vmcs.has(window) != wanted {
        vmcs.set_control(window, wanted);
    }
}

/// Injects a maskable interrupt.
pub fn inject_interrupt(vmcs: &mut Vmcs, vector: u8) {
    vmcs.set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent::new(EventKind::ExternalInterrupt, vector, false));
}

/// Injects an NMI.
pub fn inject_nmi(vmcs: &mut Vmcs) {
    vmcs.set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent::new(EventKind::Nmi, vector::NMI, false));
}

/// Injects a hardware exception. Real-address mode has no error codes. SDM Vol. 3, "Page-Fault Exceptions": CR2.
pub fn inject_exception(vmcs: &mut Vmcs, state: &mut CpuState, exception: Exception) {
    let protected = vmcs.get(GUEST_CR0) & cr0::PE != 0;
    let code = exception.error_code.filter(|_| protected);
    if exception.vector == vector::PF {
        state.cr2 = exception.address;
    }
    let event = InjectedEvent::new(EventKind::HardwareException, exception.vector, code.is_some());
    vmcs.set(INJECTED_EVENT_IDENTIFICATION, event);
    vmcs.set(INJECTED_EVENT_ERROR_CODE, code.unwrap_or(0));
}

/// An exit cut the delivery of an event short: the next entry delivers it again.
/// SDM Vol. 3, "Information for VM Exits That Occur During Event Delivery".
pub fn reinject(vmcs: &mut Vmcs) {
    let original = vmcs.get(ORIGINAL_EVENT_IDENTIFICATION);
    if !original.get(RecordedEvent::VALID) {
        return;
    }
    let event = InjectedEvent(original.with(RecordedEvent::NMI_UNBLOCKING, false).0);
    vmcs.set(INJECTED_EVENT_IDENTIFICATION, event);
    vmcs.set(INJECTED_EVENT_ERROR_CODE, vmcs.get(ORIGINAL_EVENT_ERROR_CODE));
    vmcs.set(VM_ENTRY_INSTRUCTION_LENGTH, vmcs.get(VM_EXIT_INSTRUCTION_LENGTH));
    if event.get(InjectedEvent::KIND) == EventKind::Nmi {
        let state = vmcs.get(GUEST_INTERRUPTIBILITY_STATE);
        vmcs.set(GUEST_INTERRUPTIBILITY_STATE, state.with(InterruptibilityState::NMI, false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Vmcs {
        let mut vmcs = Vmcs::default();
        vmcs.set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
        vmcs.set(GUEST_CR0, cr0::PE);
        vmcs
    }

    fn windows(vmcs: &Vmcs) -> (bool, bool) {
        (vmcs.has(NMI_WINDOW_EXITING), vmcs.has(INTERRUPT_WINDOW_EXITING))
    }

    #[test]
    fn an_nmi_comes_before_an_interrupt_which_waits_for_its_window() {
        let mut vmcs = ready();
        assert_eq!(choose(&mut vmcs, true, true), Choice::Nmi);
        assert_eq!(windows(&vmcs), (false, true));
        assert_eq!(choose(&mut vmcs, false, true), Choice::Interrupt);
        assert_eq!(windows(&vmcs), (false, false));
    }

    #[test]
    fn what_is_blocked_waits() {
        let block = |bit| InterruptibilityState::default().with(bit, true);
        for (state, flags) in [
            (block(InterruptibilityState::STI), rflags::IF),
            (block(InterruptibilityState::MOV_SS), rflags::IF),
            (InterruptibilityState::default(), 0),
        ] {
            let mut vmcs = ready();
            vmcs.set(GUEST_RFLAGS, flags);
            vmcs.set(GUEST_INTERRUPTIBILITY_STATE, state);
            assert_eq!(choose(&mut vmcs, false, true), Choice::Nothing);
            assert_eq!(windows(&vmcs), (false, true));
        }
        let mut vmcs = ready();
        vmcs.set(GUEST_INTERRUPTIBILITY_STATE, block(InterruptibilityState::NMI));
        assert_eq!(choose(&mut vmcs, true, false), Choice::Nothing);
        assert_eq!(windows(&vmcs), (true, false));
    }

    #[test]
    fn one_entry_injects_one_event() {
        let mut vmcs = ready();
        inject_exception(&mut vmcs, &mut CpuState::default(), Exception::UD);
        assert_eq!(choose(&mut vmcs, true, true), Choice::Nothing);
        assert_eq!(windows(&vmcs), (true, true));
    }

    #[test]
    fn a_page_fault_sets_cr2_and_real_mode_has_no_error_codes() {
        let (mut vmcs, mut state) = (ready(), CpuState::default());
        inject_exception(&mut vmcs, &mut state, Exception::pf(0x1234, 2));
        assert_eq!((state.cr2, vmcs.get(INJECTED_EVENT_ERROR_CODE)), (0x1234, 2));
        vmcs.set(GUEST_CR0, 0);
        inject_exception(&mut vmcs, &mut state, Exception::gp(8));
        assert!(!vmcs.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::HAS_ERROR_CODE));
    }

    #[test]
    fn an_event_whose_delivery_was_cut_short_goes_in_again() {
        let mut vmcs = ready();
        reinject(&mut vmcs);
        assert!(!is_injecting(&vmcs));
        let event = RecordedEvent::new(EventKind::HardwareException, vector::PF, true);
        vmcs.set(ORIGINAL_EVENT_IDENTIFICATION, event.with(RecordedEvent::NMI_UNBLOCKING, true));
        vmcs.set(ORIGINAL_EVENT_ERROR_CODE, 2);
        reinject(&mut vmcs);
        assert_eq!(vmcs.get(INJECTED_EVENT_IDENTIFICATION).0, event.0);
        assert_eq!(vmcs.get(INJECTED_EVENT_ERROR_CODE), 2);
    }

    #[test]
    fn an_nmi_that_goes_in_again_is_not_blocked_by_itself() {
        let mut vmcs = ready();
        let blocked = InterruptibilityState::default().with(InterruptibilityState::NMI, true);
        vmcs.set(GUEST_INTERRUPTIBILITY_STATE, blocked);
        vmcs.set(ORIGINAL_EVENT_IDENTIFICATION, RecordedEvent::new(EventKind::Nmi, 2, false));
        reinject(&mut vmcs);
        assert_eq!(vmcs.get(GUEST_INTERRUPTIBILITY_STATE), InterruptibilityState::default());
    }
}
