//! Every CPUID feature bit: whether it is offered. What has no row is never offered.
//! SDM Vol. 2, "CPUID—CPU Identification".

use super::HostFeatures;
use crate::arch::cr::cr4;
use crate::control::*;
use crate::cpuid::Register::{self, Eax, Ebx, Ecx, Edx};
use crate::cpuid::leaf::{
    ADDRESS_SIZES, ADVANCED_POWER, EXTENDED_FEATURES, EXTENDED_SIGNATURE, FEATURES as BASIC, XSAVE,
};

/// When a feature is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// If the part has it.
    AsInPart,
    /// If it is asked for and the host has it: it runs on the host's own registers, and runs are to be equal everywhere.
    OnRequest,
    /// Never: it is not implemented.
    Never,
    /// It follows from something else.
    Computed,
}
use Policy::{AsInPart, Computed, Never, OnRequest};

/// A feature bit.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// The name on the command line.
    pub name: &'static str,
    /// EAX at CPUID.
    pub leaf: u32,
    /// ECX at CPUID.
    pub subleaf: u32,
    /// The register with the bit.
    pub register: Register,
    /// The bit.
    pub bit: u8,
    /// When it is offered.
    pub policy: Policy,
}

const fn row(
    (leaf, subleaf): (u32, u32),
    register: Register,
    bit: u8,
    name: &'static str,
    policy: Policy,
) -> Feature {
    Feature { name, leaf, subleaf, register, bit, policy }
}

const L1: (u32, u32) = (BASIC, 0);
const L7: (u32, u32) = (EXTENDED_FEATURES, 0);
const L7_1: (u32, u32) = (EXTENDED_FEATURES, 1);
const L7_2: (u32, u32) = (EXTENDED_FEATURES, 2);
const LD_1: (u32, u32) = (XSAVE, 1);
const E1: (u32, u32) = (EXTENDED_SIGNATURE, 0);
const E7: (u32, u32) = (ADVANCED_POWER, 0);
const E8: (u32, u32) = (ADDRESS_SIZES, 0);

/// The table.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    //  leaf  register bit name                   offered
    row(L1,   Ecx,  0, "sse3",                 AsInPart),
    row(L1,   Ecx,  1, "pclmulqdq",            AsInPart),
    row(L1,   Ecx,  2, "dtes64",               Never),
    row(L1,   Ecx,  3, "monitor",              AsInPart),
    row(L1,   Ecx,  4, "ds_cpl",               Never),
    row(L1,   Ecx,  5, "vmx",                  AsInPart),
    row(L1,   Ecx,  6, "smx",                  Never),
    row(L1,   Ecx,  7, "est",                  Never),
    row(L1,   Ecx,  8, "tm2",                  Never),
    row(L1,   Ecx,  9, "ssse3",                AsInPart),
    row(L1,   Ecx, 10, "cnxt_id",              Never),
    row(L1,   Ecx, 11, "sdbg",                 Never),
    row(L1,   Ecx, 12, "fma",                  OnRequest),
    row(L1,   Ecx, 13, "cmpxchg16b",           AsInPart),
    row(L1,   Ecx, 14, "xtpr",                 Never),
    row(L1,   Ecx, 15, "pdcm",                 Never),
    row(L1,   Ecx, 17, "pcid",                 AsInPart),
    row(L1,   Ecx, 18, "dca",                  Never),
    row(L1,   Ecx, 19, "sse4_1",               AsInPart),
    row(L1,   Ecx, 20, "sse4_2",               AsInPart),
    row(L1,   Ecx, 21, "x2apic",               AsInPart),
    row(L1,   Ecx, 22, "movbe",                AsInPart),
    row(L1,   Ecx, 23, "popcnt",               AsInPart),
    row(L1,   Ecx, 24, "tsc_deadline",         AsInPart),
    row(L1,   Ecx, 25, "aes",                  AsInPart),
    row(L1,   Ecx, 26, "xsave",                AsInPart),
    row(L1,   Ecx, 27, "osxsave",              Computed),
    row(L1,   Ecx, 28, "avx",                  OnRequest),
    row(L1,   Ecx, 29, "f16c",                 OnRequest),
    row(L1,   Ecx, 30, "rdrand",               AsInPart),
    row(L1,   Ecx, 31, "hypervisor",           Never),
    row(L1,   Edx,  0, "fpu",                  AsInPart),
    row(L1,   Edx,  1, "vme",                  AsInPart),
    row(L1,   Edx,  2, "de",                   AsInPart),
    row(L1,   Edx,  3, "pse",                  AsInPart),
    row(L1,   Edx,  4, "tsc",                  AsInPart),
    row(L1,   Edx,  5, "msr",                  AsInPart),
    row(L1,   Edx,  6, "pae",                  AsInPart),
    row(L1,   Edx,  7, "mce",                  AsInPart),
    row(L1,   Edx,  8, "cx8",                  AsInPart),
    row(L1,   Edx,  9, "apic",                 AsInPart),
    row(L1,   Edx, 11, "sep",                  AsInPart),
    row(L1,   Edx, 12, "mtrr",                 AsInPart),
    row(L1,   Edx, 13, "pge",                  AsInPart),
    row(L1,   Edx, 14, "mca",                  AsInPart),
    row(L1,   Edx, 15, "cmov",                 AsInPart),
    row(L1,   Edx, 16, "pat",                  AsInPart),
    row(L1,   Edx, 17, "pse36",                AsInPart),
    row(L1,   Edx, 18, "psn",                  Never),
    row(L1,   Edx, 19, "clfsh",                AsInPart),
    row(L1,   Edx, 21, "ds",                   Never),
    row(L1,   Edx, 22, "acpi",                 Never),
    row(L1,   Edx, 23, "mmx",                  AsInPart),
    row(L1,   Edx, 24, "fxsr",                 AsInPart),
    row(L1,   Edx, 25, "sse",                  AsInPart),
    row(L1,   Edx, 26, "sse2",                 AsInPart),
    row(L1,   Edx, 27, "ss",                   AsInPart),
    row(L1,   Edx, 28, "htt",                  Computed),
    row(L1,   Edx, 29, "tm",                   Never),
    row(L1,   Edx, 31, "pbe",                  Never),
    row(L7,   Ebx,  0, "fsgsbase",             AsInPart),
    row(L7,   Ebx,  1, "tsc_adjust",           AsInPart),
    row(L7,   Ebx,  2, "sgx",                  Never),
    row(L7,   Ebx,  3, "bmi1",                 AsInPart),
    row(L7,   Ebx,  4, "hle",                  Never),
    row(L7,   Ebx,  5, "avx2",                 OnRequest),
    row(L7,   Ebx,  6, "fdp_excptn_only",      Never),
    row(L7,   Ebx,  7, "smep",                 AsInPart),
    row(L7,   Ebx,  8, "bmi2",                 AsInPart),
    row(L7,   Ebx,  9, "erms",                 AsInPart),
    row(L7,   Ebx, 10, "invpcid",              AsInPart),
    row(L7,   Ebx, 11, "rtm",                  Never),
    row(L7,   Ebx, 12, "rdt_m",                Never),
    row(L7,   Ebx, 13, "zero_fcs_fds",         AsInPart),
    row(L7,   Ebx, 14, "mpx",                  Never),
    row(L7,   Ebx, 15, "rdt_a",                Never),
    row(L7,   Ebx, 16, "avx512f",              Never),
    row(L7,   Ebx, 17, "avx512dq",             Never),
    row(L7,   Ebx, 18, "rdseed",               AsInPart),
    row(L7,   Ebx, 19, "adx",                  Never),
    row(L7,   Ebx, 20, "smap",                 AsInPart),
    row(L7,   Ebx, 21, "avx512ifma",           Never),
    row(L7,   Ebx, 23, "clflushopt",           AsInPart),
    row(L7,   Ebx, 24, "clwb",                 AsInPart),
    row(L7,   Ebx, 25, "intel_pt",             Never),
    row(L7,   Ebx, 28, "avx512cd",             Never),
    row(L7,   Ebx, 29, "sha",                  OnRequest),
    row(L7,   Ebx, 30, "avx512bw",             Never),
    row(L7,   Ebx, 31, "avx512vl",             Never),
    row(L7,   Ecx,  0, "prefetchwt1",          Never),
    row(L7,   Ecx,  1, "avx512vbmi",           Never),
    row(L7,   Ecx,  2, "umip",                 AsInPart),
    row(L7,   Ecx,  3, "pku",                  AsInPart),
    row(L7,   Ecx,  4, "ospke",                Computed),
    row(L7,   Ecx,  5, "waitpkg",              Never),
    row(L7,   Ecx,  6, "avx512vbmi2",          Never),
    row(L7,   Ecx,  7, "cet_ss",               Never),
    row(L7,   Ecx,  8, "gfni",                 Never),
    row(L7,   Ecx,  9, "vaes",                 Never),
    row(L7,   Ecx, 10, "vpclmulqdq",           Never),
    row(L7,   Ecx, 11, "avx512vnni",           Never),
    row(L7,   Ecx, 12, "avx512bitalg",         Never),
    row(L7,   Ecx, 13, "tme",                  Never),
    row(L7,   Ecx, 14, "avx512vpopcntdq",      Never),
    row(L7,   Ecx, 16, "la57",                 Never),
    row(L7,   Ecx, 22, "rdpid",                AsInPart),
    row(L7,   Ecx, 23, "key_locker",           Never),
    row(L7,   Ecx, 24, "bus_lock_detect",      Never),
    row(L7,   Ecx, 25, "cldemote",             Never),
    row(L7,   Ecx, 27, "movdiri",              Never),
    row(L7,   Ecx, 28, "movdir64b",            Never),
    row(L7,   Ecx, 29, "enqcmd",               Never),
    row(L7,   Ecx, 30, "sgx_lc",               Never),
    row(L7,   Ecx, 31, "pks",                  Never),
    row(L7,   Edx,  4, "fsrm",                 AsInPart),
    row(L7,   Edx,  5, "uintr",                Never),
    row(L7,   Edx,  8, "avx512vp2intersect",   Never),
    row(L7,   Edx,  9, "srbds_ctrl",           Never),
    row(L7,   Edx, 10, "md_clear",             AsInPart),
    row(L7,   Edx, 11, "rtm_always_abort",     Never),
    row(L7,   Edx, 13, "tsx_force_abort",      Never),
    row(L7,   Edx, 14, "serialize",            Never),
    row(L7,   Edx, 15, "hybrid",               Never),
    row(L7,   Edx, 16, "tsxldtrk",             Never),
    row(L7,   Edx, 18, "pconfig",              Never),
    row(L7,   Edx, 19, "arch_lbr",             Never),
    row(L7,   Edx, 20, "cet_ibt",              Never),
    row(L7,   Edx, 22, "amx_bf16",             Never),
    row(L7,   Edx, 23, "avx512fp16",           Never),
    row(L7,   Edx, 24, "amx_tile",             Never),
    row(L7,   Edx, 25, "amx_int8",             Never),
    row(L7,   Edx, 26, "spec_ctrl",            AsInPart),
    row(L7,   Edx, 27, "stibp",                AsInPart),
    row(L7,   Edx, 28, "flush_l1d",            AsInPart),
    row(L7,   Edx, 29, "arch_capabilities",    AsInPart),
    row(L7,   Edx, 30, "core_capabilities",    Never),
    row(L7,   Edx, 31, "ssbd",                 AsInPart),
    row(L7_1, Eax,  4, "avx_vnni",             Never),
    row(L7_1, Eax, 10, "fzrm",                 AsInPart),
    row(L7_1, Eax, 11, "fsrs",                 AsInPart),
    row(L7_1, Eax, 12, "fsrc",                 AsInPart),
    row(L7_1, Eax, 17, "fred",                 Never),
    row(L7_1, Eax, 19, "wrmsrns",              Never),
    row(L7_1, Eax, 26, "lam",                  Never),
    row(L7_2, Edx,  5, "mcdt_no",              AsInPart),
    row(LD_1, Eax,  0, "xsaveopt",             AsInPart),
    row(LD_1, Eax,  1, "xsavec",               AsInPart),
    row(LD_1, Eax,  2, "xgetbv1",              AsInPart),
    row(LD_1, Eax,  3, "xsaves",               AsInPart),
    row(LD_1, Eax,  4, "xfd",                  Never),
    row(E1,   Ecx,  0, "lahf_lm",              AsInPart),
    row(E1,   Ecx,  5, "lzcnt",                AsInPart),
    row(E1,   Ecx,  8, "prefetchw",            AsInPart),
    row(E1,   Edx, 11, "syscall",              AsInPart),
    row(E1,   Edx, 20, "nx",                   AsInPart),
    row(E1,   Edx, 26, "pdpe1gb",              AsInPart),
    row(E1,   Edx, 27, "rdtscp",               AsInPart),
    row(E1,   Edx, 29, "lm",                   AsInPart),
    row(E7,   Edx,  8, "invtsc",               AsInPart),
    row(E8,   Ebx,  9, "wbnoinvd",             Never),
];

/// What is of no use without something else.
#[rustfmt::skip]
pub const NEEDS: &[(&str, &str)] = &[
    ("avx",      "xsave"),
    ("avx2",     "avx"),
    ("fma",      "avx"),
    ("f16c",     "avx"),
    ("xsaveopt", "xsave"),
    ("xsavec",   "xsave"),
    ("xgetbv1",  "xsave"),
    ("xsaves",   "xsavec"),
    ("syscall",  "lm"),
    ("pcid",     "lm"),
    ("rdpid",    "rdtscp"),
];

/// CR4 bits, each with the feature that it needs. SDM Vol. 3, "Control Registers".
#[rustfmt::skip]
pub const CR4: &[(u64, &str)] = &[
    (cr4::VME,        "vme"),
    (cr4::PVI,        "vme"),
    (cr4::TSD,        "tsc"),
    (cr4::DE,         "de"),
    (cr4::PSE,        "pse"),
    (cr4::PAE,        "pae"),
    (cr4::MCE,        "mce"),
    (cr4::PGE,        "pge"),
    (cr4::PCE,        "msr"),
    (cr4::OSFXSR,     "fxsr"),
    (cr4::OSXMMEXCPT, "sse"),
    (cr4::UMIP,       "umip"),
    (cr4::VMXE,       "vmx"),
    (cr4::FSGSBASE,   "fsgsbase"),
    (cr4::PCIDE,      "pcid"),
    (cr4::OSXSAVE,    "xsave"),
    (cr4::SMEP,       "smep"),
    (cr4::SMAP,       "smap"),
    (cr4::PKE,        "pku"),
];

/// VMX controls, each with the feature that it needs.
#[rustfmt::skip]
pub const CONTROLS: &[(Control, &str)] = &[
    (ENABLE_RDTSCP,           "rdtscp"),
    (RDRAND_EXITING,          "rdrand"),
    (ENABLE_INVPCID,          "invpcid"),
    (RDSEED_EXITING,          "rdseed"),
    (ENABLE_XSAVES_XRSTORS,   "xsaves"),
    (IA_32E_MODE_GUEST,       "lm"),
    (HOST_ADDRESS_SPACE_SIZE, "lm"),
    (VIRTUALIZE_X2APIC_MODE,  "x2apic"),
];

/// The feature with this name.
pub fn named(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

/// The registers that hold feature bits.
pub fn words() -> impl Iterator<Item = (u32, u32, Register)> {
    let word = |feature: &Feature| (feature.leaf, feature.subleaf, feature.register);
    let mut last = None;
    FEATURES.iter().map(word).filter(move |&word| last.replace(word) != Some(word))
}

impl HostFeatures {
    /// Has the host what a feature of [`Policy::OnRequest`] needs?
    pub fn has(&self, name: &str) -> bool {
        match name {
            "avx" => self.avx,
            "avx2" => self.avx2,
            "fma" => self.fma,
            "f16c" => self.f16c,
            "sha" => self.sha,
            _ => false,
        }
    }
}
