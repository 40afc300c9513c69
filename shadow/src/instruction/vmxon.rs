//! VMXON and VMXOFF. SDM Vol. 3, "VMX Instruction Reference"; "Enabling and Entering VMX Operation".

use super::{Failure, at_privilege_0};
use crate::cr::{seen_cr0, seen_cr4};
use crate::engine::{Engine, Host, Msrs, Operation};
use crate::mode;
use vmcs12::addr::{Gpa, Linear, Physical};
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::Exception;
use vmcs12::caps::VmxBasic;
use vmcs12::error::InstructionError;
use vmcs12::field::Vmcs;

/// IA32_FEATURE_CONTROL. SDM Vol. 3, "Enabling and Entering VMX Operation".
pub mod feature_control {
    /// The MSR is locked.
    pub const LOCK: u64 = 1 << 0;
    /// VMXON is allowed outside SMX operation.
    pub const VMX_OUTSIDE_SMX: u64 = 1 << 2;
}

impl Engine {
    pub(super) fn vmxon<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        let vmcs01 = &host.vmcs01.current;
        if mode::lacks_vmx_instructions(vmcs01) || seen_cr4(vmcs01) & cr4::VMXE == 0 {
            return Err(Failure::Fault(Exception::UD));
        }
        at_privilege_0(vmcs01)?;
        if self.in_vmx_operation() {
            return Err(Failure::Numbered(InstructionError::VmxonInRoot));
        }
        if !self.may_enter_vmx_operation(vmcs01) {
            return Err(Failure::Fault(Exception::gp(0)));
        }
        let pointer = u64::from_le_bytes(host.read_operand()?);
        if !self.is_region_address(pointer) || self.revision_at(host, pointer) != self.revision() {
            return Err(Failure::Invalid);
        }
        self.operation = Operation::Root;
        self.vmxon_pointer = Gpa(pointer);
        Ok(())
    }

    /// CR0, CR4 and IA32_FEATURE_CONTROL allow it.
    fn may_enter_vmx_operation(&self, vmcs01: &Vmcs) -> bool {
        let fits = |value: u64, fixed0: u64, fixed1: u64| value & fixed0 == fixed0 && value & !fixed1 == 0;
        let needed = feature_control::LOCK | feature_control::VMX_OUTSIDE_SMX;
        fits(seen_cr0(vmcs01), self.offered.cr0_fixed0, self.offered.cr0_fixed1)
            && fits(seen_cr4(vmcs01), self.offered.cr4_fixed0, self.offered.cr4_fixed1)
            && self.feature_control & needed == needed
    }

    /// Page-aligned, and within the physical-address width.
    pub(super) fn is_region_address(&self, pointer: u64) -> bool {
        pointer & (self.offered.beyond_physical_width() | 0xfff) == 0
    }

    /// The VMCS revision identifier, as the first dword of a region that is no shadow VMCS.
    pub(super) fn revision(&self) -> u32 {
        self.offered.basic.get(VmxBasic::REVISION)
    }

    /// The first dword of a region.
    pub(super) fn revision_at<P: Physical, L: Linear, M: Msrs>(
        &self,
        host: &Host<P, L, M>,
        pointer: u64,
    ) -> u32 {
        host.memory.read_u32(self.ept.ept01().machine(Gpa(pointer)))
    }

    pub(super) fn vmxoff<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        self.release_current(host);
        self.operation = Operation::Outside;
        Ok(())
    }
}
