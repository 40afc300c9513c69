//! The CPUID table of an offer: features masked, dependent leaves recomputed.

use super::FeatureSet;
use super::feature::{self, FEATURES};
use crate::cpuid::{CpuidTable, component, leaf};
use crate::profile::Profile;

/// Leaves that are offered; the others read as zero: performance monitoring, RDT, SGX, PT, Key Locker, AMX and others.
#[rustfmt::skip]
const OFFERED: &[u32] = &[
    leaf::VENDOR, leaf::FEATURES, 0x2, leaf::CACHES, leaf::MONITOR, leaf::POWER, leaf::EXTENDED_FEATURES,
    leaf::TOPOLOGY, leaf::XSAVE, leaf::TSC, leaf::FREQUENCY, leaf::TLB, leaf::TOPOLOGY_V2,
    leaf::EXTENDED, leaf::EXTENDED_SIGNATURE, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006,
    leaf::ADVANCED_POWER, leaf::ADDRESS_SIZES,
];

/// Bit 2 of CPUID.6:EAX: the local APIC's timer always runs.
const ARAT: u32 = 1 << 2;
/// Bit 28 of CPUID.1:EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;

/// The table.
pub(super) fn table(profile: &Profile, features: &FeatureSet, cpus: u32) -> CpuidTable {
    let mut table = profile.cpuid.clone();
    table.retain(|row| OFFERED.contains(&row.leaf));
    mask_features(&mut table, features);
    offer_power(&mut table);
    offer_xsave(&mut table, features);
    offer_topology(&mut table, cpus);
    offer_address_sizes(&mut table);
    table
}

fn mask_features(table: &mut CpuidTable, features: &FeatureSet) {
    let highest = highest_leaves(table);
    for (leaf, subleaf, register) in feature::words() {
        let bits = FEATURES
            .iter()
            .zip(features.0)
            .filter(|(row, on)| *on && (row.leaf, row.subleaf, row.register) == (leaf, subleaf, register))
            .fold(0, |bits, (row, _)| bits | 1 << row.bit);
        if bits != 0 || table.get(leaf, subleaf).get(register) != 0 {
            *table.get_mut(leaf, subleaf).get_mut(register) = bits;
        }
    }
    clear_rest(table);
    // A feature added may be in a leaf that the part lacks.
    let has = |leaf| table.rows().iter().any(|row| row.leaf == leaf);
    let (mut basic, extended) = highest;
    for leaf in [leaf::EXTENDED_FEATURES, leaf::XSAVE] {
        basic = if has(leaf) { basic.max(leaf) } else { basic };
    }
    let extended = extended.max(leaf::EXTENDED_SIGNATURE);
    table.get_mut(leaf::VENDOR, 0).eax = basic;
    table.get_mut(leaf::EXTENDED, 0).eax = extended;
}

fn highest_leaves(table: &CpuidTable) -> (u32, u32) {
    (table.get(leaf::VENDOR, 0).eax, table.get(leaf::EXTENDED, 0).eax)
}

/// Registers of feature leaves that hold no feature offered.
fn clear_rest(table: &mut CpuidTable) {
    table.retain(|row| row.leaf != leaf::EXTENDED_FEATURES || row.subleaf <= 2);
    for subleaf in [1, 2] {
        if table.get(leaf::EXTENDED_FEATURES, subleaf) == Default::default() {
            continue;
        }
        let registers = table.get_mut(leaf::EXTENDED_FEATURES, subleaf);
        (registers.ebx, registers.ecx) = (0, 0);
        match subleaf {
            1 => registers.edx = 0,
            _ => registers.eax = 0,
        }
    }
    table.retain(|row| {
        row.leaf != leaf::EXTENDED_FEATURES || row.subleaf == 0 || row.registers != Default::default()
    });
    let subleaves = table.rows().iter().filter(|row| row.leaf == leaf::EXTENDED_FEATURES);
    if let Some(highest) = subleaves.map(|row| row.subleaf).max() {
        table.get_mut(leaf::EXTENDED_FEATURES, 0).eax = highest;
    }
}

/// No C-states but HLT's, no thermal and no performance interface.
fn offer_power(table: &mut CpuidTable) {
    if table.get(leaf::MONITOR, 0) != Default::default() {
        table.get_mut(leaf::MONITOR, 0).edx = 0;
    }
    if table.get(leaf::POWER, 0) != Default::default() {
        let registers = table.get_mut(leaf::POWER, 0);
        *registers = Default::default();
        registers.eax = ARAT;
    }
}

/// XCR0 bits that may be 1.
pub(super) fn xcr0(features: &FeatureSet) -> u64 {
    if !features.has("xsave") {
        return component::X87;
    }
    [(component::X87, "fpu"), (component::SSE, "sse"), (component::AVX, "avx"), (component::PKRU, "pku")]
        .into_iter()
        .filter(|row| features.has(row.1))
        .fold(0, |bits, row| bits | row.0)
}

/// Size and offset of the components in the standard format, where the part has no row.
const COMPONENTS: [(u32, u32, u32); 2] = [(2, 256, 576), (9, 8, 2688)];

fn offer_xsave(table: &mut CpuidTable, features: &FeatureSet) {
    let xcr0 = xcr0(features);
    if !features.has("xsave") {
        table.retain(|row| row.leaf != leaf::XSAVE);
        return;
    }
    let is_offered = |subleaf: u32| subleaf < 2 || (subleaf < 64 && xcr0 & (1 << subleaf) != 0);
    table.retain(|row| row.leaf != leaf::XSAVE || is_offered(row.subleaf));
    for (number, size, offset) in COMPONENTS.into_iter().filter(|row| is_offered(row.0)) {
        let row = table.get_mut(leaf::XSAVE, number);
        if row.eax == 0 {
            (row.eax, row.ebx) = (size, offset);
        }
    }
    let size = table.standard_size(xcr0);
    let main = table.get_mut(leaf::XSAVE, 0);
    (main.eax, main.edx) = (xcr0 as u32, (xcr0 >> 32) as u32);
    (main.ebx, main.ecx) = (size, size);
    let extensions = table.get_mut(leaf::XSAVE, 1);
    (extensions.ebx, extensions.ecx, extensions.edx) = (0, 0, 0);
}

/// One package of `cpus` cores with one thread each; the caches from the third level on are shared.
fn offer_topology(table: &mut CpuidTable, cpus: u32) {
    let ids = cpus.next_power_of_two();
    let features = table.get_mut(leaf::FEATURES, 0);
    features.ebx = (features.ebx & 0xffff) | ids << 16;
    if cpus > 1 {
        features.edx |= HTT;
    }
    for subleaf in subleaves(table, leaf::CACHES) {
        let row = table.get_mut(leaf::CACHES, subleaf);
        let (kind, level) = (row.eax & 0x1f, (row.eax >> 5) & 7);
        if kind != 0 {
            let sharers = if level >= 3 { ids - 1 } else { 0 };
            row.eax = (row.eax & 0x3fff) | sharers << 14 | (ids - 1).min(63) << 26;
        }
    }
    for leaf in [leaf::TOPOLOGY, leaf::TOPOLOGY_V2] {
        let is_there = table.get(leaf, 0).ebx != 0;
        table.retain(|row| row.leaf != leaf);
        if is_there {
            let thread = table.get_mut(leaf, 0);
            (thread.eax, thread.ebx, thread.ecx) = (0, 1, 0x100);
            let core = table.get_mut(leaf, 1);
            (core.eax, core.ebx, core.ecx) = (ids.trailing_zeros(), cpus, 0x201);
        }
    }
}

fn subleaves(table: &CpuidTable, leaf: u32) -> Vec<u32> {
    table.rows().iter().filter(|row| row.leaf == leaf).map(|row| row.subleaf).collect()
}

/// Linear addresses of 57 bits come with LA57, which is not offered.
fn offer_address_sizes(table: &mut CpuidTable) {
    let sizes = table.get(leaf::ADDRESS_SIZES, 0).eax;
    if (sizes >> 8) & 0xff > 48 {
        table.get_mut(leaf::ADDRESS_SIZES, 0).eax = (sizes & 0xff) | 48 << 8;
    }
}

/// The time-stamp counter's clock.
pub(super) struct Tsc {
    pub khz: u64,
    pub crystal_hz: u64,
    /// Does CPUID.15H tell the ratio?
    pub is_enumerated: bool,
}

/// The frequency where CPUID does not tell it.
const DEFAULT_KHZ: u64 = 2_000_000;
/// The bus clock of the parts whose CPUID knows no crystal.
const BUS_HZ: u64 = 100_000_000;
/// The crystal of the parts that tell neither it nor a base frequency.
const DEFAULT_CRYSTAL_HZ: u64 = 25_000_000;

/// The clock by CPUID.15H, with CPUID.16H where the crystal is not told; an operating system computes the same.
pub(super) fn tsc(table: &CpuidTable) -> Tsc {
    let ratio = table.get(leaf::TSC, 0);
    let (denominator, numerator) = (u64::from(ratio.eax), u64::from(ratio.ebx));
    if denominator == 0 || numerator == 0 {
        return Tsc { khz: DEFAULT_KHZ, crystal_hz: BUS_HZ, is_enumerated: false };
    }
    let base_mhz = u64::from(table.get(leaf::FREQUENCY, 0).eax & 0xffff);
    let crystal_hz = match (u64::from(ratio.ecx), base_mhz) {
        (0, 0) => DEFAULT_CRYSTAL_HZ,
        // In kilohertz and rounded down, as Linux does it.
        (0, mhz) => (mhz * 1000 * denominator / numerator).saturating_mul(1000),
        (told, _) => told,
    };
    let khz = u128::from(crystal_hz) * u128::from(numerator) / u128::from(denominator) / 1000;
    Tsc { khz: u64::try_from(khz).unwrap_or(u64::MAX), crystal_hz, is_enumerated: true }
}
