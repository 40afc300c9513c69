//! VM exit: recording of exit information and saving of guest state. SDM Vol. 3, "VM Exits".

use crate::mmu::Fault;
use crate::state::Cpu;
use vmcs12::arch::event::{InjectedEvent, RecordedEvent};
use vmcs12::arch::rflags;
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::arch::state::{Activity, InterruptibilityState, PendingDebugExceptions};
use vmcs12::control::*;
use vmcs12::exit::{Cause, Exit, Reason};
use vmcs12::field::Group;
use vmcs12::field::table::*;

impl Cpu {
    fn record(&mut self, reason: Reason, qualification: u64) {
        let vmcs = self.vmcs();
        vmcs.set(EXIT_REASON, reason as u32);
        vmcs.set(EXIT_QUALIFICATION, qualification);
        vmcs.set(EXITING_EVENT_IDENTIFICATION, RecordedEvent::default());
        vmcs.set(ORIGINAL_EVENT_IDENTIFICATION, RecordedEvent::default());
        vmcs.set(VM_EXIT_INSTRUCTION_LENGTH, 0);
        vmcs.set(VM_EXIT_INSTRUCTION_INFORMATION, 0);
    }

    /// An instruction caused the exit.
    pub(crate) fn record_instruction_exit(
        &mut self,
        reason: Reason,
        qualification: u64,
        length: u32,
        information: u32,
    ) {
        self.record(reason, qualification);
        let vmcs = self.vmcs();
        vmcs.set(VM_EXIT_INSTRUCTION_LENGTH, length);
        vmcs.set(VM_EXIT_INSTRUCTION_INFORMATION, information);
        self.rflags &= !rflags::RF;
    }

    /// An event caused the exit; `exiting` is invalid for events that are not vectored.
    pub(crate) fn record_event_exit(
        &mut self,
        reason: Reason,
        qualification: u64,
        exiting: RecordedEvent,
        error_code: u32,
        instruction_length: u32,
    ) {
        self.record(reason, qualification);
        let vmcs = self.vmcs();
        vmcs.set(EXITING_EVENT_IDENTIFICATION, exiting);
        vmcs.set(EXITING_EVENT_ERROR_CODE, error_code);
        vmcs.set(VM_EXIT_INSTRUCTION_LENGTH, instruction_length);
    }

    /// The exit came during the delivery of this event.
    pub(crate) fn record_original_event(
        &mut self,
        original: RecordedEvent,
        error_code: u32,
        instruction_length: u32,
    ) {
        let vmcs = self.vmcs();
        vmcs.set(ORIGINAL_EVENT_IDENTIFICATION, original);
        vmcs.set(ORIGINAL_EVENT_ERROR_CODE, error_code);
        vmcs.set(VM_EXIT_INSTRUCTION_LENGTH, instruction_length);
    }

    /// An access violated or misconfigured EPT; not during event delivery unless
    /// [`Cpu::record_original_event`] follows.
    pub(crate) fn exit_ept(&mut self, fault: Fault) -> Cause {
        let reason = match fault {
            Fault::EptViolation { qualification, gpa, linear } => {
                self.record(Reason::EptViolation, qualification);
                self.vmcs().set(GUEST_PHYSICAL_ADDRESS, gpa);
                if let Some(linear) = linear {
                    self.vmcs().set(GUEST_LINEAR_ADDRESS, linear);
                }
                Reason::EptViolation
            }
            Fault::EptMisconfiguration { gpa } => {
                self.record(Reason::EptMisconfiguration, 0);
                self.vmcs().set(GUEST_PHYSICAL_ADDRESS, gpa);
                Reason::EptMisconfiguration
            }
            Fault::Exception(_) => unreachable!("exceptions are delivered, or exit by their own path"),
        };
        // SDM Vol. 3, "Saving RIP, RSP, RFLAGS, and SSP": RF is 1 after these.
        self.rflags |= rflags::RF;
        Cause::Vm(reason)
    }

    /// The budget is used up, or the VMX-preemption timer has expired.
    pub(crate) fn end_of_budget(&mut self) -> Cause {
        if self.retired >= self.timer_limit {
            self.record(Reason::VmxPreemptionTimerExpired, 0);
            return Cause::Vm(Reason::VmxPreemptionTimerExpired);
        }
        Cause::Budget
    }

    /// The exit that an open interrupt or NMI window asks for. SDM Vol. 3, "Interrupt-Window Exiting".
    pub(crate) fn window_exit(&mut self) -> Option<Cause> {
        if self.sti_shadow == self.retired || self.mov_ss_shadow == self.retired {
            return None;
        }
        if self.controls.has(NMI_WINDOW_EXITING) && !self.nmi_blocked {
            self.record(Reason::NmiWindow, 0);
            return Some(Cause::Vm(Reason::NmiWindow));
        }
        if self.controls.has(INTERRUPT_WINDOW_EXITING) && self.rflags & rflags::IF != 0 {
            self.record(Reason::InterruptWindow, 0);
            return Some(Cause::Vm(Reason::InterruptWindow));
        }
        None
    }

    /// The monitor trap flag, after an instruction.
    pub(crate) fn monitor_trap_exit(&mut self) -> Cause {
        self.record(Reason::MonitorTrapFlag, 0);
        Cause::Vm(Reason::MonitorTrapFlag)
    }

    /// The monitor trap flag, after the delivery of an event.
    pub(crate) fn trap_after_delivery(&mut self) -> Option<Cause> {
        self.controls.monitor_trap.then(|| self.monitor_trap_exit())
    }

    /// Saves guest state and returns the exit.
    pub(crate) fn end(&mut self, cause: Cause) -> Exit {
        self.end_smap_suspension();
        self.save_guest(cause);
        let exit = Exit { cause, retired: self.retired };
        let (gpr, pkru, pat) = (self.gpr, self.pkru, self.pat);
        let state = self.state();
        state.gpr.copy_from_slice(&gpr[..16]);
        (state.pkru, state.pat) = (pkru, pat);
        (self.vmcs, self.state) = (std::ptr::null_mut(), std::ptr::null_mut());
        exit
    }

    /// SDM Vol. 3, "Saving Guest State".
    fn save_guest(&mut self, cause: Cause) {
        let interruptibility = InterruptibilityState::default()
            .with(InterruptibilityState::STI, self.sti_shadow == self.retired)
            .with(InterruptibilityState::MOV_SS, self.mov_ss_shadow == self.retired)
            .with(InterruptibilityState::NMI, self.nmi_blocked);
        let rflags = self.full_rflags();
        // SAFETY: `begin` set `vmcs` from a reference that `enter` still holds.
        let vmcs = unsafe { &mut (*self.vmcs).current };
        vmcs.set(GUEST_CR0, self.cr0);
        vmcs.set(GUEST_CR3, self.cr3);
        vmcs.set(GUEST_CR4, self.cr4);
        vmcs.set(GUEST_DR7, self.dr7);
        vmcs.set(GUEST_IA32_DEBUGCTL, self.debugctl);
        vmcs.set(GUEST_RIP, self.rip);
        vmcs.set(GUEST_RSP, self.gpr[vmcs12::cpu_state::gpr::RSP]);
        vmcs.set(GUEST_RFLAGS, rflags);
        vmcs.set(GUEST_IA32_EFER, self.efer);
        vmcs.set(GUEST_IA32_PAT, self.pat);
        vmcs.set_control(IA_32E_MODE_GUEST, self.efer & vmcs12::arch::efer::LMA != 0);
        for register in SegmentRegister::ALL {
            let (fields, segment) = (register.fields(), &self.segments[register as usize]);
            vmcs.set(fields.base, segment.base);
            vmcs.set(fields.limit, segment.limit);
            vmcs.set(fields.rights, segment.rights);
            vmcs.set(fields.selector, segment.selector);
        }
        vmcs.set(GUEST_GDTR_BASE, self.gdtr.0);
        vmcs.set(GUEST_GDTR_LIMIT, self.gdtr.1);
        vmcs.set(GUEST_IDTR_BASE, self.idtr.0);
        vmcs.set(GUEST_IDTR_LIMIT, self.idtr.1);
        vmcs.set(GUEST_IA32_SYSENTER_CS, self.sysenter.0 as u32);
        vmcs.set(GUEST_IA32_SYSENTER_ESP, self.sysenter.1);
        vmcs.set(GUEST_IA32_SYSENTER_EIP, self.sysenter.2);
        for (field, value) in
            [GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3].into_iter().zip(self.pdpte)
        {
            vmcs.set(field, value);
        }
        vmcs.set(GUEST_INTERRUPTIBILITY_STATE, interruptibility);
        vmcs.set(GUEST_PENDING_DEBUG_EXCEPTIONS, PendingDebugExceptions(self.pending_debug));
        let injected = vmcs.get(INJECTED_EVENT_IDENTIFICATION);
        if injected.get(InjectedEvent::VALID) {
            vmcs.set(GUEST_ACTIVITY_STATE, Activity::Active as u32);
            vmcs.set(INJECTED_EVENT_IDENTIFICATION, injected.with(InjectedEvent::VALID, false));
        }
        if self.controls.has(ACTIVATE_VMX_PREEMPTION_TIMER) {
            let expired = cause == Cause::Vm(Reason::VmxPreemptionTimerExpired);
            let rate = self.model.capabilities.misc.get(vmcs12::caps::VmxMisc::PREEMPTION_TIMER_RATE);
            let elapsed = (u128::from(self.retired) * u128::from(self.time.tsc_mult_q32)) >> 32 >> rate;
            let value = u128::from(vmcs.get(VMX_PREEMPTION_TIMER_VALUE)).saturating_sub(elapsed) as u32;
            vmcs.set(VMX_PREEMPTION_TIMER_VALUE, if expired { 0 } else { value });
        }
        for group in [Group::Control, Group::Guest, Group::Host] {
            vmcs.clean(group);
        }
    }
}
