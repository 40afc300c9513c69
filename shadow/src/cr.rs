//! CR0 and CR4 of a guest, real and as the guest sees them. SDM Vol. 3, "Guest/Host Masks and Read Shadows for CR0 and CR4".

use vmcs12::arch::cr::cr0;
use vmcs12::caps::Capabilities;
use vmcs12::control::UNRESTRICTED_GUEST;
use vmcs12::field::{Field, Vmcs, table::*};

fn seen(vmcs: &Vmcs, register: Field<u64>, mask: Field<u64>, shadow: Field<u64>) -> u64 {
    let mask = vmcs.get(mask);
    vmcs.get(register) & !mask | vmcs.get(shadow) & mask
}

/// CR0 as the guest reads it.
pub fn seen_cr0(vmcs: &Vmcs) -> u64 {
    seen(vmcs, GUEST_CR0, CR0_GUEST_HOST_MASK, CR0_READ_SHADOW)
}

/// CR4 as the guest reads it.
pub fn seen_cr4(vmcs: &Vmcs) -> u64 {
    seen(vmcs, GUEST_CR4, CR4_GUEST_HOST_MASK, CR4_READ_SHADOW)
}

/// Gives the guest a CR0: it reads back what was given, and the register holds what VMX operation requires besides.
/// Bits that can differ must be in the guest/host mask.
pub fn load_cr0(vmcs: &mut Vmcs, machine: &Capabilities, value: u64) {
    let exempt = if vmcs.has(UNRESTRICTED_GUEST) { cr0::PE | cr0::PG } else { 0 };
    vmcs.set(GUEST_CR0, (value | machine.cr0_fixed0 & !exempt) & machine.cr0_fixed1);
    vmcs.set(CR0_READ_SHADOW, value);
}

/// Gives the guest a CR4; as [`load_cr0`].
pub fn load_cr4(vmcs: &mut Vmcs, machine: &Capabilities, value: u64) {
    vmcs.set(GUEST_CR4, (value | machine.cr4_fixed0) & machine.cr4_fixed1);
    vmcs.set(CR4_READ_SHADOW, value);
}

/// Bits of CR4 that the machine has and the profile offered to L1 lacks: a guest that sets one gets #GP, so L0
/// intercepts them in every guest.
pub fn hidden_cr4(offered: &Capabilities, machine: &Capabilities) -> u64 {
    machine.cr4_fixed1 & !offered.cr4_fixed1
}
