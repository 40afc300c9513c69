//! Generated code: one thunk for each instruction form, with its operands in fixed registers.
//!
//! A thunk gets pointers to the guest's registers, loads them into host registers of its own choice, executes
//! the instruction and stores what it changed. So its number is bounded by the forms and their immediates,
//! whatever registers a guest names.

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

/// What a thunk reads and writes besides the vector registers that its arguments point to.
#[repr(C)]
#[derive(Default)]
pub struct Context {
    /// The explicit general operands.
    pub general: [u64; 2],
    /// RDX, an implicit source.
    pub rdx: u64,
    /// RCX, an implicit destination.
    pub rcx: u64,
    /// RFLAGS, in and out.
    pub rflags: u64,
    /// MXCSR to run under.
    pub mxcsr: u32,
    /// MXCSR after the instruction.
    pub mxcsr_after: u32,
    /// The host's MXCSR.
    pub mxcsr_host: u32,
}

const fn at(offset: usize) -> MemoryOperand {
    MemoryOperand {
        segment_prefix: Register::None,
        base: Register::RDI,
        index: Register::None,
        scale: 1,
        displacement: offset as i64,
        displ_size: 1,
        is_broadcast: false,
    }
}

const GENERAL: [MemoryOperand; 2] =
    [at(std::mem::offset_of!(Context, general)), at(std::mem::offset_of!(Context, general) + 8)];
const RDX: MemoryOperand = at(std::mem::offset_of!(Context, rdx));
const RCX: MemoryOperand = at(std::mem::offset_of!(Context, rcx));
const RFLAGS: MemoryOperand = at(std::mem::offset_of!(Context, rflags));
const MXCSR: MemoryOperand = at(std::mem::offset_of!(Context, mxcsr));
const MXCSR_AFTER: MemoryOperand = at(std::mem::offset_of!(Context, mxcsr_after));
const MXCSR_HOST: MemoryOperand = at(std::mem::offset_of!(Context, mxcsr_host));

/// A thunk: context, memory operand, then a pointer for each vector slot (or to the FXSAVE image in the first).
pub type Thunk = unsafe extern "sysv64" fn(*mut Context, *mut u8, *mut u8, *mut u8, *mut u8, *mut u8);

/// Where the memory operand is.
pub const OPERAND: Register = Register::RSI;
/// Where the pointers to the vector slots are; the last of them is the implicit XMM0's, if there is one.
const POINTERS: [Register; SLOTS] = [Register::RDX, Register::RCX, Register::R8, Register::R9];
/// How many vector registers an instruction can name.
pub const SLOTS: usize = 4;
/// Which slot an implicit XMM0 takes; no instruction that has one names more than three others.
pub const IMPLICIT_SLOT: usize = 3;
/// Where the general operands are, by their order.
pub const GENERAL_REGISTERS: [Register; 2] = [Register::RAX, Register::R10];

/// A vector register as a thunk handles it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// 8 bytes, in the mantissa of an x87 register.
    Mm,
    /// 16 bytes; the rest of the register stays.
    Xmm,
    /// 32 bytes: an operand of a VEX-encoded instruction, which clears what it does not write.
    Ymm,
}

/// Whether an operand is written. Sources are always loaded, and so are destinations, which can be partly kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Only read.
    Source,
    /// Written, perhaps after being read.
    Destination,
}

/// Everything that a thunk has to do around its instruction.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The instruction, with operands replaced by this module's registers.
    pub instruction: Instruction,
    /// The vector registers, in operand order.
    pub slots: [Option<(Slot, Use)>; SLOTS],
    /// The general operands, in operand order.
    pub general: [Option<Use>; 2],
    /// RDX is read.
    pub reads_rdx: bool,
    /// RCX is written.
    pub writes_rcx: bool,
    /// RFLAGS is read.
    pub reads_flags: bool,
    /// RFLAGS is written.
    pub writes_flags: bool,
    /// Runs under the guest's MXCSR.
    pub uses_mxcsr: bool,
    /// Runs on the x87 stack.
    pub is_x87: bool,
}

impl Plan {
    /// Does the thunk use nothing of the context?
    pub fn is_plain(&self) -> bool {
        let general = self.general.iter().any(Option::is_some) || self.reads_rdx || self.writes_rcx;
        !(general || self.reads_flags || self.writes_flags || self.uses_mxcsr || self.is_x87)
    }
}

/// The thunk's code.
///
/// # Errors
/// The instruction cannot be encoded in 64-bit mode.
pub fn assemble(plan: &Plan) -> Result<Vec<u8>, IcedError> {
    let mut code = Assembler { encoder: Encoder::new(64) };
    if plan.is_x87 {
        code.x87(plan)?
    } else {
        code.vector(plan)?
    }
    code.emit(Instruction::with(Code::Retnq))?;
    Ok(code.encoder.take_buffer())
}

/// The host register of a slot: XMM0 where the instruction implies it, else never XMM0.
pub fn slot_register(index: usize, slot: Slot) -> Register {
    let number = if index == IMPLICIT_SLOT { 0 } else { index as u32 + 1 };
    let first = match slot {
        Slot::Mm => Register::MM0,
        Slot::Xmm => Register::XMM0,
        Slot::Ymm => Register::YMM0,
    };
    first + number
}

struct Assembler {
    encoder: Encoder,
}

type Emitted = Result<(), IcedError>;

impl Assembler {
    fn emit(&mut self, instruction: Instruction) -> Emitted {
        self.encoder.encode(&instruction, 0).map(|_| ())
    }

    fn vector(&mut self, plan: &Plan) -> Emitted {
        for (index, (slot, _)) in slots(plan) {
            self.emit(load(slot, slot_register(index, slot), POINTERS[index])?)?;
        }
        if plan.uses_mxcsr {
            self.emit(Instruction::with1(Code::Stmxcsr_m32, MXCSR_HOST)?)?;
            self.emit(Instruction::with1(Code::Ldmxcsr_m32, MXCSR)?)?;
        }
        self.load_general(plan)?;
        self.emit(plan.instruction)?;
        self.store_flags(plan)?;
        self.store_general(plan)?;
        if plan.uses_mxcsr {
            self.emit(Instruction::with1(Code::Stmxcsr_m32, MXCSR_AFTER)?)?;
            self.emit(Instruction::with1(Code::Ldmxcsr_m32, MXCSR_HOST)?)?;
        }
        for (index, (slot, used)) in slots(plan) {
            if used == Use::Destination {
                self.emit(store(slot, slot_register(index, slot), POINTERS[index])?)?;
            }
        }
        self.leave(plan)
    }

    /// The host's MMX and upper YMM state is left as compiled code expects it.
    fn leave(&mut self, plan: &Plan) -> Emitted {
        let has = |wanted: Slot| slots(plan).any(|(_, (slot, _))| slot == wanted);
        if has(Slot::Mm) {
            self.emit(Instruction::with(Code::Emms))?;
        }
        if has(Slot::Ymm) {
            self.emit(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        Ok(())
    }

    fn load_general(&mut self, plan: &Plan) -> Emitted {
        let explicit = plan.general.iter().zip(GENERAL_REGISTERS).zip(GENERAL);
        for ((_, register), from) in explicit.filter(|((used, _), _)| used.is_some()) {
            self.emit(Instruction::with2(Code::Mov_r64_rm64, register, from)?)?;
        }
        if plan.reads_rdx {
            self.emit(Instruction::with2(Code::Mov_r64_rm64, Register::RDX, RDX)?)?;
        }
        Ok(())
    }

    fn store_general(&mut self, plan: &Plan) -> Emitted {
        let explicit = plan.general.iter().zip(GENERAL_REGISTERS).zip(GENERAL);
        for ((_, register), to) in explicit.filter(|((used, _), _)| **used == Some(Use::Destination)) {
            self.emit(Instruction::with2(Code::Mov_rm64_r64, to, register)?)?;
        }
        if plan.writes_rcx {
            self.emit(Instruction::with2(Code::Mov_rm64_r64, RCX, Register::RCX)?)?;
        }
        Ok(())
    }

    fn store_flags(&mut self, plan: &Plan) -> Emitted {
        if plan.writes_flags {
            self.emit(Instruction::with(Code::Pushfq))?;
            self.emit(Instruction::with1(Code::Pop_rm64, RFLAGS)?)?;
        }
        Ok(())
    }

    /// The image carries the whole x87 state in and out, and the host's MXCSR past its own field for it.
    /// FXSAVE and FNINIT take no pending exception, so that one which the instruction leaves is recorded only.
    fn x87(&mut self, plan: &Plan) -> Emitted {
        let image = MemoryOperand::with_base(POINTERS[0]);
        let mxcsr = MemoryOperand::with_base_displ(POINTERS[0], super::fxsave::MXCSR as i64);
        self.emit(Instruction::with1(Code::Stmxcsr_m32, mxcsr)?)?;
        self.emit(Instruction::with1(Code::Fxrstor_m512byte, image)?)?;
        if plan.reads_flags {
            self.emit(Instruction::with1(Code::Push_rm64, RFLAGS)?)?;
            self.emit(Instruction::with(Code::Popfq))?;
        }
        self.emit(plan.instruction)?;
        self.store_flags(plan)?;
        self.emit(Instruction::with1(Code::Fxsave_m512byte, image)?)?;
        self.emit(Instruction::with(Code::Fninit))
    }
}

fn slots(plan: &Plan) -> impl Iterator<Item = (usize, (Slot, Use))> {
    plan.slots.iter().enumerate().filter_map(|(index, slot)| slot.map(|slot| (index, slot)))
}

fn load(slot: Slot, register: Register, from: Register) -> Result<Instruction, IcedError> {
    let code = match slot {
        Slot::Mm => Code::Movq_mm_mmm64,
        Slot::Xmm => Code::Movups_xmm_xmmm128,
        Slot::Ymm => Code::VEX_Vmovdqu_ymm_ymmm256,
    };
    Instruction::with2(code, register, MemoryOperand::with_base(from))
}

fn store(slot: Slot, register: Register, to: Register) -> Result<Instruction, IcedError> {
    let code = match slot {
        Slot::Mm => Code::Movq_mmm64_mm,
        Slot::Xmm => Code::Movups_xmmm128_xmm,
        Slot::Ymm => Code::VEX_Vmovdqu_ymmm256_ymm,
    };
    Instruction::with2(code, MemoryOperand::with_base(to), register)
}
