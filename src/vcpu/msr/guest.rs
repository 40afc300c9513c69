//! MSRs of the guest that exited which are in its VMCS or in [`CpuState`].

use super::{Own, Row, find, is_ascending, one, within};
use vmcs12::arch::cr::cr0;
use vmcs12::arch::efer;
use vmcs12::arch::eptp::memory_type;
use vmcs12::arch::msr::*;
use vmcs12::cpu_state::CpuState;
use vmcs12::field::Vmcs;
use vmcs12::field::table::*;

/// What RDMSR and WRMSR work on.
pub struct Access<'a, 'o> {
    /// The VMCS of the guest that exited.
    pub vmcs: &'a mut Vmcs,
    /// What is in no VMCS.
    pub state: &'a mut CpuState,
    /// The vCPU's other MSRs.
    pub own: &'a mut Own<'o>,
}

type Read = fn(&Access) -> Option<u64>;
type Write = fn(&mut Access, u64) -> Option<()>;

#[rustfmt::skip]
const ROWS: &[Row<Read, Write>] = &[
    //  index                    RDMSR                                                      WRMSR
    one(IA32_TIME_STAMP_COUNTER, (|m| Some(m.tsc())) as Read,                               (|m, v| m.set_tsc(v)) as Write),
    one(IA32_TSC_ADJUST,         |m| m.own.model.tsc_adjust.then_some(m.own.registers.tsc_adjust), |m, v| m.set_tsc_adjust(v)),
    one(IA32_SPEC_CTRL,          |m| m.own.model.spec_ctrl.map(|_| m.state.spec_ctrl),      |m, v| { m.state.spec_ctrl = within(v, m.own.model.spec_ctrl?)?; Some(()) }),
    one(IA32_SYSENTER_CS,        |m| Some(m.vmcs.get(GUEST_IA32_SYSENTER_CS).into()),       |m, v| { m.vmcs.set(GUEST_IA32_SYSENTER_CS, v as u32); Some(()) }),
    one(IA32_SYSENTER_ESP,       |m| Some(m.vmcs.get(GUEST_IA32_SYSENTER_ESP)),             |m, v| { m.vmcs.set(GUEST_IA32_SYSENTER_ESP, m.canonical(v)?); Some(()) }),
    one(IA32_SYSENTER_EIP,       |m| Some(m.vmcs.get(GUEST_IA32_SYSENTER_EIP)),             |m, v| { m.vmcs.set(GUEST_IA32_SYSENTER_EIP, m.canonical(v)?); Some(()) }),
    one(IA32_DEBUGCTL,           |m| Some(m.vmcs.get(GUEST_IA32_DEBUGCTL)),                 |m, v| { m.vmcs.set(GUEST_IA32_DEBUGCTL, within(v, DEBUGCTL_BITS)?); Some(()) }),
    one(IA32_PAT,                |m| Some(m.vmcs.get(GUEST_IA32_PAT)),                      |m, v| m.set_pat(v)),
    one(IA32_XSS,                |m| m.own.model.xss.map(|_| m.state.xss),                  |m, v| { m.state.xss = within(v, m.own.model.xss?)?; Some(()) }),
    one(IA32_EFER,               |m| Some(m.vmcs.get(GUEST_IA32_EFER)),                     |m, v| m.set_efer(v)),
    one(IA32_STAR,               |m| Some(m.state.star),                                    |m, v| { m.state.star = v; Some(()) }),
    one(IA32_LSTAR,              |m| Some(m.state.lstar),                                   |m, v| { m.state.lstar = m.canonical(v)?; Some(()) }),
    one(IA32_CSTAR,              |m| Some(m.state.cstar),                                   |m, v| { m.state.cstar = m.canonical(v)?; Some(()) }),
    one(IA32_FMASK,              |m| Some(m.state.fmask),                                   |m, v| { m.state.fmask = within(v, LOW_32)?; Some(()) }),
    one(IA32_FS_BASE,            |m| Some(m.vmcs.get(GUEST_FS_BASE)),                       |m, v| { m.vmcs.set(GUEST_FS_BASE, m.canonical(v)?); Some(()) }),
    one(IA32_GS_BASE,            |m| Some(m.vmcs.get(GUEST_GS_BASE)),                       |m, v| { m.vmcs.set(GUEST_GS_BASE, m.canonical(v)?); Some(()) }),
    one(IA32_KERNEL_GS_BASE,     |m| Some(m.state.kernel_gs_base),                          |m, v| { m.state.kernel_gs_base = m.canonical(v)?; Some(()) }),
    one(IA32_TSC_AUX,            |m| m.own.model.tsc_aux.then_some(m.state.tsc_aux), |m, v| m.set_tsc_aux(v)),
];

const _: () = assert!(is_ascending(ROWS));

/// Bits of MSRs whose upper half is reserved.
const LOW_32: u64 = 0xffff_ffff;
/// IA32_DEBUGCTL.BTF, which the processor implements.
const DEBUGCTL_BITS: u64 = 1 << 1;
/// UC-, which exists in IA32_PAT alone. SDM Vol. 3, "Page Attribute Table (PAT)".
const PAT_UC_MINUS: u8 = 7;

impl Access<'_, '_> {
    /// RDMSR; `None` is #GP(0).
    pub fn read(&mut self, index: u32) -> Option<u64> {
        match find(ROWS, index) {
            Some(row) => (row.read)(self),
            None => self.own.read(index),
        }
    }

    /// WRMSR; `None` is #GP(0).
    pub fn write(&mut self, index: u32, value: u64) -> Option<()> {
        match find(ROWS, index) {
            Some(row) => (row.write)(self, value),
            None => self.own.write(index, value),
        }
    }

    fn canonical(&self, address: u64) -> Option<u64> {
        let unused = 64 - self.own.model.linear_width();
        (((address << unused) as i64 >> unused) as u64 == address).then_some(address)
    }

    /// The TSC of the guest that exited, which for L2 is not L1's.
    fn tsc(&self) -> u64 {
        self.own.clock.tsc().wrapping_add(self.vmcs.get(TSC_OFFSET))
    }

    /// A write to the TSC moves IA32_TSC_ADJUST too. SDM Vol. 3, "IA32_TSC_ADJUST MSR".
    fn set_tsc(&mut self, value: u64) -> Option<()> {
        let delta = value.wrapping_sub(self.tsc());
        self.own.adjust_tsc(self.own.registers.tsc_adjust.wrapping_add(delta));
        self.own.rearm();
        Some(())
    }

    fn set_tsc_adjust(&mut self, value: u64) -> Option<()> {
        self.own.model.tsc_adjust.then_some(())?;
        self.own.adjust_tsc(value);
        self.own.rearm();
        Some(())
    }

    fn set_pat(&mut self, value: u64) -> Option<()> {
        let valid = |kind| memory_type::exists(kind) || kind == PAT_UC_MINUS;
        value.to_ne_bytes().into_iter().all(valid).then_some(())?;
        self.vmcs.set(GUEST_IA32_PAT, value);
        Some(())
    }

    /// LMA is the processor's: writes to it are ignored. LME cannot change while paging is on.
    /// SDM Vol. 3, "Extended Feature Enable Register".
    fn set_efer(&mut self, value: u64) -> Option<()> {
        within(value, self.own.model.offer.efer | efer::LMA)?;
        let old = self.vmcs.get(GUEST_IA32_EFER);
        let paging = self.vmcs.get(GUEST_CR0) & cr0::PG != 0;
        if paging && (value ^ old) & efer::LME != 0 {
            return None;
        }
        self.vmcs.set(GUEST_IA32_EFER, value & !efer::LMA | old & efer::LMA);
        Some(())
    }

    fn set_tsc_aux(&mut self, value: u64) -> Option<()> {
        self.own.model.tsc_aux.then_some(())?;
        self.state.tsc_aux = within(value, LOW_32)?;
        Some(())
    }
}
