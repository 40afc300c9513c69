//! Guest non-register state. SDM Vol. 3, "Guest Non-Register State".

use crate::bits;

bits! {
    /// What is blocked at this instruction boundary.
    pub struct InterruptibilityState: u32 {
        STI     0 bool;
        MOV_SS  1 bool;
        SMI     2 bool;
        NMI     3 bool;
        ENCLAVE 4 bool;
    }
}

bits! {
    /// Debug exceptions that are recognized but not delivered yet.
    pub struct PendingDebugExceptions: u64 {
        B           3:0 u8;
        BLD        11   bool;
        ENABLED_BP 12   bool;
        BS         14   bool;
        RTM        16   bool;
    }
}

/// GUEST_ACTIVITY_STATE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Activity {
    #[default]
    Active,
    Hlt,
    Shutdown,
    WaitForSipi,
}

impl Activity {
    /// The activity state of the field's value, if it is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Active),
            1 => Some(Self::Hlt),
            2 => Some(Self::Shutdown),
            3 => Some(Self::WaitForSipi),
            _ => None,
        }
    }
}
