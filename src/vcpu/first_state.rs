//! The state in which L1's boot processor starts: what the loader asks for, and INIT's for the rest.
//! SDM Vol. 3, "Processor State After Reset".

use super::vmcs01::RESET_PAT;
use crate::boot::EntryState;
use vmcs12::arch::efer;
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::arch::state::Activity;
use vmcs12::control::IA_32E_MODE_GUEST;
use vmcs12::cpu_state::{CpuState, gpr};
use vmcs12::field::Vmcs;
use vmcs12::field::table::*;

const RESET_DR7: u64 = 0x400;

/// Writes the guest-state area, and returns what is in no VMCS.
pub fn install(vmcs: &mut Vmcs, entry: &EntryState, random: u64) -> CpuState {
    for register in SegmentRegister::ALL {
        let (fields, segment) = (register.fields(), entry.segment(register));
        vmcs.set(fields.selector, segment.selector);
        vmcs.set(fields.base, segment.base);
        vmcs.set(fields.limit, segment.limit);
        vmcs.set(fields.rights, segment.rights);
    }
    vmcs.set(GUEST_GDTR_BASE, entry.gdtr.base);
    vmcs.set(GUEST_GDTR_LIMIT, u32::from(entry.gdtr.limit));
    vmcs.set(GUEST_IDTR_BASE, entry.idtr.base);
    vmcs.set(GUEST_IDTR_LIMIT, u32::from(entry.idtr.limit));
    vmcs.set(GUEST_CR0, entry.cr0);
    vmcs.set(GUEST_CR3, entry.cr3);
    vmcs.set(GUEST_CR4, entry.cr4);
    vmcs.set(GUEST_IA32_EFER, entry.efer);
    vmcs.set_control(IA_32E_MODE_GUEST, entry.efer & efer::LMA != 0);
    vmcs.set(GUEST_RIP, entry.rip);
    vmcs.set(GUEST_RSP, entry.gpr[gpr::RSP]);
    vmcs.set(GUEST_RFLAGS, entry.rflags);
    vmcs.set(GUEST_DR7, RESET_DR7);
    vmcs.set(GUEST_IA32_PAT, RESET_PAT);
    vmcs.set(GUEST_ACTIVITY_STATE, Activity::Active as u32);
    CpuState { gpr: entry.gpr, random, ..CpuState::default() }
}
