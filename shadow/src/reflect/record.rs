//! What an exit records in vmcs12. SDM Vol. 3, "Recording VM-Exit Information and Updating VM-Entry Control Fields".

use crate::areas;
use vmcs12::arch::event::{EventKind, InjectedEvent, RecordedEvent};
use vmcs12::exit::qualification::EptViolation;
use vmcs12::exit::{ENTRY_FAILURE, Reason};
use vmcs12::field::{Vmcs, table::*};

/// An exit for L1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Exit12 {
    pub(crate) reason: Reason,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// The processor recorded it in vmcs02.
    Recorded,
    /// As the processor recorded it, but for reason and qualification: L0 found out what ept12 says.
    Requalified(u64),
    /// No processor's exit caused it.
    Synthesised { qualification: u64, event: RecordedEvent, error_code: u32 },
}

impl Exit12 {
    /// The exit that the processor recorded in vmcs02.
    pub(crate) fn recorded(reason: Reason) -> Self {
        Self { reason, how: How::Recorded }
    }
    /// ept12 forbids the access that exited.
    pub(crate) fn ept_violation(qualification: EptViolation) -> Self {
        Self { reason: Reason::EptViolation, how: How::Requalified(qualification.0) }
    }
    /// An entry of ept12 for the access that exited is misconfigured.
    pub(crate) fn ept_misconfiguration() -> Self {
        Self { reason: Reason::EptMisconfiguration, how: How::Requalified(0) }
    }
    /// An event that has nothing to tell but its reason.
    pub(crate) fn plain(reason: Reason) -> Self {
        Self::event(reason, RecordedEvent::default(), 0, 0)
    }
    /// An NMI, an interrupt that was acknowledged, an exception.
    pub(crate) fn event(reason: Reason, event: RecordedEvent, error_code: u32, qualification: u64) -> Self {
        Self { reason, how: How::Synthesised { qualification, event, error_code } }
    }
    /// Did an NMI cause it directly?
    pub(crate) fn is_nmi(self) -> bool {
        matches!(self.how, How::Synthesised { event, .. }
            if event.get(RecordedEvent::VALID) && event.get(RecordedEvent::KIND) == EventKind::Nmi)
    }
}

/// Records an exit.
pub(super) fn record(vmcs12: &mut Vmcs, vmcs02: &Vmcs, exit: Exit12) {
    match exit.how {
        How::Recorded => areas::copy_exit_information(vmcs12, vmcs02),
        How::Requalified(qualification) => {
            areas::copy_exit_information(vmcs12, vmcs02);
            vmcs12.set(EXIT_QUALIFICATION, qualification);
        }
        How::Synthesised { qualification, event, error_code } => {
            vmcs12.set(EXIT_QUALIFICATION, qualification);
            vmcs12.set(EXITING_EVENT_IDENTIFICATION, event);
            vmcs12.set(EXITING_EVENT_ERROR_CODE, error_code);
            vmcs12.set(ORIGINAL_EVENT_IDENTIFICATION, RecordedEvent::default());
        }
    }
    vmcs12.set(EXIT_REASON, exit.reason as u32);
    let injected = vmcs12.get(INJECTED_EVENT_IDENTIFICATION).with(InjectedEvent::VALID, false);
    vmcs12.set(INJECTED_EVENT_IDENTIFICATION, injected);
}

/// Records a failed entry: reason and qualification, and nothing else.
pub(super) fn record_failed_entry(vmcs12: &mut Vmcs, reason: Reason, qualification: u64) {
    vmcs12.set(EXIT_REASON, reason as u32 | ENTRY_FAILURE);
    vmcs12.set(EXIT_QUALIFICATION, qualification);
}
