//! From a decoded instruction to a plan for its thunk: which registers it names, what it does to memory,
//! what gates it.

use super::features::Features;
use super::gate::Class;
use super::simd;
use super::thunk::{self, Plan, Slot, Use};
use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic,
    OpAccess, OpCodeOperandKind, OpKind, Register, RflagsBits,
};

/// What an instruction does with its memory operand, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum MemoryUse {
    None,
    Read(u16),
    Write(u16),
    ReadWrite(u16),
}

impl MemoryUse {
    /// Bytes read before the instruction executes.
    pub const fn reads(self) -> Option<u16> {
        match self {
            Self::Read(bytes) | Self::ReadWrite(bytes) => Some(bytes),
            Self::None | Self::Write(_) => None,
        }
    }
    /// Bytes written after it.
    pub const fn writes(self) -> Option<u16> {
        match self {
            Self::Write(bytes) | Self::ReadWrite(bytes) => Some(bytes),
            Self::None | Self::Read(_) => None,
        }
    }
}

/// What the core checks before it executes an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The control bits it needs.
    pub class: Class,
    /// It first takes a pending x87 exception: #MF.
    pub waits: bool,
    /// Its memory operand.
    pub memory: MemoryUse,
    /// #GP(0) unless the memory operand's address is a multiple of this.
    pub alignment: u8,
}

/// The registers that an instruction names, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Registers {
    /// XMM, YMM or MM registers, by slot.
    pub vector: [u8; thunk::SLOTS],
    /// General registers; with [`HIGH_BYTE`] for AH, CH, DH and BH.
    pub general: [u8; 2],
}

/// Marks AH, CH, DH and BH.
pub const HIGH_BYTE: u8 = 0x80;

/// What distinguishes one thunk from another: the form, an immediate, an x87 stack index, register or memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    code: Code,
    immediate: u8,
    stack: u8,
    memory: bool,
}

impl Key {
    /// The key of an instruction.
    pub fn of(inst: &Instruction) -> Self {
        let immediate = (0..inst.op_count()).find(|&op| inst.op_kind(op) == OpKind::Immediate8);
        let mut stack = operands(inst).filter(|register| register.is_st() && *register != Register::ST0);
        Self {
            code: inst.code(),
            immediate: immediate.map_or(0, |op| inst.immediate(op) as u8),
            stack: stack.next().map_or(0, |register| register.number() as u8),
            memory: has_memory(inst),
        }
    }
}

fn operands(inst: &Instruction) -> impl Iterator<Item = Register> + '_ {
    (0..inst.op_count()).filter(|&op| inst.op_kind(op) == OpKind::Register).map(|op| inst.op_register(op))
}

fn has_memory(inst: &Instruction) -> bool {
    (0..inst.op_count()).any(|op| inst.op_kind(op) == OpKind::Memory)
}

/// Is the instruction one of those that are executed here, whether by a thunk or in software? XGETBV, XSETBV
/// and CMOV are the core's; FWAIT is older than CPUID's features.
pub fn is_offered(code: Code, offered: Features) -> bool {
    matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.op_code().is_instruction()
        && (code == Code::Wait || offered.has_all(code.cpuid_features()))
        && !waits_first(code)
        && !matches!(code, Code::Xgetbv | Code::Xsetbv)
        && code.cpuid_features() != [CpuidFeature::CMOV]
}

/// The assembler's forms with a leading FWAIT, which the decoder takes for two instructions.
fn waits_first(code: Code) -> bool {
    code.op_code().fwait()
}

/// The registers that an instruction names.
pub fn registers(inst: &Instruction) -> Registers {
    let mut registers = Registers::default();
    let vector = operands(inst).filter(|&register| is_vector(register));
    for (slot, register) in registers.vector.iter_mut().zip(vector) {
        *slot = register.number() as u8;
    }
    let general = operands(inst).filter(|register| register.is_gpr());
    for (slot, register) in registers.general.iter_mut().zip(general) {
        *slot = general_number(register);
    }
    registers
}

fn general_number(register: Register) -> u8 {
    match register {
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE | 1,
        Register::DH => HIGH_BYTE | 2,
        Register::BH => HIGH_BYTE | 3,
        _ => register.full_register().number() as u8,
    }
}

fn is_vector(register: Register) -> bool {
    register.is_xmm() || register.is_ymm() || register.is_mm()
}

/// The plan of an instruction that a thunk executes.
pub fn plan(inst: &Instruction) -> Plan {
    let mut plan = Plan { is_x87: is_x87(inst.code()), ..Plan::default() };
    plan.uses_mxcsr = simd::arithmetic(inst.mnemonic()).is_some();
    plan.instruction = canonical(inst);
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&plan.instruction);
    plan_operands(&mut plan, inst, info);
    plan_implicit(&mut plan, info);
    plan.writes_flags = plan.instruction.rflags_modified() & STATUS_FLAGS != 0;
    plan.reads_flags =
        plan.is_x87 && (plan.writes_flags || plan.instruction.rflags_read() & STATUS_FLAGS != 0);
    plan
}

const STATUS_FLAGS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// The instruction with the thunk's registers for its own.
fn canonical(inst: &Instruction) -> Instruction {
    let mut canonical = *inst;
    canonical.set_segment_prefix(Register::None);
    canonical.set_has_rep_prefix(false);
    canonical.set_has_repne_prefix(false);
    canonical.set_has_lock_prefix(false);
    if has_memory(inst) {
        canonical.set_memory_base(thunk::OPERAND);
        canonical.set_memory_index(Register::None);
        canonical.set_memory_index_scale(1);
        canonical.set_memory_displ_size(0);
        canonical.set_memory_displacement64(0);
    }
    let (mut vector, mut general) = (0, thunk::GENERAL_REGISTERS.into_iter());
    for op in (0..inst.op_count()).filter(|&op| inst.op_kind(op) == OpKind::Register) {
        let register = inst.op_register(op);
        if is_vector(register) {
            canonical.set_op_register(op, thunk::slot_register(vector, operand_slot(register)));
            vector += 1;
        } else if register.is_gpr() {
            let replacement = general.next().unwrap_or(Register::RAX);
            canonical.set_op_register(op, same_size(register, replacement));
        }
    }
    canonical
}

/// The part of the 64-bit register `of` that is as wide as `model`.
fn same_size(model: Register, of: Register) -> Register {
    let first = match model.size() {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    // The decoder numbers the 8-bit registers with AH to BH between BL and SPL.
    let number = of.number() as u32;
    if model.size() == 1 && number >= 4 { Register::SPL + (number - 4) } else { first + number }
}

/// An operand's slot by its name alone.
fn operand_slot(register: Register) -> Slot {
    if register.is_mm() {
        Slot::Mm
    } else if register.is_ymm() {
        Slot::Ymm
    } else {
        Slot::Xmm
    }
}

fn plan_operands(plan: &mut Plan, inst: &Instruction, info: &InstructionInfo) {
    let is_vex = inst.code().encoding() == EncodingKind::VEX;
    let (mut vector, mut general) = (0, 0);
    for op in (0..inst.op_count()).filter(|&op| inst.op_kind(op) == OpKind::Register) {
        let register = inst.op_register(op);
        let used = operand_use(info.op_access(op));
        if is_vector(register) {
            let slot = if is_vex { Slot::Ymm } else { operand_slot(register) };
            plan.slots[vector] = Some((slot, used));
            vector += 1;
        } else if register.is_gpr() && general < plan.general.len() {
            plan.general[general] = Some(used);
            general += 1;
        }
    }
}

fn plan_implicit(plan: &mut Plan, info: &InstructionInfo) {
    let slot = if plan.instruction.code().encoding() == EncodingKind::VEX { Slot::Ymm } else { Slot::Xmm };
    for used in info.used_registers() {
        let register = used.register();
        let implicit = operand_use(used.access());
        if matches!(register, Register::XMM0 | Register::YMM0 | Register::ZMM0) {
            let before = plan.slots[thunk::IMPLICIT_SLOT].map_or(Use::Source, |(_, used)| used);
            let used = if before == Use::Destination { before } else { implicit };
            plan.slots[thunk::IMPLICIT_SLOT] = Some((slot, used));
        }
        match register.full_register() {
            Register::RAX if plan.general[0].is_none() && !plan.is_x87 => plan.general[0] = Some(implicit),
            Register::RDX => plan.reads_rdx = true,
            Register::RCX => plan.writes_rcx = true,
            _ => {}
        }
    }
}

fn operand_use(access: OpAccess) -> Use {
    match access {
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
            Use::Destination
        }
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess => Use::Source,
    }
}

/// Is the encoding one of the legacy ones?
pub fn is_legacy(code: Code) -> bool {
    code.encoding() == EncodingKind::Legacy
}

fn is_x87(code: Code) -> bool {
    let of_x87 = [CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387];
    code.cpuid_features().iter().any(|feature| of_x87.contains(feature))
}

/// What the core checks before the instruction.
pub fn terms(inst: &Instruction) -> Terms {
    let class = class(inst);
    let touches_mmx = operands(inst).any(Register::is_mm) || enters_mmx_from_memory(inst.code());
    Terms {
        class,
        waits: class == Class::X87 || touches_mmx,
        memory: memory_use(inst),
        alignment: alignment(inst),
    }
}

/// CVTPI2PS enters MMX state even with a memory operand, CVTPI2PD does not. SDM Vol. 2, "CVTPI2PS".
pub fn enters_mmx_from_memory(code: Code) -> bool {
    code == Code::Cvtpi2ps_xmm_mmm64
}

/// What gates an instruction, by its encoding and registers.
pub fn class(inst: &Instruction) -> Class {
    if inst.code().encoding() == EncodingKind::VEX {
        Class::Avx
    } else if is_x87(inst.code()) {
        Class::X87
    } else if names(inst.code(), &XMM_OPERANDS) {
        Class::Sse
    } else if names(inst.code(), &MM_OPERANDS) {
        Class::Mmx
    } else {
        Class::General
    }
}

/// Operands that make an instruction one of the XMM registers, be they in memory.
const XMM_OPERANDS: [OpCodeOperandKind; 3] =
    [OpCodeOperandKind::xmm_reg, OpCodeOperandKind::xmm_rm, OpCodeOperandKind::xmm_or_mem];
/// Operands that make an instruction one of the MMX registers.
const MM_OPERANDS: [OpCodeOperandKind; 3] =
    [OpCodeOperandKind::mm_reg, OpCodeOperandKind::mm_rm, OpCodeOperandKind::mm_or_mem];

fn names(code: Code, kinds: &[OpCodeOperandKind]) -> bool {
    code.op_code().op_kinds().iter().any(|kind| kinds.contains(kind))
}

/// The memory operand's size and direction.
pub fn memory_use(inst: &Instruction) -> MemoryUse {
    if !has_memory(inst) {
        return MemoryUse::None;
    }
    let bytes = inst.memory_size().size() as u16;
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(inst);
    let operand = (0..inst.op_count()).find(|&op| inst.op_kind(op) == OpKind::Memory).unwrap_or(0);
    match info.op_access(operand) {
        OpAccess::Write | OpAccess::CondWrite => MemoryUse::Write(bytes),
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => MemoryUse::ReadWrite(bytes),
        OpAccess::Read | OpAccess::CondRead => MemoryUse::Read(bytes),
        OpAccess::None | OpAccess::NoMemAccess => MemoryUse::None,
    }
}

/// Legacy-encoded instructions with a 16-byte operand that need no alignment.
/// SDM Vol. 2, "Exceptions Type 4", its note, and the pages of the instructions.
const UNALIGNED: &[Mnemonic] = &[
    Mnemonic::Movups,
    Mnemonic::Movupd,
    Mnemonic::Movdqu,
    Mnemonic::Lddqu,
    Mnemonic::Pcmpestri,
    Mnemonic::Pcmpestri64,
    Mnemonic::Pcmpestrm,
    Mnemonic::Pcmpestrm64,
    Mnemonic::Pcmpistri,
    Mnemonic::Pcmpistrm,
];
/// VEX-encoded instructions whose memory operand must be aligned. SDM Vol. 2, "Exceptions Type 1".
const ALIGNED_VEX: &[Mnemonic] = &[
    Mnemonic::Vmovaps,
    Mnemonic::Vmovapd,
    Mnemonic::Vmovdqa,
    Mnemonic::Vmovntps,
    Mnemonic::Vmovntpd,
    Mnemonic::Vmovntdq,
    Mnemonic::Vmovntdqa,
];

/// What the address of the memory operand must be a multiple of.
pub fn alignment(inst: &Instruction) -> u8 {
    let bytes = inst.memory_size().size() as u8;
    let aligned = match inst.code().encoding() {
        EncodingKind::VEX => ALIGNED_VEX.contains(&inst.mnemonic()),
        _ => bytes == 16 && class(inst) == Class::Sse && !UNALIGNED.contains(&inst.mnemonic()),
    };
    if aligned && has_memory(inst) { bytes } else { 1 }
}
