//! Guest state of vmcs02: vmcs12's, and from L1 what its entry does not load. SDM Vol. 3, "Loading Guest State".

use crate::areas;
use crate::ept01::Ept01;
use vmcs12::addr::{Gpa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::efer;
use vmcs12::control::*;
use vmcs12::field::{Field, Vmcs, table::*};

/// Bits of CR0 that VM entry never changes.
const KEPT_CR0: u64 = cr0::ET | cr0::CD | cr0::NW;
/// The address of the page-directory-pointer table in CR3. SDM Vol. 3, "PAE Paging".
const PDPT: u64 = 0xffff_ffe0;
const PDPTES: [Field<u64>; 4] = [GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3];

/// State that the entry loads only with a control; without it, L2 has L1's.
#[rustfmt::skip]
const LOADED_WITH: &[(Field<u64>, Control)] = &[
    (GUEST_DR7,           LOAD_DEBUG_CONTROLS),
    (GUEST_IA32_DEBUGCTL, LOAD_DEBUG_CONTROLS),
    (GUEST_IA32_PAT,      LOAD_IA32_PAT_ON_ENTRY),
];

pub(super) fn merge(vmcs02: &mut Vmcs, vmcs01: &Vmcs, vmcs12: &Vmcs) {
    areas::copy_guest(vmcs02, vmcs12);
    vmcs02.set(VMCS_LINK_POINTER, vmcs12::addr::Pa(u64::MAX));
    for &(field, control) in LOADED_WITH {
        if !vmcs12.has(control) {
            vmcs02.set(field, vmcs01.get(field));
        }
    }
    if !vmcs12.has(LOAD_IA32_EFER_ON_ENTRY) {
        vmcs02.set(GUEST_IA32_EFER, inherited_efer(vmcs01, vmcs12));
    }
    let kept = vmcs01.get(GUEST_CR0) & KEPT_CR0;
    vmcs02.set(GUEST_CR0, vmcs12.get(GUEST_CR0) & !KEPT_CR0 | kept | cr0::ET);
}

/// Without "load IA32_EFER", LMA and LME follow the mode that is entered and the rest is L1's.
fn inherited_efer(vmcs01: &Vmcs, vmcs12: &Vmcs) -> u64 {
    let rest = vmcs01.get(GUEST_IA32_EFER) & !(efer::LMA | efer::LME);
    match vmcs12.has(IA_32E_MODE_GUEST) {
        true => rest | efer::LMA | efer::LME,
        // LME changes only where paging is on.
        false if vmcs12.get(GUEST_CR0) & cr0::PG == 0 => rest | vmcs01.get(GUEST_IA32_EFER) & efer::LME,
        false => rest,
    }
}

/// Without EPT, entry with PAE paging loads the page-directory-pointer-table entries from memory; vmcs02, which has
/// EPT, takes them from its fields.
pub(super) fn load_pdptes<P: Physical>(vmcs02: &mut Vmcs, memory: &P, ept01: &Ept01) {
    let is_pae = vmcs02.get(GUEST_CR0) & cr0::PG != 0
        && vmcs02.get(GUEST_CR4) & cr4::PAE != 0
        && !vmcs02.has(IA_32E_MODE_GUEST);
    if is_pae {
        let table = Gpa(vmcs02.get(GUEST_CR3) & PDPT);
        for (i, field) in (0..).zip(PDPTES) {
            vmcs02.set(field, memory.read_u64(ept01.machine(table.plus(8 * i))));
        }
    }
}
