//! VM_EXIT_INSTRUCTION_INFORMATION, by instruction.
//! SDM Vol. 3, "Information for VM Exits Due to Instruction Execution".

use crate::bits;

bits! {
    /// The field's bits; each instruction's table defines some of them and leaves the others undefined.
    pub struct InstructionInformation: u32 {
        SCALING           1:0  u8;
        REGISTER_1        6:3  u8;
        ADDRESS_SIZE      9:7  u8;
        IS_REGISTER      10    bool;
        OPERAND_SIZE  12:11    u8;
        SEGMENT       17:15    u8;
        INDEX         21:18    u8;
        NO_INDEX         22    bool;
        BASE          26:23    u8;
        NO_BASE          27    bool;
        REGISTER_2    31:28    u8;
        /// For the instructions on descriptor tables, which one it is.
        IDENTITY      29:28    u8;
    }
}

/// Address or operand size, as the field has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the manual's own numbers")]
pub enum Size {
    Bits16,
    Bits32,
    Bits64,
}

impl Size {
    /// The size with this code. Code 3 is not used; it reads as 64 bits.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Bits16,
            1 => Self::Bits32,
            _ => Self::Bits64,
        }
    }
    /// The bits of a value of this size.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }
}

/// A memory operand, without its displacement, which is the exit qualification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryOperand {
    /// Segment register, in the order of the encoding.
    pub segment: u8,
    /// Base register.
    pub base: Option<u8>,
    /// Index register, and the power of two that scales it.
    pub index: Option<(u8, u8)>,
    /// Address size.
    pub address_size: Size,
}

/// SGDT, SIDT, LGDT, LIDT: bits 29:28.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum GdtrIdtrInstruction {
    Sgdt,
    Sidt,
    Lgdt,
    Lidt,
}

/// SLDT, STR, LLDT, LTR: bits 29:28.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum LdtrTrInstruction {
    Sldt,
    Str,
    Lldt,
    Ltr,
}

impl InstructionInformation {
    /// The memory operand.
    pub fn memory(self) -> MemoryOperand {
        MemoryOperand {
            segment: self.get(Self::SEGMENT),
            base: (!self.get(Self::NO_BASE)).then(|| self.get(Self::BASE)),
            index: (!self.get(Self::NO_INDEX)).then(|| (self.get(Self::INDEX), self.get(Self::SCALING))),
            address_size: Size::from_code(self.get(Self::ADDRESS_SIZE)),
        }
    }

    /// With this memory operand.
    #[must_use]
    pub fn with_memory(self, operand: MemoryOperand) -> Self {
        let (index, scaling) = operand.index.unwrap_or_default();
        self.with(Self::IS_REGISTER, false)
            .with(Self::SEGMENT, operand.segment)
            .with(Self::BASE, operand.base.unwrap_or_default())
            .with(Self::NO_BASE, operand.base.is_none())
            .with(Self::INDEX, index)
            .with(Self::SCALING, scaling)
            .with(Self::NO_INDEX, operand.index.is_none())
            .with(Self::ADDRESS_SIZE, operand.address_size as u8)
    }

    /// With a register operand in the place of a memory operand.
    #[must_use]
    pub fn with_register(self, number: u8) -> Self {
        self.with(Self::IS_REGISTER, true).with(Self::REGISTER_1, number)
    }

    /// INS and OUTS: address size and segment; the segment means nothing for INS.
    pub fn string_io(address_size: Size, segment: u8) -> Self {
        Self::default().with(Self::ADDRESS_SIZE, address_size as u8).with(Self::SEGMENT, segment)
    }

    /// INVEPT, INVPCID, INVVPID: the register with the type, the descriptor in memory.
    pub fn invalidation(register: u8, descriptor: MemoryOperand) -> Self {
        Self::default().with_memory(descriptor).with(Self::REGISTER_2, register)
    }

    /// RDRAND, RDSEED.
    pub fn random(register: u8, operand_size: Size) -> Self {
        Self::default().with(Self::REGISTER_1, register).with(Self::OPERAND_SIZE, operand_size as u8)
    }

    /// LGDT, LIDT, SGDT, SIDT: bit 11 tells 32 bits from 16 outside 64-bit mode.
    pub fn gdtr_idtr(what: GdtrIdtrInstruction, operand_size: Size, operand: MemoryOperand) -> Self {
        Self::default()
            .with_memory(operand)
            .with(Self::OPERAND_SIZE, u8::from(operand_size == Size::Bits32))
            .with(Self::IDENTITY, what as u8)
    }

    /// LLDT, LTR, SLDT, STR with a memory operand; with [`InstructionInformation::with_register`] for a register.
    pub fn ldtr_tr(what: LdtrTrInstruction) -> Self {
        Self::default().with(Self::IDENTITY, what as u8)
    }
}
