//! MSRs that tell of the processor. SDM Vol. 4, "Architectural MSRs".

use super::FeatureSet;
use super::cpuid::Tsc;
use crate::arch::msr::*;
use crate::profile::Profile;
use std::collections::BTreeMap;

const IA32_PLATFORM_ID: u32 = 0x17;
const MSR_CORE_THREAD_COUNT: u32 = 0x35;

/// IA32_FEATURE_CONTROL: locked, VMX outside SMX enabled. SDM Vol. 3, "Enabling and Entering VMX Operation".
const LOCKED_WITH_VMX: u64 = 1 << 0 | 1 << 2;
/// IA32_MTRRCAP: 8 variable ranges, fixed ranges, write-combining. SDM Vol. 3, "MTRR Feature Identification".
const MTRRS: u64 = 8 | 1 << 8 | 1 << 10;

/// IA32_ARCH_CAPABILITIES bits that say that a fault is absent, or name what is implemented: VERW, IA32_FLUSH_CMD,
/// IA32_SPEC_CTRL. The others announce MSRs that are not there.
const ARCH_CAPABILITIES: u64 = {
    const RDCL_NO: u64 = 1 << 0;
    const IBRS_ALL: u64 = 1 << 1;
    const RSBA: u64 = 1 << 2;
    const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    const SSB_NO: u64 = 1 << 4;
    const MDS_NO: u64 = 1 << 5;
    const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    const TAA_NO: u64 = 1 << 8;
    const SBDR_SSDP_NO: u64 = 1 << 13;
    const FBSDP_NO: u64 = 1 << 14;
    const PSDP_NO: u64 = 1 << 15;
    const FB_CLEAR: u64 = 1 << 17;
    const RRSBA: u64 = 1 << 19;
    const BHI_NO: u64 = 1 << 20;
    const PBRSB_NO: u64 = 1 << 24;
    const GDS_NO: u64 = 1 << 26;
    const RFDS_NO: u64 = 1 << 27;
    const RFDS_CLEAR: u64 = 1 << 28;
    RDCL_NO
        | IBRS_ALL
        | RSBA
        | SKIP_L1DFL_VMENTRY
        | SSB_NO
        | MDS_NO
        | IF_PSCHANGE_MC_NO
        | TAA_NO
        | SBDR_SSDP_NO
        | FBSDP_NO
        | PSDP_NO
        | FB_CLEAR
        | RRSBA
        | BHI_NO
        | PBRSB_NO
        | GDS_NO
        | RFDS_NO
        | RFDS_CLEAR
};

/// IA32_MISC_ENABLE. SDM Vol. 4, "Architectural MSRs".
mod misc_enable {
    pub const FAST_STRINGS: u64 = 1 << 0;
    pub const NO_BTS: u64 = 1 << 11;
    pub const NO_PEBS: u64 = 1 << 12;
    pub const MONITOR: u64 = 1 << 18;
}

/// Bits 15:8 of MSR_PLATFORM_INFO: the TSC's ratio to a bus clock of 100 MHz.
const RATIO: u64 = 0xff00;

/// The MSRs, by index.
pub(super) fn values(profile: &Profile, features: &FeatureSet, tsc: &Tsc, cpus: u32) -> BTreeMap<u32, u64> {
    let part = |index| profile.related_msrs.get(&index).copied();
    let cpus = u64::from(cpus);
    [
        (IA32_PLATFORM_ID, part(IA32_PLATFORM_ID).or(Some(0))),
        (MSR_CORE_THREAD_COUNT, part(MSR_CORE_THREAD_COUNT).map(|_| cpus << 16 | cpus)),
        (IA32_FEATURE_CONTROL, features.has("vmx").then_some(LOCKED_WITH_VMX)),
        (IA32_BIOS_SIGN_ID, part(IA32_BIOS_SIGN_ID).or(Some(0))),
        (MSR_PLATFORM_INFO, part(MSR_PLATFORM_INFO).map(|info| platform_info(info, tsc))),
        (IA32_MTRRCAP, features.has("mtrr").then_some(MTRRS)),
        (IA32_ARCH_CAPABILITIES, arch_capabilities(profile, features)),
        (IA32_MCG_CAP, features.has("mca").then_some(0)),
        (IA32_MISC_ENABLE, Some(misc_enable(part(IA32_MISC_ENABLE), features))),
    ]
    .into_iter()
    .filter_map(|(index, value)| Some((index, value?)))
    .collect()
}

fn platform_info(part: u64, tsc: &Tsc) -> u64 {
    if tsc.is_enumerated || part & RATIO == 0 {
        return part;
    }
    (part & !RATIO) | (tsc.khz / 100_000) << 8
}

fn arch_capabilities(profile: &Profile, features: &FeatureSet) -> Option<u64> {
    let value = profile.related_msrs.get(&IA32_ARCH_CAPABILITIES)?;
    features.has("arch_capabilities").then_some(value & ARCH_CAPABILITIES)
}

fn misc_enable(part: Option<u64>, features: &FeatureSet) -> u64 {
    let monitor = if features.has("monitor") { misc_enable::MONITOR } else { 0 };
    let fast_strings = part.unwrap_or(misc_enable::FAST_STRINGS) & misc_enable::FAST_STRINGS;
    fast_strings | misc_enable::NO_BTS | misc_enable::NO_PEBS | monitor
}
