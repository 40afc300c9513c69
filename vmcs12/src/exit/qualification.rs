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

bits! {
    /// Debug exceptions.
    pub struct DebugException: u64 {
        B     3:0  u8;
        BLD  11    bool;
        BD   13    bool;
        BS   14    bool;
        RTM  16    bool;
    }
}

/// Who switches tasks: bits 31:30 of [`TaskSwitch`].
#[allow(missing_docs, reason = "the manual's own names")]
pub mod task_switch_source {
    pub const CALL: u8 = 0;
    pub const IRET: u8 = 1;
    pub const JMP: u8 = 2;
    pub const TASK_GATE_IN_IDT: u8 = 3;
}

/// How the APIC-access page is accessed: bits 15:12 of [`ApicAccess`].
#[allow(missing_docs, reason = "the manual's own names")]
pub mod apic_access_kind {
    pub const LINEAR_READ: u8 = 0;
    pub const LINEAR_WRITE: u8 = 1;
    pub const LINEAR_FETCH: u8 = 2;
    pub const LINEAR_EVENT_DELIVERY: u8 = 3;
    pub const PHYSICAL_EVENT_DELIVERY: u8 = 10;
    pub const PHYSICAL_EXECUTION: u8 = 15;
}

/// VM-entry failures: reason 33. SDM Vol. 3, "VM-Entry Failures During or After Loading Guest State".
#[allow(missing_docs, reason = "one cause each")]
pub mod entry_failure {
    pub const OTHER: u64 = 0;
    pub const PDPTE: u64 = 2;
    pub const NMI_BLOCKED_BY_STI: u64 = 3;
    pub const LINK_POINTER: u64 = 4;
}
