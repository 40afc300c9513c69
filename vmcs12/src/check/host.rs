//! Checks on the host-state area. A broken rule is VMfailValid(8). SDM Vol. 3, "Checks on the Host-State Area".

use super::Expectation::{Bits, Canonical, Holds, InPhysicalWidth, Zero};
use super::When::{Always, Has, Test};
use super::{Ctx, rules};
use crate::arch::cr::{cr0, cr4};
use crate::arch::efer;
use crate::caps::Allowed;
use crate::control::*;
use crate::field::table::*;

const REGISTERS_TITLE: &str = "Checks on Host Control Registers, MSRs, and SSP";
const SEGMENTS_TITLE: &str = "Checks on Host Segment and Descriptor-Table Registers";
const ADDRESS_SPACE_TITLE: &str = "Checks Related to Address-Space Size";

/// Selector bits: requested privilege level, table indicator. SDM Vol. 3, "Segment Selectors".
const RPL: u64 = 3;
const TI: u64 = 1 << 2;
const HIGH_HALF: u64 = 0xffff_ffff_0000_0000;
/// CR0 bits that neither VM entry checks nor VM exit changes. SDM Vol. 3, "Loading Host Control Registers".
pub(super) const UNCHECKED_CR0: u64 = cr0::NW | cr0::CD;

rules! {
/// SDM Vol. 3, "Checks on Host Control Registers, MSRs, and SSP".
pub const REGISTERS = [
    group(REGISTERS_TITLE, Always, [
        rule("host.cr0.fixed", &[HOST_CR0.any()],
            "host CR0 has the bits that VMX operation fixes", Bits(|c| Allowed {
                must_be_one: c.caps.cr0_fixed0 & !UNCHECKED_CR0,
                may_be_one: c.caps.cr0_fixed1 | UNCHECKED_CR0,
            })),
        rule("host.cr4.fixed", &[HOST_CR4.any()],
            "host CR4 has the bits that VMX operation fixes",
            Bits(|c| Allowed { must_be_one: c.caps.cr4_fixed0, may_be_one: c.caps.cr4_fixed1 })),
    ]),
    group(REGISTERS_TITLE, Test(|c| c.caps.has_intel_64()), [
        rule("host.cr3.width", &[HOST_CR3.any()],
            "host CR3 is within the physical-address width", InPhysicalWidth),
        rule("host.sysenter_esp.canonical", &[HOST_IA32_SYSENTER_ESP.any()],
            "host IA32_SYSENTER_ESP is canonical", Canonical),
        rule("host.sysenter_eip.canonical", &[HOST_IA32_SYSENTER_EIP.any()],
            "host IA32_SYSENTER_EIP is canonical", Canonical),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT), [
        rule("host.perf_global_ctrl.reserved", &[HOST_IA32_PERF_GLOBAL_CTRL.any()],
            "host IA32_PERF_GLOBAL_CTRL, if loaded, has no reserved bit",
            Bits(|c| Allowed { must_be_one: 0, may_be_one: c.caps.cpuid.perf_global_ctrl })),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_IA32_PAT_ON_EXIT), [
        rule("host.pat.type", &[HOST_IA32_PAT.any()],
            "each entry of host IA32_PAT, if loaded, is a memory type", Holds(|c| is_pat(c.get(HOST_IA32_PAT)))),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_IA32_EFER_ON_EXIT), [
        rule("host.efer.reserved", &[HOST_IA32_EFER.any()],
            "host IA32_EFER, if loaded, has no reserved bit",
            Bits(|c| Allowed { must_be_one: 0, may_be_one: c.caps.cpuid.efer })),
        rule("host.efer.lma", &[HOST_IA32_EFER.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "host IA32_EFER.LMA, if loaded, is the host address-space size", Bits(|c| follows_host_size(c, efer::LMA))),
        rule("host.efer.lme", &[HOST_IA32_EFER.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "host IA32_EFER.LME, if loaded, is the host address-space size", Bits(|c| follows_host_size(c, efer::LME))),
    ]),
    group(REGISTERS_TITLE, Has(LOAD_PKRS_ON_EXIT), [
        rule("host.pkrs.high", &[HOST_IA32_PKRS.any()],
            "bits 63:32 of host IA32_PKRS, if loaded, are 0", Zero(HIGH_HALF)),
    ]),
];
}

rules! {
/// SDM Vol. 3, "Checks on Host Segment and Descriptor-Table Registers".
pub const SEGMENTS = [
    group(SEGMENTS_TITLE, Always, [
        rule("host.sel.cs.rpl", &[HOST_CS_SELECTOR.any()], "the RPL of the host CS selector is 0", Zero(RPL)),
        rule("host.sel.cs.ti",  &[HOST_CS_SELECTOR.any()], "the host CS selector is of the GDT", Zero(TI)),
        rule("host.sel.ss.rpl", &[HOST_SS_SELECTOR.any()], "the RPL of the host SS selector is 0", Zero(RPL)),
        rule("host.sel.ss.ti",  &[HOST_SS_SELECTOR.any()], "the host SS selector is of the GDT", Zero(TI)),
        rule("host.sel.ds.rpl", &[HOST_DS_SELECTOR.any()], "the RPL of the host DS selector is 0", Zero(RPL)),
        rule("host.sel.ds.ti",  &[HOST_DS_SELECTOR.any()], "the host DS selector is of the GDT", Zero(TI)),
        rule("host.sel.es.rpl", &[HOST_ES_SELECTOR.any()], "the RPL of the host ES selector is 0", Zero(RPL)),
        rule("host.sel.es.ti",  &[HOST_ES_SELECTOR.any()], "the host ES selector is of the GDT", Zero(TI)),
        rule("host.sel.fs.rpl", &[HOST_FS_SELECTOR.any()], "the RPL of the host FS selector is 0", Zero(RPL)),
        rule("host.sel.fs.ti",  &[HOST_FS_SELECTOR.any()], "the host FS selector is of the GDT", Zero(TI)),
        rule("host.sel.gs.rpl", &[HOST_GS_SELECTOR.any()], "the RPL of the host GS selector is 0", Zero(RPL)),
        rule("host.sel.gs.ti",  &[HOST_GS_SELECTOR.any()], "the host GS selector is of the GDT", Zero(TI)),
        rule("host.sel.tr.rpl", &[HOST_TR_SELECTOR.any()], "the RPL of the host TR selector is 0", Zero(RPL)),
        rule("host.sel.tr.ti",  &[HOST_TR_SELECTOR.any()], "the host TR selector is of the GDT", Zero(TI)),
        rule("host.sel.cs.nonzero", &[HOST_CS_SELECTOR.any()],
            "the host CS selector is not null", Holds(|c| c.get(HOST_CS_SELECTOR) != 0)),
        rule("host.sel.tr.nonzero", &[HOST_TR_SELECTOR.any()],
            "the host TR selector is not null", Holds(|c| c.get(HOST_TR_SELECTOR) != 0)),
        rule("host.sel.ss.nonzero", &[HOST_SS_SELECTOR.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "the host SS selector is not null unless the host is in 64-bit mode",
            Holds(|c| c.get(HOST_SS_SELECTOR) != 0 || c.has(HOST_ADDRESS_SPACE_SIZE))),
    ]),
    group(SEGMENTS_TITLE, Test(|c| c.caps.has_intel_64()), [
        rule("host.base.fs.canonical",   &[HOST_FS_BASE.any()],   "the host FS base is canonical", Canonical),
        rule("host.base.gs.canonical",   &[HOST_GS_BASE.any()],   "the host GS base is canonical", Canonical),
        rule("host.base.gdtr.canonical", &[HOST_GDTR_BASE.any()], "the host GDTR base is canonical", Canonical),
        rule("host.base.idtr.canonical", &[HOST_IDTR_BASE.any()], "the host IDTR base is canonical", Canonical),
        rule("host.base.tr.canonical",   &[HOST_TR_BASE.any()],   "the host TR base is canonical", Canonical),
    ]),
];
}

rules! {
/// SDM Vol. 3, "Checks Related to Address-Space Size".
pub const ADDRESS_SPACE = [
    group(ADDRESS_SPACE_TITLE, Test(|c| !c.entrant.long_mode), [
        rule("host.addrsize.legacy_no_ia32e_guest", &[VM_ENTRY_CONTROLS.any()],
            "no IA-32e mode guest is entered from outside IA-32e mode", Zero(IA_32E_MODE_GUEST.mask())),
        rule("host.addrsize.legacy_no_64bit_host", &[PRIMARY_VM_EXIT_CONTROLS.any()],
            "a processor outside IA-32e mode has no 64-bit host", Zero(HOST_ADDRESS_SPACE_SIZE.mask())),
    ]),
    group(ADDRESS_SPACE_TITLE, Test(|c| c.entrant.long_mode), [
        rule("host.addrsize.long_needs_64bit_host", &[PRIMARY_VM_EXIT_CONTROLS.any()],
            "a processor in IA-32e mode has a 64-bit host", Holds(|c| c.has(HOST_ADDRESS_SPACE_SIZE))),
    ]),
    group(ADDRESS_SPACE_TITLE, Test(|c| !c.has(HOST_ADDRESS_SPACE_SIZE)), [
        rule("host.addrsize.32.no_ia32e_guest", &[VM_ENTRY_CONTROLS.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "a 32-bit host has no IA-32e mode guest", Zero(IA_32E_MODE_GUEST.mask())),
        rule("host.addrsize.32.no_pcide", &[HOST_CR4.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "CR4.PCIDE of a 32-bit host is 0", Zero(cr4::PCIDE)),
        rule("host.addrsize.32.rip", &[HOST_RIP.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "bits 63:32 of a 32-bit host's RIP are 0", Zero(HIGH_HALF)),
    ]),
    group(ADDRESS_SPACE_TITLE, Has(HOST_ADDRESS_SPACE_SIZE), [
        rule("host.addrsize.64.pae", &[HOST_CR4.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "CR4.PAE of a 64-bit host is 1", Holds(|c| c.get(HOST_CR4) & cr4::PAE != 0)),
        rule("host.addrsize.64.rip", &[HOST_RIP.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "a 64-bit host's RIP is canonical", Canonical),
    ]),
    group(ADDRESS_SPACE_TITLE, Test(|c| !c.caps.has_intel_64()), [
        rule("host.addrsize.no_intel64", &[VM_ENTRY_CONTROLS.any(), PRIMARY_VM_EXIT_CONTROLS.any()],
            "a processor without Intel 64 has neither an IA-32e mode guest nor a 64-bit host",
            Holds(|c| !c.has(IA_32E_MODE_GUEST) && !c.has(HOST_ADDRESS_SPACE_SIZE))),
    ]),
];
}

/// Is each byte a memory type that IA32_PAT may hold? SDM Vol. 3, "IA32_PAT MSR".
pub(super) fn is_pat(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// A bit of IA32_EFER that is 1 exactly for a 64-bit host.
fn follows_host_size(c: &Ctx, bit: u64) -> Allowed {
    if c.has(HOST_ADDRESS_SPACE_SIZE) {
        Allowed { must_be_one: bit, may_be_one: u64::MAX }
    } else {
        Allowed { must_be_one: 0, may_be_one: !bit }
    }
}
