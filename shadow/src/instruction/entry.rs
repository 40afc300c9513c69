//! VMLAUNCH and VMRESUME. SDM Vol. 3, "VM Entries". Nothing has changed before the last check that leaves no trace.

use super::Failure;
use crate::current::{Current, Mode};
use crate::engine::{Engine, Host, Msrs, Operation, Outcome};
use crate::mode;
use vmcs12::addr::{Gpa, Linear, Physical};
use vmcs12::arch::event::InjectedEvent;
use vmcs12::arch::state::InterruptibilityState;
use vmcs12::check::{self, Ctx, Entrant};
use vmcs12::control::USE_TPR_SHADOW;
use vmcs12::error::{Abort, InstructionError};
use vmcs12::exit::Reason;
use vmcs12::field::{Group, Vmcs, table::*};
use vmcs12::region::LaunchState;

/// What the checks of controls and host state look at, the injected event aside.
const CHECKED_GROUPS: [Group; 2] = [Group::Control, Group::Host];

/// Would the checks of controls and host state end as they did last? They look at more than fields where an event is
/// injected and where a TPR threshold is compared with the virtual-APIC page.
fn is_as_checked(vmcs12: &Vmcs) -> bool {
    let is_written = CHECKED_GROUPS.into_iter().any(|group| vmcs12.is_dirty(group));
    let injects = vmcs12.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::VALID);
    let compares_tpr = vmcs12.has(USE_TPR_SHADOW) && vmcs12.get(TPR_THRESHOLD) != 0;
    !is_written && !injects && !compares_tpr
}

impl Engine {
    pub(super) fn on_entry_instruction<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        reason: Reason,
    ) -> Outcome {
        if let Err(failure) = self.may_enter(host, reason) {
            self.counters.failed_entries += 1;
            return self.finish(host, Err(failure));
        }
        let outcome = self.enter(host);
        match outcome {
            Outcome::Entered => self.counters.entries += 1,
            _ => self.counters.failed_entries += 1,
        }
        outcome
    }

    /// The checks whose failure is a fault or VMfail. SDM Vol. 3, "Basic VM-Entry Checks", "Checks on VMX Controls and
    /// Host-State Area".
    fn may_enter<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        reason: Reason,
    ) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        let current = self.current.filter(|current| !current.is_shadow).ok_or(Failure::Invalid)?;
        let vmcs12 = host.vmcs01.linked.as_deref().ok_or(Failure::Invalid)?;
        let blocking = host.vmcs01.current.get(GUEST_INTERRUPTIBILITY_STATE);
        if blocking.get(InterruptibilityState::MOV_SS) {
            return Err(Failure::Numbered(InstructionError::EntryBlockedByMovSs));
        }
        match (reason, current.launch_state) {
            (Reason::Vmlaunch, LaunchState::Launched) => {
                return Err(Failure::Numbered(InstructionError::VmlaunchNonClear));
            }
            (Reason::Vmresume, LaunchState::Clear) => {
                return Err(Failure::Numbered(InstructionError::VmresumeNonLaunched));
            }
            _ => {}
        }
        let mode = if mode::is_long(&host.vmcs01.current) { Mode::Long } else { Mode::Legacy };
        if current.checked_in == Some(mode) && is_as_checked(vmcs12) {
            return Ok(());
        }
        let checked = check::controls_and_host(&self.checks(host, vmcs12));
        checked.map_err(|refusal| {
            self.broken_rule = Some(refusal.rule.id);
            Failure::Numbered(refusal.error)
        })?;
        if let Some(vmcs12) = host.vmcs01.linked.as_deref_mut() {
            CHECKED_GROUPS.into_iter().for_each(|group| vmcs12.clean(group));
        }
        self.current = Some(Current { checked_in: Some(mode), is_merged: false, ..current });
        Ok(())
    }

    /// What the rules are evaluated on.
    fn checks<'a, P: Physical, L: Linear, M: Msrs>(
        &'a self,
        host: &Host<P, L, M>,
        vmcs12: &'a Vmcs,
    ) -> Ctx<'a> {
        let entrant = Entrant {
            long_mode: mode::is_long(&host.vmcs01.current),
            current_vmcs: self.current_pointer().map_or(u64::MAX, |pointer| pointer.0),
        };
        Ctx::new(vmcs12, &self.offered, entrant, |at, into| {
            host.memory.read(self.ept.ept01().machine(Gpa(at)), into);
        })
    }

    /// Loads L2's state; what fails now fails as an exit.
    fn enter<P: Physical, L: Linear, M: Msrs>(&mut self, host: &mut Host<P, L, M>) -> Outcome {
        // The cached vmcs12 leaves its place for the time of the entry: its fields are read while vmcs01 is written.
        let Some(vmcs12) = host.vmcs01.linked.take() else { return Outcome::Abort(Abort::CorruptVmcs) };
        let failed = match check::guest(&self.checks(host, &vmcs12)) {
            Err(failure) => {
                self.broken_rule = Some(failure.rule.id);
                Some((Reason::EntryFailureGuestState, failure.qualification))
            }
            Ok(()) => {
                self.merge(host, &vmcs12);
                self.load_msrs_on_entry(host, &vmcs12).err().map(|bad| {
                    self.broken_rule = Some(bad.rule.id);
                    (Reason::EntryFailureMsrLoading, u64::from(bad.number))
                })
            }
        };
        match failed {
            None => {
                host.vmcs01.linked = Some(vmcs12);
                self.operation = Operation::NonRoot;
                if let Some(current) = &mut self.current {
                    current.launch_state = LaunchState::Launched;
                }
                Outcome::Entered
            }
            Some((reason, qualification)) => match self.fail_entry(host, vmcs12, reason, qualification) {
                Ok(()) => Outcome::Reflected,
                Err(abort) => Outcome::Abort(abort),
            },
        }
    }
}
