//! Checks on VMX controls. A broken rule is VMfailValid(7). SDM Vol. 3, "Checks on VMX Controls".

use super::Expectation::{Bits, Holds, InPhysicalWidth, Setting, Zero};
use super::When::{Always, Has, Test};
use super::{Ctx, rules};
use crate::arch::eptp::{Eptp, memory_type};
use crate::arch::event::{EventKind, InjectedEvent, vector};
use crate::caps::{Allowed, EPTP_SWITCHING, EptVpidCap, VmxBasic, VmxMisc};
use crate::control::*;
use crate::field::table::*;

const EXECUTION_TITLE: &str = "VM-Execution Control Fields";
const EXIT_TITLE: &str = "VM-Exit Control Fields";
const ENTRY_TITLE: &str = "VM-Entry Control Fields";

/// Address bits that must be 0: 4 KiB, 64 bytes, 16 bytes.
const PAGE: u64 = 0xfff;
const CACHE_LINE: u64 = 0x3f;
const MSR_ENTRY: u64 = 0xf;
/// Bytes of an entry in an MSR list.
const MSR_ENTRY_SIZE: u64 = 16;
/// Longest instruction.
const LONGEST_INSTRUCTION: u32 = 15;

rules! {
/// SDM Vol. 3, "VM-Execution Control Fields", in its order.
pub const EXECUTION = [
    group(EXECUTION_TITLE, Always, [
        rule("ctl.pin.reserved", &[PIN_BASED_VM_EXECUTION_CONTROLS.any()],
            "each pin-based control has a setting that the processor allows", Setting(Word::PinBased)),
        rule("ctl.primary.reserved", &[PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "each primary processor-based control has a setting that the processor allows", Setting(Word::Primary)),
    ]),
    group(EXECUTION_TITLE, Has(ACTIVATE_SECONDARY_CONTROLS), [
        rule("ctl.secondary.reserved", &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "each secondary processor-based control has a setting that the processor allows", Setting(Word::Secondary)),
    ]),
    group(EXECUTION_TITLE, Has(ACTIVATE_TERTIARY_CONTROLS), [
        rule("ctl.tertiary.reserved", &[TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "each tertiary processor-based control has a setting that the processor allows", Setting(Word::Tertiary)),
    ]),
    group(EXECUTION_TITLE, Always, [
        rule("ctl.cr3_target_count.max", &[CR3_TARGET_COUNT.any()],
            "the CR3-target count is at most what the processor supports",
            Holds(|c| c.get(CR3_TARGET_COUNT) <= c.caps.misc.get(VmxMisc::CR3_TARGETS))),
    ]),
    group(EXECUTION_TITLE, Has(USE_IO_BITMAPS), [
        rule("ctl.io_bitmap_a.align", &[ADDRESS_OF_IO_BITMAP_A.any()],
            "I/O bitmap A, if used, is page-aligned", Zero(PAGE)),
        rule("ctl.io_bitmap_a.width", &[ADDRESS_OF_IO_BITMAP_A.any()],
            "I/O bitmap A, if used, is within the physical-address width", InPhysicalWidth),
        rule("ctl.io_bitmap_b.align", &[ADDRESS_OF_IO_BITMAP_B.any()],
            "I/O bitmap B, if used, is page-aligned", Zero(PAGE)),
        rule("ctl.io_bitmap_b.width", &[ADDRESS_OF_IO_BITMAP_B.any()],
            "I/O bitmap B, if used, is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(USE_MSR_BITMAPS), [
        rule("ctl.msr_bitmap.align", &[ADDRESS_OF_MSR_BITMAPS.any()],
            "the MSR bitmaps, if used, are page-aligned", Zero(PAGE)),
        rule("ctl.msr_bitmap.width", &[ADDRESS_OF_MSR_BITMAPS.any()],
            "the MSR bitmaps, if used, are within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(USE_TPR_SHADOW), [
        rule("ctl.virtual_apic.align", &[VIRTUAL_APIC_ADDRESS.any()],
            "the virtual-APIC page, with a TPR shadow, is page-aligned", Zero(PAGE)),
        rule("ctl.virtual_apic.width", &[VIRTUAL_APIC_ADDRESS.any()],
            "the virtual-APIC page, with a TPR shadow, is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Test(|c| c.has(USE_TPR_SHADOW) && !c.has(VIRTUAL_INTERRUPT_DELIVERY)), [
        rule("ctl.tpr_threshold.reserved", &[TPR_THRESHOLD.any()],
            "bits 31:4 of the TPR threshold are 0, without virtual-interrupt delivery", Zero(0xffff_fff0)),
    ]),
    group(EXECUTION_TITLE, Test(|c| c.checks_vtpr()), [
        rule("ctl.tpr_threshold.vtpr", &[TPR_THRESHOLD.any(), VIRTUAL_APIC_ADDRESS.any()],
            "the TPR threshold is at most bits 7:4 of VTPR",
            Holds(|c| c.get(TPR_THRESHOLD) & 0xf <= u32::from(c.memory.vtpr >> 4))),
    ]),
    group(EXECUTION_TITLE, Always, [
        rule("ctl.nmi.virtual_needs_exiting", &[PIN_BASED_VM_EXECUTION_CONTROLS.any()],
            "virtual NMIs come with NMI exiting", Holds(|c| needs(c, VIRTUAL_NMIS, NMI_EXITING))),
        rule("ctl.nmi.window_needs_virtual",
            &[PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(), PIN_BASED_VM_EXECUTION_CONTROLS.any()],
            "NMI-window exiting comes with virtual NMIs", Holds(|c| needs(c, NMI_WINDOW_EXITING, VIRTUAL_NMIS))),
    ]),
    group(EXECUTION_TITLE, Has(VIRTUALIZE_APIC_ACCESSES), [
        rule("ctl.apic_access.align", &[APIC_ACCESS_ADDRESS.any()],
            "the APIC-access page, if used, is page-aligned", Zero(PAGE)),
        rule("ctl.apic_access.width", &[APIC_ACCESS_ADDRESS.any()],
            "the APIC-access page, if used, is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(VIRTUALIZE_X2APIC_MODE), [
        rule("ctl.apic.x2apic_needs_tpr_shadow", SECONDARY_AND_PRIMARY,
            "virtualizing x2APIC mode comes with a TPR shadow", Holds(|c| c.has(USE_TPR_SHADOW))),
        rule("ctl.apic.x2apic_excludes_apic_access", &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "x2APIC mode and APIC accesses are not both virtualized", Holds(|c| !c.has(VIRTUALIZE_APIC_ACCESSES))),
    ]),
    group(EXECUTION_TITLE, Has(APIC_REGISTER_VIRTUALIZATION), [
        rule("ctl.apic.regvirt_needs_tpr_shadow", SECONDARY_AND_PRIMARY,
            "APIC-register virtualization comes with a TPR shadow", Holds(|c| c.has(USE_TPR_SHADOW))),
    ]),
    group(EXECUTION_TITLE, Has(VIRTUAL_INTERRUPT_DELIVERY), [
        rule("ctl.apic.vid_needs_tpr_shadow", SECONDARY_AND_PRIMARY,
            "virtual-interrupt delivery comes with a TPR shadow", Holds(|c| c.has(USE_TPR_SHADOW))),
        rule("ctl.apic.vid_needs_extint_exiting",
            &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(), PIN_BASED_VM_EXECUTION_CONTROLS.any()],
            "virtual-interrupt delivery comes with external-interrupt exiting",
            Holds(|c| c.has(EXTERNAL_INTERRUPT_EXITING))),
    ]),
    group(EXECUTION_TITLE, Has(PROCESS_POSTED_INTERRUPTS), [
        rule("ctl.posted.needs_vid",
            &[PIN_BASED_VM_EXECUTION_CONTROLS.any(), SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "posted interrupts come with virtual-interrupt delivery", Holds(|c| c.has(VIRTUAL_INTERRUPT_DELIVERY))),
        rule("ctl.posted.needs_ack_on_exit",
            &[PIN_BASED_VM_EXECUTION_CONTROLS.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "posted interrupts come with acknowledging interrupts on exit",
            Holds(|c| c.has(ACKNOWLEDGE_INTERRUPT_ON_EXIT))),
        rule("ctl.posted.vector", &[POSTED_INTERRUPT_NOTIFICATION_VECTOR.any()],
            "bits 15:8 of the notification vector are 0", Zero(0xff00)),
        rule("ctl.posted.desc.align", &[POSTED_INTERRUPT_DESCRIPTOR_ADDRESS.any()],
            "the posted-interrupt descriptor is 64-byte aligned", Zero(CACHE_LINE)),
        rule("ctl.posted.desc.width", &[POSTED_INTERRUPT_DESCRIPTOR_ADDRESS.any()],
            "the posted-interrupt descriptor is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(ENABLE_VPID), [
        rule("ctl.vpid.nonzero", &[VPID.any()], "the VPID, if used, is not 0", Holds(|c| c.get(VPID) != 0)),
    ]),
    group(EXECUTION_TITLE, Has(ENABLE_EPT), [
        rule("ctl.eptp.memtype", &[EPTP.any()],
            "the memory type of the EPT paging structures is one that the processor supports", Holds(memory_type_exists)),
        rule("ctl.eptp.walk_length", &[EPTP.any()],
            "the EPT page-walk length is one that the processor supports", Holds(walk_length_exists)),
        rule("ctl.eptp.ad", &[EPTP.any()],
            "accessed and dirty flags for EPT are enabled only if the processor supports them",
            Bits(|c| eptp_bit(c, Eptp::ACCESSED_DIRTY.mask(), EptVpidCap::ACCESSED_DIRTY.mask()))),
        rule("ctl.eptp.shadow_stack", &[EPTP.any()],
            "supervisor shadow-stack control is enabled only if the processor supports it",
            Bits(|c| eptp_bit(c, Eptp::SUPERVISOR_SHADOW_STACK.mask(), EptVpidCap::SUPERVISOR_SHADOW_STACK.mask()))),
        rule("ctl.eptp.reserved", &[EPTP.any()], "bits 11:8 of the EPT pointer are 0", Zero(Eptp::RESERVED & PAGE)),
        rule("ctl.eptp.width", &[EPTP.any()],
            "the EPT pointer's address is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(ENABLE_PML), [
        rule("ctl.ept.needed_by_pml", &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "page-modification logging comes with EPT", Holds(|c| c.has(ENABLE_EPT))),
        rule("ctl.pml.align", &[PML_ADDRESS.any()], "the page-modification log is page-aligned", Zero(PAGE)),
        rule("ctl.pml.width", &[PML_ADDRESS.any()],
            "the page-modification log is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Test(|c| !c.has(ENABLE_EPT)), [
        rule("ctl.ept.needed_by_unrestricted_guest", &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "an unrestricted guest comes with EPT", Holds(|c| !c.has(UNRESTRICTED_GUEST))),
        rule("ctl.ept.needed_by_mbec", &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "mode-based execute control comes with EPT", Holds(|c| !c.has(MODE_BASED_EXECUTE_CONTROL_FOR_EPT))),
        rule("ctl.ept.needed_by_spp", &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "sub-page write permissions come with EPT", Holds(|c| !c.has(SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT))),
        rule("ctl.ept.needed_by_pt_gpa", &[SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "guest-physical addresses for Intel PT come with EPT",
            Holds(|c| !c.has(INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES))),
    ]),
    group(EXECUTION_TITLE, Has(SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT), [
        rule("ctl.spptp.align", &[SPPTP.any()], "the sub-page-permission table is page-aligned", Zero(PAGE)),
        rule("ctl.spptp.width", &[SPPTP.any()],
            "the sub-page-permission table is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(ENABLE_VM_FUNCTIONS), [
        rule("ctl.vmfunc.reserved", &[VM_FUNCTION_CONTROLS.any()],
            "no VM function is enabled that the processor lacks",
            Bits(|c| Allowed { must_be_one: 0, may_be_one: c.caps.vmfunc })),
    ]),
    group(EXECUTION_TITLE, Test(switches_eptps), [
        rule("ctl.vmfunc.eptp_switching_needs_ept",
            &[VM_FUNCTION_CONTROLS.any(), SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "EPTP switching comes with EPT", Holds(|c| c.has(ENABLE_EPT))),
        rule("ctl.eptp_list.align", &[EPTP_LIST_ADDRESS.any()], "the EPTP list is page-aligned", Zero(PAGE)),
        rule("ctl.eptp_list.width", &[EPTP_LIST_ADDRESS.any()],
            "the EPTP list is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(VMCS_SHADOWING), [
        rule("ctl.vmread_bitmap.align", &[VMREAD_BITMAP_ADDRESS.any()], "the VMREAD bitmap is page-aligned", Zero(PAGE)),
        rule("ctl.vmread_bitmap.width", &[VMREAD_BITMAP_ADDRESS.any()],
            "the VMREAD bitmap is within the physical-address width", InPhysicalWidth),
        rule("ctl.vmwrite_bitmap.align", &[VMWRITE_BITMAP_ADDRESS.any()],
            "the VMWRITE bitmap is page-aligned", Zero(PAGE)),
        rule("ctl.vmwrite_bitmap.width", &[VMWRITE_BITMAP_ADDRESS.any()],
            "the VMWRITE bitmap is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(EPT_VIOLATION_VE), [
        rule("ctl.ve_info.align", &[VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS.any()],
            "the virtualization-exception information area is page-aligned", Zero(PAGE)),
        rule("ctl.ve_info.width", &[VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS.any()],
            "the virtualization-exception information area is within the physical-address width", InPhysicalWidth),
    ]),
    group(EXECUTION_TITLE, Has(USE_TSC_SCALING), [
        rule("ctl.tsc.multiplier", &[TSC_MULTIPLIER.any()],
            "the TSC multiplier, if used, is not 0", Holds(|c| c.get(TSC_MULTIPLIER) != 0)),
    ]),
];
}

rules! {
/// SDM Vol. 3, "VM-Exit Control Fields", in its order.
pub const EXIT = [
    group(EXIT_TITLE, Always, [
        rule("ctl.exit.reserved", &[PRIMARY_VM_EXIT_CONTROLS.any()],
            "each VM-exit control has a setting that the processor allows", Setting(Word::Exit)),
    ]),
    group(EXIT_TITLE, Has(ACTIVATE_SECONDARY_EXIT_CONTROLS), [
        rule("ctl.exit2.reserved", &[SECONDARY_VM_EXIT_CONTROLS.any()],
            "each secondary VM-exit control has a setting that the processor allows", Setting(Word::SecondaryExit)),
    ]),
    group(EXIT_TITLE, Always, [
        rule("ctl.exit.save_preemption_timer",
            &[PRIMARY_VM_EXIT_CONTROLS.any(), PIN_BASED_VM_EXECUTION_CONTROLS.any()],
            "the VMX-preemption timer is saved only if it is activated",
            Holds(|c| needs(c, SAVE_VMX_PREEMPTION_TIMER_VALUE, ACTIVATE_VMX_PREEMPTION_TIMER))),
    ]),
    group(EXIT_TITLE, Test(|c| c.get(VM_EXIT_MSR_STORE_COUNT) != 0), [
        rule("ctl.exit.msr_store.align", &[VM_EXIT_MSR_STORE_ADDRESS.any(), VM_EXIT_MSR_STORE_COUNT.any()],
            "the VM-exit MSR-store list is 16-byte aligned", Zero(MSR_ENTRY)),
        rule("ctl.exit.msr_store.width", &[VM_EXIT_MSR_STORE_ADDRESS.any(), VM_EXIT_MSR_STORE_COUNT.any()],
            "the VM-exit MSR-store list begins within the physical-address width", InPhysicalWidth),
        rule("ctl.exit.msr_store.last", &[VM_EXIT_MSR_STORE_ADDRESS.any(), VM_EXIT_MSR_STORE_COUNT.any()],
            "the VM-exit MSR-store list ends within the physical-address width",
            Holds(|c| c.fits(last_byte(c.get(VM_EXIT_MSR_STORE_ADDRESS).0, c.get(VM_EXIT_MSR_STORE_COUNT))))),
    ]),
    group(EXIT_TITLE, Test(|c| c.get(VM_EXIT_MSR_LOAD_COUNT) != 0), [
        rule("ctl.exit.msr_load.align", &[VM_EXIT_MSR_LOAD_ADDRESS.any(), VM_EXIT_MSR_LOAD_COUNT.any()],
            "the VM-exit MSR-load list is 16-byte aligned", Zero(MSR_ENTRY)),
        rule("ctl.exit.msr_load.width", &[VM_EXIT_MSR_LOAD_ADDRESS.any(), VM_EXIT_MSR_LOAD_COUNT.any()],
            "the VM-exit MSR-load list begins within the physical-address width", InPhysicalWidth),
        rule("ctl.exit.msr_load.last", &[VM_EXIT_MSR_LOAD_ADDRESS.any(), VM_EXIT_MSR_LOAD_COUNT.any()],
            "the VM-exit MSR-load list ends within the physical-address width",
            Holds(|c| c.fits(last_byte(c.get(VM_EXIT_MSR_LOAD_ADDRESS).0, c.get(VM_EXIT_MSR_LOAD_COUNT))))),
    ]),
];
}

rules! {
/// SDM Vol. 3, "VM-Entry Control Fields", in its order.
pub const ENTRY = [
    group(ENTRY_TITLE, Always, [
        rule("ctl.entry.reserved", &[VM_ENTRY_CONTROLS.any()],
            "each VM-entry control has a setting that the processor allows", Setting(Word::Entry)),
    ]),
    group(ENTRY_TITLE, Test(|c| c.injected().is_some()), [
        rule("ctl.inject.type_reserved", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "the type of the injected event is not 1", Holds(|c| kind(c) != EventKind::Reserved1)),
        rule("ctl.inject.type_other", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "a pending MTF VM exit is injected only if the processor supports the monitor trap flag",
            Holds(|c| kind(c) != EventKind::Other || c.caps.can_be_one(MONITOR_TRAP_FLAG))),
        rule("ctl.inject.vector_nmi", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "an injected NMI has vector 2", Holds(|c| kind(c) != EventKind::Nmi || number(c) == vector::NMI)),
        rule("ctl.inject.vector_hw_exception", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "an injected hardware exception has a vector of at most 31",
            Holds(|c| kind(c) != EventKind::HardwareException || number(c) <= 31)),
        rule("ctl.inject.vector_other", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "an injected event of type 7 has vector 0", Holds(|c| kind(c) != EventKind::Other || number(c) == 0)),
        rule("ctl.inject.error_code_required", ERROR_CODE_IN_PROTECTED_MODE,
            "an error code is delivered with an exception that has one, in protected mode",
            Holds(|c| has_error_code(c) || !must_have_error_code(c))),
        rule("ctl.inject.error_code_not_hw", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "an error code is delivered with hardware exceptions alone",
            Holds(|c| !has_error_code(c) || kind(c) == EventKind::HardwareException)),
        rule("ctl.inject.error_code_real_mode", ERROR_CODE_IN_PROTECTED_MODE,
            "no error code is delivered in real-address mode",
            Holds(|c| !has_error_code(c) || c.is_protected() || !c.has(UNRESTRICTED_GUEST))),
        rule("ctl.inject.error_code_forbidden", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "no error code is delivered with an exception that has none",
            Holds(|c| !has_error_code(c) || may_have_error_code(c))),
        rule("ctl.inject.nested_not_hw", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "only a hardware exception is injected as a nested exception",
            Holds(|c| !is_nested(c) || kind(c) == EventKind::HardwareException)),
        rule("ctl.inject.nested_unsupported", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "a nested exception is injected only if the processor supports that",
            Holds(|c| !is_nested(c) || c.caps.basic.get(VmxBasic::NESTED_EXCEPTION))),
        rule("ctl.inject.reserved", &[INJECTED_EVENT_IDENTIFICATION.any()],
            "bits 30:14 and 12 of the injected event's identification are 0", Zero(InjectedEvent::RESERVED as u64)),
    ]),
    group(ENTRY_TITLE, Test(|c| c.injected().is_some() && has_error_code(c)), [
        rule("ctl.inject.error_code_high", &[INJECTED_EVENT_ERROR_CODE.any(), INJECTED_EVENT_IDENTIFICATION.any()],
            "bits 31:16 of the injected error code are 0", Zero(0xffff_0000)),
    ]),
    group(ENTRY_TITLE, Test(|c| c.injected().is_some() && is_software(kind(c))), [
        rule("ctl.inject.length_range", &[VM_ENTRY_INSTRUCTION_LENGTH.any(), INJECTED_EVENT_IDENTIFICATION.any()],
            "the instruction length of an injected software event is at most 15",
            Holds(|c| c.get(VM_ENTRY_INSTRUCTION_LENGTH) <= LONGEST_INSTRUCTION)),
        rule("ctl.inject.length_zero", &[VM_ENTRY_INSTRUCTION_LENGTH.any(), INJECTED_EVENT_IDENTIFICATION.any()],
            "the instruction length of an injected software event is 0 only if the processor supports that",
            Holds(|c| c.get(VM_ENTRY_INSTRUCTION_LENGTH) != 0 || c.caps.misc.get(VmxMisc::ZERO_LENGTH_INJECTION))),
    ]),
    group(ENTRY_TITLE, Test(|c| c.get(VM_ENTRY_MSR_LOAD_COUNT) != 0), [
        rule("ctl.entry.msr_load.align", &[VM_ENTRY_MSR_LOAD_ADDRESS.any(), VM_ENTRY_MSR_LOAD_COUNT.any()],
            "the VM-entry MSR-load list is 16-byte aligned", Zero(MSR_ENTRY)),
        rule("ctl.entry.msr_load.width", &[VM_ENTRY_MSR_LOAD_ADDRESS.any(), VM_ENTRY_MSR_LOAD_COUNT.any()],
            "the VM-entry MSR-load list begins within the physical-address width", InPhysicalWidth),
        rule("ctl.entry.msr_load.last", &[VM_ENTRY_MSR_LOAD_ADDRESS.any(), VM_ENTRY_MSR_LOAD_COUNT.any()],
            "the VM-entry MSR-load list ends within the physical-address width",
            Holds(|c| c.fits(last_byte(c.get(VM_ENTRY_MSR_LOAD_ADDRESS).0, c.get(VM_ENTRY_MSR_LOAD_COUNT))))),
    ]),
    group(ENTRY_TITLE, Always, [
        rule("ctl.entry.smm_outside_smm", &[VM_ENTRY_CONTROLS.any()],
            "no entry to SMM is made from outside SMM", Zero(ENTRY_TO_SMM.mask())),
        rule("ctl.entry.deactivate_outside_smm", &[VM_ENTRY_CONTROLS.any()],
            "dual-monitor treatment is not deactivated from outside SMM",
            Zero(DEACTIVATE_DUAL_MONITOR_TREATMENT.mask())),
    ]),
];
}

const SECONDARY_AND_PRIMARY: &[crate::field::AnyField] = &[
    SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
    PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
];
const ERROR_CODE_IN_PROTECTED_MODE: &[crate::field::AnyField] = &[
    INJECTED_EVENT_IDENTIFICATION.any(),
    GUEST_CR0.any(),
    SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
];

/// Is `other` 1 if `control` is?
fn needs(c: &Ctx, control: Control, other: Control) -> bool {
    !c.has(control) || c.has(other)
}

fn memory_type_exists(c: &Ctx) -> bool {
    match c.get(EPTP).get(Eptp::MEMORY_TYPE) {
        memory_type::UC => c.caps.ept_vpid.get(EptVpidCap::UC),
        memory_type::WB => c.caps.ept_vpid.get(EptVpidCap::WB),
        _ => false,
    }
}

fn walk_length_exists(c: &Ctx) -> bool {
    match c.get(EPTP).get(Eptp::WALK_LENGTH_MINUS_1) {
        3 => c.caps.ept_vpid.get(EptVpidCap::WALK_LENGTH_4),
        4 => c.caps.ept_vpid.get(EptVpidCap::WALK_LENGTH_5),
        _ => false,
    }
}

/// A bit of the EPT pointer that may be 1 only with a capability.
fn eptp_bit(c: &Ctx, bit: u64, capability: u64) -> Allowed {
    let may_be_one = if c.caps.ept_vpid.0 & capability == 0 { !bit } else { u64::MAX };
    Allowed { must_be_one: 0, may_be_one }
}

fn switches_eptps(c: &Ctx) -> bool {
    c.has(ENABLE_VM_FUNCTIONS) && c.get(VM_FUNCTION_CONTROLS) & EPTP_SWITCHING != 0
}

/// The last byte of an MSR list that is not empty.
fn last_byte(start: u64, count: u32) -> Option<u64> {
    start.checked_add(u64::from(count) * MSR_ENTRY_SIZE - 1)
}

fn kind(c: &Ctx) -> EventKind {
    c.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::KIND)
}
fn number(c: &Ctx) -> u8 {
    c.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::VECTOR)
}
fn has_error_code(c: &Ctx) -> bool {
    c.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::HAS_ERROR_CODE)
}
fn is_nested(c: &Ctx) -> bool {
    c.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::NESTED_EXCEPTION)
}
fn takes_any_error_code(c: &Ctx) -> bool {
    c.caps.basic.get(VmxBasic::ANY_ERROR_CODE)
}

/// The exceptions that have an error code, for processors that check it: those of before control protection.
const fn exception_has_error_code(number: u8) -> bool {
    use vector::{AC, DF, GP, NP, PF, SS, TS};
    matches!(number, DF | TS | NP | SS | GP | PF | AC)
}

fn must_have_error_code(c: &Ctx) -> bool {
    kind(c) == EventKind::HardwareException
        && exception_has_error_code(number(c))
        && !takes_any_error_code(c)
        && (c.is_protected() || !c.has(UNRESTRICTED_GUEST))
}

fn may_have_error_code(c: &Ctx) -> bool {
    kind(c) != EventKind::HardwareException || takes_any_error_code(c) || exception_has_error_code(number(c))
}

const fn is_software(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::SoftwareInterrupt | EventKind::PrivilegedSoftwareException | EventKind::SoftwareException
    )
}
