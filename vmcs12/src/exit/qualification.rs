//! EXIT_QUALIFICATION, by basic exit reason. SDM Vol. 3, "Exit Qualification".

use crate::bits;
use crate::bits::BitValue;

/// How an instruction accesses a control register: bits 5:4 of [`ControlRegisterAccess`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum ControlRegisterAccessKind {
    MovToCr,
    MovFromCr,
    Clts,
    Lmsw,
}

impl BitValue for ControlRegisterAccessKind {
    #[inline(always)]
    fn from_bits(raw: u64) -> Self {
        match raw & 3 {
            0 => Self::MovToCr,
            1 => Self::MovFromCr,
            2 => Self::Clts,
            _ => Self::Lmsw,
        }
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self as u64
    }
}

bits! {
    /// Control-register accesses.
    pub struct ControlRegisterAccess: u64 {
        REGISTER        3:0   u8;
        KIND            5:4   ControlRegisterAccessKind;
        LMSW_IN_MEMORY  6     bool;
        GPR            11:8   u8;
        LMSW_SOURCE    31:16  u16;
    }
}

bits! {
    /// MOV DR.
    pub struct DebugRegisterAccess: u64 {
        REGISTER  2:0  u8;
        FROM_DR   4    bool;
        GPR      11:8  u8;
    }
}

bits! {
    /// I/O instructions.
    pub struct IoInstruction: u64 {
        SIZE_MINUS_1  2:0   u8;
        IN            3     bool;
        STRING        4     bool;
        REP           5     bool;
        IMMEDIATE     6     bool;
        PORT         31:16  u16;
    }
}

bits! {
    /// EPT violations.
    pub struct EptViolation: u64 {
        DATA_READ               0 bool;
        DATA_WRITE              1 bool;
        INSTRUCTION_FETCH       2 bool;
        READABLE                3 bool;
        WRITABLE                4 bool;
        EXECUTABLE              5 bool;
        USER_EXECUTABLE         6 bool;
        LINEAR_ADDRESS_VALID    7 bool;
        /// The access is to the translation of a linear address, not to a paging structure.
        TRANSLATED              8 bool;
        USER_MODE_ADDRESS       9 bool;
        WRITABLE_ADDRESS       10 bool;
        EXECUTE_DISABLE        11 bool;
        NMI_UNBLOCKING         12 bool;
        SHADOW_STACK           13 bool;
    }
}

bits! {
    /// Task switches.
    pub struct TaskSwitch: u64 {
        SELECTOR  15:0   u16;
        SOURCE    31:30  u8;
    }
}

bits! {
    /// APIC accesses.
    pub struct ApicAccess: u64 {
        OFFSET  11:0   u16;
        KIND    15:12  u8;
    }
}
