//! From bytes to operations: iced-x86 decodes, and the tables of `interpret` say which handler runs.

use crate::block::{Handler, MAX_BLOCK, Op};
use crate::interpret::{self, operand::extra};
use crate::state::{BLOCK_RIP, CodeSize, Cpu, ZERO};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind, Register};
use vmcs12::arch::segment::SegmentRegister;

/// `Cpu::gpr` index of FS.base in 64-bit mode.
pub(crate) const FS_BASE: usize = 18;
/// `Cpu::gpr` index of GS.base in 64-bit mode.
pub(crate) const GS_BASE: usize = 19;

/// An instruction being turned into an operation.
pub(crate) struct Decoding<'a> {
    pub inst: &'a Instruction,
    pub size: CodeSize,
    /// The memory operand can be addressed as [`interpret::operand::Flat`].
    pub flat: bool,
    pub lacks: crate::state::Lacks,
}

/// The handler of an instruction, and whether the block ends with it.
#[derive(Clone, Copy)]
pub(crate) struct Selected {
    pub run: Handler,
    pub ends: bool,
    /// The handler that leaves the status flags alone, for when nobody reads those of this instruction.
    pub quiet: Option<Handler>,
}

impl Selected {
    /// The block goes on.
    pub fn next(run: Handler) -> Self {
        Self { run, ends: false, quiet: None }
    }
    /// The block ends.
    pub fn end(run: Handler) -> Self {
        Self { run, ends: true, quiet: None }
    }
}

/// Decodes a block of at most `most` instructions from `bytes`, which stand at `rip`; returns the length of the
/// bytes used. `None`: the bytes end in the first instruction.
pub(crate) fn block(cpu: &mut Cpu, rip: u64, bytes: &[u8], most: usize, ops: &mut Vec<Op>) -> Option<u64> {
    let bits = match cpu.code_size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let mut inst = Instruction::default();
    let mut used = 0;
    let mut flags = Flags::default();
    while ops.len() < most {
        decoder.decode_out(&mut inst);
        let failed = inst.is_invalid();
        if failed && decoder.last_error() == DecoderError::NoMoreBytes {
            if ops.is_empty() && bytes.len() < 15 {
                return None;
            }
            if !ops.is_empty() {
                break;
            }
        }
        let mut op = Op {
            run: interpret::undefined,
            imm: 0,
            disp: 0,
            dst: 0,
            src: 0,
            base: ZERO as u8,
            scaled: ZERO as u8,
            scale: 0,
            segment: SegmentRegister::Ds as u8,
            len: inst.len() as u8,
            index: ops.len() as u8,
            delta: used as u16,
            extra: ZERO as u16,
        };
        let selected = if failed {
            let too_long = decoder.last_error() == DecoderError::NoMoreBytes;
            Selected::end(if too_long { interpret::too_long } else { interpret::undefined })
        } else {
            select(cpu, &inst, &mut op)
        };
        op.run = selected.run;
        ops.push(op);
        flags.note(&inst, selected);
        used += inst.len() as u64;
        if selected.ends || failed {
            flags.quieten(ops);
            return Some(used.max(1));
        }
    }
    flags.quieten(ops);
    let last = *ops.last()?;
    let mut end = last;
    (end.run, end.index, end.delta, end.len) = (interpret::end_of_block, last.index + 1, used as u16, 0);
    ops.push(end);
    Some(used)
}

/// What each instruction of a block does with the status flags, as iced-x86's bits.
#[derive(Default)]
struct Flags {
    uses: [FlagUse; MAX_BLOCK],
    len: usize,
}

#[derive(Clone, Copy, Default)]
struct FlagUse {
    read: u32,
    written: u32,
    /// The instruction may fault or leave the block: the flags before it must be exact.
    barrier: bool,
    quiet: Option<Handler>,
}

impl Flags {
    fn note(&mut self, inst: &Instruction, selected: Selected) {
        let by_cl =
            inst.op_count() > 1 && inst.op1_kind() == OpKind::Register && inst.op1_register() == Register::CL;
        let no_count =
            inst.op_count() == 2 && inst.op1_kind() == OpKind::Immediate8 && inst.immediate8() & 31 == 0;
        let counted = matches!(inst.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) || by_cl || no_count;
        self.uses[self.len] = FlagUse {
            read: inst.rflags_read(),
            // A count of 0 leaves the flags.
            written: if counted { 0 } else { inst.rflags_modified() },
            barrier: !(selected.quiet.is_some() || interpret::table::is_plain(inst)),
            quiet: selected.quiet,
        };
        self.len += 1;
    }

    /// Chooses the quiet handler where every flag that an instruction writes is written again before it is read.
    fn quieten(&self, ops: &mut [Op]) {
        let mut live = u32::MAX;
        for (used, op) in self.uses[..self.len].iter().zip(ops).rev() {
            if let Some(quiet) = used.quiet
                && used.written & live == 0
                && used.written != 0
            {
                op.run = quiet;
            }
            live = if used.barrier { u32::MAX } else { (live & !used.written) | used.read };
        }
    }
}

fn select(cpu: &mut Cpu, inst: &Instruction, op: &mut Op) -> Selected {
    let mut decoding = Decoding { inst, size: cpu.code_size, flat: false, lacks: cpu.model.lacks };
    decoding.flat = set_memory(op, &decoding);
    set_prefixes(op, inst);
    if let Some(selected) = interpret::table::select(&decoding, op) {
        return selected;
    }
    if let Some(selected) = interpret::system::select(&decoding, op) {
        return selected;
    }
    if let Some(selected) = interpret::vector::select(cpu, &decoding, op) {
        return selected;
    }
    Selected::end(interpret::undefined)
}

fn set_prefixes(op: &mut Op, inst: &Instruction) {
    if inst.has_lock_prefix() {
        op.extra |= extra::LOCK;
    }
    if inst.has_rep_prefix() {
        op.extra |= extra::REP;
    }
    if inst.has_repne_prefix() {
        op.extra |= extra::REPNE;
    }
}

/// The number of a segment register in the VMCS's order.
pub(crate) fn segment_number(register: Register) -> u8 {
    let number = match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    };
    number as u8
}

/// The segment of the memory operand. 64-bit mode ignores the prefixes of ES, CS, SS and DS.
/// SDM Vol. 1, "Segmentation in 64-Bit Mode".
fn segment(inst: &Instruction, size: CodeSize) -> Register {
    use Register::{BP, CS, DS, EBP, ES, ESP, RBP, RSP, SP, SS};
    if size != CodeSize::Bits64 || !matches!(inst.segment_prefix(), ES | CS | SS | DS) {
        return inst.memory_segment();
    }
    if matches!(inst.memory_base(), BP | EBP | RBP | SP | ESP | RSP) { SS } else { DS }
}

/// Resolves the memory operand, if there is one; returns whether it is flat.
fn set_memory(op: &mut Op, decoding: &Decoding<'_>) -> bool {
    let inst = decoding.inst;
    op.segment = segment_number(segment(inst, decoding.size));
    let address = address_size(inst);
    op.extra |= match address {
        16 => extra::ADDRESS_16,
        32 => extra::ADDRESS_32,
        _ => 0,
    };
    if !(0..inst.op_count()).any(|i| inst.op_kind(i) == OpKind::Memory) {
        return decoding.size == CodeSize::Bits64 && address == 64;
    }
    let number = |register: Register| {
        if register == Register::None { ZERO as u8 } else { register.full_register().number() as u8 }
    };
    if inst.is_ip_rel_memory_operand() {
        op.base = BLOCK_RIP as u8;
        // iced gives the target; the block's RIP plus delta and length is what the displacement counts from.
        let disp = inst.memory_displacement64().wrapping_sub(inst.next_ip()) as i64;
        let whole = disp + i64::from(op.delta) + i64::from(op.len);
        if address == 64
            && let Ok(whole) = i32::try_from(whole)
        {
            op.disp = whole;
        } else {
            op.disp = disp as i32;
            op.extra |= extra::RIP_RELATIVE;
            return false;
        }
    } else {
        op.base = number(inst.memory_base());
        op.scaled = number(inst.memory_index());
        op.scale = inst.memory_index_scale().trailing_zeros() as u8;
        let disp = inst.memory_displacement64() as i64;
        op.disp = disp as i32;
        if i64::from(op.disp) != disp && address == 64 {
            op.imm = disp as u64;
        }
    }
    let segment_base = match op.segment {
        4 => FS_BASE,
        5 => GS_BASE,
        _ => ZERO,
    };
    op.extra = (op.extra & 0xff00) | segment_base as u16;
    decoding.size == CodeSize::Bits64 && address == 64
}

/// Address size of an instruction in bits, from its registers, its displacement or its implied memory operands.
pub(crate) fn address_size(inst: &Instruction) -> u32 {
    for i in 0..inst.op_count() {
        match inst.op_kind(i) {
            OpKind::Memory => {
                let register = match (inst.memory_base(), inst.memory_index()) {
                    (Register::None, index) => index,
                    (base, _) => base,
                };
                return match register {
                    Register::None => match inst.memory_displ_size() {
                        2 => 16,
                        4 => 32,
                        8 => 64,
                        _ => inst.code_size_bits(),
                    },
                    Register::RIP => 64,
                    Register::EIP => 32,
                    _ => register.size() as u32 * 8,
                };
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 64,
            _ => {}
        }
    }
    inst.code_size_bits()
}

trait CodeBits {
    fn code_size_bits(&self) -> u32;
}

impl CodeBits for Instruction {
    fn code_size_bits(&self) -> u32 {
        match self.code_size() {
            iced_x86::CodeSize::Code16 => 16,
            iced_x86::CodeSize::Code32 => 32,
            _ => 64,
        }
    }
}

/// Byte offset of a register in `Cpu::gpr`.
pub(crate) fn register_offset(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            (register as u8 - Register::AH as u8) * 8 + 1
        }
        _ => register.full_register().number() as u8 * 8,
    }
}

/// Width in bytes of an operand.
pub(crate) fn operand_size(inst: &Instruction, i: u32) -> usize {
    match inst.op_kind(i) {
        OpKind::Register => inst.op_register(i).size(),
        OpKind::Memory
        | OpKind::MemorySegSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegRSI
        | OpKind::MemorySegDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegRDI
        | OpKind::MemoryESDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESRDI => match inst.memory_size() {
            MemorySize::Unknown => 0,
            size => size.size(),
        },
        _ => 0,
    }
}
