//! VMREAD and VMWRITE that the processor does not complete by itself. SDM Vol. 3, "VMX Instruction Reference";
//! "VMREAD, VMWRITE, and Encodings of VMCS Fields".

use super::Failure;
use crate::engine::{Engine, Host, Msrs};
use crate::mode;
use vmcs12::addr::{Linear, Physical};
use vmcs12::caps::{Capabilities, VmxMisc};
use vmcs12::error::InstructionError;
use vmcs12::exit::instruction_info::InstructionInformation;
use vmcs12::field::{AnyField, Area, Vmcs, Width, table::GUEST_RIP};

/// Encoding bit 0: the high 32 bits of a 64-bit field.
const HIGH: u32 = 1;

/// A field as an operand names it: the whole, or the high half of a 64-bit field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Named {
    Full(AnyField),
    High(AnyField),
}

impl Named {
    /// The field that an encoding names, if the profile has it.
    pub(crate) fn from_encoding(encoding: u64, offered: &Capabilities) -> Option<Self> {
        let encoding = u32::try_from(encoding).ok()?;
        let field = AnyField::from_encoding(encoding & !HIGH).filter(|&field| offered.field_exists(field))?;
        match encoding & HIGH {
            0 => Some(Self::Full(field)),
            _ => (field.row().width() == Width::W64).then_some(Self::High(field)),
        }
    }

    pub(crate) fn is_full(self) -> bool {
        matches!(self, Self::Full(_))
    }

    pub(crate) fn field(self) -> AnyField {
        match self {
            Self::Full(field) | Self::High(field) => field,
        }
    }

    fn read(self, vmcs: &Vmcs) -> u64 {
        match self {
            Self::Full(field) => vmcs.raw(field),
            Self::High(field) => vmcs.raw(field) >> 32,
        }
    }

    fn write(self, vmcs: &mut Vmcs, value: u64) {
        match self {
            Self::Full(field) => vmcs.set_raw(field, value),
            Self::High(field) => vmcs.set_raw(field, vmcs.raw(field) & 0xffff_ffff | value << 32),
        }
    }
}

/// May VMWRITE write the field?
pub(crate) fn is_writable(field: AnyField, offered: &Capabilities) -> bool {
    field.row().area() != Area::ExitInformation || offered.misc.get(VmxMisc::VMWRITE_ANY_FIELD)
}

impl Engine {
    pub(super) fn vmread<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        let information = host.information();
        let encoding = host.register(information.get(InstructionInformation::REGISTER_2));
        let vmcs12 = host.vmcs01.linked.as_deref().ok_or(Failure::Invalid)?;
        let named = Named::from_encoding(encoding, &self.offered).ok_or(UNSUPPORTED)?;
        let value = named.read(vmcs12);
        self.counters.vmreads += 1;
        match (information.get(InstructionInformation::IS_REGISTER), mode::is_64_bit(&host.vmcs01.current)) {
            (true, true) => host.set_register(information.get(InstructionInformation::REGISTER_1), value),
            (true, false) => {
                host.set_register(information.get(InstructionInformation::REGISTER_1), value & 0xffff_ffff)
            }
            (false, true) => host.write_operand(&value.to_le_bytes())?,
            (false, false) => host.write_operand(&(value as u32).to_le_bytes())?,
        }
        Ok(())
    }

    pub(super) fn vmwrite<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
    ) -> Result<(), Failure> {
        self.in_root_operation(host)?;
        let information = host.information();
        let encoding = host.register(information.get(InstructionInformation::REGISTER_2));
        if host.vmcs01.linked.is_none() {
            return Err(Failure::Invalid);
        }
        let value = match (
            information.get(InstructionInformation::IS_REGISTER),
            mode::is_64_bit(&host.vmcs01.current),
        ) {
            (true, _) => host.register(information.get(InstructionInformation::REGISTER_1)),
            (false, true) => u64::from_le_bytes(host.read_operand()?),
            (false, false) => u64::from(u32::from_le_bytes(host.read_operand()?)),
        };
        let named = Named::from_encoding(encoding, &self.offered).ok_or(UNSUPPORTED)?;
        if !is_writable(named.field(), &self.offered) {
            return Err(Failure::Numbered(InstructionError::ReadOnlyField));
        }
        let rip = host.vmcs01.current.get(GUEST_RIP);
        if let Some(vmcs12) = host.vmcs01.linked.as_deref_mut() {
            named.write(vmcs12, value);
        }
        if let Some(writers) = host.vmcs01.writers.as_deref_mut() {
            writers[named.field().slot()] = rip;
        }
        self.counters.vmwrites += 1;
        Ok(())
    }
}

const UNSUPPORTED: Failure = Failure::Numbered(InstructionError::UnsupportedField);
