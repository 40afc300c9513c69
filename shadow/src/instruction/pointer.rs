//! VMCLEAR, VMPTRLD and VMPTRST. SDM Vol. 3, "VMX Instruction Reference".

use super::Failure;
use crate::engine::{Engine, Host, Msrs};
use vmcs12::addr::{Gpa, Linear, Physical};
use vmcs12::control::VMCS_SHADOWING;
use vmcs12::error::InstructionError;
use vmcs12::region::{self, LaunchState};

/// VMPTRST without a current VMCS.
const NO_CURRENT: u64 = u64::MAX;

impl Engine {
    pub(super) fn vmclear<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        let pointer = u64::from_le_bytes(host.read_operand()?);
        if !self.is_region_address(pointer) {
            return Err(Failure::Numbered(InstructionError::VmclearInvalidAddress));
        }
        if Gpa(pointer) == self.vmxon_pointer {
            return Err(Failure::Numbered(InstructionError::VmclearVmxonPointer));
        }
        if self.is_current(Gpa(pointer)) {
            self.release_current(host);
        }
        let launch_state = self.ept.ept01().machine(Gpa(pointer)).plus(region::LAUNCH_STATE as u64);
        host.memory.write_u32(launch_state, LaunchState::Clear as u32);
        Ok(())
    }

    pub(super) fn vmptrld<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        let pointer = u64::from_le_bytes(host.read_operand()?);
        if !self.is_region_address(pointer) {
            return Err(Failure::Numbered(InstructionError::VmptrldInvalidAddress));
        }
        if Gpa(pointer) == self.vmxon_pointer {
            return Err(Failure::Numbered(InstructionError::VmptrldVmxonPointer));
        }
        let first = self.revision_at(host, pointer);
        let is_shadow = first & region::SHADOW_INDICATOR != 0;
        if first & !region::SHADOW_INDICATOR != self.revision()
            || (is_shadow && !self.offered.can_be_one(VMCS_SHADOWING))
        {
            return Err(Failure::Numbered(InstructionError::VmptrldWrongRevision));
        }
        if !self.is_current(Gpa(pointer)) {
            self.release_current(host);
            self.make_current(host, Gpa(pointer));
        }
        Ok(())
    }

    pub(super) fn vmptrst<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        let pointer = self.current_pointer().map_or(NO_CURRENT, |pointer| pointer.0);
        host.write_operand(&pointer.to_le_bytes())
    }
}
