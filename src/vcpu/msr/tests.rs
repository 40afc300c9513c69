use super::*;
use crate::clock::{Clock, Idle, Source};
use crate::device::frequency::Frequency;
use crate::device::{Devices, Machine, Platform};
use crate::vcpu::model::Model;
use crate::vcpu::vmcs01::RESET_PAT;
use vmcs12::arch::cr::cr0;
use vmcs12::arch::efer;
use vmcs12::cpu_state::CpuState;
use vmcs12::field::Vmcs;
use vmcs12::field::table::*;
use vmcs12::implemented;
use vmcs12::offer::{self, HostFeatures, Tweak};
use vmcs12::profile::Profile;

/// LVT timer register, and its TSC-deadline mode with a vector.
const LVT_TIMER: u32 = 0x832;
const TSC_DEADLINE_MODE: u64 = 2 << 17 | 0xec;
const X2APIC_ENABLED: u64 = 0xfee0_0d00;
const SPURIOUS: u32 = 0x80f;

/// Cascade Lake without some of its features.
fn without(names: &[&str]) -> Model {
    let profile = Profile::named(offer::DEFAULT_PROFILE).expect("the default profile is embedded");
    let tweaks: Vec<Tweak> = names.iter().map(|name| Tweak::Remove((*name).into())).collect();
    let host = HostFeatures::default();
    let offer = offer::offer(&profile, &implemented::implemented(), &host, 1, &tweaks);
    Model::new(offer.expect("features may be removed"))
}

fn model() -> Model {
    without(&[])
}

struct Cpu {
    registers: Registers,
    vmcs: Vmcs,
    state: CpuState,
    devices: Devices,
    clock: Clock,
    model: Model,
}

impl Cpu {
    fn new(model: Model) -> Self {
        let mut vmcs = Vmcs::default();
        vmcs.set(GUEST_IA32_PAT, RESET_PAT);
        let platform = Platform {
            memory_below_4g: 1 << 20,
            memory_above_4g: 0,
            date: 0,
            console: Box::new(std::io::sink()),
        };
        let devices = Devices::new(Machine {
            processors: 1,
            apic_timer: Frequency::new(25_000_000),
            x2apic: true,
            physical_width: 46,
            platform,
        });
        Self {
            registers: Registers::new(&model),
            vmcs,
            state: CpuState::default(),
            devices,
            clock: Clock::new(Source::Virtual, Idle::Jump, 2_000_000),
            model,
        }
    }

    fn access<R>(&mut self, access: impl FnOnce(&mut Access) -> R) -> R {
        let Self { registers, vmcs, state, devices, clock, model } = self;
        vmcs.set(TSC_OFFSET, registers.tsc_offset);
        access(&mut Access { vmcs, state, own: &mut Own { registers, devices, vcpu: 0, clock, model } })
    }

    fn read(&mut self, index: u32) -> Option<u64> {
        self.access(|msrs| msrs.read(index))
    }

    fn write(&mut self, index: u32, value: u64) -> Option<()> {
        self.access(|msrs| msrs.write(index, value))
    }

    fn with_deadline_timer(mut self) -> Self {
        for (index, value) in
            [(IA32_APIC_BASE, X2APIC_ENABLED), (SPURIOUS, 0x1ff), (LVT_TIMER, TSC_DEADLINE_MODE)]
        {
            self.write(index, value).unwrap_or_else(|| panic!("{index:#x}"));
        }
        self
    }
}

#[test]
fn what_has_no_row_is_refused() {
    let mut cpu = Cpu::new(model());
    for index in [0, 0x33, 0x400, 0x7ff, 0x900, 0xc000_0104, 0xc001_0015, u32::MAX] {
        assert_eq!((cpu.read(index), cpu.write(index, 0)), (None, None), "{index:#x}");
    }
}

#[test]
fn each_msr_that_takes_what_it_reads_keeps_it() {
    let mut cpu = Cpu::new(model());
    for index in (0..0x2000).chain(0xc000_0000..0xc000_2000) {
        let Some(value) = cpu.read(index) else { continue };
        if cpu.write(index, value).is_some() {
            assert_eq!(cpu.read(index), Some(value), "{index:#x}");
        }
    }
}

#[test]
fn a_write_to_the_tsc_moves_the_adjustment_with_it() {
    let mut cpu = Cpu::new(model());
    cpu.clock.retire(1000);
    cpu.write(IA32_TIME_STAMP_COUNTER, 5_000).unwrap();
    assert_eq!(cpu.read(IA32_TIME_STAMP_COUNTER), Some(5_000));
    assert_eq!(cpu.read(IA32_TSC_ADJUST), Some(3_000));
    cpu.write(IA32_TSC_ADJUST, 0).unwrap();
    assert_eq!(cpu.read(IA32_TIME_STAMP_COUNTER), Some(2_000));
}

#[test]
fn a_deadline_is_armed_in_l1s_tsc_and_follows_its_adjustment() {
    let mut cpu = Cpu::new(model()).with_deadline_timer();
    cpu.write(IA32_TSC_ADJUST, 1_000).unwrap();
    cpu.write(IA32_TSC_DEADLINE, 3_000).unwrap();
    assert_eq!(cpu.read(IA32_TSC_DEADLINE), Some(3_000));
    assert_eq!(cpu.devices.next_event(), Some(1_000));
    cpu.write(IA32_TSC_ADJUST, 0).unwrap();
    assert_eq!(cpu.devices.next_event(), Some(1_500));
    cpu.write(IA32_TSC_DEADLINE, 0).unwrap();
    assert_eq!(cpu.devices.next_event(), None);
}

#[test]
fn efer_keeps_lma_and_lme_cannot_change_under_paging() {
    let mut cpu = Cpu::new(model());
    cpu.write(IA32_EFER, efer::LME | efer::LMA).unwrap();
    assert_eq!(cpu.read(IA32_EFER), Some(efer::LME));
    cpu.vmcs.set(GUEST_CR0, cr0::PG | cr0::PE);
    assert_eq!(cpu.write(IA32_EFER, 0), None);
    assert_eq!(cpu.write(IA32_EFER, efer::LME | efer::NXE), Some(()));
    assert_eq!(cpu.write(IA32_EFER, efer::LME | 1 << 12), None);
}

#[test]
fn memory_types_and_reserved_bits_are_checked() {
    let mut cpu = Cpu::new(model());
    for (index, good, bad) in [
        (IA32_PAT, 0x0007_0406_0007_0406, 0x0007_0406_0007_0402),
        (IA32_MTRR_DEF_TYPE, 0xc06, 0xc07),
        (0x250, 0, 0x0202_0202_0202_0202),
        (0x200, 0x8000_0006, 0x8000_0003),
        (0x201, 0x3fff_8000_0800, 1 << 46),
        (IA32_MCG_STATUS, 7, 8),
        (IA32_DEBUGCTL, 2, 1 << 20),
        (IA32_SPEC_CTRL, 5, 8),
        (IA32_TSC_AUX, 0, 1 << 32),
    ] {
        assert_eq!(cpu.write(index, bad), None, "{index:#x}");
        assert_eq!(cpu.write(index, good), Some(()), "{index:#x}");
        assert_eq!(cpu.read(index), Some(good), "{index:#x}");
    }
}

#[test]
fn what_the_profile_lacks_does_not_exist() {
    for (features, gone) in [
        (&["spec_ctrl", "stibp", "ssbd"][..], &[IA32_SPEC_CTRL, IA32_PRED_CMD][..]),
        (&["flush_l1d"], &[IA32_FLUSH_CMD]),
        (&["tsc_deadline"], &[IA32_TSC_DEADLINE]),
        (&["tsc_adjust"], &[IA32_TSC_ADJUST]),
        (&["arch_capabilities"], &[IA32_ARCH_CAPABILITIES]),
        (&["rdtscp", "rdpid"], &[IA32_TSC_AUX]),
        (&["xsaves"], &[IA32_XSS]),
        (&["vmx"], &[IA32_VMX_BASIC, IA32_FEATURE_CONTROL]),
    ] {
        let mut cpu = Cpu::new(without(features));
        for index in gone {
            assert_eq!((cpu.read(*index), cpu.write(*index, 0)), (None, None), "{index:#x}");
        }
    }
}

#[test]
fn commands_take_their_one_bit_and_cannot_be_read() {
    let mut cpu = Cpu::new(model());
    for index in [IA32_PRED_CMD, IA32_FLUSH_CMD] {
        assert_eq!((cpu.read(index), cpu.write(index, 1), cpu.write(index, 2)), (None, Some(()), None));
    }
}

#[test]
fn firmware_has_allowed_vmx_and_locked_that() {
    let mut cpu = Cpu::new(model());
    assert_eq!(cpu.read(IA32_FEATURE_CONTROL), Some(5));
    assert_eq!(cpu.write(IA32_FEATURE_CONTROL, 5), None);
}

#[test]
fn addresses_must_be_canonical() {
    let mut cpu = Cpu::new(model());
    for index in [IA32_SYSENTER_EIP, IA32_LSTAR, IA32_FS_BASE, IA32_KERNEL_GS_BASE] {
        assert_eq!(cpu.write(index, 1 << 47), None, "{index:#x}");
        assert_eq!(cpu.write(index, 0xffff_8000_0000_0000), Some(()), "{index:#x}");
    }
}

#[test]
fn the_bitmap_passes_what_the_processor_keeps_and_nothing_else() {
    let bitmap = bitmap(&without(&["flush_l1d"]));
    let exits = |half: usize, bit: usize| bitmap[half + bit / 8] & 1 << (bit % 8) != 0;
    let reads_and_writes = |bit| (exits(0, bit), exits(0x800, bit));
    for (index, expected) in [
        (0x10, (true, true)),
        (0x48, (false, true)),
        (0x49, (true, false)),
        (0x10b, (true, true)),
        (0x174, (false, false)),
        (0x1d9, (false, true)),
        (0x6e0, (true, true)),
    ] {
        assert_eq!(reads_and_writes(index), expected, "{index:#x}");
    }
    assert!(!exits(0x400, 0x80) && exits(0xc00, 0x80) && !exits(0x400, 0x81) && !exits(0xc00, 0x81));
}
