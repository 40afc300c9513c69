//! The mode that a guest is in, and the end of an instruction that L0 completes for it.

use vmcs12::arch::cr::cr0;
use vmcs12::arch::segment::AccessRights;
use vmcs12::arch::state::{InterruptibilityState, PendingDebugExceptions};
use vmcs12::arch::{efer, rflags};
use vmcs12::field::{Vmcs, table::*};

/// The current privilege level: the DPL of SS. SDM Vol. 3, "Guest Register State".
#[inline]
pub fn privilege(vmcs: &Vmcs) -> u8 {
    vmcs.get(GUEST_SS_ACCESS_RIGHTS).get(AccessRights::DPL)
}

/// Is IA-32e mode active?
#[inline]
pub fn is_long(vmcs: &Vmcs) -> bool {
    vmcs.get(GUEST_IA32_EFER) & efer::LMA != 0
}

/// Is the guest in 64-bit mode?
#[inline]
pub fn is_64_bit(vmcs: &Vmcs) -> bool {
    is_long(vmcs) && vmcs.get(GUEST_CS_ACCESS_RIGHTS).get(AccessRights::L)
}

/// The modes in which VMX instructions are undefined: real-address, virtual-8086 and compatibility mode.
pub fn lacks_vmx_instructions(vmcs: &Vmcs) -> bool {
    vmcs.get(GUEST_CR0) & cr0::PE == 0
        || vmcs.get(GUEST_RFLAGS) & rflags::VM != 0
        || (is_long(vmcs) && !is_64_bit(vmcs))
}

/// Moves RIP past the instruction that exited, as the processor does when it completes one: blocking by STI and MOV
/// SS ends, and RFLAGS.TF makes a single-step trap pending.
pub fn skip_instruction(vmcs: &mut Vmcs) {
    let next = vmcs.get(GUEST_RIP).wrapping_add(u64::from(vmcs.get(VM_EXIT_INSTRUCTION_LENGTH)));
    vmcs.set(GUEST_RIP, if is_64_bit(vmcs) { next } else { next & 0xffff_ffff });
    end_blocking(vmcs);
    let flags = vmcs.get(GUEST_RFLAGS);
    vmcs.set(GUEST_RFLAGS, flags & !rflags::RF);
    if flags & rflags::TF != 0 {
        let pending = vmcs.get(GUEST_PENDING_DEBUG_EXCEPTIONS).with(PendingDebugExceptions::BS, true);
        vmcs.set(GUEST_PENDING_DEBUG_EXCEPTIONS, pending);
    }
}

fn end_blocking(vmcs: &mut Vmcs) {
    let state = vmcs.get(GUEST_INTERRUPTIBILITY_STATE);
    let ended = state.with(InterruptibilityState::STI, false).with(InterruptibilityState::MOV_SS, false);
    if ended != state {
        vmcs.set(GUEST_INTERRUPTIBILITY_STATE, ended);
    }
}
