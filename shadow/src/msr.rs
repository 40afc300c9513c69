//! The MSR lists of VM entry and VM exit. SDM Vol. 3, "Loading MSRs", "Saving MSRs". Entries take effect one by one, in
//! order, as the manual makes visible.

use crate::engine::{Engine, Host, Msrs};
use vmcs12::addr::{Gpa, Linear, Pa, Physical};
use vmcs12::arch::cr::cr0;
use vmcs12::arch::efer;
use vmcs12::arch::msr::*;
use vmcs12::caps::{Capabilities, VmxMisc};
use vmcs12::check::msr_area::{self, Entry, EntryRule};
use vmcs12::cpu_state::CpuState;
use vmcs12::field::{Field, Vmcs, table::*};

/// Where an MSR is, if it is not L0's.
#[derive(Clone, Copy)]
enum Home {
    /// In a guest-state field.
    Field(Field<u64>),
    /// In the guest-state field of SYSENTER_CS, which is 32 bits wide.
    SysenterCs,
    /// In no VMCS.
    State(fn(&mut CpuState) -> &mut u64),
}

/// What values an MSR takes.
#[derive(Clone, Copy)]
enum Accepts {
    Anything,
    Canonical,
    /// Eight memory types.
    Pat,
    /// See [`load_efer`].
    Efer,
    /// The bits that the profile has.
    Debugctl,
}

struct Row {
    index: u32,
    home: Home,
    accepts: Accepts,
}

const fn row(index: u32, home: Home, accepts: Accepts) -> Row {
    Row { index, home, accepts }
}

#[rustfmt::skip]
static MSRS: &[Row] = &[
    // MSR                    is in                                     accepts
    row(IA32_SYSENTER_CS,     Home::SysenterCs,                         Accepts::Anything),
    row(IA32_SYSENTER_ESP,    Home::Field(GUEST_IA32_SYSENTER_ESP),     Accepts::Canonical),
    row(IA32_SYSENTER_EIP,    Home::Field(GUEST_IA32_SYSENTER_EIP),     Accepts::Canonical),
    row(IA32_DEBUGCTL,        Home::Field(GUEST_IA32_DEBUGCTL),         Accepts::Debugctl),
    row(IA32_PAT,             Home::Field(GUEST_IA32_PAT),              Accepts::Pat),
    row(IA32_EFER,            Home::Field(GUEST_IA32_EFER),             Accepts::Efer),
    row(IA32_FS_BASE,         Home::Field(GUEST_FS_BASE),               Accepts::Canonical),
    row(IA32_GS_BASE,         Home::Field(GUEST_GS_BASE),               Accepts::Canonical),
    row(IA32_STAR,            Home::State(|s| &mut s.star),             Accepts::Anything),
    row(IA32_LSTAR,           Home::State(|s| &mut s.lstar),            Accepts::Canonical),
    row(IA32_CSTAR,           Home::State(|s| &mut s.cstar),            Accepts::Canonical),
    row(IA32_FMASK,           Home::State(|s| &mut s.fmask),            Accepts::Anything),
    row(IA32_KERNEL_GS_BASE,  Home::State(|s| &mut s.kernel_gs_base),   Accepts::Canonical),
];

fn find(index: u32) -> Option<&'static Row> {
    MSRS.iter().find(|row| row.index == index)
}

fn read_home(home: Home, vmcs: &Vmcs, state: &mut CpuState) -> u64 {
    match home {
        Home::Field(field) => vmcs.get(field),
        Home::SysenterCs => u64::from(vmcs.get(GUEST_IA32_SYSENTER_CS)),
        Home::State(place) => *place(state),
    }
}

fn write_home(home: Home, vmcs: &mut Vmcs, state: &mut CpuState, value: u64) {
    match home {
        Home::Field(field) => vmcs.set(field, value),
        Home::SysenterCs => vmcs.set(GUEST_IA32_SYSENTER_CS, value as u32),
        Home::State(place) => *place(state) = value,
    }
}

/// The value to hold after WRMSR of `value`, or `None` if it faults.
fn accepted(accepts: Accepts, vmcs: &Vmcs, offered: &Capabilities, value: u64) -> Option<u64> {
    let holds = match accepts {
        Accepts::Anything => true,
        Accepts::Canonical => offered.is_canonical(value),
        Accepts::Pat => value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)),
        Accepts::Debugctl => value & !offered.cpuid.debugctl == 0,
        Accepts::Efer => return load_efer(vmcs, offered, value),
    };
    holds.then_some(value)
}

/// SDM Vol. 4, "IA32_EFER": LME cannot change while paging is on, and LMA is the processor's own.
fn load_efer(vmcs: &Vmcs, offered: &Capabilities, value: u64) -> Option<u64> {
    let old = vmcs.get(GUEST_IA32_EFER);
    let paging = vmcs.get(GUEST_CR0) & cr0::PG != 0;
    let legal = value & !offered.cpuid.efer == 0 && (!paging || (value ^ old) & efer::LME == 0);
    legal.then_some(value & !efer::LMA | old & efer::LMA)
}

/// A list in guest memory.
#[derive(Clone, Copy)]
struct List {
    at: Gpa,
    count: u32,
}

impl List {
    fn entry(self, i: u32) -> Gpa {
        self.at.plus(u64::from(i) * msr_area::ENTRY_SIZE as u64)
    }
}

/// How many entries the profile takes: 512 for each step. SDM Vol. 3, "Miscellaneous Data".
fn longest(offered: &Capabilities) -> u32 {
    512 * (u32::from(offered.misc.get(VmxMisc::MSR_LIST_SIZE)) + 1)
}

/// The number of the entry that failed, from 1, and the rule that it broke.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadEntry {
    pub(crate) number: u32,
    pub(crate) rule: &'static EntryRule,
}

impl Engine {
    /// The VM-entry MSR-load list of vmcs12, into the state of L2.
    pub(crate) fn load_msrs_on_entry<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        vmcs12: &Vmcs,
    ) -> Result<(), BadEntry> {
        let list = list(vmcs12, VM_ENTRY_MSR_LOAD_ADDRESS, VM_ENTRY_MSR_LOAD_COUNT);
        for i in 0..list.count {
            let entry = self.entry(host.memory, list, i)?;
            let vmcs02 = &mut self.vmcs02.current;
            load(&self.offered, vmcs02, host.state, host.msrs, msr_area::LOAD_ON_ENTRY, entry)
                .map_err(|rule| BadEntry { number: i + 1, rule })?;
        }
        Ok(())
    }

    /// The VM-exit MSR-load list of vmcs12, into the state of L1.
    pub(crate) fn load_msrs_on_exit<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        vmcs12: &Vmcs,
    ) -> Result<(), BadEntry> {
        let list = list(vmcs12, VM_EXIT_MSR_LOAD_ADDRESS, VM_EXIT_MSR_LOAD_COUNT);
        for i in 0..list.count {
            let entry = self.entry(host.memory, list, i)?;
            let vmcs01 = &mut host.vmcs01.current;
            load(&self.offered, vmcs01, host.state, host.msrs, msr_area::LOAD_ON_EXIT, entry)
                .map_err(|rule| BadEntry { number: i + 1, rule })?;
        }
        Ok(())
    }

    /// The VM-exit MSR-store list of vmcs12, from the state of L2.
    pub(crate) fn store_msrs<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        vmcs12: &Vmcs,
    ) -> Result<(), BadEntry> {
        let list = list(vmcs12, VM_EXIT_MSR_STORE_ADDRESS, VM_EXIT_MSR_STORE_COUNT);
        for i in 0..list.count {
            let entry = self.entry(host.memory, list, i)?;
            let value = store(&self.vmcs02.current, host.state, host.msrs, host.tsc, entry)
                .map_err(|rule| BadEntry { number: i + 1, rule })?;
            let at = self.ept.ept01().machine(list.entry(i));
            host.memory.write(at, &Entry { data: value, ..entry }.to_bytes());
        }
        Ok(())
    }

    /// Entry `i` of a list, copied once.
    fn entry<P: Physical>(&self, memory: &P, list: List, i: u32) -> Result<Entry, BadEntry> {
        if i >= longest(&self.offered) {
            return Err(BadEntry { number: i + 1, rule: &msr_area::TOO_MANY });
        }
        let mut bytes = [0; msr_area::ENTRY_SIZE];
        let at: Pa = self.ept.ept01().machine(list.entry(i));
        memory.read(at, &mut bytes);
        Ok(Entry::from_bytes(bytes))
    }
}

fn list(vmcs12: &Vmcs, at: Field<Pa>, count: Field<u32>) -> List {
    List { at: Gpa(vmcs12.get(at).0), count: vmcs12.get(count) }
}

fn load<M: Msrs>(
    offered: &Capabilities,
    vmcs: &mut Vmcs,
    state: &mut CpuState,
    msrs: &mut M,
    rules: &'static [EntryRule],
    entry: Entry,
) -> Result<(), &'static EntryRule> {
    if let Some(rule) = msr_area::first_broken(rules, entry) {
        return Err(rule);
    }
    let loaded = match find(entry.index) {
        Some(row) => accepted(row.accepts, vmcs, offered, entry.data)
            .map(|value| write_home(row.home, vmcs, state, value))
            .is_some(),
        None => msrs.write(entry.index, entry.data),
    };
    loaded.then_some(()).ok_or(&msr_area::WRMSR_FAULTS)
}

fn store<M: Msrs>(
    vmcs: &Vmcs,
    state: &mut CpuState,
    msrs: &mut M,
    tsc: u64,
    entry: Entry,
) -> Result<u64, &'static EntryRule> {
    if let Some(rule) = msr_area::first_broken(msr_area::STORE_ON_EXIT, entry) {
        return Err(rule);
    }
    let value = match (find(entry.index), entry.index) {
        (Some(row), _) => Some(read_home(row.home, vmcs, state)),
        (None, IA32_TIME_STAMP_COUNTER) => Some(tsc),
        (None, index) => msrs.read(index),
    };
    value.ok_or(&msr_area::RDMSR_FAULTS)
}
