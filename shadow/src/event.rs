//! Events around L2: what an exit cut short is injected again, and what waits for L1 or L2 is taken before an entry.
//! SDM Vol. 3, "VM-Entry Controls for Event Injection", "Information for VM Exits That Occur During Event Delivery",
//! "External Interrupts and NMIs" in VMX non-root operation.

use crate::engine::{Decision, Engine, Host, L2Exit, Msrs, Pending, Taken};
use crate::reflect::Exit12;
use vmcs12::addr::{Linear, Physical};
use vmcs12::arch::event::{EventKind, Exception, InjectedEvent, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::state::{Activity, InterruptibilityState};
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::exit::qualification::EptViolation;
use vmcs12::field::{Vmcs, table::*};

/// What waits, in the order of priority, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// The processor sees to it, or there is nothing.
    Enter,
    /// An exit for L1.
    Exit(Exit12, Taken),
    /// L2 gets the event itself.
    Inject(InjectedEvent, Taken),
    /// L2 gets the interrupt when it can take one.
    OpenInterruptWindow,
    /// L2 gets the NMI when it can take one.
    OpenNmiWindow,
}

impl Engine {
    /// Before each entry to L2: what waits is shown to L1, given to L2, or goes on waiting.
    pub fn before_l2_entry<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        pending: Pending,
    ) -> Decision {
        let Some(vmcs12) = host.vmcs01.linked.as_deref() else { return Decision::Enter(Taken::Nothing) };
        if self.vmcs02.current.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::VALID) {
            // It is delivered before anything else is looked at.
            return if pending.any() { Decision::Deliver } else { Decision::Enter(Taken::Nothing) };
        }
        if is_inactive(&self.vmcs02.current) {
            self.count_while_inactive(host.tsc);
        }
        let vmcs02 = &mut *self.vmcs02.current;
        let next = next(vmcs02, vmcs12, pending);
        open(vmcs02, INTERRUPT_WINDOW_EXITING, vmcs12, next == Next::OpenInterruptWindow);
        open(vmcs02, NMI_WINDOW_EXITING, vmcs12, next == Next::OpenNmiWindow);
        if next == Next::Enter && is_inactive(vmcs02) {
            return Decision::Halted;
        }
        self.count_while_active();
        let vmcs02 = &mut *self.vmcs02.current;
        match next {
            Next::Enter | Next::OpenInterruptWindow | Next::OpenNmiWindow => Decision::Enter(Taken::Nothing),
            Next::Inject(event, taken) => {
                inject(vmcs02, event);
                Decision::Enter(taken)
            }
            Next::Exit(exit, taken) => match self.reflect(host, exit) {
                L2Exit::Abort(abort) => Decision::Abort(abort),
                L2Exit::Reflected | L2Exit::Resumed | L2Exit::L0(_) => Decision::Reflected(taken),
            },
        }
    }

    /// L0 emulated an instruction of L2 and it faults: L1 gets an exit if it intercepts the exception, else L2 gets the
    /// exception.
    pub fn raise<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        exception: Exception,
    ) -> L2Exit {
        let Some(vmcs12) = host.vmcs01.linked.as_deref() else { return L2Exit::Resumed };
        let has_code = exception.error_code.is_some();
        let error_code = exception.error_code.unwrap_or(0);
        if intercepts(vmcs12, exception.vector, error_code) {
            let event = RecordedEvent::new(EventKind::HardwareException, exception.vector, has_code);
            let exit = Exit12::event(Reason::ExceptionOrNmi, event, error_code, exception.address);
            return self.reflect(host, exit);
        }
        if exception.vector == vector::PF {
            host.state.cr2 = exception.address;
        }
        let vmcs02 = &mut *self.vmcs02.current;
        vmcs02.set(INJECTED_EVENT_ERROR_CODE, error_code);
        inject(vmcs02, InjectedEvent::new(EventKind::HardwareException, exception.vector, has_code));
        L2Exit::Resumed
    }
}

/// SDM Vol. 3, "Exception Bitmap".
fn intercepts(vmcs12: &Vmcs, vector: u8, error_code: u32) -> bool {
    let listed = vmcs12.get(EXCEPTION_BITMAP) >> (vector & 31) & 1 != 0;
    let matches =
        error_code & vmcs12.get(PAGE_FAULT_ERROR_CODE_MASK) == vmcs12.get(PAGE_FAULT_ERROR_CODE_MATCH);
    if vector == vector::PF { listed == matches } else { listed }
}

/// The order is the manual's: INIT, timer, NMI window, NMI, interrupt window, interrupt. The processor makes the exits
/// for the timer and for windows that L1 opened, before the first instruction of L2; where L2 is not active, and so
/// does not run, they are synthesised.
fn next(vmcs02: &Vmcs, vmcs12: &Vmcs, pending: Pending) -> Next {
    let activity = Activity::from_raw(vmcs02.get(GUEST_ACTIVITY_STATE)).unwrap_or_default();
    let blocked_by_activity = activity == Activity::Shutdown;
    if pending.init && activity != Activity::WaitForSipi {
        return Next::Exit(Exit12::plain(Reason::InitSignal), Taken::Init);
    }
    let by_processor = |reason| match activity {
        Activity::Active => Next::Enter,
        _ => Next::Exit(Exit12::plain(reason), Taken::Nothing),
    };
    if activity == Activity::WaitForSipi {
        return Next::Enter;
    }
    if timer_has_expired(vmcs02) {
        return by_processor(Reason::VmxPreemptionTimerExpired);
    }
    if vmcs12.has(NMI_WINDOW_EXITING) && is_nmi_window_open(vmcs02) {
        return by_processor(Reason::NmiWindow);
    }
    if pending.nmi {
        return next_nmi(vmcs02, vmcs12);
    }
    if vmcs12.has(INTERRUPT_WINDOW_EXITING) && is_interrupt_window_open(vmcs02) && !blocked_by_activity {
        return by_processor(Reason::InterruptWindow);
    }
    match pending.interrupt {
        Some(vector) if !blocked_by_activity => next_interrupt(vmcs02, vmcs12, vector),
        _ => Next::Enter,
    }
}

fn next_nmi(vmcs02: &Vmcs, vmcs12: &Vmcs) -> Next {
    let blocked = vmcs02.get(GUEST_INTERRUPTIBILITY_STATE).get(InterruptibilityState::NMI);
    if vmcs12.has(NMI_EXITING) {
        let event = RecordedEvent::new(EventKind::Nmi, vector::NMI, false);
        return match blocked && !vmcs12.has(VIRTUAL_NMIS) {
            true => Next::Enter,
            false => Next::Exit(Exit12::event(Reason::ExceptionOrNmi, event, 0, 0), Taken::Nmi),
        };
    }
    match is_nmi_window_open(vmcs02) {
        true => Next::Inject(InjectedEvent::new(EventKind::Nmi, vector::NMI, false), Taken::Nmi),
        // Without virtual NMIs there is no window to open: the NMI waits for the next exit.
        false if !vmcs02.has(VIRTUAL_NMIS) => Next::Enter,
        false => Next::OpenNmiWindow,
    }
}

fn next_interrupt(vmcs02: &Vmcs, vmcs12: &Vmcs, vector: u8) -> Next {
    if vmcs12.has(EXTERNAL_INTERRUPT_EXITING) {
        return if vmcs12.has(ACKNOWLEDGE_INTERRUPT_ON_EXIT) {
            let event = RecordedEvent::new(EventKind::ExternalInterrupt, vector, false);
            Next::Exit(Exit12::event(Reason::ExternalInterrupt, event, 0, 0), Taken::Interrupt)
        } else {
            Next::Exit(Exit12::plain(Reason::ExternalInterrupt), Taken::Nothing)
        };
    }
    match is_interrupt_window_open(vmcs02) {
        true => {
            Next::Inject(InjectedEvent::new(EventKind::ExternalInterrupt, vector, false), Taken::Interrupt)
        }
        false => Next::OpenInterruptWindow,
    }
}

fn blocks_by_sti_or_mov_ss(vmcs02: &Vmcs) -> bool {
    let state = vmcs02.get(GUEST_INTERRUPTIBILITY_STATE);
    state.get(InterruptibilityState::STI) || state.get(InterruptibilityState::MOV_SS)
}

fn is_interrupt_window_open(vmcs02: &Vmcs) -> bool {
    vmcs02.get(GUEST_RFLAGS) & rflags::IF != 0 && !blocks_by_sti_or_mov_ss(vmcs02)
}

fn is_nmi_window_open(vmcs02: &Vmcs) -> bool {
    !vmcs02.get(GUEST_INTERRUPTIBILITY_STATE).get(InterruptibilityState::NMI)
        && !blocks_by_sti_or_mov_ss(vmcs02)
}

fn timer_has_expired(vmcs02: &Vmcs) -> bool {
    vmcs02.has(ACTIVATE_VMX_PREEMPTION_TIMER) && vmcs02.get(VMX_PREEMPTION_TIMER_VALUE) == 0
}

/// Is L2 halted, in shutdown, or waiting for a SIPI? The processor has nothing to run.
fn is_inactive(vmcs02: &Vmcs) -> bool {
    vmcs02.get(GUEST_ACTIVITY_STATE) != Activity::Active as u32
}

/// Sets a window's control for L1 or for L0, and leaves it alone if it is right already.
fn open(vmcs02: &mut Vmcs, window: Control, vmcs12: &Vmcs, wanted: bool) {
    let on = wanted || vmcs12.has(window);
    if vmcs02.has(window) != on {
        vmcs02.set_control(window, on);
    }
}

fn inject(vmcs02: &mut Vmcs, event: InjectedEvent) {
    vmcs02.set(INJECTED_EVENT_IDENTIFICATION, event);
    // An event that is delivered wakes L2.
    if is_inactive(vmcs02) {
        vmcs02.set(GUEST_ACTIVITY_STATE, Activity::Active as u32);
    }
}

/// L0 keeps an exit: an event whose delivery it cut short is injected again, and what an IRET had unblocked is blocked
/// again, since the IRET is executed again.
pub(crate) fn reinject(vmcs02: &mut Vmcs, reason: Reason) {
    let original = vmcs02.get(ORIGINAL_EVENT_IDENTIFICATION);
    if original.get(RecordedEvent::VALID) {
        reinject_event(vmcs02, original);
    } else if unblocked_nmis(vmcs02, reason) {
        set_nmi_blocking(vmcs02, true);
    }
}

fn reinject_event(vmcs02: &mut Vmcs, original: RecordedEvent) {
    let kind = original.get(RecordedEvent::KIND);
    let has_code = original.get(RecordedEvent::HAS_ERROR_CODE);
    inject(vmcs02, InjectedEvent::new(kind, original.get(RecordedEvent::VECTOR), has_code));
    vmcs02.set(INJECTED_EVENT_ERROR_CODE, vmcs02.get(ORIGINAL_EVENT_ERROR_CODE));
    vmcs02.set(VM_ENTRY_INSTRUCTION_LENGTH, vmcs02.get(VM_EXIT_INSTRUCTION_LENGTH));
    if kind == EventKind::Nmi {
        set_nmi_blocking(vmcs02, false);
    }
}

/// Did the exit come from an IRET that had ended blocking by NMI?
fn unblocked_nmis(vmcs02: &Vmcs, reason: Reason) -> bool {
    match reason {
        Reason::EptViolation => {
            EptViolation(vmcs02.get(EXIT_QUALIFICATION)).get(EptViolation::NMI_UNBLOCKING)
        }
        Reason::ExceptionOrNmi => {
            let event = vmcs02.get(EXITING_EVENT_IDENTIFICATION);
            event.get(RecordedEvent::VALID) && event.get(RecordedEvent::NMI_UNBLOCKING)
        }
        _ => false,
    }
}

fn set_nmi_blocking(vmcs02: &mut Vmcs, on: bool) {
    let state = vmcs02.get(GUEST_INTERRUPTIBILITY_STATE).with(InterruptibilityState::NMI, on);
    vmcs02.set(GUEST_INTERRUPTIBILITY_STATE, state);
}
