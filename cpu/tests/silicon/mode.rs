//! The two modes of user code under a 64-bit kernel.

use super::layout::MIDDLE;
use super::state::Registers;

/// A mode; its selectors are Linux's, so that instructions that read them agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Bits64,
    /// Compatibility mode with 32-bit code and data.
    Bits32,
}

impl Mode {
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
        }
    }

    /// Selector of the code segment.
    pub fn code_selector(self) -> u16 {
        match self {
            Self::Bits64 => 0x33,
            Self::Bits32 => 0x23,
        }
    }

    /// Fewer forms than this and something has been lost.
    pub fn least_forms(self) -> usize {
        match self {
            Self::Bits64 => 750,
            Self::Bits32 => 600,
        }
    }

    /// General registers.
    pub fn registers(self) -> u64 {
        match self {
            Self::Bits64 => 16,
            Self::Bits32 => 8,
        }
    }

    /// The target, or one that this address size can reach.
    pub fn reachable(self, target: u64) -> u64 {
        if self == Self::Bits64 || target >> 32 == 0 { target } else { MIDDLE }
    }

    /// Only registers that the mode has are random, and only as wide.
    pub fn fit(self, mut registers: Registers) -> Registers {
        if self == Self::Bits32 {
            registers.gpr.iter_mut().for_each(|register| *register &= 0xffff_ffff);
        }
        registers
    }
}

/// Selector of the data segments.
pub const DATA_SELECTOR: u16 = 0x2b;
