//! vmcs01: the VMCS under which the processor runs L1.

use crate::processor::HostError;
use vmcs12::addr::Pa;
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::efer;
use vmcs12::arch::eptp::Eptp;
use vmcs12::caps::Capabilities;
use vmcs12::control::*;
use vmcs12::field::table::*;
use vmcs12::field::{AnyField, Vmcs};

/// No VMCS is linked. SDM Vol. 3, "VMCS Link Pointer".
pub const NO_LINK: Pa = Pa(u64::MAX);
/// VPIDs begin at 1: 0 is the host's. L2's tags are the engine's, counted down from the top.
const FIRST_VPID: u16 = 1;

/// What L0 wants of the processor for L1, and why. Controls that must be 1 are added to these.
#[rustfmt::skip]
const WANTED: &[Control] = &[
    EXTERNAL_INTERRUPT_EXITING,     // the machine's interrupts are L0's to deliver
    NMI_EXITING,
    VIRTUAL_NMIS,                   // L1's own NMIs are blocked and unblocked without exits
    HLT_EXITING,                    // an idle machine costs no host time
    MWAIT_EXITING,
    MONITOR_EXITING,
    RDPMC_EXITING,                  // no performance counters are offered
    CR8_LOAD_EXITING,               // the local APIC, and so TPR, is a device
    CR8_STORE_EXITING,
    UNCONDITIONAL_IO_EXITING,       // every port is a device's
    USE_MSR_BITMAPS,
    USE_TSC_OFFSETTING,             // L1 may write its TSC
    ACTIVATE_SECONDARY_CONTROLS,
    ENABLE_EPT,
    ENABLE_VPID,
    UNRESTRICTED_GUEST,             // L1 starts without paging
    SAVE_DEBUG_CONTROLS,
    HOST_ADDRESS_SPACE_SIZE,
    SAVE_IA32_PAT,
    LOAD_IA32_PAT_ON_EXIT,
    SAVE_IA32_EFER,
    LOAD_IA32_EFER_ON_EXIT,
    LOAD_DEBUG_CONTROLS,
    LOAD_IA32_PAT_ON_ENTRY,
    LOAD_IA32_EFER_ON_ENTRY,
];

/// The host state, valid for VM entry. L0 is no guest of the processor's: nothing ever runs in it.
/// SDM Vol. 3, "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host Segment and Descriptor-Table Registers".
#[rustfmt::skip]
const HOST_STATE: &[(AnyField, u64)] = &[
    (HOST_CR0.any(),         cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG),
    (HOST_CR4.any(),         cr4::PAE | cr4::VMXE),
    (HOST_CS_SELECTOR.any(), 0x08),
    (HOST_TR_SELECTOR.any(), 0x10),
    (HOST_IA32_EFER.any(),   efer::LMA | efer::LME),
    (HOST_IA32_PAT.any(),    RESET_PAT),
];

/// IA32_PAT after reset. SDM Vol. 3, "Page Attribute Table (PAT)".
pub const RESET_PAT: u64 = 0x0007_0406_0007_0406;

/// Instructions that exist only if the profile has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permitted {
    /// RDTSCP and RDPID.
    pub rdtscp: bool,
    /// INVPCID.
    pub invpcid: bool,
    /// XSAVES and XRSTORS.
    pub xsaves: bool,
}

/// What vmcs01's control fields point to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Structures {
    /// ept01.
    pub eptp: Eptp,
    /// The bitmap page of the MSRs that L0 intercepts.
    pub msr_bitmap: Pa,
}

/// A vmcs01 for the vCPU with this number, guest state aside.
///
/// # Errors
/// The processor lacks a control that L0 cannot do without.
pub fn new(
    vcpu: u16,
    caps: &Capabilities,
    permitted: Permitted,
    structures: Structures,
) -> Result<Vmcs, HostError> {
    let mut vmcs = Vmcs::default();
    for word in Word::ALL {
        vmcs.set_raw(word.field(), caps.allowed(word).must_be_one);
    }
    let by_profile = [
        (ENABLE_RDTSCP, permitted.rdtscp),
        (ENABLE_INVPCID, permitted.invpcid),
        (ENABLE_XSAVES_XRSTORS, permitted.xsaves),
    ];
    let wanted = WANTED.iter().map(|control| (*control, true)).chain(by_profile);
    for (control, _) in wanted.filter(|(_, on)| *on) {
        if !caps.can_be_one(control) {
            return Err(HostError::MissingControl { name: control.name() });
        }
        vmcs.set_control(control, true);
    }
    for (field, value) in HOST_STATE {
        vmcs.set_raw(*field, *value);
    }
    vmcs.set(VPID, FIRST_VPID + vcpu);
    vmcs.set(EPTP, structures.eptp);
    vmcs.set(ADDRESS_OF_MSR_BITMAPS, structures.msr_bitmap);
    vmcs.set(VMCS_LINK_POINTER, NO_LINK);
    Ok(vmcs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmcs12::caps::Allowed;

    const STRUCTURES: Structures = Structures { eptp: Eptp(0x1e), msr_bitmap: Pa(1 << 51) };
    const NOTHING: Permitted = Permitted { rdtscp: false, invpcid: false, xsaves: false };

    fn all_controls() -> Capabilities {
        let free = Allowed { must_be_one: 0, may_be_one: u64::from(u32::MAX) };
        Capabilities { controls: [free; Word::ALL.len()], ..Capabilities::default() }
    }

    #[test]
    fn what_must_be_one_is_one_and_what_l0_wants_too() {
        let mut caps = all_controls();
        caps.controls[Word::PinBased as usize].must_be_one = 0x16;
        let vmcs = new(0, &caps, NOTHING, STRUCTURES).unwrap();
        assert_eq!(vmcs.controls(Word::PinBased), 0x16 | 1 | 8 | 0x20);
        assert!(WANTED.iter().all(|control| vmcs.has(*control)));
    }

    #[test]
    fn instructions_that_the_profile_lacks_are_not_enabled() {
        let vmcs = new(0, &all_controls(), NOTHING, STRUCTURES).unwrap();
        assert!(![ENABLE_RDTSCP, ENABLE_INVPCID, ENABLE_XSAVES_XRSTORS].iter().any(|c| vmcs.has(*c)));
        let permitted = Permitted { rdtscp: true, ..NOTHING };
        assert!(new(0, &all_controls(), permitted, STRUCTURES).unwrap().has(ENABLE_RDTSCP));
    }

    #[test]
    fn each_vcpu_has_a_vpid_and_none_has_the_hosts() {
        let vpids: Vec<u16> =
            (0..3).map(|vcpu| new(vcpu, &all_controls(), NOTHING, STRUCTURES).unwrap().get(VPID)).collect();
        assert_eq!(vpids, [1, 2, 3]);
    }

    #[test]
    fn a_processor_without_ept_is_refused_by_name() {
        let mut caps = all_controls();
        caps.controls[Word::Secondary as usize].may_be_one &= !ENABLE_EPT.mask();
        let refused = new(0, &caps, NOTHING, STRUCTURES);
        assert!(matches!(refused, Err(HostError::MissingControl { name: "ENABLE_EPT" })));
    }
}
