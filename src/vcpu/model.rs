//! The processor that L1 was promised, as the handlers of its exits need it.

use crate::device::lapic::LocalApic;
use crate::vcpu::vmcs01::Permitted;
use vmcs12::cpuid::{CpuidState, Registers, leaf};
use vmcs12::offer::Offer;

/// IA32_SPEC_CTRL. SDM Vol. 4, "Architectural MSRs".
mod spec_ctrl {
    pub const IBRS: u64 = 1 << 0;
    pub const STIBP: u64 = 1 << 1;
    pub const SSBD: u64 = 1 << 2;
}

/// What is offered, and what follows from it for the MSRs and instructions that exit.
#[derive(Clone, Debug)]
pub struct Model {
    /// What is offered.
    pub offer: Offer,
    /// Instructions that exist.
    pub permitted: Permitted,
    /// Bits of IA32_XSS that exist, if the MSR does.
    pub xss: Option<u64>,
    /// Bits of IA32_SPEC_CTRL that exist, if the MSR does.
    pub spec_ctrl: Option<u64>,
    /// IA32_TSC_AUX exists.
    pub tsc_aux: bool,
    /// IA32_TSC_ADJUST exists.
    pub tsc_adjust: bool,
    /// IA32_PRED_CMD exists.
    pub pred_cmd: bool,
    /// IA32_FLUSH_CMD exists.
    pub flush_cmd: bool,
    /// MONITOR and MWAIT exist.
    pub monitor: bool,
    /// The local APIC's timer has TSC-deadline mode.
    pub tsc_deadline: bool,
}

/// What CPUID shows of a vCPU's present state.
pub struct Current<'a> {
    /// CR4, as the guest sees it.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// The local APIC.
    pub apic: &'a LocalApic,
    /// Is the guest in 64-bit mode?
    pub is_64_bit: bool,
}

impl Model {
    /// What follows from an offer.
    pub fn new(offer: Offer) -> Self {
        let bits = [("spec_ctrl", spec_ctrl::IBRS), ("stibp", spec_ctrl::STIBP), ("ssbd", spec_ctrl::SSBD)];
        let spec_ctrl = bits.iter().filter(|(name, _)| offer.has(name)).fold(0, |all, (_, bit)| all | bit);
        let permitted = Permitted {
            rdtscp: offer.has("rdtscp") || offer.has("rdpid"),
            invpcid: offer.has("invpcid"),
            xsaves: offer.has("xsaves"),
        };
        Self {
            permitted,
            xss: permitted.xsaves.then_some(offer.xss),
            spec_ctrl: (spec_ctrl != 0).then_some(spec_ctrl),
            tsc_aux: permitted.rdtscp,
            tsc_adjust: offer.has("tsc_adjust"),
            pred_cmd: offer.has("spec_ctrl"),
            flush_cmd: offer.has("flush_l1d"),
            monitor: offer.has("monitor"),
            tsc_deadline: offer.has("tsc_deadline"),
            offer,
        }
    }

    /// CPUID.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, current: &Current) -> Registers {
        let state = CpuidState {
            cr4: current.cr4,
            xcr0: current.xcr0,
            xss: current.xss,
            apic_id: current.apic.id(),
            apic_enabled: current.apic.base().state() != crate::device::lapic::base::State::Disabled,
            is_64_bit: current.is_64_bit,
        };
        self.offer.cpuid(leaf, subleaf, &state)
    }

    /// Linear-address width: CPUID.80000008H:EAX[15:8].
    pub fn linear_width(&self) -> u32 {
        match self.offer.cpuid.get(leaf::ADDRESS_SIZES, 0).eax >> 8 & 0xff {
            0 => 48,
            width => width.min(64),
        }
    }

    /// The bits that a physical address may set.
    pub fn physical_mask(&self) -> u64 {
        !u64::MAX.checked_shl(self.offer.physical_width()).unwrap_or(0)
    }
}
