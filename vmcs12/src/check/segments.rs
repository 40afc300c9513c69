//! Checks on guest segment registers. SDM Vol. 3, "Checks on Guest Segment Registers".

use super::Expectation::{Canonical, Holds, Zero};
use super::When::{Always, Test};
use super::{Ctx, rules};
use crate::arch::segment::AccessRights;
use crate::control::{IA_32E_MODE_GUEST, UNRESTRICTED_GUEST};
use crate::field::{Field, table::*};

const TITLE: &str = "Checks on Guest Segment Registers";

const RPL: u16 = 3;
const TI: u64 = 1 << 2;
const HIGH_HALF: u64 = 0xffff_ffff_0000_0000;
const RESERVED_LOW: u64 = 0xf00;
const RESERVED_HIGH: u64 = 0xfffe_0000;

/// Segment types. SDM Vol. 3, "Code- and Data-Segment Descriptor Types", "System Descriptor Types".
mod kind {
    pub const ACCESSED: u8 = 1 << 0;
    pub const READABLE: u8 = 1 << 1;
    pub const CODE: u8 = 1 << 3;
    pub const LDT: u8 = 2;
    pub const BUSY_TSS_16: u8 = 3;
    /// Read/write data, accessed; with bit 2 expand-down.
    pub const DATA: u8 = 3;
    pub const DATA_EXPAND_DOWN: u8 = 7;
    pub const CODE_ACCESSED: u8 = 9;
    pub const CODE_READABLE: u8 = 11;
    pub const BUSY_TSS: u8 = 11;
    pub const CONFORMING: u8 = 13;
    pub const CONFORMING_READABLE: u8 = 15;
}

/// The limit and the access rights of a segment in virtual-8086 mode.
const V86_LIMIT: u32 = 0xffff;
const V86_RIGHTS: u32 = 0xf3;

/// The rules that every segment keeps while it is usable and not in virtual-8086 mode, after those of its type.
macro_rules! present {
    ($table:ident: $when:expr, $id:literal $name:literal $limit:ident $rights:ident) => {
        rules! {
            /// Present, reserved bits, granularity.
            pub const $table = [
                group(TITLE, $when, [
                    rule(concat!("guest.seg.", $id, ".p"), &[$rights.any()],
                        concat!("the ", $name, " segment is present"),
                        Holds(|c| c.get($rights).get(AccessRights::P))),
                    rule(concat!("guest.seg.", $id, ".ar_reserved_low"), &[$rights.any()],
                        concat!("bits 11:8 of the ", $name, " access rights are 0"), Zero(RESERVED_LOW)),
                    rule(concat!("guest.seg.", $id, ".ar_reserved_high"), &[$rights.any()],
                        concat!("bits 31:17 of the ", $name, " access rights are 0"), Zero(RESERVED_HIGH)),
                    rule(concat!("guest.seg.", $id, ".g_low"), &[$rights.any(), $limit.any()],
                        concat!("G of ", $name, " is 0 if a bit of limit[11:0] is 0"),
                        Holds(|c| !is_granular(c, $rights) || c.get($limit) & 0xfff == 0xfff)),
                    rule(concat!("guest.seg.", $id, ".g_high"), &[$rights.any(), $limit.any()],
                        concat!("G of ", $name, " is 1 if a bit of limit[31:20] is 1"),
                        Holds(|c| is_granular(c, $rights) || c.get($limit) & 0xfff0_0000 == 0)),
                ]),
            ];
        }
    };
}

/// The table of DS, ES, FS or GS; of CS or SS, with rules of their own.
macro_rules! segment {
    ($table:ident: $id:literal $name:literal $selector:ident $base:ident $limit:ident $rights:ident) => {
        segment! { $table: $id $name $selector $base $limit $rights;
            group(TITLE, Test(|c| is_checked(c, $rights)), [
                rule(concat!("guest.seg.", $id, ".type_accessed"), &[$rights.any()],
                    concat!("the ", $name, " segment is accessed"),
                    Holds(|c| kind_of(c, $rights) & kind::ACCESSED != 0)),
                rule(concat!("guest.seg.", $id, ".type_readable"), &[$rights.any()],
                    concat!("the ", $name, " segment, if code, is readable"),
                    Holds(|c| kind_of(c, $rights) & (kind::CODE | kind::READABLE) != kind::CODE)),
                rule(concat!("guest.seg.", $id, ".s"), &[$rights.any()],
                    concat!("the ", $name, " segment is a code or data segment"),
                    Holds(|c| c.get($rights).get(AccessRights::S))),
                rule(concat!("guest.seg.", $id, ".dpl"), &[$rights.any(), $selector.any()],
                    concat!("the DPL of ", $name, ", if data or nonconforming, is at least the selector's RPL"),
                    Holds(|c| c.has(UNRESTRICTED_GUEST)
                        || kind_of(c, $rights) > kind::CODE_READABLE
                        || u16::from(dpl(c, $rights)) >= rpl(c, $selector))),
            ])
        }
    };
    ($table:ident: $id:literal $name:literal $selector:ident $base:ident $limit:ident $rights:ident; $($own:tt)*) => {
        rules! {
            /// Virtual-8086 mode, type, privilege level.
            pub const $table = [
                group(TITLE, Test(|c| c.is_virtual_8086()), [
                    rule(concat!("guest.seg.", $id, ".v86_base"), &[$base.any(), $selector.any(), GUEST_RFLAGS.any()],
                        concat!("the ", $name, " base is the selector × 16 in virtual-8086 mode"),
                        Holds(|c| c.get($base) == u64::from(c.get($selector)) << 4)),
                    rule(concat!("guest.seg.", $id, ".v86_limit"), &[$limit.any(), GUEST_RFLAGS.any()],
                        concat!("the ", $name, " limit is FFFFH in virtual-8086 mode"),
                        Holds(|c| c.get($limit) == V86_LIMIT)),
                    rule(concat!("guest.seg.", $id, ".v86_ar"), &[$rights.any(), GUEST_RFLAGS.any()],
                        concat!("the ", $name, " access rights are F3H in virtual-8086 mode"),
                        Holds(|c| c.get($rights) == AccessRights(V86_RIGHTS))),
                ]),
                $($own)*
            ];
        }
    };
}

rules! {
/// Selectors and bases, of segments usable or not.
pub const SELECTORS_AND_BASES = [
    group(TITLE, Always, [
        rule("guest.seg.tr.sel_ti", &[GUEST_TR_SELECTOR.any()], "the TR selector is of the GDT", Zero(TI)),
    ]),
    group(TITLE, Test(|c| is_usable(c, GUEST_LDTR_ACCESS_RIGHTS)), [
        rule("guest.seg.ldtr.sel_ti", &[GUEST_LDTR_SELECTOR.any(), GUEST_LDTR_ACCESS_RIGHTS.any()],
            "the LDTR selector, if usable, is of the GDT", Zero(TI)),
    ]),
    group(TITLE, Test(|c| !c.is_virtual_8086() && !c.has(UNRESTRICTED_GUEST)), [
        rule("guest.seg.ss.sel_rpl", &[GUEST_SS_SELECTOR.any(), GUEST_CS_SELECTOR.any()],
            "the selectors of SS and CS have the same RPL",
            Holds(|c| rpl(c, GUEST_SS_SELECTOR) == rpl(c, GUEST_CS_SELECTOR))),
    ]),
    group(TITLE, Always, [
        rule("guest.seg.tr.base_canonical", &[GUEST_TR_BASE.any()], "the TR base is canonical", Canonical),
        rule("guest.seg.fs.base_canonical", &[GUEST_FS_BASE.any()], "the FS base is canonical", Canonical),
        rule("guest.seg.gs.base_canonical", &[GUEST_GS_BASE.any()], "the GS base is canonical", Canonical),
        rule("guest.seg.cs.base_high", &[GUEST_CS_BASE.any()], "bits 63:32 of the CS base are 0", Zero(HIGH_HALF)),
    ]),
    group(TITLE, Test(|c| is_usable(c, GUEST_LDTR_ACCESS_RIGHTS)), [
        rule("guest.seg.ldtr.base_canonical", &[GUEST_LDTR_BASE.any(), GUEST_LDTR_ACCESS_RIGHTS.any()],
            "the LDTR base, if usable, is canonical", Canonical),
    ]),
    group(TITLE, Test(|c| is_usable(c, GUEST_SS_ACCESS_RIGHTS)), [
        rule("guest.seg.ss.base_high", &[GUEST_SS_BASE.any(), GUEST_SS_ACCESS_RIGHTS.any()],
            "bits 63:32 of the SS base, if usable, are 0", Zero(HIGH_HALF)),
    ]),
    group(TITLE, Test(|c| is_usable(c, GUEST_DS_ACCESS_RIGHTS)), [
        rule("guest.seg.ds.base_high", &[GUEST_DS_BASE.any(), GUEST_DS_ACCESS_RIGHTS.any()],
            "bits 63:32 of the DS base, if usable, are 0", Zero(HIGH_HALF)),
    ]),
    group(TITLE, Test(|c| is_usable(c, GUEST_ES_ACCESS_RIGHTS)), [
        rule("guest.seg.es.base_high", &[GUEST_ES_BASE.any(), GUEST_ES_ACCESS_RIGHTS.any()],
            "bits 63:32 of the ES base, if usable, are 0", Zero(HIGH_HALF)),
    ]),
];
}

segment! { CS: "cs" "CS" GUEST_CS_SELECTOR GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_ACCESS_RIGHTS;
    group(TITLE, Test(|c| !c.is_virtual_8086()), [
        rule("guest.seg.cs.type", CS_TYPE,
            "CS is an accessed code segment, unless the guest is unrestricted",
            Holds(|c| c.has(UNRESTRICTED_GUEST) || is_code(kind_of(c, GUEST_CS_ACCESS_RIGHTS)))),
        rule("guest.seg.cs.type_unrestricted", CS_TYPE,
            "CS of an unrestricted guest is an accessed code segment or accessed read/write data",
            Holds(|c| !c.has(UNRESTRICTED_GUEST) || is_code_or_data(kind_of(c, GUEST_CS_ACCESS_RIGHTS)))),
        rule("guest.seg.cs.s", &[GUEST_CS_ACCESS_RIGHTS.any()],
            "CS is a code or data segment", Holds(|c| c.get(GUEST_CS_ACCESS_RIGHTS).get(AccessRights::S))),
        rule("guest.seg.cs.dpl_data", &[GUEST_CS_ACCESS_RIGHTS.any()],
            "the DPL of CS, if data, is 0",
            Holds(|c| kind_of(c, GUEST_CS_ACCESS_RIGHTS) != kind::DATA || dpl(c, GUEST_CS_ACCESS_RIGHTS) == 0)),
        rule("guest.seg.cs.dpl_nonconforming", CS_AND_SS,
            "the DPL of CS, if nonconforming code, is that of SS",
            Holds(|c| !is_nonconforming(c) || dpl(c, GUEST_CS_ACCESS_RIGHTS) == dpl(c, GUEST_SS_ACCESS_RIGHTS))),
        rule("guest.seg.cs.dpl_conforming", CS_AND_SS,
            "the DPL of CS, if conforming code, is at most that of SS",
            Holds(|c| !is_conforming(c) || dpl(c, GUEST_CS_ACCESS_RIGHTS) <= dpl(c, GUEST_SS_ACCESS_RIGHTS))),
    ]),
    group(TITLE, Test(|c| !c.is_virtual_8086() && c.has(IA_32E_MODE_GUEST)), [
        rule("guest.seg.cs.db_l", &[GUEST_CS_ACCESS_RIGHTS.any(), VM_ENTRY_CONTROLS.any()],
            "D/B of CS is 0 in 64-bit mode", Holds(|c| {
                let rights = c.get(GUEST_CS_ACCESS_RIGHTS);
                !(rights.get(AccessRights::L) && rights.get(AccessRights::DB))
            })),
    ]),
}
present! { CS_PRESENT: Test(|c| !c.is_virtual_8086()), "cs" "CS" GUEST_CS_LIMIT GUEST_CS_ACCESS_RIGHTS }

segment! { SS: "ss" "SS" GUEST_SS_SELECTOR GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_ACCESS_RIGHTS;
    group(TITLE, Test(|c| !c.is_virtual_8086()), [
        rule("guest.seg.ss.dpl_rpl", &[GUEST_SS_ACCESS_RIGHTS.any(), GUEST_SS_SELECTOR.any()],
            "the DPL of SS is its selector's RPL, unless the guest is unrestricted",
            Holds(|c| c.has(UNRESTRICTED_GUEST)
                || u16::from(dpl(c, GUEST_SS_ACCESS_RIGHTS)) == rpl(c, GUEST_SS_SELECTOR))),
        rule("guest.seg.ss.dpl_real", &[GUEST_SS_ACCESS_RIGHTS.any(), GUEST_CS_ACCESS_RIGHTS.any(), GUEST_CR0.any()],
            "the DPL of SS is 0 in real-address mode and if CS is data",
            Holds(|c| dpl(c, GUEST_SS_ACCESS_RIGHTS) == 0
                || (c.is_protected() && kind_of(c, GUEST_CS_ACCESS_RIGHTS) != kind::DATA))),
    ]),
    group(TITLE, Test(|c| is_checked(c, GUEST_SS_ACCESS_RIGHTS)), [
        rule("guest.seg.ss.type", &[GUEST_SS_ACCESS_RIGHTS.any()],
            "SS is accessed read/write data",
            Holds(|c| matches!(kind_of(c, GUEST_SS_ACCESS_RIGHTS), kind::DATA | kind::DATA_EXPAND_DOWN))),
        rule("guest.seg.ss.s", &[GUEST_SS_ACCESS_RIGHTS.any()],
            "SS is a code or data segment", Holds(|c| c.get(GUEST_SS_ACCESS_RIGHTS).get(AccessRights::S))),
    ]),
}
present! { SS_PRESENT: Test(|c| is_checked(c, GUEST_SS_ACCESS_RIGHTS)), "ss" "SS" GUEST_SS_LIMIT GUEST_SS_ACCESS_RIGHTS }

segment! { DS: "ds" "DS" GUEST_DS_SELECTOR GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_ACCESS_RIGHTS }
present! { DS_PRESENT: Test(|c| is_checked(c, GUEST_DS_ACCESS_RIGHTS)), "ds" "DS" GUEST_DS_LIMIT GUEST_DS_ACCESS_RIGHTS }
segment! { ES: "es" "ES" GUEST_ES_SELECTOR GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_ACCESS_RIGHTS }
present! { ES_PRESENT: Test(|c| is_checked(c, GUEST_ES_ACCESS_RIGHTS)), "es" "ES" GUEST_ES_LIMIT GUEST_ES_ACCESS_RIGHTS }
segment! { FS: "fs" "FS" GUEST_FS_SELECTOR GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_ACCESS_RIGHTS }
present! { FS_PRESENT: Test(|c| is_checked(c, GUEST_FS_ACCESS_RIGHTS)), "fs" "FS" GUEST_FS_LIMIT GUEST_FS_ACCESS_RIGHTS }
segment! { GS: "gs" "GS" GUEST_GS_SELECTOR GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_ACCESS_RIGHTS }
present! { GS_PRESENT: Test(|c| is_checked(c, GUEST_GS_ACCESS_RIGHTS)), "gs" "GS" GUEST_GS_LIMIT GUEST_GS_ACCESS_RIGHTS }

rules! {
/// The task register.
pub const TR = [
    group(TITLE, Always, [
        rule("guest.seg.tr.type_legacy", TR_TYPE,
            "TR is a busy TSS outside IA-32e mode",
            Holds(|c| c.has(IA_32E_MODE_GUEST)
                || matches!(kind_of(c, GUEST_TR_ACCESS_RIGHTS), kind::BUSY_TSS_16 | kind::BUSY_TSS))),
        rule("guest.seg.tr.type_ia32e", TR_TYPE,
            "TR is a busy 64-bit TSS in IA-32e mode",
            Holds(|c| !c.has(IA_32E_MODE_GUEST) || kind_of(c, GUEST_TR_ACCESS_RIGHTS) == kind::BUSY_TSS)),
        rule("guest.seg.tr.s", &[GUEST_TR_ACCESS_RIGHTS.any()],
            "TR is a system segment", Holds(|c| !c.get(GUEST_TR_ACCESS_RIGHTS).get(AccessRights::S))),
        rule("guest.seg.tr.usable", &[GUEST_TR_ACCESS_RIGHTS.any()],
            "TR is usable", Holds(|c| is_usable(c, GUEST_TR_ACCESS_RIGHTS))),
    ]),
];
}
present! { TR_PRESENT: Always, "tr" "TR" GUEST_TR_LIMIT GUEST_TR_ACCESS_RIGHTS }

rules! {
/// The LDT register.
pub const LDTR = [
    group(TITLE, Test(|c| is_usable(c, GUEST_LDTR_ACCESS_RIGHTS)), [
        rule("guest.seg.ldtr.type", &[GUEST_LDTR_ACCESS_RIGHTS.any()],
            "LDTR is an LDT", Holds(|c| kind_of(c, GUEST_LDTR_ACCESS_RIGHTS) == kind::LDT)),
        rule("guest.seg.ldtr.s", &[GUEST_LDTR_ACCESS_RIGHTS.any()],
            "LDTR is a system segment", Holds(|c| !c.get(GUEST_LDTR_ACCESS_RIGHTS).get(AccessRights::S))),
    ]),
];
}
present! { LDTR_PRESENT: Test(|c| is_usable(c, GUEST_LDTR_ACCESS_RIGHTS)), "ldtr" "LDTR" GUEST_LDTR_LIMIT GUEST_LDTR_ACCESS_RIGHTS }

const CS_TYPE: &[crate::field::AnyField] =
    &[GUEST_CS_ACCESS_RIGHTS.any(), SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any()];
const CS_AND_SS: &[crate::field::AnyField] = &[GUEST_CS_ACCESS_RIGHTS.any(), GUEST_SS_ACCESS_RIGHTS.any()];
const TR_TYPE: &[crate::field::AnyField] = &[GUEST_TR_ACCESS_RIGHTS.any(), VM_ENTRY_CONTROLS.any()];

fn is_usable(c: &Ctx, rights: Field<AccessRights>) -> bool {
    c.get(rights).is_usable()
}

/// Are the access rights checked bit by bit?
fn is_checked(c: &Ctx, rights: Field<AccessRights>) -> bool {
    !c.is_virtual_8086() && is_usable(c, rights)
}

fn kind_of(c: &Ctx, rights: Field<AccessRights>) -> u8 {
    c.get(rights).get(AccessRights::TYPE)
}

fn dpl(c: &Ctx, rights: Field<AccessRights>) -> u8 {
    c.get(rights).get(AccessRights::DPL)
}

fn is_granular(c: &Ctx, rights: Field<AccessRights>) -> bool {
    c.get(rights).get(AccessRights::G)
}

fn rpl(c: &Ctx, selector: Field<u16>) -> u16 {
    c.get(selector) & RPL
}

const fn is_code(kind: u8) -> bool {
    use kind::{CODE_ACCESSED, CODE_READABLE, CONFORMING, CONFORMING_READABLE};
    matches!(kind, CODE_ACCESSED | CODE_READABLE | CONFORMING | CONFORMING_READABLE)
}

const fn is_code_or_data(kind: u8) -> bool {
    kind == kind::DATA || is_code(kind)
}

fn is_nonconforming(c: &Ctx) -> bool {
    matches!(kind_of(c, GUEST_CS_ACCESS_RIGHTS), kind::CODE_ACCESSED | kind::CODE_READABLE)
}

fn is_conforming(c: &Ctx) -> bool {
    matches!(kind_of(c, GUEST_CS_ACCESS_RIGHTS), kind::CONFORMING | kind::CONFORMING_READABLE)
}
