//! Capability MSRs: SDM Vol. 3, Appendix "VMX Capability Reporting Facility".

use vmcs12::arch::msr::*;
use vmcs12::caps::{Capabilities, EptVpidCap, VmxBasic, VmxMisc};
use vmcs12::control::*;
use vmcs12::field::table;
use vmcs12::implemented;

/// Readings of a Core i7-4770 (Haswell).
#[rustfmt::skip]
const HASWELL: &[(u32, u64)] = &[
    (IA32_VMX_BASIC,               0x00DA_0400_0000_0012),
    (IA32_VMX_PINBASED_CTLS,       0x0000_007F_0000_0016),
    (IA32_VMX_PROCBASED_CTLS,      0xFFF9_FFFE_0401_E172),
    (IA32_VMX_EXIT_CTLS,           0x007F_FFFF_0003_6DFF),
    (IA32_VMX_ENTRY_CTLS,          0x0000_FFFF_0000_11FF),
    (IA32_VMX_MISC,                0x0000_0000_3004_81E5),
    (IA32_VMX_CR0_FIXED0,          0x0000_0000_8000_0021),
    (IA32_VMX_CR0_FIXED1,          0x0000_0000_FFFF_FFFF),
    (IA32_VMX_CR4_FIXED0,          0x0000_0000_0000_2000),
    (IA32_VMX_CR4_FIXED1,          0x0000_0000_0017_67FF),
    (IA32_VMX_VMCS_ENUM,           0x0000_0000_0000_002A),
    (IA32_VMX_PROCBASED_CTLS2,     0x0000_7CFF_0000_0000),
    (IA32_VMX_EPT_VPID_CAP,        0x0000_0F01_0633_4141),
    (IA32_VMX_TRUE_PINBASED_CTLS,  0x0000_007F_0000_0016),
    (IA32_VMX_TRUE_PROCBASED_CTLS, 0xFFF9_FFFE_0400_6172),
    (IA32_VMX_TRUE_EXIT_CTLS,      0x007F_FFFF_0003_6DFB),
    (IA32_VMX_TRUE_ENTRY_CTLS,     0x0000_FFFF_0000_11FB),
    (IA32_VMX_VMFUNC,              0x0000_0000_0000_0001),
];

fn haswell() -> Capabilities {
    let read = |index| HASWELL.iter().find(|row| row.0 == index).map(|row| row.1);
    Capabilities::from_msrs(read, 39, 48)
}

#[test]
fn msrs_read_back_as_they_came() {
    let caps = haswell();
    for &(index, value) in HASWELL {
        assert_eq!(caps.msr(index), Some(value), "MSR {index:#x}");
    }
}

#[test]
fn msrs_that_do_not_exist_fault() {
    let caps = haswell();
    assert_eq!(caps.msr(IA32_VMX_PROCBASED_CTLS3), None, "no tertiary controls");
    assert_eq!(caps.msr(IA32_VMX_EXIT_CTLS2), None, "no secondary exit controls");
    assert_eq!(Capabilities::default().msr(IA32_VMX_BASIC), None, "no VMX");
}

#[test]
fn default1_controls_are_flexible_by_the_true_msrs() {
    let caps = haswell();
    assert!(caps.can_be_one(CR3_LOAD_EXITING));
    assert!(!caps.must_be_one(CR3_LOAD_EXITING));
    assert_eq!(caps.legacy[1].must_be_one & CR3_LOAD_EXITING.mask(), CR3_LOAD_EXITING.mask());
}

#[test]
fn an_offer_has_only_what_is_implemented() {
    let (real, ours) = (haswell(), implemented::implemented());
    let offered = Capabilities::intersect(&real, &ours);
    for &(control, name) in CONTROLS {
        assert_eq!(
            offered.can_be_one(control),
            real.can_be_one(control) && ours.can_be_one(control),
            "{name}"
        );
    }
    assert_eq!(offered.basic.get(VmxBasic::REVISION), 18);
    assert_eq!(offered.basic.get(VmxBasic::REGION_SIZE), 4096);
    assert_eq!(offered.msr(IA32_VMX_VMFUNC), None);
    assert_eq!(offered.misc.get(VmxMisc::CR3_TARGETS), 4);
    assert!(!offered.misc.get(VmxMisc::ZERO_LENGTH_INJECTION), "the part lacks it");
    assert_eq!(offered.ept_vpid.0, 0x0000_0F01_0633_4141, "all that a Haswell has is implemented");
}

#[test]
fn the_offer_keeps_must_be_one_inside_may_be_one() {
    let offered = Capabilities::intersect(&haswell(), &implemented::implemented());
    for allowed in offered.controls.iter().chain(&offered.legacy) {
        assert_eq!(allowed.must_be_one & !allowed.may_be_one, 0);
    }
    assert_eq!(offered.cr4_fixed0 & !offered.cr4_fixed1, 0);
}

#[test]
fn what_needs_ept_goes_with_it() {
    let mut caps = haswell();
    caps.forbid(ENABLE_EPT);
    assert!(!caps.can_be_one(UNRESTRICTED_GUEST));
    assert!(!caps.can_be_one(ENABLE_VM_FUNCTIONS));
    assert!(!caps.ept_vpid.get(EptVpidCap::INVEPT));
    assert!(caps.ept_vpid.get(EptVpidCap::INVVPID), "VPID stays");
    assert!(!caps.field_exists(table::EPTP.any()));
    caps.forbid(ENABLE_VPID);
    assert_eq!(caps.msr(IA32_VMX_EPT_VPID_CAP), None);
}

#[test]
fn secondary_controls_go_with_their_activation() {
    let mut caps = haswell();
    caps.forbid(ACTIVATE_SECONDARY_CONTROLS);
    assert_eq!(caps.msr(IA32_VMX_PROCBASED_CTLS2), None);
    assert!(!caps.can_be_one(ENABLE_RDTSCP));
}

#[test]
fn fields_exist_with_their_controls() {
    let caps = haswell();
    assert!(caps.field_exists(table::VMREAD_BITMAP_ADDRESS.any()));
    assert!(!caps.field_exists(table::PML_ADDRESS.any()));
    assert!(!caps.field_exists(table::POSTED_INTERRUPT_NOTIFICATION_VECTOR.any()));
    assert!(caps.field_exists(table::CR3_TARGET_VALUE_3.any()));
    let mut caps = caps;
    caps.misc = caps.misc.with(VmxMisc::CR3_TARGETS, 2);
    assert!(caps.field_exists(table::CR3_TARGET_VALUE_1.any()));
    assert!(!caps.field_exists(table::CR3_TARGET_VALUE_2.any()));
}

#[test]
fn vmcs_enum_names_the_highest_index() {
    let caps = Capabilities::intersect(&haswell(), &implemented::implemented());
    // The preemption timer's field (482EH) has index 17H.
    assert_eq!(caps.msr(IA32_VMX_VMCS_ENUM), Some(0x17 << 1));
}

#[test]
fn physical_addresses_end_at_the_width() {
    let mut caps = haswell();
    assert_eq!(caps.beyond_physical_width(), !0 << 39);
    caps.basic = caps.basic.with(VmxBasic::ADDRESSES_32_BITS, true);
    assert_eq!(caps.beyond_physical_width(), !0 << 32);
}

#[test]
fn the_processor_shadows_for_l0_alone() {
    assert!(implemented::processor().can_be_one(VMCS_SHADOWING));
    assert!(!implemented::implemented().can_be_one(VMCS_SHADOWING));
}
