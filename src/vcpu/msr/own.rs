//! MSRs that neither a VMCS nor `CpuState` holds.

use super::{Row, find, is_ascending, one, row, within};
use crate::clock::Clock;
use crate::device::Devices;
use crate::vcpu::model::Model;
use shadow::instruction::feature_control;
use vmcs12::arch::eptp::memory_type;
use vmcs12::arch::msr::*;

/// A vCPU's MSRs that nothing else holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registers {
    /// IA32_FEATURE_CONTROL.
    pub feature_control: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// What L1's TSC is ahead of the processor's: vmcs01's TSC_OFFSET.
    pub tsc_offset: u64,
    misc_enable: u64,
    mcg_status: u64,
    mtrr_default: u64,
    mtrr_fixed: [u64; MTRR_FIXED.len()],
    mtrr_variable: [u64; 2 * MTRR_VARIABLE_PAIRS],
}

/// IA32_MISC_ENABLE. SDM Vol. 4, "IA-32 Architectural MSRs".
mod misc_enable {
    pub const FAST_STRINGS: u64 = 1 << 0;
    pub const BTS_UNAVAILABLE: u64 = 1 << 11;
    pub const PEBS_UNAVAILABLE: u64 = 1 << 12;
    pub const MONITOR: u64 = 1 << 18;
    pub const LIMIT_CPUID: u64 = 1 << 22;
    pub const XD_DISABLE: u64 = 1 << 34;
}

/// Memory-type range registers. SDM Vol. 3, "Memory Type Range Registers (MTRRs)".
mod mtrr {
    /// IA32_MTRR_DEF_TYPE: fixed ranges on, MTRRs on.
    pub const ENABLES: u64 = 0xc00;
    /// IA32_MTRR_PHYSMASKn, bit 11.
    pub const VALID: u64 = 0x800;
    /// Memory type in IA32_MTRR_DEF_TYPE and IA32_MTRR_PHYSBASEn.
    pub const TYPE: u64 = 0xff;
    /// Address bits of a PHYSBASE or PHYSMASK.
    pub const PAGE: u64 = !0xfff;
}

const MTRR_VARIABLE_PAIRS: usize = 8;
const MTRR_VARIABLE_FIRST: u32 = 0x200;
const MTRR_VARIABLE_LAST: u32 = MTRR_VARIABLE_FIRST + 2 * MTRR_VARIABLE_PAIRS as u32 - 1;
/// The fixed-range registers, in ascending order of address, with the memory type that firmware gives them.
#[rustfmt::skip]
const MTRR_FIXED: [(u32, u8); 11] = [
    (0x250, memory_type::WB), (0x258, memory_type::WB), (0x259, memory_type::UC),
    (0x268, memory_type::WP), (0x269, memory_type::WP), (0x26a, memory_type::WP), (0x26b, memory_type::WP),
    (0x26c, memory_type::WP), (0x26d, memory_type::WP), (0x26e, memory_type::WP), (0x26f, memory_type::WP),
];
const MTRR_FIXED_FIRST: u32 = MTRR_FIXED[0].0;
const MTRR_FIXED_LAST: u32 = MTRR_FIXED[MTRR_FIXED.len() - 1].0;
/// Firmware makes the space for devices, 3 GiB to 4 GiB, uncacheable: base and mask.
const DEVICE_SPACE: (u64, u64) = (0xc000_0000, 0xc000_0000);

const IA32_PLATFORM_ID: u32 = 0x17;
const MSR_CORE_THREAD_COUNT: u32 = 0x35;
const MCG_STATUS_BITS: u64 = 7;
/// IBPB and L1D_FLUSH are each bit 0 of their command register.
const COMMAND: u64 = 1;

impl Registers {
    /// As firmware leaves them: VMX allowed where it exists, and locked; MTRRs on.
    pub fn new(model: &Model) -> Self {
        let mut mtrr_variable = [0; 2 * MTRR_VARIABLE_PAIRS];
        mtrr_variable[0] = DEVICE_SPACE.0 | u64::from(memory_type::UC);
        mtrr_variable[1] = DEVICE_SPACE.1 | mtrr::VALID | model.physical_mask() & !0xffff_ffff;
        let constant = |index| model.offer.msr(index).unwrap_or(0);
        Self {
            feature_control: constant(IA32_FEATURE_CONTROL),
            tsc_adjust: 0,
            tsc_offset: 0,
            misc_enable: constant(IA32_MISC_ENABLE),
            mcg_status: 0,
            mtrr_default: mtrr::ENABLES | u64::from(memory_type::WB),
            mtrr_fixed: MTRR_FIXED.map(|(_, kind)| u64::from_ne_bytes([kind; 8])),
            mtrr_variable,
        }
    }
}

/// What these MSRs belong to.
pub struct Own<'a> {
    /// Those that nothing else holds.
    pub registers: &'a mut Registers,
    /// The devices, among them the vCPU's local APIC.
    pub devices: &'a mut Devices,
    /// The vCPU's number.
    pub vcpu: usize,
    /// The time.
    pub clock: &'a Clock,
    /// The processor that L1 was promised.
    pub model: &'a Model,
}

type Read = fn(&mut Own, u32) -> Option<u64>;
type Write = fn(&mut Own, u32, u64) -> Option<()>;

#[rustfmt::skip]
const ROWS: &[Row<Read, Write>] = &[
    //  index                     RDMSR                                             WRMSR
    one(IA32_PLATFORM_ID,         (|m, i| m.model.offer.msr(i)) as Read,            (|_, _, _| None) as Write),
    one(IA32_APIC_BASE,           |m, i| m.apic(i),                                        |m, i, v| m.set_apic(i, v)),
    one(MSR_CORE_THREAD_COUNT,    |m, i| m.model.offer.msr(i),                      |_, _, _| None),
    one(IA32_FEATURE_CONTROL,     |m, i| m.model.offer.msr(i).map(|_| m.registers.feature_control), |m, _, v| m.set_feature_control(v)),
    one(IA32_PRED_CMD,            |_, _| None,                                      |m, _, v| command(m.model.pred_cmd, v)),
    one(IA32_BIOS_UPDT_TRIG,      |_, _| None,                                      |_, _, _| Some(())),
    one(IA32_BIOS_SIGN_ID,        |m, i| m.model.offer.msr(i),                      |_, _, _| Some(())),
    one(MSR_PLATFORM_INFO,        |m, i| m.model.offer.msr(i),                      |_, _, _| None),
    one(IA32_MTRRCAP,             |m, i| m.model.offer.msr(i),                      |_, _, _| None),
    one(IA32_ARCH_CAPABILITIES,   |m, i| m.model.offer.msr(i),                      |_, _, _| None),
    one(IA32_FLUSH_CMD,           |_, _| None,                                      |m, _, v| command(m.model.flush_cmd, v)),
    one(IA32_MCG_CAP,             |m, i| m.model.offer.msr(i),                      |_, _, _| None),
    one(IA32_MCG_STATUS,          |m, _| Some(m.registers.mcg_status),              |m, _, v| { m.registers.mcg_status = within(v, MCG_STATUS_BITS)?; Some(()) }),
    one(IA32_MISC_ENABLE,         |m, _| Some(m.registers.misc_enable),             |m, _, v| m.set_misc_enable(v)),
    row(MTRR_VARIABLE_FIRST, MTRR_VARIABLE_LAST, |m, i| m.mtrr_variable(i),                |m, i, v| m.set_mtrr_variable(i, v)),
    row(MTRR_FIXED_FIRST, MTRR_FIXED_LAST, |m, i| m.mtrr_fixed(i),                         |m, i, v| m.set_mtrr_fixed(i, v)),
    one(IA32_MTRR_DEF_TYPE,       |m, _| Some(m.registers.mtrr_default),            |m, _, v| m.set_mtrr_default(v)),
    row(IA32_VMX_BASIC, IA32_VMX_EXIT_CTLS2, |m, i| m.model.offer.caps.msr(i),      |_, _, _| None),
    one(IA32_TSC_DEADLINE,        |m, _| m.model.tsc_deadline.then(|| m.deadline()), |m, _, v| m.model.tsc_deadline.then(|| m.arm(v))),
    row(*X2APIC.start(), *X2APIC.end(), |m, i| m.apic(i),                                  |m, i, v| m.set_apic(i, v)),
];

const _: () = assert!(is_ascending(ROWS));

fn command(exists: bool, value: u64) -> Option<()> {
    (exists && value & !COMMAND == 0).then_some(())
}

impl Own<'_> {
    /// RDMSR; `None` is #GP(0).
    pub fn read(&mut self, index: u32) -> Option<u64> {
        find(ROWS, index).and_then(|row| (row.read)(self, index))
    }

    /// WRMSR; `None` is #GP(0).
    pub fn write(&mut self, index: u32, value: u64) -> Option<()> {
        find(ROWS, index).and_then(|row| (row.write)(self, index, value))
    }

    fn apic(&mut self, index: u32) -> Option<u64> {
        self.devices.read_msr(self.vcpu, index, self.clock.now_ns()).ok()
    }

    fn set_apic(&mut self, index: u32, value: u64) -> Option<()> {
        self.devices.write_msr(self.vcpu, index, value, self.clock.now_ns()).ok()
    }

    fn deadline(&self) -> u64 {
        self.devices.apic(self.vcpu).tsc_deadline()
    }

    /// Arms the timer for when L1's TSC reaches `deadline`, which may be now; 0 disarms.
    fn arm(&mut self, deadline: u64) {
        let now = self.clock.now_ns();
        let tsc = self.clock.tsc().wrapping_add(self.registers.tsc_offset);
        let at = match deadline.checked_sub(tsc) {
            None | Some(0) => now,
            Some(left) => self.clock.ns_at_tsc(self.clock.tsc().saturating_add(left)),
        };
        self.devices.apic_mut(self.vcpu).set_tsc_deadline(deadline, at, now);
    }

    /// The TSC has jumped: a timer that waits for it waits for another time.
    pub fn rearm(&mut self) {
        let deadline = self.deadline();
        if deadline != 0 {
            self.arm(deadline);
        }
    }

    /// Writes IA32_TSC_ADJUST, which moves L1's TSC. SDM Vol. 3, "IA32_TSC_ADJUST MSR".
    pub fn adjust_tsc(&mut self, value: u64) {
        let delta = value.wrapping_sub(self.registers.tsc_adjust);
        self.registers.tsc_adjust = value;
        self.registers.tsc_offset = self.registers.tsc_offset.wrapping_add(delta);
    }

    fn set_feature_control(&mut self, value: u64) -> Option<()> {
        self.model.offer.msr(IA32_FEATURE_CONTROL)?;
        let locked = self.registers.feature_control & feature_control::LOCK != 0;
        (!locked).then_some(())?;
        self.registers.feature_control =
            within(value, feature_control::LOCK | feature_control::VMX_OUTSIDE_SMX)?;
        Some(())
    }

    /// Neither a limit on CPUID leaves nor a processor without NX is offered.
    fn set_misc_enable(&mut self, value: u64) -> Option<()> {
        let read_only = misc_enable::BTS_UNAVAILABLE | misc_enable::PEBS_UNAVAILABLE;
        (value & (misc_enable::LIMIT_CPUID | misc_enable::XD_DISABLE) == 0).then_some(())?;
        let writable = misc_enable::FAST_STRINGS | if self.model.monitor { misc_enable::MONITOR } else { 0 };
        self.registers.misc_enable = self.registers.misc_enable & read_only | value & writable;
        Some(())
    }

    fn mtrr_variable(&mut self, index: u32) -> Option<u64> {
        self.registers.mtrr_variable.get((index - MTRR_VARIABLE_FIRST) as usize).copied()
    }

    fn set_mtrr_variable(&mut self, index: u32, value: u64) -> Option<()> {
        let address = self.model.physical_mask() & mtrr::PAGE;
        let is_mask = index & 1 != 0;
        if is_mask {
            within(value, address | mtrr::VALID)?;
        } else {
            within(value, address | mtrr::TYPE)?;
            memory_type::exists(value as u8).then_some(())?;
        }
        *self.registers.mtrr_variable.get_mut((index - MTRR_VARIABLE_FIRST) as usize)? = value;
        Some(())
    }

    fn mtrr_fixed(&mut self, index: u32) -> Option<u64> {
        fixed_range(index).map(|at| self.registers.mtrr_fixed[at])
    }

    fn set_mtrr_fixed(&mut self, index: u32, value: u64) -> Option<()> {
        let at = fixed_range(index)?;
        value.to_ne_bytes().into_iter().all(memory_type::exists).then_some(())?;
        self.registers.mtrr_fixed[at] = value;
        Some(())
    }

    fn set_mtrr_default(&mut self, value: u64) -> Option<()> {
        within(value, mtrr::ENABLES | mtrr::TYPE)?;
        memory_type::exists(value as u8).then_some(())?;
        self.registers.mtrr_default = value;
        Some(())
    }
}

fn fixed_range(index: u32) -> Option<usize> {
    MTRR_FIXED.iter().position(|(msr, _)| *msr == index)
}

impl shadow::engine::Msrs for Own<'_> {
    fn read(&mut self, index: u32) -> Option<u64> {
        Own::read(self, index)
    }
    fn write(&mut self, index: u32, value: u64) -> bool {
        Own::write(self, index, value).is_some()
    }
}
