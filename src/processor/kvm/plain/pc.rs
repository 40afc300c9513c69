//! A PC of KVM's: interrupt controllers, timer and LAPICs in the kernel, vCPUs as after reset.

use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_msr_entry, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::{EntryState, LOW_RAM_END};
use crate::processor::kvm::cpuid::{self, Place, TscDeadline};
use crate::processor::kvm::error::KvmError;
use crate::processor::kvm::host::{self, Needed, needed};
use crate::processor::kvm::registers;
use crate::processor::kvm::vcpu::Vcpu;
use crate::processor::kvm::vm::{Ram, Vm};

/// What a PC needs beside what any VM does.
#[rustfmt::skip]
const NEEDED: &[Needed] = &[
    needed(Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    needed(Cap::Pit2,    "KVM_CAP_PIT2",    "the timer in the kernel"),
];

/// MSRs that firmware sets. SDM Vol. 4, "Architectural MSRs".
#[rustfmt::skip]
const FIRMWARE_MSRS: &[(u32, u64)] = &[
    // IA32_MISC_ENABLE: fast strings. Without them Linux copies memory by slower means.
    (0x1a0, 1),
    // IA32_MTRR_DEF_TYPE: MTRRs enabled, all memory write-back. Without them Linux leaves the PAT alone.
    (0x2ff, 0x806),
];

/// The machine, not started.
pub(super) struct Pc {
    // Before the VM, as all that lets the guest run.
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) vm: Vm,
}

impl Pc {
    /// A PC with `memory` bytes of RAM and this many vCPUs, at least one.
    pub(super) fn new(kvm: &Kvm, memory: u64, cpus: u32) -> Result<Self, KvmError> {
        host::require(kvm, host::FOR_ANY_VM)?;
        host::require(kvm, NEEDED)?;
        let most = kvm.get_max_vcpus();
        if !(1..=most).contains(&(cpus as usize)) {
            return Err(KvmError::TooManyVcpus { asked: cpus, most });
        }
        let vm = Vm::new(kvm, Arc::new(Ram::new(&ram_ranges(memory))?))?;
        create_controllers(&vm)?;
        let tsc_deadline = match kvm.check_extension(Cap::TscDeadlineTimer) {
            true => TscDeadline::Yes,
            false => TscDeadline::No,
        };
        let vcpu = |id| create_vcpu(&vm, Place { id, count: cpus, tsc_deadline });
        let vcpus = (0..cpus).map(vcpu).collect::<Result<_, _>>()?;
        Ok(Self { vcpus, vm })
    }

    /// The first vCPU starts like this.
    pub(super) fn set_entry(&self, entry: &EntryState) -> Result<(), KvmError> {
        self.vcpus[0].set_registers(&registers::general(entry), |sregs| registers::set_system(sregs, entry))
    }

    pub(super) fn memory_below_4g(&self) -> u64 {
        self.ram_in(0..HIGH_RAM_BASE)
    }

    pub(super) fn memory_above_4g(&self) -> u64 {
        self.ram_in(HIGH_RAM_BASE..u64::MAX)
    }

    fn ram_in(&self, range: Range<u64>) -> u64 {
        let regions = self.vm.ram().memory().iter();
        regions.filter(|region| range.contains(&region.start_addr().0)).map(GuestMemoryRegion::len).sum()
    }
}

/// RAM that does not fit below [`LOW_RAM_END`] begins here.
const HIGH_RAM_BASE: u64 = 4 << 30;

fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    let low = (0, size.min(LOW_RAM_END));
    let high = (HIGH_RAM_BASE, size.saturating_sub(LOW_RAM_END));
    [low, high].into_iter().filter(|&(_, size)| size > 0).collect()
}

/// vCPUs made after this have a LAPIC in the kernel; all but the first wait for a start-up IPI.
fn create_controllers(vm: &Vm) -> Result<(), KvmError> {
    vm.fd().create_irq_chip().map_err(KvmError::request("KVM_CREATE_IRQCHIP"))?;
    // The speaker's port is KVM's too: it reads the timer's second channel by it.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.fd().create_pit2(pit).map_err(KvmError::request("KVM_CREATE_PIT2"))
}

fn create_vcpu(vm: &Vm, place: Place) -> Result<Vcpu, KvmError> {
    let cpuid: CpuId = cpuid::at(vm.cpuid(), place)?;
    let vcpu = vm.vcpu(place.id, &cpuid)?;
    set_firmware_msrs(&vcpu)?;
    Ok(vcpu)
}

fn set_firmware_msrs(vcpu: &Vcpu) -> Result<(), KvmError> {
    for &(index, data) in FIRMWARE_MSRS {
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
        let msrs = msrs.expect("one entry is not too many");
        let set = vcpu.fd().set_msrs(&msrs).map_err(KvmError::request("KVM_SET_MSRS"))?;
        if set == 0 {
            // The guest boots without, only more slowly.
            tracing::debug!("KVM does not set MSR {index:#x}");
        }
    }
    Ok(())
}
