//! What a guest is offered: the part's, as far as it is implemented, with what depends on it recomputed.

mod cpuid;
pub mod feature;
mod msr;
pub mod vmx_feature;

use crate::arch::efer;
use crate::caps::Capabilities;
use crate::cpuid::{CpuidState, CpuidTable, Registers, component, leaf};
use crate::profile::Profile;
use feature::{FEATURES, Feature, Policy};
use std::collections::BTreeMap;
use std::str::FromStr;
use thiserror::Error;
use vmx_feature::VMX_FEATURES;

/// The profile offered unless one is named. It has the bits that spare a guest hypervisor the costliest mitigations.
pub const DEFAULT_PROFILE: &str = "cascade_lake_sp";
/// The name that stands for the default profile with all that the host can add.
pub const MAX: &str = "max";
/// Most virtual processors.
pub const MAX_CPUS: u32 = 64;

/// The host's vector extensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the features' own names")]
pub struct HostFeatures {
    pub avx: bool,
    pub avx2: bool,
    pub fma: bool,
    pub f16c: bool,
    pub sha: bool,
}

/// A change to what is offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tweak {
    /// `+name`: offered although the profile lacks it.
    Add(String),
    /// `-name`: hidden although the profile has it.
    Remove(String),
}

impl FromStr for Tweak {
    type Err = OfferError;
    fn from_str(text: &str) -> Result<Self, OfferError> {
        match text.split_at_checked(1) {
            Some(("+", name)) if !name.is_empty() => Ok(Self::Add(name.to_owned())),
            Some(("-", name)) if !name.is_empty() => Ok(Self::Remove(name.to_owned())),
            _ => Err(OfferError::Tweak(text.to_owned())),
        }
    }
}

/// `PROFILE[,+feature,-feature]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuModel {
    /// A profile's name, or [`MAX`].
    pub profile: String,
    /// The changes, in order.
    pub tweaks: Vec<Tweak>,
}

impl FromStr for CpuModel {
    type Err = OfferError;
    fn from_str(text: &str) -> Result<Self, OfferError> {
        let mut words = text.split(',');
        let profile = words.next().unwrap_or_default().to_owned();
        Ok(Self { profile, tweaks: words.map(str::parse).collect::<Result<_, _>>()? })
    }
}

impl CpuModel {
    /// The changes, with what [`MAX`] adds before them, and the name of the embedded profile that they change.
    pub fn resolve(&self, host: &HostFeatures) -> (&str, Vec<Tweak>) {
        if self.profile != MAX {
            return (&self.profile, self.tweaks.clone());
        }
        let on_request = FEATURES.iter().filter(|feature| feature.policy == Policy::OnRequest);
        let added = on_request.filter(|feature| host.has(feature.name));
        let added = added.map(|feature| Tweak::Add(feature.name.to_owned()));
        (DEFAULT_PROFILE, added.chain(self.tweaks.iter().cloned()).collect())
    }
}

/// Why a processor cannot be offered.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OfferError {
    /// No change at all.
    #[error("{0:?} changes no feature; write +name or -name")]
    Tweak(String),
    /// A name that no feature has.
    #[error("there is no processor feature {name:?}; known are {}", .known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// All names.
        known: Vec<&'static str>,
    },
    /// Nobody can have the feature.
    #[error("the processor feature {0:?} is not implemented and cannot be added")]
    NotImplemented(String),
    /// The feature runs on the host's own.
    #[error("the host's processor lacks {0:?}, so it cannot be offered")]
    HostLacks(String),
    /// The feature needs another one that is not offered.
    #[error("the processor feature {0:?} cannot be added to {1}: something that it needs is missing")]
    Ineffective(String, String),
    /// The guest needs 64-bit mode.
    #[error("{0} has no 64-bit mode, and this guest needs it")]
    No64Bit(String),
    /// Too few or too many virtual processors.
    #[error("{0} virtual processors are not possible; choose 1 to {MAX_CPUS}")]
    Cpus(u32),
}

/// What the guest's virtual processors are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The profile's name.
    pub name: String,
    /// CPUID's results.
    pub cpuid: CpuidTable,
    /// The VMX capability MSRs for L1; those of a processor without VMX if it is not offered.
    pub caps: Capabilities,
    /// MSRs whose value follows from the processor: constants, and what the writable ones hold at reset.
    pub msrs: BTreeMap<u32, u64>,
    /// Frequency of the TSC.
    pub tsc_khz: u64,
    /// Frequency of the crystal, by which the local APIC's timer counts: coherent with the TSC's by CPUID.15H.
    pub crystal_hz: u64,
    /// CR4 bits that may be 1.
    pub cr4: u64,
    /// IA32_EFER bits that may be 1.
    pub efer: u64,
    /// XCR0 bits that may be 1.
    pub xcr0: u64,
    /// IA32_XSS bits that may be 1.
    pub xss: u64,
}

/// The features of one offer, by their place in [`FEATURES`].
#[derive(Clone, PartialEq, Eq, Debug)]
struct FeatureSet([bool; FEATURES.len()]);

impl FeatureSet {
    fn of_part(profile: &Profile) -> Self {
        let has = |feature: &Feature| {
            // A reading by a 32-bit program misses SYSCALL, which every part with 64-bit mode has.
            let name = if feature.name == "syscall" { "lm" } else { feature.name };
            feature.policy == Policy::AsInPart && is_set(&profile.cpuid, name)
        };
        Self(std::array::from_fn(|i| has(&FEATURES[i])))
    }

    fn place(name: &str) -> Option<usize> {
        FEATURES.iter().position(|feature| feature.name == name)
    }
    fn has(&self, name: &str) -> bool {
        Self::place(name).is_some_and(|at| self.0[at])
    }
    fn set(&mut self, name: &str, on: bool) {
        if let Some(at) = Self::place(name) {
            self.0[at] = on;
        }
    }
    /// Adds a feature and what it needs.
    fn add(&mut self, name: &str) {
        self.set(name, true);
        for (_, needed) in feature::NEEDS.iter().filter(|row| row.0 == name) {
            self.add(needed);
        }
    }
    /// Drops what needs a feature that is not there.
    fn drop_dependents(&mut self) {
        for _ in 0..feature::NEEDS.len() {
            for (name, needed) in feature::NEEDS {
                if !self.has(needed) {
                    self.set(name, false);
                }
            }
        }
    }
}

fn is_set(table: &CpuidTable, name: &str) -> bool {
    feature::named(name).is_some_and(|feature| {
        let registers = table.get(feature.leaf, feature.subleaf);
        registers.get(feature.register) & (1 << feature.bit) != 0
    })
}

/// What a guest with `cpus` virtual processors of this profile is offered, after the changes.
///
/// # Errors
/// What cannot be offered, and why.
pub fn offer(
    profile: &Profile,
    implemented: &Capabilities,
    host: &HostFeatures,
    cpus: u32,
    tweaks: &[Tweak],
) -> Result<Offer, OfferError> {
    if !(1..=MAX_CPUS).contains(&cpus) {
        return Err(OfferError::Cpus(cpus));
    }
    let features = choose_features(profile, implemented, host, tweaks)?;
    let caps = choose_capabilities(profile, implemented, &features, tweaks)?;
    let cpuid = cpuid::table(profile, &features, cpus);
    let tsc = cpuid::tsc(&cpuid);
    let offer = Offer {
        name: profile.name.clone(),
        msrs: msr::values(profile, &features, &tsc, cpus),
        tsc_khz: tsc.khz,
        crystal_hz: tsc.crystal_hz,
        cr4: cr4_bits(&features, implemented),
        efer: efer_bits(&features),
        xcr0: cpuid::xcr0(&features),
        xss: 0,
        cpuid,
        caps,
    };
    all_added(&offer, tweaks)?;
    Ok(offer)
}

fn choose_features(
    profile: &Profile,
    implemented: &Capabilities,
    host: &HostFeatures,
    tweaks: &[Tweak],
) -> Result<FeatureSet, OfferError> {
    let mut features = FeatureSet::of_part(profile);
    for tweak in tweaks {
        match tweak {
            Tweak::Add(name) if is_cpuid(name)? => {
                may_add(name, host)?;
                features.add(name);
            }
            Tweak::Remove(name) if is_cpuid(name)? => features.set(name, false),
            Tweak::Add(_) | Tweak::Remove(_) => {}
        }
    }
    if !implemented.can_be_one(crate::control::ENABLE_XSAVES_XRSTORS) {
        features.set("xsaves", false);
    }
    if !profile.related_msrs.contains_key(&crate::arch::msr::IA32_ARCH_CAPABILITIES) {
        features.set("arch_capabilities", false);
    }
    features.drop_dependents();
    Ok(features)
}

/// Is the feature CPUID's, rather than a VMX capability?
fn is_cpuid(name: &str) -> Result<bool, OfferError> {
    match (feature::named(name), vmx_feature::named(name)) {
        (Some(_), _) => Ok(true),
        (None, Some(_)) => Ok(false),
        (None, None) => Err(OfferError::Unknown { name: name.to_owned(), known: feature_names().collect() }),
    }
}

/// The names of all features, CPUID's first.
pub fn feature_names() -> impl Iterator<Item = &'static str> {
    let changeable = FEATURES.iter().filter(|feature| feature.policy != Policy::Computed);
    changeable.map(|feature| feature.name).chain(VMX_FEATURES.iter().map(|row| row.0))
}

fn may_add(name: &str, host: &HostFeatures) -> Result<(), OfferError> {
    match feature::named(name).map(|feature| feature.policy) {
        Some(Policy::AsInPart) => Ok(()),
        Some(Policy::OnRequest) if host.has(name) => Ok(()),
        Some(Policy::OnRequest) => Err(OfferError::HostLacks(name.to_owned())),
        Some(Policy::Never | Policy::Computed) | None => Err(OfferError::NotImplemented(name.to_owned())),
    }
}

fn choose_capabilities(
    profile: &Profile,
    implemented: &Capabilities,
    features: &FeatureSet,
    tweaks: &[Tweak],
) -> Result<Capabilities, OfferError> {
    let mut caps = Capabilities::intersect(&profile.capabilities, implemented);
    for tweak in tweaks {
        match tweak {
            Tweak::Add(name) => {
                if let Some(capability) = vmx_feature::named(name).filter(|_| feature::named(name).is_none())
                {
                    if !capability.is_in(implemented) {
                        return Err(OfferError::NotImplemented(name.clone()));
                    }
                    capability.add_to(&mut caps, implemented);
                }
            }
            Tweak::Remove(name) => {
                if let Some(capability) = vmx_feature::named(name) {
                    capability.remove_from(&mut caps);
                }
            }
        }
    }
    for (control, name) in feature::CONTROLS {
        if !features.has(name) {
            caps.forbid(*control);
        }
    }
    caps.cr4_fixed1 = cr4_bits(features, implemented);
    caps.cr4_fixed0 &= caps.cr4_fixed1;
    caps.cpuid.efer = efer_bits(features);
    caps.linear_width = profile.capabilities.linear_width.min(implemented.linear_width);
    Ok(if features.has("vmx") { caps } else { Capabilities::default() })
}

/// Each capability asked for is there, or something that it needs is missing.
fn all_added(offer: &Offer, tweaks: &[Tweak]) -> Result<(), OfferError> {
    for (at, tweak) in tweaks.iter().enumerate() {
        let Tweak::Add(name) = tweak else { continue };
        let is_taken_back =
            tweaks[at..].iter().any(|later| matches!(later, Tweak::Remove(other) if other == name));
        if !is_taken_back && !offer.has(name) {
            return Err(OfferError::Ineffective(name.clone(), offer.name.clone()));
        }
    }
    Ok(())
}

fn cr4_bits(features: &FeatureSet, implemented: &Capabilities) -> u64 {
    let named = feature::CR4.iter().filter(|row| features.has(row.1)).fold(0, |bits, row| bits | row.0);
    named & implemented.cr4_fixed1
}

fn efer_bits(features: &FeatureSet) -> u64 {
    [(efer::SCE, "syscall"), (efer::LME | efer::LMA, "lm"), (efer::NXE, "nx")]
        .into_iter()
        .filter(|row| features.has(row.1))
        .fold(0, |bits, row| bits | row.0)
}

impl Offer {
    /// Is the feature, of CPUID or of VMX, offered?
    pub fn has(&self, name: &str) -> bool {
        match (feature::named(name), vmx_feature::named(name)) {
            (Some(_), _) => is_set(&self.cpuid, name),
            (None, Some(capability)) => self.caps.has_vmx() && capability.is_in(&self.caps),
            (None, None) => false,
        }
    }

    /// What CPUID returns.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, state: &CpuidState) -> Registers {
        self.cpuid.query(leaf, subleaf, state)
    }

    /// What RDMSR of an MSR that tells of the processor returns; `None` where it does not exist, or is no such MSR.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.get(&index).copied().or_else(|| self.caps.msr(index))
    }

    /// Physical-address width.
    pub fn physical_width(&self) -> u32 {
        match self.cpuid.get(leaf::ADDRESS_SIZES, 0).eax & 0xff {
            0 => 36,
            width => width,
        }
    }

    /// Has the processor a vector state beyond SSE's?
    pub fn has_avx_state(&self) -> bool {
        self.xcr0 & component::AVX != 0
    }

    /// The guest needs 64-bit mode.
    ///
    /// # Errors
    /// The processor has none.
    pub fn require_64_bit(&self) -> Result<(), OfferError> {
        if self.has("lm") { Ok(()) } else { Err(OfferError::No64Bit(self.name.clone())) }
    }

    /// A digest of the CPUID offered: 64-bit FNV-1a over the rows. Equal digests, equal processors.
    pub fn digest(&self) -> u64 {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let words = self.cpuid.rows().iter().flat_map(|row| {
            let Registers { eax, ebx, ecx, edx } = row.registers;
            [row.leaf, row.subleaf, eax, ebx, ecx, edx]
        });
        words
            .flat_map(u32::to_le_bytes)
            .fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
    }
}
