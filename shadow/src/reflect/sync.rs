//! L2's state, saved from vmcs02 to vmcs12. SDM Vol. 3, "Saving Guest State".

use crate::areas;
use vmcs12::arch::efer;
use vmcs12::caps::{Capabilities, VmxMisc};
use vmcs12::control::*;
use vmcs12::field::{AnyField, Vmcs, table::*};

/// State that an exit saves only with a control of vmcs12's, or never.
#[rustfmt::skip]
const SAVED_WITH: [(AnyField, Option<Control>); 10] = [
    (GUEST_DR7.any(),                  Some(SAVE_DEBUG_CONTROLS)),
    (GUEST_IA32_DEBUGCTL.any(),        Some(SAVE_DEBUG_CONTROLS)),
    (GUEST_IA32_PAT.any(),             Some(SAVE_IA32_PAT)),
    (GUEST_IA32_EFER.any(),            Some(SAVE_IA32_EFER)),
    (GUEST_IA32_PERF_GLOBAL_CTRL.any(), Some(SAVE_IA32_PERF_GLOBAL_CTRL)),
    (VMX_PREEMPTION_TIMER_VALUE.any(), Some(SAVE_VMX_PREEMPTION_TIMER_VALUE)),
    (GUEST_INTERRUPT_STATUS.any(),     Some(VIRTUAL_INTERRUPT_DELIVERY)),
    (PML_INDEX.any(),                  Some(ENABLE_PML)),
    (VMCS_LINK_POINTER.any(),          None),
    (GUEST_SMBASE.any(),               None),
];

pub(super) fn sync(vmcs12: &mut Vmcs, vmcs02: &Vmcs, offered: &Capabilities) {
    let before = SAVED_WITH.map(|(field, _)| vmcs12.raw(field));
    areas::copy_guest(vmcs12, vmcs02);
    for ((field, control), value) in SAVED_WITH.into_iter().zip(before) {
        if !control.is_some_and(|control| vmcs12.has(control)) {
            vmcs12.set_raw(field, value);
        }
    }
    let is_long = vmcs02.get(GUEST_IA32_EFER) & efer::LMA != 0;
    if offered.misc.get(VmxMisc::STORES_LMA) && vmcs12.has(IA_32E_MODE_GUEST) != is_long {
        vmcs12.set_control(IA_32E_MODE_GUEST, is_long);
    }
}
