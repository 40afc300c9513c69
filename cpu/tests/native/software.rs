//! What the forms that move state need of their operands, and where the host may differ from us.

use super::instructions::Sample;
use super::oracle::{MEMORY, Machine};
use super::random::Random;
use iced_x86::{Code, Mnemonic};

fn put(machine: &mut Machine, at: usize, bytes: &[u8]) {
    machine.memory[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An MXCSR, in one case of eight with a reserved bit.
fn mxcsr(random: &mut Random) -> [u8; 4] {
    let reserved = if random.below(8) == 0 { 1 << (18 + random.below(14)) } else { 0 };
    (random.next() as u32 & 0xffff | reserved).to_le_bytes()
}

/// Gives special forms an operand that makes sense, most of the time. The memory operand begins at `at`.
pub fn adapt(sample: &Sample, machine: &mut Machine, at: usize, random: &mut Random) {
    match sample.inst.mnemonic() {
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => put(machine, at, &mxcsr(random)),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            random.fill(&mut machine.memory);
            put(machine, at + 24, &mxcsr(random));
        }
        Mnemonic::Fldenv | Mnemonic::Frstor => random.fill(&mut machine.memory),
        Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64 => {
            (machine.general[0], machine.general[2]) = (random.below(8), 0);
        }
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xrstor(machine, at, random),
        _ => {}
    }
    if let Some(index) = sample.index {
        let by_qword = format!("{:?}", sample.inst.code()).contains("vm64");
        let limit = (MEMORY - at - 8) as u64 / u64::from(sample.inst.memory_index_scale());
        let register = &mut machine.vector.ymm[index.number()];
        for element in register.chunks_exact_mut(if by_qword { 8 } else { 4 }) {
            let value = random.below(limit).to_le_bytes();
            element.copy_from_slice(&value[..element.len()]);
        }
    }
}

fn xrstor(machine: &mut Machine, at: usize, random: &mut Random) {
    random.fill(&mut machine.memory);
    (machine.general[0], machine.general[2]) = (random.below(8), 0);
    put(machine, at + 24, &mxcsr(random));
    let mut header = [0u8; 64];
    let present = random.below(8);
    header[0] = present as u8;
    if random.below(2) == 0 {
        header[8] = (present | random.below(8)) as u8;
        header[15] = 0x80;
    }
    match random.below(16) {
        0 => header[0] |= 8,
        1 => header[8] |= 8,
        2 => header[0] ^= 7,
        3 => header[16 + random.below(8) as usize] = 1,
        _ => {}
    }
    put(machine, at + 512, &header);
}

/// Makes bytes of the expected memory those got: pointers, MXCSR_MASK, what is reserved, and XSTATE_BV where
/// the host has kept a component in use that is in its initial state.
pub fn forgive(code: Code, expected: &mut Machine, got: &mut Machine, at: usize) {
    let mut copy = |range: std::ops::Range<usize>| {
        let range = at + range.start..at + range.end;
        expected.memory[range.clone()].copy_from_slice(&got.memory[range]);
    };
    match code.mnemonic() {
        Mnemonic::Fnstenv | Mnemonic::Fnsave => copy(match code {
            Code::Fnstenv_m14byte | Code::Fnsave_m94byte => 6..14,
            _ => 12..28,
        }),
        Mnemonic::Fxsave
        | Mnemonic::Fxsave64
        | Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64 => {
            copy(6..24);
            copy(28..32);
        }
        _ => {}
    }
    for vector in [&mut expected.vector, &mut got.vector] {
        (vector.fop, vector.fip, vector.fcs, vector.fdp, vector.fds) = (0, 0, 0, 0, 0);
    }
}
