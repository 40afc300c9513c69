//! Control fields that are no control words. SDM Vol. 3, "VM-Execution Control Fields", "VM-Entry Control Fields".

use crate::ept01::Ept01;
use vmcs12::addr::{Gpa, Pa};
use vmcs12::arch::event::vector;
use vmcs12::control::{ENABLE_XSAVES_XRSTORS, USE_TPR_SHADOW};
use vmcs12::field::{AnyField, Vmcs, table::*};

/// Fields that vmcs02 has from vmcs12. There is no address among them.
#[rustfmt::skip]
const THEIRS: &[AnyField] = &[
    PAGE_FAULT_ERROR_CODE_MASK.any(), PAGE_FAULT_ERROR_CODE_MATCH.any(),
    CR3_TARGET_COUNT.any(), CR3_TARGET_VALUE_0.any(), CR3_TARGET_VALUE_1.any(), CR3_TARGET_VALUE_2.any(), CR3_TARGET_VALUE_3.any(),
    EOI_EXIT_BITMAP_0.any(), EOI_EXIT_BITMAP_1.any(), EOI_EXIT_BITMAP_2.any(), EOI_EXIT_BITMAP_3.any(),
    PLE_GAP.any(), PLE_WINDOW.any(),
];

/// The event that L1 injects.
const EVENT: &[AnyField] = &[
    INJECTED_EVENT_IDENTIFICATION.any(),
    INJECTED_EVENT_ERROR_CODE.any(),
    VM_ENTRY_INSTRUCTION_LENGTH.any(),
];

/// Fields of vmcs01 that go into the controls of vmcs02.
#[rustfmt::skip]
const MERGED: [AnyField; 13] = [
    PIN_BASED_VM_EXECUTION_CONTROLS.any(),
    PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
    SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
    TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
    PRIMARY_VM_EXIT_CONTROLS.any(),
    SECONDARY_VM_EXIT_CONTROLS.any(),
    VM_ENTRY_CONTROLS.any(),
    EXCEPTION_BITMAP.any(),
    TSC_OFFSET.any(),
    TSC_MULTIPLIER.any(),
    VIRTUAL_APIC_ADDRESS.any(),
    TPR_THRESHOLD.any(),
    XSS_EXITING_BITMAP.any(),
];

/// Values of [`MERGED`].
pub(crate) type ControlsOf = [u64; MERGED.len()];

/// What vmcs01 gives to the merge of controls; host state, which is L0's constant, aside.
pub(super) fn controls_of(vmcs01: &Vmcs) -> ControlsOf {
    MERGED.map(|field| vmcs01.raw(field))
}

/// The event that L1 injects goes in with this entry.
pub(super) fn merge_event(vmcs02: &mut Vmcs, vmcs12: &Vmcs) {
    for &field in EVENT {
        vmcs02.set_raw(field, vmcs12.raw(field));
    }
}

/// The host-state area of vmcs02 is L0's: all of these fields, and only these, come from vmcs01.
#[rustfmt::skip]
const OURS: &[AnyField] = &[
    HOST_ES_SELECTOR.any(), HOST_CS_SELECTOR.any(), HOST_SS_SELECTOR.any(), HOST_DS_SELECTOR.any(),
    HOST_FS_SELECTOR.any(), HOST_GS_SELECTOR.any(), HOST_TR_SELECTOR.any(),
    HOST_IA32_PAT.any(), HOST_IA32_EFER.any(), HOST_IA32_PERF_GLOBAL_CTRL.any(),
    HOST_IA32_SYSENTER_CS.any(), HOST_IA32_SYSENTER_ESP.any(), HOST_IA32_SYSENTER_EIP.any(),
    HOST_CR0.any(), HOST_CR3.any(), HOST_CR4.any(),
    HOST_FS_BASE.any(), HOST_GS_BASE.any(), HOST_TR_BASE.any(), HOST_GDTR_BASE.any(), HOST_IDTR_BASE.any(),
    HOST_RSP.any(), HOST_RIP.any(),
];

pub(super) fn merge(vmcs02: &mut Vmcs, vmcs01: &Vmcs, vmcs12: &Vmcs, ept01: &Ept01) {
    for &field in THEIRS {
        vmcs02.set_raw(field, vmcs12.raw(field));
    }
    for &field in OURS {
        if vmcs02.raw(field) != vmcs01.raw(field) {
            vmcs02.set_raw(field, vmcs01.raw(field));
        }
    }
    merge_exceptions(vmcs02, vmcs01, vmcs12);
    merge_apic(vmcs02, vmcs01, vmcs12, ept01);
    if vmcs02.has(ENABLE_XSAVES_XRSTORS) {
        let either = vmcs01.get(XSS_EXITING_BITMAP) | vmcs12.get(XSS_EXITING_BITMAP);
        vmcs02.set(XSS_EXITING_BITMAP, either);
    }
}

/// Pages of L1's are where ept01 has them: an address in a hole reaches nothing, and none reaches L0's arena.
fn merge_apic(vmcs02: &mut Vmcs, vmcs01: &Vmcs, vmcs12: &Vmcs, ept01: &Ept01) {
    let machine = |page: Pa| ept01.machine(Gpa(page.0));
    let (page, threshold) = match vmcs12.has(USE_TPR_SHADOW) {
        true => (machine(vmcs12.get(VIRTUAL_APIC_ADDRESS)), vmcs12.get(TPR_THRESHOLD)),
        false => (vmcs01.get(VIRTUAL_APIC_ADDRESS), vmcs01.get(TPR_THRESHOLD)),
    };
    vmcs02.set(VIRTUAL_APIC_ADDRESS, page);
    vmcs02.set(TPR_THRESHOLD, threshold);
    vmcs02.set(APIC_ACCESS_ADDRESS, machine(vmcs12.get(APIC_ACCESS_ADDRESS)));
}

/// An exception exits if it does for L0 or for L1. Where L0 wants page faults it wants all of them.
fn merge_exceptions(vmcs02: &mut Vmcs, vmcs01: &Vmcs, vmcs12: &Vmcs) {
    let ours = vmcs01.get(EXCEPTION_BITMAP);
    vmcs02.set(EXCEPTION_BITMAP, ours | vmcs12.get(EXCEPTION_BITMAP));
    if ours & (1 << vector::PF) != 0 {
        vmcs02.set(PAGE_FAULT_ERROR_CODE_MASK, 0);
        vmcs02.set(PAGE_FAULT_ERROR_CODE_MATCH, 0);
    }
}

/// L2 reads what L1 shows it. Besides L1, L0 intercepts the bits of CR4 that the profile lacks; they read as 0.
pub(super) fn merge_cr_masks(vmcs02: &mut Vmcs, vmcs12: &Vmcs, hidden_cr4: u64) {
    vmcs02.set(CR0_GUEST_HOST_MASK, vmcs12.get(CR0_GUEST_HOST_MASK));
    vmcs02.set(CR0_READ_SHADOW, vmcs12.get(CR0_READ_SHADOW));
    let mask = vmcs12.get(CR4_GUEST_HOST_MASK);
    vmcs02.set(CR4_GUEST_HOST_MASK, mask | hidden_cr4);
    vmcs02.set(CR4_READ_SHADOW, vmcs12.get(CR4_READ_SHADOW) & mask);
}
