//! Checks on the guest-state area. A broken rule is an exit with reason 33. SDM Vol. 3, "Checks on the Guest State Area".

use super::Expectation::{Bits, Canonical, Holds, InPhysicalWidth, Zero};
use super::When::{Always, Has, Test};
use super::host::{UNCHECKED_CR0, is_pat};
use super::{Ctx, NO_LINK, rules};
use crate::arch::cr::{cr0, cr4};
use crate::arch::event::{EventKind, InjectedEvent, vector};
use crate::arch::segment::AccessRights;
use crate::arch::state::{Activity, InterruptibilityState as Blocking, PendingDebugExceptions as Pending};
use crate::arch::{debugctl, efer, rflags};
use crate::caps::{Allowed, VmxMisc};
use crate::control::*;
use crate::exit::qualification::entry_failure::{LINK_POINTER, NMI_BLOCKED_BY_STI, PDPTE};
use crate::field::{AnyField, Field, table::*};
use crate::region::SHADOW_INDICATOR;

const REGISTERS_TITLE: &str = "Checks on Guest Control Registers, Debug Registers, and MSRs";
const DESCRIPTOR_TABLES_TITLE: &str = "Checks on Guest Descriptor-Table Registers";
const RIP_TITLE: &str = "Checks on Guest RIP, RFLAGS, and SSP";
const NON_REGISTER_TITLE: &str = "Checks on Guest Non-Register State";
const PDPTES_TITLE: &str = "Checks on Guest Page-Directory-Pointer-Table Entries";

const HIGH_HALF: u64 = 0xffff_ffff_0000_0000;
const PAGE: u64 = 0xfff;

rules! {
/// SDM Vol. 3, "Checks on Guest Control Registers, Debug Registers, and MSRs".
pub const REGISTERS = [
    group(REGISTERS_TITLE, Always, [
        rule("guest.cr0.fixed", &[GUEST_CR0.any(), SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "CR0 has the bits that VMX operation fixes; an unrestricted guest may clear PE and PG", Bits(fixed_cr0)),
        rule("guest.cr0.pg_needs_pe", &[GUEST_CR0.any()],
            "CR0.PG comes with CR0.PE", Holds(|c| c.get(GUEST_CR0) & cr0::PG == 0 || c.is_protected())),
        rule("guest.cr4.fixed", &[GUEST_CR4.any()],
            "CR4 has the bits that VMX operation fixes",
            Bits(|c| Allowed { must_be_one: c.caps.cr4_fixed0, may_be_one: c.caps.cr4_fixed1 })),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_DEBUG_CONTROLS), [
        rule("guest.debugctl.reserved", &[GUEST_IA32_DEBUGCTL.any()],
            "IA32_DEBUGCTL, if loaded, has no reserved bit",
            Bits(|c| Allowed { must_be_one: 0, may_be_one: c.caps.cpuid.debugctl })),
        rule("guest.dr7.high", &[GUEST_DR7.any()], "bits 63:32 of DR7, if loaded, are 0", Zero(HIGH_HALF)),
    ]),
    group(REGISTERS_TITLE, Has(IA_32E_MODE_GUEST), [
        rule("guest.ia32e.pg", &[GUEST_CR0.any(), VM_ENTRY_CONTROLS.any()],
            "an IA-32e mode guest has paging", Holds(|c| c.get(GUEST_CR0) & cr0::PG != 0)),
        rule("guest.ia32e.pae", &[GUEST_CR4.any(), VM_ENTRY_CONTROLS.any()],
            "an IA-32e mode guest has CR4.PAE", Holds(|c| c.get(GUEST_CR4) & cr4::PAE != 0)),
    ]),
    group(REGISTERS_TITLE, Test(|c| !c.has(IA_32E_MODE_GUEST)), [
        rule("guest.cr4.pcide_needs_ia32e", &[GUEST_CR4.any(), VM_ENTRY_CONTROLS.any()],
            "CR4.PCIDE is 0 outside IA-32e mode", Zero(cr4::PCIDE)),
    ]),
    group(REGISTERS_TITLE, Test(|c| c.caps.has_intel_64()), [
        rule("guest.cr3.width", &[GUEST_CR3.any()], "CR3 is within the physical-address width", InPhysicalWidth),
        rule("guest.sysenter_esp.canonical", &[GUEST_IA32_SYSENTER_ESP.any()],
            "IA32_SYSENTER_ESP is canonical", Canonical),
        rule("guest.sysenter_eip.canonical", &[GUEST_IA32_SYSENTER_EIP.any()],
            "IA32_SYSENTER_EIP is canonical", Canonical),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_IA32_PERF_GLOBAL_CTRL_ON_ENTRY), [
        rule("guest.perf_global_ctrl.reserved", &[GUEST_IA32_PERF_GLOBAL_CTRL.any()],
            "IA32_PERF_GLOBAL_CTRL, if loaded, has no reserved bit",
            Bits(|c| Allowed { must_be_one: 0, may_be_one: c.caps.cpuid.perf_global_ctrl })),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_IA32_PAT_ON_ENTRY), [
        rule("guest.pat.type", &[GUEST_IA32_PAT.any()],
            "each entry of IA32_PAT, if loaded, is a memory type", Holds(|c| is_pat(c.get(GUEST_IA32_PAT)))),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_IA32_EFER_ON_ENTRY), [
        rule("guest.efer.reserved", &[GUEST_IA32_EFER.any()],
            "IA32_EFER, if loaded, has no reserved bit",
            Bits(|c| Allowed { must_be_one: 0, may_be_one: c.caps.cpuid.efer })),
        rule("guest.efer.lma", &[GUEST_IA32_EFER.any(), VM_ENTRY_CONTROLS.any()],
            "IA32_EFER.LMA, if loaded, is the control \"IA-32e mode guest\"",
            Holds(|c| (c.get(GUEST_IA32_EFER) & efer::LMA != 0) == c.has(IA_32E_MODE_GUEST))),
        rule("guest.efer.lme", &[GUEST_IA32_EFER.any(), GUEST_CR0.any()],
            "IA32_EFER.LME, if loaded, is LMA while paging is on", Holds(lme_is_lma)),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_IA32_BNDCFGS), [
        rule("guest.bndcfgs.reserved", &[GUEST_IA32_BNDCFGS.any()],
            "bits 11:2 of IA32_BNDCFGS, if loaded, are 0", Zero(0xffc)),
        rule("guest.bndcfgs.canonical", &[GUEST_IA32_BNDCFGS.any()],
            "the address in IA32_BNDCFGS, if loaded, is canonical", Canonical),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_PKRS_ON_ENTRY), [
        rule("guest.pkrs.high", &[GUEST_IA32_PKRS.any()],
            "bits 63:32 of IA32_PKRS, if loaded, are 0", Zero(HIGH_HALF)),
    ]),
    group(DESCRIPTOR_TABLES_TITLE, Always, [
        rule("guest.gdtr.base_canonical", &[GUEST_GDTR_BASE.any()], "the GDTR base is canonical", Canonical),
        rule("guest.gdtr.limit_high", &[GUEST_GDTR_LIMIT.any()], "bits 31:16 of the GDTR limit are 0", Zero(0xffff_0000)),
        rule("guest.idtr.base_canonical", &[GUEST_IDTR_BASE.any()], "the IDTR base is canonical", Canonical),
        rule("guest.idtr.limit_high", &[GUEST_IDTR_LIMIT.any()], "bits 31:16 of the IDTR limit are 0", Zero(0xffff_0000)),
    ]),
];
}

rules! {
/// SDM Vol. 3, "Checks on Guest RIP, RFLAGS, and SSP".
pub const RIP_RFLAGS = [
    group(RIP_TITLE, Test(|c| !is_64_bit(c) && c.caps.has_intel_64()), [
        rule("guest.rip.high", &[GUEST_RIP.any(), GUEST_CS_ACCESS_RIGHTS.any(), VM_ENTRY_CONTROLS.any()],
            "bits 63:32 of RIP are 0 outside 64-bit mode", Zero(HIGH_HALF)),
    ]),
    group(RIP_TITLE, Test(is_64_bit), [
        rule("guest.rip.upper_identical", &[GUEST_RIP.any(), GUEST_CS_ACCESS_RIGHTS.any()],
            "the bits of RIP beyond the linear-address width are identical",
            Holds(|c| has_identical_upper_bits(c.get(GUEST_RIP), c.caps.linear_width))),
    ]),
    group(RIP_TITLE, Always, [
        rule("guest.rflags.reserved_zero", &[GUEST_RFLAGS.any()],
            "bits 63:22, 15, 5 and 3 of RFLAGS are 0", Zero(!rflags::ALL)),
        rule("guest.rflags.bit1", &[GUEST_RFLAGS.any()],
            "bit 1 of RFLAGS is 1", Holds(|c| c.get(GUEST_RFLAGS) & rflags::FIXED != 0)),
    ]),
    group(RIP_TITLE, Test(|c| c.is_virtual_8086()), [
        rule("guest.rflags.vm_ia32e", &[GUEST_RFLAGS.any(), VM_ENTRY_CONTROLS.any()],
            "RFLAGS.VM is 0 in IA-32e mode", Holds(|c| !c.has(IA_32E_MODE_GUEST))),
        rule("guest.rflags.vm_real", &[GUEST_RFLAGS.any(), GUEST_CR0.any()],
            "RFLAGS.VM is 0 in real-address mode", Holds(|c| c.is_protected())),
    ]),
    group(RIP_TITLE, Test(|c| injects(c, EventKind::ExternalInterrupt)), [
        rule("guest.rflags.if_extint", &[GUEST_RFLAGS.any(), INJECTED_EVENT_IDENTIFICATION.any()],
            "RFLAGS.IF is 1 if an external interrupt is injected", Holds(|c| c.get(GUEST_RFLAGS) & rflags::IF != 0)),
    ]),
];
}

rules! {
/// SDM Vol. 3, "Checks on Guest Non-Register State".
pub const NON_REGISTER = [
    group(NON_REGISTER_TITLE, Always, [
        rule("guest.activity.value", &[GUEST_ACTIVITY_STATE.any()],
            "the activity state is one that the processor supports", Holds(activity_exists)),
        rule("guest.activity.hlt_dpl", &[GUEST_ACTIVITY_STATE.any(), GUEST_SS_ACCESS_RIGHTS.any()],
            "a guest in the HLT state has CPL 0", Holds(|c| activity(c) != Some(Activity::Hlt) || ss_dpl(c) == 0)),
        rule("guest.activity.blocking_needs_active", &[GUEST_ACTIVITY_STATE.any(), GUEST_INTERRUPTIBILITY_STATE.any()],
            "a guest with blocking by STI or MOV SS is active",
            Holds(|c| activity(c) == Some(Activity::Active) || !(blocks(c, Blocking::STI) || blocks(c, Blocking::MOV_SS)))),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| c.injected().is_some()), [
        rule("guest.activity.hlt_injection", &[GUEST_ACTIVITY_STATE.any(), INJECTED_EVENT_IDENTIFICATION.any()],
            "an event injected into a guest in the HLT state is an interrupt, an NMI, #DB, #MC or an MTF VM exit",
            Holds(|c| activity(c) != Some(Activity::Hlt) || wakes_from_hlt(c))),
        rule("guest.activity.shutdown_injection", &[GUEST_ACTIVITY_STATE.any(), INJECTED_EVENT_IDENTIFICATION.any()],
            "an event injected into a guest in the shutdown state is an NMI or #MC",
            Holds(|c| activity(c) != Some(Activity::Shutdown) || wakes_from_shutdown(c))),
        rule("guest.activity.sipi_injection", &[GUEST_ACTIVITY_STATE.any(), INJECTED_EVENT_IDENTIFICATION.any()],
            "no event is injected into a guest in the wait-for-SIPI state",
            Holds(|c| activity(c) != Some(Activity::WaitForSipi))),
    ]),
    group(NON_REGISTER_TITLE, Has(ENTRY_TO_SMM), [
        rule("guest.activity.smm_sipi", &[GUEST_ACTIVITY_STATE.any(), VM_ENTRY_CONTROLS.any()],
            "a guest entered in SMM does not wait for SIPI", Holds(|c| activity(c) != Some(Activity::WaitForSipi))),
    ]),
    group(NON_REGISTER_TITLE, Always, [
        rule("guest.intr.reserved", &[GUEST_INTERRUPTIBILITY_STATE.any()],
            "bits 31:5 of the interruptibility state are 0", Zero(Blocking::RESERVED as u64)),
        rule("guest.intr.sti_and_mov_ss", &[GUEST_INTERRUPTIBILITY_STATE.any()],
            "blocking by STI and blocking by MOV SS are not both 1",
            Holds(|c| !(blocks(c, Blocking::STI) && blocks(c, Blocking::MOV_SS)))),
        rule("guest.intr.sti_needs_if", &[GUEST_INTERRUPTIBILITY_STATE.any(), GUEST_RFLAGS.any()],
            "blocking by STI comes with RFLAGS.IF",
            Holds(|c| !blocks(c, Blocking::STI) || c.get(GUEST_RFLAGS) & rflags::IF != 0)),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| injects(c, EventKind::ExternalInterrupt)), [
        rule("guest.intr.extint_sti", BLOCKING_AND_EVENT,
            "an external interrupt is not injected under blocking by STI", Zero(Blocking::STI.mask())),
        rule("guest.intr.extint_mov_ss", BLOCKING_AND_EVENT,
            "an external interrupt is not injected under blocking by MOV SS", Zero(Blocking::MOV_SS.mask())),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| injects(c, EventKind::Nmi)), [
        rule("guest.intr.nmi_mov_ss", BLOCKING_AND_EVENT,
            "an NMI is not injected under blocking by MOV SS", Zero(Blocking::MOV_SS.mask())),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| injects(c, EventKind::Nmi)), [
        rule("guest.intr.nmi_sti", BLOCKING_AND_EVENT,
            "an NMI is not injected under blocking by STI", Zero(Blocking::STI.mask())),
    ], NMI_BLOCKED_BY_STI),
    group(NON_REGISTER_TITLE, Always, [
        rule("guest.intr.smi_outside_smm", &[GUEST_INTERRUPTIBILITY_STATE.any()],
            "blocking by SMI is 0 outside SMM", Zero(Blocking::SMI.mask())),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| c.has(VIRTUAL_NMIS) && injects(c, EventKind::Nmi)), [
        rule("guest.intr.nmi_virtual_nmi",
            &[GUEST_INTERRUPTIBILITY_STATE.any(), INJECTED_EVENT_IDENTIFICATION.any(), PIN_BASED_VM_EXECUTION_CONTROLS.any()],
            "an NMI is not injected under virtual-NMI blocking", Zero(Blocking::NMI.mask())),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| blocks(c, Blocking::ENCLAVE)), [
        rule("guest.intr.enclave_mov_ss", &[GUEST_INTERRUPTIBILITY_STATE.any()],
            "an enclave interruption excludes blocking by MOV SS", Zero(Blocking::MOV_SS.mask())),
        rule("guest.intr.enclave_sgx", &[GUEST_INTERRUPTIBILITY_STATE.any()],
            "an enclave interruption needs SGX", Holds(|c| c.caps.cpuid.sgx)),
    ]),
    group(NON_REGISTER_TITLE, Always, [
        rule("guest.pending_dbg.reserved", &[GUEST_PENDING_DEBUG_EXCEPTIONS.any()],
            "bits 10:4, 13, 15 and 63:17 of the pending debug exceptions are 0", Zero(Pending::RESERVED)),
        rule("guest.pending_dbg.bld", &[GUEST_PENDING_DEBUG_EXCEPTIONS.any()],
            "bit BLD of the pending debug exceptions is 0 without OS bus-lock detection", Zero(Pending::BLD.mask())),
        rule("guest.pending_dbg.bs_required", BS_FIELDS,
            "bit BS of the pending debug exceptions is 1 if a single-step trap is held back",
            Holds(|c| !is_held_back(c) || !single_steps(c) || pending(c).get(Pending::BS))),
        rule("guest.pending_dbg.bs_forbidden", BS_FIELDS,
            "bit BS of the pending debug exceptions is 0 if no single-step trap can be held back",
            Holds(|c| !is_held_back(c) || single_steps(c) || !pending(c).get(Pending::BS))),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| pending(c).get(Pending::RTM)), [
        rule("guest.pending_dbg.rtm_bits", &[GUEST_PENDING_DEBUG_EXCEPTIONS.any()],
            "a debug exception in a transactional region is alone, with an enabled breakpoint",
            Holds(|c| pending(c).with(Pending::RTM, false) == Pending::default().with(Pending::ENABLED_BP, true))),
        rule("guest.pending_dbg.rtm_support", &[GUEST_PENDING_DEBUG_EXCEPTIONS.any()],
            "a debug exception in a transactional region needs RTM", Holds(|c| c.caps.cpuid.rtm)),
        rule("guest.pending_dbg.rtm_mov_ss", &[GUEST_PENDING_DEBUG_EXCEPTIONS.any(), GUEST_INTERRUPTIBILITY_STATE.any()],
            "a debug exception in a transactional region excludes blocking by MOV SS",
            Holds(|c| !blocks(c, Blocking::MOV_SS))),
    ]),
    group(NON_REGISTER_TITLE, Test(|c| c.get(VMCS_LINK_POINTER).0 != NO_LINK), [
        rule("guest.link.align", &[VMCS_LINK_POINTER.any()], "the VMCS link pointer is page-aligned", Zero(PAGE)),
        rule("guest.link.width", &[VMCS_LINK_POINTER.any()],
            "the VMCS link pointer is within the physical-address width", InPhysicalWidth),
        rule("guest.link.revision", &[VMCS_LINK_POINTER.any()],
            "the linked VMCS has the processor's revision identifier", Holds(has_linked_revision)),
        rule("guest.link.shadow_bit", &[VMCS_LINK_POINTER.any(), SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()],
            "the linked VMCS is a shadow VMCS exactly with VMCS shadowing",
            Holds(|c| (c.memory.linked_revision & SHADOW_INDICATOR != 0) == c.has(VMCS_SHADOWING))),
        rule("guest.link.not_current", &[VMCS_LINK_POINTER.any()],
            "the VMCS link pointer is not the current-VMCS pointer",
            Holds(|c| c.get(VMCS_LINK_POINTER).0 != c.entrant.current_vmcs)),
    ], LINK_POINTER),
];
}

rules! {
/// SDM Vol. 3, "Checks on Guest Page-Directory-Pointer-Table Entries".
pub const PDPTES = [
    group(PDPTES_TITLE, Test(|c| c.uses_pae_paging() && c.has(ENABLE_EPT)), [
        rule("guest.pdpte0.vmcs", &[GUEST_PDPTE0.any()], "PDPTE 0 has no reserved bit", Holds(|c| is_field_pdpte(c, GUEST_PDPTE0))),
        rule("guest.pdpte1.vmcs", &[GUEST_PDPTE1.any()], "PDPTE 1 has no reserved bit", Holds(|c| is_field_pdpte(c, GUEST_PDPTE1))),
        rule("guest.pdpte2.vmcs", &[GUEST_PDPTE2.any()], "PDPTE 2 has no reserved bit", Holds(|c| is_field_pdpte(c, GUEST_PDPTE2))),
        rule("guest.pdpte3.vmcs", &[GUEST_PDPTE3.any()], "PDPTE 3 has no reserved bit", Holds(|c| is_field_pdpte(c, GUEST_PDPTE3))),
    ], PDPTE),
    group(PDPTES_TITLE, Test(|c| c.uses_pae_paging() && !c.has(ENABLE_EPT)), [
        rule("guest.pdpte0.memory", &[GUEST_CR3.any()], "PDPTE 0 in memory has no reserved bit", Holds(|c| is_pdpte(c, c.memory.pdptes[0]))),
        rule("guest.pdpte1.memory", &[GUEST_CR3.any()], "PDPTE 1 in memory has no reserved bit", Holds(|c| is_pdpte(c, c.memory.pdptes[1]))),
        rule("guest.pdpte2.memory", &[GUEST_CR3.any()], "PDPTE 2 in memory has no reserved bit", Holds(|c| is_pdpte(c, c.memory.pdptes[2]))),
        rule("guest.pdpte3.memory", &[GUEST_CR3.any()], "PDPTE 3 in memory has no reserved bit", Holds(|c| is_pdpte(c, c.memory.pdptes[3]))),
    ], PDPTE),
];
}

const BLOCKING_AND_EVENT: &[AnyField] =
    &[GUEST_INTERRUPTIBILITY_STATE.any(), INJECTED_EVENT_IDENTIFICATION.any()];
const BS_FIELDS: &[AnyField] = &[
    GUEST_PENDING_DEBUG_EXCEPTIONS.any(),
    GUEST_RFLAGS.any(),
    GUEST_IA32_DEBUGCTL.any(),
    GUEST_INTERRUPTIBILITY_STATE.any(),
    GUEST_ACTIVITY_STATE.any(),
];

fn fixed_cr0(c: &Ctx) -> Allowed {
    let exempt = if c.has(UNRESTRICTED_GUEST) { cr0::PE | cr0::PG } else { 0 };
    Allowed {
        must_be_one: c.caps.cr0_fixed0 & !UNCHECKED_CR0 & !exempt,
        may_be_one: c.caps.cr0_fixed1 | UNCHECKED_CR0,
    }
}

fn lme_is_lma(c: &Ctx) -> bool {
    let value = c.get(GUEST_IA32_EFER);
    c.get(GUEST_CR0) & cr0::PG == 0 || (value & efer::LME != 0) == (value & efer::LMA != 0)
}

fn is_64_bit(c: &Ctx) -> bool {
    c.has(IA_32E_MODE_GUEST) && c.get(GUEST_CS_ACCESS_RIGHTS).get(AccessRights::L)
}

/// Are bits 63:N identical? Bit N-1 may differ from them: less than canonical.
fn has_identical_upper_bits(address: u64, width: u32) -> bool {
    let upper = (address as i64).checked_shr(width).unwrap_or(0);
    upper == 0 || upper == -1
}

fn injects(c: &Ctx, kind: EventKind) -> bool {
    c.injected().is_some_and(|event| event.get(InjectedEvent::KIND) == kind)
}

fn activity(c: &Ctx) -> Option<Activity> {
    Activity::from_raw(c.get(GUEST_ACTIVITY_STATE))
}

fn activity_exists(c: &Ctx) -> bool {
    match activity(c) {
        Some(Activity::Active) => true,
        Some(Activity::Hlt) => c.caps.misc.get(VmxMisc::HLT),
        Some(Activity::Shutdown) => c.caps.misc.get(VmxMisc::SHUTDOWN),
        Some(Activity::WaitForSipi) => c.caps.misc.get(VmxMisc::WAIT_FOR_SIPI),
        None => false,
    }
}

fn ss_dpl(c: &Ctx) -> u8 {
    c.get(GUEST_SS_ACCESS_RIGHTS).get(AccessRights::DPL)
}

fn blocks(c: &Ctx, by: crate::bits::Bits<Blocking, bool>) -> bool {
    c.get(GUEST_INTERRUPTIBILITY_STATE).get(by)
}

fn wakes_from_hlt(c: &Ctx) -> bool {
    let event = c.get(INJECTED_EVENT_IDENTIFICATION);
    match event.get(InjectedEvent::KIND) {
        EventKind::ExternalInterrupt | EventKind::Nmi => true,
        EventKind::HardwareException => matches!(event.get(InjectedEvent::VECTOR), vector::DB | vector::MC),
        EventKind::Other => event.get(InjectedEvent::VECTOR) == 0,
        EventKind::Reserved1
        | EventKind::SoftwareInterrupt
        | EventKind::PrivilegedSoftwareException
        | EventKind::SoftwareException => false,
    }
}

fn wakes_from_shutdown(c: &Ctx) -> bool {
    let event = c.get(INJECTED_EVENT_IDENTIFICATION);
    injects(c, EventKind::Nmi)
        || (injects(c, EventKind::HardwareException) && event.get(InjectedEvent::VECTOR) == vector::MC)
}

fn pending(c: &Ctx) -> Pending {
    c.get(GUEST_PENDING_DEBUG_EXCEPTIONS)
}

/// Are debug traps of the last instruction held back?
fn is_held_back(c: &Ctx) -> bool {
    blocks(c, Blocking::STI) || blocks(c, Blocking::MOV_SS) || activity(c) == Some(Activity::Hlt)
}

fn single_steps(c: &Ctx) -> bool {
    c.get(GUEST_RFLAGS) & rflags::TF != 0 && c.get(GUEST_IA32_DEBUGCTL) & debugctl::BTF == 0
}

fn has_linked_revision(c: &Ctx) -> bool {
    c.memory.linked_revision & !SHADOW_INDICATOR == c.caps.basic.get(crate::caps::VmxBasic::REVISION)
}

/// Bits 2:1 and 8:5 of a PDPTE with PAE paging. SDM Vol. 3, "PDPTE Registers".
const PDPTE_RESERVED: u64 = 0x1e6;

fn is_pdpte(c: &Ctx, entry: u64) -> bool {
    entry & 1 == 0 || entry & (PDPTE_RESERVED | c.caps.beyond_physical_width()) == 0
}

fn is_field_pdpte(c: &Ctx, field: Field<u64>) -> bool {
    is_pdpte(c, c.get(field))
}
