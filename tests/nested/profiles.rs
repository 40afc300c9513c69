//! Each Intel processor that can be played is one on which an L1 runs. SDM Vol. 3, "VMX Capability Reporting Facility".

use crate::asm;
use crate::code::*;
use crate::l1;
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::table::*;
use vmcs12::implemented;
use vmcs12::offer::{self, HostFeatures, Offer};
use vmcs12::profile::Profile;

const CAPABILITIES: std::ops::Range<u32> = 0x480..0x492;

/// What is offered by each profile that an L1 in 64-bit mode can enter VMX operation on.
fn offers() -> Vec<Offer> {
    let offer = |name| {
        let profile = Profile::named(name).expect("the profile is embedded");
        offer::offer(&profile, &implemented::implemented(), &HostFeatures::default(), 1, &[])
            .expect("it is offered")
    };
    let offers = Profile::names().map(offer);
    offers.filter(|offer| offer.has("vmx") && offer.require_64_bit().is_ok()).collect()
}

#[test]
fn l1_reads_the_capability_msrs_that_are_offered_and_no_others() {
    for offer in offers() {
        let log = l1::outside_on(&offer.name, |l1| {
            for index in CAPABILITIES {
                let mut next = l1.label();
                l1.catch(|l1| {
                    l1.rdmsr(index).log_rax();
                    asm!(l1; jmp(next));
                });
                l1.place(&mut next);
            }
        });
        let expected: Vec<u64> = CAPABILITIES.map(|index| offer.msr(index).unwrap_or(GP)).collect();
        assert_eq!(log, expected, "{}", offer.name);
    }
}

#[test]
fn every_profile_with_ept_enters_l2_and_exits() {
    let with_ept: Vec<_> = offers().into_iter().filter(|offer| offer.caps.can_be_one(ENABLE_EPT)).collect();
    assert!(with_ept.len() > 30, "{}", with_ept.len());
    for offer in with_ept {
        let log = l1::guest_on(
            &offer.name,
            |l1| {
                l1.enter().read(EXIT_REASON).skip().enter().read(EXIT_REASON);
            },
            |l2| asm!(l2; cpuid()),
        );
        assert_eq!(log, [Reason::Cpuid as u64, Reason::Vmcall as u64], "{}", offer.name);
    }
}
