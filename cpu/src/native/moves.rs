//! Moves between vector registers, memory and general registers: plain copies, worth no thunk.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use vmcs12::cpu_state::VectorState;

/// A move. Registers are numbers; of the destination's bytes, those from `bytes` up to `clear_to` become 0 and
/// the others stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Move {
    Load {
        to: u8,
        bytes: u8,
        clear_to: u8,
    },
    Store {
        from: u8,
        bytes: u8,
    },
    Copy {
        to: u8,
        from: u8,
        bytes: u8,
        clear_to: u8,
    },
    FromGeneral {
        to: u8,
        from: u8,
        bytes: u8,
        clear_to: u8,
    },
    ToGeneral {
        to: u8,
        from: u8,
        bytes: u8,
    },
    Zero {
        to: u8,
        clear_to: u8,
    },
    /// PMOVMSKB of an XMM register: the highest bit of each byte.
    Signs {
        to: u8,
        from: u8,
    },
}

/// Moves of a whole register.
const WHOLE: &[Mnemonic] = &[
    Mnemonic::Movups,
    Mnemonic::Movupd,
    Mnemonic::Movaps,
    Mnemonic::Movapd,
    Mnemonic::Movdqu,
    Mnemonic::Movdqa,
    Mnemonic::Lddqu,
    Mnemonic::Movntps,
    Mnemonic::Movntpd,
    Mnemonic::Movntdq,
    Mnemonic::Movntdqa,
    Mnemonic::Vmovups,
    Mnemonic::Vmovupd,
    Mnemonic::Vmovaps,
    Mnemonic::Vmovapd,
    Mnemonic::Vmovdqu,
    Mnemonic::Vmovdqa,
    Mnemonic::Vlddqu,
    Mnemonic::Vmovntps,
    Mnemonic::Vmovntpd,
    Mnemonic::Vmovntdq,
    Mnemonic::Vmovntdqa,
];
/// Moves of 4 or 8 bytes that clear the rest of the destination register.
const LOW: &[Mnemonic] = &[Mnemonic::Movd, Mnemonic::Movq, Mnemonic::Vmovd, Mnemonic::Vmovq];
/// Likewise with a memory operand; from register to register they merge, and are thunks.
const LOW_OF_MEMORY: &[Mnemonic] = &[Mnemonic::Movss, Mnemonic::Movsd, Mnemonic::Vmovss, Mnemonic::Vmovsd];
/// Stores of the low 8 bytes; the loads merge, and are thunks.
const LOW_STORES: &[Mnemonic] = &[Mnemonic::Movlps, Mnemonic::Movlpd, Mnemonic::Vmovlps, Mnemonic::Vmovlpd];
/// Differences of a register and itself.
const CLEARING: &[Mnemonic] =
    &[Mnemonic::Pxor, Mnemonic::Xorps, Mnemonic::Xorpd, Mnemonic::Vpxor, Mnemonic::Vxorps, Mnemonic::Vxorpd];

impl Move {
    /// The move that an instruction is, if it is one.
    pub fn of(inst: &Instruction) -> Option<Self> {
        let touches_mmx = (0..inst.op_count()).any(|op| inst.op_register(op).is_mm());
        if touches_mmx {
            None
        } else if inst.mnemonic() == Mnemonic::Pmovmskb {
            Some(Self::Signs { to: number(inst.op0_register()), from: number(inst.op1_register()) })
        } else if CLEARING.contains(&inst.mnemonic()) {
            clearing(inst)
        } else {
            copying(inst)
        }
    }
}

/// A legacy instruction leaves the upper half of the YMM register, VEX clears it. SDM Vol. 1, "Legacy SSE and AVX".
fn clear_to(inst: &Instruction) -> u8 {
    if inst.code().encoding() == EncodingKind::VEX { 32 } else { 16 }
}

fn clearing(inst: &Instruction) -> Option<Move> {
    let sources = inst.op_count().checked_sub(2)?;
    let both_registers = (sources..inst.op_count()).all(|op| inst.op_kind(op) == OpKind::Register);
    let same = inst.op_register(sources) == inst.op_register(sources + 1);
    (both_registers && same)
        .then(|| Move::Zero { to: inst.op0_register().number() as u8, clear_to: clear_to(inst) })
}

fn copying(inst: &Instruction) -> Option<Move> {
    let mnemonic = inst.mnemonic();
    let (to_memory, from_memory) = (inst.op0_kind() == OpKind::Memory, inst.op1_kind() == OpKind::Memory);
    let is_move = inst.op_count() == 2
        && (WHOLE.contains(&mnemonic)
            || LOW.contains(&mnemonic)
            || LOW_OF_MEMORY.contains(&mnemonic) && (to_memory || from_memory)
            || LOW_STORES.contains(&mnemonic) && to_memory);
    if !is_move {
        return None;
    }
    let (to, from) = (inst.op0_register(), inst.op1_register());
    let (to_number, from_number) = (number(to), number(from));
    let clear_to = clear_to(inst);
    Some(if to_memory {
        Move::Store { from: from_number, bytes: inst.memory_size().size() as u8 }
    } else if from_memory {
        Move::Load { to: to_number, bytes: inst.memory_size().size() as u8, clear_to }
    } else if from.is_gpr() {
        Move::FromGeneral { to: to_number, from: from_number, bytes: from.size() as u8, clear_to }
    } else if to.is_gpr() {
        Move::ToGeneral { to: to_number, from: from_number, bytes: to.size() as u8 }
    } else {
        let bytes = if LOW.contains(&mnemonic) { 8 } else { to.size() as u8 };
        Move::Copy { to: to_number, from: from_number, bytes, clear_to }
    })
}

fn number(register: Register) -> u8 {
    if register == Register::None { 0 } else { register.number() as u8 }
}

/// What a move reads or writes besides vector registers.
pub struct Outside<'a> {
    /// The general registers.
    pub general: &'a mut [u64; 16],
    /// The memory operand's bounce buffer.
    pub operand: &'a mut super::Operand,
}

impl Move {
    /// Makes the move.
    #[inline(always)]
    pub fn run(self, state: &mut VectorState, outside: &mut Outside<'_>) {
        match self {
            Self::Load { to, bytes, clear_to } => {
                write(state, to, &outside.operand.0[..usize::from(bytes)], clear_to);
            }
            Self::Store { from, bytes } => {
                let bytes = usize::from(bytes);
                outside.operand.0[..bytes].copy_from_slice(&state.ymm[index(from)][..bytes]);
            }
            Self::Copy { to, from, bytes, clear_to } => {
                let source = state.ymm[index(from)];
                write(state, to, &source[..usize::from(bytes)], clear_to);
            }
            Self::FromGeneral { to, from, bytes, clear_to } => {
                let source = outside.general[index(from)].to_le_bytes();
                write(state, to, &source[..usize::from(bytes)], clear_to);
            }
            Self::ToGeneral { to, from, bytes } => {
                let mut value = [0; 8];
                value[..usize::from(bytes)].copy_from_slice(&state.ymm[index(from)][..usize::from(bytes)]);
                outside.general[index(to)] = u64::from_le_bytes(value);
            }
            Self::Signs { to, from } => outside.general[index(to)] = signs(&state.ymm[index(from)]),
            Self::Zero { to, clear_to } => write(state, to, &[], clear_to),
        }
    }
}

/// The highest bit of each of the low 16 bytes.
#[inline(always)]
pub fn signs(register: &[u8; 32]) -> u64 {
    use core::arch::x86_64::{_mm_loadu_si128, _mm_movemask_epi8};
    // SAFETY: the register's 16 bytes are readable, and every x86-64 host has SSE2.
    let mask = unsafe { _mm_movemask_epi8(_mm_loadu_si128(register.as_ptr().cast())) };
    u64::from(mask as u32)
}

const fn index(register: u8) -> usize {
    (register & 15) as usize
}

#[inline(always)]
fn write(state: &mut VectorState, to: u8, value: &[u8], clear_to: u8) {
    let register = &mut state.ymm[index(to)];
    register[..value.len()].copy_from_slice(value);
    register[value.len()..usize::from(clear_to)].fill(0);
}
