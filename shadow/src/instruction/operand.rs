//! Operands of VMX instructions, decoded from the exit information. SDM Vol. 3, "Information for VM Exits Due to
//! Instruction Execution".

use super::Failure;
use crate::engine::{Host, Msrs};
use crate::mode;
use vmcs12::addr::{Gva, Linear, LinearFault, Physical};
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::{AccessRights, SegmentRegister};
use vmcs12::cpu_state::{CpuState, gpr};
use vmcs12::exit::instruction_info::{InstructionInformation, MemoryOperand};
use vmcs12::field::{Vmcs, table::*};

/// What an access does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Read,
    Write,
}

/// Access-rights type bits of a data segment: writable; expand-down. Of a code segment: readable.
const WRITABLE_OR_READABLE: u8 = 1 << 1;
const EXPAND_DOWN: u8 = 1 << 2;
const CODE: u8 = 1 << 3;

impl<P: Physical, L: Linear, M: Msrs> Host<'_, P, L, M> {
    pub(super) fn information(&self) -> InstructionInformation {
        InstructionInformation(self.vmcs01.current.get(VM_EXIT_INSTRUCTION_INFORMATION))
    }

    /// A register operand: 64 bits in 64-bit mode, 32 otherwise.
    pub(super) fn register(&self, number: u8) -> u64 {
        let value = full_register(&self.vmcs01.current, self.state, number);
        if mode::is_64_bit(&self.vmcs01.current) { value } else { value & 0xffff_ffff }
    }

    /// Writes a register operand. A 32-bit result clears bits 63:32.
    pub(super) fn set_register(&mut self, number: u8, value: u64) {
        if usize::from(number) == gpr::RSP {
            self.vmcs01.current.set(GUEST_RSP, value);
        } else {
            self.state.gpr[usize::from(number & 15)] = value;
        }
    }

    /// Reads the memory operand.
    pub(super) fn read_operand<const N: usize>(&mut self) -> Result<[u8; N], Failure> {
        let at = self.operand_address(N as u64, Direction::Read)?;
        let mut bytes = [0; N];
        match self.linear.read(at, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(LinearFault::Exception(exception)) => Err(Failure::Fault(exception)),
            Err(LinearFault::Ept(_)) => Ok([0xff; N]),
        }
    }

    /// Writes the memory operand.
    pub(super) fn write_operand(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let at = self.operand_address(bytes.len() as u64, Direction::Write)?;
        match self.linear.write(at, bytes) {
            Err(LinearFault::Exception(exception)) => Err(Failure::Fault(exception)),
            Ok(()) | Err(LinearFault::Ept(_)) => Ok(()),
        }
    }

    /// The linear address of the memory operand, its segment checked. SDM Vol. 3, "Limit Checking", "Type Checking".
    fn operand_address(&self, bytes: u64, direction: Direction) -> Result<Gva, Failure> {
        let vmcs = &self.vmcs01.current;
        let operand = self.information().memory();
        let segment = segment(operand.segment);
        let offset = effective_address(vmcs, self.state, operand);
        let refused = match segment {
            SegmentRegister::Ss => Exception::ss(0),
            _ => Exception::gp(0),
        };
        let address = if mode::is_64_bit(vmcs) {
            canonical(vmcs, segment_base_64(vmcs, segment).wrapping_add(offset), bytes)
        } else {
            segmented(vmcs, segment, offset, bytes, direction)
        };
        address.map(Gva).ok_or(Failure::Fault(refused))
    }
}

fn full_register(vmcs: &Vmcs, state: &CpuState, number: u8) -> u64 {
    match usize::from(number & 15) {
        gpr::RSP => vmcs.get(GUEST_RSP),
        other => state.gpr[other],
    }
}

fn segment(number: u8) -> SegmentRegister {
    // Only six values are defined; the others do not come from a processor.
    SegmentRegister::ALL[usize::from(number).min(SegmentRegister::Gs as usize)]
}

fn effective_address(vmcs: &Vmcs, state: &CpuState, operand: MemoryOperand) -> u64 {
    let register = |number| full_register(vmcs, state, number);
    let base = operand.base.map_or(0, register);
    let index = operand.index.map_or(0, |(number, scaling)| register(number) << scaling);
    let displacement = vmcs.get(EXIT_QUALIFICATION);
    base.wrapping_add(index).wrapping_add(displacement) & operand.address_size.mask()
}

/// In 64-bit mode only FS and GS have a base.
fn segment_base_64(vmcs: &Vmcs, segment: SegmentRegister) -> u64 {
    match segment {
        SegmentRegister::Fs | SegmentRegister::Gs => vmcs.get(segment.fields().base),
        _ => 0,
    }
}

fn canonical(vmcs: &Vmcs, address: u64, bytes: u64) -> Option<u64> {
    let unused = if vmcs.get(GUEST_CR4) & cr4::LA57 != 0 { 64 - 57 } else { 64 - 48 };
    let extended = |address: u64| ((address << unused) as i64 >> unused) as u64 == address;
    (extended(address) && extended(address.wrapping_add(bytes - 1))).then_some(address)
}

/// Protection outside 64-bit mode: a usable segment of the right type, and all bytes within its limit.
fn segmented(
    vmcs: &Vmcs,
    segment: SegmentRegister,
    offset: u64,
    bytes: u64,
    direction: Direction,
) -> Option<u64> {
    let fields = segment.fields();
    let (rights, limit) = (vmcs.get(fields.rights), u64::from(vmcs.get(fields.limit)));
    let kind = rights.get(AccessRights::TYPE);
    let (is_code, has_bit_1) = (kind & CODE != 0, kind & WRITABLE_OR_READABLE != 0);
    let permitted = match direction {
        Direction::Read => !is_code || has_bit_1,
        Direction::Write => !is_code && has_bit_1,
    };
    let last = offset.checked_add(bytes - 1)?;
    let inside = if !is_code && kind & EXPAND_DOWN != 0 {
        let top = if rights.get(AccessRights::DB) { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    (rights.is_usable() && permitted && inside)
        .then(|| vmcs.get(fields.base).wrapping_add(offset) & 0xffff_ffff)
}
