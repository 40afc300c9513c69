//! Checks on the entries of the MSR lists. SDM Vol. 3, "Loading MSRs", "Saving MSRs".
//!
//! On VM entry a broken rule is an exit with reason 34, whose qualification is the entry's number, from 1. On VM exit it
//! is a VMX abort. Whether RDMSR or WRMSR faults, only the processor knows: see [`WRMSR_FAULTS`] and [`RDMSR_FAULTS`].

use crate::arch::msr::{IA32_BIOS_SIGN_ID, IA32_BIOS_UPDT_TRIG, IA32_FS_BASE, IA32_GS_BASE, IA32_SMBASE};
use crate::arch::msr::{IA32_SMM_MONITOR_CTL, X2APIC};

/// Bytes of an entry.
pub const ENTRY_SIZE: usize = 16;

/// An entry of an MSR list. SDM Vol. 3, "VM-Exit Controls for MSRs".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// MSR index.
    pub index: u32,
    /// Reserved bits.
    pub reserved: u32,
    /// MSR data.
    pub data: u64,
}

impl Entry {
    /// The entry in memory.
    pub fn from_bytes(bytes: [u8; ENTRY_SIZE]) -> Self {
        let word = u128::from_le_bytes(bytes);
        Self { index: word as u32, reserved: (word >> 32) as u32, data: (word >> 64) as u64 }
    }
    /// The entry's bytes.
    pub fn to_bytes(self) -> [u8; ENTRY_SIZE] {
        let word = u128::from(self.data) << 64 | u128::from(self.reserved) << 32 | u128::from(self.index);
        word.to_le_bytes()
    }
}

/// A check on an entry.
#[derive(Debug)]
pub struct EntryRule {
    /// Stable name.
    pub id: &'static str,
    /// What must hold.
    pub sentence: &'static str,
    holds: fn(Entry) -> bool,
}

const fn rule(id: &'static str, sentence: &'static str, holds: fn(Entry) -> bool) -> EntryRule {
    EntryRule { id, sentence, holds }
}

/// The VM-entry MSR-load list. SDM Vol. 3, "Loading MSRs" on VM entry.
#[rustfmt::skip]
pub const LOAD_ON_ENTRY: &[EntryRule] = &[
    rule("msrload.fs_base",  "the list does not load IA32_FS_BASE", |e| e.index != IA32_FS_BASE),
    rule("msrload.gs_base",  "the list does not load IA32_GS_BASE", |e| e.index != IA32_GS_BASE),
    rule("msrload.x2apic",   "the list does not load x2APIC registers", |e| !X2APIC.contains(&e.index)),
    rule("msrload.smm_only", "the list does not load MSRs that only SMM may write", |e| e.index != IA32_SMM_MONITOR_CTL),
    rule("msrload.model_specific", "the list does not load the microcode's MSRs", |e| !is_microcode(e.index)),
    rule("msrload.reserved", "bits 63:32 of the entry are 0", |e| e.reserved == 0),
];

/// WRMSR of the entry's data at CPL 0, with the guest state loaded, must not fault.
pub const WRMSR_FAULTS: EntryRule =
    rule("msrload.wrmsr_gp", "WRMSR of the entry's data to its MSR would not fault", |_| false);
/// Deviation: the manual leaves a longer list undefined; here the entry after the last allowed one fails.
pub const TOO_MANY: EntryRule =
    rule("msrload.count", "the list is at most as long as IA32_VMX_MISC recommends", |_| false);

/// The VM-exit MSR-load list. SDM Vol. 3, "Loading MSRs" on VM exit.
#[rustfmt::skip]
pub const LOAD_ON_EXIT: &[EntryRule] = &[
    rule("msrload_exit.fs_base",  "the list does not load IA32_FS_BASE", |e| e.index != IA32_FS_BASE),
    rule("msrload_exit.gs_base",  "the list does not load IA32_GS_BASE", |e| e.index != IA32_GS_BASE),
    rule("msrload_exit.x2apic",   "the list does not load x2APIC registers", |e| !X2APIC.contains(&e.index)),
    rule("msrload_exit.smm_only", "the list does not load MSRs that only SMM may write", |e| e.index != IA32_SMM_MONITOR_CTL),
    rule("msrload_exit.model_specific", "the list does not load the microcode's MSRs", |e| !is_microcode(e.index)),
    rule("msrload_exit.reserved", "bits 63:32 of the entry are 0", |e| e.reserved == 0),
];

/// The VM-exit MSR-store list. SDM Vol. 3, "Saving MSRs".
#[rustfmt::skip]
pub const STORE_ON_EXIT: &[EntryRule] = &[
    rule("msrstore.x2apic",   "the list does not store x2APIC registers", |e| !X2APIC.contains(&e.index)),
    rule("msrstore.smm_only", "the list does not store MSRs that only SMM may read", |e| e.index != IA32_SMBASE),
    rule("msrstore.reserved", "bits 63:32 of the entry are 0", |e| e.reserved == 0),
];

/// RDMSR of the entry's MSR at CPL 0 must not fault.
pub const RDMSR_FAULTS: EntryRule =
    rule("msrstore.rdmsr_gp", "RDMSR of the entry's MSR would not fault", |_| false);

const fn is_microcode(index: u32) -> bool {
    matches!(index, IA32_BIOS_UPDT_TRIG | IA32_BIOS_SIGN_ID)
}

/// The first rule of `rules` that the entry breaks.
pub fn first_broken(rules: &'static [EntryRule], entry: Entry) -> Option<&'static EntryRule> {
    rules.iter().find(|rule| !(rule.holds)(entry))
}
