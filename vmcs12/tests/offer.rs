//! What each profile offers.

use vmcs12::arch::cr::cr4;
use vmcs12::arch::msr::*;
use vmcs12::caps::{EptVpidCap, VmxBasic, VmxMisc};
use vmcs12::control::*;
use vmcs12::cpuid::{CpuidState, leaf};
use vmcs12::implemented::implemented;
use vmcs12::offer::{
    CpuModel, DEFAULT_PROFILE, HostFeatures, Offer, OfferError, Tweak, feature, feature_names, offer,
};
use vmcs12::profile::{Profile, ProfileError};

const NO_VECTORS: HostFeatures =
    HostFeatures { avx: false, avx2: false, fma: false, f16c: false, sha: false };
const ALL_VECTORS: HostFeatures = HostFeatures { avx: true, avx2: true, fma: true, f16c: true, sha: true };
const AT_RESET: CpuidState =
    CpuidState { cr4: 0, xcr0: 1, xss: 0, apic_id: 0, apic_enabled: true, is_64_bit: true };

fn try_offer(name: &str, tweaks: &[&str], host: &HostFeatures, cpus: u32) -> Result<Offer, OfferError> {
    let profile = Profile::named(name).expect("an embedded profile");
    let tweaks = tweaks.iter().map(|text| text.parse().expect("a tweak")).collect::<Vec<Tweak>>();
    offer(&profile, &implemented(), host, cpus, &tweaks)
}

fn offered(name: &str, tweaks: &[&str]) -> Offer {
    try_offer(name, tweaks, &NO_VECTORS, 1).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_embedded_profile_can_be_offered() {
    let names: Vec<_> = Profile::names().collect();
    assert_eq!(names.len(), 49);
    assert!(names.is_sorted());
    for name in names {
        let profile = Profile::named(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(profile.name, name);
        assert!(profile.capabilities.has_vmx(), "{name}");
        let offer = offered(name, &[]);
        assert!(offer.has("vmx"), "{name}");
        assert_eq!(offer.caps.basic.get(VmxBasic::REGION_SIZE), 4096, "{name}");
        assert!(offer.tsc_khz > 500_000, "{name}: {} kHz", offer.tsc_khz);
        assert!(offer.crystal_hz > 10_000_000, "{name}: {} Hz", offer.crystal_hz);
    }
}

#[test]
fn nothing_unimplemented_is_offered() {
    let ours = implemented();
    for name in Profile::names() {
        let offer = try_offer(name, &[], &ALL_VECTORS, 1).expect(name);
        for &(control, text) in CONTROLS {
            assert!(!offer.caps.can_be_one(control) || ours.can_be_one(control), "{name}: {text}");
        }
        assert_eq!(offer.caps.ept_vpid.0 & !ours.ept_vpid.0, 0, "{name}");
        assert_eq!(offer.cr4 & !ours.cr4_fixed1, 0, "{name}");
        for feature in feature::FEATURES {
            let never = matches!(feature.policy, feature::Policy::Never | feature::Policy::OnRequest);
            assert!(!(never && offer.has(feature.name)), "{name} offers {}", feature.name);
        }
    }
}

#[test]
fn controls_follow_their_cpuid_feature() {
    for name in Profile::names() {
        let offer = offered(name, &[]);
        for (control, feature) in feature::CONTROLS {
            assert!(!offer.caps.can_be_one(*control) || offer.has(feature), "{name}: {}", control.name());
        }
        for (bit, feature) in feature::CR4 {
            assert_eq!(offer.cr4 & bit != 0, offer.has(feature), "{name}: {feature}");
        }
        assert_eq!(offer.caps.cr4_fixed1, offer.cr4, "{name}");
        assert_eq!(offer.caps.cr4_fixed0 & !offer.cr4, 0, "{name}");
    }
}

#[test]
fn haswell_has_what_kvm_wants() {
    let offer = offered("haswell", &[]);
    let caps = &offer.caps;
    for control in
        [ENABLE_EPT, ENABLE_VPID, UNRESTRICTED_GUEST, USE_TPR_SHADOW, USE_MSR_BITMAPS, VIRTUAL_NMIS]
    {
        assert!(caps.can_be_one(control), "{}", control.name());
    }
    assert!(caps.ept_vpid.get(EptVpidCap::WALK_LENGTH_4));
    assert!(caps.ept_vpid.get(EptVpidCap::INVVPID_SINGLE));
    assert_eq!(caps.misc.get(VmxMisc::PREEMPTION_TIMER_RATE), 5);
    assert!(caps.misc.get(VmxMisc::VMWRITE_ANY_FIELD));
    assert!(!caps.can_be_one(VMCS_SHADOWING));
    assert!(!caps.can_be_one(LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT));
    assert_eq!(offer.physical_width(), 39);
    assert_eq!(offer.msr(IA32_FEATURE_CONTROL), Some(5));
    assert_eq!(offer.msr(IA32_VMX_BASIC), Some(caps.basic.0));
    assert_eq!(offer.msr(IA32_ARCH_CAPABILITIES), None);
    assert_eq!(offer.tsc_khz, 2_000_000);
}

#[test]
fn the_default_part_spares_mitigations() {
    let offer = offered(DEFAULT_PROFILE, &[]);
    assert_eq!(offer.msr(IA32_ARCH_CAPABILITIES), Some(0x2b));
    for name in
        ["spec_ctrl", "flush_l1d", "ssbd", "md_clear", "arch_capabilities", "pku", "invpcid", "x2apic"]
    {
        assert!(offer.has(name), "{name}");
    }
    for name in ["hypervisor", "avx", "avx2", "avx512f", "rtm", "hle", "intel_pt", "mpx", "ds", "pdcm"] {
        assert!(!offer.has(name), "{name}");
    }
    assert_eq!((offer.tsc_khz, offer.crystal_hz), (2_400_000, 25_000_000));
    assert_eq!(offer.xcr0, 0x203);
}

#[test]
fn leaves_beyond_the_highest_return_the_highest_basic_leaf() {
    let offer = offered("haswell", &[]);
    let highest = offer.cpuid(0xd, 0, &AT_RESET);
    assert_eq!(offer.cpuid(0x4000_0000, 0, &AT_RESET), highest);
    assert_eq!(offer.cpuid(0xe, 0, &AT_RESET), highest);
    assert_eq!(offer.cpuid(0x8000_0009, 0, &AT_RESET), highest);
}

#[test]
fn performance_monitoring_is_version_0() {
    let offer = offered("haswell", &[]);
    assert_eq!(offer.cpuid(0xa, 0, &AT_RESET), Default::default());
}

#[test]
fn bits_that_read_control_registers_back() {
    let offer = offered(DEFAULT_PROFILE, &[]);
    let state = CpuidState { cr4: cr4::OSXSAVE | cr4::PKE, apic_id: 3, ..AT_RESET };
    let features = offer.cpuid(leaf::FEATURES, 0, &state);
    assert_eq!(features.ecx >> 27 & 1, 1, "OSXSAVE");
    assert_eq!(features.ebx >> 24, 3, "initial APIC identifier");
    assert_eq!(offer.cpuid(leaf::EXTENDED_FEATURES, 0, &state).ecx >> 4 & 1, 1, "OSPKE");
    assert_eq!(offer.cpuid(leaf::FEATURES, 0, &AT_RESET).ecx >> 27 & 1, 0);
    let disabled = CpuidState { apic_enabled: false, ..AT_RESET };
    assert_eq!(offer.cpuid(leaf::FEATURES, 0, &disabled).edx >> 9 & 1, 0);
    let compatibility = CpuidState { is_64_bit: false, ..AT_RESET };
    assert_eq!(offer.cpuid(leaf::EXTENDED_SIGNATURE, 0, &AT_RESET).edx >> 11 & 1, 1);
    assert_eq!(offer.cpuid(leaf::EXTENDED_SIGNATURE, 0, &compatibility).edx >> 11 & 1, 0);
}

#[test]
fn the_xsave_area_follows_xcr0() {
    let offer = offered(DEFAULT_PROFILE, &[]);
    let size = |xcr0, subleaf| offer.cpuid(leaf::XSAVE, subleaf, &CpuidState { xcr0, ..AT_RESET }).ebx;
    assert_eq!(size(3, 0), 576);
    assert_eq!(size(0x203, 0), 2688 + 8);
    assert_eq!(size(0x203, 1), 576 + 8, "compacted");
    assert_eq!(offer.cpuid(leaf::XSAVE, 0, &AT_RESET).ecx, 2688 + 8, "all that can be enabled");
    let with_avx = try_offer(DEFAULT_PROFILE, &["+avx2"], &ALL_VECTORS, 1).expect("AVX2");
    assert_eq!(with_avx.xcr0, 0x207);
    let state = CpuidState { xcr0: 7, ..AT_RESET };
    assert_eq!(with_avx.cpuid(leaf::XSAVE, 0, &state).ebx, 832);
    assert_eq!(with_avx.cpuid(leaf::XSAVE, 5, &state), Default::default(), "no AVX-512 state");
}

#[test]
fn topology_is_one_package_of_single_threaded_cores() {
    let offer = try_offer("haswell", &[], &NO_VECTORS, 6).expect("6 cpus");
    let state = CpuidState { apic_id: 5, ..AT_RESET };
    let thread = offer.cpuid(leaf::TOPOLOGY, 0, &state);
    let core = offer.cpuid(leaf::TOPOLOGY, 1, &state);
    let beyond = offer.cpuid(leaf::TOPOLOGY, 2, &state);
    assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, 5));
    assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, 5));
    assert_eq!((beyond.eax, beyond.ebx, beyond.ecx, beyond.edx), (0, 0, 2, 5));
    assert_eq!(offer.cpuid(leaf::FEATURES, 0, &state).ebx >> 16 & 0xff, 8);
    let l1d = offer.cpuid(leaf::CACHES, 0, &state).eax;
    let l3 = offer.cpuid(leaf::CACHES, 3, &state).eax;
    assert_eq!((l1d >> 14 & 0xfff, l3 >> 14 & 0xfff, l3 >> 26), (0, 7, 7));
    assert!(matches!(try_offer("haswell", &[], &NO_VECTORS, 0), Err(OfferError::Cpus(0))));
    assert!(matches!(try_offer("haswell", &[], &NO_VECTORS, 65), Err(OfferError::Cpus(65))));
}

#[test]
fn a_vector_extension_needs_a_request_and_the_host() {
    assert!(!try_offer("haswell", &[], &ALL_VECTORS, 1).expect("offer").has("avx"));
    let offer = try_offer("haswell", &["+avx2"], &ALL_VECTORS, 1).expect("offer");
    assert!(offer.has("avx2") && offer.has("avx") && offer.has_avx_state());
    let refused = try_offer("haswell", &["+avx2"], &NO_VECTORS, 1);
    assert_eq!(refused, Err(OfferError::HostLacks("avx2".to_owned())));
    let without_xsave = try_offer("haswell", &["+avx", "-xsave"], &ALL_VECTORS, 1);
    assert!(matches!(without_xsave, Err(OfferError::Ineffective(..))));
}

#[test]
fn removing_a_feature_removes_what_needs_it() {
    let offer = offered("haswell", &["-ept", "-pcid", "-x2apic", "-xsave"]);
    for control in [ENABLE_EPT, UNRESTRICTED_GUEST] {
        assert!(!offer.caps.can_be_one(control));
    }
    assert!(offer.caps.can_be_one(ENABLE_VPID));
    assert_eq!(offer.cr4 & (cr4::PCIDE | cr4::OSXSAVE), 0);
    assert!(!offer.has("xsaveopt") && !offer.has("x2apic"));
    assert_eq!(offer.cpuid.get(leaf::XSAVE, 0), Default::default());
    assert_eq!(offer.xcr0, 1);
}

#[test]
fn without_vmx_there_are_no_vmx_msrs() {
    let offer = offered("haswell", &["-vmx"]);
    assert!(!offer.has("vmx") && !offer.caps.has_vmx() && !offer.has("ept"));
    assert_eq!(offer.msr(IA32_FEATURE_CONTROL), None);
    assert_eq!(offer.msr(IA32_VMX_BASIC), None);
    assert_eq!(offer.cr4 & cr4::VMXE, 0);
}

#[test]
fn old_parts_can_be_given_what_is_implemented() {
    assert!(!offered("conroe", &[]).has("ept"));
    let offer = offered("conroe", &["+ept", "+vpid", "+popcnt", "+unrestricted_guest"]);
    assert!(offer.has("ept") && offer.has("popcnt") && offer.has("unrestricted_guest"));
    assert!(offer.caps.can_be_one(ACTIVATE_SECONDARY_CONTROLS));
    let refused = try_offer("conroe", &["+unrestricted_guest"], &NO_VECTORS, 1);
    assert!(matches!(refused, Err(OfferError::Ineffective(..))), "it needs EPT");
}

#[test]
fn what_nobody_has_is_refused_by_name() {
    let refused = try_offer("haswell", &["+avx512f"], &ALL_VECTORS, 1);
    assert_eq!(refused, Err(OfferError::NotImplemented("avx512f".to_owned())));
    let refused = try_offer("haswell", &["+vmcs_shadowing"], &ALL_VECTORS, 1);
    assert_eq!(refused, Err(OfferError::NotImplemented("vmcs_shadowing".to_owned())));
    let Err(OfferError::Unknown { name, known }) = try_offer("haswell", &["-evp"], &NO_VECTORS, 1) else {
        panic!("an unknown feature was accepted")
    };
    assert_eq!(name, "evp");
    assert!(known.contains(&"ept") && known.contains(&"popcnt"));
}

#[test]
fn feature_names_are_unique() {
    let mut cpuid: Vec<_> = feature_names().collect();
    let count = cpuid.len();
    cpuid.sort_unstable();
    cpuid.dedup();
    assert_eq!(cpuid.len(), count);
}

#[test]
fn a_part_without_64_bits_can_be_offered_but_not_to_a_64_bit_guest() {
    let offer = offered("yonah", &[]);
    assert!(!offer.has("lm") && !offer.caps.has_intel_64());
    assert!(!offer.caps.can_be_one(IA_32E_MODE_GUEST));
    assert_eq!(offer.require_64_bit(), Err(OfferError::No64Bit("yonah".to_owned())));
    assert_eq!(offered("conroe", &[]).require_64_bit(), Ok(()));
}

#[test]
fn the_command_line_names_a_profile_and_changes() {
    let model: CpuModel = "haswell,+avx2,-pcid".parse().expect("a model");
    let tweaks = [Tweak::Add("avx2".to_owned()), Tweak::Remove("pcid".to_owned())];
    assert_eq!(model.resolve(&ALL_VECTORS), ("haswell", tweaks.to_vec()));
    assert!("haswell,avx2".parse::<CpuModel>().is_err());
    let max: CpuModel = "max,-sha".parse().expect("a model");
    let (profile, tweaks) = max.resolve(&ALL_VECTORS);
    let offer = offer(&Profile::named(profile).expect(profile), &implemented(), &ALL_VECTORS, 1, &tweaks);
    let offer = offer.expect("max");
    assert!(offer.has("avx2") && offer.has("fma") && !offer.has("sha"));
}

#[test]
fn digests_tell_offers_apart() {
    let digest = offered("haswell", &[]).digest();
    assert_eq!(digest, offered("haswell", &[]).digest());
    assert_ne!(digest, offered("haswell", &["-pcid"]).digest());
    let without_host = try_offer("haswell", &[], &ALL_VECTORS, 1).expect("offer");
    assert_eq!(digest, without_host.digest(), "the host does not matter unless asked");
}

#[test]
fn an_unknown_profile_suggests_others() {
    let near = |name: &str| match Profile::named(name) {
        Err(ProfileError::Unknown { near, .. }) => near,
        other => panic!("{other:?}"),
    };
    assert!(near("haswel").contains(&"haswell"));
    assert!(near("Sky-Lake").contains(&"skylake"));
    assert!(near("cascade").contains(&"cascade_lake_sp"));
    assert!(near("zen4").is_empty());
    let message = Profile::named("haswel").expect_err("no such profile").to_string();
    assert!(message.contains("did you mean haswell"), "{message}");
}

#[test]
fn a_file_that_is_no_profile_says_why() {
    let why = |text: &str| Profile::from_json(text).expect_err("no profile").to_string();
    assert!(why("{").contains("line 1"));
    assert!(why("{}").contains("schema"));
    let good = include_str!("../profiles/haswell.json");
    assert!(Profile::from_json(good).is_ok());
    assert!(why(&good.replace("vmx-cpu-profile/1", "vmx-cpu-profile/9")).contains("vmx-cpu-profile/9"));
    assert!(why(&good.replacen("0x00000001", "one", 1)).contains("hexadecimal"));
    assert!(why(&good.replace("\"physical\": 39", "\"physical\": 99")).contains("99"));
    assert!(
        why(&good.replace("\"signature\": \"0x000306C3\"", "\"signature\": \"0x1\"")).contains("signature")
    );
    assert!(why(&good[..good.len() / 2]).contains("not a processor profile"));
}

/// A file with any digits in it is refused or offered, but never brings the program down.
#[test]
fn a_file_with_wrong_digits_does_no_harm() {
    let good = include_str!("../profiles/haswell.json");
    let digits: Vec<usize> = good.match_indices("\"0x").map(|(at, _)| at + 3).collect();
    let mut seed = 0x7e57_0d0e_u64;
    let mut next = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % limit
    };
    for _ in 0..300 {
        let mut bytes = good.as_bytes().to_vec();
        for _ in 0..1 + next(40) {
            let at = digits[next(digits.len())];
            let length = bytes[at..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            bytes[at + next(length.max(1))] = b"0137F"[next(5)];
        }
        let text = String::from_utf8(bytes).expect("ASCII");
        let Ok(profile) = Profile::from_json(&text) else { continue };
        for tweaks in [vec![], vec![Tweak::Add("avx2".to_owned())], vec![Tweak::Remove("xsave".to_owned())]] {
            let Ok(offer) = offer(&profile, &implemented(), &ALL_VECTORS, 4, &tweaks) else { continue };
            for leaf in (0..0x30).chain(0x8000_0000..0x8000_000a) {
                let state = CpuidState { xcr0: u64::MAX, xss: u64::MAX, cr4: u64::MAX, ..AT_RESET };
                (0..70).for_each(|subleaf| _ = offer.cpuid(leaf, subleaf, &state));
            }
            for allowed in offer.caps.controls {
                assert_eq!(allowed.must_be_one & !allowed.may_be_one, 0);
            }
            for &(control, name) in CONTROLS {
                assert!(!offer.caps.can_be_one(control) || implemented().can_be_one(control), "{name}");
            }
        }
    }
}
