//! Blocks of several instructions: flags that one leaves and another takes, registers of every width.

use super::case::is_bit_string;
use super::flags;
use super::form::{Addressing, Instance, instance_at, number};
use super::layout::*;
use super::mode::Mode;
use super::random::Random;
use super::state::Registers;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use vmcs12::arch::rflags;

const RBX: usize = 3;
const RSP: usize = 4;

/// A block, and the flags that are undefined before each of its instructions and after the last.
pub struct Block {
    pub instances: Vec<Instance>,
    undefined: Vec<u64>,
}

impl Block {
    pub fn rip(&self) -> u64 {
        self.instances[0].rip
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.instances.iter().flat_map(|instance| instance.bytes.iter().copied()).collect()
    }

    /// The flags that are undefined when the block stops at `rip`.
    pub fn undefined_at(&self, rip: u64) -> u64 {
        let at = self.instances.iter().position(|instance| instance.rip == rip);
        self.undefined[at.unwrap_or(self.instances.len())]
    }
}

/// May the form be in a block? Not if it jumps or always faults, or if its addresses depend on registers that
/// others write.
pub fn is_candidate(code: Code) -> bool {
    use Mnemonic as M;
    use iced_x86::OpCodeOperandKind as K;
    let implied =
        code.op_code().op_kinds().iter().any(|kind| matches!(kind, K::seg_rSI | K::es_rDI | K::seg_rBX_al));
    let excluded = matches!(
        code.mnemonic(),
        M::Enter
            | M::Leave
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Popa
            | M::Popad
            | M::Into
            | M::Bound
            | M::Wrfsbase
            | M::Wrgsbase
            | M::In
            | M::Out
    );
    code.flow_control() == FlowControl::Next && !implied && !excluded && !code.is_privileged()
}

/// Does an instruction keep what the others' addresses rest on, and leave a defined result?
fn is_steady(instance: &Instance) -> bool {
    let inst = &instance.inst;
    let register = |op: u32| inst.op_kind(op) == OpKind::Register && inst.op_register(op).is_gpr();
    let moves_bases =
        (0..inst.op_count()).any(|op| register(op) && matches!(number(inst.op_register(op)), RBX | RSP));
    let double = matches!(inst.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let by_cl = double && inst.op_kind(2) == OpKind::Register && inst.op1_register().size() == 2;
    !moves_bases && !is_bit_string(inst) && !by_cl && !flags::result_is_undefined(inst, 0)
}

/// iced's flag bits in the places of RFLAGS.
fn in_place(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::OF, rflags::OF),
    ];
    pairs.iter().filter(|(from, _)| bits & from != 0).fold(0, |sum, (_, to)| sum | to)
}

/// The flags that are undefined after an instruction; `None` if it reads one that is undefined before it.
fn undefined_after(inst: &Instruction, before: u64) -> Option<u64> {
    if in_place(inst.rflags_read()) & before != 0 {
        return None;
    }
    let written = in_place(inst.rflags_written() | inst.rflags_cleared() | inst.rflags_set());
    if !flags::is_shift(inst.mnemonic()) {
        return Some(before & !written | flags::undefined(inst.mnemonic()));
    }
    let last = inst.op_count() - 1;
    if inst.op_kind(last) == OpKind::Register && inst.op_register(last) == Register::CL {
        // Any count: 0 leaves the flags, others leave some undefined.
        return Some(before | rflags::CF | rflags::OF | rflags::AF);
    }
    match flags::count(inst, 0) {
        0 => Some(before),
        count => {
            let rotate = flags::is_rotate(inst.mnemonic());
            let defined = if rotate { rflags::CF | rflags::OF } else { rflags::STATUS };
            Some(before & !defined | flags::undefined_by_count(inst, count))
        }
    }
}

/// A random block of 5 to 20 instructions.
pub fn block(candidates: &[Code], mode: Mode, random: &mut Random, fs_base: u64) -> Block {
    let len = 5 + random.below(16) as usize;
    let mut rip = if random.one_in(3) { CODE + 0x1000 - random.below(100) } else { CODE + 0x400 };
    let (mut instances, mut undefined) = (Vec::new(), vec![0]);
    while instances.len() < len {
        let code = random.pick(candidates);
        let Some(instance) = instance_at(code, mode, random, rip, fs_base, Addressing::Steady) else {
            continue;
        };
        let before = *undefined.last().expect("starts with one");
        let Some(after) = undefined_after(&instance.inst, before) else { continue };
        if !is_steady(&instance) {
            continue;
        }
        rip += instance.bytes.len() as u64;
        instances.push(instance);
        undefined.push(after);
    }
    Block { instances, undefined }
}

/// Random registers for a block.
pub fn registers(mode: Mode, random: &mut Random) -> Registers {
    let mut registers = mode.fit(random.registers());
    registers.gpr[RBX] = MIDDLE + random.below(64);
    registers.gpr[RSP] = MIDDLE + 0x400 - 8 * random.below(8);
    registers
}
