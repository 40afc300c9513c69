//! Random instructions of a form.

use super::random::Random;
use iced_x86::{Code, Encoder, EncodingKind, Instruction, OpCodeOperandKind, OpKind, Register};
use std::collections::BTreeSet;

/// An instruction, and the registers that its memory operand is addressed by.
pub struct Sample {
    pub inst: Instruction,
    pub base: Option<Register>,
    /// The vector register with the indices of a gather.
    pub index: Option<Register>,
}

/// An instruction of this form with random operands, encoded for 64-bit mode; memory operands are [base].
/// `None` if an operand is of a kind that no form under test has.
pub fn random_instruction(code: Code, random: &mut Random) -> Option<Sample> {
    let sample = unchecked(code, random)?;
    // A general operand must not be the base of the memory operand, or the test would lose the address.
    let clash = registers(&sample.inst).any(|register| Some(register.full_register()) == sample.base);
    let vectors: BTreeSet<_> = registers(&sample.inst).chain(sample.index).map(Register::number).collect();
    let distinct = sample.index.is_none() || vectors.len() == 3;
    if clash || !distinct { random_instruction(code, random) } else { Some(sample) }
}

fn registers(inst: &Instruction) -> impl Iterator<Item = Register> + '_ {
    (0..inst.op_count()).filter(|&op| inst.op_kind(op) == OpKind::Register).map(|op| inst.op_register(op))
}

fn unchecked(code: Code, random: &mut Random) -> Option<Sample> {
    let info = code.op_code();
    let mut inst = Instruction::default();
    inst.set_code(code);
    let base = [
        Register::RBX,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R12,
        Register::R13,
    ][random.below(7) as usize];
    let mut index = None;
    let mut memory = None;
    let prefer_memory = random.below(2) == 0;
    for (op, &kind) in info.op_kinds().iter().enumerate() {
        let op = op as u32;
        match operand(kind, prefer_memory, random)? {
            Choice::Memory => {
                memory = Some(base);
                inst.set_op_kind(op, OpKind::Memory);
                inst.set_memory_base(base);
            }
            Choice::Scattered(first) => {
                let register = first + random.below(16) as u32;
                (memory, index) = (Some(base), Some(register));
                inst.set_op_kind(op, OpKind::Memory);
                inst.set_memory_base(base);
                inst.set_memory_index(register);
                inst.set_memory_index_scale(1 << random.below(4));
            }
            Choice::Destination => {
                memory = Some(Register::RDI);
                inst.set_op_kind(op, OpKind::MemorySegRDI);
            }
            Choice::Register(register) => {
                inst.set_op_kind(op, OpKind::Register);
                inst.set_op_register(op, register);
            }
            Choice::Immediate => {
                inst.set_op_kind(op, OpKind::Immediate8);
                inst.set_immediate8(random.next() as u8);
            }
        }
    }
    Some(Sample { inst, base: memory, index })
}

enum Choice {
    Memory,
    Scattered(Register),
    Destination,
    Register(Register),
    Immediate,
}

fn operand(kind: OpCodeOperandKind, prefer_memory: bool, random: &mut Random) -> Option<Choice> {
    use OpCodeOperandKind as K;
    let pick = |first: Register, random: &mut Random| {
        let number = random.below(16) as u32;
        // The stack pointer is the host's own.
        let is_stack = first.is_gpr() && (number == 4 || number == 20);
        Choice::Register(first + if is_stack { 3 } else { number })
    };
    let or_memory = |first: Register, random: &mut Random| {
        if prefer_memory { Choice::Memory } else { pick(first, random) }
    };
    let mm = |random: &mut Random| Choice::Register(Register::MM0 + random.below(8) as u32);
    Some(match kind {
        K::mem => Choice::Memory,
        K::r8_or_mem if prefer_memory => Choice::Memory,
        K::r8_or_mem => Choice::Register(
            [Register::AL, Register::CL, Register::DL, Register::BL, Register::SIL, Register::R9L]
                [random.below(6) as usize],
        ),
        K::r16_or_mem => or_memory(Register::AX, random),
        K::r32_or_mem => or_memory(Register::EAX, random),
        K::r64_or_mem => or_memory(Register::RAX, random),
        K::mm_or_mem if prefer_memory => Choice::Memory,
        K::mm_or_mem | K::mm_reg | K::mm_rm => mm(random),
        K::xmm_or_mem => or_memory(Register::XMM0, random),
        K::ymm_or_mem => or_memory(Register::YMM0, random),
        K::r32_reg | K::r32_rm | K::r32_vvvv => pick(Register::EAX, random),
        K::r64_reg | K::r64_rm | K::r64_vvvv => pick(Register::RAX, random),
        K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => pick(Register::XMM0, random),
        K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => pick(Register::YMM0, random),
        K::ax => Choice::Register(Register::AX),
        K::st0 => Choice::Register(Register::ST0),
        K::sti_opcode => Choice::Register(Register::ST0 + random.below(8) as u32),
        K::imm8 => Choice::Immediate,
        K::mem_vsib32x | K::mem_vsib64x => Choice::Scattered(Register::XMM0),
        K::mem_vsib32y | K::mem_vsib64y => Choice::Scattered(Register::YMM0),
        K::seg_rDI => Choice::Destination,
        _ => return None,
    })
}

/// The encoding.
pub fn encode(inst: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder.encode(inst, 0).unwrap_or_else(|error| panic!("{:?}: {error}", inst.code()));
    encoder.take_buffer()
}

/// The forms of 64-bit mode that could be executed here.
pub fn candidates() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        let info = code.op_code();
        matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && info.is_instruction()
            && info.mode64()
    })
}
