//! Segments as the VMCS holds them. SDM Vol. 3, "Guest Register State".

use crate::bits;
use crate::field::{Field, table::*};

bits! {
    /// Access rights of a segment register.
    pub struct AccessRights: u32 {
        TYPE      3:0   u8;
        S         4     bool;
        DPL       6:5   u8;
        P         7     bool;
        AVL      12     bool;
        L        13     bool;
        DB       14     bool;
        G        15     bool;
        UNUSABLE 16     bool;
    }
}

impl AccessRights {
    /// Can the segment be used?
    #[inline(always)]
    pub fn is_usable(self) -> bool {
        !self.get(Self::UNUSABLE)
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Access rights.
    pub rights: AccessRights,
    /// Selector.
    pub selector: u16,
}

/// Segment registers in the order of the VMCS fields, which for the first six is the encoding's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// The guest-state fields of one segment register.
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "one field each")]
pub struct SegmentFields {
    pub selector: Field<u16>,
    pub base: Field<u64>,
    pub limit: Field<u32>,
    pub rights: Field<AccessRights>,
}

macro_rules! guest_segment {
    ($selector:ident $base:ident $limit:ident $rights:ident) => {
        SegmentFields { selector: $selector, base: $base, limit: $limit, rights: $rights }
    };
}

impl SegmentRegister {
    /// All eight.
    pub const ALL: [Self; 8] =
        [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];

    /// The register's guest-state fields.
    #[inline(always)]
    #[rustfmt::skip]
    pub const fn fields(self) -> SegmentFields {
        match self {
            Self::Es => guest_segment!(GUEST_ES_SELECTOR GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_ACCESS_RIGHTS),
            Self::Cs => guest_segment!(GUEST_CS_SELECTOR GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_ACCESS_RIGHTS),
            Self::Ss => guest_segment!(GUEST_SS_SELECTOR GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_ACCESS_RIGHTS),
            Self::Ds => guest_segment!(GUEST_DS_SELECTOR GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_ACCESS_RIGHTS),
            Self::Fs => guest_segment!(GUEST_FS_SELECTOR GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_ACCESS_RIGHTS),
            Self::Gs => guest_segment!(GUEST_GS_SELECTOR GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_ACCESS_RIGHTS),
            Self::Ldtr => guest_segment!(GUEST_LDTR_SELECTOR GUEST_LDTR_BASE GUEST_LDTR_LIMIT GUEST_LDTR_ACCESS_RIGHTS),
            Self::Tr => guest_segment!(GUEST_TR_SELECTOR GUEST_TR_BASE GUEST_TR_LIMIT GUEST_TR_ACCESS_RIGHTS),
        }
    }
}
