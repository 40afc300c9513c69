//! IN, OUT, INS and OUTS. SDM Vol. 1, "Input/Output"; Vol. 3, "Exit Qualification for I/O Instructions".

use super::trap::{Then, Trap};
use crate::machine::board::end_of;
use vmcs12::addr::{Gva, Linear, LinearFault};
use vmcs12::arch::event::Exception;
use vmcs12::arch::rflags;
use vmcs12::bits;
use vmcs12::cpu_state::gpr;
use vmcs12::exit::qualification::IoInstruction;
use vmcs12::field::table::*;

/// Iterations of REP INS and REP OUTS between two looks at interrupts.
const MOST_ITERATIONS: u64 = 1024;

bits! {
    /// The VM-exit instruction-information field of INS and OUTS.
    pub struct StringInformation: u32 {
        ADDRESS_SIZE  9:7 u8;
    }
}

/// An exit by an I/O instruction.
pub fn instruction(trap: &mut Trap) -> Then {
    let access = IoInstruction(trap.vmcs.current.get(EXIT_QUALIFICATION));
    let size = access.get(IoInstruction::SIZE_MINUS_1) + 1;
    let port = access.get(IoInstruction::PORT);
    match (access.get(IoInstruction::STRING), access.get(IoInstruction::IN)) {
        (true, _) => string(trap, access, port, size),
        (false, true) => {
            let value = read(trap, port, size);
            trap.state.gpr[gpr::RAX] = merge(trap.state.gpr[gpr::RAX], value, size);
            Then::Next
        }
        (false, false) => {
            let value = trap.state.gpr[gpr::RAX] as u32;
            write(trap, port, size, value).unwrap_or(Then::Next)
        }
    }
}

fn read(trap: &mut Trap, port: u16, size: u8) -> u32 {
    let now = trap.board.clock.now_ns();
    trap.board.devices.io_read(port, size, now)
}

/// `Some` if the write ends the run.
fn write(trap: &mut Trap, port: u16, size: u8, value: u32) -> Option<Then> {
    let now = trap.board.clock.now_ns();
    let request = trap.board.devices.io_write(port, size, value, now)?;
    Some(Then::End(end_of(request)))
}

/// A register after a write of its low `size` bytes: 32-bit results clear bits 63:32.
fn merge(old: u64, value: u32, size: u8) -> u64 {
    match size {
        1 => old & !0xff | u64::from(value & 0xff),
        2 => old & !0xffff | u64::from(value & 0xffff),
        _ => u64::from(value),
    }
}

/// An address register in its address size: wraps around, and 32-bit results clear bits 63:32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct AddressSize {
    mask: u64,
    kept: u64,
}

impl AddressSize {
    fn from_encoding(encoding: u8) -> Self {
        match encoding {
            0 => Self { mask: 0xffff, kept: !0xffff },
            1 => Self { mask: 0xffff_ffff, kept: 0 },
            _ => Self { mask: u64::MAX, kept: 0 },
        }
    }
    fn add(self, register: u64, n: u64) -> u64 {
        register & self.kept | register.wrapping_add(n) & self.mask
    }
}

/// INS and OUTS, by iterations that each commit: an exception in one leaves those before it done.
fn string(trap: &mut Trap, access: IoInstruction, port: u16, size: u8) -> Then {
    let information = StringInformation(trap.vmcs.current.get(VM_EXIT_INSTRUCTION_INFORMATION));
    let address_size = AddressSize::from_encoding(information.get(StringInformation::ADDRESS_SIZE));
    let input = access.get(IoInstruction::IN);
    let index = if input { gpr::RDI } else { gpr::RSI };
    let repeats = access.get(IoInstruction::REP);
    let left = trap.state.gpr[gpr::RCX] & address_size.mask;
    if repeats && left == 0 {
        return Then::Next;
    }
    let first = trap.state.gpr[index] & address_size.mask;
    let base = trap.vmcs.current.get(GUEST_LINEAR_ADDRESS).wrapping_sub(first);
    let backwards = trap.vmcs.current.get(GUEST_RFLAGS) & rflags::DF != 0;
    let step = if backwards { u64::from(size).wrapping_neg() } else { u64::from(size) };

    let iterations = if repeats { left.min(MOST_ITERATIONS) } else { 1 };
    for done in 0..iterations {
        let at = Gva(base.wrapping_add(trap.state.gpr[index] & address_size.mask));
        let moved = if input { input_to(trap, at, port, size) } else { output_from(trap, at, port, size) };
        match moved {
            Ok(None) => {}
            Ok(Some(end)) => return end,
            Err(exception) => {
                trap.board.retire(done);
                return Then::Raise(exception);
            }
        }
        trap.state.gpr[index] = address_size.add(trap.state.gpr[index], step);
        if repeats {
            trap.state.gpr[gpr::RCX] = address_size.add(trap.state.gpr[gpr::RCX], u64::MAX);
        }
    }
    if repeats && left > iterations {
        return Then::Again(iterations);
    }
    trap.board.retire(iterations - 1);
    Then::Next
}

/// One iteration of INS. The destination is read first, so that the port is not read if the write would fault.
fn input_to(trap: &mut Trap, at: Gva, port: u16, size: u8) -> Result<Option<Then>, Exception> {
    let mut old = [0; 4];
    let bytes = &mut old[..usize::from(size.min(4))];
    memory(trap.soft.linear().read(at, bytes))?;
    memory(trap.soft.linear().write(at, bytes))?;
    let value = read(trap, port, size).to_le_bytes();
    memory(trap.soft.linear().write(at, &value[..usize::from(size.min(4))]))?;
    Ok(None)
}

/// One iteration of OUTS.
fn output_from(trap: &mut Trap, at: Gva, port: u16, size: u8) -> Result<Option<Then>, Exception> {
    let mut bytes = [0; 4];
    memory(trap.soft.linear().read(at, &mut bytes[..usize::from(size.min(4))]))?;
    Ok(write(trap, port, size, u32::from_le_bytes(bytes)))
}

/// Device memory as the other operand of INS or OUTS reads zeros and drops writes: nobody has both.
fn memory(done: Result<(), LinearFault>) -> Result<(), Exception> {
    match done {
        Ok(()) | Err(LinearFault::Ept(_)) => Ok(()),
        Err(LinearFault::Exception(exception)) => Err(exception),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_replaces_the_low_bytes_and_32_bits_clear_the_upper_half() {
        assert_eq!(merge(0x1122_3344_5566_7788, 0xaabb_ccdd, 1), 0x1122_3344_5566_77dd);
        assert_eq!(merge(0x1122_3344_5566_7788, 0xaabb_ccdd, 2), 0x1122_3344_5566_ccdd);
        assert_eq!(merge(0x1122_3344_5566_7788, 0xaabb_ccdd, 4), 0xaabb_ccdd);
    }

    #[test]
    fn address_registers_wrap_in_their_size() {
        let add = |encoding, register, n| AddressSize::from_encoding(encoding).add(register, n);
        assert_eq!(add(0, 0x1_ffff, 2), 0x1_0001);
        assert_eq!(add(1, 0x5_ffff_ffff, 2), 1);
        assert_eq!(add(2, u64::MAX, 2), 1);
    }
}
