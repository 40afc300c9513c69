//! EPT pointer and EPT paging-structure entries. SDM Vol. 3, "Extended-Page-Table Pointer", "EPT Translation Mechanism".

use crate::addr::Pa;
use crate::bits;

bits! {
    /// EPT pointer.
    pub struct Eptp: u64 {
        MEMORY_TYPE          2:0 u8;
        WALK_LENGTH_MINUS_1  5:3 u8;
        ACCESSED_DIRTY       6   bool;
        SUPERVISOR_SHADOW_STACK 7 bool;
        ROOT               51:12 u64;
    }
}

impl Eptp {
    /// Address of the root table.
    #[inline(always)]
    pub fn root(self) -> Pa {
        Pa(self.0 & Self::ROOT.mask())
    }
}

bits! {
    /// An EPT paging-structure entry.
    pub struct EptEntry: u64 {
        READ            0 bool;
        WRITE           1 bool;
        EXECUTE         2 bool;
        MEMORY_TYPE   5:3 u8;
        IGNORE_PAT      6 bool;
        LARGE           7 bool;
        ACCESSED        8 bool;
        DIRTY           9 bool;
        USER_EXECUTE   10 bool;
        FRAME       51:12 u64;
        SUPPRESS_VE    63 bool;
    }
}

/// Memory types. SDM Vol. 3, "Memory Cache Control".
pub mod memory_type {
    /// Uncacheable.
    pub const UC: u8 = 0;
    /// Write combining.
    pub const WC: u8 = 1;
    /// Write through.
    pub const WT: u8 = 4;
    /// Write protected.
    pub const WP: u8 = 5;
    /// Write back.
    pub const WB: u8 = 6;

    /// Is this the encoding of a memory type?
    pub const fn exists(kind: u8) -> bool {
        matches!(kind, UC | WC | WT | WP | WB)
    }
}
